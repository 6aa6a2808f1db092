//! Makes an archive of what a walk sees. File data goes straight into the chunks that leave.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use backup_core::{AdapterError, AdapterErrorKind, CHUNK_BYTES};
use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::fs::{
    Advice, FileType, Mode, OFlags, Stat, fadvise, fstat, major, minor, openat, readlinkat, statat,
};
use rustix::io::{Errno, pread};

use super::count::Counts;
use super::pax::{Kind, Member, encode};
use super::roots::member_name;
use super::rules::Why;
use super::walk::{Visit, error, handle};
use super::xattrs::{self, Object};
use super::{BLOCK, sparse};

/// What to do about a file that changes while it is read, after a few tries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OnChange {
    /// Fail and name it: a backup holds whole files only.
    #[default]
    Fail,
    /// Keep what was read, padded with zeros to the length it had at first, and name it in the backup's warnings.
    /// What could not be read for another reason still fails.
    Record,
}

/// How often a changing file is read.
const TRIES: u32 = 3;
/// Larger files are read one time less: each try adds to the archive.
const LARGE: u64 = 64 << 20;
/// The pause after the first try; twice that after the second.
const PAUSE: Duration = Duration::from_millis(25);
/// File times advance in steps of at most 10 ms: of two changes within one step, the second cannot be seen.
const TICK: Duration = Duration::from_millis(20);
/// How many warnings of one kind are kept.
const WARNINGS: usize = 100;

/// Takes full chunks.
pub(crate) trait Out {
    /// # Errors
    /// `Cancelled` and the like: the archive cannot go on.
    fn chunk(&mut self, chunk: Bytes) -> Result<(), AdapterError>;
}

/// The chunk that is being filled.
struct Buffer<O> {
    chunk: Vec<u8>,
    sent: u64,
    out: O,
}

impl<O: Out> Buffer<O> {
    /// Bytes that fit, at least one.
    fn room(&mut self) -> Result<usize, AdapterError> {
        if self.chunk.len() >= CHUNK_BYTES {
            let full = mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_BYTES));
            self.sent += 1;
            self.out.chunk(full.into())?;
        }
        Ok(CHUNK_BYTES - self.chunk.len())
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<(), AdapterError> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(self.room()?.min(bytes.len()));
            self.chunk.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    fn zeros(&mut self, mut length: u64) -> Result<(), AdapterError> {
        while length > 0 {
            let now = self.room()?.min(usize::try_from(length).unwrap_or(usize::MAX));
            self.chunk.resize(self.chunk.len() + now, 0);
            length -= now as u64;
        }
        Ok(())
    }

    /// Reads a file from `from` up to `to`; returns where it ended.
    fn read(&mut self, path: &Path, fd: BorrowedFd<'_>, from: u64, to: u64) -> Result<u64, AdapterError> {
        let mut at = from;
        while at < to {
            let room = self.room()?;
            let want = room.min(usize::try_from(to - at).unwrap_or(usize::MAX));
            let before = self.chunk.len();
            let done = if want == room {
                pread(fd, spare_capacity(&mut self.chunk), at)
            } else {
                self.chunk.resize(before + want, 0);
                pread(fd, self.chunk.get_mut(before..).unwrap_or_default(), at)
            };
            let done = match done {
                Ok(n) => n.min(want),
                Err(Errno::INTR) => 0,
                Err(e) => return Err(error("read", path, e)),
            };
            self.chunk.truncate(before + done);
            if done == 0 && fstat(fd).map_err(|e| error("look at", path, e))?.st_size.cast_unsigned() <= at {
                break;
            }
            at += done as u64;
        }
        Ok(at)
    }

    fn mark(&self) -> (u64, usize) {
        (self.sent, self.chunk.len())
    }

    /// Takes back what was put since `mark`, if nothing of it left already.
    fn take_back(&mut self, mark: (u64, usize)) -> bool {
        let possible = self.sent == mark.0;
        if possible {
            self.chunk.truncate(mark.1);
        }
        possible
    }
}

/// A file with several names that is in the archive.
struct Linked {
    path: Vec<u8>,
    /// Tells another file that got the same inode number.
    version: (i64, i64, u64),
    /// Names that may still come; then it is forgotten.
    names_left: u64,
}

