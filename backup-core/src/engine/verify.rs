//! Verification: what is listed as good is proven to be good, at three levels.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::keys::Need;
use super::noting::Noting;
use super::smoke::judge_scratch;
use super::{Engine, Inner, Run, RunReport, StepReport, millis};
use crate::adapter::{CheckPurpose, RestoreTarget, ScratchHandle};
use crate::catalog::{BackupState, Entry, FactKind, Filter, VerifyLevel};
use crate::context::OpContext;
use crate::error::{AdapterError, AdapterErrorKind, BackupError, Stage, StoreError, chain};
use crate::event::{Event, Outcome};
use crate::id::{BackupId, ServiceName};
use crate::metadata::{ArtifactMeta, Evidence, Metadata};
use crate::pipeline::{self, Expected, StoredFault};
use crate::plan::PlannedService;

/// What to verify.
#[derive(Debug, Clone)]
pub struct VerifyRequest {
    /// Only these services; empty: all.
    pub services: Vec<ServiceName>,
    /// How deep.
    pub level: VerifyLevel,
    /// Exactly these; empty: the newest committed backup of each service.
    pub ids: Vec<BackupId>,
    /// Every committed backup of the services, not only the newest.
    pub all: bool,
    /// Ends the run early.
    pub cancel: CancellationToken,
}

impl VerifyRequest {
    /// The newest backup of every service at `level`.
    #[must_use]
    pub fn new(level: VerifyLevel) -> Self {
        Self { services: Vec::new(), level, ids: Vec::new(), all: false, cancel: CancellationToken::new() }
    }
}

impl Engine {
    /// Verifies backups, one after the other, and notes each result as a fact beside the backup.
    ///
    /// # Errors
    /// [`BackupError`] if nothing could be begun; everything else is in the steps.
    pub async fn verify(&self, request: &VerifyRequest) -> Result<RunReport, BackupError> {
        let inner = &self.inner;
        let services = inner.services_or_all(&request.services)?;
        let cancel = request.cancel.child_token();
        let _on_drop = cancel.clone().drop_guard();
        let run = inner.begin("verify", &services, cancel)?;
        let mut steps = Vec::new();
        for name in &services {
            let failed = |error: String| {
                let mut step = StepReport::new(name, format!("verify-{}", request.level));
                step.outcome = Outcome::Failed;
                step.error = Some(error);
                inner.announce(&step);
                step
            };
            let chosen = match inner.to_verify(&run, name, request).await {
                // What could not be listed could not be verified either.
                Ok((chosen, errors)) => {
                    steps.extend(errors.into_iter().map(failed));
                    chosen
                }
                Err(error) => {
                    steps.push(failed(chain(&error)));
                    continue;
                }
            };
            for entry in chosen {
                steps.push(inner.verify_one(&run, name, &entry, request.level).await);
            }
        }
        Ok(inner.finish(&run, steps).await)
    }
}

/// How long a test restore may take to remove what it made, once it is cancelled.
const TEAR_DOWN: Duration = Duration::from_secs(60);

/// Runs `work` to its end, or until it is cancelled and has not ended by itself within `grace`: whoever is dropped in the middle
/// leaves servers behind.
async fn until_cancelled(
    cx: &OpContext,
    grace: Duration,
    work: impl Future<Output = Result<(), BackupError>>,
) -> Result<(), BackupError> {
    let ended = async {
        cx.cancel.cancelled().await;
        if !grace.is_zero() {
            tokio::time::sleep(grace).await;
        }
    };
    tokio::select! {
        biased;
        () = ended => Err(BackupError::Cancelled),
        result = work => match result {
            Err(_) if cx.cancel.is_cancelled() => Err(BackupError::Cancelled),
            result => result,
        },
    }
}

/// Whether a backup has contents that can be verified.
fn verifiable(entry: &Entry) -> bool {
    matches!(
        entry.state,
        BackupState::Good
            | BackupState::Suspect
            | BackupState::Damaged { .. }
            | BackupState::Unreadable { .. }
    )
}

/// Whether it is known that what it keeps elsewhere is complete.
fn is_complete(entry: &Entry) -> bool {
    entry.facts.iter().any(|f| f.kind == FactKind::Complete)
}

impl Inner {
    /// What to verify, and what could not be listed.
    async fn to_verify(
        &self,
        run: &Run,
        name: &ServiceName,
        request: &VerifyRequest,
    ) -> Result<(Vec<Entry>, Vec<String>), BackupError> {
        let mut listing = self.catalog.list(&Filter::service(name)).await?;
        // What is complete by now is verified like any other.
        if !self.settle_pending(run, name, &listing).await?.is_empty() {
            listing = self.catalog.list(&Filter::service(name)).await?;
        }
        let entries = listing.entries.into_iter();
        let chosen = if !request.ids.is_empty() {
            entries.filter(|e| request.ids.contains(&e.id)).collect()
        } else if request.all {
            entries.filter(verifiable).collect()
        } else {
            entries.filter(verifiable).take(1).collect()
        };
        Ok((chosen, listing.errors))
    }

