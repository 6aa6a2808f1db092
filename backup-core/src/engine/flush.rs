//! `flush`: the host goes away in two minutes; what can be saved is saved, the most valuable first.
//!
//! ```text
//! nothing new may begin → what is at work is ended within five seconds → services that it left down come back
//!     → steps, each as soon as those before it have ended, each until its budget or the host ends
//!     → the last step has a few seconds of its own, whatever the others did
//! ```
//!
//! A step that fails stops no other.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::millis;
use super::{BackupRequest, CopyRequest, Engine, Inner, PartReport, ResumeRequest, RunReport, StepReport};
use crate::error::{AdapterError, AdapterErrorKind, BackupError, chain};
use crate::event::{Event, Outcome};
use crate::id::{Interval, ServiceName, Timestamp};

/// What the last step has to itself, at the end.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How long a back-up or a copy whose time is over is waited for: it ends in order.
const IN_ORDER: Duration = Duration::from_secs(2);

/// A back-up ends by its own deadline, and says so; this much later it is cancelled.
const BY_ITSELF: Duration = Duration::from_millis(500);

/// How long services may take to come back that a killed process left down: captures bring theirs back themselves.
const COMING_BACK: Duration = Duration::from_secs(10);

/// What is done on a host that goes away, besides backing up.
#[async_trait]
pub trait FlushAction: fmt::Debug + Send + Sync + 'static {
    /// Does it, and says in one line what came of it. Dropped when its time is over.
    ///
    /// # Errors
    /// Whatever kept it from being done.
    async fn perform(&self, cx: &FlushContext) -> Result<String, AdapterError>;
}

/// What an action knows.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FlushContext {
    /// When it must have ended.
    pub until: Instant,
    /// When the host goes away.
    pub deadline: Instant,
    /// When the flush began, by the clock.
    pub at: Timestamp,
    /// The host.
    pub host: String,
    /// It is an exercise: the host stays.
    pub rehearsal: bool,
    /// What ended before.
    pub so_far: Vec<FlushedStep>,
}

/// What is to be saved.
#[derive(Debug)]
pub struct FlushRequest {
    /// The series that backups go to.
    pub interval: Interval,
    /// The steps.
    pub steps: Vec<FlushStep>,
    /// When the host goes away.
    pub deadline: Instant,
    /// It is an exercise: what other processes do is not ended, they may begin something new, and services are interrupted
    /// no longer than on any other day.
    pub rehearsal: bool,
}

/// A step.
#[derive(Debug, Clone)]
pub struct FlushStep {
    /// Its name.
    pub name: String,
    /// The steps that must have ended before, well or not.
    pub after: Vec<String>,
    /// How long it may take, if not as long as there is.
    pub budget: Option<Duration>,
    /// What it does.
    pub work: FlushWork,
}

/// What a step does.
#[derive(Debug, Clone)]
pub enum FlushWork {
    /// Backs services up.
    BackUp(Vec<ServiceName>),
    /// Copies what is good of them to where the configuration says.
    Copy(Vec<ServiceName>),
    /// Something else.
    Other(Arc<dyn FlushAction>),
}

impl FlushWork {
    fn kind(&self) -> &'static str {
        match self {
            Self::BackUp(_) => "back-up",
            Self::Copy(_) => "copy",
            Self::Other(_) => "action",
        }
    }
}

/// What came of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlushedStep {
    /// Its name.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// When it began, in ms since the flush did.
    pub began_ms: u64,
    /// How long it took, in ms.
    pub ms: u64,
    /// What it says, one line.
    pub said: Option<String>,
    /// The error's chain, one line.
    pub error: Option<String>,
    /// What was done to each service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<StepReport>,
}

/// What came of a flush.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlushReport {
    /// What was ended, one line each.
    pub ended: Vec<String>,
    /// The steps, in the order in which they ended.
    pub steps: Vec<FlushedStep>,
    /// How long all of it took, in ms.
    pub ms: u64,
}

impl FlushReport {
    /// Whether every step did what it should.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.steps.iter().all(|s| matches!(s.outcome, Outcome::Ok | Outcome::Skipped))
    }
}

