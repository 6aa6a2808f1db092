//! A store that fails when it is told to.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};

use crate::error::StoreError;
use crate::id::StoreKey;
use crate::source::ByteStream;
use crate::store::{
    ObjectInfo, ObjectLock, Readiness, Space, Store, StoreCapabilities, StoreWriter, Thaw, WriteOptions,
};

/// The calls that can fail: those of [`Store`] and of [`StoreWriter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is the call of that name")]
pub enum Call {
    Writer,
    Write,
    Finish,
    Abort,
    Create,
    Head,
    Read,
    ReadRange,
    List,
    ListKeys,
    ListDirs,
    Rename,
    Delete,
    DeletePrefix,
    Space,
    Lock,
}

/// When and how a [`FaultyStore`] fails. Calls are counted from 1.
#[derive(Debug, Clone)]
pub struct Fault {
    first: u64,
    last: u64,
    only: Vec<Call>,
    done_anyway: bool,
    no_space: bool,
}

impl Fault {
    /// Only the `n`-th call fails.
    #[must_use]
    pub fn once(n: u64) -> Self {
        Self { first: n, last: n, only: Vec::new(), done_anyway: false, no_space: false }
    }

    /// The `n`-th call and all that follow fail: the store is dead, or the process about to be.
    #[must_use]
    pub fn from(n: u64) -> Self {
        Self { last: u64::MAX, ..Self::once(n) }
    }

    /// Only calls of these kinds fail, and only they are counted.
    #[must_use]
    pub fn only(mut self, calls: &[Call]) -> Self {
        self.only = calls.to_vec();
        self
    }

    /// The call is carried out, and then reported as failed: a lost acknowledgement.
    #[must_use]
    pub fn done_anyway(mut self) -> Self {
        self.done_anyway = true;
        self
    }

    /// Fails as a full disk does.
    #[must_use]
    pub fn no_space(mut self) -> Self {
        self.no_space = true;
        self
    }

    fn error(&self, operation: &'static str, key: String, n: u64) -> StoreError {
        let source = io::Error::other(format!("injected at call {n}"));
        if self.no_space {
            StoreError::NoSpace { operation, key, source: source.into() }
        } else {
            StoreError::Other { operation, key, retryable: false, source: source.into() }
        }
    }
}

#[derive(Debug, Default)]
struct State {
    fault: Option<Fault>,
    counts: BTreeMap<Call, u64>,
    injected: u64,
    delays: BTreeMap<Call, Duration>,
}

type Shared = Arc<Mutex<State>>;

fn lock(state: &Shared) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What shall happen to one call.
struct Verdict {
    /// The error to report, if any.
    error: Option<StoreError>,
    /// Whether to do what was asked.
    act: bool,
    delay: Duration,
}

impl Verdict {
    fn of(state: &Shared, call: Call, verb: &'static str, key: impl fmt::Display) -> Self {
        let mut state = lock(state);
        *state.counts.entry(call).or_default() += 1;
        let delay = state.delays.get(&call).copied().unwrap_or_default();
        let verdict = match &state.fault {
            Some(fault) if fault.only.is_empty() || fault.only.contains(&call) => {
                let counted =
                    |(kind, n): (&Call, &u64)| match fault.only.is_empty() || fault.only.contains(kind) {
                        true => *n,
                        false => 0,
                    };
                let n: u64 = state.counts.iter().map(counted).sum();
                if (fault.first..=fault.last).contains(&n) {
                    Self { error: Some(fault.error(verb, key.to_string(), n)), act: fault.done_anyway, delay }
                } else {
                    Self { error: None, act: true, delay }
                }
            }
            _ => Self { error: None, act: true, delay },
        };
        if verdict.error.is_some() {
            state.injected += 1;
        }
        verdict
    }

    /// Carries the call out as decided. Its own error comes before the injected one.
    async fn apply<T>(self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        // As a real one lets others run while it works: whoever else uses it meets every state in between.
        match self.delay.is_zero() {
            true => tokio::task::yield_now().await,
            false => tokio::time::sleep(self.delay).await,
        }
        match (self.act, self.error) {
            (true, None) => work.await,
            (true, Some(error)) => work.await.and(Err(error)),
            (false, Some(error)) => Err(error),
            (false, None) => work.await,
        }
    }
}

