//! The contract of [`Store`], clause by clause.
//!
//! ```
//! # use backup_core::LocalStore as MyStore;
//! backup_core::store_conformance_tests!(my_store, || async {
//!     let dir = tempfile::tempdir().unwrap();
//!     (MyStore::new(dir.path()), dir) // a guard may come with the store
//! });
//! # fn main() {}
//! ```
//!
//! The caller needs `tokio` with `rt` and `macros`. Each test gets a store of its own, which must be empty.

#![expect(clippy::unwrap_used, reason = "assertions of tests")]

use std::any::Any;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use futures::{StreamExt as _, TryStreamExt as _};

use crate::error::StoreError;
use crate::id::StoreKey;
use crate::source::CHUNK_BYTES;
use crate::store::{Store, WriteOptions};

/// One `#[tokio::test]` for each clause of the contract of [`Store`], in a module called `$name`.
///
/// `$factory` is called once for each test, without arguments, and returns a future of an empty store, or of a pair of
/// a store and a guard that lives as long as the test. Attributes before the name go to each test: `#[ignore = "…"]`.
#[macro_export]
macro_rules! store_conformance_tests {
    ($(#[$attribute:meta])* $name:ident, $factory:expr $(,)?) => {
        async fn $name() -> $crate::testkit::store_suite::Fixture {
            ($factory)().await.into()
        }

        $crate::store_conformance_tests! { @clauses [$($attribute)*] $name
            create_is_exclusive
            create_keeps_the_first_body
            an_unfinished_write_is_invisible
            an_aborted_or_dropped_write_is_invisible
            finish_tells_the_true_size
            finish_replaces_nothing_where_the_medium_can_tell
            an_empty_object_is_an_object
            an_object_of_many_chunks_with_an_odd_tail_comes_back
            what_is_missing_is_not_found
            ranges_are_exact_and_lie_within
            prefixes_match_whole_segments
            a_missing_prefix_lists_nothing
            both_listings_agree_with_head
            list_dirs_are_sorted_and_hold_objects
            delete_is_idempotent
            delete_prefix_is_idempotent_and_exact
            delete_prefix_removes_abandoned_writes
            delete_abandoned_removes_nothing_else
            rename_moves_and_is_idempotent
            rename_replaces_nothing
            a_cut_short_rename_is_completed
            errors_name_the_key
        }
    };
    (@clauses $attributes:tt $name:ident $($clause:ident)*) => {
        mod $name {
            $($crate::store_conformance_tests! { @clause $attributes $name $clause })*
        }
    };
    (@clause [$($attribute:meta)*] $name:ident $clause:ident) => {
        $(#[$attribute])*
        #[tokio::test]
        async fn $clause() {
            $crate::testkit::store_suite::$clause(super::$name().await).await;
        }
    };
}

/// A store under test, with what must outlive it.
pub struct Fixture {
    store: Arc<dyn Store>,
    _guard: Box<dyn Any + Send + Sync>,
}

impl fmt::Debug for Fixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fixture").field("store", &self.store).finish_non_exhaustive()
    }
}

impl<S: Store> From<S> for Fixture {
    fn from(store: S) -> Self {
        Self { store: Arc::new(store), _guard: Box::new(()) }
    }
}

impl<S: Store, G: Any + Send + Sync> From<(S, G)> for Fixture {
    fn from((store, guard): (S, G)) -> Self {
        Self { store: Arc::new(store), _guard: Box::new(guard) }
    }
}

impl Fixture {
    async fn write(&self, key: &StoreKey, chunks: &[Bytes]) -> Result<u64, StoreError> {
        let mut writer = self.store.writer(key, WriteOptions::default()).await?;
        for chunk in chunks {
            writer.write(chunk.clone()).await?;
        }
        writer.finish().await.map(|info| info.bytes)
    }

    async fn put(&self, key: &str) {
        self.store.create(&k(key), Bytes::copy_from_slice(key.as_bytes())).await.unwrap();
    }

    async fn body(&self, key: &StoreKey) -> Vec<u8> {
        let chunks: Vec<Bytes> = self.store.read(key).await.unwrap().try_collect().await.unwrap();
        chunks.concat()
    }

    async fn keys(&self, prefix: Option<&str>) -> BTreeSet<String> {
        let keys = self.store.list_keys(prefix.map(k).as_ref());
        keys.map_ok(|key| key.to_string()).try_collect().await.unwrap()
    }

