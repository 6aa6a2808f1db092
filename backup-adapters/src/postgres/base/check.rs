//! A base backup as it passes: each file against the manifest, and the WAL against what the manifest asks for.

use std::collections::{BTreeMap, BTreeSet};

use backup_core::{AdapterError, Evidence};
use crc_fast::{CrcAlgorithm, Digest};

use super::manifest::{self, Manifest};
use crate::tree::parse::{self, Sink};
use crate::tree::pax::{Kind, Member};

const MANIFEST: &str = "backup_manifest";
const WAL: &str = "pg_wal/";
/// Without these no server starts.
const NEEDED: [&str; 3] = ["PG_VERSION", "backup_label", "global/pg_control"];
/// The largest manifest, in bytes: that of some million files.
const MAX_MANIFEST: usize = 1 << 30;

/// Takes what was checked, and does not have to do anything with it.
pub(in crate::postgres) trait Place: Send {
    fn member(&mut self, _member: &Member) -> Result<(), AdapterError> {
        Ok(())
    }
    fn data(&mut self, _bytes: &[u8]) -> Result<(), AdapterError> {
        Ok(())
    }
    fn end(&mut self) -> Result<(), AdapterError> {
        Ok(())
    }
}

/// Nowhere.
impl Place for () {}

/// What a base backup holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::postgres) struct Facts {
    /// As the manifest counts them: without WAL.
    pub(in crate::postgres) files: u64,
    /// Bytes of the files, WAL included.
    pub(in crate::postgres) bytes: u64,
    /// The WAL that is needed ends here.
    pub(in crate::postgres) wal_to: String,
}

/// Its counts.
pub(in crate::postgres) fn evidence(facts: &Facts) -> Evidence {
    let mut evidence = Evidence::default().with_count("files", facts.files);
    evidence.notes.insert("wal_to".into(), facts.wal_to.clone());
    evidence
}

/// Follows one.
pub(in crate::postgres) struct Base<P> {
    archive: parse::Parser,
    files: Files<P>,
}

struct Files<P> {
    place: P,
    seen: BTreeMap<String, (u64, u32)>,
    current: Option<Current>,
    manifest: Option<Vec<u8>>,
    bytes: u64,
}

struct Current {
    path: String,
    size: u64,
    sum: Digest,
    kind: Which,
}

#[derive(PartialEq, Eq)]
enum Which {
    File,
    Manifest,
    Folder,
}

/// A path for people and comparisons. What is no UTF-8 stays apart.
pub(super) fn text(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) => text.to_owned(),
        Err(_) => path.escape_ascii().to_string(),
    }
}

impl<P: Place> Base<P> {
    /// Gives everything to `place`.
    pub(in crate::postgres) fn new(place: P) -> Self {
        let files = Files { place, seen: BTreeMap::new(), current: None, manifest: None, bytes: 0 };
        Self { archive: parse::Parser::new(), files }
    }

    pub(in crate::postgres) fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        self.archive.feed(bytes, &mut self.files).map_err(damaged)
    }

    /// The archive ended.
    ///
    /// # Errors
    /// `Corrupt` unless it is whole.
    pub(in crate::postgres) fn finish(self) -> Result<(Facts, P), AdapterError> {
        self.archive.finish().map_err(damaged)?;
        let facts = self.files.judge()?;
        Ok((facts, self.files.place))
    }
}

fn damaged(e: AdapterError) -> AdapterError {
    AdapterError::new(e.kind(), "the base backup is cut or damaged").with_source(e)
}

fn corrupt(what: impl std::fmt::Display) -> AdapterError {
    AdapterError::corrupt(format!("the base backup {what}"))
}

impl<P: Place> Sink for Files<P> {
    fn member(&mut self, member: &Member) -> Result<(), AdapterError> {
        let path = text(&member.path);
        let kind = match member.kind {
            Kind::Dir => Which::Folder,
            Kind::File if path == MANIFEST => Which::Manifest,
            Kind::File if member.sparse.is_none() => Which::File,
            _ => return Err(corrupt(format!("holds `{}`, which is no plain file", path.escape_debug()))),
        };
        if self.seen.contains_key(&path) || (kind == Which::Manifest && self.manifest.is_some()) {
            return Err(corrupt(format!("holds `{}` twice", path.escape_debug())));
        }
        self.place.member(member)?;
        let sum = Digest::new(CrcAlgorithm::Crc32Iscsi);
        self.current = Some(Current { path, size: 0, sum, kind });
        Ok(())
    }

