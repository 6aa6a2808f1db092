//! Restores: planned, staged beside the target, switched, compared with the evidence, and undone if that fails.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::resume::Whose;
use super::select::Choice;
use super::{Engine, Inner, Run, RunReport, Selector, StepReport, deadline, millis};
use crate::adapter::{ArtifactOpener, RestorePlan, RestoreSource, RestoreTarget, StepToken};
use crate::catalog::{BackupState, Entry};
use crate::context::OpContext;
use crate::error::{AdapterError, AdapterErrorKind, BackupError, Stage, chain};
use crate::event::Event;
use crate::id::{BackupId, Interval, ServiceName, Timestamp};
use crate::keep_aside;
use crate::metadata::{ArtifactMeta, Metadata};
use crate::plan::PlannedService;
use crate::source::ByteStream;
use crate::state::{RestoreJournal, RestorePhase};

/// How long an adapter may take to stop staging when it is cancelled.
const STAGE_GRACE: Duration = Duration::from_secs(10);

/// What to restore.
#[derive(Debug, Clone)]
pub struct RestoreRequest {
    /// The service.
    pub service: ServiceName,
    /// Which backup.
    pub selector: Selector,
    /// Only from this interval.
    pub interval: Option<Interval>,
    /// Elsewhere, into this directory; `None`: over the live service, which is kept aside.
    pub to: Option<PathBuf>,
    /// Go on where a doubt would stop it: a target in use, a backup that is not good.
    pub force: bool,
    /// Ends it early. Once it went live, it is completed.
    pub cancel: CancellationToken,
}

impl RestoreRequest {
    /// The newest good backup of `service`, over the live service.
    #[must_use]
    pub fn new(service: ServiceName) -> Self {
        let (selector, cancel) = (Selector::Newest, CancellationToken::new());
        Self { service, selector, interval: None, to: None, force: false, cancel }
    }
}

/// What a restore would do. Nothing was changed yet.
#[derive(Debug, Clone)]
pub struct RestorePreview {
    /// The request.
    pub request: RestoreRequest,
    /// The backup that was chosen.
    pub entry: Entry,
    /// Its metadata.
    pub metadata: Metadata,
    /// Newer backups that were not taken, and why, one line each.
    pub passed_over: Vec<String>,
    /// The adapter's plan.
    pub plan: RestorePlan,
    /// Names what will be kept aside, unless another restore takes the name before.
    pub at: Timestamp,
}

