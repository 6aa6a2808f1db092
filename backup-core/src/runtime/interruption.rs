//! [`Interruption`]: stopping or pausing a service in such a way that it always comes back.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{ExitStatus, RunState, ServiceRuntime};
use crate::adapter::StepToken;
use crate::clock::Clock;
use crate::error::{AdapterError, AdapterErrorKind};
use crate::id::{RunId, ServiceName};

mod journal;

pub use journal::{InterruptionEntry, InterruptionJournal, InterruptionKind, NoWatchdog, Place, Watchdog};

/// How long bringing a service back may take before it counts as failed.
const RESTORE_LIMIT: Duration = Duration::from_secs(300);

/// How long a service that was unpaused may still be called paused, and how often it is looked at. Docker notes a pause at once and
/// again when it hears of it as an event, which comes late on a busy host, also after the pause is over
/// (`ProcessEvent` in <https://github.com/moby/moby/blob/v20.10.24/daemon/monitor.go>).
const LATE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(100);

/// How long an order to an engine may be under way, beside the time that it gives a service to stop. On a busy host some
/// seconds; what waits for this is only the entry of a service that runs.
const ORDER_LIMIT: Duration = Duration::from_secs(15);

/// How often the service is looked at meanwhile.
const ORDER_POLL: Duration = Duration::from_millis(100);

