//! The reading half of [`unpump`](super::unpump()): stored bytes to frames that are being decompressed.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use super::check::{Expected, FilesObserver};
use super::decode::Decompressor;
use super::frames::FRAME_BYTES;
use super::gzip::Gunzip;
use super::observer::{Observer, panicked};
use super::sealed::{self, Stage};
use super::split::{Next, Splitter};
use super::{AGE, GZIP, PipelineSettings, ZSTD};
use crate::encryption::OpenError;
use crate::error::{AdapterError, AdapterErrorKind, StoreError};
use crate::metadata::StoredFile;
use crate::source::ByteStream;

/// Something to give out, in order.
pub(super) enum Job {
    /// A frame that is being decompressed.
    Frame { at: At, plain: AbortOnDropHandle<Result<Bytes, &'static str>> },
    /// Plain bytes.
    Ready(Bytes),
    /// What follows is the end, or cannot be read.
    End(Result<(), AdapterError>),
}

/// Where a frame begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct At {
    /// Which of the stored files.
    file: usize,
    /// Offset in that file, decrypted if it is encrypted.
    stored: u64,
    plain: u64,
}

impl At {
    pub(super) fn corrupt(self, expected: &Expected, what: &str) -> AdapterError {
        let (file, offset) = (expected.name_of(self.file), self.stored);
        AdapterError::corrupt(format!(
            "`{file}` is damaged: at stored byte {offset} (plain byte {}): {what}",
            self.plain
        ))
    }
}

/// Reads the stored bytes once, in order, and gives a job for every piece, up to their proven end.
pub(super) async fn read(
    stored: ByteStream<StoreError>,
    expected: &Expected,
    jobs: &mpsc::Sender<Job>,
    settings: &PipelineSettings,
) -> Result<(), AdapterError> {
    let mut raw = Raw::new(stored, expected);
    let decoder = |chunks| Decoder { chunks, expected, taken: 0, starts: Vec::new(), jobs, plain: 0 };
    let encodings: Vec<&str> = expected.encodings.iter().map(String::as_str).collect();
    if let [below @ .., AGE] = encodings.as_slice() {
        let (stages, next) = mpsc::channel(1);
        let feed = async {
            for file in &expected.files {
                let Stage { input, output, task } = sealed::open(settings.identities.clone());
                // The other side ends early only with an error, which then is the outcome.
                stages.send((output, task)).await.map_err(|_| AdapterError::cancelled())?;
                while let Some(chunk) = raw.chunk_of(file).await? {
                    input.give(chunk).await;
                }
                input.end().await;
            }
            drop(stages);
            // What follows the last file is too much.
            raw.chunk().await?;
            raw.finish().await
        };
        let mut decoder = decoder(Chunks::Opened { next, now: None });
        return tokio::try_join!(feed, decoder.read(below, settings.threads())).map(|_| ());
    }
    decoder(Chunks::Raw(&mut raw)).read(&encodings, settings.threads()).await?;
    raw.finish().await
}

/// The stored bytes: counted, and shown to the hash.
struct Raw<'a> {
    stored: ByteStream<StoreError>,
    expected: &'a Expected,
    /// How many came, and how many there may be.
    seen: u64,
    total: u64,
    hash: Observer<()>,
    /// Of the file that is handed out: how many bytes were, and what came with them.
    handed: u64,
    rest: Bytes,
    ended: bool,
}

impl<'a> Raw<'a> {
    fn new(stored: ByteStream<StoreError>, expected: &'a Expected) -> Self {
        let hash = Observer::spawn("the hash", FilesObserver::new(expected.files.clone()));
        let total = expected.stored_bytes();
        Self { stored, expected, seen: 0, total, hash, handed: 0, rest: Bytes::new(), ended: false }
    }

