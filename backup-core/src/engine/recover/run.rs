//! Executing a plan: applications wait, files that others read come first, then the services in parallel along `after`,
//! each safe from the others' failures, and applications again last.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::around::Reports;
use super::plan::Made;
use super::{PlannedRestore, RECOVERY_FORMAT, RecoveryAction, RecoveryPlan};
use crate::engine::{Engine, Inner, RestorePreview, Run, RunReport, StepReport, deadline, millis};
use crate::error::{AdapterErrorKind, BackupError, chain};
use crate::event::{Event, Outcome};
use crate::id::ServiceName;
use crate::plan::PlannedService;

/// How long a service may take for one write.
const WRITE: Duration = Duration::from_secs(30);

impl Engine {
    /// Does what a plan says. It is made anew first: if the world has changed so that something else would be done, nothing
    /// is. While it lasts, nobody else may work on its services.
    ///
    /// # Errors
    /// [`BackupError`] if nothing was begun. What fails later is in the steps: a service that cannot be restored stops no
    /// other one, and has its old data.
    pub async fn recover(
        &self,
        plan: &RecoveryPlan,
        cancel: CancellationToken,
    ) -> Result<RunReport, BackupError> {
        if plan.format != RECOVERY_FORMAT {
            return Err(BackupError::Refused(format!(
                "the plan has form {}, this version knows {RECOVERY_FORMAT}: make it anew",
                plan.format
            )));
        }
        let inner = &self.inner;
        let made = inner.make_recovery(&plan.request).await?;
        let changed = plan.differences(&made.plan);
        if !changed.is_empty() {
            return Err(BackupError::Refused(format!(
                "not as planned any more: {}: make the plan anew",
                changed.join("; ")
            )));
        }
        let Made { plan, previews } = made;
        let names: Vec<ServiceName> = plan.services.iter().map(|s| s.service.clone()).collect();
        let cancel = cancel.child_token();
        let _on_drop = cancel.clone().drop_guard();
        let run = Arc::new(inner.begin("recover", &names, cancel)?);
        // In the order of their names: two recoveries never wait for each other.
        let mut locks = Vec::new();
        let mut restored: Vec<&ServiceName> = plan.restores().map(|(s, _)| &s.service).collect();
        restored.sort();
        for name in restored {
            match inner.lock(&run, name).await {
                Ok(lock) => locks.push(lock),
                Err(e) => {
                    inner.end(&run, Outcome::Failed);
                    return Err(e);
                }
            }
        }
        let reports = Arc::new(Reports::default());
        let fenced = match &plan.stack {
            Some(stack) => inner.fence(&reports, &stack.stops).await,
            None => Ok(()),
        };
        if let Err(e) = fenced {
            inner.end(&run, Outcome::Failed);
            return Err(e);
        }
        let parallel = plan.parallel;
        let work = Arc::new(Work { plan, previews, reports });
        let each = |name| {
            let (inner, run, work) = (Arc::clone(inner), Arc::clone(&run), Arc::clone(&work));
            async move { inner.recover_one(&run, &work, &name).await }
        };
        let (first, others): (Vec<_>, Vec<_>) =
            names.iter().cloned().partition(|n| inner.is_first(n, &names));
        let mut steps = inner.for_each(&first, parallel, "restore", each).await;
        let starts = inner.applications(&work).await;
        steps.extend(match starts {
            Ok(_) => inner.for_each(&others, parallel, "restore", each).await,
            Err(ref e) => others.iter().map(|name| not_begun(name, e)).collect(),
        });
        if let Ok(starts) = starts
            && !starts.is_empty()
        {
            let bad: Vec<&str> = steps.iter().filter(|s| !s.is_ok()).map(|s| s.service.as_str()).collect();
            if bad.is_empty() {
                inner.start_applications(&run, &work.reports, &starts).await;
            } else {
                inner.warn(
                    None,
                    format!(
                        "not started, because {} did not come back: {} (`backup recover` does it when all have)",
                        bad.join(", "),
                        starts.join(", ")
                    ),
                );
            }
        }
        drop(locks);
        let parts = work.reports.take().await;
        Ok(inner.finish_with(&run, steps, parts).await)
    }
}

/// What a recovery works with.
#[derive(Debug)]
struct Work {
    plan: RecoveryPlan,
    previews: Vec<RestorePreview>,
    reports: Arc<Reports>,
}

/// The step of a service to which nothing was done because of `error`.
fn not_begun(name: &ServiceName, error: &BackupError) -> StepReport {
    let mut step = StepReport::new(name, "restore");
    step.fail(error);
    step
}

