//! A whole backup in memory: what the engine does around an adapter, in its simplest form.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream;

use crate::adapter::{ArtifactOpener, CheckPurpose, RestoreSource, RestoreTarget, ServiceAdapter, StepToken};
use crate::context::OpContext;
use crate::error::AdapterError;
use crate::id::{ArtifactName, BackupId, Interval};
use crate::metadata::{ArtifactMeta, Capture, Evidence, FORMAT_VERSION, Metadata, Status, StoredFile};
use crate::source::{Artifact, ArtifactBody, ByteStream, CaptureReport, ReadOutcome, Settlement};

/// A finished backup.
#[derive(Debug, Clone)]
pub struct Captured {
    /// As it would be committed, without encodings: a stored file is the plain artifact.
    pub metadata: Arc<Metadata>,
    /// The plain bytes by artifact, in the chunks in which they came. External artifacts have none.
    pub bodies: Vec<(ArtifactName, Vec<Bytes>)>,
    /// What the adapter reported.
    pub report: CaptureReport,
}

/// What is wrong with the bytes that a [`MemoryOpener`] hands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// Nothing.
    None,
    /// The second half is missing; an error comes in place of the end.
    Truncated,
    /// One byte is another; an error comes in place of the end.
    Flipped,
}

/// Hands out the bodies of a [`Captured`] backup.
#[derive(Debug, Clone)]
pub struct MemoryOpener {
    bodies: Vec<(ArtifactName, Vec<Bytes>)>,
    damage: Damage,
}

impl MemoryOpener {
    /// An opener of `captured`'s bodies with `damage`.
    #[must_use]
    pub fn new(captured: &Captured, damage: Damage) -> Self {
        Self { bodies: captured.bodies.clone(), damage }
    }
}

#[async_trait]
impl ArtifactOpener for MemoryOpener {
    async fn open(&self, artifact: &ArtifactMeta) -> Result<ByteStream<AdapterError>, AdapterError> {
        let body = self.bodies.iter().find(|(name, _)| *name == artifact.name);
        let chunks = body.map(|(_, chunks)| chunks.clone()).unwrap_or_default();
        let mut items: Vec<Result<Bytes, AdapterError>> =
            damaged(chunks, self.damage).into_iter().map(Ok).collect();
        if self.damage != Damage::None {
            items.push(Err(AdapterError::corrupt(format!("artifact `{}` is damaged", artifact.name))));
        }
        Ok(stream::iter(items).boxed())
    }
}

/// `chunks` with `damage`. What is empty stays so.
pub(super) fn damaged(mut chunks: Vec<Bytes>, damage: Damage) -> Vec<Bytes> {
    let total: usize = chunks.iter().map(Bytes::len).sum();
    let mut left = total / 2;
    match damage {
        Damage::None => {}
        Damage::Truncated => chunks.retain_mut(|chunk| {
            chunk.truncate(left);
            left -= chunk.len();
            !chunk.is_empty()
        }),
        Damage::Flipped => {
            for chunk in &mut chunks {
                if left < chunk.len() {
                    let mut bytes = chunk.to_vec();
                    bytes.iter_mut().skip(left).take(1).for_each(|b| *b ^= 0xff);
                    *chunk = bytes.into();
                    break;
                }
                left -= chunk.len();
            }
        }
    }
    chunks
}

impl Captured {
    /// The backup as a restore sees it.
    #[must_use]
    pub fn source(&self, damage: Damage) -> RestoreSource {
        RestoreSource::new(Arc::clone(&self.metadata), Arc::new(MemoryOpener::new(self, damage)))
    }

    /// Plans, stages and switches. The token of the switch.
    ///
    /// # Errors
    /// Those of the adapter.
    pub async fn restore(
        &self,
        adapter: &dyn ServiceAdapter,
        cx: &OpContext,
        target: &RestoreTarget,
    ) -> Result<StepToken, AdapterError> {
        let plan = adapter.plan_restore(cx, &self.metadata, target).await?;
        let staged = adapter.stage(cx, &plan, &self.source(Damage::None)).await?;
        adapter.switch(cx, &plan, &staged).await
    }

    /// The chunks of one artifact.
    #[must_use]
    pub fn body(&self, name: &ArtifactName) -> &[Bytes] {
        self.bodies.iter().find(|(n, _)| n == name).map_or(&[], |(_, chunks)| chunks)
    }
}

