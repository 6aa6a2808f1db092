//! Whose turn it is: every call of a store waits until the scheduler lets it through.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use backup_core::testkit::ManualClock;
use backup_core::{
    ByteStream, Clock as _, MemoryStore, ObjectInfo, Space, Store, StoreCapabilities, StoreError, StoreKey,
    StoreWriter, WriteOptions,
};
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::sync::oneshot;

/// By how much clocks may be off before anybody takes a lease early.
const HONOURED: TimeDelta = TimeDelta::seconds(10);

/// How it is noted that somebody completes a copy that another began.
pub(crate) const TAKES_OVER: &str = "takes over half a copy";

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Pass,
    /// It never reaches the store.
    Fail,
    /// The store does it, and nobody hears.
    LoseAnswer,
}

/// A lease as a machine last saw it.
#[derive(Debug, Clone)]
struct Seen {
    run: String,
    /// By the clock that is right.
    at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
}

#[derive(Debug, Default)]
struct State {
    /// By machine and the order in which its calls came.
    waiting: BTreeMap<(usize, u64), oneshot::Sender<Fate>>,
    number: u64,
    told: String,
    /// Which machine holds leases under which run.
    runs: BTreeMap<String, usize>,
    seen: BTreeMap<(usize, String), Seen>,
    wrong: Vec<String>,
}

/// The bucket, the clock that is right, and whose turn it is. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Turns {
    pub(crate) bucket: MemoryStore,
    pub(crate) clock: ManualClock,
    /// How far the clocks of machines are off, at most.
    pub(crate) off: TimeDelta,
    state: Arc<Mutex<State>>,
}

impl Turns {
    pub(crate) fn new(off: TimeDelta) -> Self {
        let (bucket, clock) = (MemoryStore::new(), ManualClock::at("20260309_043820"));
        Self { bucket, clock, off, state: Arc::default() }
    }
}

impl Turns {
    /// Whether a machine waits for its turn.
    pub(crate) fn waits(&self, machine: usize) -> bool {
        self.state.lock().unwrap().waiting.keys().any(|(n, _)| *n == machine)
    }

    /// Lets one call through, of a machine that may: the first that it asked for.
    pub(crate) fn next(&self, dice: &mut fastrand::Rng, may: impl Fn(usize) -> bool, fate: Fate) -> bool {
        let mut state = self.state.lock().unwrap();
        let ready: Vec<(usize, u64)> = state.waiting.keys().copied().filter(|(n, _)| may(*n)).collect();
        // A machine first: one with many calls under way is no faster.
        let machines: Vec<usize> =
            (0..super::MACHINES).filter(|n| ready.iter().any(|(m, _)| m == n)).collect();
        let Some(machine) = dice.choice(machines) else { return false };
        let Some(chosen) = ready.into_iter().find(|(n, _)| *n == machine) else { return false };
        if let Some(go) = state.waiting.remove(&chosen) {
            let _gone = go.send(fate);
        }
        true
    }

    /// What a dead machine asked for is never answered.
    pub(crate) fn forget(&self, machine: usize) {
        let mut state = self.state.lock().unwrap();
        state.waiting.retain(|(n, _), _| *n != machine);
        state.seen.retain(|(n, _), _| *n != machine);
    }

    pub(crate) fn note(&self, what: &str) {
        self.state.lock().unwrap().told.push_str(&format!("{what}\n"));
    }

    pub(crate) fn told(&self) -> String {
        self.state.lock().unwrap().told.clone()
    }

    /// What was done without a right to it.
    pub(crate) fn wrong(&self) -> Vec<String> {
        self.state.lock().unwrap().wrong.clone()
    }

    async fn body(&self, key: &StoreKey) -> Option<serde_json::Value> {
        let bytes = self.bucket.head(key).await.ok()?.bytes;
        serde_json::from_slice(&self.bucket.read_range(key, 0..bytes).await.ok()?).ok()
    }

    /// A machine looks which epoch of a lease is the newest.
    async fn looks(&self, machine: usize, dir: &StoreKey) {
        let keys: Vec<StoreKey> = self.bucket.list_keys(Some(dir)).try_collect().await.unwrap();
        let Some(newest) = keys.iter().max() else { return };
        let Some(body) = self.body(newest).await else { return };
        let seen = Seen {
            run: body["run_id"].as_str().unwrap().to_owned(),
            at: self.clock.now(),
            expires_at: body["expires_at"]
                .as_str()
                .and_then(|t| t.parse().ok())
                .unwrap_or(DateTime::<Utc>::MIN_UTC),
        };
        self.state.lock().unwrap().seen.insert((machine, dir.to_string()), seen);
    }

