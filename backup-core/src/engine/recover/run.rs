//! Executing a plan: applications wait, files that others read come first, then the services in parallel along `after`,
//! each safe from the others' failures, and applications again last.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::around::{PATIENCE, POLL, Reports};
use super::plan::Made;
use super::{PlannedRestore, RECOVERY_FORMAT, RecoveryAction, RecoveryPlan};
use crate::catalog::Pin;
use crate::engine::{Engine, Inner, RestorePreview, Run, RunReport, StepReport, deadline, millis};
use crate::error::{AdapterErrorKind, BackupError, chain};
use crate::event::{Event, Outcome};
use crate::id::ServiceName;
use crate::plan::PlannedService;
use crate::state::ServiceLock;

/// How long others leave the backups alone that a recovery reads, should it die.
const READING: Duration = Duration::from_secs(24 * 3600);

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
        let names: Vec<ServiceName> = plan.services.iter().map(|s| s.service.clone()).collect();
        let cancel = cancel.child_token();
        let _on_drop = cancel.clone().drop_guard();
        let run = Arc::new(inner.begin("recover", &names, cancel)?);
        let begun = inner.begin_recovery(&run, plan).await;
        let Begun { made: Made { plan, previews }, locks, pins } = match begun {
            Ok(begun) => begun,
            Err(e) => {
                inner.end(&run, Outcome::Failed);
                return Err(e);
            }
        };
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
        inner.release(pins).await;
        let parts = work.reports.take().await;
        Ok(inner.finish_with(&run, steps, parts).await)
    }
}

/// A recovery that nobody gets in the way of.
struct Begun {
    made: Made,
    locks: Vec<ServiceLock>,
    pins: Vec<Pin>,
}

impl Inner {
    /// Locks the services of a plan, and makes it again: who had to wait for somebody else's recovery finds its work done. What
    /// it needs of the store is kept from being pruned, by whichever host.
    async fn begin_recovery(&self, run: &Run, plan: &RecoveryPlan) -> Result<Begun, BackupError> {
        // In the order of their names: two recoveries never wait for each other.
        let mut locks = Vec::new();
        let mut restored: Vec<&ServiceName> = plan.restores().map(|(s, _)| &s.service).collect();
        restored.sort();
        for name in restored {
            locks.push(self.lock(run, name).await?);
        }
        let made = self.make_recovery(&plan.request).await?;
        let changed = plan.differences(&made.plan);
        if !changed.is_empty() {
            return Err(BackupError::Refused(format!(
                "not as planned any more: {}: make the plan anew",
                changed.join("; ")
            )));
        }
        let mut pins = Vec::new();
        for (service, planned) in made.plan.restores() {
            let (name, ids) = (&service.service, vec![planned.backup.clone()]);
            match self.catalog.pin(name, ids, &run.id, &self.host, READING).await {
                Ok(pin) => pins.push(pin),
                // A store that takes nothing, being full or locked, can be restored from.
                Err(e) => self.warn(Some(name), format!("{}: see that nobody prunes meanwhile", chain(&e))),
            }
        }
        Ok(Begun { made, locks, pins })
    }

    async fn release(&self, pins: Vec<Pin>) {
        for pin in pins {
            if let Err(e) = pin.release().await {
                self.warn(None, chain(&e));
            }
        }
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

    /// Makes and starts what a service runs in, if that does not run; waits until it answers.
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
            Some(part) => {
                let runs = part.state.runs();
                self.start_for(run, &work.reports, service, &part.name, runs).await
            }
            None if planned.starts.is_none() => self.until_it_tells(run, service).await,
            None => Err(BackupError::Refused(around.unknown.unwrap_or_else(|| {
                let container = service.adapter.container().unwrap_or_default();
                format!("no part of the Compose project has the container `{container}`")
            }))),
        }
    }

    /// Waits for one that nothing is known of but what it says itself; whatever it says is for the caller.
    async fn until_it_tells(&self, run: &Run, service: &PlannedService) -> Result<(), BackupError> {
        let cx = self.context(run, service, self.now(), deadline(Some(PATIENCE)))?;
        while service.adapter.capabilities().probe {
            let told = cx.within(service.adapter.data(&cx)).await.and_then(|found| found);
            match told {
                Err(e) if e.kind() == AdapterErrorKind::Unavailable => {}
                _ => break,
            }
            if cx.check_alive().is_err() {
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        match run.cancel.is_cancelled() {
            true => Err(BackupError::Cancelled),
            false => Ok(()),
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
