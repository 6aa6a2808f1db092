//! The standard output of a program, as a stream that ends only when the program ended well.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use backup_core::{AdapterError, ByteStream, CHUNK_BYTES};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{FutureExt as _, Stream, StreamExt as _};
use tokio::process::ChildStdout;
use tokio::sync::oneshot;
use tokio_util::io::poll_read_buf;

use super::exec::Job;

type Verdict = Result<(), AdapterError>;

/// Less room than this is not worth a read of its own.
const LEAST_ROOM: usize = 64 << 10;

struct Output {
    /// `None` once it ended.
    pipe: Option<ChildStdout>,
    /// `None` once it was told.
    verdict: Option<oneshot::Receiver<Verdict>>,
    /// Dropped once nothing is read any more.
    reading: Option<oneshot::Sender<()>>,
    buffer: BytesMut,
    trouble: Option<AdapterError>,
    lost: Box<dyn Fn() -> AdapterError + Send>,
    _job: Arc<Job>,
}

/// The output as it comes, in chunks of up to 1 MiB. What is there is handed out at once: a program may be waiting for
/// an answer.
pub(super) fn stream(
    pipe: ChildStdout,
    verdict: oneshot::Receiver<Verdict>,
    reading: oneshot::Sender<()>,
    job: Arc<Job>,
    lost: impl Fn() -> AdapterError + Send + 'static,
) -> ByteStream<AdapterError> {
    // The larger the pipe, the less often two processes wait for each other. Not allowed to everybody.
    if let Err(error) = rustix::pipe::fcntl_setpipe_size(&pipe, CHUNK_BYTES) {
        tracing::trace!(%error, "A pipe keeps its size.");
    }
    let output = Output {
        pipe: Some(pipe),
        verdict: Some(verdict),
        reading: Some(reading),
        buffer: BytesMut::new(),
        trouble: None,
        lost: Box::new(lost),
        _job: job,
    };
    output.boxed()
}

impl Output {
    /// The verdict, once: it comes early only if the program was killed.
    fn poll_verdict(&mut self, cx: &mut Context<'_>) -> Poll<Option<Verdict>> {
        let Some(verdict) = &mut self.verdict else { return Poll::Ready(None) };
        let told = ready!(verdict.poll_unpin(cx)).unwrap_or_else(|_| Err((self.lost)()));
        self.verdict = None;
        Poll::Ready(Some(told))
    }

    /// One read into the buffer; how many bytes it gave.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        let Some(pipe) = &mut self.pipe else { return Poll::Ready(Ok(0)) };
        if self.buffer.is_empty() && self.buffer.capacity() < LEAST_ROOM {
            self.buffer.reserve(CHUNK_BYTES);
        }
        let room = self.buffer.capacity().min(CHUNK_BYTES) - self.buffer.len();
        poll_read_buf(Pin::new(pipe), cx, &mut (&mut self.buffer).limit(room))
    }

    fn stop_reading(&mut self) {
        self.pipe = None;
        self.reading = None;
    }
}

impl Stream for Output {
    type Item = Result<Bytes, AdapterError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        // A killed program's output is worth nothing, and something that it started may hold the pipe open for ever.
        if this.pipe.is_some()
            && let Poll::Ready(Some(Err(why))) = this.poll_verdict(cx)
        {
            this.stop_reading();
            this.buffer.clear();
            return Poll::Ready(Some(Err(why)));
        }
        while this.pipe.is_some()
            && (this.buffer.is_empty() || this.buffer.len() < this.buffer.capacity().min(CHUNK_BYTES))
        {
            match this.poll_read(cx) {
                Poll::Pending if this.buffer.is_empty() => return Poll::Pending,
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => this.stop_reading(),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(e)) => {
                    this.trouble = Some(AdapterError::io("cannot read the output of a program", e));
                    this.stop_reading();
                }
            }
        }
        if !this.buffer.is_empty() {
            return Poll::Ready(Some(Ok(this.buffer.split().freeze())));
        }
        let verdict = ready!(this.poll_verdict(cx)).transpose();
        Poll::Ready(this.trouble.take().map_or(verdict.err(), Some).map(Err))
    }
}
