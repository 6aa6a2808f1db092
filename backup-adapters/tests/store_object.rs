//! Object storage as a store: the contract over memory, and what networks do.

#![cfg(feature = "object")]
#![expect(clippy::unwrap_used, reason = "assertions of tests")]

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use backup_adapters::stores::ObjectStore;
use backup_core::{Store as _, StoreError, StoreKey, WriteOptions, store_conformance_tests};
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore as Backend, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

store_conformance_tests!(memory_url, || async {
    ObjectStore::from_url("memory://", &BTreeMap::new()).unwrap()
});

// A neighbour's objects share the bucket, and begin with the same letters.
store_conformance_tests!(below_a_prefix, || async {
    let bucket = Arc::new(InMemory::new());
    for neighbour in ["backups", "backups/hos", "backups/hosts/x", "z"] {
        bucket.put_opts(&neighbour.into(), "neighbour".into(), PutOptions::default()).await.unwrap();
    }
    ObjectStore::from_parts(bucket, None, "backups/host", "s3://bucket/backups/host".to_owned()).unwrap()
});

fn key(s: &str) -> StoreKey {
    StoreKey::new(s).unwrap()
}

fn generic(what: &'static str) -> Error {
    Error::Generic { store: "test", source: what.into() }
}

/// A storage behind a bad network: chosen answers get lost after the deed, or come damaged.
#[derive(Debug, Default)]
struct BadNetwork {
    inner: InMemory,
    /// So many puts succeed, and their caller hears of an error.
    lose_answers: AtomicUsize,
    /// So many puts are answered "exists already" though the key is free, as S3 does during a deletion.
    conflicts: AtomicUsize,
    /// Downloads end so many bytes early, cleanly.
    cut: AtomicUsize,
    puts: AtomicUsize,
    completed: AtomicUsize,
    aborted: Arc<AtomicUsize>,
}

impl fmt::Display for BadNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bad network")
    }
}

fn take_one(from: &AtomicUsize) -> bool {
    from.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

/// After so many, an abortion is never answered.
const NEVER: usize = 1000;

#[derive(Debug)]
struct CountedUpload(Box<dyn MultipartUpload>, Arc<AtomicUsize>);

#[async_trait]
impl MultipartUpload for CountedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.0.put_part(data)
    }
    async fn complete(&mut self) -> Result<PutResult> {
        self.0.complete().await
    }
    async fn abort(&mut self) -> Result<()> {
        if self.1.fetch_add(1, Ordering::SeqCst) == NEVER {
            std::future::pending::<()>().await;
        }
        self.0.abort().await
    }
}