    /// A machine takes, renews or gives back a lease.
    async fn takes(&self, machine: usize, key: &StoreKey, epoch: &Bytes) {
        let epoch: serde_json::Value = serde_json::from_slice(epoch).unwrap();
        let run = epoch["run_id"].as_str().unwrap().to_owned();
        let dir = key.parent().unwrap();
        let keys: Vec<StoreKey> = self.bucket.list_keys(Some(&dir)).try_collect().await.unwrap();
        let before = match keys.iter().filter(|k| *k < key).max() {
            Some(before) => self.body(before).await,
            None => None,
        };
        let mut state = self.state.lock().unwrap();
        if let Some(before) = before.filter(|b| b["run_id"] != epoch["run_id"]) {
            let expires = before["expires_at"].as_str().and_then(|t| t.parse::<DateTime<Utc>>().ok());
            // Whose clock is far off takes early; then the one before must find out.
            if self.off <= HONOURED && expires.is_some_and(|at| self.clock.now() < at) {
                state.wrong.push(format!("{machine} took `{dir}` while another held it"));
            }
        }
        state.runs.insert(run, machine);
    }

    /// A machine does what only the holder of the lease in `dir` may do: it must have looked after what it did last, and have
    /// seen that it is the holder.
    fn acts(&self, machine: usize, dir: &str, what: &str) {
        let mut state = self.state.lock().unwrap();
        let wrong = match state.seen.remove(&(machine, dir.to_owned())) {
            None => Some("did not look whether it still holds".to_owned()),
            Some(seen) if state.runs.get(&seen.run) != Some(&machine) => {
                Some(format!("saw that {:?} holds", state.runs.get(&seen.run)))
            }
            // Its own clock may be off by as much as machines' clocks are here.
            Some(seen) if seen.at >= seen.expires_at + self.off => Some("saw the end of".to_owned()),
            Some(_) => None,
        };
        state.wrong.extend(wrong.map(|how| format!("{machine} {how} `{dir}`, and went on to {what}")));
    }
}

/// The bucket as one machine sees it: below a prefix, and a call at a time.
#[derive(Debug, Clone)]
pub(crate) struct View {
    turns: Turns,
    machine: usize,
    prefix: StoreKey,
    /// Those of a dead machine are never answered.
    alive: Arc<AtomicBool>,
    /// Whether calls wait for their turn.
    gated: Arc<AtomicBool>,
}

impl View {
    /// Nothing waits before [`gate`](Self::gate).
    pub(crate) fn new(turns: &Turns, machine: usize, prefix: &str, alive: &Arc<AtomicBool>) -> Self {
        let (prefix, alive) = (StoreKey::new(prefix).unwrap(), Arc::clone(alive));
        Self { turns: turns.clone(), machine, prefix, alive, gated: Arc::default() }
    }

    pub(crate) fn gate(&self) {
        self.gated.store(true, Ordering::SeqCst);
    }

    async fn turn(&self, call: &str) -> Fate {
        if !self.alive.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if !self.gated.load(Ordering::SeqCst) {
            return Fate::Pass;
        }
        let (go, gone) = oneshot::channel();
        {
            let mut state = self.turns.state.lock().unwrap();
            state.number += 1;
            let number = state.number;
            state.waiting.insert((self.machine, number), go);
        }
        match gone.await {
            Ok(fate) => {
                self.turns.note(&format!("{} {call} {fate:?}", self.machine));
                fate
            }
            // The machine is dead.
            Err(_) => std::future::pending().await,
        }
    }

    async fn call<T>(
        &self,
        call: &'static str,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let error = || StoreError::Other {
            operation: call,
            key: self.prefix.to_string(),
            retryable: true,
            source: "the network".into(),
        };
        match self.turn(call).await {
            Fate::Pass => work.await,
            Fate::Fail => Err(error()),
            Fate::LoseAnswer => work.await.and(Err(error())),
        }
    }

    /// Copies alone reach the second store: their lease must be held.
    fn copies(&self, key: &StoreKey, what: &str) {
        if let Some((service, _)) = file(key)
            && self.prefix.as_str().ends_with("cloud")
        {
            let dir = self.full(&StoreKey::new(format!(".leases/copy-{service}")).unwrap());
            self.turns.acts(self.machine, dir.as_str(), what);
        }
    }

    fn full(&self, key: &StoreKey) -> StoreKey {
        StoreKey::new(format!("{}/{key}", self.prefix)).unwrap()
    }

    fn below(&self, prefix: Option<&StoreKey>) -> StoreKey {
        prefix.map_or_else(|| self.prefix.clone(), |prefix| self.full(prefix))
    }

    fn own(&self, key: &StoreKey) -> StoreKey {
        StoreKey::new(key.below(&self.prefix).unwrap()).unwrap()
    }
}

/// The service and the name of the file, of a file of a backup.
fn file(key: &StoreKey) -> Option<(&str, &str)> {
    let (service, rest) = key.as_str().split_once('/')?;
    Some((service, rest.rsplit_once('/')?.1))
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bucket/{}", self.prefix)
    }
}

#[async_trait]
impl Store for View {
    fn capabilities(&self) -> StoreCapabilities {
        self.turns.bucket.capabilities()
    }

    async fn writer(
        &self,
        key: &StoreKey,
        options: WriteOptions,
    ) -> Result<Box<dyn StoreWriter>, StoreError> {
        let full = self.full(key);
        let inner = self.call("writer", self.turns.bucket.writer(&full, options)).await?;
        Ok(Box::new(Writer { view: self.clone(), key: key.clone(), inner }))
    }

