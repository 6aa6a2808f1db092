//! Bringing services back that a run has stopped, paused or fenced and left so.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Engine, Inner, Run, RunReport, StepReport, deadline, millis};
use crate::error::{AdapterError, BackupError, Stage, chain};
use crate::event::Outcome;
use crate::id::ServiceName;
use crate::plan::PlannedService;
use crate::runtime::{InterruptionEntry, InterruptionJournal, Replay};
use crate::state::JournalContent;

/// How long bringing one service back may take. Nothing cuts it short: neither the budget nor the cancellation of the
/// verb that found the service down.
const LIMIT: Duration = Duration::from_secs(600);

/// Which interruptions to end.
#[derive(Debug, Clone, Default)]
pub struct ResumeRequest {
    /// Only this entry of the journal; all if `None`.
    pub entry: Option<String>,
    /// Do not wait for the service's lock: the run that holds it is past its deadline.
    pub insist: bool,
    /// Ends the verb before the next entry.
    pub cancel: CancellationToken,
}

/// An interruption that has not been ended yet.
#[derive(Debug, Clone, serde::Serialize)]
pub struct OpenInterruption {
    /// What is to be undone.
    pub entry: InterruptionEntry,
    /// Its run is alive and has time left: it is part of an operation that goes on.
    pub expected: bool,
}

impl std::fmt::Display for OpenInterruption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let InterruptionEntry { kind, run_id, began_at, .. } = &self.entry;
        let since = began_at.format("%Y-%m-%d %H:%M:%S UTC");
        match self.expected {
            true => write!(f, "interrupted since {since} by run {run_id}, which is at work: {kind}"),
            false => write!(f, "interrupted since {since} by run {run_id}, which did not end that: {kind}"),
        }
    }
}

/// Whose interruptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// Those of this run.
    Own,
    /// Those of all other runs.
    Others,
}

impl Engine {
    /// Brings back what runs have stopped, paused or fenced and left so: for start-up and for watchdogs. Every other verb
    /// does so for the services that it works on.
    ///
    /// # Errors
    /// [`BackupError::State`] if the journal cannot be read. What becomes of each entry is in the report.
    pub async fn resume(&self, request: &ResumeRequest) -> Result<RunReport, BackupError> {
        let inner = &self.inner;
        let wanted = |e: &InterruptionEntry| request.entry.as_ref().is_none_or(|id| *id == e.id);
        let JournalContent { entries, unreadable } = inner.interruptions().await?;
        let entries: Vec<_> = entries.into_iter().filter(wanted).collect();
        let services: BTreeSet<ServiceName> = entries.iter().map(|e| e.service.clone()).collect();
        let services: Vec<ServiceName> = services.into_iter().collect();
        let run = inner.begin("resume", &services, request.cancel.child_token())?;
        unreadable.into_iter().for_each(|line| inner.warn(None, line));
        let mut steps = Vec::new();
        for entry in entries {
            let started = tokio::time::Instant::now();
            let mut step = StepReport::new(&entry.service, "resume");
            let ended = match run.cancel.is_cancelled() {
                true => Err(BackupError::Cancelled),
                false => inner.resume_entry(&run, &entry, request.insist, &mut step).await,
            };
            if let Err(error) = ended {
                step.fail(&error);
            }
            step.ms = millis(started);
            inner.announce(&step);
            steps.push(step);
        }
        Ok(inner.finish(&run, steps).await)
    }

    /// The interruptions that have not been ended yet, the oldest first.
    ///
    /// # Errors
    /// [`BackupError::State`] if the journal cannot be read.
    pub async fn open_interruptions(&self) -> Result<Vec<OpenInterruption>, BackupError> {
        let content = self.inner.interruptions().await?;
        content.entries.into_iter().map(|entry| self.inner.judge(entry)).collect()
    }
}

fn journal_error(source: AdapterError) -> BackupError {
    BackupError::State {
        what: "reading the journal of interruptions".to_owned(),
        source: std::io::Error::other(source),
    }
}

impl Inner {
    pub(super) async fn interruptions(&self) -> Result<JournalContent, BackupError> {
        self.state.interruptions().read().await.map_err(journal_error)
    }

    pub(super) fn judge(&self, entry: InterruptionEntry) -> Result<OpenInterruption, BackupError> {
        let late = entry.until.is_some_and(|until| self.clock.now() > until);
        let expected = !late && self.state.run_lives(&entry.run_id)?;
        Ok(OpenInterruption { entry, expected })
    }

    async fn resume_entry(
        &self,
        run: &Run,
        entry: &InterruptionEntry,
        insist: bool,
        step: &mut StepReport,
    ) -> Result<(), BackupError> {
        let Some(service) = self.plan.services.get(&entry.service) else {
            return Err(BackupError::Refused(format!(
                "service `{}` is not in the configuration any more: see whether it runs, then remove `{}`",
                entry.service,
                self.state.interruptions().file(&entry.id).display()
            )));
        };
        let _lock = if insist { None } else { Some(self.lock(run, &entry.service).await?) };
        // The run that had the lock may have undone it meanwhile.
        if !self.state.interruptions().holds(&entry.id) {
            step.outcome = Outcome::Skipped;
            return Ok(());
        }
        let note = self.bring_back(run, service, entry).await?;
        step.notes.extend(note);
        Ok(())
    }

    /// Ends what runs have left interrupted in `service`, whose lock the caller holds. Trouble is a warning: the
    /// operation itself will find out whether it can work.
    pub(super) async fn end_interruptions(&self, run: &Run, service: &PlannedService, whose: Whose) {
        let entries = match self.interruptions().await {
            Ok(content) => content.entries,
            Err(e) => return self.warn(Some(&service.name), chain(&e)),
        };
        let wanted = |e: &&InterruptionEntry| {
            e.service == service.name && (e.run_id == run.id) == (whose == Whose::Own)
        };
        for entry in entries.iter().filter(wanted) {
            match self.bring_back(run, service, entry).await {
                Ok(None) => {}
                Ok(Some(note)) => self.warn(Some(&service.name), note),
                Err(e) => self.warn(Some(&service.name), chain(&e)),
            }
        }
    }

    /// A line for people, if there is something to tell.
    async fn bring_back(
        &self,
        run: &Run,
        service: &PlannedService,
        entry: &InterruptionEntry,
    ) -> Result<Option<String>, BackupError> {
        let journal = self.state.interruptions();
        let by = format!("run {} of {}", entry.run_id, entry.began_at.format("%Y-%m-%d %H:%M:%S UTC"));
        let alone = |why: String| {
            let file = journal.file(&entry.id);
            let what = format!(
                "an interruption of `{}` by {by} is left alone: {why}; see whether the service runs, then remove `{}`",
                service.name,
                file.display()
            );
            Err(BackupError::Refused(what))
        };
        if entry.place.host != journal.place().host {
            return alone(format!("it was made on host `{}`", entry.place.host));
        }
        let failed = |e| super::capture::adapter_error(service, Stage::BringBack, e);
        // From here on the run that made it, should it live, knows that it did not end it itself.
        if !journal.take_over(entry).await.map_err(failed)? {
            return Ok(None);
        }
        let mut cx = self.context(run, service, self.now(), deadline(Some(LIMIT)))?;
        cx.cancel = CancellationToken::new();
        let replay = service.adapter.bring_back(&cx, entry).await.map_err(failed)?;
        if let Replay::Foreign(why) = replay {
            return alone(why);
        }
        journal.clear(entry).await.map_err(failed)?;
        Ok(match replay {
            Replay::Undone => Some(format!("brought the service back: {by} had left it interrupted")),
            _ => None,
        })
    }
}