/// Wraps a store and fails chosen calls. Clones share the counters and the fault.
///
/// Every call of [`Store`] but `capabilities`, `object_lock` and `local_path`, and every call of its writers, counts as one. Listings
/// fail as a stream of one error.
#[derive(Debug, Clone)]
pub struct FaultyStore<S> {
    inner: S,
    state: Shared,
}

impl<S: Store> FaultyStore<S> {
    /// Wraps `inner`; nothing fails yet.
    pub fn new(inner: S) -> Self {
        Self { inner, state: Shared::default() }
    }

    /// Wraps `inner` with a fault.
    pub fn with_fault(inner: S, fault: Fault) -> Self {
        let store = Self::new(inner);
        store.set_fault(Some(fault));
        store
    }

    /// Sets or lifts the fault, and counts calls from 1 again.
    pub fn set_fault(&self, fault: Option<Fault>) {
        let mut state = lock(&self.state);
        let delays = std::mem::take(&mut state.delays);
        *state = State { fault, delays, ..State::default() };
    }

    /// How long each call of that kind takes from now on, besides what the store needs.
    pub fn set_delay(&self, call: Call, delay: Duration) {
        lock(&self.state).delays.insert(call, delay);
    }

    /// How many calls were made so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        lock(&self.state).counts.values().sum()
    }

    /// How many calls of one kind were made so far.
    #[must_use]
    pub fn calls_of(&self, call: Call) -> u64 {
        lock(&self.state).counts.get(&call).copied().unwrap_or_default()
    }

    /// How many calls were made to fail so far: zero says that a test did not reach its fault.
    #[must_use]
    pub fn injected(&self) -> u64 {
        lock(&self.state).injected
    }

    /// The store inside, which does not fail.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    fn verdict(&self, call: Call, verb: &'static str, key: &StoreKey) -> Verdict {
        Verdict::of(&self.state, call, verb, key)
    }

    fn prefix_verdict(&self, call: Call, verb: &'static str, prefix: Option<&StoreKey>) -> Verdict {
        match prefix {
            Some(prefix) => self.verdict(call, verb, prefix),
            None => Verdict::of(&self.state, call, verb, &self.inner),
        }
    }
}

impl<S: Store> fmt::Display for FaultyStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.inner, f)
    }
}

fn failed<T: Send + 'static>(error: StoreError) -> BoxStream<'static, Result<T, StoreError>> {
    stream::iter([Err(error)]).boxed()
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<S: Store> Store for FaultyStore<S> {
    fn capabilities(&self) -> StoreCapabilities {
        self.inner.capabilities()
    }

    async fn writer(
        &self,
        key: &StoreKey,
        options: WriteOptions,
    ) -> Result<Box<dyn StoreWriter>, StoreError> {
        let inner = self.verdict(Call::Writer, "write", key).apply(self.inner.writer(key, options)).await?;
        Ok(Box::new(FaultyWriter { inner, key: key.clone(), state: Arc::clone(&self.state) }))
    }

    async fn create(&self, key: &StoreKey, bytes: Bytes) -> Result<(), StoreError> {
        self.verdict(Call::Create, "create", key).apply(self.inner.create(key, bytes)).await
    }

    async fn head(&self, key: &StoreKey) -> Result<ObjectInfo, StoreError> {
        self.verdict(Call::Head, "look up", key).apply(self.inner.head(key)).await
    }

    async fn read(&self, key: &StoreKey) -> Result<ByteStream<StoreError>, StoreError> {
        self.verdict(Call::Read, "read", key).apply(self.inner.read(key)).await
    }

    async fn read_range(&self, key: &StoreKey, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.verdict(Call::ReadRange, "read", key).apply(self.inner.read_range(key, range)).await
    }

    fn list(&self, prefix: Option<&StoreKey>) -> BoxStream<'static, Result<ObjectInfo, StoreError>> {
        match self.prefix_verdict(Call::List, "list", prefix).error {
            Some(error) => failed(error),
            None => self.inner.list(prefix),
        }
    }

    fn list_keys(&self, prefix: Option<&StoreKey>) -> BoxStream<'static, Result<StoreKey, StoreError>> {
        match self.prefix_verdict(Call::ListKeys, "list", prefix).error {
            Some(error) => failed(error),
            None => self.inner.list_keys(prefix),
        }
    }

    async fn list_dirs(&self, prefix: Option<&StoreKey>) -> Result<Vec<String>, StoreError> {
        self.prefix_verdict(Call::ListDirs, "list", prefix).apply(self.inner.list_dirs(prefix)).await
    }

    async fn rename(&self, from: &StoreKey, to: &StoreKey) -> Result<(), StoreError> {
        self.verdict(Call::Rename, "rename", from).apply(self.inner.rename(from, to)).await
    }

    async fn delete(&self, key: &StoreKey) -> Result<(), StoreError> {
        self.verdict(Call::Delete, "delete", key).apply(self.inner.delete(key)).await
    }

    async fn delete_prefix(&self, prefix: &StoreKey) -> Result<(), StoreError> {
        self.verdict(Call::DeletePrefix, "delete", prefix).apply(self.inner.delete_prefix(prefix)).await
    }

    async fn delete_abandoned(&self, prefix: &StoreKey, untouched: Duration) -> Result<(), StoreError> {
        self.verdict(Call::DeletePrefix, "delete", prefix)
            .apply(self.inner.delete_abandoned(prefix, untouched))
            .await
    }

    fn local_path(&self, key: &StoreKey) -> Option<PathBuf> {
        self.inner.local_path(key)
    }

    async fn space(&self) -> Result<Option<Space>, StoreError> {
        self.prefix_verdict(Call::Space, "measure", None).apply(self.inner.space()).await
    }

    fn object_lock(&self) -> Option<ObjectLock> {
        self.inner.object_lock()
    }

    async fn lock(
        &self,
        key: &StoreKey,
        until: Option<DateTime<Utc>>,
    ) -> Result<Option<DateTime<Utc>>, StoreError> {
        self.verdict(Call::Lock, "lock", key).apply(self.inner.lock(key, until)).await
    }

    async fn thaw(&self, key: &StoreKey, ask: Option<Thaw>) -> Result<Readiness, StoreError> {
        self.verdict(Call::Head, "look up", key).apply(self.inner.thaw(key, ask)).await
    }
}

