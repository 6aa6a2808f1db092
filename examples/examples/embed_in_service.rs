//! Backups inside a service: a task that backs up on a schedule and restores on request, with the service's own events and
//! its own way to end.
//!
//! ```sh
//! cargo run --package backup-examples --example embed_in_service
//! ```

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backup_adapters::{builtin_adapters, builtin_stores};
use backup_core::catalog::Catalog;
use backup_core::config::Config;
use backup_core::engine::{BackupRequest, Engine, RestoreRequest, RunReport};
use backup_core::state::StateDir;
use backup_core::{BackupError, Event, EventSink, Interval, Outcome, ServiceName, SystemClock};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// A service would build this from its own settings; paths are relative to the directory given to `resolve`.
const CONFIG: &str = "
[store]
url = 'store'

[intervals.hourly]
services = ['notes']
keep = 24

[services.notes]
kind = 'files'
paths = ['notes']
";

/// Hands events to whoever wants them. It is called from the middle of the work: it must not block.
#[derive(Debug)]
struct Events(mpsc::UnboundedSender<Event>);

impl EventSink for Events {
    fn emit(&self, event: Event) {
        // Nobody listens any more: then nobody misses it.
        let _gone = self.0.send(event);
    }
}

/// Puts the engine together. Nothing of the service's data is touched here.
async fn engine(dir: &Path, events: mpsc::UnboundedSender<Event>) -> Result<Engine, Box<dyn Error>> {
    let plan = Config::parse(CONFIG, "the built-in configuration")?.resolve(&builtin_adapters(), dir)?;
    // Made once, here: a store whose disk is not mounted must never look like an empty one.
    tokio::fs::create_dir_all(dir.join("store")).await?;
    let store = builtin_stores().open(&plan.store).await?;
    let (catalog, _new) = Catalog::init(store, Arc::new(SystemClock)).await?;
    let state = StateDir::open(dir.join("state"))?;
    Ok(Engine::builder(plan, catalog, state).events(Arc::new(Events(events))).tool("notes 1.0").build())
}

type Answer = oneshot::Sender<Result<RunReport, BackupError>>;

/// What other parts of the service may ask for.
#[derive(Debug)]
enum Order {
    /// A backup now, besides the scheduled ones.
    BackUp(Answer),
    /// The newest good backup, over what is there; that is kept aside.
    Restore(Answer),
}

/// The service's part that makes backups.
#[derive(Debug)]
struct Backups {
    engine: Engine,
    interval: Interval,
    service: ServiceName,
    stop: CancellationToken,
}

impl Backups {
    /// One thing at a time; ends when `stop` fires, with nothing left half-done.
    async fn run(self, every: Duration, mut orders: mpsc::Receiver<Order>) {
        let mut schedule = tokio::time::interval_at(Instant::now() + every, every);
        schedule.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let order = tokio::select! {
                () = self.stop.cancelled() => break,
                _ = schedule.tick() => None,
                order = orders.recv() => match order {
                    Some(order) => Some(order),
                    None => break,
                },
            };
            // Whoever asked may have given up waiting; what went wrong is in the events as well.
            match order {
                None => drop(self.back_up().await),
                Some(Order::BackUp(answer)) => drop(answer.send(self.back_up().await)),
                Some(Order::Restore(answer)) => drop(answer.send(self.restore().await)),
            }
        }
        // Verbs end early when their token fires; what adapters have to put right then runs to its end here.
        self.engine.shutdown().await;
    }

    async fn back_up(&self) -> Result<RunReport, BackupError> {
        let mut request = BackupRequest::new(self.interval.clone());
        request.cancel = self.stop.child_token();
        self.engine.back_up(&request).await
    }

    async fn restore(&self) -> Result<RunReport, BackupError> {
        let mut request = RestoreRequest::new(self.service.clone());
        request.cancel = self.stop.child_token();
        // The preview says what would be replaced and what would be lost: show it to a person, or log it.
        let preview = self.engine.plan_restore(&request).await?;
        self.engine.restore(&preview).await
    }
}

/// A day in the life of the service, in short. Returns what it logged.
pub(crate) async fn run(dir: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let notes = dir.join("notes");
    tokio::fs::create_dir(&notes).await?;
    tokio::fs::write(notes.join("monday"), "water the plants").await?;

    let (events, mut log) = mpsc::unbounded_channel();
    let (orders, received) = mpsc::channel(8);
    let stop = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    let backups = Backups {
        engine: engine(dir, events).await?,
        interval: "hourly".parse()?,
        service: "notes".parse()?,
        stop: stop.clone(),
    };
    tasks.spawn(backups.run(Duration::from_secs(3600), received));

    let (answer, report) = oneshot::channel();
    orders.send(Order::BackUp(answer)).await?;
    assert_eq!(report.await??.outcome(), Outcome::Ok);

    tokio::fs::write(notes.join("monday"), "scrawled over").await?;
    let (answer, report) = oneshot::channel();
    orders.send(Order::Restore(answer)).await?;
    assert_eq!(report.await??.outcome(), Outcome::Ok);
    assert_eq!(tokio::fs::read_to_string(notes.join("monday")).await?, "water the plants");

    // A service would wait for SIGTERM here.
    stop.cancel();
    tasks.join_all().await;

    let mut lines = Vec::new();
    while let Some(event) = log.recv().await {
        match event {
            Event::ServiceFinished { service, id: Some(id), outcome, ms, .. } => {
                lines.push(format!("{service}: {outcome:?}, {id}, {ms} ms"));
            }
            Event::Warning { message, .. } => lines.push(format!("warning: {message}")),
            _ => {}
        }
    }
    Ok(lines)
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "this is its product")]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    for line in run(dir.path()).await? {
        println!("{line}");
    }
    Ok(())
}
