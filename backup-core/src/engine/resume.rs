//! Bringing services back that a run has stopped, paused or fenced and left so.

use tokio_util::sync::CancellationToken;

use super::{Engine, Inner, Run, RunReport, StepReport, deadline, millis};
use crate::error::{AdapterError, BackupError, Stage, chain};
use crate::event::Outcome;
use crate::id::ServiceName;
use crate::plan::PlannedService;
use crate::runtime::{InterruptionEntry, InterruptionJournal, Replay};

/// Which interruptions to end.
#[derive(Debug, Clone, Default)]
pub struct ResumeRequest {
    /// Only this entry of the journal; all if `None`.
    pub entry: Option<String>,
    /// Do not wait for the service's lock: the run that holds it is past its deadline.
    pub insist: bool,
    /// Ends the verb early.
    pub cancel: CancellationToken,
}

impl Engine {
    /// Brings back what runs have stopped, paused or fenced and left so: for start-up and for watchdogs. Every other verb
    /// does so for the services that it works on.
    ///
    /// # Errors
    /// [`BackupError::State`], [`BackupError::Adapter`] if the journal cannot be read. What becomes of each entry is in the report.
    pub async fn resume(&self, request: &ResumeRequest) -> Result<RunReport, BackupError> {
        let inner = &self.inner;
        let wanted = |e: &InterruptionEntry| request.entry.as_ref().is_none_or(|id| *id == e.id);
        let journal = inner.state.interruptions();
        let entries = journal.entries().await.map_err(journal_error)?;
        let entries: Vec<_> = entries.into_iter().filter(wanted).collect();
        let mut services: Vec<ServiceName> = entries.iter().map(|e| e.service.clone()).collect();
        services.dedup();
        let run = inner.begin("resume", &services, request.cancel.child_token())?;
        let mut steps = Vec::new();
        for entry in entries {
            let started = tokio::time::Instant::now();
            let mut step = StepReport::new(&entry.service, "resume");
            if let Err(error) = inner.resume_entry(&run, &entry, request.insist, &mut step).await {
                step.fail(&error);
            }
            step.ms = millis(started);
            inner.announce(&step);
            steps.push(step);
        }
        Ok(inner.finish(&run, steps).await)
    }
}

fn journal_error(source: AdapterError) -> BackupError {
    BackupError::State {
        what: "reading the journal of interruptions".to_owned(),
        source: std::io::Error::other(source),
    }
}

impl Inner {
    async fn resume_entry(
        &self,
        run: &Run,
        entry: &InterruptionEntry,
        insist: bool,
        step: &mut StepReport,
    ) -> Result<(), BackupError> {
        let service = self.service(&entry.service)?;
        let _lock = if insist { None } else { Some(self.lock(run, &entry.service).await?) };
        // The run that had the lock may have undone it meanwhile.
        let still = self.state.interruptions().entries().await.map_err(journal_error)?;
        if !still.iter().any(|e| e.id == entry.id) {
            step.outcome = Outcome::Skipped;
            return Ok(());
        }
        let note = self.bring_back(run, service, entry).await?;
        step.notes.extend(note);
        Ok(())
    }

    /// Ends what earlier runs have left interrupted in `service`, whose lock the caller holds. Trouble is a warning: the
    /// operation itself will find out whether it can work.
    pub(super) async fn end_interruptions(&self, run: &Run, service: &PlannedService) {
        let entries = match self.state.interruptions().entries().await {
            Ok(entries) => entries,
            Err(e) => return self.warn(Some(&service.name), chain(&e)),
        };
        for entry in entries.iter().filter(|e| e.service == service.name && e.run_id != run.id) {
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
        let cx = self.context(run, service, self.now(), deadline(service.timeout))?;
        let replay = service
            .adapter
            .bring_back(&cx, entry)
            .await
            .map_err(|e| super::capture::adapter_error(service, Stage::BringBack, e))?;
        let by = format!("run {} of {}", entry.run_id, entry.began_at.format("%Y-%m-%d %H:%M:%S UTC"));
        Ok(match replay {
            Replay::Undone => Some(format!("brought the service back: {by} had left it interrupted")),
            Replay::NothingToDo => None,
            Replay::Foreign(why) => Some(format!("an interruption by {by} is left alone: {why}")),
        })
    }
}
