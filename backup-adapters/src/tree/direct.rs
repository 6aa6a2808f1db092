//! Writes large files past the page cache: a restore is bound by the disk then, not by the copy into fresh pages, and
//! what running services keep cached stays cached.
//!
//! Only where direct I/O is known to lose nothing: on ext4 and XFS. (Btrfs would not compress what is written so.)
//! `open(2)`, "`O_DIRECT`": address, offset and length are multiples of the block size; what is not, goes by the page
//! cache, which these file systems keep coherent.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, fstatfs};
use rustix::io::Errno;

/// Less than this is not worth the system calls more.
const LARGE: u64 = 4 << 20;
/// Bytes in one write: several milliseconds of a fast disk.
const PIECE: usize = 4 << 20;
/// A multiple of the block size of all common disks.
const ALIGN: usize = 4096;

/// `f_type` in `statfs(2)`.
const EXT4: i128 = 0xEF53;
const XFS: i128 = 0x5846_5342;

/// Where pieces are put together; one for all files, allocated with the first that needs it.
#[derive(Debug, Default)]
pub(crate) struct Scratch(Vec<u8>);

impl Scratch {
    fn piece(&mut self) -> &mut [u8] {
        if self.0.is_empty() {
            self.0 = vec![0; PIECE + ALIGN];
        }
        // At most `ALIGN - 1` for bytes; `usize::MAX` only where it cannot be computed, in constant evaluation.
        let skip = self.0.as_ptr().align_offset(ALIGN).min(ALIGN);
        self.0.get_mut(skip..skip + PIECE).unwrap_or_default()
    }
}

/// A file that is being filled, mostly in order.
#[derive(Debug)]
pub(crate) struct Output {
    file: File,
    direct: bool,
    /// What the scratch holds: where it begins in the file, and how much it is.
    start: u64,
    held: usize,
}

impl Output {
    /// For a file that will get `in_a_row` bytes without a gap.
    pub(crate) fn new(file: File, in_a_row: u64) -> Self {
        let direct = in_a_row >= LARGE && known(&file) && set(&file, true).is_ok();
        Self { file, direct, start: 0, held: 0 }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Writes `bytes` at `offset`, now or with what follows.
    ///
    /// # Errors
    /// I/O errors, of these bytes or earlier ones.
    pub(crate) fn write(&mut self, scratch: &mut Scratch, offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        if self.direct && self.held > 0 && offset != self.start + self.held as u64 {
            self.flush(scratch)?;
        }
        if !self.direct {
            return self.file.write_all_at(bytes, offset);
        }
        if self.held == 0 {
            // Up to the next block, as the middle of one cannot be written directly.
            let ahead = usize::try_from(offset.next_multiple_of(ALIGN as u64) - offset).unwrap_or(ALIGN);
            let (head, rest) = bytes.split_at(ahead.min(bytes.len()));
            self.by_cache(head, offset)?;
            self.start = offset + head.len() as u64;
            bytes = rest;
        }
        while !bytes.is_empty() {
            let room = scratch.piece().get_mut(self.held..).unwrap_or_default();
            let (now, rest) = bytes.split_at(room.len().min(bytes.len()));
            if let Some(room) = room.get_mut(..now.len()) {
                room.copy_from_slice(now);
            }
            self.held += now.len();
            bytes = rest;
            if self.held == PIECE {
                self.flush(scratch)?;
            }
        }
        Ok(())
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// I/O errors.
    pub(crate) fn finish(&mut self, scratch: &mut Scratch) -> io::Result<()> {
        if self.direct { self.flush(scratch) } else { Ok(()) }
    }

    fn flush(&mut self, scratch: &mut Scratch) -> io::Result<()> {
        let held = scratch.piece().get(..self.held).unwrap_or_default();
        let (blocks, tail) = held.split_at(held.len() / ALIGN * ALIGN);
        let (start, end) = (self.start, self.start + blocks.len() as u64);
        (self.start, self.held) = (end + tail.len() as u64, 0);
        match self.file.write_all_at(blocks, start) {
            Err(e) if Errno::from_io_error(&e) == Some(Errno::INVAL) => {
                // Larger blocks than we know, or a write that was cut short: the usual way then.
                set(&self.file, false)?;
                self.direct = false;
                self.file.write_all_at(blocks, start)?;
            }
            done => done?,
        }
        self.by_cache(tail, end)
    }

    /// Less than a block.
    fn by_cache(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if !self.direct {
            return self.file.write_all_at(bytes, offset);
        }
        set(&self.file, false)?;
        self.file.write_all_at(bytes, offset)?;
        set(&self.file, true)
    }
}

fn known(file: &File) -> bool {
    fstatfs(file).is_ok_and(|fs| matches!(i128::from(fs.f_type), EXT4 | XFS))
}

fn set(file: &File, direct: bool) -> io::Result<()> {
    let mut flags = fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, direct);
    Ok(fcntl_setfl(file, flags)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn fill(dir: &std::path::Path, size: u64, pieces: &[(u64, usize)]) -> (Vec<u8>, Vec<u8>, bool) {
        let dir = tempfile::tempdir_in(dir).unwrap();
        let (path, wanted) = (dir.path().join("a"), dir.path().join("b"));
        let plain = File::create(&wanted).unwrap();
        let mut output = Output::new(File::create(&path).unwrap(), size);
        let direct = output.direct;
        let mut scratch = Scratch::default();
        for (i, (offset, len)) in pieces.iter().enumerate() {
            let bytes: Vec<u8> = (0..*len).map(|at| (at / 7 + i * 13 + 1) as u8).collect();
            plain.write_all_at(&bytes, *offset).unwrap();
            output.write(&mut scratch, *offset, &bytes).unwrap();
        }
        output.finish(&mut scratch).unwrap();
        drop(output);
        (fs::read(path).unwrap(), fs::read(wanted).unwrap(), direct)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
        #[test]
        fn every_byte_is_where_it_belongs(
            steps in proptest::collection::vec((prop_oneof![Just(0u64), 0..20_000u64, Just(4096)], 0usize..3_000_000), 1..8),
        ) {
            let mut at = 0;
            let pieces: Vec<_> = steps.iter().map(|(gap, len)| {
                let offset = at + gap;
                at = offset + *len as u64;
                (offset, *len)
            }).collect();
            for dir in [std::env::temp_dir(), "/dev/shm".into()] {
                let (is, wanted, _) = fill(&dir, LARGE, &pieces);
                prop_assert!(is == wanted, "in {}", dir.display());
            }
        }
    }

    /// Where direct I/O is possible at all, large files go by it and small ones do not.
    #[test]
    fn only_large_files_go_past_the_cache() {
        let here = std::env::temp_dir();
        let possible = known(&File::open(&here).unwrap());
        assert_eq!(fill(&here, LARGE, &[(0, 10)]).2, possible);
        assert!(!fill(&here, LARGE - 1, &[(0, 10)]).2);
    }
}
