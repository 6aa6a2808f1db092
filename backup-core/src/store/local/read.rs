//! Reading objects.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::Range;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use tokio::task::JoinHandle;

use super::tree::{self, Call};
use crate::error::StoreError;
use crate::source::{ByteStream, CHUNK_BYTES};

/// An object that is being read.
pub(super) struct Reading {
    file: File,
    left: u64,
    /// Read together with opening, so that a small object costs one hop to the blocking threads.
    chunk: Bytes,
}

impl Reading {
    pub(super) fn open(call: &Call) -> Result<Self, StoreError> {
        let (file, stat) = tree::open_object(&call.open_parent()?, call.name()).map_err(|e| call.error(e))?;
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        Self { file, left: size, chunk: Bytes::new() }.next().map_err(|e| read_error(call, e))
    }

    /// Reads the next chunk. The size at opening is what must come: objects do not change.
    fn next(mut self) -> io::Result<Self> {
        self.chunk = read_exactly(&self.file, self.left.min(CHUNK_BYTES as u64))?;
        self.left -= self.chunk.len() as u64;
        Ok(self)
    }

    /// The chunks. Each is read while the one before is being used.
    pub(super) fn into_stream(self, call: Call) -> ByteStream<StoreError> {
        type Ahead = JoinHandle<io::Result<Reading>>;
        enum State {
            Have(Reading),
            Reading(Ahead),
            End,
        }
        stream::unfold((State::Have(self), call), |(state, call)| async move {
            let read = match state {
                State::Have(reading) => Ok(reading),
                State::Reading(ahead) => match ahead.await {
                    Ok(read) => read.map_err(|e| read_error(&call, e)),
                    Err(e) => Err(StoreError::other(call.verb, &call.key, e)),
                },
                State::End => return None,
            };
            match read {
                Ok(mut reading) => {
                    let chunk = std::mem::take(&mut reading.chunk);
                    if chunk.is_empty() {
                        return None;
                    }
                    let next = if reading.left == 0 {
                        State::End
                    } else {
                        State::Reading(tokio::task::spawn_blocking(move || reading.next()))
                    };
                    Some((Ok(chunk), (next, call)))
                }
                Err(e) => Some((Err(e), (State::End, call))),
            }
        })
        .boxed()
    }
}

/// A part of an object.
pub(super) fn range(call: &Call, range: Range<u64>) -> Result<Bytes, StoreError> {
    let (mut file, stat) = tree::open_object(&call.open_parent()?, call.name()).map_err(|e| call.error(e))?;
    let size = u64::try_from(stat.st_size).unwrap_or_default();
    if range.start > range.end || range.end > size {
        let what = format!("bytes {}..{} of {size} were asked for", range.start, range.end);
        return Err(StoreError::other(call.verb, &call.key, what));
    }
    file.seek(SeekFrom::Start(range.start))
        .and_then(|_at| read_exactly(&file, range.end - range.start))
        .map_err(|e| read_error(call, e))
}

fn read_exactly(mut file: &File, bytes: u64) -> io::Result<Bytes> {
    let mut chunk = Vec::with_capacity(usize::try_from(bytes).map_err(io::Error::other)?);
    file.by_ref().take(bytes).read_to_end(&mut chunk)?;
    if chunk.len() as u64 != bytes {
        let what = format!("the file ends {} bytes early", bytes - chunk.len() as u64);
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
    }
    Ok(chunk.into())
}

/// What goes wrong after opening is never "not found".
fn read_error(call: &Call, e: io::Error) -> StoreError {
    call.write_error(e)
}
