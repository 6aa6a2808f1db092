//! Encrypted artifacts: into one file as long as one core encrypts as fast as the rest goes, else into several.
//!
//! What age encrypts is one chain of bytes, the work of one core, and so is its SHA-256. A file that these hold up is
//! therefore left to them, and the next frames begin another one, on other cores. Files are cut between frames; each is
//! encrypted by itself, and the decrypted ones, one after the other, are the compressed artifact with its seek table.

use std::collections::BTreeMap;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::pump::{Encoded, EncodedFile, Frames, OpenFile, PumpError, Sink, finish, give_up, read_side};
use super::sealed::{self, Feed, Stage};
use super::{LOOKAHEAD, PipelineSettings};
use crate::adapter::ContentCheck;
use crate::encryption::Recipients;
use crate::error::AdapterError;
use crate::source::ByteStream;
use crate::store::StoreWriter;

/// One core is the limit if what stores a file waits for it for this part of the time, or more.
const ONE_IN: u32 = 8;

/// See [`pump`](super::pump()), with recipients.
pub(super) async fn write(
    body: ByteStream<AdapterError>,
    check: Option<Box<dyn ContentCheck>>,
    files: &mut dyn OpenFile,
    recipients: &Recipients,
    settings: &PipelineSettings,
) -> Result<Encoded, PumpError> {
    let (jobs, in_order) = mpsc::channel(settings.threads() + LOOKAHEAD);
    let mut frames = Frames::new(in_order, settings);
    let mut writing = Writing::new(files, recipients, settings);
    let (done, results) = mpsc::unbounded_channel();
    let (proven, whole) = oneshot::channel();
    let read_side = async {
        let plain = read_side(body, check, jobs, settings).await?;
        // The other side waits for it, or has failed, which then is the outcome.
        let _told = proven.send(());
        Ok(plain)
    };
    let none = || PumpError::internal("write", "there is nowhere to");
    let mut file = writing.begin(&done).await?.ok_or_else(none)?;
    let frame_side = async {
        // Dropped with this: what is stored is complete when nobody is left who could tell of another file.
        let done = done;
        while let Some(bytes) = frames.next().await? {
            if writing.wants_another(&file)
                && let Some(next) = writing.begin(&done).await?
            {
                std::mem::replace(&mut file, next).input.end().await;
            }
            file.input.give(bytes).await;
        }
        whole.await.map_err(|e| PumpError::internal("encrypt", e))?;
        file.input.end().await;
        Ok(())
    };
    let written = tokio::select! {
        biased;
        () = settings.cancel.cancelled() => Err(PumpError::Cancelled),
        result = async { tokio::try_join!(read_side, frame_side, collect(results)) } => result,
    };
    match written {
        Ok((plain, (), files)) if files.len() == writing.begun => {
            Ok(plain.encoded(frames.plain_bytes, settings, files))
        }
        Ok(_) => Err(PumpError::internal("encrypt", "a file was lost")),
        Err(error) => {
            // Each removes what it has written so far.
            writing.given_up.cancel();
            while writing.tasks.join_next().await.is_some() {}
            Err(error)
        }
    }
}

/// How a file ended, and its number.
type Ended = (usize, Result<EncodedFile, PumpError>);

/// All files in their order, as soon as the last one is stored.
async fn collect(mut results: mpsc::UnboundedReceiver<Ended>) -> Result<Vec<EncodedFile>, PumpError> {
    let mut files = BTreeMap::new();
    while let Some((number, result)) = results.recv().await {
        files.insert(number, result?);
    }
    Ok(files.into_values().collect())
}

/// The files of an artifact.
struct Writing<'a> {
    files: &'a mut dyn OpenFile,
    recipients: &'a Recipients,
    settings: &'a PipelineSettings,
    /// How many may be worked on at the same time.
    slots: Arc<Semaphore>,
    begun: usize,
    tasks: JoinSet<()>,
    given_up: CancellationToken,
}

/// The file that takes the next frame.
struct Current {
    input: Feed,
    pace: Arc<Pace>,
}

