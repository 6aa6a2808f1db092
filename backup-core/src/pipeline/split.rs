//! Finding the frames in stored bytes, without a seek table.

use bytes::{Buf, Bytes, BytesMut};

use super::frames::FRAME_BYTES;

const FRAME_MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];
/// The magic number and the longest header of a frame (RFC 8878, section 3.1.1.1).
const MAX_HEADER: usize = 18;
const SKIPPABLE_HEADER: usize = 8;
/// No encoder needs more for a frame of [`FRAME_BYTES`]; one that is longer is decoded as a stream.
const MAX_STORED: usize = FRAME_BYTES + FRAME_BYTES / 8;

/// What comes next in the stored bytes.
#[derive(Debug)]
pub(super) enum Next {
    /// A whole frame.
    Frame { stored: Bytes, plain_bytes: usize },
    /// The beginning of a frame that is large, or does not say how large it is.
    Stream { declared: Option<u64> },
    /// The bytes at hand do not suffice.
    More,
    /// What follows is not a frame.
    Garbage,
}

/// Cuts stored bytes into frames; holds at most one frame and one chunk.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    buffer: BytesMut,
    /// Bytes of a skippable frame that are still to come.
    skip: u64,
    /// Stored offset of the first byte in `buffer`.
    offset: u64,
    /// Stored offset of the frame at hand.
    start: u64,
}

impl Splitter {
    pub(super) fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// Where that begins which [`next`](Self::next) spoke of last, in stored bytes.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Whether the stored bytes may end here.
    pub(super) fn at_boundary(&self) -> bool {
        self.skip == 0 && self.buffer.is_empty()
    }

    /// Takes the bytes at hand out, to be decoded as a stream.
    pub(super) fn take(&mut self) -> BytesMut {
        std::mem::take(&mut self.buffer)
    }

    /// Gives back what [`take`](Self::take) took, less the `consumed` bytes at its front.
    pub(super) fn give_back(&mut self, rest: BytesMut, consumed: u64) {
        self.offset += consumed;
        self.buffer = rest;
    }

    pub(super) fn next(&mut self) -> Next {
        loop {
            let n = self.skip.min(self.buffer.len() as u64);
            self.buffer.advance(n as usize);
            self.offset += n;
            self.skip -= n;
            if self.skip > 0 {
                return Next::More;
            }
            self.start = self.offset;
            let Some(magic) = self.buffer.first_chunk::<4>() else { return Next::More };
            if *magic == FRAME_MAGIC {
                return self.frame();
            }
            // Skippable frames: 0x184D2A50 to 0x184D2A5F, little-endian.
            if magic[0] & 0xF0 != 0x50 || magic[1..] != [0x2A, 0x4D, 0x18] {
                return Next::Garbage;
            }
            let Some(&[.., a, b, c, d]) = self.buffer.first_chunk::<SKIPPABLE_HEADER>() else {
                return Next::More;
            };
            self.skip = SKIPPABLE_HEADER as u64 + u64::from(u32::from_le_bytes([a, b, c, d]));
        }
    }

    fn frame(&mut self) -> Next {
        let declared = match zstd_safe::get_frame_content_size(&self.buffer) {
            Ok(declared) => declared,
            // The library does not tell a header that is cut from one that is wrong.
            Err(_) if self.buffer.len() < MAX_HEADER => return Next::More,
            Err(_) => return Next::Garbage,
        };
        let Some(plain_bytes) = declared.filter(|&n| n <= FRAME_BYTES as u64) else {
            return Next::Stream { declared };
        };
        // Nor does it tell a frame that is cut from one that is wrong: the decoder will.
        match zstd_safe::find_frame_compressed_size(&self.buffer) {
            Ok(n) => {
                self.offset += n as u64;
                Next::Frame { stored: self.buffer.split_to(n).freeze(), plain_bytes: plain_bytes as usize }
            }
            Err(_) if self.buffer.len() < MAX_STORED => Next::More,
            Err(_) => Next::Stream { declared },
        }
    }
}
