//! One service's backup, from the lock to the settlement.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use tokio::time::Instant;

use super::back_up::UsualSizes;
use super::resume::Whose;
use super::{Inner, Run, StepReport, deadline, millis};
use crate::adapter::CheckPurpose;
use crate::catalog::FactKind;
use crate::catalog::{Draft, Filter, Listing, RESTORE_MD, SHA256SUMS};
use crate::context::OpContext;
use crate::error::{AdapterError, AdapterErrorKind, BackupError, Stage, StoreError, chain};
use crate::event::{Event, Outcome};
use crate::id::{BackupId, Interval, ServiceName};
use crate::metadata::{
    ArtifactMeta, Capture, Evidence, FORMAT_VERSION, FactBody, Metadata, Process, Reservation, Status,
    StoredFile,
};
use crate::pipeline::{self, PipelineSettings, PumpError};
use crate::plan::PlannedService;
use crate::source::{Artifact, ArtifactBody, CaptureReport, ReadOutcome, Settlement, SourceParts};
use crate::store::WriteOptions;

/// The budget of a service that has none: long enough for anything, short enough that a stalled run is swept some day.
const DEFAULT_BUDGET: Duration = Duration::from_secs(24 * 3600);

/// What ending a capture may take beyond the budget: a stopped service must come back even then.
pub(super) const RELEASE_GRACE: Duration = Duration::from_secs(300);

/// At most ten progress events a second for each artifact.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// What reading a source gave.
struct Read {
    artifacts: Vec<ArtifactMeta>,
    evidence: Evidence,
}

impl Inner {
    /// Backs up one service into `interval`. `step` receives what is known, also on error.
    pub(super) async fn capture(
        &self,
        run: &Run,
        name: &ServiceName,
        interval: &Interval,
        usual: &UsualSizes,
        step: &mut StepReport,
    ) -> Result<(), BackupError> {
        let service = self.service(name)?;
        let _lock = self.lock(run, name).await?;
        self.end_interruptions(run, service, Whose::Others).await;
        if let Some(open) = self.state.restores(name)?.iter().find(|j| j.is_half_done()) {
            return Err(BackupError::Refused(format!(
                "the restore of {} (run {}) was interrupted while it went live: finish it with `backup restore {name}` or `backup undo {name}`",
                open.backup, open.run_id
            )));
        }
        let budget = self.plan.timeout(name, interval);
        let until = deadline(budget);
        let mut draft = self.reserve(run, name, interval, budget).await?;
        step.id = Some(draft.id().clone());
        self.events.emit(Event::ServiceStarted { service: name.clone(), id: Some(draft.id().clone()) });
        let started = Instant::now();
        let cx = match self.context(run, service, draft.id().timestamp, until) {
            Ok(cx) => cx,
            Err(e) => return Err(self.abandon(draft, e).await.1),
        };

        // `open` promises that a failed or dropped call leaves the service as it was.
        let opened = self.bounded(&cx, budget, async {
            service.adapter.open(&cx).await.map_err(|e| adapter_error(service, Stage::Open, e))
        });
        let source = match opened.await {
            Ok(source) => source.into_parts(),
            Err(e) => {
                // A dropped call cannot wait for an undo.
                self.end_interruptions(run, service, Whose::Own).await;
                return Err(self.abandon(draft, e).await.1);
            }
        };
        let SourceParts { mut artifacts, release, settle } = source;

        // From here on a panic is an error like any other: what was begun in the service is ended.
        let read =
            caught(self.bounded(&cx, budget, self.read(&cx, service, &draft, usual, &mut artifacts))).await;
        drop(artifacts);
        let outcome = match &read {
            Ok(_) => ReadOutcome::Complete,
            Err(BackupError::Cancelled) => ReadOutcome::Cancelled,
            Err(_) => ReadOutcome::Failed,
        };
        let released = hook(service, Stage::Release, || release(outcome)).await;
        self.end_interruptions(run, service, Whose::Own).await;
        let committed = match (read, released) {
            (Ok(read), Ok(report)) => {
                caught(self.publish(run, service, &mut draft, read, report, started, step)).await
            }
            (Err(e), Ok(_)) => Err(e),
            (Ok(_), Err(e)) => Err(e),
            (Err(first), Err(second)) => {
                // The first error tells why; the second is not lost.
                self.warn(Some(name), chain(&second));
                Err(first)
            }
        };
        let (settlement, result) = match committed {
            Ok(true) => (Settlement::Committed(draft.id().clone()), Ok(())),
            Ok(false) => {
                let (settlement, removed) = draft.discard().await;
                if let Err(e) = removed {
                    self.warn(Some(name), chain(&e));
                }
                (settlement, Ok(()))
            }
            Err(e) => match self.abandon(draft, e).await {
                // Only the answer to the commit was lost.
                (settlement @ Settlement::Committed(_), _) => (settlement, Ok(())),
                (settlement, e) => (settlement, Err(e)),
            },
        };
        if let Settlement::Unknown(id) = &settlement {
            step.notes.push(format!("{id} may be committed: `backup list` tells"));
        }
        if let Some(settle) = settle {
            if matches!(settlement, Settlement::Unknown(_)) {
                run.guard.leave(name);
            }
            if let Err(trouble) = hook(service, Stage::Settle, || settle(settlement)).await {
                let note = chain(&trouble);
                self.warn(Some(name), note.clone());
                step.notes.push(note);
            }
        }
        result
    }