impl Engine {
    /// Chooses the backup and finds out what restoring it would do. Changes nothing.
    ///
    /// # Errors
    /// [`BackupError::Refused`] if there is no such backup or not enough room; the adapter's doubts.
    pub async fn plan_restore(&self, request: &RestoreRequest) -> Result<RestorePreview, BackupError> {
        let inner = &self.inner;
        let service = inner.service(&request.service)?;
        let Choice { entry, passed_over } =
            inner.choose(&request.service, request.interval.as_ref(), &request.selector).await?;
        let acceptable = match &entry.state {
            BackupState::Good => true,
            BackupState::Suspect | BackupState::Damaged { .. } => request.force,
            _ => false,
        };
        if !acceptable {
            let hint = match entry.state {
                BackupState::Suspect | BackupState::Damaged { .. } => {
                    ": use --force to restore it all the same"
                }
                _ => "",
            };
            return Err(BackupError::Refused(format!("{} is {}{hint}", entry.id, entry.state.word())));
        }
        let metadata = inner.catalog.metadata(&entry.id).await?;
        if metadata.adapter != service.adapter.kind() {
            return Err(BackupError::Refused(format!(
                "{} was made by adapter `{}`, but service `{}` is of kind `{}` now",
                entry.id,
                metadata.adapter,
                request.service,
                service.adapter.kind()
            )));
        }
        let target = match &request.to {
            Some(dir) => RestoreTarget::Dir(dir.clone()),
            None => RestoreTarget::Live,
        };
        if let Some(dir) = &request.to {
            inner.refuse_own(dir)?;
        }
        let run = inner.quiet_run("restore", request.cancel.child_token())?;
        let at = Inner::restore_moment(inner.now(), &inner.state.restores(&request.service)?);
        let mut cx = inner.context(&run, service, at, deadline(service.timeout))?;
        cx.force = request.force;
        let plan = service
            .adapter
            .plan_restore(&cx, &metadata, &target)
            .await
            .map_err(|e| super::capture::adapter_error(service, Stage::PlanRestore, e))?;
        inner.check_space(&plan)?;
        Ok(RestorePreview { request: request.clone(), entry, metadata, passed_over, plan, at })
    }

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
            let mut step = StepReport::new(&preview.request.service, "restore");
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
        Ok(Run { id, verb, cancel, started: Instant::now(), guard })
    }

    /// Refuses to restore into a store, where the result would look like a service, or into the state directory.
    fn refuse_own(&self, dir: &Path) -> Result<(), BackupError> {
        let failed = |source| BackupError::State { what: format!("resolving `{}`", dir.display()), source };
        let real = resolve(dir).map_err(failed)?;
        let own = self
            .excluded()
            .into_iter()
            .find(|own| real.starts_with(own.canonicalize().as_deref().unwrap_or(own)));
        match own {
            None => Ok(()),
            Some(own) => Err(BackupError::Refused(format!(
                "`{}` lies in `{}`, which is this program's own: restore elsewhere",
                dir.display(),
                own.display()
            ))),
        }
    }

    /// Refuses a plan for which there is not enough room, adding up what lies on one file system.
    pub(super) fn check_space(&self, plan: &RestorePlan) -> Result<(), BackupError> {
        use std::os::unix::fs::MetadataExt;
        let mut needs: std::collections::BTreeMap<u64, (PathBuf, u64)> = std::collections::BTreeMap::new();
        for need in &plan.space {
            let device = std::fs::metadata(&need.path).map(|m| m.dev()).map_err(|source| {
                BackupError::State { what: format!("looking at `{}`", need.path.display()), source }
            })?;
            let sum = &mut needs.entry(device).or_insert_with(|| (need.path.clone(), 0)).1;
            *sum = sum.saturating_add(need.bytes);
        }
        for (path, bytes) in needs.into_values() {
            let free = keep_aside::free_space(&path).map_err(|source| BackupError::State {
                what: format!("asking for the free space of `{}`", path.display()),
                source,
            })?;
            if free < bytes {
                return Err(BackupError::Refused(format!(
                    "not enough room below `{}`: the restore needs {bytes} bytes, {free} are free",
                    path.display()
                )));
            }
        }
        Ok(())
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
        let name = &preview.request.service;
        let service = self.service(name)?;
        let _lock = self.lock(run, name).await?;
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
        let metadata = self.catalog.metadata(&preview.entry.id).await?;
        step.plain_bytes = metadata.plain_bytes();
        step.stored_bytes = metadata.size_bytes;
        step.notes.extend(preview.passed_over.iter().map(|line| format!("passed over: {line}")));
        let at = Self::restore_moment(preview.at, &self.state.restores(name)?);
        let mut cx = self.context(run, service, at, deadline(service.timeout))?;
        cx.force = preview.request.force;
        let adapter = &service.adapter;
        let fail = |stage| move |e| super::capture::adapter_error(service, stage, e);
        let plan = adapter
            .plan_restore(&cx, &metadata, &preview.plan.target)
            .await
            .map_err(fail(Stage::PlanRestore))?;
        self.check_space(&plan)?;
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

/// `path` without links and dots, as it will be once what is missing of it was made.
fn resolve(path: &Path) -> std::io::Result<PathBuf> {
    let mut real = PathBuf::new();
    for part in std::path::absolute(path)?.components() {
        match part {
            // Above a resolved path, or one that is to be made, lies what its name says.
            Component::ParentDir => drop(real.pop()),
            part => {
                real.push(part);
                if let Ok(there) = real.canonicalize() {
                    real = there;
                }
            }
        }
    }
    Ok(real)
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