    async fn dirs(&self, prefix: Option<&str>) -> Vec<String> {
        self.store.list_dirs(prefix.map(k).as_ref()).await.unwrap()
    }

    async fn is_invisible(&self, key: &StoreKey) {
        assert!(self.store.head(key).await.unwrap_err().is_not_found(), "head shows it");
        assert!(self.store.read(key).await.err().is_some_and(|e| e.is_not_found()), "read shows it");
        assert_eq!(self.keys(None).await, BTreeSet::new(), "a listing shows it");
        assert_eq!(self.dirs(None).await, Vec::<String>::new(), "list_dirs shows it");
        let listed: Vec<_> = self.store.list(None).try_collect().await.unwrap();
        assert_eq!(listed, [], "a listing shows it");
    }
}

fn k(key: &str) -> StoreKey {
    StoreKey::new(key).unwrap()
}

fn set(keys: &[&str]) -> BTreeSet<String> {
    keys.iter().map(ToString::to_string).collect()
}

/// Bytes that tell where they were taken from.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).flat_map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15)).to_le_bytes()).take(len).collect()
}

/// Of many racers exactly one wins, and the object is the winner's.
pub async fn create_is_exclusive(f: Fixture) {
    for round in 0..8 {
        let key = k(&format!("a/b/race-{round}"));
        let racers = (0..16).map(|i| {
            let (store, key) = (Arc::clone(&f.store), key.clone());
            async move { store.create(&key, Bytes::from(format!("racer {i}"))).await }
        });
        let results = join_all(racers).await;
        let winners: Vec<usize> = (0..16).filter(|i| results[*i].is_ok()).collect();
        for e in results.iter().filter_map(|r| r.as_ref().err()) {
            assert!(e.is_already_exists(), "a loser got another error: {e}");
        }
        assert_eq!(winners.len(), 1, "not one winner: {winners:?}");
        assert_eq!(f.body(&key).await, format!("racer {}", winners[0]).into_bytes());
    }
}

/// The second `create` fails, also with the same body, and changes nothing.
pub async fn create_keeps_the_first_body(f: Fixture) {
    f.store.create(&k("a/x"), Bytes::from_static(b"first")).await.unwrap();
    for body in ["second", "first"] {
        let e = f.store.create(&k("a/x"), Bytes::from(body)).await.unwrap_err();
        assert!(e.is_already_exists(), "{e}");
    }
    assert_eq!(f.body(&k("a/x")).await, b"first");
}

/// Nobody sees an object before `finish`.
pub async fn an_unfinished_write_is_invisible(f: Fixture) {
    let key = k("a/b/x");
    let mut writer = f.store.writer(&key, WriteOptions::default()).await.unwrap();
    f.is_invisible(&key).await;
    // More than any store keeps back before it begins to store something.
    for _ in 0..20 {
        writer.write(Bytes::from(pattern(CHUNK_BYTES))).await.unwrap();
    }
    f.is_invisible(&key).await;
    writer.finish().await.unwrap();
    assert_eq!(f.keys(None).await, set(&["a/b/x"]));
}

/// Nobody ever sees a write that was given up.
pub async fn an_aborted_or_dropped_write_is_invisible(f: Fixture) {
    let key = k("a/b/x");
    for abort in [true, false] {
        let mut writer = f.store.writer(&key, WriteOptions::default()).await.unwrap();
        writer.write(Bytes::from(pattern(3 * CHUNK_BYTES))).await.unwrap();
        if abort {
            writer.abort().await.unwrap();
        } else {
            drop(writer);
        }
        f.is_invisible(&key).await;
    }
    // And it stands in nobody's way.
    assert_eq!(f.write(&key, &[Bytes::from_static(b"x")]).await.unwrap(), 1);
    assert_eq!(f.body(&key).await, b"x");
}

/// `finish` and `head` tell how many bytes were written.
pub async fn finish_tells_the_true_size(f: Fixture) {
    let chunks = [Bytes::from(pattern(CHUNK_BYTES)), Bytes::new(), Bytes::from_static(b"tail")];
    let hinted = WriteOptions::data(Some(7));
    let mut writer = f.store.writer(&k("a/x"), hinted).await.unwrap();
    for chunk in &chunks {
        writer.write(chunk.clone()).await.unwrap();
    }
    let info = writer.finish().await.unwrap();
    assert_eq!((info.key.as_str(), info.bytes), ("a/x", CHUNK_BYTES as u64 + 4));
    assert_eq!(f.store.head(&k("a/x")).await.unwrap().bytes, info.bytes);
}