#[async_trait]
impl Backend for BadNetwork {
    async fn put_opts(&self, at: &Path, body: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.puts.fetch_add(1, Ordering::SeqCst);
        if take_one(&self.conflicts) {
            return Err(Error::AlreadyExists { path: at.to_string(), source: "409".into() });
        }
        let done = self.inner.put_opts(at, body, opts).await;
        if take_one(&self.lose_answers) { Err(generic("connection reset")) } else { done }
    }
    async fn put_multipart_opts(
        &self,
        at: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(at, opts).await?;
        self.completed.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(CountedUpload(inner, Arc::clone(&self.aborted))))
    }
    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let mut got = self.inner.get_opts(at, options).await?;
        let cut = self.cut.load(Ordering::SeqCst);
        if cut > 0 {
            let range = got.range.clone();
            let meta = got.meta.clone();
            let whole = got.bytes().await?;
            // In the small pieces that networks deliver.
            let pieces: Vec<_> =
                whole[..whole.len() - cut].chunks(9000).map(|p| Ok(Bytes::copy_from_slice(p))).collect();
            let payload = GetResultPayload::Stream(stream::iter(pieces).boxed());
            got = GetResult {
                payload,
                meta,
                range,
                attributes: Default::default(),
                extensions: Default::default(),
            };
        }
        Ok(got)
    }
    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(at, ranges).await
    }
    fn delete_stream(&self, all: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(all)
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn over(network: &Arc<BadNetwork>) -> ObjectStore {
    let backend: Arc<dyn Backend> = Arc::clone(network) as _;
    ObjectStore::from_parts(backend, None, "p", "s3://bucket/p".to_owned()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_lost_acknowledgement_is_recognised_by_the_body() {
    let network = Arc::new(BadNetwork::default());
    let store = over(&network);
    network.lose_answers.store(1, Ordering::SeqCst);
    store.create(&key("a"), Bytes::from_static(b"run 1")).await.unwrap();
    assert_eq!(network.puts.load(Ordering::SeqCst), 2, "the second attempt found the first one's object");

    // A small write is protected in the same way.
    network.lose_answers.store(1, Ordering::SeqCst);
    let mut writer = store.writer(&key("b"), WriteOptions::default()).await.unwrap();
    writer.write(Bytes::from_static(b"body")).await.unwrap();
    writer.finish().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lost_race_stays_lost_even_with_a_doubt() {
    let network = Arc::new(BadNetwork::default());
    let store = over(&network);
    store.create(&key("a"), Bytes::from_static(b"run 1")).await.unwrap();
    // The same bytes without a retry of our own: somebody else's.
    assert!(store.create(&key("a"), Bytes::from_static(b"run 1")).await.unwrap_err().is_already_exists());
    // Other bytes (of the same length) with a retry.
    network.lose_answers.store(1, Ordering::SeqCst);
    assert!(store.create(&key("a"), Bytes::from_static(b"run 2")).await.unwrap_err().is_already_exists());
}

#[tokio::test(start_paused = true)]
async fn a_conflict_on_a_free_key_is_tried_again() {
    let network = Arc::new(BadNetwork::default());
    network.conflicts.store(2, Ordering::SeqCst);
    over(&network).create(&key("a"), Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(over(&network).head(&key("a")).await.unwrap().bytes, 1);
}

#[tokio::test(start_paused = true)]
async fn a_dead_network_ends_as_a_retryable_error() {
    let network = Arc::new(BadNetwork::default());
    network.lose_answers.store(usize::MAX, Ordering::SeqCst);
    let blocker = over(&network);
    // Every attempt overwrites nothing and hears nothing: the first lands, the others are answered with an error.
    let began = tokio::time::Instant::now();
    let e = blocker.create(&key("a"), Bytes::from_static(b"x")).await.unwrap_err();
    assert!(matches!(e, StoreError::Other { retryable: true, .. }), "{e:?}");
    let (waited, puts) = (began.elapsed(), network.puts.load(Ordering::SeqCst));
    assert!((180..190).contains(&waited.as_secs()), "{waited:?}");
    assert!((25..100).contains(&puts), "with pauses that grow, and not beyond all measure: {puts}");
}

#[tokio::test]
async fn a_download_that_ends_early_is_an_error() {
    let network = Arc::new(BadNetwork::default());
    let store = over(&network);
    store.create(&key("a"), Bytes::from(vec![7; 3 << 20])).await.unwrap();
    network.cut.store(1, Ordering::SeqCst);
    let read: Vec<_> = store.read(&key("a")).await.unwrap().collect().await;
    let (last, before) = read.split_last().unwrap();
    assert!(matches!(last, Err(StoreError::Other { retryable: true, .. })), "{last:?}");
    // And small pieces were put together.
    assert!(before.iter().all(|c| c.as_ref().unwrap().len() >= 1 << 20), "chunks of about 1 MiB");
}

#[tokio::test]
async fn uploads_that_are_given_up_are_aborted() {
    let network = Arc::new(BadNetwork::default());
    let store = over(&network);
    for given_up in 1..=3 {
        let mut writer = store.writer(&key("a"), WriteOptions::default()).await.unwrap();
        for _ in 0..40 {
            writer.write(Bytes::from(vec![1; 1 << 20])).await.unwrap();
        }
        match given_up {
            1 => writer.abort().await.unwrap(),
            2 => drop(writer),
            _ => {
                store.create(&key("a"), Bytes::from_static(b"taken")).await.unwrap();
                assert!(writer.finish().await.unwrap_err().is_already_exists());
            }
        }
        // A dropped writer's upload is aborted by a task of its own.
        while network.aborted.load(Ordering::SeqCst) < given_up {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(network.completed.load(Ordering::SeqCst), 3);
    let body: Vec<Bytes> = store.read(&key("a")).await.unwrap().try_collect().await.unwrap();
    assert_eq!(body.concat(), b"taken");
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_cannot_be_aborted_is_left_soon() {
    let network = Arc::new(BadNetwork::default());
    network.aborted.store(NEVER, Ordering::SeqCst);
    let mut writer = over(&network).writer(&key("a"), WriteOptions::default()).await.unwrap();
    writer.write(Bytes::from(vec![1; 20 << 20])).await.unwrap();
    let began = tokio::time::Instant::now();
    let e = writer.abort().await.unwrap_err();
    assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
    assert!(matches!(e, StoreError::Other { retryable: true, .. }), "{e:?}");
}

#[tokio::test]
async fn what_stores_did_not_write_is_not_listed() {
    let bucket = Arc::new(InMemory::new());
    // The marker that consoles make for a "folder" has the folder's own name once its slash is cut.
    for foreign in ["p", "p/dir", "elsewhere/x"] {
        bucket.put_opts(&foreign.into(), "".into(), PutOptions::default()).await.unwrap();
    }
    let store = ObjectStore::from_parts(bucket, None, "p", "s3://bucket/p".to_owned()).unwrap();
    store.create(&key("dir/x"), Bytes::new()).await.unwrap();
    let keys: Vec<_> = store.list_keys(Some(&key("dir"))).try_collect().await.unwrap();
    assert_eq!(keys, [key("dir/x")]);
    assert_eq!(store.list_dirs(None).await.unwrap(), ["dir"]);
}