    async fn create(&self, key: &StoreKey, bytes: Bytes) -> Result<(), StoreError> {
        let full = self.full(key);
        let work = async {
            if key.as_str().starts_with(".leases/retention-") || key.as_str().starts_with(".leases/copy-") {
                self.turns.takes(self.machine, &full, &bytes).await;
            }
            // Only who completes another one's copy says there that it does.
            if key.as_str().starts_with(".leases/reading/") && self.prefix.as_str().ends_with("cloud") {
                self.turns.note(&format!("{} {TAKES_OVER}", self.machine));
            }
            let aborted = String::from_utf8_lossy(&bytes).contains("\"aborted\"");
            if key.file_name() == "metadata.json" && !aborted {
                self.copies(key, "commit a copy");
            }
            self.turns.bucket.create(&full, bytes).await
        };
        self.call("create", work).await
    }

    async fn head(&self, key: &StoreKey) -> Result<ObjectInfo, StoreError> {
        let info = self.call("head", self.turns.bucket.head(&self.full(key))).await?;
        Ok(ObjectInfo { key: key.clone(), ..info })
    }

    async fn read(&self, key: &StoreKey) -> Result<ByteStream<StoreError>, StoreError> {
        self.call("read", self.turns.bucket.read(&self.full(key))).await
    }

    async fn read_range(&self, key: &StoreKey, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.call("read_range", self.turns.bucket.read_range(&self.full(key), range)).await
    }

    fn list(&self, prefix: Option<&StoreKey>) -> BoxStream<'static, Result<ObjectInfo, StoreError>> {
        let (view, prefix) = (self.clone(), self.below(prefix));
        stream::once(async move {
            let all = view.turns.bucket.list(Some(&prefix)).try_collect::<Vec<_>>();
            let all = view.call("list", all).await?;
            let all = all.into_iter().map(move |info| ObjectInfo { key: view.own(&info.key), ..info });
            Ok(stream::iter(all.map(Ok)))
        })
        .try_flatten()
        .boxed()
    }

    fn list_keys(&self, prefix: Option<&StoreKey>) -> BoxStream<'static, Result<StoreKey, StoreError>> {
        let (view, prefix) = (self.clone(), self.below(prefix));
        stream::once(async move {
            let work = async {
                if prefix.as_str().contains("/.leases/") {
                    view.turns.looks(view.machine, &prefix).await;
                }
                view.turns.bucket.list_keys(Some(&prefix)).try_collect::<Vec<_>>().await
            };
            let all = view.call("list_keys", work).await?;
            Ok(stream::iter(all.into_iter().map(move |key| Ok(view.own(&key)))))
        })
        .try_flatten()
        .boxed()
    }

    async fn list_dirs(&self, prefix: Option<&StoreKey>) -> Result<Vec<String>, StoreError> {
        let prefix = self.below(prefix);
        self.call("list_dirs", self.turns.bucket.list_dirs(Some(&prefix))).await
    }

    async fn rename(&self, from: &StoreKey, to: &StoreKey) -> Result<(), StoreError> {
        let full = self.full(from);
        let work = async {
            if let Some((service, "metadata.json")) = file(from)
                && self.turns.bucket.head(&full).await.is_ok()
            {
                let dir = self.full(&StoreKey::new(format!(".leases/retention-{service}")).unwrap());
                self.turns.acts(self.machine, dir.as_str(), "delete a backup");
            }
            self.turns.bucket.rename(&full, &self.full(to)).await
        };
        self.call("rename", work).await
    }

    async fn delete(&self, key: &StoreKey) -> Result<(), StoreError> {
        self.call("delete", self.turns.bucket.delete(&self.full(key))).await
    }

    async fn delete_prefix(&self, prefix: &StoreKey) -> Result<(), StoreError> {
        self.call("delete_prefix", self.turns.bucket.delete_prefix(&self.full(prefix))).await
    }

    async fn delete_abandoned(&self, prefix: &StoreKey, untouched: Duration) -> Result<(), StoreError> {
        self.call("delete_abandoned", self.turns.bucket.delete_abandoned(&self.full(prefix), untouched)).await
    }

    fn local_path(&self, _: &StoreKey) -> Option<PathBuf> {
        None
    }

    async fn space(&self) -> Result<Option<Space>, StoreError> {
        Ok(None)
    }
}

#[derive(Debug)]
struct Writer {
    view: View,
    key: StoreKey,
    inner: Box<dyn StoreWriter>,
}

#[async_trait]
impl StoreWriter for Writer {
    async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        self.view.call("write", self.inner.write(chunk)).await
    }

    async fn finish(self: Box<Self>) -> Result<ObjectInfo, StoreError> {
        let Self { view, key, inner } = *self;
        let work = async {
            view.copies(&key, "make a file of a copy visible");
            inner.finish().await
        };
        let info = view.call("finish", work).await?;
        Ok(ObjectInfo { key, ..info })
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        self.view.call("abort", self.inner.abort()).await
    }
}
