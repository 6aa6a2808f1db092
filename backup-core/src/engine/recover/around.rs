//! The stack around the services: what they run in is made and started, and what uses them waits meanwhile.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::StackSteps;
use crate::adapter::RestoreTarget;
use crate::engine::{Inner, PartReport, Run, deadline, millis};
use crate::error::{AdapterError, AdapterErrorKind, BackupError, chain};
use crate::event::{Event, Outcome};
use crate::id::ServiceName;
use crate::plan::PlannedService;
use crate::stack::{Part, PartState, Stack};

/// How often one that starts is looked at.
pub(super) const POLL: Duration = Duration::from_millis(300);

/// How long one may take that shows no progress: it writes nothing, its state stays the same, and so does what it answers.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// How long one may take that goes on writing, unless the service has a budget of its own: some write without getting anywhere,
/// and others replay the log of many gigabytes.
const LIMIT: Duration = Duration::from_secs(3600);

/// How long one that ended may need to be started again by the engine.
const ENDED: Duration = Duration::from_secs(5);

/// The parts as they were found.
#[derive(Debug, Clone, Default)]
pub(super) struct Around {
    pub(super) parts: Vec<Part>,
    /// Why they are not known.
    pub(super) unknown: Option<String>,
    /// Where they keep their data, as a rule.
    pub(super) data_root: Option<PathBuf>,
}

/// What was done to parts, by whoever did it.
#[derive(Debug, Default)]
pub(super) struct Reports(Mutex<Vec<PartReport>>);

impl Reports {
    pub(super) async fn take(&self) -> Vec<PartReport> {
        std::mem::take(&mut *self.0.lock().await)
    }

    async fn add(&self, report: PartReport) {
        self.0.lock().await.push(report);
    }
}

impl Around {
    /// The part that a service runs in.
    pub(super) fn part_of(&self, service: &PlannedService) -> Option<&Part> {
        let container = service.adapter.container()?;
        self.parts.iter().find(|p| p.is(&container))
    }

    /// What is to be done to applications. `all`: nobody asked for single services; `restores`: something is restored.
    pub(super) fn steps(&self, inner: &Inner, all: bool, restores: bool) -> StackSteps {
        let fenced = inner.state.fenced().unwrap_or_else(|e| {
            inner.warn(None, chain(&e));
            Vec::new()
        });
        let is_service = |part: &Part| {
            let mut containers = inner.plan.services.values().filter_map(|s| s.adapter.container());
            containers.any(|c| part.is(&c))
        };
        let mut steps = StackSteps { unknown: self.unknown.clone(), ..StackSteps::default() };
        for part in self.parts.iter().filter(|p| !is_service(p)) {
            let stops = restores && part.state.runs();
            if stops {
                steps.stops.push(part.name.clone());
            }
            let wanted = match part.state {
                // A job that has done its work has nothing to do again, unless its data is new.
                PartState::Stopped(Some(0)) => all && restores,
                state => all && !state.runs(),
            };
            if stops || wanted || fenced.contains(&part.name) {
                steps.starts.push(part.name.clone());
            }
        }
        steps
    }
}

impl Inner {
    /// The parts of the stack, if one is configured.
    pub(super) async fn around(&self) -> Option<Around> {
        let stack = self.stack.as_ref()?;
        let data_root = stack.data_root().await;
        Some(match stack.parts().await {
            Ok(parts) => Around { parts, unknown: None, data_root },
            Err(e) => Around { parts: Vec::new(), unknown: Some(chain(&e)), data_root },
        })
    }

