//! Executing a plan: restores in parallel along `after`, each safe from the others' failures.

use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::plan::Made;
use super::{RECOVERY_FORMAT, RecoveryAction, RecoveryPlan};
use crate::engine::{Engine, Inner, RestorePreview, Run, RunReport, StepReport, millis};
use crate::error::BackupError;
use crate::event::{Event, Outcome};
use crate::id::ServiceName;

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
        let made = self.make_recovery(&plan.request).await?;
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
        let mut restored: Vec<&ServiceName> = previews.iter().map(|p| &p.request.service).collect();
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
        let (plan, previews) = (Arc::new(plan), Arc::new(previews));
        let steps = inner.for_each(&names, "restore", |name| {
            let (inner, run) = (Arc::clone(inner), Arc::clone(&run));
            let (plan, previews) = (Arc::clone(&plan), Arc::clone(&previews));
            async move {
                let preview = previews.iter().find(|p| p.request.service == name);
                inner.recover_one(&run, &plan, &name, preview).await
            }
        });
        let steps = steps.await;
        drop(locks);
        Ok(inner.finish(&run, steps).await)
    }
}

impl Inner {
    async fn recover_one(
        self: &Arc<Self>,
        run: &Run,
        plan: &RecoveryPlan,
        name: &ServiceName,
        preview: Option<&RestorePreview>,
    ) -> StepReport {
        let started = Instant::now();
        let mut step = StepReport::new(name, "restore");
        let Some(service) = plan.services.iter().find(|s| s.service == *name) else { return step };
        match (&service.action, preview) {
            (RecoveryAction::Restore(_), Some(preview)) => {
                step.id = Some(preview.entry.id.clone());
                self.events.emit(Event::ServiceStarted { service: name.clone(), id: step.id.clone() });
                if let Err(error) = self.restore_locked(run, preview, &mut step).await {
                    step.fail(&error);
                }
            }
            (RecoveryAction::Skip { why }, _) => {
                step.outcome = Outcome::Skipped;
                step.notes.push(format!("left alone: {why}"));
            }
            (RecoveryAction::Blocked { why }, _) => {
                step.outcome = Outcome::Failed;
                step.error = Some(why.clone());
            }
            (RecoveryAction::Restore(_), None) => {
                step.outcome = Outcome::Failed;
                step.error = Some("its restore was not planned".to_owned());
            }
        }
        step.ms = millis(started);
        self.announce(&step);
        step
    }
}
