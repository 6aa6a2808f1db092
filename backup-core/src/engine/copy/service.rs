//! Copying what one service lacks in one store.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::{CopyReport, Inner, Run, StepReport, millis};
use super::Target;
use super::choose::{Chosen, CopyAction};
use super::one::One;
use crate::catalog::{Catalog, Entry, Lease, VerifyLevel};
use crate::error::{BackupError, chain};
use crate::event::{Event, Outcome};
use crate::id::{ServiceName, StoreName};
use crate::metadata::{Process, Reservation};
use crate::plan::PlannedStore;

/// How long a copier may be silent before another host may take over. It is renewed while bytes move.
pub(super) const LEASE: Duration = Duration::from_secs(3600);

/// How often a lease that somebody else holds is tried again.
const LEASE_POLL: Duration = Duration::from_secs(1);

/// What even a slow line moves in a second: bounds how long what is read and written is left alone, should the copier
/// die on another host.
const SLOW: u64 = 256 << 10;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Another store, as an engine of its own.
#[derive(Debug)]
pub(super) struct Destination {
    pub(super) inner: Arc<Inner>,
    pub(super) target: Target,
}

impl Destination {
    pub(super) fn name(&self) -> &StoreName {
        &self.target.to
    }

    pub(super) fn catalog(&self) -> &Catalog {
        &self.inner.catalog
    }

    pub(super) fn store(&self) -> Result<&PlannedStore, BackupError> {
        Ok(self.inner.plan.store_named(self.name().as_str())?)
    }
}

pub(super) fn nothing_yet(to: &StoreName) -> CopyReport {
    CopyReport { to: to.clone(), copied: Vec::new(), there: 0, left_out: Vec::new() }
}

/// How long the copy of so many bytes may take.
pub(super) fn allowance(bytes: u64, rate: Option<u64>) -> Duration {
    let rate = rate.unwrap_or(SLOW).clamp(1, SLOW);
    DAY + Duration::from_secs(bytes / rate).min(DAY * 60)
}

impl Inner {
    pub(super) async fn copy_service(
        self: &Arc<Self>,
        run: &Run,
        name: &ServiceName,
        to: &Destination,
    ) -> StepReport {
        let started = Instant::now();
        self.events.emit(Event::ServiceStarted { service: name.clone(), id: None });
        let mut step = StepReport::new(name, "copy");
        let mut copies = nothing_yet(to.name());
        if let Err(error) = self.copy_missing(run, name, to, &mut step, &mut copies).await {
            step.fail(&error);
        } else if copies.copied.is_empty() {
            step.outcome = Outcome::Unchanged;
        }
        if step.is_ok() {
            if let Err(error) = to.inner.lock_backups(run, name).await {
                let note = format!("not locked in `{}`: {}", to.name(), chain(&error));
                self.warn(Some(name), note.clone());
                step.notes.push(note);
            }
            // The copies are safe: what retention meets is a note.
            let intervals = to.inner.plan.intervals.keys();
            let intervals = intervals.filter(|i| !run.urgent && to.target.wants(&self.plan, i));
            for interval in intervals {
                if let Err(error) = to.inner.retain(run, name, interval, &mut step).await {
                    let note = format!("retention in `{}`: {}", to.name(), chain(&error));
                    self.warn(Some(name), note.clone());
                    step.notes.push(note);
                }
            }
        }
        step.copies = Some(copies);
        step.ms = millis(started);
        self.announce_copy(&step);
        step
    }

    pub(super) fn announce_copy(&self, step: &StepReport) {
        let Some(copies) = &step.copies else { return self.announce(step) };
        self.events.emit(Event::CopyFinished {
            service: step.service.clone(),
            store: copies.to.clone(),
            outcome: step.outcome,
            copied: copies.copied.len(),
            there: copies.there,
            stored_bytes: step.stored_bytes,
            ms: step.ms,
            error: step.error.clone(),
            hint: step.hint.clone(),
        });
    }

