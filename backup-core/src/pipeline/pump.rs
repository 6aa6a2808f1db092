//! Plain bytes to stored bytes.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::frames::{Compressor, Framer};
use super::observer::{Observer, PlainObserver, Sha256Observer};
use super::sealed_files;
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
    /// What was applied, in order.
    pub encodings: Vec<String>,
    /// What the content check counted, if there was one.
    pub evidence: Option<Evidence>,
    /// The files, in order: at least one, and more only of what is encrypted. See [`PipelineSettings::files`].
    pub files: Vec<EncodedFile>,
}

/// One stored file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EncodedFile {
    /// Length as stored, in bytes.
    pub bytes: u64,
    /// SHA-256 as stored, lower-case hex.
    pub sha256: String,
    /// What the store says of it.
    pub object: ObjectInfo,
}

/// Where the files of an artifact are written.
#[async_trait]
pub trait OpenFile: Send {
    /// The writer of the file with this number, from 0 on. Only the first one is sure to be asked for; `None` for a later
    /// one: the file before it takes all that is left.
    ///
    /// # Errors
    /// Those of the store.
    async fn open(&mut self, number: usize) -> Result<Option<Box<dyn StoreWriter>>, StoreError>;
}

/// Everything goes to one writer.
#[derive(Debug)]
pub struct OneFile(Option<Box<dyn StoreWriter>>);

impl OneFile {
    /// To this one.
    #[must_use]
    pub fn new(writer: Box<dyn StoreWriter>) -> Self {
        Self(Some(writer))
    }
}

#[async_trait]
impl OpenFile for OneFile {
    async fn open(&mut self, _: usize) -> Result<Option<Box<dyn StoreWriter>>, StoreError> {
        Ok(self.0.take())
    }
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
    pub(super) fn internal(operation: &'static str, reason: impl ToString) -> Self {
        Self::Internal { operation, reason: reason.to_string() }
    }
}

/// Reads `body` to its end and writes it, compressed, to a writer of `files`, or to several: see
/// [`PipelineSettings::files`].
///
/// `check` sees every plain byte, in order. On any error, and when [`PipelineSettings::cancel`] fires, the body is
/// dropped at once and each open writer aborted; the last file is finished only after the body ended, the check agreed, and
/// the store took every byte. Files before it were finished when they were whole: after an error they are for the caller to
/// remove. Dropped early, it leaves no work behind that takes longer than a frame.
///
/// # Errors
/// See [`PumpError`].
pub async fn pump(
    body: ByteStream<AdapterError>,
    check: Option<Box<dyn ContentCheck>>,
    files: &mut dyn OpenFile,
    settings: &PipelineSettings,
) -> Result<Encoded, PumpError> {
    let result = match &settings.recipients {
        None => plain(body, check, files, settings).await,
        Some(recipients) => sealed_files::write(body, check, files, recipients, settings).await,
    };
    result.map_err(|error| match error {
        PumpError::Source(e) | PumpError::Check(e)
            if e.kind() == AdapterErrorKind::Cancelled && settings.cancel.is_cancelled() =>
        {
            PumpError::Cancelled
        }
        error => error,
    })
}

/// As it is, into one file.
async fn plain(
    body: ByteStream<AdapterError>,
    check: Option<Box<dyn ContentCheck>>,
    files: &mut dyn OpenFile,
    settings: &PipelineSettings,
) -> Result<Encoded, PumpError> {
    let writer = files.open(0).await.map_err(PumpError::Store)?;
    let mut writer = writer.ok_or_else(|| PumpError::internal("write", "there is nowhere to"))?;
    let (jobs, in_order) = mpsc::channel(settings.threads() + LOOKAHEAD);
    let mut frames = Frames::new(in_order, settings);
    let mut sink = Sink::new(writer.as_mut());
    let write_side = async {
        while let Some(bytes) = frames.next().await? {
            sink.write(bytes).await?;
        }
        sink.finish().await
    };
    let transferred = tokio::select! {
        biased;
        () = settings.cancel.cancelled() => Err(PumpError::Cancelled),
        result = async { tokio::try_join!(read_side(body, check, jobs, settings), write_side) } => result,
    };
    match transferred {
        Ok((plain, (bytes, sha256))) => {
            let file = finish(writer, bytes, sha256).await?;
            Ok(plain.encoded(frames.plain_bytes, settings, vec![file]))
        }
        Err(error) => Err(give_up(writer, error).await),
    }
}