impl Inner {
    /// The applications that are to be started last. What could not be known before files were back is looked at now, and
    /// what runs of them is stopped.
    async fn applications(&self, work: &Work) -> Result<Vec<String>, BackupError> {
        let Some(around) = self.around().await else { return Ok(Vec::new()) };
        let restores = work.plan.restores().count() > 0;
        let steps = around.steps(self, work.plan.request.services.is_empty(), restores);
        if let Some(unknown) = steps.unknown {
            self.warn(None, format!("nothing of the stack is started: {unknown}"));
        }
        self.fence(&work.reports, &steps.stops).await?;
        Ok(steps.starts)
    }

    async fn recover_one(self: &Arc<Self>, run: &Run, work: &Work, name: &ServiceName) -> StepReport {
        let started = Instant::now();
        let mut step = StepReport::new(name, "restore");
        let Some(service) = work.plan.services.iter().find(|s| s.service == *name) else { return step };
        match &service.action {
            RecoveryAction::Restore(planned) => {
                step.id = Some(planned.backup.clone());
                self.events.emit(Event::ServiceStarted { service: name.clone(), id: step.id.clone() });
                if let Err(error) = self.recover_service(run, work, name, planned, &mut step).await {
                    step.fail(&error);
                }
            }
            RecoveryAction::Skip { why } => {
                step.outcome = Outcome::Skipped;
                step.notes.push(format!("left alone: {why}"));
            }
            RecoveryAction::Blocked { why } => {
                step.outcome = Outcome::Failed;
                step.error = Some(why.clone());
            }
        }
        step.ms = millis(started);
        self.announce(&step);
        step
    }

    async fn recover_service(
        self: &Arc<Self>,
        run: &Run,
        work: &Work,
        name: &ServiceName,
        planned: &PlannedRestore,
        step: &mut StepReport,
    ) -> Result<(), BackupError> {
        let service = self.service(name)?;
        let ready = work.previews.iter().find(|p| p.request.service == *name);
        let made;
        let mut started = Instant::now();
        let preview = match ready {
            Some(ready) => ready,
            None if !planned.looks_again => {
                return Err(BackupError::Refused("its restore was not planned".to_owned()));
            }
            None => {
                self.make_for(run, work, service, planned).await?;
                started = Instant::now();
                match self.plan_present(&work.plan.request, name).await? {
                    Ok(preview) => {
                        made = preview;
                        &made
                    }
                    Err(what) => {
                        step.outcome = Outcome::Skipped;
                        step.notes.push(format!("left alone: it runs by now, and holds data: {what}"));
                        return Ok(());
                    }
                }
            }
        };
        self.restore_or_older(run, &work.plan.request, preview, step).await?;
        self.take_a_write(run, service, step).await?;
        self.ask_live(run, service, step).await?;
        step.restore_ms = Some(millis(started));
        Ok(())
    }

    /// Makes and starts what a service runs in, if that does not run.
    async fn make_for(
        &self,
        run: &Run,
        work: &Work,
        service: &PlannedService,
        planned: &PlannedRestore,
    ) -> Result<(), BackupError> {
        // Its name may not have been known when the plan was made.
        let around = self.around().await.unwrap_or_default();
        match around.part_of(service) {
            Some(part) if part.state.runs() => Ok(()),
            Some(part) => self.start_for(run, &work.reports, service, &part.name).await,
            None if planned.starts.is_none() => Ok(()),
            None => Err(BackupError::Refused(around.unknown.unwrap_or_else(|| {
                let container = service.adapter.container().unwrap_or_default();
                format!("no part of the Compose project has the container `{container}`")
            }))),
        }
    }

    /// A service that takes no writes is not back, even if it has its data.
    async fn take_a_write(
        &self,
        run: &Run,
        service: &PlannedService,
        step: &mut StepReport,
    ) -> Result<(), BackupError> {
        self.phase(&service.name, "writing to it");
        let cx = self.context(run, service, self.now(), deadline(Some(WRITE)))?;
        match service.adapter.prove_writable(&cx).await {
            Ok(true) => step.notes.push("it takes writes".to_owned()),
            Ok(false) => {}
            // Our user need not be one that writes.
            Err(e) if e.kind() == AdapterErrorKind::PermissionDenied => {
                step.notes.push(format!("whether it takes writes was not tried: {}", chain(&e)));
            }
            Err(e) => {
                return Err(BackupError::Refused(format!(
                    "it has its data back, and does not take writes: {}",
                    chain(&e)
                )));
            }
        }
        Ok(())
    }
}