    async fn copy_missing(
        self: &Arc<Self>,
        run: &Run,
        name: &ServiceName,
        to: &Destination,
        step: &mut StepReport,
        copies: &mut CopyReport,
    ) -> Result<(), BackupError> {
        let chosen = self.choose_copies(name, to).await?;
        if chosen.missing.is_empty() && chosen.unfinished.is_empty() && chosen.damaged.is_empty() {
            return conclude(name, to, chosen, Vec::new(), copies);
        }
        let mut lease = self.lease_on_copies(run, name, to).await?;
        // Whoever had the lease may have done it.
        let done = match self.choose_copies(name, to).await {
            Ok(chosen) => self.copy_under_lease(run, name, to, &mut lease, chosen, step, copies).await,
            Err(e) => Err(e),
        };
        if let Err(e) = lease.release().await {
            tracing::debug!(error = %chain(&e), "The lease on copies could not be released; it expires by itself.");
        }
        done
    }

    async fn lease_on_copies(
        &self,
        run: &Run,
        name: &ServiceName,
        to: &Destination,
    ) -> Result<Lease, BackupError> {
        let until = Instant::now() + self.patience;
        let mut told = false;
        loop {
            let lease = to.catalog().lease(&format!("copy-{name}"), &run.id, &self.host, LEASE).await;
            let busy = match lease {
                Err(e @ BackupError::Refused(_)) if Instant::now() < until => e,
                other => return other,
            };
            if !told {
                let holder = chain(&busy);
                self.events.emit(Event::Waiting { service: name.clone(), holder });
                told = true;
            }
            tokio::select! {
                () = run.cancel.cancelled() => return Err(BackupError::Cancelled),
                () = tokio::time::sleep(LEASE_POLL) => {}
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one step of one function")]
    async fn copy_under_lease(
        self: &Arc<Self>,
        run: &Run,
        name: &ServiceName,
        to: &Destination,
        lease: &mut Lease,
        chosen: Chosen,
        step: &mut StepReport,
        copies: &mut CopyReport,
    ) -> Result<(), BackupError> {
        for entry in &chosen.unfinished {
            // What is to be copied now begins with what is there already.
            let wanted = chosen.missing.iter().any(|e| e.id == entry.id);
            let here = |r: &Reservation| r.copied_from.as_deref() == Some(self.catalog.store_id());
            let goes_on = |r: &Reservation| wanted && here(r);
            if to.catalog().clear_half_copy(entry, lease, goes_on, |r| self.is_dead(r)).await? {
                step.notes.push(format!("removed what an interrupted copy of {} had left", entry.id));
            }
        }
        // What is part of no backup, as after a death amid a reservation.
        if let Err(e) = to.catalog().sweep_abandoned(std::slice::from_ref(name)).await {
            self.warn(Some(name), chain(&e));
        }
        let missing = chosen.missing.iter().map(|entry| (entry, None));
        // What is not there at all comes first.
        let damaged = chosen.damaged.iter().map(|(here, there, level)| (here, Some((there, *level))));
        let work: Vec<(&Entry, Option<(&Entry, VerifyLevel)>)> = missing.chain(damaged).collect();
        let bytes = work.iter().map(|(entry, _)| entry.size_bytes()).fold(0, u64::saturating_add);
        let ids = work.iter().map(|(entry, _)| entry.id.clone()).collect();
        let within = allowance(bytes, self.bandwidth(run));
        let pin = self.catalog.pin(name, ids, &run.id, &self.host, within).await?;
        let mut failures = Vec::new();
        let mut result = Ok(());
        for (entry, there) in work {
            self.phase(name, &format!("copying {} to {}", entry.id, to.name()));
            let one = match there {
                None => self.copy_one(run, to, lease, entry).await,
                Some((there, level)) => self.heal_one(run, to, lease, (entry, there), level).await,
            };
            match one {
                Ok(One::Healed(sent)) => {
                    step.id.get_or_insert_with(|| entry.id.clone());
                    step.stored_bytes = step.stored_bytes.saturating_add(sent.bytes);
                    copies.copied.push(entry.id.clone());
                    let (id, files, s) = (&entry.id, sent.files, if sent.files == 1 { "" } else { "s" });
                    step.notes.push(format!(
                        "{id} was damaged in `{}` and is whole again: {files} file{s} sent",
                        to.name()
                    ));
                }
                Ok(One::Copied(sent)) => {
                    step.id.get_or_insert_with(|| entry.id.clone());
                    step.stored_bytes = step.stored_bytes.saturating_add(sent.bytes);
                    copies.copied.push(entry.id.clone());
                    if sent.taken > 0 {
                        let (id, taken, s) = (&entry.id, sent.taken, if sent.taken == 1 { "" } else { "s" });
                        step.notes.push(format!(
                            "{id}: {taken} file{s} ({} bytes) of an interrupted copy were whole and not sent again",
                            sent.taken_bytes
                        ));
                    }
                }
                Ok(One::There) => copies.there += 1,
                Ok(One::InClear) => step.notes.push(format!(
                    "{} stays here: it holds secrets and was made before they were encrypted",
                    entry.id
                )),
                Ok(One::Gone) => step.notes.push(format!("{} was deleted meanwhile", entry.id)),
                Ok(One::LeftOut(why)) => copies.left_out.push(why),
                // Of one backup only: the others may be copied.
                Err(error @ (BackupError::Damaged { .. } | BackupError::Refused(_))) => {
                    if matches!(error, BackupError::Damaged { .. }) {
                        self.note_damage(run, entry, &error).await;
                    }
                    failures.push(error);
                }
                // Of a store, or of everything.
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        if let Err(e) = pin.release().await {
            tracing::debug!(error = %chain(&e), "What was read is still pinned; that expires by itself.");
        }
        result?;
        conclude(name, to, chosen, failures, copies)
    }

    /// As a verification would note it: a good backup that is not what it says is good no more.
    async fn note_damage(&self, run: &Run, entry: &Entry, error: &BackupError) {
        let mut found = StepReport::new(&entry.id.service, "verify-stored");
        found.fail(error);
        self.note_verdict(run, entry, VerifyLevel::Stored, &mut found).await;
    }

    /// Whether nobody works on it any more, for certain.
    pub(super) fn is_dead(&self, reservation: &Reservation) -> bool {
        // One of this very process: its run is over, or it is another host's as far as anybody can tell.
        let ended = || matches!(self.state.run_lives(&reservation.run_id), Ok(false));
        let ours = reservation.process == Process::this() && reservation.host == self.host;
        reservation.process.is_dead() || (ours && ended())
    }
}

/// What was left out or failed makes the step fail, with every reason.
fn conclude(
    name: &ServiceName,
    to: &Destination,
    chosen: Chosen,
    mut failures: Vec<BackupError>,
    copies: &mut CopyReport,
) -> Result<(), BackupError> {
    for copy in chosen.copies {
        match copy.action {
            CopyAction::There => copies.there += 1,
            CopyAction::LeftOut(why) => copies.left_out.push(why),
            CopyAction::Copy | CopyAction::Heal | CopyAction::NotKept(_) => {}
        }
    }
    if failures.len() == 1 && copies.left_out.is_empty() && chosen.errors.is_empty() {
        return failures.pop().map_or(Ok(()), Err);
    }
    let failed = failures.iter().map(|e| chain(e));
    let lines: Vec<String> = chosen.errors.into_iter().chain(copies.left_out.clone()).chain(failed).collect();
    if lines.is_empty() {
        return Ok(());
    }
    Err(BackupError::Refused(format!("not all of `{name}` is in `{}`: {}", to.name(), lines.join("; "))))
}
