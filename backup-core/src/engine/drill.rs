//! `drill`: a recovery of the whole host into scratch, measured against its targets. Nothing that is live is touched.
//!
//! Five phases: the backups are selected; then for each service a place is prepared, the backup restored into it, what is
//! there counted and compared, and the place removed. Each counts as a verification by restore, and predicts recoveries.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::recover::{ScratchRestore, critical_path, span};
use super::report::PhaseReport;
use super::{Engine, Inner, RunReport, Selector, StepReport, millis};
use crate::catalog::{Entry, VerifyLevel};
use crate::error::{BackupError, chain};
use crate::event::Outcome;
use crate::id::{BackupId, RunId, ServiceName};
use crate::metadata::Consistency;

/// What to drill.
#[derive(Debug, Clone, Default)]
pub struct DrillRequest {
    /// Only these services; empty: all that are enabled.
    pub services: Vec<ServiceName>,
    /// Ends it early; what it made is removed.
    pub cancel: CancellationToken,
}

/// What a drill found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillReport {
    /// The run; its report has the same steps.
    pub run_id: RunId,
    /// The host whose services were drilled.
    pub host: String,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// How long all of it took, in ms.
    pub ms: u64,
    /// How long a recovery of all of it may take, in ms.
    #[serde(default)]
    pub target_ms: Option<u64>,
    /// How long the selection of the backups took of that, in ms.
    pub select_ms: u64,
    /// How many services were drilled at once.
    pub parallel: usize,
    /// The services, in the order in which they began.
    pub services: Vec<DrilledService>,
}

/// What a drill found about one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrilledService {
    /// The service.
    pub service: ServiceName,
    /// The adapter's kind.
    pub kind: String,
    /// Which of the drilled services come before it.
    pub after: Vec<ServiceName>,
    /// What was restored; `None` if there was nothing to choose.
    pub backup: Option<DrilledBackup>,
    /// When its restore began, in ms after the drill.
    pub began_ms: u64,
    /// How long it took, in ms.
    pub ms: u64,
    /// How long it may take, in ms.
    pub target_ms: Option<u64>,
    /// Bytes before compression.
    pub plain_bytes: u64,
    /// What took how long.
    pub phases: Vec<PhaseReport>,
    /// How it ended.
    pub outcome: Outcome,
    /// What went wrong, one line.
    pub error: Option<String>,
    /// What an operator should know, one line each.
    pub notes: Vec<String>,
    /// The one before that restored it into scratch.
    pub before: Option<ScratchRestore>,
    /// That one and those before it, at most five, the newest first.
    #[serde(default)]
    pub earlier: Vec<ScratchRestore>,
    /// What they usually took, in ms: the median, which one that was disturbed does not move.
    #[serde(default)]
    pub usual_ms: Option<u64>,
    /// Whether the whole would have been shorter without it: it is on the critical path.
    pub critical: bool,
}

/// The backup that a drill restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrilledBackup {
    /// Its name.
    pub id: BackupId,
    /// What it is worth: `good`, `legacy`.
    pub state: String,
    /// How far its parts belong together.
    pub consistency: Option<Consistency>,
    /// The moment that it shows.
    pub as_of: DateTime<Utc>,
    /// How old that is: what would have been lost, in ms.
    pub age_ms: u64,
    /// How old it may be, in ms.
    pub max_age_ms: Option<u64>,
    /// Newer ones that were not taken, and why, one line each.
    pub passed_over: Vec<String>,
}

impl DrillReport {
    /// Whether every service came back, its data as the backup says.
    #[must_use]
    pub fn passed(&self) -> bool {
        !self.services.is_empty() && self.services.iter().all(|s| s.outcome == Outcome::Ok)
    }

    /// The services that took longer than they may, or whose data is older than it may be.
    pub fn missed(&self) -> impl Iterator<Item = &DrilledService> {
        self.services.iter().filter(|s| s.is_late() || s.is_old())
    }
}

impl DrilledService {
    /// Whether it took longer than it may.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.target_ms.is_some_and(|target| self.ms > target)
    }

    /// Whether the data is older than it may be.
    #[must_use]
    pub fn is_old(&self) -> bool {
        self.backup.as_ref().is_some_and(|b| b.max_age_ms.is_some_and(|limit| b.age_ms > limit))
    }
}