impl Engine {
    /// Saves what can be saved before this host goes away. Afterwards other processes still begin nothing:
    /// [`end_emergency`](Self::end_emergency), for a host that stayed.
    ///
    /// # Errors
    /// [`BackupError::Refused`] if another process is at it. Everything else is in the steps.
    pub async fn flush(&self, request: &FlushRequest) -> Result<FlushReport, BackupError> {
        let began = Instant::now();
        let mut ended = Vec::new();
        if !request.rehearsal {
            ended = self.make_room(request.deadline).await?;
        }
        let run = self.inner.begin("spot", &[], CancellationToken::new())?;
        let at = self.inner.now();
        let mut report = FlushReport { ended, steps: Vec::new(), ms: 0 };
        let mut waiting: Vec<FlushStep> = request.steps.clone();
        let mut running = FuturesUnordered::new();
        loop {
            let is_over = |name: &String| {
                report.steps.iter().any(|s| s.name == *name) || request.steps.iter().all(|s| s.name != *name)
            };
            let (ready, later) = waiting.into_iter().partition::<Vec<_>, _>(|s| s.after.iter().all(is_over));
            waiting = later;
            for step in ready {
                let cx = self.context_of(&step, request, at, &report.steps);
                running.push(self.flush_step(step, cx, request.interval.clone(), began));
            }
            let Some(step) = running.next().await else { break };
            self.inner.events.emit(Event::StepFinished {
                step: step.name.clone(),
                outcome: step.outcome,
                ms: step.ms,
                said: step.said.clone(),
                error: step.error.clone(),
            });
            report.steps.push(step);
        }
        report.ms = millis(began);
        let parts = report.steps.iter().map(|s| PartReport {
            part: s.name.clone(),
            service: None,
            kind: "spot".to_owned(),
            outcome: s.outcome,
            ms: s.ms,
            error: s.error.clone(),
        });
        // What was done to the services stands in the reports of their own runs.
        let written = self.inner.finish_with(&run, Vec::new(), parts.collect());
        // A store that does not answer must not keep people from hearing how it ended.
        if tokio::time::timeout(LAST_WORDS, written).await.is_err() {
            self.inner.warn(None, format!("the report of {} was not written in time", run.id));
        }
        Ok(report)
    }

    /// Lets other processes begin something again: the host is still there.
    pub fn end_emergency(&self) {
        *self.inner.emergency() = None;
    }

    /// Nothing new begins, and what is at work ends.
    async fn make_room(&self, deadline: Instant) -> Result<Vec<String>, BackupError> {
        let inner = &self.inner;
        let already = inner.emergency().is_some();
        if !already {
            let emergency = inner.state.begin_emergency()?;
            *inner.emergency() = Some(emergency);
        }
        let ended = inner.state.end_others().await.unwrap_or_else(|e| {
            inner.warn(None, chain(&e));
            Vec::new()
        });
        if !ended.is_empty() {
            let until = deadline.min(Instant::now() + COMING_BACK);
            let resumed = timeout_at(until, self.resume(&ResumeRequest::default())).await;
            if let Ok(Err(e)) = resumed {
                inner.warn(None, chain(&e));
            }
        }
        Ok(ended)
    }

    fn context_of(
        &self,
        step: &FlushStep,
        request: &FlushRequest,
        at: Timestamp,
        so_far: &[FlushedStep],
    ) -> FlushContext {
        let last = request.steps.iter().all(|s| s.name == step.name || step.after.contains(&s.name));
        let reserve = if last { Duration::ZERO } else { LAST_WORDS };
        let latest = request.deadline.checked_sub(reserve).unwrap_or(request.deadline);
        let own = step.budget.and_then(|b| Instant::now().checked_add(b));
        FlushContext {
            until: own.map_or(latest, |own| own.min(latest)),
            deadline: request.deadline,
            at,
            host: self.inner.host.clone(),
            rehearsal: request.rehearsal,
            so_far: so_far.to_vec(),
        }
    }

