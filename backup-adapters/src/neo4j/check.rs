//! Checks of the plain bytes: of an archive of files, and of a dump, which is a compressed archive behind two headers.

use backup_core::{AdapterError, ArtifactMeta, ContentCheck, Evidence};
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use self::copy::CopyCheck;
use crate::legacy::LEGACY;
use crate::tree::check::{Tally, TarCheck};
use crate::tree::parse::Parser;

mod copy;

/// What begins a dump that is compressed with zstd, and with gzip.
const ZSTD: &[u8] = b"DZV1";
const GZIP: &[u8] = b"DGV1";

/// Within: the name of the compression, the version of what follows, files, bytes.
const HEADER: usize = 24;
const PIECE: usize = 128 << 10;

/// The check for an artifact.
pub(super) fn of(artifact: &ArtifactMeta) -> Box<dyn ContentCheck> {
    let has = |key: &str| artifact.attributes.contains_key(key);
    match (has("database"), has(LEGACY)) {
        (true, _) => Box::new(DumpCheck::default()),
        (false, true) => Box::new(CopyCheck::new()),
        (false, false) => Box::new(FilesCheck(TarCheck::new())),
    }
}

/// Walks an archive of files to its end. What it counts is not what a server counts.
struct FilesCheck(TarCheck);

impl ContentCheck for FilesCheck {
    fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        self.0.update(bytes)
    }

    fn finish(self: Box<Self>) -> Result<Evidence, AdapterError> {
        Box::new(self.0).finish().map(drop)?;
        Ok(Evidence::default())
    }
}

/// Unpacks a dump as it passes, and compares what is in it with what its header says.
#[derive(Default)]
struct DumpCheck {
    /// Until it is known what this is.
    magic: Vec<u8>,
    inside: Option<Inside>,
    /// A compression that we do not unpack: its server does, when it loads it.
    opaque: bool,
}

struct Inside {
    decoder: Decoder<'static>,
    /// Whether the compressed stream came to its end.
    ended: bool,
    header: Vec<u8>,
    parser: Parser,
    tally: Tally,
    out: Vec<u8>,
}

fn broken(what: &str) -> AdapterError {
    AdapterError::corrupt(format!("this is no whole dump of Neo4j: {what}"))
}

impl Inside {
    fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        let mut input = InBuffer::around(bytes);
        while input.pos() < bytes.len() {
            if self.ended {
                return Err(broken("something follows its end"));
            }
            let before = input.pos();
            let mut output = OutBuffer::around(self.out.as_mut_slice());
            let hint = self
                .decoder
                .run(&mut input, &mut output)
                .map_err(|e| broken("it does not unpack").with_source(e))?;
            let made = output.pos();
            self.ended = hint == 0;
            if made == 0 && input.pos() == before {
                return Err(broken("it does not unpack"));
            }
            let made = self.out.get(..made).unwrap_or_default().to_vec();
            self.unpacked(&made)?;
        }
        Ok(())
    }

    fn unpacked(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        let missing = HEADER - self.header.len();
        let (head, rest) = bytes.split_at(missing.min(bytes.len()));
        self.header.extend_from_slice(head);
        if rest.is_empty() { Ok(()) } else { self.parser.feed(rest, &mut self.tally) }
    }

    fn finish(mut self) -> Result<(), AdapterError> {
        // What the decoder still holds.
        while !self.ended {
            let mut output = OutBuffer::around(self.out.as_mut_slice());
            let nothing = &mut InBuffer::around(&[]);
            let hint =
                self.decoder.run(nothing, &mut output).map_err(|e| broken("it is cut off").with_source(e))?;
            let made = output.pos();
            self.ended = hint == 0;
            if made == 0 && !self.ended {
                return Err(broken("it is cut off"));
            }
            let made = self.out.get(..made).unwrap_or_default().to_vec();
            self.unpacked(&made)?;
        }
        self.parser.finish()?;
        let number = |at: usize| {
            let bytes = self.header.get(at..at + 8).and_then(|b| <[u8; 8]>::try_from(b).ok());
            bytes.map(u64::from_be_bytes)
        };
        let (files, bytes) = (self.tally.counts.files, self.tally.counts.bytes);
        match (number(8), number(16)) {
            (Some(f), Some(b)) if f == files && b == bytes => Ok(()),
            (Some(f), Some(b)) => Err(broken(&format!(
                "it holds {files} files of {bytes} bytes, and its header says {f} of {b}"
            ))),
            _ => Err(broken("it is too short")),
        }
    }
}

