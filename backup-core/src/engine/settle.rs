//! Undoing restores, and bringing those that were killed midway to an end.

use super::resume::Whose;
use super::{Inner, Run, StepReport, deadline};
use crate::adapter::RestoreTarget;
use crate::error::{BackupError, Stage, chain};
use crate::id::{RunId, ServiceName, Timestamp};
use crate::plan::PlannedService;
use crate::state::{RestoreJournal, RestorePhase};

/// What [`Inner::settle_interrupted`] brought to an end.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// Restores that went live.
    pub(super) finished: Vec<RunId>,
    /// Restores whose old data is live again.
    pub(super) undone: Vec<RestoreJournal>,
}

impl Settled {
    /// Whether it is `journal`'s restore that went live, or back, just now.
    pub(super) fn contains(&self, journal: &RestoreJournal) -> bool {
        self.finished.contains(&journal.run_id) || self.undone.iter().any(|j| j.run_id == journal.run_id)
    }
}

impl Inner {
    /// The moment that names what a restore or its undo keeps aside: `at`, but later than what `journals` tell of, so
    /// that names are never taken twice within a second, or by a clock that goes backwards.
    pub(super) fn restore_moment(at: Timestamp, journals: &[RestoreJournal]) -> Timestamp {
        let known = journals.iter().flat_map(|j| [Some(Timestamp::new(j.started_at)), j.undo_at]);
        known.flatten().fold(at, |at, known| at.max(known.next()))
    }

    /// Brings restores that were killed midway to an end: what was going live goes live, what was not is removed.
    pub(super) async fn settle_interrupted(
        &self,
        run: &Run,
        service: &PlannedService,
    ) -> Result<Settled, BackupError> {
        let mut settled = Settled::default();
        for mut journal in self.state.restores(&service.name)? {
            let at = Timestamp::new(journal.started_at);
            let mut cx = self.context(run, service, at, deadline(service.timeout))?;
            cx.run_id = journal.run_id.clone();
            cx.force = true;
            let fail = |stage| move |e| super::capture::adapter_error(service, stage, e);
            match (journal.phase, journal.staged.clone(), journal.switched.clone()) {
                (RestorePhase::Staging | RestorePhase::Staged, staged, _) => {
                    let token = staged.unwrap_or_else(|| journal.plan.token.clone());
                    self.give_up(&cx, service, &journal, &token).await;
                }
                (RestorePhase::Switching, Some(staged), _) => {
                    match service.adapter.switch(&cx, &journal.plan, &staged).await {
                        Ok(switched) => journal.switched = Some(switched),
                        // The old data is live then: the restore can be given up, unless the adapter knows better.
                        Err(e) => {
                            let error = fail(Stage::Switch)(e);
                            if !self.give_up(&cx, service, &journal, &staged).await {
                                return Err(error);
                            }
                            let what = format!("gave up the interrupted restore of {}", journal.backup);
                            self.warn(Some(&service.name), format!("{what}: {}", chain(&error)));
                            continue;
                        }
                    }
                    self.warn(
                        Some(&service.name),
                        format!("finished the interrupted restore of {}", journal.backup),
                    );
                    settled.finished.push(journal.run_id.clone());
                    journal.switched_at = Some(self.clock.now());
                    journal.phase = RestorePhase::Switched;
                    if journal.plan.target == RestoreTarget::Live {
                        self.state.write_restore(&journal)?;
                    } else {
                        self.state.forget_restore(&journal)?;
                    }
                }
                (RestorePhase::Undoing, _, Some(switched)) => {
                    cx.timestamp = self.begin_undo(&mut journal)?;
                    let token = service.adapter.undo(&cx, &switched).await.map_err(fail(Stage::Undo))?;
                    self.warn(
                        Some(&service.name),
                        format!("finished the interrupted undo of the restore of {}", journal.backup),
                    );
                    journal.switched = Some(token);
                    journal.phase = RestorePhase::Undone;
                    self.state.write_restore(&journal)?;
                    settled.undone.push(journal);
                }
                // Killed between its last two notes: elsewhere nothing was replaced, and there is nothing to undo.
                (RestorePhase::Switched, ..) if journal.plan.target != RestoreTarget::Live => {
                    self.state.forget_restore(&journal)?;
                }
                _ => {}
            }
        }
        Ok(settled)
    }

    /// Notes that an undo begins. Its moment is that of the first attempt: an adapter completes a repeated undo only
    /// under the same names.
    fn begin_undo(&self, journal: &mut RestoreJournal) -> Result<Timestamp, BackupError> {
        let at = match journal.undo_at {
            Some(at) => at,
            None => Self::restore_moment(self.now(), &self.state.restores(&journal.service)?),
        };
        journal.undo_at = Some(at);
        journal.phase = RestorePhase::Undoing;
        self.state.write_restore(journal)?;
        Ok(at)
    }

    pub(super) async fn undo_service(
        &self,
        run: &Run,
        name: &ServiceName,
        step: &mut StepReport,
    ) -> Result<(), BackupError> {
        let service = self.service(name)?;
        let _lock = self.lock(run, name).await?;
        self.end_interruptions(run, service, Whose::Others).await;
        // An undo that was cut short is what is asked for; an older restore is another question.
        if let Some(undone) = self.settle_interrupted(run, service).await?.undone.pop() {
            step.id = Some(undone.backup);
            return Ok(());
        }
        let journals = self.state.restores(name)?;
        let newest = journals.into_iter().rev().find(|j| j.phase == RestorePhase::Switched);
        let Some(mut journal) = newest else {
            return Err(BackupError::Refused(format!("service `{name}` has no restore to undo")));
        };
        step.id = Some(journal.backup.clone());
        let Some(switched) = journal.switched.clone() else {
            return Err(BackupError::Refused(format!(
                "the restore of {} left nothing to put back",
                journal.backup
            )));
        };
        let at = self.begin_undo(&mut journal)?;
        let cx = self.context(run, service, at, deadline(service.timeout))?;
        let undone = service.adapter.undo(&cx, &switched).await;
        self.end_interruptions(run, service, Whose::Own).await;
        match undone {
            Ok(token) => {
                journal.switched = Some(token);
                journal.phase = RestorePhase::Undone;
                self.state.write_restore(&journal)
            }
            Err(e) => {
                // What is live stays live: the restore is undoable again.
                journal.phase = RestorePhase::Switched;
                self.state.write_restore(&journal)?;
                Err(super::capture::adapter_error(service, Stage::Undo, e))
            }
        }
    }
}