/// One try to archive a file.
struct Try {
    size: u64,
    /// Whether a member is in the archive now.
    kept: bool,
    trouble: Option<&'static str>,
}

/// Writes an archive.
pub(crate) struct Writer<O> {
    buffer: Buffer<O>,
    on_change: OnChange,
    linked: HashMap<(u64, u64), Linked>,
    header: Vec<u8>,
    counts: Counts,
    /// Files that changed, and what happened to them.
    changed: Vec<(PathBuf, &'static str)>,
    sockets: Vec<PathBuf>,
    mounts: Vec<PathBuf>,
    /// What the names of members are relative to, each with a slash; none: `/`.
    bases: Vec<Vec<u8>>,
    /// Called in the middle of each try, with the number of the try.
    #[cfg(test)]
    meanwhile: Option<tests::Meanwhile>,
}

/// What an archive came to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Summary {
    pub(crate) counts: Counts,
    pub(crate) warnings: Vec<String>,
    /// Files that changed while they were read.
    pub(crate) changed: Vec<PathBuf>,
}

impl<O: Out> Writer<O> {
    pub(crate) fn new(out: O, on_change: OnChange) -> Self {
        Self {
            buffer: Buffer { chunk: Vec::with_capacity(CHUNK_BYTES), sent: 0, out },
            on_change,
            linked: HashMap::new(),
            header: Vec::new(),
            counts: Counts::default(),
            changed: Vec::new(),
            sockets: Vec::new(),
            mounts: Vec::new(),
            bases: Vec::new(),
            #[cfg(test)]
            meanwhile: None,
        }
    }

    /// Names members relative to those of `bases` that hold them.
    pub(crate) fn below(mut self, bases: &[PathBuf]) -> Self {
        let with_slash = |base: &PathBuf| [member_name(base), b"/"].concat();
        self.bases = bases.iter().map(with_slash).collect();
        self
    }

    /// Archives directories by themselves, without what is in them.
    ///
    /// # Errors
    /// One that cannot be looked at.
    pub(crate) fn parents(&mut self, dirs: &[PathBuf]) -> Result<(), AdapterError> {
        for dir in dirs {
            let (Some(above), Some(name)) = (dir.parent(), dir.file_name()) else { continue };
            let look = |e| error("look at", dir, e);
            let above = handle(above).map_err(look)?;
            let stat = statat(&above, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).map_err(look)?;
            let mut member = member_of(dir, Kind::Dir, &stat);
            // We may pass through a directory without a right to read its attributes.
            member.xattrs = xattrs::read(Object::Named(above.as_fd(), name)).unwrap_or_default();
            self.counts.directories += 1;
            self.put(&member)?;
        }
        Ok(())
    }

    /// Writes the end mark and sends what is left.
    ///
    /// # Errors
    /// From the output.
    pub(crate) fn finish(mut self) -> Result<Summary, AdapterError> {
        self.buffer.zeros(2 * BLOCK as u64)?;
        let rest = mem::take(&mut self.buffer.chunk);
        self.buffer.out.chunk(rest.into())?;
        let mut warnings = Vec::new();
        let changed = self
            .changed
            .iter()
            .map(|(p, what)| format!("`{}` changed while it was read: {what}", p.display()));
        let sockets = self.sockets.iter().map(|p| format!("`{}` is a socket and is left out", p.display()));
        let mounts = self.mounts.iter().map(|p| {
            format!(
                "`{}` is a mount point: its contents are left out (`cross_mounts = true` takes them)",
                p.display()
            )
        });
        limit(&mut warnings, changed);
        limit(&mut warnings, sockets);
        limit(&mut warnings, mounts);
        let changed = self.changed.into_iter().map(|(path, _)| path).collect();
        Ok(Summary { counts: self.counts, warnings, changed })
    }

    fn put(&mut self, member: &Member) -> Result<(), AdapterError> {
        self.header.clear();
        if self.bases.is_empty() {
            encode(member, &mut self.header)?;
        } else {
            let mut member = member.clone();
            for name in [&mut member.path, &mut member.link] {
                if let Some(short) = self.bases.iter().find_map(|base| name.strip_prefix(base.as_slice())) {
                    *name = short.to_vec();
                }
            }
            encode(&member, &mut self.header)?;
        }
        self.buffer.put(&self.header)
    }