    async fn reserve(
        &self,
        run: &Run,
        name: &ServiceName,
        interval: &Interval,
        budget: Option<Duration>,
    ) -> Result<Draft, BackupError> {
        let now = self.clock.now();
        let until = budget.unwrap_or(DEFAULT_BUDGET) + 2 * RELEASE_GRACE;
        let reservation = Reservation {
            run_id: run.id.clone(),
            host: self.host.clone(),
            process: Process::this(),
            started_at: now,
            commit_deadline: now + TimeDelta::from_std(until).unwrap_or(TimeDelta::days(1)),
            tool: self.tool.clone(),
            copied_from: None,
        };
        self.catalog.reserve(name, interval, reservation).await
    }

    /// Removes an unfinished backup; returns what became of it, and the error that is to be reported.
    async fn abandon(&self, draft: Draft, error: BackupError) -> (Settlement, BackupError) {
        let service = draft.id().service.clone();
        let (settlement, removed) = draft.discard().await;
        if let Err(e) = removed {
            self.warn(Some(&service), format!("{} (a later run will sweep it)", chain(&e)));
        }
        (settlement, error)
    }

    /// Runs `work` until it ends, the run is cancelled, or the budget is used up.
    async fn bounded<T>(
        &self,
        cx: &OpContext,
        budget: Option<Duration>,
        work: impl Future<Output = Result<T, BackupError>>,
    ) -> Result<T, BackupError> {
        let out_of_time = async {
            match cx.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let result = tokio::select! {
            biased;
            () = cx.cancel.cancelled() => Err(BackupError::Cancelled),
            () = out_of_time => Err(BackupError::Timeout {
                service: cx.service.clone(),
                timeout: budget.unwrap_or_default(),
            }),
            result = work => result,
        };
        // An adapter that noticed the cancellation itself says so in its own words.
        match result {
            Err(BackupError::Adapter { source, .. }) if source.kind() == AdapterErrorKind::Cancelled => {
                Err(BackupError::Cancelled)
            }
            other => other,
        }
    }

    /// Stores every artifact of a source.
    async fn read(
        &self,
        cx: &OpContext,
        service: &PlannedService,
        draft: &Draft,
        usual: &UsualSizes,
        artifacts: &mut (impl futures::Stream<Item = Result<Artifact, AdapterError>> + Unpin + Send),
    ) -> Result<Read, BackupError> {
        let mut read = Read { artifacts: Vec::new(), evidence: Evidence::default() };
        while let Some(artifact) =
            artifacts.try_next().await.map_err(|e| adapter_error(service, Stage::Read, e))?
        {
            if read.artifacts.iter().any(|a| a.name == artifact.name) {
                return Err(BackupError::Refused(format!(
                    "adapter `{}` names two artifacts `{}`",
                    service.adapter.kind(),
                    artifact.name
                )));
            }
            let (meta, evidence) = self.store_artifact(cx, service, draft, usual, artifact).await?;
            read.artifacts.push(meta);
            read.evidence.merge(evidence);
        }
        if read.artifacts.is_empty() {
            return Err(BackupError::Refused(format!(
                "adapter `{}` produced nothing",
                service.adapter.kind()
            )));
        }
        Ok(read)
    }

    async fn store_artifact(
        &self,
        cx: &OpContext,
        service: &PlannedService,
        draft: &Draft,
        usual: &UsualSizes,
        artifact: Artifact,
    ) -> Result<(ArtifactMeta, Evidence), BackupError> {
        let Artifact { name, extension, attributes, size_hint, body } = artifact;
        let mut meta = ArtifactMeta {
            name: name.clone(),
            attributes,
            plain_bytes: 0,
            plain_blake3: String::new(),
            encodings: Vec::new(),
            files: Vec::new(),
            external: None,
        };
        let body = match body {
            ArtifactBody::External(reference) => {
                meta.external = Some(reference);
                return Ok((meta, Evidence::default()));
            }
            ArtifactBody::Stream(body) => body,
        };
        let dot = if extension.is_empty() { "" } else { "." };
        let path = format!("{name}_{}{dot}{extension}.zst", draft.id().timestamp);
        let writer = draft.writer(&path, WriteOptions::data(size_hint)).await?;
        let check = service.adapter.content_check(&CheckPurpose::Capture, &meta);
        let settings = self.pipeline(cx, &name, size_hint.or_else(|| usual.get(&name).copied()));
        let encoded = pipeline::pump(body, check, writer, &settings).await.map_err(|e| match e {
            PumpError::Source(e) | PumpError::Check(e) => adapter_error(service, Stage::Read, e),
            PumpError::Store(e) => BackupError::store(format!("write {}", draft.id()), e),
            PumpError::Cancelled => BackupError::Cancelled,
            e => BackupError::Refused(format!("artifact `{name}` could not be encoded: {}", chain(&e))),
        })?;
        meta.plain_bytes = encoded.plain_bytes;
        meta.plain_blake3 = encoded.plain_blake3;
        meta.encodings = encoded.encodings;
        meta.files = vec![StoredFile {
            path,
            stored_bytes: encoded.stored_bytes,
            stored_sha256: encoded.stored_sha256,
        }];
        Ok((meta, encoded.evidence.unwrap_or_default()))
    }

    /// The pipeline's settings for one artifact, with progress events.
    pub(super) fn pipeline(
        &self,
        cx: &OpContext,
        artifact: &crate::id::ArtifactName,
        total: Option<u64>,
    ) -> PipelineSettings {
        let (service, artifact, events) = (cx.service.clone(), artifact.clone(), Arc::clone(&self.events));
        let last = std::sync::Mutex::new(None::<Instant>);
        let progress = move |bytes: u64| {
            let now = Instant::now();
            // Whoever holds the lock is about to report: one report is enough.
            let Ok(mut last) = last.try_lock() else { return };
            if last.is_none_or(|l| now.duration_since(l) >= PROGRESS_EVERY) {
                *last = Some(now);
                events.emit(Event::Progress {
                    service: service.clone(),
                    artifact: artifact.clone(),
                    bytes,
                    total,
                });
            }
        };
        PipelineSettings::new(cx.threads)
            .with_level(self.plan.compression_level)
            .with_cancel(cx.cancel.clone())
            .with_progress(progress)
    }

    /// Commits what was read. `false`: nothing had changed, the newest backup was marked as seen instead.
    #[expect(clippy::too_many_arguments, reason = "the one place where all that is known of a backup meets")]
    async fn publish(
        &self,
        run: &Run,
        service: &PlannedService,
        draft: &mut Draft,
        read: Read,
        report: CaptureReport,
        started: Instant,
        step: &mut StepReport,
    ) -> Result<bool, BackupError> {
        let id = draft.id().clone();
        step.plain_bytes = read.artifacts.iter().map(|a| a.plain_bytes).sum();
        step.stored_bytes = read.artifacts.iter().flat_map(|a| &a.files).map(|f| f.stored_bytes).sum();
        step.notes.extend(report.warnings.iter().cloned());
        let listing = self.catalog.list(&Filter::service(&id.service)).await?;
        if report.only_if_changed && report.fingerprint.is_some() {
            let newest = listing.of(&id.service).find(|e| e.is_good() && e.id.interval == id.interval);
            if let Some(newest) = newest
                && let Some(newest) = self.usable(&newest.id).await?
                && newest.capture.fingerprint == report.fingerprint
                && self.is_whole(&newest).await?
            {
                let now = self.clock.now();
                let body = self.fact(run, now);
                self.catalog.add_fact(&newest.id(), FactKind::Seen, &body).await?;
                step.outcome = Outcome::Unchanged;
                step.id = Some(newest.id());
                step.stored_bytes = 0;
                return Ok(false);
            }
        }
        let recent = self.recent_good(&listing, &id.service).await?;
        let mut evidence = read.evidence;
        evidence.merge(report.evidence);
        let mut metadata = Metadata {
            service: id.service.clone(),
            interval: id.interval.clone(),
            timestamp: id.timestamp,
            size_bytes: step.stored_bytes,
            status: Status::Success,
            host: self.host.clone(),
            backed_up_at: self.clock.now(),
            format_version: FORMAT_VERSION,
            features: Vec::new(),
            requires: Vec::new(),
            store_id: self.catalog.store_id().to_owned(),
            run_id: run.id.clone(),
            tool: self.tool.clone(),
            adapter: service.adapter.kind().to_owned(),
            service_version: report.service_version,
            image: report.image,
            consistency: report.consistency,
            consistent_from: report.consistent_from,
            consistent_to: report.consistent_to,
            capture: Capture {
                mode: report.mode,
                started_at: Some(draft.reservation().started_at),
                duration_ms: millis(started),
                interruption_ms: report.interruption_ms,
                lock_ms: report.lock_ms,
                exit_codes: report.exit_codes,
                warnings: report.warnings,
                fingerprint: report.fingerprint,
            },
            artifacts: read.artifacts,
            evidence,
            suspect_because: Vec::new(),
            unknown: std::collections::BTreeMap::new(),
        };
        metadata.suspect_because = super::guard::doubts(&self.plan.guard, &metadata, &recent);
        if !metadata.suspect_because.is_empty() {
            metadata.status = Status::Suspect;
            step.outcome = Outcome::Suspect;
            step.error = Some(metadata.suspect_because.join("; "));
        }
        draft.create(SHA256SUMS, super::hand::sha256sums(&metadata)).await?;
        draft.create(RESTORE_MD, super::hand::restore_md(&metadata, service.adapter.as_ref())).await?;
        draft.commit(&metadata).await?;
        Ok(true)
    }

    /// The newest good backups of a service, over all its intervals, newest first; back to the newest one that a
    /// person accepted, because from there on that is what is usual.
    async fn recent_good(
        &self,
        listing: &Listing,
        service: &ServiceName,
    ) -> Result<Vec<Metadata>, BackupError> {
        let mut recent = Vec::new();
        for entry in listing.of(service).filter(|e| e.is_good()).take(super::guard::RECENT) {
            recent.extend(self.usable(&entry.id).await?);
            if entry.facts.iter().any(|f| f.kind == FactKind::Accept) {
                break;
            }
        }
        Ok(recent)
    }

    /// The metadata of an older backup; `None` for one that is rotten or gone meanwhile: that must not keep a new one
    /// from being made.
    async fn usable(&self, id: &BackupId) -> Result<Option<Metadata>, BackupError> {
        match self.catalog.metadata(id).await {
            Ok(metadata) => Ok(Some(metadata)),
            Err(BackupError::Store { source: StoreError::NotFound { .. }, .. }) => Ok(None),
            Err(e @ (BackupError::Damaged { .. } | BackupError::Refused(_))) => {
                self.warn(Some(&id.service), chain(&e));
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Whether the stored files of a backup are there, in their length: what is to stand for today's content must.
    async fn is_whole(&self, metadata: &Metadata) -> Result<bool, BackupError> {
        let id = metadata.id();
        for stored in metadata.stored_files() {
            let key = id.file(&stored.path).map_err(|e| BackupError::Refused(format!("{id}: {e}")))?;
            match self.catalog.store().head(&key).await {
                Ok(info) if info.bytes == stored.stored_bytes => {}
                Ok(_) | Err(StoreError::NotFound { .. }) => {
                    self.warn(
                        Some(&id.service),
                        format!("{id} is not whole (`{}`): a new one is made", stored.path),
                    );
                    return Ok(false);
                }
                Err(e) => return Err(BackupError::store(format!("look at {id}"), e)),
            }
        }
        Ok(true)
    }

    /// An empty fact of this run.
    pub(super) fn fact(&self, run: &Run, at: chrono::DateTime<chrono::Utc>) -> FactBody {
        FactBody {
            at,
            run_id: run.id.clone(),
            host: self.host.clone(),
            note: None,
            findings: Vec::new(),
            duration_ms: 0,
            bytes: 0,
        }
    }
}

/// Runs one of the hooks that end a capture.
async fn hook<T>(
    service: &PlannedService,
    stage: Stage,
    hook: impl FnOnce() -> BoxFuture<'static, Result<T, AdapterError>>,
) -> Result<T, BackupError> {
    let ended = async {
        match tokio::time::timeout(RELEASE_GRACE, hook()).await {
            Ok(result) => result.map_err(|e| adapter_error(service, stage, e)),
            Err(_) => Err(BackupError::Timeout { service: service.name.clone(), timeout: RELEASE_GRACE }),
        }
    };
    caught(ended).await
}

/// `work`, with a panic in it as an error.
async fn caught<T>(work: impl Future<Output = Result<T, BackupError>>) -> Result<T, BackupError> {
    // Nothing that `work` changed is trusted afterwards: what it did not return is only discarded.
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Err(BackupError::Refused(format!("the program failed inside: {}", text.unwrap_or("a panic"))))
    })
}

pub(super) fn adapter_error(service: &PlannedService, stage: Stage, source: AdapterError) -> BackupError {
    BackupError::Adapter { service: service.name.clone(), stage, source }
}
