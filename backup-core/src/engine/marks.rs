//! Facts that people add: hold, unhold, accept.

use super::Engine;
use crate::catalog::{BackupState, FactKind, Filter};
use crate::error::BackupError;
use crate::id::BackupId;
use crate::metadata::FactBody;

impl Engine {
    /// Adds a person's word to a backup: [`FactKind::Hold`], [`FactKind::Unhold`] or [`FactKind::Accept`].
    ///
    /// # Errors
    /// [`BackupError::Refused`] if there is no such backup, or it is not one that can be accepted.
    pub async fn mark(&self, id: &BackupId, kind: FactKind, note: Option<String>) -> Result<(), BackupError> {
        let inner = &self.inner;
        let listing = inner.catalog.list(&Filter::series(&id.service, &id.interval)).await?;
        let entry = listing
            .entries
            .iter()
            .find(|e| e.id == *id)
            .ok_or_else(|| BackupError::Refused(format!("there is no backup {id}")))?;
        match (kind, &entry.state) {
            (FactKind::Accept, BackupState::Suspect) => {}
            (FactKind::Accept, state) => {
                return Err(BackupError::Refused(format!(
                    "{id} is {}: only a suspect backup is accepted",
                    state.word()
                )));
            }
            (FactKind::Verify { .. } | FactKind::Seen | FactKind::Complete | FactKind::Retain { .. }, _) => {
                return Err(BackupError::Refused("only the engine notes that".into()));
            }
            (_, BackupState::Incomplete | BackupState::Aborted | BackupState::Deleting) => {
                return Err(BackupError::Refused(format!(
                    "{id} is {}: there is nothing to keep",
                    entry.state.word()
                )));
            }
            _ => {}
        }
        let at = inner.clock.now();
        let body = FactBody {
            at,
            run_id: crate::id::RunId::generate(at),
            host: inner.host.clone(),
            note,
            findings: Vec::new(),
            duration_ms: 0,
            bytes: 0,
        };
        inner.catalog.add_fact(id, kind, &body).await?;
        Ok(())
    }
}
