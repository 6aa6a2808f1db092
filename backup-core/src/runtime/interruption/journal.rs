//! What is remembered of an interruption, and by whom.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::{InterruptionContext, RunState};
use crate::adapter::StepToken;
use crate::error::AdapterError;
use crate::id::{RunId, ServiceName};

/// How a service is interrupted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InterruptionKind {
    /// Ended, and started again.
    Stop {
        /// How long it may take to end by itself before it is killed. Generous: a database that is killed leaves what a
        /// crash leaves.
        grace: Duration,
    },
    /// Frozen, and let go on.
    Pause,
    /// Something of the adapter's own, by [`Interruption::announce`](super::Interruption::announce): a write fence, a server made a replica.
    Other {
        /// What, for people, e.g. `fence writes of`.
        what: String,
        /// What the adapter's [`bring_back`](crate::ServiceAdapter::bring_back) needs to undo it. No secrets.
        token: StepToken,
    },
}

impl fmt::Display for InterruptionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stop { .. } => "stopped",
            Self::Pause => "paused",
            Self::Other { what, .. } => what,
        })
    }
}

impl InterruptionKind {
    pub(super) fn verb(&self) -> &str {
        match self {
            Self::Stop { .. } => "stop",
            Self::Pause => "pause",
            Self::Other { what, .. } => what,
        }
    }

    /// The state that it leaves the service in; `None` if only the adapter can tell.
    pub(super) fn result(&self) -> Option<RunState> {
        match self {
            Self::Stop { .. } => Some(RunState::Stopped),
            Self::Pause => Some(RunState::Paused),
            Self::Other { .. } => None,
        }
    }
}

/// Where and in which life of the machine something happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The host's name.
    pub host: String,
    /// The kernel's boot id.
    pub boot_id: String,
}

/// What must be undone if we do not live to do it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterruptionEntry {
    /// Names the entry; unique.
    pub id: String,
    /// The service.
    pub service: ServiceName,
    /// The run that interrupts it.
    pub run_id: RunId,
    /// How.
    pub kind: InterruptionKind,
    /// Where.
    pub place: Place,
    /// Which incarnation of the service, e.g. the container id.
    pub instance: String,
    /// When it began.
    pub began_at: DateTime<Utc>,
    /// When it is overdue.
    #[serde(default)]
    pub until: Option<DateTime<Utc>>,
}

impl InterruptionEntry {
    pub(super) fn new(
        cx: &InterruptionContext,
        kind: InterruptionKind,
        instance: String,
        left: Duration,
    ) -> Self {
        let now = cx.clock.now();
        Self {
            id: uuid::Uuid::new_v4().simple().to_string(),
            service: cx.service.clone(),
            run_id: cx.run_id.clone(),
            kind,
            place: cx.journal.place(),
            instance,
            began_at: now,
            until: TimeDelta::from_std(left).ok().and_then(|left| now.checked_add_signed(left)),
        }
    }
}

/// Remembers interruptions across a crash of this process; lives in the state directory of the host.
#[async_trait]
pub trait InterruptionJournal: fmt::Debug + Send + Sync + 'static {
    /// Where this process runs.
    fn place(&self) -> Place;

    /// Adds an entry. Durable on return.
    async fn write(&self, entry: &InterruptionEntry) -> Result<(), AdapterError>;

    /// Notes that somebody else than the run that made the entry is about to undo it; the entry stays. Whether it was
    /// there. Atomic against [`clear`](Self::clear): that answers `false` from here on.
    async fn take_over(&self, entry: &InterruptionEntry) -> Result<bool, AdapterError>;

    /// Notes that the order to stop or pause the service has taken effect. Best effort, need not be durable: without it
    /// [`replay`](super::Interruption::replay) waits while the order may still be under way.
    async fn note_down(&self, _entry: &InterruptionEntry) {}

    /// Whether [`note_down`](Self::note_down) was called.
    async fn was_down(&self, _entry: &InterruptionEntry) -> bool {
        false
    }

    /// Removes an entry. Idempotent. Whether it was there and nobody had taken it over.
    async fn clear(&self, entry: &InterruptionEntry) -> Result<bool, AdapterError>;

    /// What was never cleared.
    async fn entries(&self) -> Result<Vec<InterruptionEntry>, AdapterError>;
}

/// Brings a service back when this process is no longer there to do it: something that outlives it, e.g. a transient
/// systemd timer or a detached process.
#[async_trait]
pub trait Watchdog: fmt::Debug + Send + Sync + 'static {
    /// Sees to it that the interruption is undone once `after` has passed, unless disarmed before.
    async fn arm(&self, entry: &InterruptionEntry, after: Duration) -> Result<(), AdapterError>;

    /// Calls it off. Idempotent.
    async fn disarm(&self, entry: &InterruptionEntry) -> Result<(), AdapterError>;
}

/// No watchdog: only the journal brings the service back.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoWatchdog;

#[async_trait]
impl Watchdog for NoWatchdog {
    async fn arm(&self, _: &InterruptionEntry, _: Duration) -> Result<(), AdapterError> {
        Ok(())
    }

    async fn disarm(&self, _: &InterruptionEntry) -> Result<(), AdapterError> {
        Ok(())
    }
}