    pub(super) async fn verify_one(
        self: &Arc<Self>,
        run: &Run,
        name: &ServiceName,
        entry: &Entry,
        level: VerifyLevel,
    ) -> StepReport {
        let started = Instant::now();
        let mut step = StepReport::new(name, format!("verify-{level}"));
        step.id = Some(entry.id.clone());
        self.events.emit(Event::ServiceStarted { service: name.clone(), id: Some(entry.id.clone()) });
        match self.examine(run, name, entry, level, &mut step).await {
            Ok(()) => {}
            Err(error) => step.fail(&error),
        }
        step.ms = millis(started);
        // Retention goes on meanwhile: what it deletes is not damaged.
        if step.outcome == Outcome::Damaged && self.is_gone(entry).await {
            step.outcome = Outcome::Skipped;
            step.notes.push("it was deleted meanwhile".to_owned());
            step.notes.extend(step.error.take());
        }
        self.note_verdict(run, entry, level, &mut step).await;
        self.announce(&step);
        step
    }

    /// Notes what was found beside the backup. Trouble on the way to the bytes proves nothing about them: only a verdict
    /// becomes a fact.
    pub(super) async fn note_verdict(
        &self,
        run: &Run,
        entry: &Entry,
        level: VerifyLevel,
        step: &mut StepReport,
    ) {
        let verdict = matches!(step.outcome, Outcome::Ok | Outcome::Damaged);
        if !verdict || matches!(entry.state, BackupState::Legacy) {
            return;
        }
        let mut body = self.fact(run, self.clock.now());
        body.duration_ms = step.ms;
        body.bytes = step.stored_bytes;
        body.findings = step.error.iter().cloned().collect();
        let kind = FactKind::Verify { level, ok: step.outcome == Outcome::Ok };
        if let Err(e) = self.catalog.add_fact(&entry.id, kind, &body).await {
            let note = chain(&e);
            self.warn(Some(&entry.id.service), note.clone());
            step.notes.push(note);
        }
    }

    async fn is_gone(&self, entry: &Entry) -> bool {
        match entry.state {
            BackupState::Legacy => {
                matches!(self.catalog.legacy(&entry.id).await, Ok(dir) if dir.files.is_empty())
            }
            _ => matches!(self.catalog.exists(&entry.id).await, Ok(false)),
        }
    }

    pub(super) async fn examine(
        self: &Arc<Self>,
        run: &Run,
        name: &ServiceName,
        entry: &Entry,
        level: VerifyLevel,
        step: &mut StepReport,
    ) -> Result<(), BackupError> {
        match &entry.state {
            BackupState::Unreadable { reason, newer: true } => {
                return Err(BackupError::Refused(format!("{}: {reason}", entry.id)));
            }
            BackupState::Legacy if level == VerifyLevel::Stored => {
                return Err(BackupError::Refused(format!(
                    "{} is legacy: the old scripts recorded no checksum to compare with; use --level content",
                    entry.id
                )));
            }
            // An unreadable one is read again below: the listing may only have been kept from it.
            BackupState::Good
            | BackupState::Suspect
            | BackupState::Damaged { .. }
            | BackupState::Pending
            | BackupState::Legacy
            | BackupState::Unreadable { newer: false, .. } => {}
            other => {
                return Err(BackupError::Refused(format!(
                    "{} is {}: there is nothing to verify",
                    entry.id,
                    other.word()
                )));
            }
        }
        let service = self.service(name)?;
        let budget = service.timeout;
        let cx = self.context(run, service, entry.id.timestamp, super::deadline(budget))?;
        if entry.state == BackupState::Legacy {
            return self.examine_legacy(run, &cx, service, &entry.id, level, step).await;
        }
        let mut metadata = self.catalog.metadata(&entry.id).await?;
        if level >= VerifyLevel::Content {
            metadata = self.opened(metadata, Need::Data).await?;
        }
        step.plain_bytes = metadata.plain_bytes();
        step.stored_bytes = metadata.size_bytes;
        if level >= VerifyLevel::Content && metadata.adapter != service.adapter.kind() {
            return Err(BackupError::Refused(format!(
                "{} was made by adapter `{}`, but service `{name}` is of kind `{}` now",
                entry.id,
                metadata.adapter,
                service.adapter.kind()
            )));
        }
        let work = async {
            self.check_external(run, &cx, service, &metadata, !is_complete(entry)).await?;
            match level {
                VerifyLevel::Stored => self.check_stored(&metadata).await,
                VerifyLevel::Content => self.check_content(&cx, service, &metadata).await,
                VerifyLevel::Restore => self.check_restore(run, &cx, service, metadata.clone(), step).await,
            }
        };
        let grace = if level == VerifyLevel::Restore { TEAR_DOWN } else { Duration::ZERO };
        until_cancelled(&cx, grace, work).await
    }