/// What an interruption needs around it.
#[derive(Debug, Clone)]
pub struct InterruptionContext {
    /// The service.
    pub service: ServiceName,
    /// The run.
    pub run_id: RunId,
    /// Remembers it.
    pub journal: Arc<dyn InterruptionJournal>,
    /// Ends it if we cannot.
    pub watchdog: Arc<dyn Watchdog>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// A service that is stopped or paused by us, and must come back.
///
/// * The journal is written and the watchdog armed **before** anything is done to the service; both are taken back only
///   **after** it runs again.
/// * What was not running before is left as it was, by `begin` and by `end`.
/// * Dropped without [`end`](Self::end), nothing happens: an undo needs async code that a drop cannot wait for. The journal
///   keeps the entry, and the watchdog its alarm. Whoever owns the journal calls [`replay`](Self::replay) at start-up and
///   at the end of a run that was cancelled, holding the service's lock, so that a living run is never undone.
#[derive(Debug)]
#[must_use = "a service stays down until `end` is called"]
pub struct Interruption {
    runtime: Arc<dyn ServiceRuntime>,
    cx: InterruptionContext,
    /// `None` if there was nothing to do.
    entry: Option<InterruptionEntry>,
    began: Instant,
    deadline: Instant,
    exit: Option<ExitStatus>,
    lasted: Option<Duration>,
    /// Once the journal has forgotten it: whether it was ours until then.
    ours: Option<bool>,
}

impl Interruption {
    /// Stops or pauses the service until `deadline` at most; this much later the watchdog acts.
    ///
    /// # Errors
    /// `Timeout` if the time left is not enough for a clean stop, or the runtime took longer; `Conflict` if somebody else
    /// has paused what is to be stopped (stopping it would kill it); otherwise those of the runtime, journal and
    /// watchdog. After an error the service is as it was; if even that failed, the journal and the watchdog remember.
    pub async fn begin(
        runtime: Arc<dyn ServiceRuntime>,
        cx: InterruptionContext,
        kind: InterruptionKind,
        deadline: Instant,
    ) -> Result<Self, AdapterError> {
        if matches!(kind, InterruptionKind::Other { .. }) {
            return Err(not_by_runtime(&kind));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let needed = if let InterruptionKind::Stop { grace } = &kind { *grace } else { Duration::ZERO };
        if left <= needed {
            let what = format!("too little time is left to {} `{}` cleanly", kind.verb(), cx.service);
            return Err(AdapterError::new(AdapterErrorKind::Timeout, what));
        }
        let before = runtime.inspect().await?;
        let began = Instant::now();
        let mut this =
            Self { runtime, cx, entry: None, began, deadline, exit: None, lasted: None, ours: None };
        match (before.state, &kind) {
            (RunState::Running, _) => {}
            (RunState::Paused, InterruptionKind::Stop { .. }) => {
                let what = format!("cannot stop `{}`: somebody has paused it", this.cx.service);
                return Err(AdapterError::new(AdapterErrorKind::Conflict, what));
            }
            // Whoever put it into this state shall find it there again.
            _ => return Ok(this),
        }
        let entry = InterruptionEntry::new(&this.cx, kind.clone(), before.instance, left);
        this.cx.journal.write(&entry).await?;
        this.entry = Some(entry.clone());
        if let Err(e) = this.cx.watchdog.arm(&entry, left).await {
            // Nothing was done yet. Should this fail too, replaying the entry finds nothing to do.
            let _second = forget(&this.cx, &entry).await;
            return Err(e);
        }
        this.began = Instant::now();
        match this.act(&kind, left).await {
            Ok(exit) => {
                this.exit = exit;
                this.cx.journal.note_down(&entry).await;
            }
            Err(e) => {
                this.give_up(&kind, &entry, &e).await;
                return Err(e);
            }
        }
        Ok(this)
    }

    async fn act(
        &self,
        kind: &InterruptionKind,
        limit: Duration,
    ) -> Result<Option<ExitStatus>, AdapterError> {
        let act = async {
            match kind {
                InterruptionKind::Stop { grace } => self.runtime.stop(*grace).await.map(Some),
                InterruptionKind::Pause => self.runtime.pause().await.map(|()| None),
                InterruptionKind::Other { .. } => Err(not_by_runtime(kind)),
            }
        };
        timeout(limit, act).await.unwrap_or_else(|_| {
            let what = format!("`{}` did not {} in time", self.cx.service, kind.verb());
            Err(AdapterError::new(AdapterErrorKind::Timeout, what))
        })
    }

    /// After a failed stop or pause. One that timed out or whose answer got lost may still take effect, after we brought
    /// the service back: so it is first seen through, and if that fails too, journal and watchdog stay on their guard.
    async fn give_up(&mut self, kind: &InterruptionKind, entry: &InterruptionEntry, why: &AdapterError) {
        use AdapterErrorKind as K;
        let refused = matches!(
            why.kind(),
            K::Conflict | K::NotFound | K::PermissionDenied | K::Unsupported | K::InvalidConfig
        );
        let grace = if let InterruptionKind::Stop { grace } = kind { *grace } else { Duration::ZERO };
        let settled = refused || self.act(kind, grace + RESTORE_LIMIT).await.is_ok();
        // The first error is the one to report; what is left to do is in the journal.
        let _second = match settled {
            true => self.end().await.map(drop),
            false => bring_back(&*self.runtime, entry).await,
        };
    }

    /// How the service ended, if it was stopped by this.
    #[must_use]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.exit
    }

    /// Whether the service was running before, and is not now because of this.
    #[must_use]
    pub fn interrupts(&self) -> bool {
        self.entry.is_some() && self.lasted.is_none()
    }

    /// How long the interruption may still last.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Brings the service back, if it ran before, and returns how long it did not; zero if it was left alone. Idempotent:
    /// may be called again, above all after an error.
    ///
    /// # Errors
    /// Those of the runtime, and `Timeout` if the service does not come back within five minutes: journal and watchdog
    /// remember it then. An error of the journal or the watchdog alone comes after the service is back.
    /// `Conflict` if somebody else has ended the interruption before, e.g. the watchdog at the deadline: the service may
    /// have run while it was thought to stand still, and what was read meanwhile is worth nothing.
    pub async fn end(&mut self) -> Result<Duration, AdapterError> {
        let Some(entry) = &self.entry else { return Ok(Duration::ZERO) };
        if self.lasted.is_none() {
            bring_back(&*self.runtime, entry).await?;
            self.lasted = Some(self.began.elapsed());
        }
        if self.ours.is_none() {
            let (ours, disarmed) = forget(&self.cx, entry).await?;
            self.ours = Some(ours);
            disarmed?;
        }
        if self.ours == Some(false) {
            return Err(ended_by_others(entry));
        }
        Ok(self.lasted.unwrap_or_default())
    }

