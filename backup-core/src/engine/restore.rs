//! Restores, as [`preview`](super::preview) planned them: staged beside the target, switched, compared with the evidence, and undone if that fails.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::keys::Need;
use super::preview::RestorePreview;
use super::resume::Whose;
use super::{Engine, Inner, Run, RunReport, StepReport, deadline, millis};
use crate::adapter::{ArtifactOpener, RestoreSource, RestoreTarget, StepToken};
use crate::catalog::BackupState;
use crate::context::OpContext;
use crate::error::{AdapterError, AdapterErrorKind, BackupError, Stage, chain};
use crate::event::Event;
use crate::id::{BackupId, ServiceName};
use crate::metadata::{ArtifactMeta, Metadata};
use crate::plan::PlannedService;
use crate::source::ByteStream;
use crate::state::{RestoreJournal, RestorePhase};

/// How long an adapter may take to stop staging when it is cancelled.
const STAGE_GRACE: Duration = Duration::from_secs(10);

impl Engine {
    /// Restores what was previewed. The plan is made anew under the service's lock; what is live stays untouched until
    /// every byte of the backup was read and verified.
    ///
    /// # Errors
    /// [`BackupError`] if nothing could be begun; everything else is in the step.
    pub async fn restore(&self, preview: &RestorePreview) -> Result<RunReport, BackupError> {
        let inner = Arc::clone(&self.inner);
        let cancel = preview.request.cancel.child_token();
        let _on_drop = cancel.clone().drop_guard();
        let run = inner.begin("restore", std::slice::from_ref(&preview.request.service), cancel)?;
        let preview = preview.clone();
        let task = self.inner.tasks.spawn(async move {
            let started = Instant::now();
            // How long one elsewhere takes says little about one of the live service.
            let kind = if preview.request.to.is_some() { "restore-to" } else { "restore" };
            let mut step = StepReport::new(&preview.request.service, kind);
            step.id = Some(preview.entry.id.clone());
            inner.events.emit(Event::ServiceStarted { service: step.service.clone(), id: step.id.clone() });
            if let Err(error) = inner.restore_service(&run, &preview, &mut step).await {
                step.fail(&error);
            }
            step.ms = millis(started);
            inner.announce(&step);
            inner.finish(&run, vec![step]).await
        });
        task.await.map_err(|panic| BackupError::Refused(format!("the program failed inside: {panic}")))
    }

    /// Puts back what the newest restore of a service had replaced. What it restored is kept aside in turn.
    ///
    /// # Errors
    /// [`BackupError`] if nothing could be begun; everything else is in the step.
    pub async fn undo(
        &self,
        service: &ServiceName,
        cancel: CancellationToken,
    ) -> Result<RunReport, BackupError> {
        let inner = Arc::clone(&self.inner);
        inner.service(service)?;
        let run = inner.begin("undo", std::slice::from_ref(service), cancel)?;
        let service = service.clone();
        let task = self.inner.tasks.spawn(async move {
            let started = Instant::now();
            let mut step = StepReport::new(&service, "undo");
            if let Err(error) = inner.undo_service(&run, &service, &mut step).await {
                step.fail(&error);
            }
            step.ms = millis(started);
            inner.announce(&step);
            inner.finish(&run, vec![step]).await
        });
        task.await.map_err(|panic| BackupError::Refused(format!("the program failed inside: {panic}")))
    }
}

impl Inner {
    /// A run for planning: nothing is announced.
    pub(super) fn quiet_run(
        &self,
        verb: &'static str,
        cancel: CancellationToken,
    ) -> Result<Run, BackupError> {
        let id = crate::id::RunId::generate(self.clock.now());
        let guard = self.state.begin_run(&id)?;
        Ok(Run {
            id,
            verb,
            cancel,
            started: Instant::now(),
            guard,
            until: None,
            last_chance: false,
            rehearsal: false,
            urgent: false,
        })
    }

    pub(super) fn restore_source(self: &Arc<Self>, cx: &OpContext, metadata: Arc<Metadata>) -> RestoreSource {
        let id = metadata.id();
        RestoreSource::new(metadata, Arc::new(Opener { inner: Arc::clone(self), cx: cx.clone(), id }))
    }

    async fn restore_service(
        self: &Arc<Self>,
        run: &Run,
        preview: &RestorePreview,
        step: &mut StepReport,
    ) -> Result<(), BackupError> {
        let _lock = self.lock(run, &preview.request.service).await?;
        self.restore_locked(run, preview, step).await
    }

