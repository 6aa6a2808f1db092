//! One service's backup, from the lock to the settlement.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use chrono::TimeDelta;
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use tokio::time::Instant;

use super::back_up::UsualSizes;
use super::resume::Whose;
use super::{Inner, Run, StepReport, deadline};
use crate::catalog::Draft;
use crate::context::OpContext;
use crate::encryption::Recipients;
use crate::error::{AdapterError, AdapterErrorKind, BackupError, Stage, chain};
use crate::event::Event;
use crate::id::{Interval, ServiceName};
use crate::metadata::{ArtifactMeta, Evidence, Process, Reservation};
use crate::plan::PlannedService;
use crate::source::{Artifact, ReadOutcome, Settlement, SourceParts};

/// The budget of a service that has none: long enough for anything, short enough that a stalled run is swept some day.
const DEFAULT_BUDGET: Duration = Duration::from_secs(24 * 3600);

/// What ending a capture may take beyond the budget: a stopped service must come back even then.
pub(super) const RELEASE_GRACE: Duration = Duration::from_secs(300);

/// What reading a source gave.
pub(super) struct Read {
    pub(super) artifacts: Vec<ArtifactMeta>,
    pub(super) evidence: Evidence,
    /// For whom it was encrypted.
    pub(super) recipients: Option<Recipients>,
}

impl Inner {
    /// Backs up one service into `interval`. `step` receives what is known, also on error.
    pub(super) async fn capture(
        &self,
        run: &Run,
        name: &ServiceName,
        interval: &Interval,
        usual: &UsualSizes,
        step: &mut StepReport,
    ) -> Result<(), BackupError> {
        let service = self.service(name)?;
        let _lock = self.lock(run, name).await?;
        self.end_interruptions(run, service, Whose::Others).await;
        if let Some(open) = self.state.restores(name)?.iter().find(|j| j.is_half_done()) {
            return Err(BackupError::Refused(format!(
                "the restore of {} (run {}) was interrupted while it went live: finish it with `backup restore {name}` or `backup undo {name}`",
                open.backup, open.run_id
            )));
        }
        let mut budget = self.plan.timeout(name, interval);
        if let Some(left) = run.until.map(|until| until.saturating_duration_since(Instant::now())) {
            budget = Some(budget.map_or(left, |budget| budget.min(left)));
        }
        let until = deadline(budget);
        let mut draft = if Self::does_without_store(run, service) {
            match self.reserve_soon(run, service, interval, budget).await {
                Ok(draft) => draft,
                Err(e) => return Err(self.capture_unrecorded(run, service, interval, until, e).await),
            }
        } else {
            self.reserve(run, name, interval, budget).await?
        };
        step.id = Some(draft.id().clone());
        self.events.emit(Event::ServiceStarted { service: name.clone(), id: Some(draft.id().clone()) });
        let started = Instant::now();
        let cx = match self.context(run, service, draft.id().timestamp, until) {
            Ok(cx) => OpContext { interval: Some(interval.clone()), ..cx },
            Err(e) => return Err(self.abandon(draft, e).await.1),
        };

        // `open` promises that a failed or dropped call leaves the service as it was.
        let opened = self.bounded(&cx, budget, async {
            service.adapter.open(&cx).await.map_err(|e| adapter_error(service, Stage::Open, e))
        });
        let source = match opened.await {
            Ok(source) => source.into_parts(),
            Err(e) => {
                // A dropped call cannot wait for an undo.
                self.end_interruptions(run, service, Whose::Own).await;
                return Err(self.abandon(draft, e).await.1);
            }
        };
        let SourceParts { mut artifacts, release, settle } = source;

        // From here on a panic is an error like any other: what was begun in the service is ended.
        let read =
            caught(self.bounded(&cx, budget, self.read(&cx, service, &draft, usual, &mut artifacts))).await;
        drop(artifacts);
        let outcome = match &read {
            Ok(_) => ReadOutcome::Complete,
            Err(BackupError::Cancelled) => ReadOutcome::Cancelled,
            Err(_) => ReadOutcome::Failed,
        };
        let released = hook(service, Stage::Release, || release(outcome)).await;
        self.end_interruptions(run, service, Whose::Own).await;
        let committed = match (read, released) {
            (Ok(read), Ok(report)) => {
                caught(self.publish(run, service, &mut draft, read, report, started, step)).await
            }
            (Err(e), Ok(_)) => Err(e),
            (Ok(_), Err(e)) => Err(e),
            (Err(first), Err(second)) => {
                // The first error tells why; the second is not lost.
                self.warn(Some(name), chain(&second));
                Err(first)
            }
        };
        let (settlement, result) = match committed {
            Ok(true) => (Settlement::Committed(draft.id().clone()), Ok(())),
            Ok(false) => {
                let (settlement, removed) = draft.discard().await;
                if let Err(e) = removed {
                    self.warn(Some(name), chain(&e));
                }
                (settlement, Ok(()))
            }
            Err(e) => match self.abandon(draft, e).await {
                // Only the answer to the commit was lost.
                (settlement @ Settlement::Committed(_), _) => (settlement, Ok(())),
                (settlement, e) => (settlement, Err(e)),
            },
        };
        if let Settlement::Unknown(id) = &settlement {
            step.notes.push(format!("{id} may be committed: `backup list` tells"));
        }
        if let Some(settle) = settle {
            if matches!(settlement, Settlement::Unknown(_)) {
                run.guard.leave(name);
            }
            if let Err(trouble) = hook(service, Stage::Settle, || settle(settlement)).await {
                let note = chain(&trouble);
                self.warn(Some(name), note.clone());
                step.notes.push(note);
            }
        }
        result
    }

