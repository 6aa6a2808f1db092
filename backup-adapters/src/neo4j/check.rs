//! Checks of the plain bytes: of an archive of files, and of a dump, which is a compressed archive behind two headers.

use backup_core::{AdapterError, ArtifactMeta, ContentCheck, Evidence};
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use crate::legacy::{LEGACY, is_stamped};
use crate::tree::check::{Tally, TarCheck};
use crate::tree::parse::{Parser, Sink};
use crate::tree::pax::{Kind, Member};

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
        (false, true) => Box::new(CopyCheck { parser: Parser::new(), copy: Copy::default() }),
        (false, false) => Box::new(FilesCheck(TarCheck::new())),
    }
}

/// Walks an archive of the scripts before this program: a data directory below one folder.
struct CopyCheck {
    parser: Parser,
    copy: Copy,
}

impl ContentCheck for CopyCheck {
    fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        self.parser.feed(bytes, &mut self.copy)
    }

    fn finish(self: Box<Self>) -> Result<Evidence, AdapterError> {
        self.parser.finish()?;
        let missing = |what: &str| {
            let what = format!("the archive is no data directory of Neo4j: it has no files below `{what}`");
            Err(AdapterError::corrupt(what))
        };
        match (self.copy.databases, self.copy.transactions) {
            (false, _) => missing("neo4j_bak_…/databases"),
            (true, false) => missing("neo4j_bak_…/transactions"),
            (true, true) => Ok(Evidence::default()),
        }
    }
}

/// What such an archive was seen to hold.
#[derive(Default)]
struct Copy {
    top: Option<Vec<u8>>,
    databases: bool,
    transactions: bool,
}

impl Sink for Copy {
    fn member(&mut self, member: &Member) -> Result<(), AdapterError> {
        let mut parts = member.path.splitn(3, |b| *b == b'/');
        let top = parts.next().unwrap_or_default();
        if top.is_empty() {
            return Ok(());
        }
        let known = std::str::from_utf8(top).is_ok_and(|top| is_stamped(top, "neo4j_bak_", ""));
        if !known || member.kind != Kind::Dir && !member.path.contains(&b'/') {
            let shown = crate::tree::show(&member.path);
            let what = format!(
                "the archive is none of the old scripts: it holds `{shown}`, outside of `neo4j_bak_<time>/`"
            );
            return Err(AdapterError::corrupt(what));
        }
        if self.top.get_or_insert_with(|| top.to_owned()) != top {
            return Err(AdapterError::corrupt("the archive holds more than one folder `neo4j_bak_<time>/`"));
        }
        let below = parts.next();
        if parts.next().is_some() && member.kind == Kind::File {
            self.databases |= below == Some(b"databases");
            self.transactions |= below == Some(b"transactions");
        }
        Ok(())
    }

    fn data(&mut self, _: u64, _: &[u8]) -> Result<(), AdapterError> {
        Ok(())
    }

    fn end(&mut self) -> Result<(), AdapterError> {
        Ok(())
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

    /// Members by name; those that end with `/` are folders.
    fn copy(names: &[&str]) -> Result<Evidence, AdapterError> {
        let mut tar = tar::Builder::new(Vec::new());
        for name in names {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(match name.ends_with('/') {
                true => tar::EntryType::Directory,
                false => tar::EntryType::Regular,
            });
            header.set_size(0);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            tar.append_data(&mut header, name, std::io::empty()).unwrap();
        }
        let bytes = tar.into_inner().unwrap();
        let mut check = CopyCheck { parser: Parser::new(), copy: Copy::default() };
        check.update(&bytes)?;
        Box::new(check).finish()
    }

    #[test]
    fn a_copy_of_old_is_one_data_directory() {
        const TOP: &str = "neo4j_bak_20250301_040000";
        let (store, logs) = (format!("{TOP}/databases/neo4j/x"), format!("{TOP}/transactions/neo4j/y"));
        let dir = format!("{TOP}/");
        copy(&[&dir, &store, &logs]).unwrap();
        copy(&["./", &store, &logs, &format!("{TOP}/server_id")]).unwrap();
        for (names, why) in [
            (vec![dir.as_str(), &store], "neo4j_bak_…/transactions"),
            (vec![dir.as_str(), &logs], "neo4j_bak_…/databases"),
            (vec![store.as_str(), &logs, "databases/neo4j/x"], "`databases/neo4j/x`"),
            (vec![store.as_str(), &logs, TOP], "outside of"),
            (vec![store.as_str(), &logs, "neo4j_bak_20250301_050000/databases/z/z"], "more than one folder"),
            (vec![store.as_str(), &logs, "neo4j_bak_/x"], "`neo4j_bak_/x`"),
        ] {
            let e = copy(&names).unwrap_err();
            assert!(e.to_string().contains(why), "{names:?}: {e}");
        }
    }

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
