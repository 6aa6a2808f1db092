//! Cutting plain bytes into frames, and compressing each by itself.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use zstd_safe::{CCtx, CParameter};

use super::pool::{Buffers, Pool};
use crate::error::AdapterError;
use crate::source::{ByteStream, CHUNK_BYTES};

/// Plain bytes of a frame, but for the last one.
pub(super) const FRAME_BYTES: usize = CHUNK_BYTES;

/// How many buffers for compressed frames are kept for another time: as many as uploads hold on to, five parts of 16 MiB, and
/// some more. Of a store that takes frames at once only a few ever exist.
const KEPT: usize = 96;

/// Cuts a body into pieces of exactly [`FRAME_BYTES`], the last one shorter; an empty body is one empty piece.
pub(super) struct Framer {
    body: ByteStream<AdapterError>,
    /// What the body gave and is not used yet.
    chunk: Bytes,
    /// A piece that is being gathered.
    gathered: Vec<u8>,
    buffers: Buffers,
    first: bool,
    ended: bool,
}

impl Framer {
    pub(super) fn new(body: ByteStream<AdapterError>, threads: usize) -> Self {
        let buffers = Buffers::new(threads + 4, FRAME_BYTES);
        Self { body, chunk: Bytes::new(), gathered: Vec::new(), buffers, first: true, ended: false }
    }

    /// The next piece. Pieces that lie in one chunk of the body are not copied.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, AdapterError> {
        loop {
            if self.gathered.is_empty() && self.chunk.len() >= FRAME_BYTES {
                self.first = false;
                return Ok(Some(self.chunk.split_to(FRAME_BYTES)));
            }
            if !self.chunk.is_empty() {
                if self.gathered.capacity() == 0 {
                    self.gathered = self.buffers.take();
                }
                let n = self.chunk.len().min(FRAME_BYTES - self.gathered.len());
                self.gathered.extend_from_slice(&self.chunk.split_to(n));
                if self.gathered.len() == FRAME_BYTES {
                    return Ok(Some(self.emit()));
                }
            }
            if self.ended {
                let more = self.first || !self.gathered.is_empty();
                return Ok(more.then(|| self.emit()));
            }
            match self.body.next().await {
                Some(chunk) => self.chunk = chunk?,
                None => {
                    self.ended = true;
                    // Whatever the source holds for its body is free from now on.
                    self.body = futures::stream::empty().boxed();
                }
            }
        }
    }

    fn emit(&mut self) -> Bytes {
        self.first = false;
        self.buffers.freeze(std::mem::take(&mut self.gathered))
    }
}

/// Compresses frames, on any number of threads.
pub(super) struct Compressor {
    level: i32,
    contexts: Arc<Pool<CCtx<'static>>>,
    buffers: Buffers,
}

impl Compressor {
    pub(super) fn new(level: i32, threads: usize) -> Self {
        let buffers = Buffers::new(KEPT, zstd_safe::compress_bound(FRAME_BYTES));
        Self { level, contexts: Pool::new(threads), buffers }
    }

    /// One frame of `plain`. The error is zstd's text.
    pub(super) fn compress(&self, plain: &[u8]) -> Result<Bytes, &'static str> {
        let mut context = match self.contexts.take() {
            Some(context) => context,
            None => self.context()?,
        };
        let mut out = self.buffers.take();
        context.compress2(&mut out, plain).map_err(zstd_safe::get_error_name)?;
        self.contexts.put(context);
        Ok(self.buffers.freeze(out))
    }

    fn context(&self) -> Result<CCtx<'static>, &'static str> {
        let mut context = CCtx::try_create().ok_or("no memory for a compression context")?;
        for parameter in [
            CParameter::CompressionLevel(self.level),
            CParameter::ChecksumFlag(true),
            CParameter::ContentSizeFlag(true),
        ] {
            context.set_parameter(parameter).map_err(zstd_safe::get_error_name)?;
        }
        Ok(context)
    }
}
