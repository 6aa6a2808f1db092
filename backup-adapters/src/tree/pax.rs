//! Members of an archive, and how their headers are written: POSIX.1-2001 `pax` interchange format over `ustar`.
//!
//! Sources: <https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html>; GNU tar's sparse format 1.0
//! <https://www.gnu.org/software/tar/manual/html_section/Sparse-Formats.html>; `SCHILY.xattr.` as GNU tar writes it (`%` and
//! `=` in the attribute's name are written `%25` and `%3D`).

use rustix::fs::FileType;
use tar::{EntryType, Header};

use super::{BLOCK, MAX_EXTENDED, MAX_NAME, show, sparse};
use backup_core::AdapterError;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    Dir,
    Fifo,
    Char,
    Block,
}

impl Kind {
    /// `None` for sockets and what is not known.
    pub(crate) fn of(file_type: FileType) -> Option<Self> {
        Some(match file_type {
            FileType::RegularFile => Self::File,
            FileType::Symlink => Self::Symlink,
            FileType::Directory => Self::Dir,
            FileType::Fifo => Self::Fifo,
            FileType::CharacterDevice => Self::Char,
            FileType::BlockDevice => Self::Block,
            _ => return None,
        })
    }

    fn entry_type(self) -> EntryType {
        match self {
            Self::File => EntryType::Regular,
            Self::HardLink => EntryType::Link,
            Self::Symlink => EntryType::Symlink,
            Self::Dir => EntryType::Directory,
            Self::Fifo => EntryType::Fifo,
            Self::Char => EntryType::Char,
            Self::Block => EntryType::Block,
        }
    }
}

/// One member of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// Relative, without `.`, `..`, empty parts and trailing `/`; empty for the root directory itself.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permission bits, set-id and sticky bits included.
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds since the epoch, possibly negative, and nanoseconds after them.
    pub(crate) mtime: (i64, u32),
    /// Length of the file, holes included.
    pub(crate) size: u64,
    /// Target of a link.
    pub(crate) link: Vec<u8>,
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
    /// Extended attributes, sorted by name.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where a sparse file holds data: offset and length, ascending.
    pub(crate) sparse: Option<Vec<(u64, u64)>>,
}

impl Member {
    pub(crate) fn new(path: Vec<u8>, kind: Kind) -> Self {
        Self {
            path,
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size: 0,
            link: Vec::new(),
            device: (0, 0),
            xattrs: Vec::new(),
            sparse: None,
        }
    }

    /// The last part of the path.
    pub(crate) fn base(&self) -> &[u8] {
        self.path.rsplit(|b| *b == b'/').next().unwrap_or_default()
    }
}

const OCTAL_7: u64 = 0o7_777_777;
const OCTAL_11: u64 = 0o77_777_777_777;

/// Appends the header blocks of `member`, and for a sparse file its map, to `out`. The data follows.
///
/// # Errors
/// `Unsupported` for names and extended attributes that are larger than an archive of ours may hold.
pub(crate) fn encode(member: &Member, out: &mut Vec<u8>) -> Result<(), AdapterError> {
    let mut name = if member.path.is_empty() { b".".to_vec() } else { member.path.clone() };
    if member.kind == Kind::Dir {
        name.push(b'/');
    }
    if name.len() > MAX_NAME || member.link.len() > MAX_NAME {
        return Err(AdapterError::unsupported(format!("the name `{}…` is too long", show(member.base()))));
    }
    let map = member.sparse.as_deref().map(|segments| sparse::encode_map(segments, member.size));
    let stored = match &map {
        Some(map) => map.len() as u64 + member.sparse.iter().flatten().map(|(_, length)| length).sum::<u64>(),
        None if member.kind == Kind::File => member.size,
        None => 0,
    };

    let mut records = Vec::new();
    if std::str::from_utf8(&name).is_err() || std::str::from_utf8(&member.link).is_err() {
        record(&mut records, b"hdrcharset", b"BINARY");
    }
    if map.is_some() {
        record(&mut records, b"GNU.sparse.major", b"1");
        record(&mut records, b"GNU.sparse.minor", b"0");
        record(&mut records, b"GNU.sparse.name", &name);
        record(&mut records, b"GNU.sparse.realsize", member.size.to_string().as_bytes());
        name = [b"GNUSparseFile.0/", member.base()].concat();
    }
    if !fits(&name) {
        record(&mut records, b"path", &name);
    }
    if !fits(&member.link) {
        record(&mut records, b"linkpath", &member.link);
    }
    for (key, value) in [(&b"uid"[..], member.uid), (b"gid", member.gid)] {
        if value > OCTAL_7 {
            record(&mut records, key, value.to_string().as_bytes());
        }
    }
    if stored > OCTAL_11 {
        record(&mut records, b"size", stored.to_string().as_bytes());
    }
    let (seconds, nanos) = member.mtime;
    let plain_seconds = u64::try_from(seconds).ok().filter(|s| *s <= OCTAL_11);
    if nanos != 0 || plain_seconds.is_none() {
        record(&mut records, b"mtime", time_text(seconds, nanos).as_bytes());
    }
    for (key, value) in &member.xattrs {
        record(&mut records, &xattr_keyword(key), value);
    }
    if records.len() > MAX_EXTENDED {
        let name = show(&member.path);
        return Err(AdapterError::unsupported(format!("`{name}` has more extended attributes than fit")));
    }
    if !records.is_empty() {
        let mut header = Header::new_ustar();
        put_name(&mut header, &[b"PaxHeaders/", member.base()].concat());
        header.set_mode(0o644);
        finish(&mut header, EntryType::XHeader, records.len() as u64, out);
        out.extend_from_slice(&records);
        pad(out, records.len());
    }

    let mut header = Header::new_ustar();
    put_name(&mut header, &name);
    if let Some(place) = header.as_old_mut().linkname.get_mut(..member.link.len().min(100)) {
        place.copy_from_slice(member.link.get(..place.len()).unwrap_or_default());
    }
    header.set_mode(member.mode);
    header.set_uid(if member.uid > OCTAL_7 { 0 } else { member.uid });
    header.set_gid(if member.gid > OCTAL_7 { 0 } else { member.gid });
    header.set_mtime(plain_seconds.unwrap_or(0));
    if matches!(member.kind, Kind::Char | Kind::Block) {
        let bad = |e| AdapterError::unsupported(format!("device `{}`", show(&member.path))).with_source(e);
        header.set_device_major(member.device.0).map_err(bad)?;
        header.set_device_minor(member.device.1).map_err(bad)?;
    }
    finish(&mut header, member.kind.entry_type(), if stored > OCTAL_11 { 0 } else { stored }, out);
    out.extend_from_slice(map.as_deref().unwrap_or_default());
    Ok(())
}