/// Backs up into memory, with the adapter's content check in step: `open`, every body, `release`, `settle`.
///
/// # Errors
/// Those of the adapter; `release` and `settle` have run then, as the engine does it.
pub async fn capture(adapter: &dyn ServiceAdapter, cx: &OpContext) -> Result<Captured, AdapterError> {
    let started_at = cx.clock.now();
    let mut source = adapter.open(cx).await?.into_parts();
    let mut read = Read::default();
    let outcome = loop {
        match source.artifacts.next().await {
            None => break Ok(()),
            Some(Err(e)) => break Err(e),
            Some(Ok(artifact)) => match read.artifact(adapter, cx, artifact).await {
                Ok(()) => {}
                Err(e) => break Err(e),
            },
        }
    };
    drop(source.artifacts);
    let released =
        (source.release)(if outcome.is_ok() { ReadOutcome::Complete } else { ReadOutcome::Failed }).await;
    let result = outcome.and(released);
    let id = BackupId {
        service: cx.service.clone(),
        interval: Interval::new("manual").expect("a valid name"),
        timestamp: cx.timestamp,
    };
    if let Some(settle) = source.settle {
        let committed = result.is_ok();
        settle(if committed { Settlement::Committed(id.clone()) } else { Settlement::Abandoned }).await?;
    }
    let report = result?;
    // As the engine does it: what the bytes prove, then what the adapter adds.
    read.evidence.merge(report.evidence.clone());
    let metadata = Metadata {
        service: id.service,
        interval: id.interval,
        timestamp: id.timestamp,
        size_bytes: read.artifacts.iter().map(|a| a.plain_bytes).sum(),
        status: Status::Success,
        host: "conformance".into(),
        backed_up_at: cx.clock.now(),
        format_version: FORMAT_VERSION,
        features: Vec::new(),
        requires: Vec::new(),
        store_id: "memory".into(),
        run_id: cx.run_id.clone(),
        tool: "testkit".into(),
        adapter: adapter.kind().into(),
        service_version: report.service_version.clone(),
        image: report.image.clone(),
        consistency: report.consistency,
        consistent_from: report.consistent_from,
        consistent_to: report.consistent_to,
        capture: Capture {
            mode: report.mode.clone(),
            started_at: Some(started_at),
            interruption_ms: report.interruption_ms,
            lock_ms: report.lock_ms,
            exit_codes: report.exit_codes.clone(),
            warnings: report.warnings.clone(),
            fingerprint: report.fingerprint.clone(),
            ..Capture::default()
        },
        artifacts: read.artifacts,
        evidence: read.evidence,
        encryption: None,
        suspect_because: Vec::new(),
        unknown: std::collections::BTreeMap::new(),
    };
    Ok(Captured { metadata: Arc::new(metadata), bodies: read.bodies, report })
}

#[derive(Default)]
struct Read {
    artifacts: Vec<ArtifactMeta>,
    bodies: Vec<(ArtifactName, Vec<Bytes>)>,
    evidence: Evidence,
}

impl Read {
    async fn artifact(
        &mut self,
        adapter: &dyn ServiceAdapter,
        cx: &OpContext,
        artifact: Artifact,
    ) -> Result<(), AdapterError> {
        let mut meta = ArtifactMeta {
            name: artifact.name.clone(),
            attributes: artifact.attributes,
            plain_bytes: 0,
            plain_blake3: String::new(),
            encodings: Vec::new(),
            files: Vec::new(),
            external: None,
        };
        match artifact.body {
            ArtifactBody::External(reference) => meta.external = Some(reference),
            ArtifactBody::Stream(mut body) => {
                let mut check = adapter.content_check(&CheckPurpose::Capture, &meta);
                let mut hash = blake3::Hasher::new();
                let mut chunks = Vec::new();
                while let Some(chunk) = body.next().await {
                    let chunk = chunk?;
                    hash.update(&chunk);
                    meta.plain_bytes += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
                    if let Some(check) = &mut check {
                        check.update(&chunk)?;
                    }
                    chunks.push(chunk);
                }
                if let Some(check) = check {
                    self.evidence.merge(check.finish()?);
                }
                meta.plain_blake3 = hash.finalize().to_hex().to_string();
                let dot = if artifact.extension.is_empty() { "" } else { "." };
                let path = format!("{}_{}{dot}{}", artifact.name, cx.timestamp, artifact.extension);
                let stored_sha256 = String::new();
                meta.files.push(StoredFile { path, stored_bytes: meta.plain_bytes, stored_sha256 });
                self.bodies.push((artifact.name, chunks));
            }
        }
        self.artifacts.push(meta);
        Ok(())
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "intact",
            Self::Truncated => "truncated",
            Self::Flipped => "flipped",
        })
    }
}
