//! Work that must see every byte in order, on its own thread: hashes and content checks.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};

use crate::adapter::ContentCheck;
use crate::error::{AdapterError, AdapterErrorKind};
use crate::metadata::Evidence;

/// How many chunks may wait for an observer.
const QUEUE: usize = 2;

/// Sees every byte in order.
pub(super) trait Observe: Send + 'static {
    type Output: Send + 'static;

    fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError>;

    /// Called only after the true end of the bytes.
    fn finish(self) -> Result<Self::Output, AdapterError>;
}

enum Message {
    Data(Bytes),
    End,
}

/// A running [`Observe`]. Dropped, it stops after the chunk that it is working on.
#[derive(Debug)]
pub(super) struct Observer<T> {
    queue: mpsc::Sender<Message>,
    task: JoinHandle<Result<T, AdapterError>>,
    what: &'static str,
}

impl<T: Send + 'static> Observer<T> {
    /// Starts `observe`; `what` names it, should it panic.
    pub(super) fn spawn<O: Observe<Output = T>>(what: &'static str, mut observe: O) -> Self {
        let (queue, mut chunks) = mpsc::channel(QUEUE);
        let task = tokio::task::spawn_blocking(move || {
            while let Some(message) = chunks.blocking_recv() {
                match message {
                    Message::End => return observe.finish(),
                    // The owner is gone: what still waits is of no use to anybody.
                    Message::Data(_) if chunks.is_closed() => break,
                    Message::Data(bytes) => observe.update(&bytes)?,
                }
            }
            Err(AdapterError::cancelled())
        });
        Self { queue, task, what }
    }

    /// Hands over the next bytes, without a copy.
    ///
    /// # Errors
    /// That of the observer, which has ended then.
    pub(super) async fn send(&mut self, bytes: Bytes) -> Result<(), AdapterError> {
        if self.queue.send(Message::Data(bytes)).await.is_ok() {
            return Ok(());
        }
        match (&mut self.task).await {
            Ok(Err(e)) => Err(e),
            Ok(Ok(_)) => {
                Err(AdapterError::new(AdapterErrorKind::Other, format!("{} ended early", self.what)))
            }
            Err(e) => Err(panicked(self.what, e)),
        }
    }

    /// Declares the end of the bytes and returns the outcome.
    pub(super) async fn finish(self) -> Result<T, AdapterError> {
        let Self { queue, task, what } = self;
        // A closed queue means that the observer failed already, which the task tells.
        drop(queue.send(Message::End).await);
        task.await.map_err(|e| panicked(what, e))?
    }
}

/// The error of a task that was lost.
pub(super) fn panicked(what: &str, e: JoinError) -> AdapterError {
    if e.is_cancelled() {
        return AdapterError::cancelled();
    }
    AdapterError::new(AdapterErrorKind::Other, format!("{what} panicked")).with_source(e)
}

/// BLAKE3 of the plain bytes, and the adapter's check.
pub(super) struct PlainObserver {
    hash: blake3::Hasher,
    check: Option<Box<dyn ContentCheck>>,
}

impl PlainObserver {
    pub(super) fn new(check: Option<Box<dyn ContentCheck>>) -> Self {
        Self { hash: blake3::Hasher::new(), check }
    }
}

impl Observe for PlainObserver {
    type Output = (String, Option<Evidence>);

    fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        self.hash.update(bytes);
        self.check.as_mut().map_or(Ok(()), |check| check.update(bytes))
    }

    fn finish(self) -> Result<Self::Output, AdapterError> {
        let evidence = self.check.map(ContentCheck::finish).transpose()?;
        Ok((self.hash.finalize().to_hex().to_string(), evidence))
    }
}

/// SHA-256 of the stored bytes (by the processor's SHA instructions, where it has them).
#[derive(Default)]
pub(super) struct Sha256Observer(sha2::Sha256);

impl Observe for Sha256Observer {
    type Output = String;

    fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        sha2::Digest::update(&mut self.0, bytes);
        Ok(())
    }

    fn finish(self) -> Result<String, AdapterError> {
        Ok(hex::encode(sha2::Digest::finalize(self.0)))
    }
}
