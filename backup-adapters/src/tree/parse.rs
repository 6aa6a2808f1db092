//! Takes an archive apart as its bytes pass, in chunks of any size; keeps no file data.
//!
//! Reads ustar, pax and GNU's long names and base-256 numbers, and GNU's sparse format 1.0: what this program, GNU tar
//! and bsdtar write. Everything is treated as hostile.

use std::mem;

use backup_core::AdapterError;
use tar::{EntryType, Header};

use super::pax::{Kind, Member, parse_time, xattr_name};
use super::sparse::MapReader;
use super::{BLOCK, MAX_EXTENDED, MAX_NAME, show};

/// Takes the parts of an archive, in order.
pub(crate) trait Sink {
    /// A member begins.
    fn member(&mut self, member: &Member) -> Result<(), AdapterError>;
    /// Data of the current member, which lies at `offset` in the file.
    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), AdapterError>;
    /// All data of the current member was given.
    fn end(&mut self) -> Result<(), AdapterError>;
}

/// What pax and GNU headers said about the next member.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u64>,
    gid: Option<u64>,
    size: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: bool,
    sparse_name: Option<Vec<u8>>,
    real_size: Option<u64>,
}

#[derive(Debug)]
enum State {
    Header,
    Extended {
        kind: EntryType,
        left: usize,
    },
    Map {
        left: u64,
        reader: MapReader,
    },
    Data {
        left: u64,
        segment: usize,
        done: u64,
    },
    Pad {
        left: usize,
    },
    /// One block of zeros was seen, or more.
    Zeros {
        blocks: u64,
    },
}

/// The parser.
#[derive(Debug)]
pub(crate) struct Parser {
    state: State,
    block: Vec<u8>,
    body: Vec<u8>,
    extended: Extended,
    member: Member,
    segments: Vec<(u64, u64)>,
    position: u64,
}