    /// What nobody recorded cannot be compared: it is read to its end, and, if asked for, restored.
    async fn examine_legacy(
        self: &Arc<Self>,
        run: &Run,
        cx: &OpContext,
        service: &PlannedService,
        id: &BackupId,
        level: VerifyLevel,
        step: &mut StepReport,
    ) -> Result<(), BackupError> {
        let metadata = self.measure_legacy(cx, service, id).await?;
        step.plain_bytes = metadata.plain_bytes();
        step.stored_bytes = metadata.size_bytes;
        step.notes.extend(metadata.capture.warnings.iter().cloned());
        if level < VerifyLevel::Restore {
            return Ok(());
        }
        until_cancelled(cx, TEAR_DOWN, self.check_restore(run, cx, service, metadata, step)).await
    }

    async fn check_stored(&self, metadata: &Metadata) -> Result<(), BackupError> {
        let id = metadata.id();
        for stored in metadata.stored_files() {
            let damaged =
                |what: String| BackupError::Damaged { id: id.clone(), file: stored.path.clone(), what };
            let key = id.file(&stored.path).map_err(|e| damaged(e.to_string()))?;
            let stream = self
                .catalog
                .store()
                .read(&key)
                .await
                .map_err(|e| lost_or_unreachable(&id, &stored.path, e))?;
            pipeline::check_stored(stream, stored).await.map_err(|e| match e {
                StoredFault::Damaged(e) => damaged(without_name(&stored.path, &chain(&e))),
                StoredFault::Read(e) => lost_or_unreachable(&id, &stored.path, e),
            })?;
        }
        Ok(())
    }

    async fn check_content(
        &self,
        cx: &OpContext,
        service: &PlannedService,
        metadata: &Metadata,
    ) -> Result<(), BackupError> {
        let id = metadata.id();
        let mut found = Evidence::default();
        for artifact in metadata.artifacts.iter().filter(|a| a.external.is_none()) {
            let damaged = |e: AdapterError| damage(&id, artifact, e);
            let body = self.open_artifact(cx, &id, artifact).await?;
            let check =
                service.adapter.content_check(&CheckPurpose::Verify { spool: cx.spool.clone() }, artifact);
            found.merge(pipeline::drain(body, check).await.map_err(damaged)?.evidence.unwrap_or_default());
        }
        contradictions(metadata, &found)
    }

    async fn check_restore(
        self: &Arc<Self>,
        run: &Run,
        cx: &OpContext,
        service: &PlannedService,
        metadata: Metadata,
        step: &mut StepReport,
    ) -> Result<(), BackupError> {
        let noting = Arc::new(Noting::new(Arc::clone(&cx.events)));
        let mut cx = cx.clone();
        cx.image_then.clone_from(&metadata.image);
        cx.events = Arc::clone(&noting) as _;
        let result = self.restore_into_scratch(run, &cx, service, metadata, step).await;
        step.notes.extend(noting.take());
        result
    }

    async fn restore_into_scratch(
        self: &Arc<Self>,
        run: &Run,
        cx: &OpContext,
        service: &PlannedService,
        metadata: Metadata,
        step: &mut StepReport,
    ) -> Result<(), BackupError> {
        let adapter = &service.adapter;
        if !adapter.capabilities().restore_scratch {
            return Err(BackupError::Refused(format!(
                "adapter `{}` has no scratch restore: use --level content",
                adapter.kind()
            )));
        }
        let since = Instant::now();
        let id = metadata.id();
        // One run may verify many backups of a service: each has a scratch of its own, removed before the next.
        let dir = cx.spool.join(format!("scratch-{}-{}", id.interval, id.timestamp));
        let target = RestoreTarget::Scratch(ScratchHandle { dir: dir.clone(), run_id: run.id.clone() });
        let fail = |stage| move |e| super::capture::adapter_error(service, stage, e);
        let plan = adapter.plan_restore(cx, &metadata, &target).await.map_err(fail(Stage::PlanRestore))?;
        self.check_space(&plan.space)?;
        let since = step.phase("prepare", since);
        self.phase(&service.name, "restoring into scratch");
        let source = self.restore_source(cx, Arc::new(metadata.clone()));
        let staged = adapter.stage(cx, &plan, &source).await.map_err(|e| {
            let artifact = metadata.artifacts.first();
            match artifact {
                Some(artifact) if e.kind() == AdapterErrorKind::Corrupt => damage(&id, artifact, e),
                _ => fail(Stage::StageRestore)(e),
            }
        })?;
        let since = step.phase("restore", since);
        self.phase(&service.name, "comparing with the evidence");
        let probed = async {
            let switched = adapter.switch(cx, &plan, &staged).await.map_err(fail(Stage::Switch))?;
            let (found, answers) = self.probe_and_ask(cx, service, &target).await?;
            Ok::<_, BackupError>((switched, found, answers))
        }
        .await;
        let (token, result) = match probed {
            Ok((switched, found, answers)) => {
                // What is not as the backup says tells more than any question about it.
                let same = contradictions(&metadata, &found);
                (switched, same.and_then(|()| judge_scratch(service, &answers, step)))
            }
            Err(e) => (staged, Err(e)),
        };
        let since = step.phase("verify", since);
        self.phase(&service.name, "removing the scratch");
        // Also once the run is cancelled or its budget is used up: what was made has to go.
        let mut calm = cx.clone();
        (calm.cancel, calm.deadline) = (CancellationToken::new(), Some(Instant::now() + TEAR_DOWN));
        if let Err(e) = adapter.discard(&calm, &token).await {
            self.warn(Some(&service.name), chain(&fail(Stage::CleanUp)(e)));
        }
        let removed = tokio::task::spawn_blocking(move || crate::keep_aside::remove(&dir)).await;
        if let Ok(Err(e)) = removed {
            self.warn(Some(&service.name), format!("the scratch folder could not be removed: {e}"));
        }
        step.phase("clean-up", since);
        result
    }

