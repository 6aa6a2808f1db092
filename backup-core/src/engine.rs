//! [`Engine`]: runs backups, verifications, restores and retention over a validated plan.
//!
//! One service, from top to bottom:
//!
//! ```text
//! service lock → reserve (run.json) → adapter.open
//!     → each artifact: pump (blake3, content check, zstd frames, sha256) → StoreWriter
//!     → source.release → CaptureReport → guard → SHA256SUMS, RESTORE.md
//!     → commit (metadata.json, create-only, last) → source.settle → retention
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::catalog::Catalog;
use crate::clock::{Clock, SystemClock};
use crate::context::OpContext;
use crate::encryption::Identities;
use crate::error::BackupError;
use crate::event::{Event, EventSink, NoEvents, Outcome};
use crate::id::{RunId, ServiceName, Timestamp};
use crate::plan::{BackupPlan, PlannedService};
use crate::registry::StoreRegistry;
use crate::runtime::{NoWatchdog, Watchdog};
use crate::secret::{NoSecrets, SecretHistory, SecretResolver};
use crate::stack::Stack;
use crate::state::{LockHolder, RunGuard, ServiceLock, StateDir};

mod artifact;
mod back_up;
mod capture;
mod cleanup;
mod copy;
mod drill;
mod flush;
mod guard;
mod hand;
mod keys;
mod legacy;
mod lock;
mod marks;
mod noting;
mod order;
mod pending;
mod preview;
mod prune;
mod publish;
mod recover;
mod report;
mod restore;
mod resume;
mod room;
mod select;
mod settle;
mod smoke;
mod status;
mod thaw;
mod unrecorded;
mod verify;

pub use back_up::BackupRequest;
pub use cleanup::CleanupItem;
pub use copy::{CopyAction, CopyPlan, CopyRequest, PlannedCopy};
pub use drill::{DrillReport, DrillRequest, DrilledBackup, DrilledService};
pub use flush::{FlushAction, FlushContext, FlushReport, FlushRequest, FlushStep, FlushWork, FlushedStep};
pub use legacy::LegacyView;
pub use pending::PendingBackup;
pub use preview::{RestorePreview, RestoreRequest};
pub use prune::{PruneRequest, SeriesPlan};
pub use recover::{
    PlannedRestore, Prediction, RECOVERY_FORMAT, RecoveryAction, RecoveryPlan, RecoveryRequest,
    ScratchRestore, ServiceRecovery, StackSteps, Verified,
};
pub use report::{CopyReport, PartReport, PhaseReport, RunReport, StepReport};
pub use resume::{OpenInterruption, ResumeRequest};
pub use room::Room;
pub use select::Selector;
pub use status::{ServiceStatus, StatusLevel};
pub use thaw::ThawedFile;
pub use verify::VerifyRequest;

/// How long a process waits for another one's lock on a service, unless the request says otherwise.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(300);

/// Runs verbs over a plan. Cheap to clone; all clones are one engine.
///
/// Work on a service runs in tasks that the engine tracks: dropping the future of a verb cancels its work, and the
/// adapters' hooks still run to their end. Before a program ends, it awaits [`Engine::shutdown`].
#[derive(Debug, Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    plan: BackupPlan,
    catalog: Catalog,
    state: StateDir,
    clock: Arc<dyn Clock>,
    events: Arc<dyn EventSink>,
    secrets: Arc<dyn SecretResolver>,
    history: Option<Arc<dyn SecretHistory>>,
    watchdog: Arc<dyn Watchdog>,
    stack: Option<Arc<dyn Stack>>,
    stores: StoreRegistry,
    pace: Arc<copy::Pace>,
    /// Who has it gives orders to the stack.
    stack_turn: tokio::sync::Mutex<()>,
    /// Backups of the old scripts as they were read for plans: they may be large, and a plan is made more than once.
    read_legacy: std::sync::Mutex<legacy::AlreadyRead>,
    /// The keys that were read last.
    keys_at_hand: std::sync::Mutex<Option<Identities>>,
    /// Held while this engine saves what can be saved from a host that goes away.
    emergency: Arc<std::sync::Mutex<Option<crate::state::Emergency>>>,
    host: String,
    tool: String,
    patience: Duration,
    backlog: usize,
    tasks: TaskTracker,
}