impl Parser {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Header,
            block: Vec::with_capacity(BLOCK),
            body: Vec::new(),
            extended: Extended::default(),
            member: Member::new(Vec::new(), Kind::Dir),
            segments: Vec::new(),
            position: 0,
        }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// `Corrupt` with the offset; whatever the sink says.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], sink: &mut impl Sink) -> Result<(), AdapterError> {
        while !bytes.is_empty() {
            let used = self.step(bytes, sink)?;
            self.position += used as u64;
            bytes = bytes.get(used..).unwrap_or_default();
        }
        Ok(())
    }

    /// The archive ended: it must have said so itself.
    pub(crate) fn finish(&self) -> Result<(), AdapterError> {
        match self.state {
            State::Zeros { blocks } if blocks >= 2 && self.block.is_empty() => Ok(()),
            _ => Err(AdapterError::corrupt(format!(
                "the archive ends at byte {} without its end mark",
                self.position
            ))),
        }
    }

    fn corrupt(&self, what: impl std::fmt::Display) -> AdapterError {
        AdapterError::corrupt(format!("the archive is damaged near byte {}: {what}", self.position))
    }

    fn bad_member(&self, what: &str) -> AdapterError {
        self.corrupt(format_args!("member `{}`: {what}", show(&self.member.path)))
    }

    /// Consumes at least one byte of `bytes`, which is not empty.
    fn step(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<usize, AdapterError> {
        match &mut self.state {
            State::Header | State::Zeros { .. } => {
                let used = (BLOCK - self.block.len()).min(bytes.len());
                self.block.extend(bytes.iter().take(used));
                if self.block.len() == BLOCK {
                    let block = mem::take(&mut self.block);
                    self.header(&block, sink)?;
                    self.block = block;
                    self.block.clear();
                }
                Ok(used)
            }
            State::Extended { kind, left } => {
                let used = (*left).min(bytes.len());
                self.body.extend(bytes.iter().take(used));
                *left -= used;
                if *left == 0 {
                    let (kind, body) = (*kind, mem::take(&mut self.body));
                    self.pad_after(body.len() as u64);
                    self.extend(kind, &body)?;
                }
                Ok(used)
            }
            State::Map { left, reader } => {
                for (i, byte) in bytes.iter().enumerate() {
                    match reader.push(*byte) {
                        Ok(false) if reader.consumed() < *left => {}
                        Ok(true) => {
                            let left = *left - reader.consumed();
                            self.segments = mem::take(reader).into_segments();
                            self.start_data(left, sink)?;
                            return Ok(i + 1);
                        }
                        Ok(false) => return Err(self.bad_member("its sparse map is cut")),
                        Err(e) => return Err(self.bad_member(e)),
                    }
                }
                Ok(bytes.len())
            }
            State::Data { left, segment, done } => {
                let Some(&(offset, length)) = self.segments.get(*segment) else {
                    return Err(self.bad_member("more data than it said"));
                };
                let used = usize::try_from(length - *done).unwrap_or(usize::MAX).min(bytes.len());
                sink.data(offset + *done, bytes.get(..used).unwrap_or_default())?;
                *done += used as u64;
                *left -= used as u64;
                if *done == length {
                    (*segment, *done) = (*segment + 1, 0);
                }
                if *left == 0 {
                    sink.end()?;
                    let stored: u64 = self.segments.iter().map(|(_, length)| length).sum();
                    self.pad_after(stored);
                }
                Ok(used)
            }
            State::Pad { left } => {
                let used = (*left).min(bytes.len());
                *left -= used;
                if *left == 0 {
                    self.state = State::Header;
                }
                Ok(used)
            }
        }
    }

    fn pad_after(&mut self, length: u64) {
        let over = usize::try_from(length % BLOCK as u64).unwrap_or(0);
        self.state = if over == 0 { State::Header } else { State::Pad { left: BLOCK - over } };
    }

    fn header(&mut self, block: &[u8], sink: &mut impl Sink) -> Result<(), AdapterError> {
        if block.iter().all(|b| *b == 0) {
            let blocks = if let State::Zeros { blocks } = self.state { blocks + 1 } else { 1 };
            self.state = State::Zeros { blocks };
            return Ok(());
        }
        if matches!(self.state, State::Zeros { .. }) {
            return Err(self.corrupt("something follows its end mark"));
        }
        let header = Header::from_byte_slice(block);
        // The sum counts its own field as spaces.
        let field = 148..156;
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(i, b)| u32::from(if field.contains(&i) { b' ' } else { *b }))
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(self.corrupt("a header's checksum is wrong"));
        }
        let kind = header.entry_type();
        let size = header.size().map_err(|e| self.corrupt("a size is not readable").with_source(e))?;
        match kind {
            EntryType::XHeader
            | EntryType::XGlobalHeader
            | EntryType::GNULongName
            | EntryType::GNULongLink => {
                let limit = match kind {
                    EntryType::XHeader | EntryType::XGlobalHeader => MAX_EXTENDED,
                    _ => MAX_NAME,
                };
                let left = usize::try_from(size).ok().filter(|s| *s <= limit && *s > 0);
                let left = left.ok_or_else(|| self.corrupt("an extended header has an impossible size"))?;
                self.body = Vec::new();
                self.state = State::Extended { kind, left };
                Ok(())
            }
            _ => self.member_header(header, kind, size, sink),
        }
    }

    fn member_header(
        &mut self,
        header: &Header,
        kind: EntryType,
        size: u64,
        sink: &mut impl Sink,
    ) -> Result<(), AdapterError> {
        let extended = mem::take(&mut self.extended);
        let raw = extended.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let kind = match kind {
            // Before POSIX, a trailing slash made the directory.
            EntryType::Regular if raw.ends_with(b"/") && extended.sparse_name.is_none() => Kind::Dir,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Link => Kind::HardLink,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Directory => Kind::Dir,
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char => Kind::Char,
            EntryType::Block => Kind::Block,
            other => {
                let what = format!(
                    "member `{}` has the type {:#x}, which is not supported",
                    show(&raw),
                    other.as_byte()
                );
                return Err(self.corrupt(what));
            }
        };
        let raw = extended.sparse_name.unwrap_or(raw);
        let path = clean(&raw).map_err(|e| self.corrupt(format_args!("member `{}`: {e}", show(&raw))))?;
        self.member = Member::new(path, kind);
        if self.member.path.is_empty() && kind != Kind::Dir {
            return Err(self.bad_member("it has no name"));
        }
        let number = |r: std::io::Result<u64>| {
            r.map_err(|e| {
                AdapterError::corrupt(format!("a number of member `{}`", show(&raw))).with_source(e)
            })
        };
        let stored = extended.size.unwrap_or(size);
        self.member.mode = u32::try_from(number(header.mode().map(u64::from))?).unwrap_or(0) & 0o7777;
        self.member.uid = extended.uid.map_or_else(|| number(header.uid()), Ok)?;
        self.member.gid = extended.gid.map_or_else(|| number(header.gid()), Ok)?;
        self.member.mtime = match extended.mtime {
            Some(time) => time,
            None => (number(header.mtime())?.cast_signed(), 0),
        };
        self.member.xattrs = extended.xattrs;
        match kind {
            Kind::File => self.member.size = extended.real_size.unwrap_or(stored),
            _ if stored != 0 => return Err(self.bad_member("it should have no data")),
            Kind::HardLink | Kind::Symlink => {
                let link = extended.link.or_else(|| header.link_name_bytes().map(|l| l.into_owned()));
                let link = link.filter(|l| !l.is_empty() && l.len() <= MAX_NAME && !l.contains(&0));
                let link = link.ok_or_else(|| self.bad_member("its link target is not usable"))?;
                self.member.link = if kind == Kind::HardLink {
                    clean(&link).map_err(|e| self.bad_member(&format!("its link target: {e}")))?
                } else {
                    link
                };
            }
            Kind::Char | Kind::Block => {
                let part = |r: std::io::Result<Option<u32>>| number(r.map(|n| u64::from(n.unwrap_or(0))));
                let (major, minor) = (part(header.device_major())?, part(header.device_minor())?);
                self.member.device = (u32::try_from(major).unwrap_or(0), u32::try_from(minor).unwrap_or(0));
            }
            Kind::Dir | Kind::Fifo => {}
        }
        if kind == Kind::File && extended.sparse {
            self.state = State::Map { left: stored, reader: MapReader::default() };
            if stored == 0 {
                return Err(self.bad_member("its sparse map is missing"));
            }
            return Ok(());
        }
        self.segments = vec![(0, stored)];
        self.member.sparse = None;
        self.begin(stored, sink)
    }

    /// The sparse map is read, `left` bytes of data follow.
    fn start_data(&mut self, left: u64, sink: &mut impl Sink) -> Result<(), AdapterError> {
        let stored: u64 = self.segments.iter().map(|(_, length)| length).sum();
        let end = self.segments.last().map_or(0, |(offset, length)| offset + length);
        if stored != left || end > self.member.size {
            return Err(self.bad_member("its sparse map does not fit its size"));
        }
        self.member.sparse = Some(self.segments.clone());
        self.begin(left, sink)
    }

    fn begin(&mut self, stored: u64, sink: &mut impl Sink) -> Result<(), AdapterError> {
        sink.member(&self.member)?;
        if stored == 0 {
            self.state = State::Header;
            return sink.end();
        }
        self.state = State::Data { left: stored, segment: 0, done: 0 };
        Ok(())
    }

    fn extend(&mut self, kind: EntryType, body: &[u8]) -> Result<(), AdapterError> {
        let text = || body.split(|b| *b == 0).next().unwrap_or_default().to_vec();
        match kind {
            EntryType::GNULongName => self.extended.path = Some(text()),
            EntryType::GNULongLink => self.extended.link = Some(text()),
            // Defaults for all members: nothing that we read may be one.
            EntryType::XGlobalHeader => {}
            _ => {
                let mut rest = body;
                while !rest.is_empty() {
                    let (key, value, after) = split_record(rest)
                        .ok_or_else(|| self.corrupt("an extended header is not readable"))?;
                    self.keyword(key, value)?;
                    rest = after;
                }
            }
        }
        Ok(())
    }

    fn keyword(&mut self, key: &[u8], value: &[u8]) -> Result<(), AdapterError> {
        let bad = || self.corrupt(format_args!("`{}` in an extended header is not readable", show(key)));
        let text = || std::str::from_utf8(value).ok();
        let number = || text().and_then(|t| t.parse::<u64>().ok()).ok_or_else(bad);
        let name = || if value.len() <= MAX_NAME { Ok(value.to_vec()) } else { Err(bad()) };
        match key {
            b"path" => self.extended.path = Some(name()?),
            b"linkpath" => self.extended.link = Some(name()?),
            b"uid" => self.extended.uid = Some(number()?),
            b"gid" => self.extended.gid = Some(number()?),
            b"size" => self.extended.size = Some(number()?),
            b"mtime" => self.extended.mtime = Some(text().and_then(parse_time).ok_or_else(bad)?),
            b"GNU.sparse.major" if value == b"1" => self.extended.sparse = true,
            b"GNU.sparse.minor" if value == b"0" => {}
            b"GNU.sparse.name" => self.extended.sparse_name = Some(name()?),
            b"GNU.sparse.realsize" => self.extended.real_size = Some(number()?),
            _ if key.starts_with(b"GNU.sparse.") => {
                return Err(self.corrupt("a sparse file is not in format 1.0: use `tar --format=pax`"));
            }
            _ => {
                if let Some(attribute) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.extended.xattrs.push((xattr_name(attribute), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// Key, value and the rest of a list of pax records.
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|b| *b == b' ')?;
    let length: usize = std::str::from_utf8(bytes.get(..space)?).ok()?.parse().ok()?;
    let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|b| *b == b'=')?;
    Some((record.get(..equals)?, record.get(equals + 1..)?, bytes.get(length..)?))
}

/// A member's name without empty and `.` parts.
fn clean(name: &[u8]) -> Result<Vec<u8>, &'static str> {
    if name.starts_with(b"/") {
        return Err("its name is absolute");
    }
    if name.contains(&0) {
        return Err("its name holds a zero byte");
    }
    let mut out = Vec::with_capacity(name.len());
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("its name climbs with `..`"),
            part => {
                if !out.is_empty() {
                    out.push(b'/');
                }
                out.extend_from_slice(part);
            }
        }
    }
    Ok(out)
}
