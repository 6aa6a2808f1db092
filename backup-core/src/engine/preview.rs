//! What a restore would do: which backup, onto what, with which room. Nothing is changed.

use std::path::{Component, Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::keys::Need;
use super::room::Room;
use super::select::Choice;
use super::{Engine, Inner, Selector, deadline};
use crate::adapter::{RestorePlan, RestoreTarget};
use crate::catalog::{BackupState, Entry};
use crate::error::{BackupError, Stage};
use crate::id::{ArtifactName, Interval, ServiceName, Timestamp};
use crate::metadata::Metadata;
use crate::plan::PlannedService;

/// What to restore.
#[derive(Debug, Clone)]
pub struct RestoreRequest {
    /// The service.
    pub service: ServiceName,
    /// Which backup.
    pub selector: Selector,
    /// Only from this interval.
    pub interval: Option<Interval>,
    /// Only these artifacts of the backup; empty: all of it.
    pub only: Vec<ArtifactName>,
    /// Elsewhere, into this directory; `None`: over the live service, which is kept aside.
    pub to: Option<PathBuf>,
    /// Go on where a doubt would stop it: a target in use, a backup that is not good.
    pub force: bool,
    /// Ends it early. Once it went live, it is completed.
    pub cancel: CancellationToken,
}

impl RestoreRequest {
    /// The newest good backup of `service`, over the live service.
    #[must_use]
    pub fn new(service: ServiceName) -> Self {
        let (selector, cancel) = (Selector::Newest, CancellationToken::new());
        Self { service, selector, interval: None, only: Vec::new(), to: None, force: false, cancel }
    }
}

/// What a restore would do. Nothing was changed yet.
#[derive(Debug, Clone)]
pub struct RestorePreview {
    /// The request.
    pub request: RestoreRequest,
    /// The backup that was chosen.
    pub entry: Entry,
    /// Its metadata.
    pub metadata: Metadata,
    /// Newer backups that were not taken, and why, one line each.
    pub passed_over: Vec<String>,
    /// The adapter's plan.
    pub plan: RestorePlan,
    /// What of its space is there.
    pub room: Vec<Room>,
    /// Names what will be kept aside, unless another restore takes the name before.
    pub at: Timestamp,
}

impl Engine {
    /// Chooses the backup and finds out what restoring it would do. Changes nothing.
    ///
    /// # Errors
    /// [`BackupError::Refused`] if there is no such backup or not enough room; the adapter's doubts.
    pub async fn plan_restore(&self, request: &RestoreRequest) -> Result<RestorePreview, BackupError> {
        let chosen = self.inner.choose_restorable(request).await?;
        self.inner.preview(request, chosen).await
    }
}

/// A backup that may be restored.
#[derive(Debug, Clone)]
pub(super) struct Chosen {
    pub(super) entry: Entry,
    pub(super) metadata: Metadata,
    pub(super) passed_over: Vec<String>,
}

impl Inner {
    /// Chooses the backup, as far as that needs no look at the service.
    pub(super) async fn choose_restorable(&self, request: &RestoreRequest) -> Result<Chosen, BackupError> {
        let service = self.service(&request.service)?;
        let Choice { entry, passed_over } =
            self.choose(&request.service, request.interval.as_ref(), &request.selector).await?;
        let acceptable = match &entry.state {
            BackupState::Good => true,
            BackupState::Suspect | BackupState::Damaged { .. } => request.force,
            // Never chosen, only named.
            BackupState::Legacy => true,
            _ => false,
        };
        if !acceptable {
            let hint = match entry.state {
                BackupState::Suspect | BackupState::Damaged { .. } => {
                    ": use --force to restore it all the same"
                }
                _ => "",
            };
            return Err(BackupError::Refused(format!("{} is {}{hint}", entry.id, entry.state.word())));
        }
        let metadata = match entry.state {
            BackupState::Legacy => {
                let cancel = request.cancel.child_token();
                self.plan_legacy(service, &entry.id, request.force, cancel).await?
            }
            _ => self.opened(self.catalog.metadata(&entry.id).await?, Need::Data).await?,
        };
        if metadata.adapter != service.adapter.kind() {
            return Err(BackupError::Refused(format!(
                "{} was made by adapter `{}`, but service `{}` is of kind `{}` now",
                entry.id,
                metadata.adapter,
                request.service,
                service.adapter.kind()
            )));
        }
        let metadata = part(service, metadata, &request.only)?;
        Ok(Chosen { entry, metadata, passed_over })
    }

    /// Finds out what restoring a chosen backup would do.
    pub(super) async fn preview(
        &self,
        request: &RestoreRequest,
        Chosen { entry, metadata, passed_over }: Chosen,
    ) -> Result<RestorePreview, BackupError> {
        let service = self.service(&request.service)?;
        let target = match &request.to {
            Some(dir) => RestoreTarget::Dir(dir.clone()),
            None => RestoreTarget::Live,
        };
        if let Some(dir) = &request.to {
            self.refuse_own(dir)?;
        }
        let run = self.quiet_run("restore", request.cancel.child_token())?;
        let at = Self::restore_moment(self.now(), &self.state.restores(&request.service)?);
        let mut cx = self.context(&run, service, at, deadline(service.timeout))?;
        cx.force = request.force;
        let mut plan = service
            .adapter
            .plan_restore(&cx, &metadata, &target)
            .await
            .map_err(|e| super::capture::adapter_error(service, Stage::PlanRestore, e))?;
        // The spool of this look is gone after it; that of the restore lies beside it.
        for need in plan.space.iter_mut().filter(|need| need.path.starts_with(&cx.spool)) {
            self.state.root().clone_into(&mut need.path);
        }
        let room = self.check_space(&plan.space)?;
        Ok(RestorePreview { request: request.clone(), entry, metadata, passed_over, plan, room, at })
    }

    /// Refuses to restore into a store, where the result would look like a service, or into the state directory.
    fn refuse_own(&self, dir: &Path) -> Result<(), BackupError> {
        let failed = |source| BackupError::State { what: format!("resolving `{}`", dir.display()), source };
        let real = resolve(dir).map_err(failed)?;
        let own = self
            .excluded()
            .into_iter()
            .find(|own| real.starts_with(own.canonicalize().as_deref().unwrap_or(own)));
        match own {
            None => Ok(()),
            Some(own) => Err(BackupError::Refused(format!(
                "`{}` lies in `{}`, which is this program's own: restore elsewhere",
                dir.display(),
                own.display()
            ))),
        }
    }
}

/// What of a backup is to be restored.
pub(super) fn part(
    service: &PlannedService,
    backup: Metadata,
    only: &[ArtifactName],
) -> Result<Metadata, BackupError> {
    if only.is_empty() {
        return Ok(backup);
    }
    let part = service.adapter.part(&backup, only);
    part.map_err(|e| super::capture::adapter_error(service, Stage::PlanRestore, e))
}

/// `path` without links and dots, as it will be once what is missing of it was made.
fn resolve(path: &Path) -> std::io::Result<PathBuf> {
    let mut real = PathBuf::new();
    for part in std::path::absolute(path)?.components() {
        match part {
            // Above a resolved path, or one that is to be made, lies what its name says.
            Component::ParentDir => drop(real.pop()),
            part => {
                real.push(part);
                if let Ok(there) = real.canonicalize() {
                    real = there;
                }
            }
        }
    }
    Ok(real)
}