    fn note_change(&mut self, path: &Path, what: &'static str) -> Result<(), AdapterError> {
        match self.on_change {
            OnChange::Fail => Err(AdapterError::new(
                AdapterErrorKind::Changed,
                format!("`{}` changed while it was read: {what}", path.display()),
            )),
            OnChange::Record => {
                self.changed.push((path.to_owned(), what));
                Ok(())
            }
        }
    }

    /// `keep`: what was read stays even if the file changed.
    fn try_file(
        &mut self,
        path: &Path,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        number: u32,
        keep: bool,
    ) -> Result<Try, AdapterError> {
        let gone = |what| Ok(Try { size: 0, kept: false, trouble: Some(what) });
        // Without waiting for anybody: it may have become a named pipe.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = match openat(parent, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return gone("it vanished"),
            Err(Errno::LOOP | Errno::NXIO) => return gone("it became something else"),
            Err(e) => return Err(error("open", path, e)),
        };
        let look = |e| error("look at", path, e);
        let stat = fstat(&fd).map_err(look)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return gone("it became something else");
        }
        if too_new(&stat) {
            std::thread::sleep(TICK);
            if changed_at(&fstat(&fd).map_err(look)?) != changed_at(&stat) {
                return gone("it is being written");
            }
        }
        let mut member = member_of(path, Kind::File, &stat);
        member.size = stat.st_size.cast_unsigned();
        let id = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1
            && let Some(first) = self.linked.get_mut(&id)
            && first.version == version(&stat)
        {
            member.kind = Kind::HardLink;
            member.link.clone_from(&first.path);
            first.names_left = first.names_left.saturating_sub(1);
            if first.names_left == 0 {
                self.linked.remove(&id);
            }
            self.put(&member)?;
            return Ok(Try { size: 0, kept: true, trouble: None });
        }
        member.xattrs = xattrs::read(Object::Open(fd.as_fd()))
            .map_err(|e| error("read the extended attributes of", path, e))?;
        member.sparse = sparse::segments(fd.as_fd(), &stat).map_err(look)?;
        if member.size > CHUNK_BYTES as u64 {
            // Only advice: read on ahead of us.
            let _refused = fadvise(&fd, 0, None, Advice::Sequential);
        }

        let mark = self.buffer.mark();
        self.put(&member)?;
        #[cfg(test)]
        if let Some(meanwhile) = &mut self.meanwhile {
            meanwhile(path, number);
        }
        let mut trouble = None;
        let mut stored = 0;
        let dense = [(0, member.size)];
        for &(offset, length) in member.sparse.as_deref().unwrap_or(&dense) {
            let reached = if trouble.is_none() {
                self.buffer.read(path, fd.as_fd(), offset, offset + length)?
            } else {
                offset
            };
            if reached < offset + length {
                trouble = Some("it shrank");
                self.buffer.zeros(offset + length - reached)?;
            }
            stored += length;
        }
        self.buffer.zeros(stored.next_multiple_of(BLOCK as u64) - stored)?;
        let after = fstat(&fd).map_err(look)?;
        if trouble.is_none() && (version(&after), changed_at(&after)) != (version(&stat), changed_at(&stat)) {
            trouble = Some(match () {
                () if after.st_size > stat.st_size => "it grew",
                () if after.st_nlink == 0 => "it was deleted or replaced",
                () => "its contents or attributes changed",
            });
        }
        let kept = trouble.is_none() || keep || !self.buffer.take_back(mark);
        if trouble.is_none() && stat.st_nlink > 1 {
            let names_left = wide(stat.st_nlink) - 1;
            self.linked.insert(id, Linked { path: member.path, version: version(&stat), names_left });
        }
        #[cfg(not(test))]
        let _only_for_tests = number;
        Ok(Try { size: member.size, kept, trouble })
    }
}

impl<O: Out> Visit for Writer<O> {
    fn dir(&mut self, path: &Path, fd: BorrowedFd<'_>, stat: &Stat) -> Result<(), AdapterError> {
        let mut member = member_of(path, Kind::Dir, stat);
        member.xattrs =
            xattrs::read(Object::Open(fd)).map_err(|e| error("read the extended attributes of", path, e))?;
        self.counts.directories += u64::from(!member.path.is_empty());
        self.put(&member)
    }

