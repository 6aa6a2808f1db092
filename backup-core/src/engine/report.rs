//! Reports: what a run did, for `.runs/`, for exit codes and for people.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Inner, Run, millis};
use crate::error::chain;
use crate::event::{Event, Outcome};
use crate::id::{BackupId, RunId, ServiceName, StoreName};

/// What one verb did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunReport {
    /// The run.
    pub run_id: RunId,
    /// The verb.
    pub verb: String,
    /// The host.
    pub host: String,
    /// Name and version of the program.
    pub tool: String,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
    /// What it did, in the order in which it ended.
    pub steps: Vec<StepReport>,
    /// What it did to the parts of the host's [`Stack`](crate::Stack), in that order, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartReport>,
}

/// What was done to a part of the host's stack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartReport {
    /// The part.
    pub part: String,
    /// The service that runs in it; `None` for applications.
    #[serde(default)]
    pub service: Option<ServiceName>,
    /// What was done: `start`, `wait` for one that ran already, `stop`.
    pub kind: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Duration in ms: of a start until it works.
    pub ms: u64,
    /// The error's chain, one line.
    pub error: Option<String>,
}

/// What was done to one backup or service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepReport {
    /// The service.
    pub service: ServiceName,
    /// What was done: `back-up`, `verify-stored`, `restore`, `prune`, …
    pub kind: String,
    /// The backup.
    pub id: Option<BackupId>,
    /// How it ended.
    pub outcome: Outcome,
    /// Bytes before compression.
    pub plain_bytes: u64,
    /// Bytes as stored.
    pub stored_bytes: u64,
    /// Duration in ms.
    pub ms: u64,
    /// Of a recovery: what the restore alone took of it, without what had to be started before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_ms: Option<u64>,
    /// What of that took how long, where that was measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<PhaseReport>,
    /// The error's chain, one line.
    pub error: Option<String>,
    /// What to do about it, if its cause knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// What an operator should know, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Of a copy to another store: what of it is there now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copies: Option<CopyReport>,
}

/// What was copied of one service to one store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyReport {
    /// Where to.
    pub to: StoreName,
    /// What was copied, newest first.
    pub copied: Vec<BackupId>,
    /// How many were there already.
    pub there: usize,
    /// What was not copied although it was wanted there, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

/// A part of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseReport {
    /// Which, in a word: `prepare`, `restore`, `verify`, `clean-up`.
    pub phase: String,
    /// Duration in ms.
    pub ms: u64,
}

impl StepReport {
    pub(super) fn new(service: &ServiceName, kind: impl Into<String>) -> Self {
        Self {
            service: service.clone(),
            kind: kind.into(),
            id: None,
            outcome: Outcome::Ok,
            plain_bytes: 0,
            stored_bytes: 0,
            ms: 0,
            restore_ms: None,
            phases: Vec::new(),
            error: None,
            hint: None,
            notes: Vec::new(),
            copies: None,
        }
    }

    /// Notes how long something took that began at `since`; gives the moment at which the next thing begins.
    pub(super) fn phase(&mut self, phase: &str, since: tokio::time::Instant) -> tokio::time::Instant {
        self.phases.push(PhaseReport { phase: phase.to_owned(), ms: millis(since) });
        tokio::time::Instant::now()
    }

    /// Marks the step as failed with `error`.
    pub(super) fn fail(&mut self, error: &crate::error::BackupError) {
        self.outcome = match error {
            crate::error::BackupError::Cancelled => Outcome::Cancelled,
            crate::error::BackupError::Adapter { source, .. }
                if source.kind() == crate::error::AdapterErrorKind::Cancelled =>
            {
                Outcome::Cancelled
            }
            crate::error::BackupError::Damaged { .. } => Outcome::Damaged,
            _ => Outcome::Failed,
        };
        self.error = Some(chain(error));
        self.hint = crate::error::advice(error).map(str::to_owned);
    }

    /// Whether the service is safe after this step: done, or nothing to do.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        matches!(self.outcome, Outcome::Ok | Outcome::Unchanged | Outcome::Skipped)
    }
}

impl RunReport {
    /// The worst outcome; `Skipped` if there was nothing to do.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        let rank = |o: Outcome| match o {
            Outcome::Skipped => 0,
            Outcome::Unchanged => 1,
            Outcome::Ok => 2,
            Outcome::Suspect => 3,
            Outcome::Failed => 4,
            Outcome::Damaged => 5,
            Outcome::Cancelled => 6,
        };
        let all = self.steps.iter().map(|s| s.outcome).chain(self.parts.iter().map(|p| p.outcome));
        all.max_by_key(|o| rank(*o)).unwrap_or(Outcome::Skipped)
    }

    /// Whether no step failed.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.steps.iter().all(StepReport::is_ok) && self.parts.iter().all(|p| p.outcome == Outcome::Ok)
    }
}

impl Inner {
    /// Announces the end of a step.
    pub(super) fn announce(&self, step: &StepReport) {
        self.events.emit(Event::ServiceFinished {
            service: step.service.clone(),
            id: step.id.clone(),
            outcome: step.outcome,
            plain_bytes: step.plain_bytes,
            stored_bytes: step.stored_bytes,
            ms: step.ms,
            error: step.error.clone(),
            hint: step.hint.clone(),
        });
    }

    /// Puts the report together, writes it to the store and announces the end. A report that cannot be written is a
    /// warning: the work itself is done.
    pub(super) async fn finish(&self, run: &Run, steps: Vec<StepReport>) -> RunReport {
        self.finish_with(run, steps, Vec::new()).await
    }

    /// The same after work on parts of the stack.
    pub(super) async fn finish_with(
        &self,
        run: &Run,
        steps: Vec<StepReport>,
        parts: Vec<PartReport>,
    ) -> RunReport {
        let finished_at = self.clock.now();
        let elapsed = chrono::TimeDelta::milliseconds(i64::try_from(millis(run.started)).unwrap_or(i64::MAX));
        let report = RunReport {
            run_id: run.id.clone(),
            verb: run.verb.to_owned(),
            host: self.host.clone(),
            tool: self.tool.clone(),
            started_at: finished_at - elapsed,
            finished_at,
            steps,
            parts,
        };
        if let Err(e) = self.catalog.write_report(&run.id, &report).await {
            self.warn(None, chain(&e));
        }
        self.end(run, report.outcome());
        report
    }
}
