//! What an adapter is told about the operation that it takes part in.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::error::{AdapterError, AdapterErrorKind};
use crate::event::{Event, EventSink};
use crate::id::{Interval, RunId, ServiceName, Timestamp};
use crate::metadata::Image;
use crate::runtime::{InterruptionContext, InterruptionJournal, NoWatchdog, Watchdog};
use crate::secret::SecretResolver;
use crate::state::FileJournal;

/// The circumstances of one operation on one service.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OpContext {
    /// The service.
    pub service: ServiceName,
    /// The run; tags whatever the adapter leaves in the service, so that `reclaim` finds it after a hard kill.
    pub run_id: RunId,
    /// The run that is at work: `run_id`, unless it finishes or undoes what that one has begun.
    pub at_work: RunId,
    /// The series of the backup that is made; `None` for every other operation.
    pub interval: Option<Interval>,
    /// The id of the store, which owns what is made outside of it; empty if there is none.
    pub store_id: String,
    /// The operation's moment: names the backup, and what a restore keeps aside (`<name>.backup.<timestamp>`).
    pub timestamp: Timestamp,
    /// A private folder on local disk that exists and is removed after the operation, for spools and scratch files.
    pub spool: PathBuf,
    /// A private folder of the service on local disk that stays: for what a restore keeps aside when the service has no
    /// place of its own for it. May not exist yet.
    pub kept: PathBuf,
    /// Folders that are never part of a backup: stores, the state directory.
    pub excluded: Vec<PathBuf>,
    /// Fires when the operation should end early: stop promptly and leave the service as it was.
    pub cancel: CancellationToken,
    /// When the operation's budget ends. Every external wait must end by then; see [`OpContext::remaining`].
    pub deadline: Option<Instant>,
    /// How many threads the operation may keep busy.
    pub threads: usize,
    /// The user insists: go on where a doubt, not a danger to other data, would stop the operation.
    pub force: bool,
    /// The host goes away when the budget ends: this is the last capture that there will be, and what it interrupts ends
    /// anyway.
    pub last_chance: bool,
    /// An exercise of that: the same time must do, but the host stays, and so do all limits on what may be done to the service.
    pub rehearsal: bool,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where events go.
    pub events: Arc<dyn EventSink>,
    /// Secrets.
    pub secrets: Arc<dyn SecretResolver>,
    /// Secrets as they were when the backup was made that is restored, if anybody knows: a server that keeps its passwords
    /// with its data has them again.
    pub secrets_then: Option<Arc<dyn SecretResolver>>,
    /// Of a test restore: the image that the backup was made of.
    pub image_then: Option<Image>,
    /// Remembers interruptions of the service.
    pub journal: Arc<dyn InterruptionJournal>,
    /// Ends them if this process cannot.
    pub watchdog: Arc<dyn Watchdog>,
}

impl OpContext {
    /// A context with everything that has no sensible default; the rest can be set by field.
    pub fn new(
        service: ServiceName,
        run_id: RunId,
        timestamp: Timestamp,
        spool: impl Into<PathBuf>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let spool = spool.into();
        Self {
            service,
            at_work: run_id.clone(),
            run_id,
            interval: None,
            store_id: String::new(),
            timestamp,
            kept: spool.join("kept"),
            journal: Arc::new(FileJournal::new(spool.join("interruptions"))),
            watchdog: Arc::new(NoWatchdog),
            spool,
            excluded: Vec::new(),
            cancel: CancellationToken::new(),
            deadline: None,
            threads: 1,
            force: false,
            last_chance: false,
            rehearsal: false,
            clock,
            events: Arc::new(crate::event::NoEvents),
            secrets: Arc::new(crate::secret::NoSecrets),
            secrets_then: None,
            image_then: None,
        }
    }

    /// What an [`Interruption`](crate::runtime::Interruption) of the service needs.
    pub fn interruption(&self) -> InterruptionContext {
        InterruptionContext {
            service: self.service.clone(),
            run_id: self.at_work.clone(),
            journal: Arc::clone(&self.journal),
            watchdog: Arc::clone(&self.watchdog),
            clock: Arc::clone(&self.clock),
        }
    }

    /// Tells the operator something that is not an error, at once. (What belongs to the backup itself goes into
    /// [`CaptureReport::warnings`](crate::CaptureReport).)
    pub fn warn(&self, message: impl Into<String>) {
        self.events.emit(Event::Warning { service: Some(self.service.clone()), message: message.into() });
    }

    /// What is left of the budget; `None` without a deadline.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|d| d.saturating_duration_since(Instant::now()))
    }

    /// The same operation with a budget that ends after `limit` at the latest.
    #[must_use]
    pub fn limited_to(&self, limit: Duration) -> Self {
        let end = Instant::now() + limit;
        Self { deadline: Some(self.deadline.map_or(end, |d| d.min(end))), ..self.clone() }
    }

    /// Runs `work` until it ends, the operation is cancelled, or its budget is used up: for every external wait.
    ///
    /// # Errors
    /// [`AdapterErrorKind::Cancelled`] or [`AdapterErrorKind::Timeout`]; `work` was dropped then.
    pub async fn within<T>(&self, work: impl Future<Output = T> + Send) -> Result<T, AdapterError> {
        let left = self.remaining().unwrap_or(Duration::MAX);
        match tokio::time::timeout(left, self.cancel.run_until_cancelled(work)).await {
            Ok(Some(done)) => Ok(done),
            _ => Err(self.check_alive().err().unwrap_or_else(AdapterError::cancelled)),
        }
    }

    /// An error if the operation was cancelled or its budget is used up: for loops that do blocking work.
    ///
    /// # Errors
    /// [`AdapterErrorKind::Cancelled`] or [`AdapterErrorKind::Timeout`].
    pub fn check_alive(&self) -> Result<(), AdapterError> {
        if self.cancel.is_cancelled() {
            return Err(AdapterError::cancelled());
        }
        match self.remaining() {
            Some(left) if left.is_zero() => {
                Err(AdapterError::new(AdapterErrorKind::Timeout, "the time budget is used up"))
            }
            _ => Ok(()),
        }
    }
}