    fn file(&mut self, path: &Path, parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), AdapterError> {
        let mut in_archive = None;
        for number in 1..=TRIES {
            let keep = number == TRIES && self.on_change == OnChange::Record;
            let tried = self.try_file(path, parent, name, number, keep)?;
            if tried.kept {
                // A member that could not be taken back is replaced by the next one of the same name.
                in_archive = Some(tried.size);
            }
            let Some(trouble) = tried.trouble else { break };
            let large = tried.size > LARGE;
            let enough = match self.on_change {
                OnChange::Fail => number == TRIES || (large && number + 1 == TRIES),
                OnChange::Record => number == TRIES || large,
            };
            if enough {
                self.note_change(path, trouble)?;
                break;
            }
            std::thread::sleep(PAUSE * number);
        }
        if let Some(size) = in_archive {
            self.counts.files += 1;
            self.counts.bytes += size;
        }
        Ok(())
    }

    fn other(
        &mut self,
        path: &Path,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        stat: &Stat,
    ) -> Result<(), AdapterError> {
        let Some(kind) = Kind::of(FileType::from_raw_mode(stat.st_mode)) else {
            self.sockets.push(path.to_owned());
            return Ok(());
        };
        let mut member = member_of(path, kind, stat);
        if kind == Kind::Symlink {
            match readlinkat(parent, name, Vec::new()) {
                Ok(link) => member.link = link.into_bytes(),
                Err(Errno::NOENT | Errno::INVAL) => return self.vanished(path),
                Err(e) => return Err(error("read the symlink", path, e)),
            }
            self.counts.symlinks += 1;
        } else {
            member.device = (major(stat.st_rdev), minor(stat.st_rdev));
            self.counts.special += 1;
        }
        // Attributes of such nodes are rare; gone ones are not worth a failure.
        member.xattrs = match xattrs::read(Object::Named(parent, name)) {
            Ok(found) => found,
            Err(Errno::NOENT) => Vec::new(),
            Err(e) => return Err(error("read the extended attributes of", path, e)),
        };
        self.put(&member)
    }

    fn vanished(&mut self, path: &Path) -> Result<(), AdapterError> {
        self.note_change(path, "it vanished")
    }

    fn left_out(&mut self, path: &Path, why: Why) {
        if why == Why::Mount {
            self.mounts.push(path.to_owned());
        }
    }
}

fn limit(out: &mut Vec<String>, mut from: impl ExactSizeIterator<Item = String>) {
    out.extend(from.by_ref().take(WARNINGS));
    if from.len() > 0 {
        out.push(format!("… and {} more of this kind", from.len()));
    }
}

/// The kernel's types differ between architectures.
fn wide(n: impl Into<u64>) -> u64 {
    n.into()
}

/// Size and time: with [`changed_at`], what tells that a file changed.
fn version(stat: &Stat) -> (i64, i64, u64) {
    (stat.st_size, stat.st_mtime, wide(stat.st_mtime_nsec))
}

/// Whether a change right now might leave no trace in the file's times. The kernel's clock made them, so that only the
/// system's clock can be compared with them.
fn too_new(stat: &Stat) -> bool {
    let at =
        Duration::new(stat.st_ctime.max(0).cast_unsigned(), u32::try_from(stat.st_ctime_nsec).unwrap_or(0));
    let age = SystemTime::UNIX_EPOCH.checked_add(at).and_then(|at| SystemTime::now().duration_since(at).ok());
    age.is_some_and(|age| age < TICK)
}

fn changed_at(stat: &Stat) -> (i64, u64) {
    (stat.st_ctime, wide(stat.st_ctime_nsec))
}

fn member_of(path: &Path, kind: Kind, stat: &Stat) -> Member {
    let mut member = Member::new(member_name(path).to_vec(), kind);
    member.mode = stat.st_mode & 0o7777;
    member.uid = stat.st_uid.into();
    member.gid = stat.st_gid.into();
    // At most 999,999,999.
    member.mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
    member
}

#[cfg(test)]
mod tests;
