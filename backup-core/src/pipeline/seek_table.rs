//! The seek table of the zstd seekable format, so that other tools can read a part of an artifact.
//!
//! Layout after `contrib/seekable_format/zstd_seekable_compression_format.md` of <https://github.com/facebook/zstd>,
//! version 0.1.0, all integers little-endian: a skippable frame with one entry per frame (compressed length,
//! decompressed length) and a footer. Entries carry no checksum of their own: every frame has one already.
//! Our own decoder does not need the table.

use super::frames::FRAME_BYTES;

const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
const HEADER_BYTES: usize = 8;
const ENTRY_BYTES: usize = 8;
const FOOTER_BYTES: usize = 9;

/// The format's limit (`ZSTD_SEEKABLE_MAXFRAMES`): 128 TiB of plain bytes.
const MAX_FRAMES: usize = 0x0800_0000;

/// Collects the lengths of frames; 4 bytes of memory per frame.
#[derive(Debug, Default)]
pub(super) struct SeekTable {
    stored: Vec<u32>,
    last_plain: u32,
}

impl SeekTable {
    /// Adds the next frame. All but the last have [`FRAME_BYTES`] plain bytes.
    pub(super) fn push(&mut self, stored: u32, plain: u32) {
        self.stored.push(stored);
        self.last_plain = plain;
    }

    /// The skippable frame; `None` beyond the format's limit.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        if self.stored.len() > MAX_FRAMES {
            return None;
        }
        let frames = u32::try_from(self.stored.len()).ok()?;
        let content = self.stored.len() * ENTRY_BYTES + FOOTER_BYTES;
        let mut out = Vec::with_capacity(HEADER_BYTES + content);
        out.extend_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
        out.extend_from_slice(&u32::try_from(content).ok()?.to_le_bytes());
        let full = u32::try_from(FRAME_BYTES).ok()?;
        for (i, stored) in self.stored.iter().enumerate() {
            let plain = if i + 1 == self.stored.len() { self.last_plain } else { full };
            out.extend_from_slice(&stored.to_le_bytes());
            out.extend_from_slice(&plain.to_le_bytes());
        }
        out.extend_from_slice(&frames.to_le_bytes());
        // The descriptor: bit 7 would announce checksums, the others are reserved.
        out.push(0);
        out.extend_from_slice(&SEEKABLE_MAGIC.to_le_bytes());
        Some(out)
    }
}