impl ContentCheck for DumpCheck {
    fn update(&mut self, mut bytes: &[u8]) -> Result<(), AdapterError> {
        if self.magic.len() < ZSTD.len() {
            let (head, rest) = bytes.split_at((ZSTD.len() - self.magic.len()).min(bytes.len()));
            self.magic.extend_from_slice(head);
            bytes = rest;
            match self.magic.as_slice() {
                ZSTD => {
                    let decoder = Decoder::new().map_err(|e| AdapterError::io("cannot unpack a dump", e))?;
                    self.inside = Some(Inside {
                        decoder,
                        ended: false,
                        header: Vec::with_capacity(HEADER),
                        parser: Parser::new(),
                        tally: Tally::default(),
                        out: vec![0; PIECE],
                    });
                }
                GZIP => self.opaque = true,
                // 4.4 has no header of its own: a gzip stream, or a zstd frame.
                [0x1F, 0x8B, ..] | [0x28, 0xB5, 0x2F, 0xFD] if self.magic.len() == ZSTD.len() => {
                    self.opaque = true;
                }
                short if short.len() < ZSTD.len() => return Ok(()),
                _ => return Err(broken("it begins with something else")),
            }
        }
        match &mut self.inside {
            Some(inside) => inside.update(bytes),
            None => Ok(()),
        }
    }

    fn finish(self: Box<Self>) -> Result<Evidence, AdapterError> {
        match self.inside {
            Some(inside) => inside.finish()?,
            None if self.opaque => {}
            None => return Err(broken("it is too short")),
        }
        Ok(Evidence::default())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn dump(files: u64) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for n in 0..3 {
            let mut header = tar::Header::new_ustar();
            header.set_size(1000);
            header.set_mode(0o644);
            header.set_uid(7474);
            header.set_gid(7474);
            header.set_mtime(0);
            tar.append_data(&mut header, format!("./f{n}"), &[n; 1000][..]).unwrap();
        }
        let mut plain = b"zstd".to_vec();
        plain.extend(1_u32.to_be_bytes());
        plain.extend(files.to_be_bytes());
        plain.extend(3000_u64.to_be_bytes());
        plain.extend(tar.into_inner().unwrap());
        let mut out = zstd::stream::Encoder::new(ZSTD.to_vec(), 3).unwrap();
        out.write_all(&plain).unwrap();
        out.finish().unwrap()
    }

    fn check(bytes: &[u8], piece: usize) -> Result<Evidence, AdapterError> {
        let mut check = Box::new(DumpCheck::default());
        bytes.chunks(piece).try_for_each(|b| check.update(b))?;
        check.finish()
    }

    #[test]
    fn a_whole_dump_passes_and_nothing_else() {
        let good = dump(3);
        for piece in [1, 7, 1 << 20] {
            check(&good, piece).unwrap();
        }
        for cut in [0, 3, 4, 10, good.len() / 2, good.len() - 1] {
            assert!(check(&good[..cut], 100).is_err(), "cut at {cut}");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert!(check(&longer, 100).is_err());
        let lie = check(&dump(4), 100).unwrap_err();
        assert!(lie.to_string().contains("3 files of 3000 bytes"), "{lie}");
        assert!(check(b"PK\x03\x04 something", 100).is_err());
    }
}