    fn data(&mut self, _offset: u64, bytes: &[u8]) -> Result<(), AdapterError> {
        let Some(current) = &mut self.current else { return Ok(()) };
        current.size += bytes.len() as u64;
        self.bytes += bytes.len() as u64;
        if current.kind == Which::Manifest {
            let manifest = self.manifest.get_or_insert_default();
            if manifest.len() + bytes.len() > MAX_MANIFEST {
                return Err(corrupt(format!("has a manifest of more than {MAX_MANIFEST} bytes")));
            }
            manifest.extend_from_slice(bytes);
        } else {
            current.sum.update(bytes);
        }
        self.place.data(bytes)
    }

    fn end(&mut self) -> Result<(), AdapterError> {
        if let Some(Current { path, size, sum, kind: Which::File }) = self.current.take() {
            self.seen.insert(path, (size, u32::try_from(sum.finalize()).unwrap_or(u32::MAX)));
        }
        self.place.end()
    }
}

impl<P> Files<P> {
    fn judge(&self) -> Result<Facts, AdapterError> {
        let manifest = self.manifest.as_ref().ok_or_else(|| corrupt("is cut: it has no manifest"))?;
        let facts = judge(&manifest::parse(manifest)?, &self.seen)?;
        Ok(Facts { bytes: self.bytes, ..facts })
    }
}

/// Whether files, by path with size and checksum, are what a manifest says.
pub(super) fn judge(manifest: &Manifest, seen: &BTreeMap<String, (u64, u32)>) -> Result<Facts, AdapterError> {
    for (path, (size, sum)) in &manifest.files {
        match seen.get(path) {
            None => return Err(corrupt(format!("lacks `{}`", path.escape_debug()))),
            Some((found, _)) if found != size => {
                let path = path.escape_debug();
                return Err(corrupt(format!("has `{path}` with {found} bytes instead of {size}")));
            }
            Some((_, found)) if sum.is_some_and(|sum| sum != *found) => {
                let path = path.escape_debug();
                return Err(corrupt(format!("has another `{path}` than its manifest: the checksum differs")));
            }
            Some(_) => {}
        }
    }
    let foreign = |path: &&String| !manifest.files.contains_key(*path) && !path.starts_with(WAL);
    if let Some(path) = seen.keys().find(foreign) {
        return Err(corrupt(format!("holds `{}`, which its manifest does not name", path.escape_debug())));
    }
    if let Some(path) = NEEDED.iter().find(|path| !seen.contains_key(**path)) {
        return Err(corrupt(format!("lacks `{path}`")));
    }
    wal(manifest, seen)?;
    let end = manifest.wal.iter().map(|(_, to)| *to).max().unwrap_or(0);
    Ok(Facts {
        files: manifest.files.len() as u64,
        bytes: 0,
        wal_to: format!("{:X}/{:X}", end >> 32, end & 0xFFFF_FFFF),
    })
}

/// Each segment that is needed must be there, and long enough.
fn wal(manifest: &Manifest, seen: &BTreeMap<String, (u64, u32)>) -> Result<(), AdapterError> {
    // A segment's name is 24 hexadecimal digits: 8 of its time line, 16 of its number. The manifest does not tell which
    // time line a segment has after a switch, so that the numbers alone are compared.
    let segment = |(path, (size, _)): (&String, &(u64, u32))| {
        let name = path.strip_prefix(WAL)?;
        let number = name.get(8..).filter(|n| n.len() == 16 && n.bytes().all(|b| b.is_ascii_hexdigit()))?;
        Some((number.to_owned(), *size))
    };
    let segments: BTreeMap<String, u64> = seen.iter().filter_map(segment).collect();
    let sizes: BTreeSet<u64> = segments.values().copied().collect();
    let one =
        sizes.first().copied().filter(|size| sizes.len() == 1 && size.is_power_of_two() && *size >= 1 << 20);
    let size = one.ok_or_else(|| corrupt("is cut: its WAL is missing or not whole"))?;
    for (from, to) in &manifest.wal {
        for number in from / size..=(to - 1) / size {
            let each = (1 << 32) / size;
            let name = format!("{:08X}{:08X}", number / each, number % each);
            if !segments.contains_key(&name) {
                return Err(corrupt(format!("lacks the segment {name} of its WAL")));
            }
        }
    }
    Ok(())
}