/// Puts an [`Engine`] together.
#[derive(Debug)]
#[must_use]
pub struct EngineBuilder(Inner);

impl EngineBuilder {
    /// Where the time comes from; the system's clock by default.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.0.clock = clock;
        self
    }

    /// Where events go; nowhere by default.
    pub fn events(mut self, events: Arc<dyn EventSink>) -> Self {
        self.0.events = events;
        self
    }

    /// Where secrets come from; there are none by default.
    pub fn secrets(mut self, secrets: Arc<dyn SecretResolver>) -> Self {
        self.0.secrets = secrets;
        self
    }

    /// Where a restore learns the secrets of the time that it goes back to; nowhere by default.
    pub fn secret_history(mut self, history: Arc<dyn SecretHistory>) -> Self {
        self.0.history = Some(history);
        self
    }

    /// What makes anew what services run in, for [`Engine::recover`]; by default nothing does.
    pub fn stack(mut self, stack: Arc<dyn Stack>) -> Self {
        self.0.stack = Some(stack);
        self
    }

    /// What opens the other stores of the plan, for [`Engine::copy`] and the copies after a run; by default nothing does.
    pub fn stores(mut self, stores: StoreRegistry) -> Self {
        self.0.stores = stores;
        self
    }

    /// What brings an interrupted service back if this process cannot; by default nothing but the journal, which the next
    /// run reads.
    pub fn watchdog(mut self, watchdog: Arc<dyn Watchdog>) -> Self {
        self.0.watchdog = watchdog;
        self
    }

    /// The host's name, as written to metadata.json; the system's by default.
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.0.host = host.into();
        self
    }

    /// Name and version of the program, as written to metadata.json.
    pub fn tool(mut self, tool: impl Into<String>) -> Self {
        self.0.tool = tool.into();
        self
    }

    /// How long to wait for another process's lock on a service; [`LOCK_PATIENCE`] by default.
    pub fn lock_patience(mut self, patience: Duration) -> Self {
        self.0.patience = patience;
        self
    }

    /// How many frames of 1 MiB wait for the encryption of a file before the artifact goes on in another one, where there are
    /// processors for that: [`PipelineSettings::backlog`](crate::pipeline::PipelineSettings::backlog). 16 by default.
    pub fn encryption_backlog(mut self, frames: usize) -> Self {
        self.0.backlog = frames;
        self
    }

    /// Is one with `other`, an engine of this process over the same state directory, when the host goes away: what either
    /// of them saves then counts as one answer.
    pub fn in_emergencies_with(mut self, other: &Engine) -> Self {
        self.0.emergency = Arc::clone(&other.inner.emergency);
        self
    }

    /// The engine.
    #[must_use]
    pub fn build(self) -> Engine {
        Engine { inner: Arc::new(self.0) }
    }
}

impl Engine {
    /// An engine over `plan`, with the backups in `catalog` and the host's `state`.
    pub fn builder(plan: BackupPlan, catalog: Catalog, state: StateDir) -> EngineBuilder {
        let host = plan.host.clone().unwrap_or_else(crate::config::system_host);
        EngineBuilder(Inner {
            plan,
            catalog,
            state,
            clock: Arc::new(SystemClock),
            events: Arc::new(NoEvents),
            secrets: Arc::new(NoSecrets),
            history: None,
            watchdog: Arc::new(NoWatchdog),
            stack: None,
            stores: StoreRegistry::new(),
            pace: Arc::default(),
            stack_turn: tokio::sync::Mutex::new(()),
            read_legacy: std::sync::Mutex::default(),
            keys_at_hand: std::sync::Mutex::default(),
            emergency: Arc::default(),
            host,
            tool: concat!("backup-core ", env!("CARGO_PKG_VERSION")).to_owned(),
            patience: LOCK_PATIENCE,
            backlog: crate::pipeline::BACKLOG,
            tasks: TaskTracker::new(),
        })
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &BackupPlan {
        &self.inner.plan
    }

    /// The backups.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.inner.catalog
    }

    /// The state directory.
    #[must_use]
    pub fn state(&self) -> &StateDir {
        &self.inner.state
    }