/// Zeros up to the next block after `length` bytes of content.
pub(crate) fn pad(out: &mut Vec<u8>, length: usize) {
    out.resize(out.len() + length.next_multiple_of(BLOCK) - length, 0);
}

fn fits(text: &[u8]) -> bool {
    text.len() <= 100 && text.is_ascii()
}

fn put_name(header: &mut Header, name: &[u8]) {
    let name = name.get(..100).unwrap_or(name);
    if let Some(place) = header.as_old_mut().name.get_mut(..name.len()) {
        place.copy_from_slice(name);
    }
}

fn finish(header: &mut Header, entry_type: EntryType, size: u64, out: &mut Vec<u8>) {
    header.set_entry_type(entry_type);
    header.set_size(size);
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
}

/// `<length> <key>=<value>\n`, where the length counts itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    for part in [b" ", key, b"=", value, b"\n"] {
        out.extend_from_slice(part);
    }
}

/// A decimal fraction, as GNU tar writes it: half a second before the epoch is `-0.5`.
fn time_text(seconds: i64, nanos: u32) -> String {
    let text = if seconds < 0 && nanos > 0 {
        format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos)
    } else {
        format!("{seconds}.{nanos:09}")
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Reads [`time_text`], with any number of digits.
pub(crate) fn parse_time(text: &str) -> Option<(i64, u32)> {
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |t| (true, t));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nanos: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Some(match (negative, nanos) {
        (false, nanos) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, nanos) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

fn xattr_keyword(name: &[u8]) -> Vec<u8> {
    let mut out = b"SCHILY.xattr.".to_vec();
    for &b in name {
        match b {
            b'%' => out.extend_from_slice(b"%25"),
            b'=' => out.extend_from_slice(b"%3D"),
            b => out.push(b),
        }
    }
    out
}

/// The attribute's name of a keyword after `SCHILY.xattr.`.
pub(crate) fn xattr_name(mut keyword: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(keyword.len());
    while let Some((&first, rest)) = keyword.split_first() {
        let (byte, length) = match rest.get(..2) {
            Some(b"25") if first == b'%' => (b'%', 3),
            Some(b"3D") if first == b'%' => (b'=', 3),
            _ => (first, 1),
        };
        out.push(byte);
        keyword = keyword.get(length..).unwrap_or_default();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_round_trip_before_and_after_the_epoch() {
        for time in [(0, 0), (1, 5), (-1, 0), (-1, 500_000_000), (-7, 1), (1_700_000_000, 999_999_999)] {
            let text = time_text(time.0, time.1);
            assert_eq!(parse_time(&text), Some(time), "{text}");
        }
        assert_eq!(time_text(-1, 500_000_000), "-0.5");
        assert_eq!(time_text(10, 0), "10");
        assert_eq!(parse_time("1.1234567891"), Some((1, 123_456_789)));
        for bad in ["", "-", "x", "1.x", "+1", "."] {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_record_counts_its_own_length() {
        for length in 0..1200 {
            let mut out = Vec::new();
            record(&mut out, b"k", &vec![b'v'; length]);
            let text = String::from_utf8(out).unwrap();
            assert_eq!(text.split_once(' ').unwrap().0.parse::<usize>().unwrap(), text.len());
        }
    }

    #[test]
    fn attribute_names_survive_the_keyword() {
        for name in ["user.a", "user.a=b", "user.50%", "user.%3D%25"] {
            let keyword = xattr_keyword(name.as_bytes());
            assert_eq!(xattr_name(keyword.strip_prefix(b"SCHILY.xattr.").unwrap()), name.as_bytes());
        }
    }
}