#[derive(Debug)]
struct FaultyWriter {
    inner: Box<dyn StoreWriter>,
    key: StoreKey,
    state: Shared,
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl StoreWriter for FaultyWriter {
    async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        Verdict::of(&self.state, Call::Write, "write", &self.key).apply(self.inner.write(chunk)).await
    }

    async fn finish(self: Box<Self>) -> Result<ObjectInfo, StoreError> {
        Verdict::of(&self.state, Call::Finish, "write", &self.key).apply(self.inner.finish()).await
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        Verdict::of(&self.state, Call::Abort, "abort the write of", &self.key).apply(self.inner.abort()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    fn key(s: &str) -> StoreKey {
        StoreKey::new(s).unwrap()
    }

    #[tokio::test]
    async fn once_fails_one_call_and_from_fails_the_rest() {
        let store = FaultyStore::with_fault(MemoryStore::new(), Fault::once(2));
        let mut ok = Vec::new();
        for name in ["a", "b", "c"] {
            ok.push(store.create(&key(name), Bytes::new()).await.is_ok());
        }
        assert_eq!((ok, store.calls(), store.injected()), (vec![true, false, true], 3, 1));

        store.set_fault(Some(Fault::from(2).only(&[Call::Head])));
        let mut ok = Vec::new();
        for _ in 0..3 {
            store.create(&key(&format!("x{}", store.calls())), Bytes::new()).await.unwrap();
            ok.push(store.head(&key("a")).await.is_ok());
        }
        assert_eq!(ok, [true, false, false]);
    }

    #[tokio::test]
    async fn a_lost_acknowledgement_leaves_the_deed_done() {
        let store = FaultyStore::with_fault(MemoryStore::new(), Fault::from(1).done_anyway());
        assert!(store.create(&key("a"), Bytes::from_static(b"x")).await.is_err());
        assert_eq!(store.inner().head(&key("a")).await.unwrap().bytes, 1);

        store.set_fault(Some(Fault::once(1).only(&[Call::Finish])));
        let mut writer = store.writer(&key("b"), WriteOptions::default()).await.unwrap();
        writer.write(Bytes::from_static(b"x")).await.unwrap();
        assert!(writer.finish().await.is_err());
        assert!(store.inner().head(&key("b")).await.unwrap_err().is_not_found());
    }

    #[tokio::test]
    async fn a_full_disk_says_so() {
        let store = FaultyStore::with_fault(MemoryStore::new(), Fault::from(1).no_space());
        let e = store.create(&key("a"), Bytes::new()).await.unwrap_err();
        assert!(matches!(e, StoreError::NoSpace { .. }), "{e}");
    }
}
