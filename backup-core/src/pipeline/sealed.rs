//! The stage between frames and stored bytes: encryption, and back. Each runs on a thread of its own.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes, BytesMut};
use futures::future;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::encryption::{Identities, OpenError, Recipients};
use crate::source::CHUNK_BYTES;

/// How many chunks may wait on either side.
const QUEUE: usize = 2;

/// How a side learns that the other one is gone. Not `Interrupted`, which readers and writers take for "try again".
const GIVEN_UP: io::ErrorKind = io::ErrorKind::BrokenPipe;

enum Input {
    Data(Bytes),
    /// The true end: a queue that is merely closed means that somebody gave up.
    End,
}

/// A running stage: what goes in, what comes out.
pub(super) struct Stage<E> {
    pub(super) input: Feed,
    pub(super) output: mpsc::Receiver<Bytes>,
    pub(super) task: JoinHandle<Result<(), E>>,
}

/// Starts the encryption of what goes in, of which `waiting` chunks may wait.
pub(super) fn seal(recipients: Recipients, waiting: usize) -> Stage<io::Error> {
    let (input, mut chunks) = mpsc::channel(waiting.max(1));
    let (send, output) = mpsc::channel(QUEUE);
    let task = tokio::task::spawn_blocking(move || {
        let mut seal = recipients.seal(Chunks { send, buffer: BytesMut::new() })?;
        while let Some(message) = chunks.blocking_recv() {
            match message {
                Input::Data(bytes) => seal.write_all(&bytes)?,
                Input::End => return seal.finish(),
            }
        }
        Err(GIVEN_UP.into())
    });
    Stage { input: Feed(input), output, task }
}

/// Starts the decryption of what goes in.
pub(super) fn open(identities: Identities) -> Stage<OpenError> {
    let (input, chunks) = mpsc::channel(QUEUE);
    let (send, output) = mpsc::channel(QUEUE);
    let task = tokio::task::spawn_blocking(move || {
        let mut plain = identities.open(Stored { chunks, now: Bytes::new(), ended: false })?;
        loop {
            let mut chunk = vec![0; CHUNK_BYTES];
            let mut filled = 0;
            // Errors of the reader are those of the authentication: input and output cannot fail, only end.
            while filled < chunk.len() {
                match plain.read(&mut chunk[filled..]) {
                    Ok(0) => break,
                    Ok(n) => filled += n,
                    Err(e) if e.kind() == GIVEN_UP => {
                        return Err(OpenError::Other("it was given up".to_owned()));
                    }
                    Err(_) => return Err(OpenError::Damaged("it is not authentic".to_owned())),
                }
            }
            let whole = filled == chunk.len();
            chunk.truncate(filled);
            if (filled > 0 && send.blocking_send(chunk.into()).is_err()) || !whole {
                return Ok(());
            }
        }
    });
    Stage { input: Feed(input), output, task }
}

/// The way in. A stage that ended early tells why when it is awaited, and that is the outcome: this waits to be dropped.
pub(super) struct Feed(mpsc::Sender<Input>);

impl Feed {
    /// Whether the next chunk would have to wait.
    pub(super) fn is_full(&self) -> bool {
        self.0.capacity() == 0
    }

    pub(super) async fn give(&self, bytes: Bytes) {
        if self.0.send(Input::Data(bytes)).await.is_err() {
            future::pending::<()>().await;
        }
    }

    /// Declares the true end.
    pub(super) async fn end(self) {
        if self.0.send(Input::End).await.is_err() {
            future::pending::<()>().await;
        }
    }
}

/// Collects what is written into chunks for the other side.
struct Chunks {
    send: mpsc::Sender<Bytes>,
    buffer: BytesMut,
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let chunk = self.buffer.split().freeze();
        if chunk.is_empty() {
            return Ok(());
        }
        self.send.blocking_send(chunk).map_err(|_| GIVEN_UP.into())
    }
}

/// Reads what was put in.
struct Stored {
    chunks: mpsc::Receiver<Input>,
    now: Bytes,
    ended: bool,
}

impl Read for Stored {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.now.is_empty() && !self.ended {
            match self.chunks.blocking_recv() {
                Some(Input::Data(bytes)) => self.now = bytes,
                Some(Input::End) => self.ended = true,
                None => return Err(GIVEN_UP.into()),
            }
        }
        let n = out.len().min(self.now.len());
        out[..n].copy_from_slice(&self.now[..n]);
        self.now.advance(n);
        Ok(n)
    }
}