    pub(super) async fn reserve(
        &self,
        run: &Run,
        name: &ServiceName,
        interval: &Interval,
        budget: Option<Duration>,
    ) -> Result<Draft, BackupError> {
        let now = self.clock.now();
        let until = budget.unwrap_or(DEFAULT_BUDGET) + 2 * RELEASE_GRACE;
        let reservation = Reservation {
            run_id: run.id.clone(),
            host: self.host.clone(),
            process: Process::this(),
            started_at: now,
            commit_deadline: now + TimeDelta::from_std(until).unwrap_or(TimeDelta::days(1)),
            tool: self.tool.clone(),
            copied_from: None,
        };
        self.catalog.reserve(name, interval, reservation).await
    }

    /// Removes an unfinished backup; returns what became of it, and the error that is to be reported.
    async fn abandon(&self, draft: Draft, error: BackupError) -> (Settlement, BackupError) {
        let service = draft.id().service.clone();
        let (settlement, removed) = draft.discard().await;
        if let Err(e) = removed {
            self.warn(Some(&service), format!("{} (a later run will sweep it)", chain(&e)));
        }
        (settlement, error)
    }

    /// Runs `work` until it ends, the run is cancelled, or the budget is used up.
    pub(super) async fn bounded<T>(
        &self,
        cx: &OpContext,
        budget: Option<Duration>,
        work: impl Future<Output = Result<T, BackupError>>,
    ) -> Result<T, BackupError> {
        let out_of_time = async {
            match cx.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let result = tokio::select! {
            biased;
            () = cx.cancel.cancelled() => Err(BackupError::Cancelled),
            () = out_of_time => Err(BackupError::Timeout {
                service: cx.service.clone(),
                timeout: budget.unwrap_or_default(),
            }),
            result = work => result,
        };
        // An adapter that noticed the cancellation itself says so in its own words.
        match result {
            Err(BackupError::Adapter { source, .. }) if source.kind() == AdapterErrorKind::Cancelled => {
                Err(BackupError::Cancelled)
            }
            other => other,
        }
    }

    /// Stores every artifact of a source.
    async fn read(
        &self,
        cx: &OpContext,
        service: &PlannedService,
        draft: &Draft,
        usual: &UsualSizes,
        artifacts: &mut (impl futures::Stream<Item = Result<Artifact, AdapterError>> + Unpin + Send),
    ) -> Result<Read, BackupError> {
        let recipients = self.recipients(service).await?;
        let mut read = Read { artifacts: Vec::new(), evidence: Evidence::default(), recipients };
        while let Some(artifact) =
            artifacts.try_next().await.map_err(|e| adapter_error(service, Stage::Read, e))?
        {
            if read.artifacts.iter().any(|a| a.name == artifact.name) {
                return Err(BackupError::Refused(format!(
                    "adapter `{}` names two artifacts `{}`",
                    service.adapter.kind(),
                    artifact.name
                )));
            }
            let sealed = read.recipients.clone();
            let (meta, evidence) = self.store_artifact(cx, service, draft, usual, artifact, sealed).await?;
            read.artifacts.push(meta);
            read.evidence.merge(evidence);
        }
        if read.artifacts.is_empty() {
            return Err(BackupError::Refused(format!(
                "adapter `{}` produced nothing",
                service.adapter.kind()
            )));
        }
        Ok(read)
    }
}

/// Runs one of the hooks that end a capture.
pub(super) async fn hook<T>(
    service: &PlannedService,
    stage: Stage,
    hook: impl FnOnce() -> BoxFuture<'static, Result<T, AdapterError>>,
) -> Result<T, BackupError> {
    let ended = async {
        match tokio::time::timeout(RELEASE_GRACE, hook()).await {
            Ok(result) => result.map_err(|e| adapter_error(service, stage, e)),
            Err(_) => Err(BackupError::Timeout { service: service.name.clone(), timeout: RELEASE_GRACE }),
        }
    };
    caught(ended).await
}

/// `work`, with a panic in it as an error.
pub(super) async fn caught<T>(work: impl Future<Output = Result<T, BackupError>>) -> Result<T, BackupError> {
    // Nothing that `work` changed is trusted afterwards: what it did not return is only discarded.
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Err(BackupError::Refused(format!("the program failed inside: {}", text.unwrap_or("a panic"))))
    })
}

pub(super) fn adapter_error(service: &PlannedService, stage: Stage, source: AdapterError) -> BackupError {
    BackupError::Adapter { service: service.name.clone(), stage, source }
}
