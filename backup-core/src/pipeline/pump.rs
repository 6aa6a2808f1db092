//! Plain bytes to stored bytes.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::frames::{Compressor, Framer};
use super::observer::{Observer, PlainObserver, Sha256Observer};
use super::sealed::{self, Stage};
use super::seek_table::SeekTable;
use super::{AGE, LOOKAHEAD, PipelineSettings, ZSTD};
use crate::adapter::ContentCheck;
use crate::error::{AdapterError, AdapterErrorKind, StoreError};
use crate::metadata::Evidence;
use crate::source::ByteStream;
use crate::store::{ObjectInfo, StoreWriter};

/// What was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Encoded {
    /// Length of the body, in bytes.
    pub plain_bytes: u64,
    /// BLAKE3 of the body, lower-case hex.
    pub plain_blake3: String,
    /// Length as stored, in bytes.
    pub stored_bytes: u64,
    /// SHA-256 as stored, lower-case hex.
    pub stored_sha256: String,
    /// What was applied, in order.
    pub encodings: Vec<String>,
    /// What the content check counted, if there was one.
    pub evidence: Option<Evidence>,
    /// What the store says of it.
    pub object: ObjectInfo,
}

/// Why nothing was stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PumpError {
    /// The body yielded an error.
    #[error("the source failed")]
    Source(#[source] AdapterError),
    /// The content check found the bytes wrong, or failed itself.
    #[error("the content check failed")]
    Check(#[source] AdapterError),
    /// The store did not take the bytes.
    #[error("the store failed")]
    Store(#[source] StoreError),
    /// It was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// Compression or hashing failed: no memory, or a fault of this program.
    #[error("cannot {operation}: {reason}")]
    Internal {
        /// What was tried: a verb phrase.
        operation: &'static str,
        /// Why it failed.
        reason: String,
    },
}

impl PumpError {
    fn internal(operation: &'static str, reason: impl ToString) -> Self {
        Self::Internal { operation, reason: reason.to_string() }
    }
}

/// Reads `body` to its end and writes it, compressed, to `writer`, which is finished then.
///
/// `check` sees every plain byte, in order. On any error, and when [`PipelineSettings::cancel`] fires, the body is
/// dropped at once and the writer aborted; `finish` is called only after the body ended, the check agreed, and the
/// store took every byte. Dropped early, it leaves no work behind that takes longer than a frame.
///
/// # Errors
/// See [`PumpError`].
pub async fn pump(
    body: ByteStream<AdapterError>,
    check: Option<Box<dyn ContentCheck>>,
    mut writer: Box<dyn StoreWriter>,
    settings: &PipelineSettings,
) -> Result<Encoded, PumpError> {
    let transferred = tokio::select! {
        biased;
        () = settings.cancel.cancelled() => Err(PumpError::Cancelled),
        result = transfer(body, check, writer.as_mut(), settings) => result,
    };
    match transferred {
        Ok((plain, stored)) => {
            let object = writer.finish().await.map_err(PumpError::Store)?;
            if object.bytes != stored.bytes {
                let what = format!("it holds {} bytes, {} were written", object.bytes, stored.bytes);
                return Err(PumpError::Store(StoreError::other("store", &object.key, what)));
            }
            Ok(Encoded {
                plain_bytes: stored.plain_bytes,
                plain_blake3: plain.blake3,
                stored_bytes: stored.bytes,
                stored_sha256: stored.sha256,
                encodings: encodings(settings),
                evidence: plain.evidence,
                object,
            })
        }
        Err(error) => {
            if let Err(e) = writer.abort().await {
                tracing::warn!(error = %crate::error::chain(&e), "Could not remove an incomplete write.");
            }
            match error {
                PumpError::Source(e) | PumpError::Check(e)
                    if e.kind() == AdapterErrorKind::Cancelled && settings.cancel.is_cancelled() =>
                {
                    Err(PumpError::Cancelled)
                }
                error => Err(error),
            }
        }
    }
}

/// What a pipeline with these settings applies, in order.
pub(super) fn encodings(settings: &PipelineSettings) -> Vec<String> {
    let sealed = settings.recipients.is_some().then_some(AGE);
    std::iter::once(ZSTD).chain(sealed).map(str::to_owned).collect()
}

struct Plain {
    blake3: String,
    evidence: Option<Evidence>,
}

struct Stored {
    plain_bytes: u64,
    bytes: u64,
    sha256: String,
}

/// A frame that is being compressed.
struct Job {
    plain_bytes: usize,
    stored: AbortOnDropHandle<Result<Bytes, &'static str>>,
}

async fn transfer(
    body: ByteStream<AdapterError>,
    check: Option<Box<dyn ContentCheck>>,
    writer: &mut dyn StoreWriter,
    settings: &PipelineSettings,
) -> Result<(Plain, Stored), PumpError> {
    let (jobs, mut in_order) = mpsc::channel(settings.threads() + LOOKAHEAD);
    let read_side = read_side(body, check, jobs, settings);
    let mut sink = Sink { writer, hash: Observer::spawn("the hash", Sha256Observer::default()), bytes: 0 };
    let mut frames =
        Frames { jobs: &mut in_order, settings, table: Some(SeekTable::default()), plain_bytes: 0 };
    let Some(recipients) = settings.recipients.clone() else {
        let write_side = async {
            while let Some(bytes) = frames.next().await? {
                sink.write(bytes).await?;
            }
            sink.finish().await
        };
        let (plain, (bytes, sha256)) = tokio::try_join!(read_side, write_side)?;
        return Ok((plain, Stored { plain_bytes: frames.plain_bytes, bytes, sha256 }));
    };
    let Stage { input, mut output, task } = sealed::seal(recipients);
    let frame_side = async {
        while let Some(bytes) = frames.next().await? {
            input.give(bytes).await;
        }
        input.end().await;
        Ok(())
    };
    let write_side = async {
        while let Some(bytes) = output.recv().await {
            sink.write(bytes).await?;
        }
        // The end of the output is not yet one of what was to be encrypted.
        let ended = task.await.map_err(|e| PumpError::internal("encrypt", e))?;
        ended.map_err(|e| PumpError::internal("encrypt", e))?;
        sink.finish().await
    };
    let (plain, (), (bytes, sha256)) = tokio::try_join!(read_side, frame_side, write_side)?;
    Ok((plain, Stored { plain_bytes: frames.plain_bytes, bytes, sha256 }))
}

/// Cuts the body into frames, shows them to the observer, and starts their compression.
async fn read_side(
    body: ByteStream<AdapterError>,
    check: Option<Box<dyn ContentCheck>>,
    jobs: mpsc::Sender<Job>,
    settings: &PipelineSettings,
) -> Result<Plain, PumpError> {
    let threads = settings.threads();
    let compressor = Arc::new(Compressor::new(settings.level, threads));
    let running = Arc::new(Semaphore::new(threads));
    let mut observer = Observer::spawn("the content check", PlainObserver::new(check));
    let mut framer = Framer::new(body, threads);
    while let Some(frame) = framer.next().await.map_err(PumpError::Source)? {
        if !frame.is_empty() {
            observer.send(frame.clone()).await.map_err(PumpError::Check)?;
        }
        let permit =
            Arc::clone(&running).acquire_owned().await.map_err(|e| PumpError::internal("compress", e))?;
        let compressor = Arc::clone(&compressor);
        let plain_bytes = frame.len();
        let task = tokio::task::spawn_blocking(move || {
            let stored = compressor.compress(&frame);
            drop(permit);
            stored
        });
        let job = Job { plain_bytes, stored: AbortOnDropHandle::new(task) };
        // The other side ends early only with an error, which then is the outcome.
        jobs.send(job).await.map_err(|_| PumpError::internal("compress", "nobody takes the frames"))?;
    }
    drop(jobs);
    let (blake3, evidence) = observer.finish().await.map_err(PumpError::Check)?;
    Ok(Plain { blake3, evidence })
}

/// The compressed frames in order, and the seek table at the end.
struct Frames<'a> {
    jobs: &'a mut mpsc::Receiver<Job>,
    settings: &'a PipelineSettings,
    /// Until it was given out.
    table: Option<SeekTable>,
    plain_bytes: u64,
}

impl Frames<'_> {
    async fn next(&mut self) -> Result<Option<Bytes>, PumpError> {
        let Some(job) = self.jobs.recv().await else {
            return Ok(self.table.take().and_then(|table| table.encode()).map(Bytes::from));
        };
        let frame = job.stored.await.map_err(|e| PumpError::internal("compress", e))?;
        let frame = frame.map_err(|e| PumpError::internal("compress", e))?;
        if let Some(table) = &mut self.table {
            // Both are far below 4 GiB: a frame has at most 1 MiB of plain bytes.
            table.push(frame.len() as u32, job.plain_bytes as u32);
        }
        self.plain_bytes += job.plain_bytes as u64;
        (self.settings.progress)(self.plain_bytes);
        Ok(Some(frame))
    }
}

/// Hashes and stores.
struct Sink<'a> {
    writer: &'a mut dyn StoreWriter,
    hash: Observer<String>,
    bytes: u64,
}

impl Sink<'_> {
    async fn write(&mut self, bytes: Bytes) -> Result<(), PumpError> {
        self.bytes += bytes.len() as u64;
        self.hash.send(bytes.clone()).await.map_err(|e| PumpError::internal("hash", e))?;
        self.writer.write(bytes).await.map_err(PumpError::Store)
    }

    /// Length and SHA-256 of all that was written.
    async fn finish(self) -> Result<(u64, String), PumpError> {
        let sha256 = self.hash.finish().await.map_err(|e| PumpError::internal("hash", e))?;
        Ok((self.bytes, sha256))
    }
}
