//! The custom format: a header, a table of contents, and blocks of data. Directories begin with the same two.

use std::collections::BTreeMap;

use backup_core::AdapterError;

use super::Contents;
use super::copy::CopyRows;

const MAGIC: &[u8] = b"PGDMP";
/// The format byte of `-Fc`.
const FORMAT_CUSTOM: u8 = 1;
/// The format byte in the table of contents of a directory: that of archives in tar's format, as `pg_dump` writes it.
const FORMAT_DIRECTORY: u8 = 3;
/// Versions outside of these are not known.
const KNOWN: std::ops::RangeInclusive<(u8, u8)> = (1, 10)..=(1, 16);
/// An entry of the table of contents has no data in the archive.
const NO_DATA: u8 = 3;
const BLOCK_DATA: u8 = 1;
const BLOCK_LARGE_OBJECTS: u8 = 3;
/// No string or chunk is longer: PostgreSQL's own limit for a value.
const MAX_LENGTH: i64 = 1 << 30;

#[derive(Debug)]
enum Stage {
    Header,
    /// Entries of the table of contents that are still to come.
    Entries(u64),
    /// Between two blocks.
    Block,
    /// Before the number of the next large object in a block.
    LargeObject,
    /// Before the length of the next piece; whether it belongs to a large object.
    Length(bool),
    /// In a piece: bytes to come.
    Piece(usize, bool),
}

/// An entry that has data.
#[derive(Debug)]
pub(super) struct DataEntry {
    pub(super) table: Option<(String, String)>,
    /// The file of a directory that holds the data, without what compression adds to its name.
    pub(super) file: String,
    /// Whether the data is that of a `COPY`.
    pub(super) copy: bool,
    seen: bool,
}

/// The table of contents of a directory.
pub(super) struct Toc {
    pub(super) compressed: bool,
    pub(super) entries: Vec<DataEntry>,
}

/// Reads `toc.dat`, all of it, of the directory called `name` in errors.
pub(super) fn toc(name: &str, bytes: &[u8]) -> Result<Toc, AdapterError> {
    let mut parser = Custom { directory: true, ..Custom::new(name) };
    parser.update(bytes)?;
    if !matches!(parser.stage, Stage::Block) || !parser.carry.is_empty() {
        return Err(parser.corrupt("has a table of contents that is cut"));
    }
    Ok(Toc { compressed: parser.compressed, entries: parser.entries.into_values().collect() })
}

/// Follows the structure of an archive; reads every length and every number in it.
#[derive(Debug)]
pub(in crate::postgres) struct Custom {
    name: String,
    /// Only the table of contents of a directory.
    directory: bool,
    bytes: u64,
    stage: Stage,
    carry: Vec<u8>,
    version: (u8, u8),
    int_size: usize,
    off_size: usize,
    compressed: bool,
    entries: BTreeMap<i64, DataEntry>,
    /// The table whose rows pass, if they can be counted.
    current: Option<((String, String), CopyRows, bool)>,
    contents: Contents,
}

/// Reads items from a buffer that may end before they do.
struct Items<'a> {
    bytes: &'a [u8],
    at: usize,
    int_size: usize,
}

/// More bytes are needed, or the bytes are wrong.
enum Stop {
    More,
    Wrong(String),
}

impl<'a> Items<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Stop> {
        let taken = self.bytes.get(self.at..self.at.saturating_add(n)).ok_or(Stop::More)?;
        self.at += n;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Stop> {
        Ok(self.take(1)?.first().copied().unwrap_or(0))
    }

    /// A sign byte, then the number, least significant byte first.
    fn int(&mut self) -> Result<i64, Stop> {
        let sign = self.byte()?;
        if sign > 1 {
            return Err(Stop::Wrong(format!("has a number with the sign {sign}")));
        }
        let digits = self.take(self.int_size)?;
        let value = digits.iter().rev().fold(0_i64, |n, &b| (n << 8) | i64::from(b));
        Ok(if sign == 1 { -value } else { value })
    }

    fn string(&mut self) -> Result<Option<&'a [u8]>, Stop> {
        let length = self.int()?;
        if length < 0 {
            return Ok(None);
        }
        if length > MAX_LENGTH {
            return Err(Stop::Wrong(format!("has a text of {length} bytes")));
        }
        self.take(usize::try_from(length).unwrap_or(usize::MAX)).map(Some)
    }

    fn strings(&mut self, n: usize) -> Result<(), Stop> {
        (0..n).try_for_each(|_| self.string().map(drop))
    }
}