/// A writer on a taken key fails with `AlreadyExists` and changes nothing; a medium that cannot tell has replaced the
/// whole object.
pub async fn finish_replaces_nothing_where_the_medium_can_tell(f: Fixture) {
    let key = k("a/x");
    f.store.create(&key, Bytes::from_static(b"first")).await.unwrap();
    match f.write(&key, &[Bytes::from_static(b"second")]).await {
        Ok(bytes) => {
            assert_eq!(bytes, 6);
            assert_eq!(f.body(&key).await, b"second");
        }
        Err(e) => {
            assert!(e.is_already_exists(), "{e}");
            assert_eq!(f.body(&key).await, b"first");
        }
    }
    assert_eq!(f.keys(None).await, set(&["a/x"]));
}

/// Zero bytes are an object like any other.
pub async fn an_empty_object_is_an_object(f: Fixture) {
    f.store.create(&k("a/created"), Bytes::new()).await.unwrap();
    assert_eq!(f.write(&k("a/written"), &[]).await.unwrap(), 0);
    for key in ["a/created", "a/written"] {
        assert_eq!(f.body(&k(key)).await, b"");
        assert_eq!(f.store.head(&k(key)).await.unwrap().bytes, 0);
        assert_eq!(f.store.read_range(&k(key), 0..0).await.unwrap(), Bytes::new());
    }
    assert_eq!(f.keys(None).await, set(&["a/created", "a/written"]));
    assert_eq!(f.dirs(None).await, ["a"]);
}

/// What went in comes out, in chunks of bounded size.
pub async fn an_object_of_many_chunks_with_an_odd_tail_comes_back(f: Fixture) {
    // 35 MiB and a bit: several parts of a multipart upload.
    let whole = Bytes::from(pattern(35 * CHUNK_BYTES + 12_345));
    let mut chunks = vec![whole.slice(..1), whole.slice(1..4096)];
    let mut at = 4096;
    while at < whole.len() {
        let next = (at + 3 * CHUNK_BYTES - 7).min(whole.len());
        chunks.push(whole.slice(at..next));
        at = next;
    }
    assert_eq!(f.write(&k("a/x"), &chunks).await.unwrap(), whole.len() as u64);
    let read: Vec<Bytes> = f.store.read(&k("a/x")).await.unwrap().try_collect().await.unwrap();
    assert!(read.iter().all(|c| !c.is_empty() && c.len() <= 2 * CHUNK_BYTES), "chunks of about 1 MiB");
    assert!(read.concat() == whole, "the body came back changed");
}

/// Looking for a missing object says so.
pub async fn what_is_missing_is_not_found(f: Fixture) {
    f.put("a/x").await;
    // Never there, a directory, and below an object.
    for key in ["nope", "a/nope", "nope/x", "a", "a/x/y"] {
        let key = k(key);
        assert!(f.store.head(&key).await.unwrap_err().is_not_found(), "head {key}");
        assert!(f.store.read(&key).await.err().is_some_and(|e| e.is_not_found()), "read {key}");
        assert!(f.store.read_range(&key, 0..1).await.unwrap_err().is_not_found(), "read_range {key}");
    }
}

/// Ranges return exactly what was asked for, or an error.
pub async fn ranges_are_exact_and_lie_within(f: Fixture) {
    let body = pattern(10_000);
    f.store.create(&k("a/x"), Bytes::from(body.clone())).await.unwrap();
    for range in [0..10_000, 0..1, 9_999..10_000, 1_234..5_678, 500..500] {
        let part = f.store.read_range(&k("a/x"), range.clone()).await.unwrap();
        let want = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        assert_eq!(part, body[want], "{range:?}");
    }
    for range in [0..10_001, 9_999..10_001, 10_001..10_002, 20_000..20_001] {
        let e = f.store.read_range(&k("a/x"), range.clone()).await.unwrap_err();
        assert!(!e.is_not_found(), "{range:?}: {e}");
    }
}