impl Engine {
    /// Restores the backups that a recovery would take, of every service, into scratch, along `after`, as many at once as a
    /// run of backups does: what is live goes on.
    ///
    /// # Errors
    /// [`BackupError`] if nothing could be begun; everything else is in the reports.
    pub async fn drill(&self, request: &DrillRequest) -> Result<(DrillReport, RunReport), BackupError> {
        let inner = &self.inner;
        let names = inner.recovered(&request.services)?;
        let started = Instant::now();
        let history = inner.history().await;
        let cancel = request.cancel.child_token();
        let _on_drop = cancel.clone().drop_guard();
        let run = Arc::new(inner.begin("drill", &names, cancel)?);
        let mut services = BTreeMap::new();
        let mut chosen = BTreeMap::new();
        for name in &names {
            let (service, entry) = inner.select_for_drill(name, &names).await?;
            services.insert(name.clone(), service.after_those(history.scratch(name, EARLIER)));
            chosen.insert(name.clone(), entry);
        }
        let select_ms = millis(started);
        let (chosen, began) = (Arc::new(chosen), Arc::new(Mutex::new(BTreeMap::new())));
        let steps = inner.for_each(&names, inner.parallel(), "verify-restore", |name| {
            let (inner, run) = (Arc::clone(inner), Arc::clone(&run));
            let (chosen, began) = (Arc::clone(&chosen), Arc::clone(&began));
            async move {
                began.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), millis(started));
                match chosen.get(&name) {
                    Some(Ok(entry)) => inner.verify_one(&run, &name, entry, VerifyLevel::Restore).await,
                    Some(Err(why)) => inner.not_drilled(&name, why),
                    None => inner.not_drilled(&name, "it was not selected"),
                }
            }
        });
        let steps = steps.await;
        let began = began.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for step in &steps {
            if let Some(service) = services.get_mut(&step.service) {
                service.began_ms = began.get(&step.service).copied().unwrap_or(select_ms);
                service.take(step);
            }
        }
        let mut services: Vec<DrilledService> = names.iter().filter_map(|n| services.remove(n)).collect();
        services.sort_by_key(|s| s.began_ms);
        let spans: Vec<(u64, u64)> = services.iter().map(|s| (s.began_ms, s.began_ms + s.ms)).collect();
        for at in critical_path(&spans) {
            if let Some(service) = services.get_mut(at) {
                service.critical = true;
            }
        }
        let ms = millis(started);
        let report = inner.finish(&run, steps).await;
        let drill = DrillReport {
            run_id: report.run_id.clone(),
            host: report.host.clone(),
            started_at: report.started_at,
            ms,
            target_ms: inner.plan.rto.map(span),
            select_ms,
            parallel: inner.parallel(),
            services,
        };
        Ok((drill, report))
    }
}

/// With how many earlier ones a drill is compared.
const EARLIER: usize = 5;

/// The one in the middle; of an even number the mean of both.
fn median(mut all: Vec<u64>) -> Option<u64> {
    all.sort_unstable();
    let (low, high) = (*all.get(all.len().checked_sub(1)? / 2)?, *all.get(all.len() / 2)?);
    Some(low.midpoint(high))
}

impl DrilledService {
    fn after_those(self, earlier: Vec<ScratchRestore>) -> Self {
        let usual_ms = median(earlier.iter().map(|e| e.ms).collect());
        Self { before: earlier.first().copied(), earlier, usual_ms, ..self }
    }

    fn take(&mut self, step: &StepReport) {
        self.ms = step.ms;
        self.plain_bytes = step.plain_bytes;
        self.phases.clone_from(&step.phases);
        self.outcome = step.outcome;
        self.error.clone_from(&step.error);
        self.notes.clone_from(&step.notes);
    }
}

impl Inner {
    /// What a recovery would take of a service.
    async fn select_for_drill(
        &self,
        name: &ServiceName,
        names: &[ServiceName],
    ) -> Result<(DrilledService, Result<Entry, String>), BackupError> {
        let service = self.service(name)?;
        let mut drilled = DrilledService {
            service: name.clone(),
            kind: service.kind.clone(),
            after: self.waits_for(name, names).cloned().collect(),
            backup: None,
            began_ms: 0,
            ms: 0,
            target_ms: service.rto.map(span),
            plain_bytes: 0,
            phases: Vec::new(),
            outcome: Outcome::Failed,
            error: None,
            notes: Vec::new(),
            before: None,
            earlier: Vec::new(),
            usual_ms: None,
            critical: false,
        };
        let choice = async {
            let selector = self.choose_for_recovery(None, service).await?.0;
            let choice = self.choose(name, None, &selector).await?;
            // Of the old scripts' nothing is known but their name.
            let metadata = match selector {
                Selector::Exactly(_) => None,
                _ => Some(self.catalog.metadata(&choice.entry.id).await?),
            };
            Ok::<_, BackupError>((choice, metadata))
        };
        let (choice, metadata) = match choice.await {
            Ok(found) => found,
            Err(e) => return Ok((drilled, Err(chain(&e)))),
        };
        let as_of = metadata.as_ref().map_or(choice.entry.id.timestamp.time(), |m| m.consistent_from);
        drilled.backup = Some(DrilledBackup {
            id: choice.entry.id.clone(),
            state: choice.entry.state.word().to_owned(),
            consistency: metadata.map(|m| m.consistency),
            as_of,
            age_ms: u64::try_from((self.clock.now() - as_of).num_milliseconds()).unwrap_or(0),
            max_age_ms: service.max_age.map(span),
            passed_over: choice.passed_over,
        });
        Ok((drilled, Ok(choice.entry)))
    }

    fn not_drilled(&self, name: &ServiceName, why: &str) -> StepReport {
        let mut step = StepReport::new(name, "verify-restore");
        step.outcome = Outcome::Failed;
        step.error = Some(why.to_owned());
        self.announce(&step);
        step
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(Vec::new()), None);
        assert_eq!(median(vec![7]), Some(7));
        assert_eq!(median(vec![9, 2]), Some(5));
        assert_eq!(median(vec![5, 90_000, 4, 6, 5]), Some(5), "one that was disturbed does not count");
    }
}
