//! Decoding gzip, as the scripts before this program wrote it. One stream: no part of it can be decoded by itself.

use std::io::Write as _;

use bytes::{Buf as _, Bytes};
use flate2::write::MultiGzDecoder;

use super::observer::panicked;
use crate::error::AdapterError;

/// How much is decoded at a time: at most a thousand times as much comes out.
const PIECE: usize = 32 << 10;

/// Decodes a sequence of gzip members piece by piece.
#[derive(Debug, Default)]
pub(super) struct Gunzip {
    /// `None` before the first byte, and while a piece is being decoded.
    decoder: Option<Box<MultiGzDecoder<Vec<u8>>>>,
    input: Bytes,
}

impl Gunzip {
    /// Takes the next stored bytes; those before must have been decoded.
    pub(super) fn push(&mut self, chunk: Bytes) {
        self.input = chunk;
    }

    /// The plain bytes of the next piece, decoded off the async threads; `None` if there is no input left. The inner
    /// error says what is wrong with the input.
    pub(super) async fn step(&mut self) -> Result<Option<Result<Bytes, String>>, AdapterError> {
        if self.input.is_empty() {
            return Ok(None);
        }
        let mut decoder =
            self.decoder.take().unwrap_or_else(|| Box::new(MultiGzDecoder::new(Vec::with_capacity(PIECE))));
        let piece = self.input.split_to(self.input.len().min(PIECE));
        let decoded = tokio::task::spawn_blocking(move || {
            let written = decoder.write_all(piece.chunk()).and_then(|()| decoder.flush());
            let plain = std::mem::take(decoder.get_mut());
            (decoder, written.map(|()| Bytes::from(plain)))
        });
        let (decoder, plain) = decoded.await.map_err(|e| panicked("the decoder", e))?;
        self.decoder = Some(decoder);
        Ok(Some(plain.map_err(|e| format!("not a whole gzip stream ({e})"))))
    }

    /// The stored bytes ended: so must the stream, with the sum of its plain bytes. Returns the last of these.
    pub(super) fn finish(self) -> Result<Bytes, String> {
        let decoder = self.decoder.ok_or("the gzip stream is empty")?;
        let last = decoder.finish();
        last.map(Bytes::from).map_err(|e| format!("the gzip stream is cut, or its sum is wrong ({e})"))
    }
}
