//! Decompressing frames: whole ones in parallel, others as a stream. Output is bounded before it is allocated.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use zstd_safe::{DCtx, InBuffer, OutBuffer, ResetDirective};

use super::frames::FRAME_BYTES;
use super::pool::{Buffers, Pool};

/// Decompresses frames, on any number of threads.
pub(super) struct Decompressor {
    contexts: Arc<Pool<DCtx<'static>>>,
    buffers: Buffers,
}

impl Decompressor {
    pub(super) fn new(threads: usize) -> Self {
        Self { contexts: Pool::new(threads), buffers: Buffers::new(threads + 6, FRAME_BYTES) }
    }

    /// The plain bytes of one whole frame, at most [`FRAME_BYTES`]. The error is zstd's text.
    pub(super) fn frame(&self, stored: &[u8]) -> Result<Bytes, &'static str> {
        let mut context = self.context()?;
        let mut out = self.buffers.take();
        context.decompress(&mut out, stored).map_err(zstd_safe::get_error_name)?;
        self.contexts.put(context);
        Ok(self.buffers.freeze(out))
    }

    /// Begins a frame that is decoded as a stream.
    ///
    /// The window is limited by the library to 128 MiB, which is all that `zstd -d` takes without being asked.
    pub(super) fn stream(&self) -> Result<FrameStream, &'static str> {
        let mut context = self.context()?;
        context.reset(ResetDirective::SessionOnly).map_err(zstd_safe::get_error_name)?;
        Ok(FrameStream { context, buffers: self.buffers.clone(), ended: false })
    }

    fn context(&self) -> Result<DCtx<'static>, &'static str> {
        self.contexts.take().or_else(DCtx::try_create).ok_or("no memory for a decompression context")
    }
}

/// A frame that is decoded piece by piece.
pub(super) struct FrameStream {
    context: DCtx<'static>,
    buffers: Buffers,
    ended: bool,
}

impl FrameStream {
    /// Whether the frame was decoded to its end.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// Decodes from the front of `input`, which it consumes, until one buffer is full, `input` is used up, or the
    /// frame ends. The error is zstd's text.
    pub(super) fn step(&mut self, input: &mut BytesMut) -> Result<Bytes, &'static str> {
        let mut out = self.buffers.take();
        let mut source = InBuffer::around(input);
        let mut target = OutBuffer::around(&mut out);
        loop {
            let before = (source.pos(), target.pos());
            let hint = self
                .context
                .decompress_stream(&mut target, &mut source)
                .map_err(zstd_safe::get_error_name)?;
            self.ended = hint == 0;
            // What the input still holds inside the decoder comes out although nothing is left to put in.
            if self.ended || target.pos() == FRAME_BYTES || (source.pos(), target.pos()) == before {
                break;
            }
        }
        let consumed = source.pos();
        input.advance(consumed);
        Ok(self.buffers.freeze(out))
    }

    /// Keeps the context for further frames.
    pub(super) fn recycle(self, decompressor: &Decompressor) {
        decompressor.contexts.put(self.context);
    }
}
