//! The engine over fakes: order of steps, faults at every call, guards, verification, restores, retention.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use backup_core::catalog::{Catalog, Entry, Filter, VerifyLevel};
use backup_core::config::Config;
use backup_core::engine::{BackupRequest, Engine, PruneRequest, RestoreRequest, RunReport, VerifyRequest};
use backup_core::state::StateDir;
use backup_core::testkit::fake_adapter::{Call as Asked, FakeAdapter, Step};
use backup_core::testkit::{Call, Fault, FaultyStore, ManualClock};
use backup_core::{
    AdapterConfig, AdapterRegistry, BuildContext, Clock, ConfigError, Event, EventSink, Interval,
    MemoryStore, Outcome, ServiceAdapter, ServiceName, Store, StoreKey, Timestamp,
};
use bytes::Bytes;

#[path = "engine/backups.rs"]
mod backups;
#[path = "engine/copies.rs"]
mod copies;
#[path = "engine/copy_faults.rs"]
mod copy_faults;
#[path = "engine/copy_heal.rs"]
mod copy_heal;
#[path = "engine/copy_neighbours.rs"]
mod copy_neighbours;
#[path = "engine/copy_resume.rs"]
mod copy_resume;
#[path = "engine/deaths.rs"]
mod deaths;
#[path = "engine/divided.rs"]
mod divided;
#[path = "engine/drills.rs"]
mod drills;
#[path = "engine/encryption.rs"]
mod encryption;
#[path = "engine/faults.rs"]
mod faults;
#[path = "engine/flush.rs"]
mod flush;
#[path = "engine/interruptions.rs"]
mod interruptions;
#[path = "engine/legacy.rs"]
mod legacy;
#[path = "engine/locks.rs"]
mod locks;
#[path = "engine/pending.rs"]
mod pending;
#[path = "engine/recovery.rs"]
mod recovery;
#[path = "engine/restores.rs"]
mod restores;
#[path = "engine/retention.rs"]
mod retention;
#[path = "engine/smoke.rs"]
mod smoke;
#[path = "engine/stack.rs"]
mod stack;
#[path = "engine/verification.rs"]
mod verification;
#[path = "engine/worst_day.rs"]
mod worst_day;

/// Events, kept.
#[derive(Debug, Clone, Default)]
struct Kept(Arc<Mutex<Vec<Event>>>);

impl EventSink for Kept {
    fn emit(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

impl Kept {
    fn warnings(&self) -> Vec<String> {
        let events = self.0.lock().unwrap();
        let warning = |e: &Event| match e {
            Event::Warning { message, .. } => Some(message.clone()),
            _ => None,
        };
        events.iter().filter_map(warning).collect()
    }
}

/// Hands out adapters that the test holds as well. A test has its own, by the service's name.
#[derive(Debug, serde::Deserialize)]
struct Shared {}

tokio::task_local! {
    static ADAPTERS: std::collections::BTreeMap<String, FakeAdapter>;
}

impl AdapterConfig for Shared {
    const KIND: &'static str = "fake";
    const SUMMARY: &'static str = "a fake";
    const PROVEN: &'static str = "";
    fn build(self, cx: &BuildContext) -> Result<Arc<dyn ServiceAdapter>, ConfigError> {
        Ok(ADAPTERS.with(|a| Arc::new(a[cx.service.as_str()].clone())))
    }
}

struct World {
    store: FaultyStore<MemoryStore>,
    clock: ManualClock,
    events: Kept,
    engine: Engine,
    dir: tempfile::TempDir,
}

const CONFIG: &str = "
store.url = 'memory://'
intervals.hourly = { services = ['a'], keep = 2 }
services.a = { kind = 'fake' }
";

impl World {
    async fn new(adapter: FakeAdapter) -> Self {
        Self::with_config(CONFIG, &[("a", adapter)]).await
    }

    async fn with_config(config: &str, adapters: &[(&str, FakeAdapter)]) -> Self {
        Self::with_store(config, adapters, MemoryStore::new()).await
    }

    async fn with_store(config: &str, adapters: &[(&str, FakeAdapter)], store: MemoryStore) -> Self {
        let adapters = adapters.iter().map(|(n, a)| ((*n).to_owned(), a.clone())).collect();
        let registry = AdapterRegistry::new().with::<Shared>();
        let plan = ADAPTERS
            .sync_scope(adapters, || {
                Config::parse(config, "t.toml")?.resolve(&registry, std::path::Path::new("/"))
            })
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path().join("state")).unwrap();
        let store = FaultyStore::new(store);
        let clock = ManualClock::at("20260309_043820");
        let (catalog, _) = Catalog::init(Arc::new(store.clone()), Arc::new(clock.clone())).await.unwrap();
        let events = Kept::default();
        let engine = Engine::builder(plan, catalog, state)
            .clock(Arc::new(clock.clone()))
            .events(Arc::new(events.clone()))
            .host("h1")
            .lock_patience(Duration::ZERO)
            .build();
        Self { store, clock, events, engine, dir }
    }

    /// The same, with another catalog over its store.
    fn over(self, catalog: Catalog) -> Self {
        let engine = Engine::builder(self.engine.plan().clone(), catalog, self.engine.state().clone())
            .clock(Arc::new(self.clock.clone()))
            .events(Arc::new(self.events.clone()))
            .build();
        Self { engine, ..self }
    }

    /// The same on a host with a stack.
    fn with_stack(self, stack: impl backup_core::Stack) -> Self {
        let catalog = self.engine.catalog().clone();
        let engine = Engine::builder(self.engine.plan().clone(), catalog, self.engine.state().clone())
            .clock(Arc::new(self.clock.clone()))
            .events(Arc::new(self.events.clone()))
            .lock_patience(Duration::ZERO)
            .stack(Arc::new(stack))
            .build();
        Self { engine, ..self }
    }

    async fn back_up(&self) -> RunReport {
        self.clock.advance_secs(60);
        let report =
            self.engine.back_up(&BackupRequest::new(Interval::new("hourly").unwrap())).await.unwrap();
        self.engine.shutdown().await;
        report
    }

    async fn verify(&self, level: VerifyLevel) -> RunReport {
        self.clock.advance_secs(1);
        self.engine.verify(&VerifyRequest { all: true, ..VerifyRequest::new(level) }).await.unwrap()
    }

    async fn entries(&self) -> Vec<Entry> {
        self.engine.catalog().list(&Filter::default()).await.unwrap().entries
    }

    async fn states(&self) -> Vec<&'static str> {
        self.entries().await.iter().map(|e| e.state.word()).collect()
    }

    /// Replaces a stored object, as a rotten disk would.
    async fn damage(&self, key: &StoreKey, change: impl FnOnce(&mut Vec<u8>)) {
        let bytes = self.store.inner().head(key).await.unwrap().bytes;
        let mut text = self.store.inner().read_range(key, 0..bytes).await.unwrap().to_vec();
        change(&mut text);
        self.store.inner().delete(key).await.unwrap();
        let mut writer = self.store.inner().writer(key, Default::default()).await.unwrap();
        writer.write(Bytes::from(text)).await.unwrap();
        writer.finish().await.unwrap();
    }
}

fn a() -> ServiceName {
    ServiceName::new("a").unwrap()
}

fn adapter() -> FakeAdapter {
    FakeAdapter::new().artifact("one", ["hello ", "world"]).artifact("two", [vec![7_u8; 3_000_000]])
}

fn outcome(report: &RunReport) -> (Outcome, String) {
    (report.outcome(), report.steps.iter().filter_map(|s| s.error.clone()).collect::<Vec<_>>().join("; "))
}