/// Ends a file that is whole.
pub(super) async fn finish(
    writer: Box<dyn StoreWriter>,
    bytes: u64,
    sha256: String,
) -> Result<EncodedFile, PumpError> {
    let object = writer.finish().await.map_err(PumpError::Store)?;
    if object.bytes != bytes {
        let what = format!("it holds {} bytes, {bytes} were written", object.bytes);
        return Err(PumpError::Store(StoreError::other("store", &object.key, what)));
    }
    Ok(EncodedFile { bytes, sha256, object })
}

/// Removes what was written of a file; `error` is why.
pub(super) async fn give_up(writer: Box<dyn StoreWriter>, error: PumpError) -> PumpError {
    if let Err(e) = writer.abort().await {
        tracing::warn!(error = %crate::error::chain(&e), "Could not remove an incomplete write.");
    }
    error
}

/// What a pipeline with these settings applies, in order.
pub(super) fn encodings(settings: &PipelineSettings) -> Vec<String> {
    let sealed = settings.recipients.is_some().then_some(AGE);
    std::iter::once(ZSTD).chain(sealed).map(str::to_owned).collect()
}

/// What is known of the bytes before any encoding.
pub(super) struct Plain {
    blake3: String,
    evidence: Option<Evidence>,
}

impl Plain {
    pub(super) fn encoded(
        self,
        plain_bytes: u64,
        settings: &PipelineSettings,
        files: Vec<EncodedFile>,
    ) -> Encoded {
        let Self { blake3: plain_blake3, evidence } = self;
        Encoded { plain_bytes, plain_blake3, encodings: encodings(settings), evidence, files }
    }
}

/// A frame that is being compressed.
pub(super) struct Job {
    plain_bytes: usize,
    stored: AbortOnDropHandle<Result<Bytes, &'static str>>,
}

/// Cuts the body into frames, shows them to the observer, and starts their compression.
pub(super) async fn read_side(
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
pub(super) struct Frames<'a> {
    jobs: mpsc::Receiver<Job>,
    settings: &'a PipelineSettings,
    /// Until it was given out.
    table: Option<SeekTable>,
    pub(super) plain_bytes: u64,
}

impl<'a> Frames<'a> {
    pub(super) fn new(jobs: mpsc::Receiver<Job>, settings: &'a PipelineSettings) -> Self {
        Self { jobs, settings, table: Some(SeekTable::default()), plain_bytes: 0 }
    }

    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, PumpError> {
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
pub(super) struct Sink<'a> {
    writer: &'a mut dyn StoreWriter,
    hash: Observer<String>,
    bytes: u64,
}

impl<'a> Sink<'a> {
    pub(super) fn new(writer: &'a mut dyn StoreWriter) -> Self {
        Self { writer, hash: Observer::spawn("the hash", Sha256Observer::default()), bytes: 0 }
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), PumpError> {
        self.hash(bytes.clone()).await?;
        self.store(bytes).await
    }

    pub(super) async fn hash(&mut self, bytes: Bytes) -> Result<(), PumpError> {
        self.hash.send(bytes).await.map_err(|e| PumpError::internal("hash", e))
    }

    pub(super) async fn store(&mut self, bytes: Bytes) -> Result<(), PumpError> {
        self.bytes += bytes.len() as u64;
        self.writer.write(bytes).await.map_err(PumpError::Store)
    }

    /// Length and SHA-256 of all that was written.
    pub(super) async fn finish(self) -> Result<(u64, String), PumpError> {
        let sha256 = self.hash.finish().await.map_err(|e| PumpError::internal("hash", e))?;
        Ok((self.bytes, sha256))
    }
}
