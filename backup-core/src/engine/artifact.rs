//! One artifact of a backup: from the adapter's bytes to its stored files.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::Inner;
use super::back_up::UsualSizes;
use super::capture::adapter_error;
use crate::adapter::CheckPurpose;
use crate::catalog::Draft;
use crate::context::OpContext;
use crate::encryption::{PASSPHRASE, Recipients};
use crate::error::{BackupError, Stage, StoreError, chain};
use crate::event::Event;
use crate::metadata::{ArtifactMeta, Evidence, StoredFile};
use crate::pipeline::{self, OpenFile, PipelineSettings, PumpError};
use crate::plan::PlannedService;
use crate::source::{Artifact, ArtifactBody};
use crate::store::{StoreWriter, WriteOptions};

/// At most ten progress events a second for each artifact.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// How many files an artifact has at most: three digits in their names. The last one takes all that is left.
const MAX_FILES: usize = 999;

/// How many of them are encrypted at the same time: each has its backlog and what its writer holds in memory.
const MAX_AT_ONCE: usize = 3;

impl Inner {
    /// Stores one artifact; what is recorded of it, and what its content check counted.
    pub(super) async fn store_artifact(
        &self,
        cx: &OpContext,
        service: &PlannedService,
        draft: &Draft,
        usual: &UsualSizes,
        artifact: Artifact,
        recipients: Option<Recipients>,
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
        let check = service.adapter.content_check(&CheckPurpose::Capture, &meta);
        let settings = self
            .pipeline(cx, &name, size_hint.or_else(|| usual.get(&name).copied()))
            .with_files(files_at_once(cx.threads, recipients.as_ref()))
            .with_backlog(self.backlog)
            .with_recipients(recipients);
        let ending =
            format!("{}.zst{}", dotted(&extension), settings.recipients.as_ref().map_or("", |_| ".age"));
        let mut files = Files { draft, name: name.as_str(), ending, size_hint, paths: Vec::new() };
        let encoded = pipeline::pump(body, check, &mut files, &settings).await.map_err(|e| match e {
            PumpError::Source(e) | PumpError::Check(e) => adapter_error(service, Stage::Read, e),
            PumpError::Store(e) => BackupError::store(format!("write {}", draft.id()), e),
            PumpError::Cancelled => BackupError::Cancelled,
            e => BackupError::Refused(format!("artifact `{name}` could not be encoded: {}", chain(&e))),
        })?;
        meta.plain_bytes = encoded.plain_bytes;
        meta.plain_blake3 = encoded.plain_blake3;
        meta.encodings = encoded.encodings;
        let stored = files.paths.into_iter().zip(encoded.files);
        meta.files = stored
            .map(|(path, f)| StoredFile { path, stored_bytes: f.bytes, stored_sha256: f.sha256 })
            .collect();
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
                    store: None,
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
}

/// The files of one artifact, as they are named in the backup's directory.
struct Files<'a> {
    draft: &'a Draft,
    name: &'a str,
    ending: String,
    size_hint: Option<u64>,
    /// Of those begun.
    paths: Vec<String>,
}

#[async_trait]
impl OpenFile for Files<'_> {
    async fn open(&mut self, number: usize) -> Result<Option<Box<dyn StoreWriter>>, StoreError> {
        if number >= MAX_FILES {
            return Ok(None);
        }
        // The first one's name is the same whether others follow or not.
        let part = if number == 0 { String::new() } else { format!(".{:03}", number + 1) };
        let path = format!("{}_{}{part}{}", self.name, self.draft.id().timestamp, self.ending);
        let writer = self.draft.open(&path, WriteOptions::data(self.size_hint)).await?;
        self.paths.push(path);
        Ok(Some(writer))
    }
}

/// How many files of an artifact may be encrypted at the same time. One core encrypts and hashes about what four compress, so
/// that with fewer it is not the limit. A passphrase is asked for, and costs a second, for each file: so it stays one.
fn files_at_once(threads: usize, recipients: Option<&Recipients>) -> usize {
    match recipients {
        Some(recipients) if recipients.shown() != [PASSPHRASE] => (threads / 4).clamp(1, MAX_AT_ONCE),
        _ => 1,
    }
}

fn dotted(extension: &str) -> String {
    if extension.is_empty() { String::new() } else { format!(".{extension}") }
}