/// What holds a file up.
#[derive(Default)]
struct Pace {
    /// When its first bytes were stored: what was before tells nothing of the store.
    since: OnceLock<Instant>,
    /// How long since then what stores it waited for the core that encrypts and the one that hashes, in microseconds.
    waited: AtomicU64,
}

impl Pace {
    fn is_bound_by_a_core(&self) -> bool {
        let waited = Duration::from_micros(self.waited.load(Ordering::Relaxed));
        self.since.get().is_some_and(|since| waited > since.elapsed() / ONE_IN)
    }

    fn stored(&self, waited: Duration) {
        if self.since.set(Instant::now()).is_err() {
            self.waited.fetch_add(waited.as_micros() as u64, Ordering::Relaxed);
        }
    }
}

impl<'a> Writing<'a> {
    fn new(files: &'a mut dyn OpenFile, recipients: &'a Recipients, settings: &'a PipelineSettings) -> Self {
        let slots = Arc::new(Semaphore::new(settings.files.max(1)));
        let (tasks, given_up) = (JoinSet::new(), CancellationToken::new());
        Self { files, recipients, settings, slots, begun: 0, tasks, given_up }
    }

    /// Whether a core is what holds this file up, and another one is allowed.
    fn wants_another(&self, file: &Current) -> bool {
        self.settings.files > 1
            && file.input.is_full()
            && self.slots.available_permits() > 0
            && file.pace.is_bound_by_a_core()
    }

    /// Begins the next file, if there may be one.
    async fn begin(&mut self, done: &mpsc::UnboundedSender<Ended>) -> Result<Option<Current>, PumpError> {
        let slot = Arc::clone(&self.slots).acquire_owned().await;
        let slot = slot.map_err(|e| PumpError::internal("encrypt", e))?;
        let number = self.begun;
        let Some(writer) = self.files.open(number).await.map_err(PumpError::Store)? else { return Ok(None) };
        self.begun += 1;
        let waiting = if self.settings.files > 1 { self.settings.backlog } else { LOOKAHEAD };
        let Stage { input, output, task } = sealed::seal(self.recipients.clone(), waiting);
        let (given_up, pace, done) = (self.given_up.clone(), Arc::<Pace>::default(), done.clone());
        let current = Current { input, pace: Arc::clone(&pace) };
        self.tasks.spawn(async move {
            let stored = store(writer, output, task, &given_up, &pace);
            // A panic would leave everybody else waiting.
            let result = AssertUnwindSafe(stored).catch_unwind().await;
            let result = result.unwrap_or_else(|_| Err(PumpError::internal("store", "a panic")));
            drop(slot);
            // Nobody listens any more: then that one knows why.
            let _told = done.send((number, result));
        });
        Ok(Some(current))
    }
}

/// Stores what comes out of the encryption of one file.
async fn store(
    mut writer: Box<dyn StoreWriter>,
    mut output: mpsc::Receiver<Bytes>,
    task: JoinHandle<io::Result<()>>,
    given_up: &CancellationToken,
    pace: &Pace,
) -> Result<EncodedFile, PumpError> {
    let mut sink = Sink::new(writer.as_mut());
    let stored = async {
        loop {
            let since = Instant::now();
            let Some(bytes) = output.recv().await else { break };
            sink.hash(bytes.clone()).await?;
            let waited = since.elapsed();
            sink.store(bytes).await?;
            pace.stored(waited);
        }
        // The end of the output is not yet one of what was to be encrypted.
        let ended = task.await.map_err(|e| PumpError::internal("encrypt", e))?;
        ended.map_err(|e| PumpError::internal("encrypt", e))?;
        sink.finish().await
    };
    let stored = tokio::select! {
        biased;
        () = given_up.cancelled() => Err(PumpError::Cancelled),
        stored = stored => stored,
    };
    match stored {
        Ok((bytes, sha256)) => finish(writer, bytes, sha256).await,
        Err(error) => Err(give_up(writer, error).await),
    }
}