    /// What comes of one file, up to its recorded length.
    async fn chunk_of(&mut self, file: &StoredFile) -> Result<Option<Bytes>, AdapterError> {
        let left = file.stored_bytes - self.handed;
        if left > 0 && self.rest.is_empty() {
            self.rest = self.chunk().await?.unwrap_or_default();
        }
        let here = self.rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if here == 0 {
            self.handed = 0;
            return Ok(None);
        }
        self.handed += here as u64;
        Ok(Some(self.rest.split_to(here)))
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, AdapterError> {
        if self.ended {
            return Ok(None);
        }
        let chunk = loop {
            match self.stored.next().await {
                None => {
                    self.ended = true;
                    return Ok(None);
                }
                Some(Ok(chunk)) if chunk.is_empty() => {}
                Some(Ok(chunk)) => break chunk,
                Some(Err(e)) => return Err(unreadable(self.expected.locate(self.seen), e)),
            }
        };
        self.seen += chunk.len() as u64;
        if self.seen > self.total {
            let (name, total) = (self.expected.name(), self.total);
            let what = format!("`{name}` is damaged: it is longer than the recorded {total} bytes");
            return Err(AdapterError::corrupt(what));
        }
        self.hash.send(chunk.clone()).await?;
        Ok(Some(chunk))
    }

    async fn finish(self) -> Result<(), AdapterError> {
        self.hash.finish().await
    }
}

/// What is decoded: stored bytes as they are, or decrypted.
enum Chunks<'a, 'b> {
    Raw(&'b mut Raw<'a>),
    /// The files that follow, and the one at hand.
    Opened {
        next: mpsc::Receiver<Opening>,
        now: Option<Opening>,
    },
}

/// The decryption of one file: what comes out, and how it ends.
type Opening = (mpsc::Receiver<Bytes>, JoinHandle<Result<(), OpenError>>);

/// Makes frames and plain bytes of them.
struct Decoder<'a, 'b> {
    chunks: Chunks<'a, 'b>,
    expected: &'a Expected,
    /// How many bytes were taken from the chunks.
    taken: u64,
    /// Where each decrypted file began among them.
    starts: Vec<u64>,
    jobs: &'b mpsc::Sender<Job>,
    /// Plain bytes that the frames so far say they hold.
    plain: u64,
}

impl Decoder<'_, '_> {
    async fn read(&mut self, encodings: &[&str], threads: usize) -> Result<(), AdapterError> {
        let expected = self.expected;
        match encodings {
            [] => {
                while let Some(chunk) = self.chunk().await? {
                    self.ready(self.at(0), chunk).await?;
                }
                Ok(())
            }
            [ZSTD] => self.frames(threads).await,
            [GZIP] => self.gzip().await,
            _ => {
                let other = expected.encodings.join("`, `");
                let what = format!("cannot decode `{}`: encoded as `{other}`", expected.name());
                Err(AdapterError::unsupported(what))
            }
        }
    }

    /// Where the byte with this offset lies.
    fn at(&self, offset: u64) -> At {
        let (file, stored) = match &self.chunks {
            Chunks::Raw(_) => self.expected.position(offset),
            Chunks::Opened { .. } => {
                let file = self.starts.partition_point(|&start| start <= offset).saturating_sub(1);
                (file, offset - self.starts.get(file).copied().unwrap_or(0))
            }
        };
        At { file, stored, plain: self.plain }
    }

    async fn gzip(&mut self) -> Result<(), AdapterError> {
        let expected = self.expected;
        let mut gunzip = Gunzip::default();
        loop {
            let at = self.at(self.taken);
            let Some(chunk) = self.chunk().await? else {
                let last = gunzip.finish().map_err(|what| at.corrupt(expected, &what))?;
                return self.ready(at, last).await;
            };
            gunzip.push(chunk);
            while let Some(plain) = gunzip.step().await? {
                let plain = plain.map_err(|what| at.corrupt(expected, &what))?;
                self.ready(at, plain).await?;
            }
        }
    }

    async fn frames(&mut self, threads: usize) -> Result<(), AdapterError> {
        let expected = self.expected;
        let decompressor = Arc::new(Decompressor::new(threads));
        let running = Arc::new(Semaphore::new(threads));
        let mut splitter = Splitter::default();
        loop {
            let next = splitter.next();
            let at = self.at(splitter.start());
            match next {
                Next::Frame { stored, plain_bytes } => {
                    self.count(at, plain_bytes as u64)?;
                    let permit = Arc::clone(&running).acquire_owned().await;
                    let decompressor = Arc::clone(&decompressor);
                    let task = tokio::task::spawn_blocking(move || {
                        let plain = decompressor.frame(&stored);
                        drop(permit);
                        plain
                    });
                    self.give(Job::Frame { at, plain: AbortOnDropHandle::new(task) }).await?;
                }
                Next::Stream { declared } => {
                    if declared.is_some_and(|n| n > expected.plain_bytes - self.plain) {
                        return Err(self.too_much(at));
                    }
                    self.stream(at, &mut splitter, &decompressor).await?;
                }
                Next::Garbage => return Err(at.corrupt(expected, "not a zstd frame")),
                Next::More => match self.chunk().await? {
                    Some(chunk) => splitter.push(&chunk),
                    None if splitter.at_boundary() => return Ok(()),
                    None => return Err(self.cut(at)),
                },
            }
        }
    }