    /// The caller holds the service's lock.
    pub(super) async fn restore_locked(
        self: &Arc<Self>,
        run: &Run,
        preview: &RestorePreview,
        step: &mut StepReport,
    ) -> Result<(), BackupError> {
        let service = self.service(&preview.request.service)?;
        self.end_interruptions(run, service, Whose::Others).await;
        self.settle_interrupted(run, service).await?;
        let restored = self.restore_onto(run, service, preview, step).await;
        self.end_interruptions(run, service, Whose::Own).await;
        restored
    }

    async fn restore_onto(
        self: &Arc<Self>,
        run: &Run,
        service: &PlannedService,
        preview: &RestorePreview,
        step: &mut StepReport,
    ) -> Result<(), BackupError> {
        let name = &service.name;
        // Read again: between the preview and now it may have been deleted or found damaged.
        let metadata = match preview.entry.state {
            // Nothing is recorded to be read again: what was found out then must still be so, which staging proves.
            BackupState::Legacy => preview.metadata.clone(),
            _ => {
                let whole = self.catalog.metadata(&preview.entry.id).await?;
                let whole = self.opened(whole, Need::Data).await?;
                super::preview::part(service, whole, &preview.request.only)?
            }
        };
        step.plain_bytes = metadata.plain_bytes();
        step.stored_bytes = metadata.size_bytes;
        if preview.entry.state == BackupState::Legacy {
            step.notes.extend(metadata.capture.warnings.iter().cloned());
        }
        step.notes.extend(preview.passed_over.iter().map(|line| format!("passed over: {line}")));
        let at = Self::restore_moment(preview.at, &self.state.restores(name)?);
        let mut cx = self.context(run, service, at, deadline(service.timeout))?;
        cx.force = preview.request.force;
        if let (Some(history), RestoreTarget::Live) = (&self.history, &preview.plan.target) {
            cx.secrets_then = history.at(&Engine { inner: Arc::clone(self) }, metadata.timestamp).await;
        }
        let adapter = &service.adapter;
        let fail = |stage| move |e| super::capture::adapter_error(service, stage, e);
        let plan = adapter
            .plan_restore(&cx, &metadata, &preview.plan.target)
            .await
            .map_err(fail(Stage::PlanRestore))?;
        self.check_space(&plan.space)?;
        let mut journal = RestoreJournal {
            run_id: run.id.clone(),
            service: name.clone(),
            backup: metadata.id(),
            adapter: adapter.kind().to_owned(),
            started_at: self.clock.now().max(cx.timestamp.time()),
            switched_at: None,
            undo_at: None,
            makes: missing(&plan.target),
            phase: RestorePhase::Staging,
            plan,
            staged: None,
            switched: None,
        };
        self.state.write_restore(&journal)?;

        self.phase(name, "restoring beside the target");
        let source = self.restore_source(&cx, Arc::new(metadata.clone()));
        // The adapter sees the cancellation itself and tidies up. Dropped at once, its threads could still be writing
        // beside the target when the program ends, with nobody left who knows of it.
        let stuck = async {
            cx.cancel.cancelled().await;
            tokio::time::sleep(STAGE_GRACE).await;
        };
        let staged = tokio::select! {
            biased;
            staged = adapter.stage(&cx, &journal.plan, &source) => match staged {
                Err(e) if e.kind() == AdapterErrorKind::Cancelled || cx.cancel.is_cancelled() => {
                    Err(BackupError::Cancelled)
                }
                // Nothing is live yet: who wants to stop, stops here.
                Ok(token) if cx.cancel.is_cancelled() => {
                    self.give_up(&cx, service, &journal, &token).await;
                    return Err(BackupError::Cancelled);
                }
                other => other.map_err(fail(Stage::StageRestore)),
            },
            () = stuck => Err(BackupError::Cancelled),
        };
        let staged = match staged {
            Ok(staged) => staged,
            Err(e) => {
                let token = journal.plan.token.clone();
                self.give_up(&cx, service, &journal, &token).await;
                return Err(e);
            }
        };
        if let Some(replaces) = adapter.replaces(&staged) {
            journal.plan.replaces = replaces;
        }
        journal.staged = Some(staged.clone());
        journal.phase = RestorePhase::Switching;
        self.state.write_restore(&journal)?;

        self.phase(name, "switching");
        let switched = match adapter.switch(&cx, &journal.plan, &staged).await {
            Ok(switched) => switched,
            Err(e) => {
                self.give_up(&cx, service, &journal, &staged).await;
                return Err(fail(Stage::Switch)(e));
            }
        };
        journal.switched = Some(switched.clone());
        journal.switched_at = Some(self.clock.now());
        journal.phase = RestorePhase::Switched;
        self.state.write_restore(&journal)?;

        let checked = self.compare(&cx, service, &metadata, &journal.plan.target).await;
        if let Err(error) = checked {
            return Err(self.put_back(&cx, service, journal, error).await);
        }
        if journal.plan.target == RestoreTarget::Live {
            step.notes.extend(
                journal.plan.replaces.iter().map(|r| format!("kept aside: {} as {}", r.what, r.kept_as)),
            );
        } else {
            // Nothing was replaced: there is nothing to undo.
            self.state.forget_restore(&journal)?;
        }
        Ok(())
    }