    /// Writes down something of the adapter's own that must be undone, and arms the watchdog, **before** it is done to
    /// the service. `deadline` is when the watchdog acts; `token` is what
    /// [`ServiceAdapter::bring_back`](crate::ServiceAdapter::bring_back) gets then.
    ///
    /// # Errors
    /// Those of the journal and the watchdog; nothing is announced then.
    pub async fn announce(
        cx: InterruptionContext,
        what: impl Into<String>,
        instance: impl Into<String>,
        token: StepToken,
        deadline: Instant,
    ) -> Result<Announced, AdapterError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let kind = InterruptionKind::Other { what: what.into(), token };
        let entry = InterruptionEntry::new(&cx, kind, instance.into(), left);
        cx.journal.write(&entry).await?;
        if let Err(e) = cx.watchdog.arm(&entry, left).await {
            // Nothing was done yet. Should this fail too, undoing the entry finds nothing to do.
            let _second = forget(&cx, &entry).await;
            return Err(e);
        }
        Ok(Announced { cx, entry, ours: OnceLock::new() })
    }

    /// Undoes what an entry of the journal says a dead run did.
    ///
    /// Entries of another host or another incarnation of the service are never acted on: they stay in the journal, and
    /// the answer says why. The caller holds the service's lock.
    ///
    /// # Errors
    /// As [`end`](Self::end), and `Unsupported` for what an adapter did itself; the entry stays.
    pub async fn replay(
        cx: &InterruptionContext,
        runtime: &dyn ServiceRuntime,
        entry: &InterruptionEntry,
    ) -> Result<Replay, AdapterError> {
        let here = cx.journal.place();
        if here.host != entry.place.host {
            return Ok(Replay::Foreign(format!("it was made on host `{}`", entry.place.host)));
        }
        if entry.service != cx.service {
            return Ok(Replay::Foreign(format!("it is about service `{}`", entry.service)));
        }
        // Whether it still lasts, a runtime cannot see: forgetting it would leave the service as it is.
        if matches!(entry.kind, InterruptionKind::Other { .. }) {
            return Err(not_by_runtime(&entry.kind));
        }
        let now = match runtime.inspect().await {
            Err(e) if e.kind() == AdapterErrorKind::NotFound => {
                return Ok(Replay::Foreign(format!("`{}` is gone", entry.service)));
            }
            now => now?,
        };
        if now.instance != entry.instance {
            return Ok(Replay::Foreign(format!("`{}` was made anew since", entry.service)));
        }
        let mut state = now.state;
        // Who runs may be about to be stopped: the order lives on with the engine when its giver dies.
        if matches!(state, RunState::Running | RunState::Stopping) && here.boot_id == entry.place.boot_id {
            state = seen_through(cx, runtime, entry).await?;
        }
        // Another state than ours is somebody else's doing. A restart of the host ends a pause, but a container that was
        // stopped stays so.
        let ours = entry.kind.result() == Some(state);
        if ours {
            bring_back(runtime, entry).await?;
        }
        forget(cx, entry).await?.1?;
        Ok(if ours { Replay::Undone } else { Replay::NothingToDo })
    }
}

/// Something that an adapter does to its service, and undoes itself: see [`Interruption::announce`].
#[derive(Debug)]
#[must_use = "the watchdog undoes it unless `undone` is called"]
pub struct Announced {
    cx: InterruptionContext,
    entry: InterruptionEntry,
    ours: OnceLock<bool>,
}

impl Announced {
    /// The journal's entry.
    #[must_use]
    pub fn entry(&self) -> &InterruptionEntry {
        &self.entry
    }

