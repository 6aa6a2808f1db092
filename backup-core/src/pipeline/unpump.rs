//! Stored bytes to plain bytes, verified.

use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::check::Expected;
use super::observer::{Observer, PlainObserver, panicked};
use super::stored_side::{self, Job};
use super::{AGE, LOOKAHEAD, PipelineSettings};
use crate::error::{AdapterError, AdapterErrorKind, StoreError};
use crate::source::ByteStream;

/// Decodes the concatenated stored files of an artifact and compares them with what was recorded.
///
/// Reads `stored` once, in order, and needs no seek table; any zstd file decodes, though only frames of at most 1 MiB
/// that say their length are decoded in parallel. Work begins with the first poll, which must happen in a tokio
/// runtime, and goes on ahead of the reader by a bounded number of frames; it ends when the stream is dropped.
///
/// # Errors
/// The stream yields `Err` *in place of its end* when a length, the SHA-256 of a stored file or the BLAKE3 of the plain
/// bytes is not the recorded one, and as soon as a frame does not decode, or more comes out than was recorded
/// (`Corrupt`; the message names the file and the offsets). `Unsupported` for an encoding that this version does not
/// know, `Cancelled` after [`PipelineSettings::cancel`]. Only a stream read to its `None` is proven.
#[must_use]
pub fn unpump(
    stored: ByteStream<StoreError>,
    expected: Expected,
    settings: PipelineSettings,
) -> ByteStream<AdapterError> {
    stream::once(async move {
        let (out, messages) = mpsc::channel(LOOKAHEAD);
        let mut driver = JoinSet::new();
        driver.spawn(drive(stored, expected, settings, out));
        let reader = Reader { messages, _driver: driver, ended: false };
        stream::unfold(reader, |mut reader| async move {
            let item = reader.next().await?;
            Some((item, reader))
        })
    })
    .flatten()
    .boxed()
}

enum Message {
    Data(Bytes),
    End(Result<(), AdapterError>),
}

struct Reader {
    messages: mpsc::Receiver<Message>,
    /// Aborted on drop.
    _driver: JoinSet<()>,
    ended: bool,
}

impl Reader {
    async fn next(&mut self) -> Option<Result<Bytes, AdapterError>> {
        if self.ended {
            return None;
        }
        let item = match self.messages.recv().await {
            Some(Message::Data(bytes)) => return Some(Ok(bytes)),
            Some(Message::End(Ok(()))) => None,
            Some(Message::End(Err(e))) => Some(Err(e)),
            // Never taken for the end: the runtime shuts down, or the driver panicked.
            None => Some(Err(AdapterError::new(AdapterErrorKind::Cancelled, "the decoding was given up"))),
        };
        self.ended = true;
        item
    }
}

async fn drive(
    stored: ByteStream<StoreError>,
    expected: Expected,
    settings: PipelineSettings,
    out: mpsc::Sender<Message>,
) {
    let result = tokio::select! {
        biased;
        () = settings.cancel.cancelled() => Err(AdapterError::cancelled()),
        result = transfer(stored, &expected, &settings, &out) => result,
    };
    // If the reader is gone, nobody wants to know.
    drop(out.send(Message::End(result)).await);
}

async fn transfer(
    stored: ByteStream<StoreError>,
    expected: &Expected,
    settings: &PipelineSettings,
    out: &mpsc::Sender<Message>,
) -> Result<(), AdapterError> {
    let (jobs, in_order) = mpsc::channel(settings.threads() + LOOKAHEAD);
    let read_side = async {
        let result = stored_side::read(stored, expected, &jobs, settings).await;
        // In line behind the frames before it, one of which may be the true culprit.
        drop(jobs.send(Job::End(result)).await);
        Ok(())
    };
    tokio::try_join!(read_side, write_side(in_order, expected, settings, out)).map(|_| ())
}

/// Gives the plain bytes out in order, and proves them.
async fn write_side(
    mut jobs: mpsc::Receiver<Job>,
    expected: &Expected,
    settings: &PipelineSettings,
    out: &mpsc::Sender<Message>,
) -> Result<(), AdapterError> {
    let mut observer = Observer::spawn("the hash", PlainObserver::new(None));
    let mut plain_bytes = 0;
    loop {
        let bytes = match jobs.recv().await {
            Some(Job::Ready(bytes)) => bytes,
            Some(Job::Frame { at, plain }) => {
                let decoded = plain.await.map_err(|e| panicked("the decoder", e))?;
                decoded.map_err(|what| at.corrupt(expected, what))?
            }
            Some(Job::End(result)) => break result?,
            None => return Err(AdapterError::cancelled()),
        };
        if bytes.is_empty() {
            continue;
        }
        plain_bytes += bytes.len() as u64;
        observer.send(bytes.clone()).await?;
        (settings.progress)(plain_bytes);
        out.send(Message::Data(bytes)).await.map_err(|_| AdapterError::cancelled())?;
    }
    let (blake3, _) = observer.finish().await?;
    let name = expected.name();
    if plain_bytes != expected.plain_bytes {
        return Err(AdapterError::corrupt(format!(
            "`{name}` is damaged: it holds {plain_bytes} plain bytes, {} were recorded",
            expected.plain_bytes
        )));
    }
    if blake3 != expected.plain_blake3 {
        // Whoever may read what was found need not be one of those for whom it was encrypted.
        let what = match expected.encodings.iter().any(|e| e == AGE) {
            true => "not the recorded one".to_owned(),
            false => format!("{blake3}, not {}", expected.plain_blake3),
        };
        return Err(AdapterError::corrupt(format!(
            "`{name}` is damaged: the BLAKE3 of its plain bytes is {what}"
        )));
    }
    Ok(())
}
