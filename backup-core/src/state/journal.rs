//! The journal of a restore: written before each step, so that a killed one can be resumed, undone or cleaned up.

use std::fs;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{StateDir, make_dir, state_error, write_atomically};
use crate::adapter::{RestorePlan, StepToken};
use crate::error::BackupError;
use crate::id::{BackupId, RunId, ServiceName, Timestamp};

/// How far a restore got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestorePhase {
    /// Preparing the data beside the target.
    Staging,
    /// Prepared, not live.
    Staged,
    /// Going live: the service must not be captured now.
    Switching,
    /// Live; the old data is kept aside.
    Switched,
    /// The old data is being put back.
    Undoing,
    /// The old data is live again; the restored data is kept aside.
    Undone,
}

/// One restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreJournal {
    /// The run that did it.
    pub run_id: RunId,
    /// The service that was restored.
    pub service: ServiceName,
    /// The backup that was restored.
    pub backup: BackupId,
    /// The adapter's kind.
    pub adapter: String,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it went live.
    pub switched_at: Option<DateTime<Utc>>,
    /// Names what an undo keeps aside: a repeated one must use the same names.
    #[serde(default)]
    pub undo_at: Option<Timestamp>,
    /// The directories to restore into that were missing, the deepest first: they go again, if nothing comes of it.
    #[serde(default)]
    pub makes: Vec<PathBuf>,
    /// How far it got.
    pub phase: RestorePhase,
    /// What was planned.
    pub plan: RestorePlan,
    /// What `stage` gave.
    pub staged: Option<StepToken>,
    /// What `switch` gave, or `undo`.
    pub switched: Option<StepToken>,
}

impl RestoreJournal {
    /// Whether the restore was cut short while it, or its undo, went live: until that is finished, nobody knows which
    /// data the service has.
    #[must_use]
    pub fn is_half_done(&self) -> bool {
        matches!(self.phase, RestorePhase::Switching | RestorePhase::Undoing)
    }
}

impl StateDir {
    fn journal_path(&self, service: &ServiceName, run: &RunId) -> PathBuf {
        self.root.join("restores").join(service.as_str()).join(format!("{run}.json"))
    }

    /// Writes the journal durably, before the step that it announces.
    ///
    /// # Errors
    /// [`BackupError::State`].
    pub fn write_restore(&self, journal: &RestoreJournal) -> Result<(), BackupError> {
        let path = self.journal_path(&journal.service, &journal.run_id);
        make_dir(&self.root.join("restores").join(journal.service.as_str()))?;
        let text =
            serde_json::to_vec_pretty(journal).map_err(|e| state_error("describing a restore")(e.into()))?;
        write_atomically(&path, &text)
    }

    /// The journals of a service's restores, oldest first.
    ///
    /// # Errors
    /// [`BackupError::State`], also for a journal that is not readable: guessing would be worse.
    pub fn restores(&self, service: &ServiceName) -> Result<Vec<RestoreJournal>, BackupError> {
        let dir = self.root.join("restores").join(service.as_str());
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(state_error(format!("listing `{}`", dir.display()))(e)),
        };
        let mut journals = Vec::new();
        for entry in entries {
            let path = entry.map_err(state_error(format!("listing `{}`", dir.display())))?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let wrap = || state_error(format!("reading `{}`", path.display()));
            let text = fs::read(&path).map_err(wrap())?;
            journals.push(serde_json::from_slice::<RestoreJournal>(&text).map_err(|e| wrap()(e.into()))?);
        }
        journals.sort_by(|a, b| (a.started_at, &a.run_id).cmp(&(b.started_at, &b.run_id)));
        Ok(journals)
    }

    /// Forgets a restore: nothing of it is left to undo or to remove.
    ///
    /// # Errors
    /// [`BackupError::State`].
    pub fn forget_restore(&self, journal: &RestoreJournal) -> Result<(), BackupError> {
        let path = self.journal_path(&journal.service, &journal.run_id);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(state_error(format!("removing `{}`", path.display()))(e))
            }
            _ => Ok(()),
        }
    }
}