    /// The plain bytes of an artifact, verified while they are read.
    pub(super) async fn open_artifact(
        &self,
        cx: &OpContext,
        id: &BackupId,
        artifact: &ArtifactMeta,
    ) -> Result<crate::source::ByteStream<AdapterError>, BackupError> {
        let damaged =
            |file: &str, what: String| BackupError::Damaged { id: id.clone(), file: file.to_owned(), what };
        let keys =
            artifact.files.iter().map(|f| id.file(&f.path).map_err(|e| damaged(&f.path, e.to_string())));
        let keys = keys.collect::<Result<Vec<_>, _>>()?;
        let [first, others @ ..] = keys.as_slice() else {
            return Err(damaged(artifact.name.as_str(), "it has no stored file".to_owned()));
        };
        let store = self.catalog.store();
        let stream = store.read(first).await;
        let stream = stream.map_err(|e| lost_or_unreachable(id, first.file_name(), e))?;
        // The others when it is their turn: there may be hundreds.
        let (store, others) = (Arc::clone(store), others.to_vec());
        let others = futures::stream::iter(others).then(move |key| {
            let store = Arc::clone(&store);
            async move { store.read(&key).await.unwrap_or_else(|e| futures::stream::iter([Err(e)]).boxed()) }
        });
        let stream = stream.chain(others.flatten()).boxed();
        let settings = self.reading(cx, artifact).await;
        Ok(pipeline::unpump(stream, Expected::of(artifact), settings))
    }
}

/// An object that is gone or unreadable is damage; a store that cannot be asked is not.
pub(super) fn lost_or_unreachable(id: &BackupId, file: &str, error: StoreError) -> BackupError {
    match error {
        StoreError::NotFound { .. } => BackupError::Damaged {
            id: id.clone(),
            file: file.to_owned(),
            what: "the file is missing".to_owned(),
        },
        // A disk that cannot read it. What servers answer besides is about the request: a clock, a region, a signature.
        StoreError::Other { retryable: false, ref source, .. } if source.is::<std::io::Error>() => {
            BackupError::Damaged { id: id.clone(), file: file.to_owned(), what: chain(&error) }
        }
        error => BackupError::store(format!("read {id}"), error),
    }
}

/// The pipeline's errors name the file themselves: once is enough.
pub(super) fn without_name(file: &str, text: &str) -> String {
    text.strip_prefix(&format!("`{file}` is damaged: ")).unwrap_or(text).to_owned()
}

/// Corruption found while decoding or checking is damage; other trouble is not.
fn damage(id: &BackupId, artifact: &ArtifactMeta, error: AdapterError) -> BackupError {
    let file = artifact.files.first().map_or_else(|| artifact.name.to_string(), |f| f.path.clone());
    match error.kind() {
        AdapterErrorKind::Corrupt => {
            let what = without_name(&file, &chain(&error));
            BackupError::Damaged { id: id.clone(), file, what }
        }
        AdapterErrorKind::Cancelled => BackupError::Cancelled,
        _ => BackupError::Adapter { service: id.service.clone(), stage: Stage::Read, source: error },
    }
}

fn contradictions(metadata: &Metadata, found: &Evidence) -> Result<(), BackupError> {
    let lines = metadata.evidence.contradictions(found);
    if lines.is_empty() {
        return Ok(());
    }
    Err(BackupError::Damaged { id: metadata.id(), file: "its contents".to_owned(), what: lines.join("; ") })
}