    /// Counts what is there now and compares it with what the backup says.
    async fn compare(
        &self,
        cx: &OpContext,
        service: &PlannedService,
        metadata: &Metadata,
        target: &RestoreTarget,
    ) -> Result<(), BackupError> {
        if !service.adapter.capabilities().probe {
            return Ok(());
        }
        self.phase(&service.name, "comparing with the evidence");
        let found = service
            .adapter
            .probe(cx, target)
            .await
            .map_err(|e| super::capture::adapter_error(service, Stage::Probe, e))?;
        let lines = metadata.evidence.contradictions(&found);
        if lines.is_empty() {
            return Ok(());
        }
        Err(BackupError::Refused(format!(
            "the restored data does not match the backup's evidence: {}",
            lines.join("; ")
        )))
    }

    /// After a failed comparison: the old data goes live again.
    async fn put_back(
        &self,
        cx: &OpContext,
        service: &PlannedService,
        mut journal: RestoreJournal,
        error: BackupError,
    ) -> BackupError {
        let Some(switched) = journal.switched.clone().filter(|_| service.adapter.capabilities().undo) else {
            return error;
        };
        let mut later = unhurried(cx);
        later.timestamp = Self::restore_moment(self.now(), std::slice::from_ref(&journal));
        journal.phase = RestorePhase::Undoing;
        journal.undo_at = Some(later.timestamp);
        let undone = async {
            self.state.write_restore(&journal)?;
            service
                .adapter
                .undo(&later, &switched)
                .await
                .map_err(|e| super::capture::adapter_error(service, Stage::Undo, e))
        };
        match undone.await {
            Ok(token) => {
                journal.switched = Some(token);
                journal.phase = RestorePhase::Undone;
                if let Err(e) = self.state.write_restore(&journal) {
                    self.warn(Some(&service.name), chain(&e));
                }
                BackupError::Refused(format!("{}; the old data was put back", chain(&error)))
            }
            Err(second) => BackupError::Refused(format!(
                "{}; the old data could not be put back ({}): `backup undo {}` tries again",
                chain(&error),
                chain(&second),
                service.name
            )),
        }
    }

    /// Removes what a restore that never went live had prepared. `false`: its journal stays for another attempt.
    pub(super) async fn give_up(
        &self,
        cx: &OpContext,
        service: &PlannedService,
        journal: &RestoreJournal,
        token: &StepToken,
    ) -> bool {
        let removed = match service.adapter.discard(&unhurried(cx), token).await {
            Ok(()) => {
                for dir in &journal.makes {
                    // One that is not there, or that somebody else uses by now, is none of ours.
                    let _kept = std::fs::remove_dir(dir);
                }
                self.state.forget_restore(journal)
            }
            Err(e) => Err(super::capture::adapter_error(service, Stage::CleanUp, e)),
        };
        let Err(e) = removed else { return true };
        self.warn(Some(&service.name), format!("{} (`backup cleanup` tries again)", chain(&e)));
        false
    }
}

/// The directories that a restore into one has to make, the deepest first.
fn missing(target: &RestoreTarget) -> Vec<PathBuf> {
    match target {
        RestoreTarget::Dir(dir) => dir.ancestors().take_while(|p| !p.exists()).map(PathBuf::from).collect(),
        _ => Vec::new(),
    }
}

/// The same operation while it tidies up: neither the cancellation nor the budget that ended it may stop that.
fn unhurried(cx: &OpContext) -> OpContext {
    let mut cx = cx.clone();
    cx.cancel = CancellationToken::new();
    cx.deadline = deadline(Some(super::capture::RELEASE_GRACE));
    cx
}

/// Opens artifacts for adapters.
struct Opener {
    inner: Arc<Inner>,
    cx: OpContext,
    id: BackupId,
}

#[async_trait]
impl ArtifactOpener for Opener {
    async fn open(&self, artifact: &ArtifactMeta) -> Result<ByteStream<AdapterError>, AdapterError> {
        self.inner.open_artifact(&self.cx, &self.id, artifact).await.map_err(|e| {
            let kind = match e {
                BackupError::Damaged { .. } => AdapterErrorKind::Corrupt,
                _ => AdapterErrorKind::Unavailable,
            };
            AdapterError::new(kind, format!("cannot open artifact `{}`", artifact.name)).with_source(e)
        })
    }
}