    /// Decodes one frame that is large, or does not say how large it is.
    async fn stream(
        &mut self,
        at: At,
        splitter: &mut Splitter,
        decompressor: &Decompressor,
    ) -> Result<(), AdapterError> {
        let expected = self.expected;
        let mut frame = decompressor.stream().map_err(|what| at.corrupt(expected, what))?;
        let mut input = splitter.take();
        let mut fed = input.len() as u64;
        loop {
            let step = tokio::task::spawn_blocking(move || {
                let out = frame.step(&mut input);
                (frame, input, out)
            });
            let (now, rest, out): (_, BytesMut, _) = step.await.map_err(|e| panicked("the decoder", e))?;
            (frame, input) = (now, rest);
            let out = out.map_err(|what| at.corrupt(expected, what))?;
            // A full buffer means that the decoder may hold more, without any further input.
            let more_inside = out.len() == FRAME_BYTES;
            self.ready(at, out).await?;
            if frame.ended() {
                let consumed = fed - input.len() as u64;
                splitter.give_back(input, consumed);
                frame.recycle(decompressor);
                return Ok(());
            }
            if input.is_empty() && !more_inside {
                let Some(chunk) = self.chunk().await? else { return Err(self.cut(at)) };
                fed += chunk.len() as u64;
                input.extend_from_slice(&chunk);
            }
        }
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, AdapterError> {
        let chunk = match &mut self.chunks {
            Chunks::Raw(raw) => raw.chunk().await?,
            Chunks::Opened { next, now } => loop {
                if let Some((output, _)) = now
                    && let Some(chunk) = output.recv().await
                {
                    break Some(chunk);
                }
                if let Some((_, task)) = now.take() {
                    let ended = task.await.map_err(|e| panicked("the decryption", e))?;
                    let name = self.expected.name_of(self.starts.len() - 1);
                    ended.map_err(|e| sealed_wrong(name, e))?;
                }
                let Some(opening) = next.recv().await else { break None };
                self.starts.push(self.taken);
                *now = Some(opening);
            },
        };
        self.taken += chunk.as_ref().map_or(0, |c| c.len() as u64);
        Ok(chunk)
    }

    async fn ready(&mut self, at: At, bytes: Bytes) -> Result<(), AdapterError> {
        self.count(at, bytes.len() as u64)?;
        self.give(Job::Ready(bytes)).await
    }

    /// Counts plain bytes before they are made or given out: a few stored bytes must not become any number of them.
    fn count(&mut self, at: At, bytes: u64) -> Result<(), AdapterError> {
        if bytes > self.expected.plain_bytes - self.plain {
            return Err(self.too_much(at));
        }
        self.plain += bytes;
        Ok(())
    }

    async fn give(&mut self, job: Job) -> Result<(), AdapterError> {
        // The other side ends early only with an error, which then is the outcome.
        self.jobs.send(job).await.map_err(|_| AdapterError::cancelled())
    }

    fn too_much(&self, at: At) -> AdapterError {
        let recorded = self.expected.plain_bytes;
        at.corrupt(self.expected, &format!("it holds more than the recorded {recorded} plain bytes"))
    }

    fn cut(&self, at: At) -> AdapterError {
        let (taken, total) = (self.taken, self.expected.stored_bytes());
        if matches!(self.chunks, Chunks::Raw(_)) && taken < total {
            at.corrupt(self.expected, &format!("the frame is cut: {taken} of {total} stored bytes are there"))
        } else {
            at.corrupt(self.expected, "the frame is not complete")
        }
    }
}

/// Why a stored file does not decrypt.
fn sealed_wrong(file: &str, e: OpenError) -> AdapterError {
    match e {
        OpenError::NoKey => {
            AdapterError::new(AdapterErrorKind::PermissionDenied, format!("no key at hand decrypts `{file}`"))
        }
        OpenError::Damaged(what) => AdapterError::corrupt(format!("`{file}` is damaged: {what}")),
        OpenError::Other(what) => {
            AdapterError::new(AdapterErrorKind::Other, format!("cannot decrypt `{file}`: {what}"))
        }
    }
}

pub(super) fn unreadable(file: &str, e: StoreError) -> AdapterError {
    let kind = match &e {
        StoreError::NotFound { .. } => {
            return AdapterError::corrupt(format!("`{file}` is damaged: the file is missing"));
        }
        StoreError::PermissionDenied { .. } => AdapterErrorKind::PermissionDenied,
        StoreError::Other { retryable: true, .. } => AdapterErrorKind::Unavailable,
        _ => AdapterErrorKind::Other,
    };
    AdapterError::new(kind, format!("the stored bytes of `{file}` are not readable")).with_source(e)
}
