//! `backup watchdog`: what [`OwnWatchdog`](crate::watchdog::OwnWatchdog) starts. Not for people.

use std::time::Duration;

use backup_core::BackupError;
use backup_core::engine::{ResumeRequest, RunReport};
use backup_core::runtime::InterruptionEntry;
use backup_core::state::StateDir;
use tokio::time::{Instant, sleep};

use crate::context::{Context, Done, Prepared};
use crate::error::CliError;

/// How often it looks.
const POLL: Duration = Duration::from_millis(200);

/// Pauses between attempts: the first one, and the longest.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// How long it tries.
const ENOUGH: Duration = Duration::from_secs(24 * 3600);

/// Bring a service back when the run that interrupts it is dead or late
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The entry of the interruption journal
    #[arg(long, value_name = "ID")]
    entry: String,

    /// When the run is late, from now
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    after: Duration,
}

impl Args {
    pub(crate) async fn run(&self, cx: &Context) -> Result<Done, CliError> {
        let due = Instant::now() + self.after;
        if let Err(error) = rustix::process::setsid() {
            // Started by hand, it leads its group already.
            tracing::debug!(%error, "No session of its own.");
        }
        let file = cx.config_file()?.ok_or_else(|| CliError::usage("there is no configuration"))?;
        let prepared = cx.prepare_file(&file)?;
        let state = StateDir::open(&prepared.state_dir)?;
        let journal = state.interruptions();
        let content = journal.read().await.map_err(|e| unreadable(&e))?;
        let Some(entry) = content.entries.into_iter().find(|e| e.id == self.entry) else {
            return Ok(Done::ok());
        };
        // A mistake in the configuration must show before the service goes down.
        prepared.plan.service(entry.service.as_str())?;
        let armed = Armed(journal.armed(&entry.id));
        std::fs::write(&armed.0, format!("{}\n", std::process::id()))
            .map_err(|e| CliError::failed(format!("cannot write `{}`", armed.0.display())).because(&e))?;
        Guard { cx, prepared, state, entry, due }.watch().await
    }
}

/// The sign that the watchdog runs.
struct Armed(std::path::PathBuf);

impl Drop for Armed {
    fn drop(&mut self) {
        // It went with the entry, as a rule.
        let _gone = std::fs::remove_file(&self.0);
    }
}

fn unreadable(e: &backup_core::AdapterError) -> CliError {
    CliError::failed("cannot read the journal of interruptions").because(e)
}

struct Guard<'a> {
    cx: &'a Context,
    prepared: Prepared,
    state: StateDir,
    entry: InterruptionEntry,
    due: Instant,
}

impl Guard<'_> {
    async fn watch(self) -> Result<Done, CliError> {
        let Self { cx, prepared, state, entry, due } = self;
        let cancel = cx.interrupt.graceful();
        let journal = state.interruptions();
        let (mut prepared, mut engine) = (Some(prepared), None);
        let mut attempts = Attempts::default();
        while journal.holds(&entry.id) {
            let late = Instant::now() >= due;
            // In doubt it lives, until it is late.
            let dead = !state.run_lives(&entry.run_id).unwrap_or(true);
            if (late || dead) && attempts.is_due()? {
                if let Some(prepared) = prepared.take() {
                    engine = Some(cx.open_at_any_rate(prepared).await?.engine);
                }
                let why = if dead { "dead" } else { "late" };
                cx.ui.note(&format!("{}: `{}` is down and its run is {why}", cx.clock.now(), entry.service));
                let request = ResumeRequest {
                    entry: Some(entry.id.clone()),
                    insist: late && !dead,
                    cancel: cancel.clone(),
                };
                if let Some(engine) = &engine {
                    report(cx, engine.resume(&request).await);
                }
                attempts.made();
                continue;
            }
            tokio::select! {
                () = sleep(POLL) => {}
                () = cancel.cancelled() => return Err(CliError::interrupted()),
            }
        }
        Ok(Done::ok())
    }
}

/// For the log. Errors of the steps were events.
fn report(cx: &Context, ended: Result<RunReport, BackupError>) {
    match ended {
        Ok(report) => {
            for step in &report.steps {
                step.notes.iter().for_each(|note| cx.ui.note(&format!("{}: {note}", step.service)));
            }
        }
        Err(e) => cx.ui.error(&CliError::from(e)),
    }
}

/// When to try again.
#[derive(Debug, Default)]
struct Attempts {
    first: Option<Instant>,
    next: Option<Instant>,
    pause: Option<Duration>,
}

impl Attempts {
    /// Whether it is time for another one.
    fn is_due(&mut self) -> Result<bool, CliError> {
        let now = Instant::now();
        if self.first.get_or_insert(now).elapsed() > ENOUGH {
            return Err(CliError::failed("gave up after 24 h").hint("backup resume"));
        }
        Ok(self.next.is_none_or(|next| now >= next))
    }

    /// One is over. If it succeeded, nobody asks again.
    fn made(&mut self) {
        let pause = self.pause.map_or(BACK_OFF.0, |p| (p * 2).min(BACK_OFF.1));
        self.pause = Some(pause);
        self.next = Some(Instant::now() + pause);
    }
}