    /// Stops applications, having noted that they are to be started again.
    pub(super) async fn fence(&self, reports: &Reports, parts: &[String]) -> Result<(), BackupError> {
        let Some(stack) = self.stack.as_ref().filter(|_| !parts.is_empty()) else { return Ok(()) };
        let mut all = self.state.fenced()?;
        all.extend(parts.iter().filter(|p| !all.contains(p)).cloned().collect::<Vec<_>>());
        self.state.set_fenced(&all)?;
        let started = Instant::now();
        let stopped = stack.stop(parts).await;
        for part in parts {
            let about = About { part, service: None, kind: "stop", started };
            self.report_part(reports, about, stopped.as_ref().err(), Vec::new()).await;
        }
        if stopped.is_err() {
            // Nothing is restored now: some of them may have been stopped all the same.
            if stack.start(parts).await.is_ok() {
                all.retain(|p| !parts.contains(p));
                self.state.set_fenced(&all)?;
            }
        }
        stopped.map_err(|e| {
            BackupError::Refused(format!(
                "nothing was restored, because what uses the services could not be stopped: {}",
                chain(&e)
            ))
        })
    }

    /// Makes and starts what a service runs in, unless that `runs`, and waits until the service answers.
    pub(super) async fn start_for(
        &self,
        run: &Run,
        reports: &Reports,
        service: &PlannedService,
        part: &str,
        runs: bool,
    ) -> Result<(), BackupError> {
        let Some(stack) = self.stack.as_ref() else { return Ok(()) };
        let (kind, doing) = if runs { ("wait", "waiting for") } else { ("start", "starting") };
        self.phase(&service.name, &format!("{doing} `{part}`"));
        let started = Instant::now();
        let up = async {
            if !runs {
                self.order(stack, &[part.to_owned()]).await?;
            }
            self.until_it_answers(run, stack, service, part).await
        };
        let up = tokio::select! {
            biased;
            () = run.cancel.cancelled() => Err(AdapterError::cancelled()),
            up = up => up,
        };
        let lines = if up.is_err() { stack.last_lines(part).await } else { Vec::new() };
        let about = About { part, service: Some(&service.name), kind, started };
        self.report_part(reports, about, up.as_ref().err(), lines).await;
        up.map_err(|e| match e.kind() {
            AdapterErrorKind::Cancelled => BackupError::Cancelled,
            _ => BackupError::Refused(format!("`{part}`, which it runs in: {}", chain(&e))),
        })
    }

    /// Starts applications, and waits until they work as far as they tell.
    pub(super) async fn start_applications(&self, run: &Run, reports: &Reports, parts: &[String]) {
        let Some(stack) = self.stack.as_ref().filter(|_| !parts.is_empty()) else { return };
        let started = Instant::now();
        let ordered = tokio::select! {
            biased;
            () = run.cancel.cancelled() => Err(AdapterError::cancelled()),
            ordered = self.order(stack, parts) => ordered,
        };
        let mut left: Vec<String> = Vec::new();
        for part in parts {
            let up = match &ordered {
                Ok(()) => tokio::select! {
                    biased;
                    () = run.cancel.cancelled() => Err(AdapterError::cancelled()),
                    up = self.until_it_runs(stack, part) => up,
                },
                Err(e) => Err(AdapterError::new(e.kind(), chain(e))),
            };
            let lines = if up.is_err() { stack.last_lines(part).await } else { Vec::new() };
            let about = About { part, service: None, kind: "start", started };
            self.report_part(reports, about, up.as_ref().err(), lines).await;
            // One that was started and fails is told; only one that was not is still to be started.
            if ordered.is_err() {
                left.push(part.clone());
            }
        }
        if let Err(e) = self.state.set_fenced(&left) {
            self.warn(None, chain(&e));
        }
    }

    /// Tells the stack to start something: one order at a time, as two could both make what they share.
    async fn order(&self, stack: &Arc<dyn Stack>, parts: &[String]) -> Result<(), AdapterError> {
        let _turn = self.stack_turn.lock().await;
        stack.start(parts).await
    }