    /// The service is as it should be again: journal and watchdog forget it. Idempotent.
    ///
    /// # Errors
    /// Those of the journal and the watchdog. `Conflict` if somebody else has undone it before, e.g. the watchdog at the
    /// deadline: what relied on it is worth nothing.
    pub async fn undone(&self) -> Result<(), AdapterError> {
        let ours = match self.ours.get() {
            Some(ours) => *ours,
            None => {
                let (ours, disarmed) = forget(&self.cx, &self.entry).await?;
                let ours = *self.ours.get_or_init(|| ours);
                disarmed?;
                ours
            }
        };
        if ours { Ok(()) } else { Err(ended_by_others(&self.entry)) }
    }
}

/// What became of a journal's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replay {
    /// The service was down, and runs again.
    Undone,
    /// The service was no longer as the entry says; the entry is gone.
    NothingToDo,
    /// Not ours to act on, and why; the entry stays.
    Foreign(String),
}

fn not_by_runtime(kind: &InterruptionKind) -> AdapterError {
    AdapterError::unsupported(format!("no runtime can {} a service, or undo it", kind.verb()))
}

async fn bring_back(runtime: &dyn ServiceRuntime, entry: &InterruptionEntry) -> Result<(), AdapterError> {
    let back = async {
        match &entry.kind {
            InterruptionKind::Stop { .. } => runtime.start().await?,
            InterruptionKind::Pause => runtime.unpause().await?,
            kind @ InterruptionKind::Other { .. } => return Err(not_by_runtime(kind)),
        }
        let until = Instant::now() + LATE;
        loop {
            let now = runtime.inspect().await?;
            match now.state {
                RunState::Running => return Ok(()),
                RunState::Paused if Instant::now() < until => sleep(AGAIN).await,
                _ => break,
            }
        }
        let what = format!("`{}` does not run again after {}", entry.service, entry.kind.verb());
        Err(AdapterError::new(AdapterErrorKind::Unavailable, what))
    };
    timeout(RESTORE_LIMIT, back).await.unwrap_or_else(|_| {
        let what = format!("`{}` did not come back in time", entry.service);
        Err(AdapterError::new(AdapterErrorKind::Timeout, what))
    })
}

/// Waits while the order to interrupt a running service may still take effect, and as long as it does; the state then.
async fn seen_through(
    cx: &InterruptionContext,
    runtime: &dyn ServiceRuntime,
    entry: &InterruptionEntry,
) -> Result<RunState, AdapterError> {
    let grace = if let InterruptionKind::Stop { grace } = &entry.kind { *grace } else { Duration::ZERO };
    let limit = grace + ORDER_LIMIT;
    // A clock that was set back gives the whole time, never more.
    let passed = (cx.clock.now() - entry.began_at).to_std().unwrap_or_default();
    let wait = if cx.journal.was_down(entry).await { Duration::ZERO } else { limit.saturating_sub(passed) };
    let until = Instant::now() + wait;
    loop {
        let state = runtime.inspect().await?.state;
        let over = state != RunState::Running || Instant::now() >= until;
        if over && state != RunState::Stopping {
            return Ok(state);
        }
        sleep(ORDER_POLL).await;
    }
}

fn ended_by_others(entry: &InterruptionEntry) -> AdapterError {
    let what = format!(
        "`{}` was brought back by the watchdog before its interruption was over: it had lasted too long",
        entry.service
    );
    AdapterError::new(AdapterErrorKind::Conflict, what)
}

/// The watchdog first: should the journal fail then, replaying the entry finds the service running and does nothing.
/// Whether the interruption was ours until now, and how the watchdog took it.
async fn forget(
    cx: &InterruptionContext,
    entry: &InterruptionEntry,
) -> Result<(bool, Result<(), AdapterError>), AdapterError> {
    let disarmed = cx.watchdog.disarm(entry).await;
    Ok((cx.journal.clear(entry).await?, disarmed))
}
