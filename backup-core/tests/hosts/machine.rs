//! A machine that backs up, prunes, copies and verifies, one after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backup_core::catalog::{Catalog, VerifyLevel};
use backup_core::config::Config;
use backup_core::engine::{BackupRequest, CopyRequest, Engine, PruneRequest, RunReport, VerifyRequest};
use backup_core::state::StateDir;
use backup_core::testkit::ManualClock;
use backup_core::testkit::fake_adapter::FakeAdapter;
use backup_core::{
    AdapterConfig, AdapterRegistry, BackupError, BuildContext, Clock, ConfigError, Interval, ServiceAdapter,
    Store, StoreRegistry,
};
use chrono::{DateTime, TimeDelta, Utc};
use tokio::task::{AbortHandle, JoinSet};

use super::HOSTS;
use super::turns::{Turns, View};

const CONFIG: &str = "
store.url = 'memory://first'
copies = ['cloud']
intervals.hourly = { services = ['a'], keep = 2 }
services.a = { kind = 'fake' }
stores.cloud = { url = 'memory://cloud', keep = 3 }
";

tokio::task_local! {
    static ADAPTER: FakeAdapter;
}

#[derive(Debug, serde::Deserialize)]
struct Shared {}

impl AdapterConfig for Shared {
    const KIND: &'static str = "fake";
    const SUMMARY: &'static str = "a fake";
    const PROVEN: &'static str = "";
    fn build(self, _: &BuildContext) -> Result<Arc<dyn ServiceAdapter>, ConfigError> {
        Ok(ADAPTER.with(|adapter| Arc::new(adapter.clone())))
    }
}

/// A clock that is a little off.
#[derive(Debug)]
struct Off(ManualClock, TimeDelta);

impl Clock for Off {
    fn now(&self) -> DateTime<Utc> {
        self.0.now() + self.1
    }
}

#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) number: usize,
    engine: Engine,
    adapter: FakeAdapter,
    alive: Arc<AtomicBool>,
    work: JoinSet<Result<RunReport, BackupError>>,
    task: Option<AbortHandle>,
    runs: u64,
    _state: tempfile::TempDir,
}

/// The prefixes of a host's two stores.
pub(crate) fn prefixes(host: usize) -> [String; 2] {
    [format!("hosts/h{host}/first"), format!("hosts/h{host}/cloud")]
}

impl Machine {
    /// A new one of this number: what it had on its own disk is gone with the one before.
    pub(crate) async fn start(number: usize, turns: &Turns, dice: &mut fastrand::Rng) -> Self {
        let adapter = FakeAdapter::new().artifact("one", [vec![7_u8; 30_000]]).artifact("two", ["two"]);
        let registry = AdapterRegistry::new().with::<Shared>();
        let plan = ADAPTER
            .sync_scope(adapter.clone(), || {
                Config::parse(CONFIG, "t.toml")?.resolve(&registry, std::path::Path::new("/"))
            })
            .unwrap();
        let alive = Arc::new(AtomicBool::new(true));
        let off = TimeDelta::seconds(dice.i64(-turns.off.num_seconds()..=turns.off.num_seconds()));
        let clock: Arc<dyn Clock> = Arc::new(Off(turns.clock.clone(), off));
        let [first, cloud] = prefixes(number % HOSTS);
        let first = View::new(turns, number, &first, &alive);
        let catalog = Catalog::open(Arc::new(first.clone()), Arc::clone(&clock)).await.unwrap();
        let cloud = View::new(turns, number, &cloud, &alive);
        first.gate();
        cloud.gate();
        let stores = StoreRegistry::new().with_scheme("memory", move |_, _| {
            let cloud: Arc<dyn Store> = Arc::new(cloud.clone());
            async move { Ok(cloud) }
        });
        let state = tempfile::tempdir().unwrap();
        let engine = Engine::builder(plan, catalog, StateDir::open(state.path().join("state")).unwrap())
            .clock(clock)
            // Of one that is not the same machine, nobody can tell whether it is dead: only its lease says something.
            .host(format!("h{number}"))
            .lock_patience(Duration::ZERO)
            .stores(stores)
            .build();
        Self { number, engine, adapter, alive, work: JoinSet::new(), task: None, runs: 0, _state: state }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.work.is_empty()
    }

    pub(crate) fn is_at_work(&self) -> bool {
        self.task.as_ref().is_some_and(|task| !task.is_finished())
    }

    /// Whether what it did has ended. However it ended: calls fail here.
    pub(crate) async fn ended(&mut self) -> bool {
        match self.work.try_join_next() {
            Some(ended) => {
                let _report = ended.unwrap();
                true
            }
            None => false,
        }
    }

    pub(crate) fn begin(&mut self, dice: &mut fastrand::Rng) {
        self.runs += 1;
        let kind = dice.u8(..10);
        // Always as long: what collapses is suspect.
        let content = format!("{:2} {:5} {:20}", self.number, self.runs, dice.u64(..));
        self.adapter.script(|s| s.set_artifact("one", [content.repeat(1500)]));
        self.spawn(move |engine| async move {
            match kind {
                0..5 => engine.back_up(&BackupRequest::new(Interval::new("hourly").unwrap())).await,
                5..7 => engine.prune(&PruneRequest::default()).await,
                7..9 => {
                    let to = vec!["cloud".parse().unwrap()];
                    engine.copy(&CopyRequest { to, ..CopyRequest::default() }).await
                }
                _ => {
                    engine
                        .verify(&VerifyRequest { all: true, ..VerifyRequest::new(VerifyLevel::Stored) })
                        .await
                }
            }
        });
    }

    fn spawn<Fut>(&mut self, verb: impl FnOnce(Engine) -> Fut)
    where
        Fut: Future<Output = Result<RunReport, BackupError>> + Send + 'static,
    {
        let (engine, work) = (self.engine.clone(), verb(self.engine.clone()));
        self.task = Some(self.work.spawn(async move {
            let report = work.await;
            engine.shutdown().await;
            report
        }));
    }

    /// In the midst of whatever it does; another takes its place.
    pub(crate) async fn die(&mut self, turns: &Turns, dice: &mut fastrand::Rng) {
        self.alive.store(false, Ordering::SeqCst);
        turns.forget(self.number);
        self.work.abort_all();
        *self = Self::start(self.number, turns, dice).await;
    }

    /// Lets it end what it does, with nobody else at work.
    pub(crate) async fn finish(&mut self, turns: &Turns) -> Option<RunReport> {
        let mut dice = fastrand::Rng::with_seed(0);
        loop {
            super::quiet(turns, std::slice::from_ref(self)).await;
            if self.is_idle() {
                return None;
            }
            if let Some(ended) = self.work.try_join_next() {
                return ended.unwrap().ok();
            }
            turns.next(&mut dice, |number| number == self.number, super::Fate::Pass);
        }
    }

    /// A backup, its retention and its copy, with nobody else at work.
    pub(crate) async fn works(&mut self, turns: &Turns, seed: u64) {
        turns.clock.advance_secs(60);
        let content = format!("{:2} {:26}", self.number, "the end");
        self.adapter.script(|s| s.set_artifact("one", [content.repeat(1500)]));
        self.spawn(|engine| async move {
            engine.back_up(&BackupRequest::new(Interval::new("hourly").unwrap())).await
        });
        let report = self.finish(turns).await.unwrap();
        assert!(report.is_ok(), "seed {seed}: {report:#?}");
    }
}