    async fn until_it_answers(
        &self,
        run: &Run,
        stack: &Arc<dyn Stack>,
        service: &PlannedService,
        part: &str,
    ) -> Result<(), AdapterError> {
        if !service.adapter.capabilities().probe {
            return self.until_it_runs(stack, part).await;
        }
        let cx = self.context(run, service, self.now(), deadline(Some(service.timeout.unwrap_or(LIMIT))));
        let cx = cx.map_err(|e| AdapterError::new(AdapterErrorKind::Other, chain(&e)))?;
        let mut watch = Watch::new(stack, part);
        loop {
            let state = watch.look().await?;
            let Err(e) = service.adapter.probe(&cx, &RestoreTarget::Live).await else { return Ok(()) };
            // It answers, if not what one would like to hear: the restore tells what that means.
            let answered = matches!(
                e.kind(),
                AdapterErrorKind::PermissionDenied
                    | AdapterErrorKind::InvalidConfig
                    | AdapterErrorKind::Unsupported
            );
            if answered && state == PartState::Running {
                return Ok(());
            }
            watch.patient(&e)?;
            cx.check_alive()?;
            tokio::time::sleep(POLL).await;
        }
    }

    async fn until_it_runs(&self, stack: &Arc<dyn Stack>, part: &str) -> Result<(), AdapterError> {
        let mut watch = Watch::new(stack, part);
        loop {
            match watch.look().await? {
                PartState::Running | PartState::Stopped(Some(0)) => return Ok(()),
                state => watch.patient(&ended(state))?,
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn report_part(
        &self,
        reports: &Reports,
        about: About<'_>,
        error: Option<&AdapterError>,
        last_lines: Vec<String>,
    ) {
        let outcome = match error {
            None => Outcome::Ok,
            Some(e) if e.kind() == AdapterErrorKind::Cancelled => Outcome::Cancelled,
            Some(_) => Outcome::Failed,
        };
        let report = PartReport {
            part: about.part.to_owned(),
            service: about.service.cloned(),
            kind: about.kind.to_owned(),
            outcome,
            ms: millis(about.started),
            error: error.map(|e| chain(e)),
        };
        self.events.emit(Event::PartFinished {
            part: report.part.clone(),
            kind: report.kind.clone(),
            outcome,
            ms: report.ms,
            error: report.error.clone(),
            last_lines,
        });
        reports.add(report).await;
    }
}

/// What is reported.
struct About<'a> {
    part: &'a str,
    service: Option<&'a ServiceName>,
    kind: &'a str,
    started: Instant,
}

fn ended(state: PartState) -> AdapterError {
    AdapterError::new(AdapterErrorKind::Unavailable, format!("it {state}"))
}

/// Watches a part that starts.
struct Watch<'a> {
    stack: &'a Arc<dyn Stack>,
    part: &'a str,
    seen: Option<(PartState, Vec<String>)>,
    answer: String,
    since: Instant,
    progress: Instant,
}

impl<'a> Watch<'a> {
    fn new(stack: &'a Arc<dyn Stack>, part: &'a str) -> Self {
        let now = Instant::now();
        Self { stack, part, seen: None, answer: String::new(), since: now, progress: now }
    }

    /// How it is now.
    ///
    /// # Errors
    /// It has ended, and nothing starts it again.
    async fn look(&mut self) -> Result<PartState, AdapterError> {
        let parts = self.stack.parts().await?;
        let state = parts.iter().find(|p| p.name == self.part).map_or(PartState::Missing, |p| p.state);
        let now = (state, self.stack.last_lines(self.part).await);
        if self.seen.as_ref() != Some(&now) {
            self.seen = Some(now);
            self.progress = Instant::now();
        }
        match state {
            PartState::Stopped(Some(code)) if code != 0 && self.progress.elapsed() > ENDED => {
                Err(ended(state))
            }
            _ => Ok(state),
        }
    }

    /// Waits no longer if nothing has moved for too long.
    fn patient(&mut self, last: &AdapterError) -> Result<(), AdapterError> {
        let answer = chain(last);
        if self.answer != answer {
            self.answer = answer;
            self.progress = Instant::now();
        }
        let waited = match (self.progress.elapsed() > PATIENCE, self.since.elapsed() > LIMIT) {
            (true, _) => format!("no progress for {} s", PATIENCE.as_secs()),
            (false, true) => format!("not ready after {} s", LIMIT.as_secs()),
            (false, false) => return Ok(()),
        };
        Err(AdapterError::new(AdapterErrorKind::Timeout, format!("{waited}: {}", self.answer)))
    }
}
