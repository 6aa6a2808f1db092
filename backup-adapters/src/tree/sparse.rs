//! Holes: where a file holds data, and GNU tar's sparse map 1.0.

use std::os::fd::BorrowedFd;

use rustix::fs::{SeekFrom, Stat, seek};
use rustix::io::Errno;

use super::{BLOCK, pax};

/// More segments than that are not told apart: the rest of the file is stored with its holes. Bounds memory to 16 MiB.
pub(crate) const MAX_SEGMENTS: usize = 1 << 20;

/// Smaller files are not worth a map.
const WORTH_A_MAP: i64 = 4096;

/// The data segments of a file that has holes; `None` for a dense one or where the file system cannot tell.
pub(crate) fn segments(fd: BorrowedFd<'_>, stat: &Stat) -> rustix::io::Result<Option<Vec<(u64, u64)>>> {
    // The cheap question first. A compressing file system answers it wrongly and is asked below.
    if stat.st_size <= WORTH_A_MAP || stat.st_blocks.saturating_mul(512) >= stat.st_size {
        return Ok(None);
    }
    let size = stat.st_size.cast_unsigned();
    let mut found = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(fd, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
            Err(e) => return Err(e),
        };
        let end = match seek(fd, SeekFrom::Hole(start)) {
            Ok(end) if found.len() + 1 < MAX_SEGMENTS => end.min(size),
            // It shrank meanwhile (the reader will notice), or it is too fragmented.
            Ok(_) | Err(Errno::NXIO) => size,
            Err(e) => return Err(e),
        };
        if start >= size || end <= start {
            break;
        }
        found.push((start, end - start));
        at = end;
    }
    Ok((found.as_slice() != [(0, size)]).then_some(found))
}

/// The map that precedes the data: decimal numbers, a line each, padded to a block.
pub(crate) fn encode_map(segments: &[(u64, u64)], size: u64) -> Vec<u8> {
    // A hole at the end is told by an empty segment there, as GNU tar does.
    let ends_in_a_hole = segments.last().is_none_or(|(offset, length)| offset + length < size);
    let tail = ends_in_a_hole.then_some((size, 0));
    let mut out = format!("{}\n", segments.len() + usize::from(ends_in_a_hole)).into_bytes();
    for (offset, length) in segments.iter().copied().chain(tail) {
        out.extend_from_slice(format!("{offset}\n{length}\n").as_bytes());
    }
    let length = out.len();
    pax::pad(&mut out, length);
    out
}

/// Reads a map as it passes.
#[derive(Debug, Default)]
pub(crate) struct MapReader {
    number: Option<u64>,
    expected: Option<u64>,
    offset: Option<u64>,
    segments: Vec<(u64, u64)>,
    consumed: usize,
}

impl MapReader {
    /// Takes one byte. `Ok(true)` once the map and its padding are complete; `Err` if it cannot be a map.
    pub(crate) fn push(&mut self, byte: u8) -> Result<bool, &'static str> {
        self.consumed += 1;
        if !self.complete() {
            match byte {
                b'0'..=b'9' => {
                    let number = self.number.unwrap_or(0).checked_mul(10);
                    let number = number.and_then(|n| n.checked_add(u64::from(byte - b'0')));
                    self.number = Some(number.ok_or("a number in its sparse map is too large")?);
                }
                b'\n' => {
                    let number = self.number.take().ok_or("its sparse map has an empty line")?;
                    self.line(number)?;
                }
                _ => return Err("its sparse map holds something that is not a number"),
            }
        }
        Ok(self.complete() && self.consumed.is_multiple_of(BLOCK))
    }

    fn line(&mut self, number: u64) -> Result<(), &'static str> {
        if self.expected.is_none() {
            if number > MAX_SEGMENTS as u64 + 1 {
                return Err("its sparse map has too many entries");
            }
            self.expected = Some(number);
        } else if let Some(offset) = self.offset.take() {
            let from = self.segments.last().map_or(0, |(o, l)| o + l);
            if offset < from || offset.checked_add(number).is_none() {
                return Err("its sparse map is not ascending");
            }
            self.segments.push((offset, number));
        } else {
            self.offset = Some(number);
        }
        Ok(())
    }

    fn complete(&self) -> bool {
        self.expected == Some(self.segments.len() as u64)
    }

    pub(crate) fn consumed(&self) -> u64 {
        self.consumed as u64
    }

    /// The segments that hold data.
    pub(crate) fn into_segments(mut self) -> Vec<(u64, u64)> {
        self.segments.retain(|(_, length)| *length > 0);
        self.segments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_round_trip() {
        let many: Vec<(u64, u64)> = (0..200).map(|i| (i * 8192, 4096)).collect();
        for (segments, size) in
            [(vec![], 5000), (vec![(0, 10)], 5000), (vec![(4096, 904)], 5000), (many, 1 << 30)]
        {
            let map = encode_map(&segments, size);
            assert_eq!(map.len() % BLOCK, 0);
            let mut reader = MapReader::default();
            let done: Vec<bool> = map.iter().map(|b| reader.push(*b).unwrap()).collect();
            assert_eq!(done.iter().position(|d| *d), Some(map.len() - 1));
            assert_eq!(reader.into_segments(), segments);
        }
    }

    #[test]
    fn hostile_maps_are_refused() {
        for bad in [
            "x",
            "\n",
            "99999999999\n",
            "2\n10\n5\n3\n1\n",
            "1\n18446744073709551615\n1\n",
            "1\n99999999999999999999999\n",
        ] {
            let mut reader = MapReader::default();
            assert!(bad.bytes().any(|b| reader.push(b).is_err()), "{bad:?}");
        }
    }
}