    async fn flush_step(
        &self,
        step: FlushStep,
        cx: FlushContext,
        interval: Interval,
        began: Instant,
    ) -> FlushedStep {
        let started = Instant::now();
        let until = cx.until;
        let done = match &step.work {
            _ if until <= started => Err("there was no time left".to_owned()),
            FlushWork::BackUp(services) => {
                let mut request = BackupRequest::new(interval);
                request.services.clone_from(services);
                request.until = Some(until);
                (request.last_chance, request.rehearsal) = (!cx.rehearsal, cx.rehearsal);
                let cancel = request.cancel.clone();
                in_time(until, cancel, self.back_up(&request)).await.map(Done::Run)
            }
            FlushWork::Copy(services) => {
                let services = services.clone();
                let request = CopyRequest { services, urgent: true, ..CopyRequest::default() };
                match self.plan().has_copies() {
                    false => Ok(Done::Nothing("there is no store to copy to".to_owned())),
                    true => in_time(until, request.cancel.clone(), self.copy(&request)).await.map(Done::Run),
                }
            }
            FlushWork::Other(action) => {
                // One that panics ends no other step.
                let performed = AssertUnwindSafe(action.perform(&cx)).catch_unwind();
                match timeout_at(until, performed).await {
                    Ok(Ok(Ok(said))) => Ok(Done::Said(said)),
                    Ok(Ok(Err(e))) if e.kind() == AdapterErrorKind::Unsupported => {
                        Ok(Done::Nothing(chain(&e)))
                    }
                    Ok(Ok(Err(e))) => Err(chain(&e)),
                    Ok(Err(_)) => Err("the program failed inside".to_owned()),
                    Err(_) => Err("it did not end in time".to_owned()),
                }
            }
        };
        let began_ms = u64::try_from((started - began).as_millis()).unwrap_or(u64::MAX);
        let name = step.name;
        let mut flushed = FlushedStep {
            name,
            outcome: Outcome::Ok,
            began_ms,
            ms: millis(started),
            said: None,
            error: None,
            services: Vec::new(),
        };
        match done {
            Ok(Done::Said(said)) => flushed.said = Some(said),
            Ok(Done::Nothing(why)) => (flushed.outcome, flushed.said) = (Outcome::Skipped, Some(why)),
            Ok(Done::Run(report)) => {
                let failed = report.steps.iter().find(|s| !s.is_ok());
                if let Some(failed) = failed {
                    flushed.outcome = failed.outcome;
                    let why = failed.error.clone().unwrap_or_default();
                    flushed.error = Some(format!("{}: {why}", failed.service));
                }
                flushed.services = report.steps;
            }
            Err(why) => (flushed.outcome, flushed.error) = (Outcome::Failed, Some(why)),
        }
        tracing::debug!(step = flushed.name, kind = step.work.kind(), ms = flushed.ms, "A step ended.");
        flushed
    }
}

enum Done {
    Run(RunReport),
    Said(String),
    Nothing(String),
}

/// `verb`, cancelled soon after `until` and then waited for as long as it takes to end in order; at most a little.
async fn in_time(
    until: Instant,
    cancel: CancellationToken,
    verb: impl Future<Output = Result<RunReport, BackupError>>,
) -> Result<RunReport, String> {
    let mut verb = std::pin::pin!(verb);
    let ended = match timeout_at(until + BY_ITSELF, &mut verb).await {
        Ok(ended) => ended,
        Err(_) => {
            cancel.cancel();
            let late = timeout_at(until + IN_ORDER, verb).await;
            late.map_err(|_| "it did not end in time".to_owned())?
        }
    };
    ended.map_err(|e| chain(&e))
}

impl Inner {
    fn emergency(&self) -> std::sync::MutexGuard<'_, Option<crate::state::Emergency>> {
        self.emergency.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Nothing new begins on a host that another process is emptying. What puts data back is a person's decision.
    pub(super) fn refuse_in_emergency(&self, verb: &str) -> Result<(), BackupError> {
        let allowed = ["restore", "recover", "undo", "resume", "cleanup"].contains(&verb);
        if allowed || self.emergency().is_some() || !self.state.in_emergency()? {
            return Ok(());
        }
        Err(BackupError::Refused(
            "this host is about to go away, and `backup spot watch` is saving what it can: nothing else begins"
                .to_owned(),
        ))
    }
}
