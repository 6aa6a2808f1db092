//! When the backup that was planned turns out to be damaged: the next older one, rather than nothing.

use std::sync::Arc;

use super::RecoveryRequest;
use crate::catalog::{BackupState, Entry, Filter, VerifyLevel};
use crate::engine::preview::Chosen;
use crate::engine::{Inner, RestorePreview, RestoreRequest, Run, Selector, StepReport};
use crate::error::{AdapterErrorKind, BackupError, Stage, chain};
use crate::event::Outcome;
use crate::id::{BackupId, ServiceName, Timestamp};

/// How many damaged backups of a service are passed over before a person has to look.
const MOST: usize = 5;

impl Inner {
    /// Restores what was planned; if that is damaged, what comes before it. The caller holds the service's lock.
    ///
    /// A restore reads everything before it touches what is live, so that nothing has happened when it finds damage. That
    /// is looked into once more by itself, and noted as a verification: the next recovery knows it beforehand.
    pub(super) async fn restore_or_older(
        self: &Arc<Self>,
        run: &Run,
        request: &RecoveryRequest,
        planned: &RestorePreview,
        step: &mut StepReport,
    ) -> Result<(), BackupError> {
        let name = &planned.request.service;
        let mut preview = planned.clone();
        let mut passed: Vec<BackupId> = Vec::new();
        loop {
            let Err(error) = self.restore_locked(run, &preview, step).await else { return Ok(()) };
            if !is_damage(&error) || passed.len() == MOST || run.cancel.is_cancelled() {
                return Err(error);
            }
            let Some(why) = self.damage_of(run, name, &preview.entry).await else { return Err(error) };
            let damaged = preview.entry.id.clone();
            passed.push(damaged.clone());
            let older = async {
                let Some(older) = self.older(request.at, name, &passed).await? else { return Ok(None) };
                let chosen = self.choose_readable(request.at, &older).await?;
                self.preview(&older, chosen).await.map(Some)
            };
            preview = match older.await {
                Ok(Some(older)) => older,
                Ok(None) => return Err(error),
                Err(e) => {
                    self.warn(Some(name), format!("no older backup could be taken: {}", chain(&e)));
                    return Err(error);
                }
            };
            let line = format!("{damaged} is damaged ({why}): taken is {} instead", preview.entry.id);
            self.warn(Some(name), line.clone());
            step.notes.push(line);
            step.id = Some(preview.entry.id.clone());
        }
    }

    /// What is wrong with a backup, if something is.
    async fn damage_of(self: &Arc<Self>, run: &Run, name: &ServiceName, entry: &Entry) -> Option<String> {
        let mut step = StepReport::new(name, "verify-content");
        let level = VerifyLevel::Content;
        let examined = self.examine(run, name, entry, level, &mut step).await;
        step.fail(&examined.err()?);
        if step.outcome != Outcome::Damaged {
            return None;
        }
        self.note_verdict(run, entry, level, &mut step).await;
        step.error
    }

    /// The backup of a request; if that is one of the old scripts, the newest of them that can be read at all: nothing is
    /// known of them before.
    pub(super) async fn choose_readable(
        &self,
        at: Option<Timestamp>,
        restore: &RestoreRequest,
    ) -> Result<Chosen, BackupError> {
        let mut request = restore.clone();
        let (mut passed, mut lines, mut first) = (Vec::new(), Vec::new(), None);
        loop {
            let error = match self.choose_restorable(&request).await {
                Ok(mut chosen) => {
                    lines.append(&mut chosen.passed_over);
                    return Ok(Chosen { passed_over: lines, ..chosen });
                }
                Err(error) => error,
            };
            let about_it = matches!(error, BackupError::Damaged { .. } | BackupError::Refused(_));
            let Selector::Exactly(id) = &request.selector else { return Err(error) };
            passed.push(id.clone());
            lines.push(chain(&error));
            let first = &*first.get_or_insert(error);
            let older = match about_it && passed.len() < MOST {
                true => self.older(at, &restore.service, &passed).await?,
                false => None,
            };
            match older {
                Some(older) => request = older,
                None => return Err(BackupError::Refused(chain(first))),
            }
        }
    }

    /// The newest backup that is older than those `passed`.
    async fn older(
        &self,
        at: Option<Timestamp>,
        name: &ServiceName,
        passed: &[BackupId],
    ) -> Result<Option<RestoreRequest>, BackupError> {
        let listing = self.catalog.list(&Filter::service(name)).await?;
        let limit = passed.iter().map(|id| id.timestamp).chain(at).min();
        let all: Vec<&Entry> = listing
            .of(name)
            .filter(|e| limit.is_none_or(|limit| e.id.timestamp <= limit) && !passed.contains(&e.id))
            .collect();
        // What is sound ranks before what the old scripts took of a running service.
        let next =
            all.iter().find(|e| e.is_good()).or_else(|| all.iter().find(|e| e.state == BackupState::Legacy));
        Ok(next.map(|e| RestoreRequest {
            selector: Selector::Exactly(e.id.clone()),
            ..RestoreRequest::new(name.clone())
        }))
    }
}

/// Whether a restore ended before anything was live because of what it had read.
fn is_damage(error: &BackupError) -> bool {
    match error {
        BackupError::Adapter { stage: Stage::StageRestore, source, .. } => {
            source.kind() == AdapterErrorKind::Corrupt
        }
        BackupError::Damaged { .. } => true,
        _ => false,
    }
}