/// `a/b` matches `a/b/c`, neither `a/bc` nor `a/b` itself.
pub async fn prefixes_match_whole_segments(f: Fixture) {
    for key in ["a/b/c", "a/b/d/e", "a/bc", "a/b-c/x", "a/b.x", "ab/c"] {
        f.put(key).await;
    }
    assert_eq!(f.keys(Some("a/b")).await, set(&["a/b/c", "a/b/d/e"]));
    assert_eq!(f.keys(Some("a/b/c")).await, set(&[]), "an object is not below itself");
    assert_eq!(f.dirs(Some("a")).await, ["b", "b-c"]);
    f.store.delete_prefix(&k("a/b")).await.unwrap();
    assert_eq!(f.keys(None).await, set(&["a/bc", "a/b-c/x", "a/b.x", "ab/c"]));
}

/// A missing prefix is empty, not an error.
pub async fn a_missing_prefix_lists_nothing(f: Fixture) {
    assert_eq!(f.keys(None).await, set(&[]));
    assert_eq!(f.dirs(None).await, Vec::<String>::new());
    f.put("a/x").await;
    for prefix in ["nope", "a/nope", "a/x", "a/x/y"] {
        assert_eq!(f.keys(Some(prefix)).await, set(&[]), "{prefix}");
        assert_eq!(f.dirs(Some(prefix)).await, Vec::<String>::new(), "{prefix}");
        assert!(f.store.list(Some(&k(prefix))).try_next().await.unwrap().is_none(), "{prefix}");
    }
}

/// `list`, `list_keys` and `head` tell the same, also when there is more than a page of it.
pub async fn both_listings_agree_with_head(f: Fixture) {
    let want: BTreeSet<String> = (0..1500).map(|i| format!("a/{}/{i}/x", i % 7)).collect();
    let puts = futures::stream::iter(&want).map(|key| f.put(key));
    puts.buffer_unordered(32).collect::<()>().await;
    assert_eq!(f.keys(Some("a")).await, want);
    let listed: Vec<_> = f.store.list(Some(&k("a"))).try_collect().await.unwrap();
    assert_eq!(listed.iter().map(|info| info.key.to_string()).collect::<BTreeSet<_>>(), want);
    assert_eq!(listed.len(), want.len(), "something is listed twice");
    for info in listed.iter().step_by(100) {
        assert_eq!(*info, f.store.head(&info.key).await.unwrap());
        assert_eq!(info.bytes, info.key.as_str().len() as u64);
    }
}

/// `list_dirs` shows directories with an object in them, sorted, and nothing else.
pub async fn list_dirs_are_sorted_and_hold_objects(f: Fixture) {
    for key in ["top", "s/10/x", "s/9/deep/er/x", "s/file", "s/a/x", "s/B/x"] {
        f.put(key).await;
    }
    assert_eq!(f.dirs(None).await, ["s"]);
    assert_eq!(f.dirs(Some("s")).await, ["10", "9", "B", "a"]);
    f.store.delete(&k("s/9/deep/er/x")).await.unwrap();
    f.store.delete_prefix(&k("s/10")).await.unwrap();
    assert_eq!(f.dirs(Some("s")).await, ["B", "a"], "emptied directories are gone");
}

/// Deleting what is not there is success.
pub async fn delete_is_idempotent(f: Fixture) {
    f.put("a/x").await;
    f.put("a/y").await;
    for _ in 0..2 {
        f.store.delete(&k("a/x")).await.unwrap();
    }
    for missing in ["nope/nope", "a/y/z", "a"] {
        f.store.delete(&k(missing)).await.unwrap();
    }
    assert_eq!(f.keys(None).await, set(&["a/y"]));
    f.store.create(&k("a/x"), Bytes::from_static(b"again")).await.unwrap();
    assert_eq!(f.body(&k("a/x")).await, b"again");
}

/// `delete_prefix` removes what is below and nothing else, again and again.
pub async fn delete_prefix_is_idempotent_and_exact(f: Fixture) {
    for key in ["a/b/1", "a/b/c/2", "a/b/.hidden", "a/x", "a/bb/3"] {
        f.put(key).await;
    }
    for _ in 0..2 {
        f.store.delete_prefix(&k("a/b")).await.unwrap();
    }
    f.store.delete_prefix(&k("a/x")).await.unwrap();
    f.store.delete_prefix(&k("nope/nope")).await.unwrap();
    assert_eq!(f.keys(None).await, set(&["a/bb/3", "a/x"]), "an object is not below itself");
}