    /// Waits until every hook of every cancelled verb has run.
    pub async fn shutdown(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        self.inner.tasks.reopen();
    }
}

/// One execution of a verb.
#[derive(Debug)]
struct Run {
    id: RunId,
    verb: &'static str,
    cancel: CancellationToken,
    started: Instant,
    guard: RunGuard,
    /// When all of it must be over: the host goes away.
    until: Option<Instant>,
    /// No service has to come back.
    last_chance: bool,
    /// An exercise of that.
    rehearsal: bool,
    /// What is copied is all that counts: neither pace nor retention at the destinations.
    urgent: bool,
}

impl Inner {
    /// Registers a run as living and announces it.
    fn begin(
        &self,
        verb: &'static str,
        services: &[ServiceName],
        cancel: CancellationToken,
    ) -> Result<Run, BackupError> {
        self.refuse_in_emergency(verb)?;
        let run = self.quiet_run(verb, cancel)?;
        self.events.emit(Event::RunStarted {
            run_id: run.id.clone(),
            verb: verb.to_owned(),
            services: services.to_vec(),
        });
        Ok(run)
    }

    fn end(&self, run: &Run, outcome: Outcome) {
        self.events.emit(Event::RunFinished { run_id: run.id.clone(), outcome, ms: millis(run.started) });
    }

    async fn lock(&self, run: &Run, service: &ServiceName) -> Result<ServiceLock, BackupError> {
        let me = LockHolder {
            verb: run.verb.to_owned(),
            run_id: run.id.clone(),
            pid: std::process::id(),
            boot_id: crate::state::boot_id(),
            since: self.clock.now(),
        };
        self.state.lock(service, &me, self.patience, &run.cancel, self.events.as_ref()).await
    }

    fn service(&self, name: &ServiceName) -> Result<&PlannedService, BackupError> {
        Ok(self.plan.service(name.as_str())?)
    }

    /// The context of one operation on one service.
    fn context(
        &self,
        run: &Run,
        service: &PlannedService,
        at: Timestamp,
        deadline: Option<Instant>,
    ) -> Result<OpContext, BackupError> {
        let spool = run.guard.spool(&service.name)?;
        let mut cx = OpContext::new(service.name.clone(), run.id.clone(), at, spool, Arc::clone(&self.clock));
        cx.store_id = self.catalog.store_id().to_owned();
        cx.excluded = self.excluded();
        cx.cancel = run.cancel.child_token();
        cx.deadline = deadline;
        cx.last_chance = run.last_chance;
        cx.rehearsal = run.rehearsal;
        cx.threads = self.threads();
        cx.events = Arc::clone(&self.events);
        cx.secrets = Arc::clone(&self.secrets);
        cx.kept = self.state.kept(&service.name);
        cx.journal = Arc::new(self.state.interruptions());
        cx.watchdog = Arc::clone(&self.watchdog);
        Ok(cx)
    }

    /// What no backup may contain: the stores that are directories of this host, and the state directory.
    fn excluded(&self) -> Vec<PathBuf> {
        let mark = crate::id::StoreKey::new("store.json").ok();
        let root = mark
            .and_then(|k| self.catalog.store().local_path(&k))
            .and_then(|p| p.parent().map(PathBuf::from));
        root.into_iter().chain(self.plan.excluded()).chain([self.state.root().to_owned()]).collect()
    }

    fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.plan.limits.threads.unwrap_or_else(cores).max(1)
    }

    /// How many bytes a second the copies of a run may move.
    fn bandwidth(&self, run: &Run) -> Option<u64> {
        self.plan.limits.bandwidth.filter(|_| !run.urgent)
    }

    fn now(&self) -> Timestamp {
        Timestamp::new(self.clock.now())
    }

    fn phase(&self, service: &ServiceName, phase: &str) {
        self.events.emit(Event::Phase { service: service.clone(), phase: phase.to_owned() });
    }

    fn warn(&self, service: Option<&ServiceName>, message: impl Into<String>) {
        self.events.emit(Event::Warning { service: service.cloned(), message: message.into() });
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The instant at which a budget that starts now is used up.
fn deadline(budget: Option<Duration>) -> Option<Instant> {
    budget.and_then(|b| Instant::now().checked_add(b))
}