fn text(bytes: Option<&[u8]>) -> String {
    String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
}

impl Custom {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            directory: false,
            bytes: 0,
            stage: Stage::Header,
            carry: Vec::new(),
            version: (0, 0),
            int_size: 4,
            off_size: 8,
            compressed: false,
            entries: BTreeMap::new(),
            current: None,
            contents: Contents::default(),
        }
    }

    pub(super) fn update(&mut self, mut bytes: &[u8]) -> Result<(), AdapterError> {
        self.bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        while !bytes.is_empty() {
            if let Stage::Piece(left, large_object) = self.stage {
                let n = left.min(bytes.len());
                let (piece, rest) = bytes.split_at(n);
                self.count(piece);
                bytes = rest;
                self.stage = if n == left {
                    Stage::Length(large_object)
                } else {
                    Stage::Piece(left - n, large_object)
                };
                continue;
            }
            let used = if self.carry.is_empty() {
                let used = self.item(bytes)?;
                if used.is_none() {
                    self.carry.extend_from_slice(bytes);
                }
                used.unwrap_or(bytes.len())
            } else {
                // Doubled each time, so that a long item is not looked at too often.
                let n = self.carry.len().max(64).min(bytes.len());
                let mut carry = std::mem::take(&mut self.carry);
                let before = carry.len();
                carry.extend(bytes.iter().take(n));
                match self.item(&carry)? {
                    // It needed more than what was carried.
                    Some(used) => used.saturating_sub(before),
                    None => {
                        self.carry = carry;
                        n
                    }
                }
            };
            bytes = bytes.get(used..).unwrap_or_default();
        }
        Ok(())
    }

    fn count(&mut self, piece: &[u8]) {
        if let Some((_, rows, ended)) = &mut self.current
            && !*ended
        {
            *ended = rows.update(piece).1;
        }
    }

    /// Reads one item; `None` if there is not enough of it yet.
    fn item(&mut self, bytes: &[u8]) -> Result<Option<usize>, AdapterError> {
        let mut items = Items { bytes, at: 0, int_size: self.int_size };
        let read = match self.stage {
            Stage::Header => self.header(&mut items),
            Stage::Entries(left) => self.entry(&mut items, left),
            Stage::Block => self.block(&mut items),
            Stage::LargeObject => self.large_object(&mut items),
            Stage::Length(large_object) => self.length(&mut items, large_object),
            Stage::Piece(..) => Ok(()),
        };
        match read {
            Ok(()) => Ok(Some(items.at)),
            Err(Stop::More) => Ok(None),
            Err(Stop::Wrong(what)) => Err(self.corrupt(&what)),
        }
    }

    fn header(&mut self, items: &mut Items<'_>) -> Result<(), Stop> {
        let seen = items.bytes.len().min(MAGIC.len());
        if items.bytes.get(..seen) != MAGIC.get(..seen) {
            return Err(Stop::Wrong("does not begin as an archive of pg_dump does".into()));
        }
        items.take(MAGIC.len())?;
        let version = (items.byte()?, items.byte()?);
        let _revision = items.byte()?;
        if !KNOWN.contains(&version) {
            let (major, minor) = version;
            return Err(Stop::Wrong(format!("has the archive version {major}.{minor}, which is not known")));
        }
        let (int_size, off_size, format) = (items.byte()?.into(), items.byte()?.into(), items.byte()?);
        let expected = if self.directory { FORMAT_DIRECTORY } else { FORMAT_CUSTOM };
        if format != expected || !(1..=8).contains(&int_size) || !(1..=16).contains(&off_size) {
            return Err(Stop::Wrong("is no archive in the expected format".into()));
        }
        items.int_size = int_size;
        let compressed = if version >= (1, 15) { items.byte()? != 0 } else { items.int()? != 0 };
        for _ in 0..7 {
            items.int()?;
        }
        // The database, the server's version, the program's version.
        items.strings(3)?;
        let count =
            u64::try_from(items.int()?).map_err(|_| Stop::Wrong("has no table of contents".into()))?;
        (self.version, self.int_size, self.off_size) = (version, int_size, off_size);
        self.compressed = compressed;
        self.contents.counted = !compressed;
        self.stage = if count == 0 { Stage::Block } else { Stage::Entries(count) };
        Ok(())
    }

    fn entry(&mut self, items: &mut Items<'_>, left: u64) -> Result<(), Stop> {
        let since = |minor| self.version >= (1, minor);
        let id = items.int()?;
        let _has_dumper = items.int()?;
        // The catalog's and the object's number.
        items.strings(2)?;
        let tag = items.string()?;
        let kind = items.string()?;
        if since(11) {
            items.int()?;
        }
        // Its definition, and how to drop and to copy it.
        items.strings(2)?;
        let copy = items.string()?.is_some_and(|statement| statement.starts_with(b"COPY "));
        let schema = items.string()?;
        // The table space, and since 1.14 the access method.
        items.strings(if since(14) { 2 } else { 1 })?;
        if since(16) {
            items.int()?;
        }
        // The owner, and a flag that is written as a word.
        items.strings(2)?;
        while items.string()?.is_some() {}
        let file = if self.directory {
            items.string()?.filter(|name| !name.is_empty()).map(|name| text(Some(name)))
        } else {
            let state = items.byte()?;
            items.take(self.off_size)?;
            (state != NO_DATA).then(String::new)
        };
        if let Some(file) = file {
            let table = (kind == Some(b"TABLE DATA")).then(|| (text(schema), text(tag)));
            self.entries.insert(id, DataEntry { table, file, copy, seen: false });
        }
        self.stage = if left <= 1 { Stage::Block } else { Stage::Entries(left - 1) };
        Ok(())
    }

    fn block(&mut self, items: &mut Items<'_>) -> Result<(), Stop> {
        if self.directory {
            return Err(Stop::Wrong("has something after its table of contents".into()));
        }
        let (kind, id) = (items.byte()?, items.int()?);
        let entry = self.entries.get_mut(&id).filter(|e| !e.seen);
        let entry = entry.ok_or_else(|| Stop::Wrong(format!("has data that nothing announced ({id})")))?;
        entry.seen = true;
        match kind {
            BLOCK_DATA => {
                if let Some(table) = entry.table.take().filter(|_| !self.compressed) {
                    self.current = Some((table, CopyRows::new(), false));
                }
                self.stage = Stage::Length(false);
            }
            BLOCK_LARGE_OBJECTS => self.stage = Stage::LargeObject,
            other => return Err(Stop::Wrong(format!("has a block of the unknown kind {other}"))),
        }
        Ok(())
    }

    fn large_object(&mut self, items: &mut Items<'_>) -> Result<(), Stop> {
        self.stage = match items.int()? {
            0 => Stage::Block,
            _ => {
                self.contents.large_objects += 1;
                Stage::Length(true)
            }
        };
        Ok(())
    }

    fn length(&mut self, items: &mut Items<'_>, large_object: bool) -> Result<(), Stop> {
        let length = items.int()?;
        if !(0..=MAX_LENGTH).contains(&length) {
            return Err(Stop::Wrong(format!("has a piece of {length} bytes")));
        }
        self.stage = match (usize::try_from(length).unwrap_or(0), large_object) {
            (0, true) => Stage::LargeObject,
            (0, false) => {
                if let Some((table, rows, _)) = self.current.take() {
                    *self.contents.rows.entry(table).or_default() += rows.rows;
                }
                Stage::Block
            }
            (length, _) => Stage::Piece(length, large_object),
        };
        Ok(())
    }

    fn corrupt(&self, what: &str) -> AdapterError {
        AdapterError::corrupt(format!("the dump `{}` {what} (before byte {})", self.name, self.bytes))
    }

    pub(super) fn finish(self) -> Result<Contents, AdapterError> {
        if self.bytes == 0 {
            return Err(AdapterError::corrupt(format!("the dump `{}` is empty", self.name)));
        }
        if !matches!(self.stage, Stage::Block) || !self.carry.is_empty() {
            return Err(self.corrupt("is cut"));
        }
        let missing = self.entries.values().filter(|e| !e.seen).count();
        if missing > 0 {
            return Err(self.corrupt(&format!("is cut: the data of {missing} of its entries is missing")));
        }
        Ok(self.contents)
    }
}