/// Parts of a writer whose process died are removed with everything else.
pub async fn delete_prefix_removes_abandoned_writes(f: Fixture) {
    let mut writer = f.store.writer(&k("a/b/x"), WriteOptions::default()).await.unwrap();
    writer.write(Bytes::from(pattern(3 * CHUNK_BYTES))).await.unwrap();
    // As a killed process leaves it: nothing is tidied up.
    std::mem::forget(writer);
    f.put("a/b/y").await;
    assert_eq!(f.keys(None).await, set(&["a/b/y"]));
    f.store.delete_prefix(&k("a/b")).await.unwrap();
    f.is_invisible(&k("a/b/y")).await;
    if let Some(dir) = f.store.local_path(&k("a/b")) {
        assert!(!dir.exists(), "something is left in {}", dir.display());
    }
}

/// Partial writes go, objects stay.
pub async fn delete_abandoned_removes_nothing_else(f: Fixture) {
    let mut writer = f.store.writer(&k("a/b/x"), WriteOptions::default()).await.unwrap();
    writer.write(Bytes::from(pattern(3 * CHUNK_BYTES))).await.unwrap();
    std::mem::forget(writer);
    f.put("a/b/y").await;
    let left = || f.store.local_path(&k("a/b")).map(|dir| std::fs::read_dir(dir).unwrap().count());
    f.store.delete_abandoned(&k("a/b"), Duration::from_secs(3600)).await.unwrap();
    assert!(left().is_none_or(|n| n == 2), "somebody may still be writing it");
    for _ in 0..2 {
        f.store.delete_abandoned(&k("a/b"), Duration::ZERO).await.unwrap();
    }
    f.store.delete_abandoned(&k("nope"), Duration::ZERO).await.unwrap();
    assert_eq!(f.keys(None).await, set(&["a/b/y"]));
    assert!(left().is_none_or(|n| n == 1));
}

/// An object moves, and moving it again is success.
pub async fn rename_moves_and_is_idempotent(f: Fixture) {
    f.put("a/x").await;
    f.store.rename(&k("a/x"), &k("a/x")).await.unwrap();
    for _ in 0..2 {
        f.store.rename(&k("a/x"), &k("b/c/y")).await.unwrap();
        assert_eq!(f.keys(None).await, set(&["b/c/y"]));
        assert_eq!(f.body(&k("b/c/y")).await, b"a/x");
    }
    assert_eq!(f.dirs(None).await, ["b"], "an emptied directory is gone");
    let e = f.store.rename(&k("nope"), &k("nope/2")).await.unwrap_err();
    assert!(e.is_not_found(), "{e}");
}

/// A rename to a key that holds something else fails and changes nothing.
pub async fn rename_replaces_nothing(f: Fixture) {
    f.put("a/x").await;
    f.put("a/y").await;
    let e = f.store.rename(&k("a/x"), &k("a/y")).await.unwrap_err();
    assert!(e.is_already_exists(), "{e}");
    assert_eq!(f.body(&k("a/x")).await, b"a/x");
    assert_eq!(f.body(&k("a/y")).await, b"a/y");
}

/// A rename that died between making the new key and removing the old one is completed by the next call.
pub async fn a_cut_short_rename_is_completed(f: Fixture) {
    for key in ["a/x", "a/y"] {
        f.store.create(&k(key), Bytes::from_static(b"same")).await.unwrap();
    }
    f.store.rename(&k("a/x"), &k("a/y")).await.unwrap();
    assert_eq!(f.keys(None).await, set(&["a/y"]));
    assert_eq!(f.body(&k("a/y")).await, b"same");
}

/// Errors name the object, in one line, without their cause.
pub async fn errors_name_the_key(f: Fixture) {
    f.put("a/x").await;
    let errors = [
        f.store.head(&k("no/such")).await.unwrap_err(),
        f.store.create(&k("a/x"), Bytes::new()).await.unwrap_err(),
        f.store.read_range(&k("a/x"), 0..1000).await.unwrap_err(),
    ];
    for (e, key) in errors.iter().zip(["no/such", "a/x", "a/x"]) {
        let text = e.to_string();
        assert!(text.contains(key) && !text.contains('\n'), "{text}");
        if let Some(cause) = std::error::Error::source(e) {
            assert!(!text.contains(&cause.to_string()), "{text} repeats its cause");
        }
    }
}
