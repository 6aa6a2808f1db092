//! Removing what restores kept aside, and what interrupted ones left.

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Engine, Inner, Run, RunReport, StepReport, deadline, millis};
use crate::adapter::{Leftover, StepToken};
use crate::error::{BackupError, Stage};
use crate::id::ServiceName;
use crate::state::{RestoreJournal, RestorePhase};

/// What `cleanup` would remove of one restore.
#[derive(Debug, Clone)]
pub struct CleanupItem {
    /// The restore.
    pub journal: RestoreJournal,
    /// What is left of it.
    pub leftovers: Vec<Leftover>,
}

impl Engine {
    /// What [`cleanup`](Self::cleanup) would remove now. Changes nothing.
    ///
    /// # Errors
    /// [`BackupError`].
    pub async fn plan_cleanup(&self, services: &[ServiceName]) -> Result<Vec<CleanupItem>, BackupError> {
        let inner = &self.inner;
        let mut items = Vec::new();
        for name in inner.services_or_all(services)? {
            let run = inner.quiet_run("cleanup", CancellationToken::new())?;
            for journal in inner.state.restores(&name)? {
                // It is finished first, and keeps what it puts aside.
                let leftovers =
                    if journal.is_half_done() { Vec::new() } else { inner.leftovers(&run, &journal).await? };
                items.push(CleanupItem { journal, leftovers });
            }
        }
        Ok(items)
    }

    /// Removes kept-aside data and leftovers of restores. What is live is not touched; `undo` is impossible afterwards.
    ///
    /// # Errors
    /// [`BackupError`] if nothing could be begun; everything else is in the steps.
    pub async fn cleanup(
        &self,
        services: &[ServiceName],
        cancel: CancellationToken,
    ) -> Result<RunReport, BackupError> {
        let inner = &self.inner;
        let services = inner.services_or_all(services)?;
        let run = inner.begin("cleanup", &services, cancel)?;
        let mut steps = Vec::new();
        for name in &services {
            let started = Instant::now();
            let mut step = StepReport::new(name, "cleanup");
            if let Err(error) = inner.cleanup_service(&run, name, &mut step).await {
                step.fail(&error);
            }
            step.ms = millis(started);
            inner.announce(&step);
            steps.push(step);
        }
        Ok(inner.finish(&run, steps).await)
    }
}

/// The token that says what is left of a restore.
fn token(journal: &RestoreJournal) -> StepToken {
    let latest = journal.switched.clone().or_else(|| journal.staged.clone());
    latest.unwrap_or_else(|| journal.plan.token.clone())
}

impl Inner {
    async fn leftovers(&self, run: &Run, journal: &RestoreJournal) -> Result<Vec<Leftover>, BackupError> {
        let service = self.service(&journal.service)?;
        let mut cx = self.context(run, service, self.now(), deadline(service.timeout))?;
        cx.run_id = journal.run_id.clone();
        service
            .adapter
            .leftovers(&cx, &token(journal))
            .await
            .map_err(|e| super::capture::adapter_error(service, Stage::CleanUp, e))
    }

    async fn cleanup_service(
        &self,
        run: &Run,
        name: &ServiceName,
        step: &mut StepReport,
    ) -> Result<(), BackupError> {
        let service = self.service(name)?;
        let _lock = self.lock(run, name).await?;
        let settled = self.settle_interrupted(run, service).await?;
        for journal in self.state.restores(name)? {
            // What went live only now was not shown to anybody as data that may be deleted.
            if settled.contains(&journal) {
                step.notes.push(format!(
                    "finished the interrupted restore of {}; what it put aside stays until the next cleanup",
                    journal.backup
                ));
                continue;
            }
            if !matches!(journal.phase, RestorePhase::Switched | RestorePhase::Undone) {
                continue;
            }
            let leftovers = self.leftovers(run, &journal).await?;
            let mut cx = self.context(run, service, self.now(), deadline(service.timeout))?;
            cx.run_id = journal.run_id.clone();
            service
                .adapter
                .discard(&cx, &token(&journal))
                .await
                .map_err(|e| super::capture::adapter_error(service, Stage::CleanUp, e))?;
            self.state.forget_restore(&journal)?;
            step.stored_bytes += leftovers.iter().filter_map(|l| l.bytes).sum::<u64>();
            step.notes.extend(leftovers.into_iter().map(|l| format!("removed {}", l.what)));
        }
        Ok(())
    }
}
