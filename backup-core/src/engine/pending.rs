//! Backups of which a part is kept elsewhere: complete, on their way, or lost.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::capture::adapter_error;
use super::{Engine, Inner, Run, deadline};
use crate::adapter::ExternalState;
use crate::catalog::{BackupState, FactKind, Filter, Listing, VerifyLevel};
use crate::context::OpContext;
use crate::error::{BackupError, Stage, chain};
use crate::id::{BackupId, RunId, ServiceName};
use crate::metadata::{Metadata, Status};
use crate::plan::PlannedService;

/// How long an adapter may take to tell how pending backups stand: other services wait to be backed up.
const LOOK: Duration = Duration::from_secs(20);

/// A backup that was pending, and how it stands now.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PendingBackup {
    /// The backup.
    pub id: BackupId,
    /// What its adapter says.
    pub state: ExternalState,
}

impl Engine {
    /// Asks after the backups that are listed as pending, and notes beside each that it is complete, or that it is lost.
    ///
    /// Runs and verifications do it by themselves, each for its own services.
    ///
    /// # Errors
    /// [`BackupError::Config`] for an unknown service; [`BackupError::Store`]; what keeps an adapter from telling.
    pub async fn settle_pending(&self, services: &[ServiceName]) -> Result<Vec<PendingBackup>, BackupError> {
        let inner = &self.inner;
        let run = inner.quiet_run("settle", CancellationToken::new())?;
        let mut all = Vec::new();
        for name in inner.services_or_all(services)? {
            let listing = inner.catalog.list(&Filter::service(&name)).await?;
            all.extend(inner.settle_pending(&run, &name, &listing).await?);
        }
        Ok(all)
    }
}

impl Inner {
    pub(super) async fn settle_pending(
        &self,
        run: &Run,
        name: &ServiceName,
        listing: &Listing,
    ) -> Result<Vec<PendingBackup>, BackupError> {
        let service = self.service(name)?;
        let mut settled = Vec::new();
        for entry in listing.of(name).filter(|e| e.state == BackupState::Pending) {
            let metadata = self.catalog.metadata(&entry.id).await?;
            // Another kind knows nothing about it.
            if metadata.adapter != service.adapter.kind() {
                continue;
            }
            let cx = self.context(run, service, entry.id.timestamp, deadline(Some(LOOK)))?;
            let state = self.external_state(&cx, service, &metadata).await?;
            let mut body = self.fact(run, self.clock.now());
            let kind = match &state {
                ExternalState::Pending(_) => None,
                ExternalState::Complete => Some(FactKind::Complete),
                ExternalState::Lost(what) => {
                    self.warn(Some(name), format!("{} is lost: {what}", entry.id));
                    body.findings = vec![what.clone()];
                    Some(FactKind::Verify { level: VerifyLevel::Stored, ok: false })
                }
            };
            if let Some(kind) = kind {
                self.catalog.add_fact(&entry.id, kind, &body).await?;
            }
            settled.push(PendingBackup { id: entry.id.clone(), state });
        }
        Ok(settled)
    }

    /// That what a backup keeps elsewhere is all there. What had been pending is noted as complete.
    ///
    /// # Errors
    /// [`BackupError::Damaged`] if it is not, [`BackupError::Refused`] if it is not yet.
    pub(super) async fn check_external(
        &self,
        run: &Run,
        cx: &OpContext,
        service: &PlannedService,
        metadata: &Metadata,
        pending: bool,
    ) -> Result<(), BackupError> {
        let id = metadata.id();
        let Some(external) = metadata.artifacts.iter().find_map(|a| a.external.as_ref()) else {
            return Ok(());
        };
        if metadata.adapter != service.adapter.kind() {
            return Err(BackupError::Refused(format!(
                "{id} keeps data elsewhere, which only the adapter `{}` knows",
                metadata.adapter
            )));
        }
        match self.external_state(cx, service, metadata).await? {
            ExternalState::Complete if pending && metadata.status == Status::Pending => {
                let body = self.fact(run, self.clock.now());
                self.catalog.add_fact(&id, FactKind::Complete, &body).await?;
                Ok(())
            }
            ExternalState::Complete => Ok(()),
            ExternalState::Pending(how_far) => Err(BackupError::Refused(format!(
                "{id} is pending: what it keeps elsewhere is not complete yet ({how_far})"
            ))),
            ExternalState::Lost(what) => Err(BackupError::Damaged { id, file: external.kind.clone(), what }),
        }
    }

    async fn external_state(
        &self,
        cx: &OpContext,
        service: &PlannedService,
        metadata: &Metadata,
    ) -> Result<ExternalState, BackupError> {
        let state = cx.within(service.adapter.external_state(cx, metadata)).await;
        state.and_then(|s| s).map_err(|e| adapter_error(service, Stage::Probe, e))
    }

    /// Those of `dead` that have certainly committed no backup of the service: in doubt none.
    pub(super) async fn without_commit(
        &self,
        name: &ServiceName,
        dead: &[RunId],
    ) -> Result<Vec<RunId>, BackupError> {
        let listing = self.catalog.list_uncached(&Filter::service(name)).await?;
        if let Some(error) = listing.errors.first() {
            self.warn(Some(name), format!("what interrupted runs made elsewhere stays for now: {error}"));
            return Ok(Vec::new());
        }
        let mut innocent = dead.to_vec();
        for entry in listing.entries {
            if matches!(entry.state, BackupState::Legacy | BackupState::Aborted) {
                continue;
            }
            // Which run made it stands in what reserved its directory.
            match self.catalog.reservation(&entry.id).await {
                Ok(Some(reservation)) => innocent.retain(|run| *run != reservation.run_id),
                Ok(None) if entry.state == BackupState::Deleting => {}
                Ok(None) => return Ok(Vec::new()),
                Err(e) => {
                    self.warn(Some(name), chain(&e));
                    return Ok(Vec::new());
                }
            }
        }
        Ok(innocent)
    }
}
