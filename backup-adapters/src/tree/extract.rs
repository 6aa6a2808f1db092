//! Writes the tree of an archive, and never anything outside of it.
//!
//! Every name is reached from an open directory, part by part, and never through a symlink; what is created is new.
//! A directory gets its owner, mode, attributes and times when it is left, so that nothing of it is inherited or
//! changed by what goes into it. Regular files are created here, and filled and completed by [`super::fill`], sooner or
//! later: that changes nothing of their directory. Memory: one entry for each level of the current directory.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use backup_core::AdapterError;
use bytes::Bytes;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Timestamps, fchmod, fremovexattr, fstat, futimens, linkat, makedev,
    mkdirat, mknodat, openat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::apply::{Apply, failed, refused, times_of};
use super::fill::Feeder;
use super::parse::{Parser, Sink};
use super::pax::{Kind, Member};
use super::show;
use super::walk::{DIRECTORY, handle};

/// Where the members below `prefix` go: to `parent/name`, which must not exist yet.
#[derive(Debug, Clone)]
pub(crate) struct Dest {
    /// A member's name without `/` at the end; empty for the whole archive.
    pub(crate) prefix: Vec<u8>,
    /// `prefix` begins below the archive's top folder, whatever that is called.
    pub(crate) below_top: bool,
    pub(crate) parent: PathBuf,
    pub(crate) name: OsString,
}

impl Dest {
    /// `path` as `prefix` means it; `None` if it is above that.
    fn inside<'p>(&self, path: &'p [u8]) -> Option<&'p [u8]> {
        if !self.below_top {
            return Some(path);
        }
        match path.iter().position(|b| *b == b'/') {
            Some(slash) => path.get(slash + 1..),
            None if path.is_empty() => None,
            None => Some(&[]),
        }
    }
}

const DANGLING: &str = "it is a hard link to something that the archive does not hold";

/// A directory that we are in.
#[derive(Debug)]
struct Frame {
    name: Vec<u8>,
    fd: OwnedFd,
    on_leave: OnLeave,
}

#[derive(Debug)]
enum OnLeave {
    Nothing,
    /// The archive describes it.
    Member(Box<Member>),
    /// It was complete when it was entered again.
    Times(Timestamps),
    /// The archive does not describe it.
    Plain,
}

/// Extracts an archive.
#[derive(Debug)]
pub(crate) struct Extractor {
    dests: Vec<Dest>,
    current: usize,
    frames: Vec<Frame>,
    /// What the parser is being fed.
    chunk: Bytes,
    files: Feeder,
    /// The current member is a regular file.
    in_file: bool,
    /// For everything but regular files.
    apply: Apply,
}

impl Extractor {
    pub(crate) fn new(dests: Vec<Dest>, files: Feeder) -> Self {
        Self {
            dests,
            current: 0,
            frames: Vec::new(),
            chunk: Bytes::new(),
            files,
            in_file: false,
            apply: Apply::new(),
        }
    }

    /// Takes the next chunk of an archive.
    ///
    /// # Errors
    /// `Corrupt`; I/O errors.
    pub(crate) fn feed(&mut self, parser: &mut Parser, chunk: Bytes) -> Result<(), AdapterError> {
        self.chunk = chunk.clone();
        parser.feed(&chunk, self)?;
        self.chunk = Bytes::new();
        self.files.passed(chunk.len())
    }

    /// Hands over the last files and completes the directories; returns what could not be restored of these.
    ///
    /// # Errors
    /// I/O errors.
    pub(crate) fn finish(mut self) -> Result<Apply, AdapterError> {
        self.files.flush()?;
        self.leave_to(0)?;
        Ok(self.apply)
    }

    /// The destination of a member, and its path there. `None` for a directory above all destinations.
    fn locate<'m>(
        &self,
        member: &'m Member,
        path: &'m [u8],
    ) -> Result<Option<(usize, &'m [u8])>, AdapterError> {
        for (i, dest) in self.dests.iter().enumerate() {
            let Some(path) = dest.inside(path) else { continue };
            let Some(rest) = path.strip_prefix(dest.prefix.as_slice()) else { continue };
            match (dest.prefix.is_empty(), rest.split_first()) {
                (true, _) | (false, None) => return Ok(Some((i, rest))),
                (false, Some((b'/', rest))) => return Ok(Some((i, rest))),
                (false, Some(_)) => {}
            }
        }
        let above = |dest: &Dest| {
            path.is_empty() || dest.prefix.strip_prefix(path).is_some_and(|rest| rest.starts_with(b"/"))
        };
        if member.kind == Kind::Dir && self.dests.iter().any(above) {
            return Ok(None);
        }
        Err(refused(member, "it lies outside of what the backup says it holds"))
    }

    /// Goes to the directory of `parts` (all but the last) and returns it with the last part.
    fn go_to<'p>(
        &mut self,
        member: &Member,
        dest: usize,
        parts: &[&'p [u8]],
    ) -> Result<&'p OsStr, AdapterError> {
        let Some((last, dirs)) = parts.split_last() else {
            return Err(refused(member, "it has no name"));
        };
        if dest != self.current || self.frames.is_empty() {
            self.leave_to(0)?;
            self.current = dest;
            let parent = self.dests.get(dest).map(|d| d.parent.clone()).unwrap_or_default();
            let fd = handle(&parent)
                .map_err(|e| AdapterError::io(format!("cannot open `{}`", parent.display()), e.into()))?;
            self.frames.push(Frame { name: Vec::new(), fd, on_leave: OnLeave::Nothing });
        }
        let inside = self.frames.iter().skip(1);
        let common = inside.zip(dirs).take_while(|(frame, part)| frame.name == **part).count();
        self.leave_to(common + 1)?;
        for (depth, part) in dirs.iter().enumerate().skip(common) {
            let (fd, created) = self.open_dir(member, OsStr::from_bytes(part))?;
            let on_leave = if depth == 0 {
                OnLeave::Nothing
            } else if created {
                OnLeave::Plain
            } else {
                OnLeave::Times(times_of(&fstat(&fd).map_err(|e| failed(member, e))?))
            };
            self.frames.push(Frame { name: part.to_vec(), fd, on_leave });
        }
        Ok(OsStr::from_bytes(last))
    }

    /// Opens or creates a directory in the current one. Tells whether it was created.
    fn open_dir(&self, member: &Member, name: &OsStr) -> Result<(OwnedFd, bool), AdapterError> {
        let here = self.here(member)?;
        let created = match mkdirat(here, name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(failed(member, e)),
        };
        let fd = match openat(here, name, DIRECTORY, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::LOOP | Errno::NOTDIR) => {
                return Err(refused(member, "its path leads through something that is not a directory"));
            }
            Err(e) => return Err(failed(member, e)),
        };
        if created && self.frames.len() == 1 {
            // What our folder inherited here would be inherited by everything in it.
            for acl in ["system.posix_acl_default", "system.posix_acl_access"] {
                let _there_is_none = fremovexattr(&fd, acl);
            }
            fchmod(&fd, Mode::RWXU).map_err(|e| failed(member, e))?;
        }
        Ok((fd, created))
    }

    fn here(&self, member: &Member) -> Result<BorrowedFd<'_>, AdapterError> {
        self.frames.last().map(|f| f.fd.as_fd()).ok_or_else(|| refused(member, "it has no place"))
    }

    fn leave_to(&mut self, depth: usize) -> Result<(), AdapterError> {
        while self.frames.len() > depth {
            let Some(frame) = self.frames.pop() else { break };
            let done = match frame.on_leave {
                OnLeave::Nothing => Ok(()),
                OnLeave::Plain => fchmod(&frame.fd, Mode::from_raw_mode(0o755)),
                OnLeave::Times(times) => futimens(&frame.fd, &times),
                OnLeave::Member(member) => {
                    self.apply.open(frame.fd.as_fd(), &member)?;
                    Ok(())
                }
            };
            done.map_err(|e| {
                AdapterError::io(format!("cannot complete the directory `{}`", show(&frame.name)), e.into())
            })?;
        }
        Ok(())
    }

    fn apply_named(&mut self, member: &Member, name: &OsStr) -> Result<(), AdapterError> {
        let here = self.frames.last().ok_or_else(|| refused(member, "it has no place"))?;
        self.apply.named(here.fd.as_fd(), name, member)
    }

    /// Creates something that must not be there. A file of the same name is an earlier state of it: it goes.
    fn create<T>(
        &self,
        member: &Member,
        name: &OsStr,
        create: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> Result<T, AdapterError> {
        let here = self.here(member)?;
        let created = match create(here) {
            Err(Errno::EXIST) => {
                unlinkat(here, name, AtFlags::empty()).map_err(|e| failed(member, e))?;
                create(here)
            }
            other => other,
        };
        created.map_err(|e| failed(member, e))
    }

    /// The directory and name of a hard link's target.
    fn link_target(&self, member: &Member) -> Result<(OwnedFd, OsString), AdapterError> {
        let Some((dest, rest)) = self.locate(member, &member.link)? else {
            return Err(refused(member, "it is a hard link to a directory"));
        };
        let dest = self.dests.get(dest).ok_or_else(|| refused(member, "it has no place"))?;
        let (dirs, last) = split(&dest.name, rest);
        let mut fd = handle(&dest.parent).map_err(|e| failed(member, e))?;
        for part in dirs {
            fd = match openat(&fd, OsStr::from_bytes(part), DIRECTORY, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::LOOP | Errno::NOTDIR | Errno::NOENT) => {
                    return Err(refused(member, DANGLING));
                }
                Err(e) => return Err(failed(member, e)),
            };
        }
        Ok((fd, last.to_owned()))
    }
}

/// The directories on the way to `rest` in a destination's folder, and the last name.
fn split<'a>(name: &'a OsStr, rest: &'a [u8]) -> (Vec<&'a [u8]>, &'a OsStr) {
    let parts = rest.split(|b| *b == b'/').filter(|p| !p.is_empty());
    let mut all: Vec<&[u8]> = std::iter::once(name.as_bytes()).chain(parts).collect();
    let last = all.pop().unwrap_or_default();
    (all, OsStr::from_bytes(last))
}

impl Sink for Extractor {
    fn member(&mut self, member: &Member) -> Result<(), AdapterError> {
        let Some((dest, rest)) = self.locate(member, &member.path)? else { return Ok(()) };
        let top = self.dests.get(dest).map(|d| d.name.clone()).unwrap_or_default();
        let (mut parts, last) = split(&top, rest);
        parts.push(last.as_bytes());
        let name = self.go_to(member, dest, &parts)?;
        match member.kind {
            Kind::Dir => {
                let (fd, _) = self.open_dir(member, name)?;
                let on_leave = OnLeave::Member(Box::new(member.clone()));
                self.frames.push(Frame { name: name.as_bytes().to_vec(), fd, on_leave });
            }
            Kind::File => {
                let flags =
                    OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd =
                    self.create(member, name, |here| openat(here, name, flags, Mode::RUSR | Mode::WUSR))?;
                if self.frames.len() == 1 {
                    let _there_is_none = fremovexattr(&fd, "system.posix_acl_access");
                }
                self.files.begin(File::from(fd), Box::new(member.clone()));
                self.in_file = true;
            }
            Kind::HardLink => {
                let (from, target) = self.link_target(member)?;
                let link = |here: BorrowedFd<'_>| linkat(&from, &target, here, name, AtFlags::empty());
                if let Err(Errno::NOENT) = rustix::fs::statat(&from, &target, AtFlags::SYMLINK_NOFOLLOW) {
                    return Err(refused(member, DANGLING));
                }
                self.create(member, name, link)?;
            }
            Kind::Symlink => {
                let target = OsStr::from_bytes(&member.link);
                self.create(member, name, |here| symlinkat(target, here, name))?;
                self.apply_named(member, name)?;
            }
            Kind::Fifo | Kind::Char | Kind::Block => {
                let (file_type, device) = match member.kind {
                    Kind::Char => (FileType::CharacterDevice, makedev(member.device.0, member.device.1)),
                    Kind::Block => (FileType::BlockDevice, makedev(member.device.0, member.device.1)),
                    _ => (FileType::Fifo, 0),
                };
                self.create(member, name, |here| mknodat(here, name, file_type, Mode::RUSR, device))?;
                self.apply_named(member, name)?;
            }
        }
        Ok(())
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), AdapterError> {
        if self.in_file {
            self.files.data(offset, self.chunk.slice_ref(bytes));
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), AdapterError> {
        if mem::take(&mut self.in_file) { self.files.end() } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_the_top_means_below_any_one_folder() {
        let dest = |below_top| Dest {
            prefix: Vec::new(),
            below_top,
            parent: PathBuf::new(),
            name: OsString::from("x"),
        };
        let inside = |path: &'static str, below_top| {
            let dest = dest(below_top);
            dest.inside(path.as_bytes()).map(|p| String::from_utf8(p.to_vec()).unwrap())
        };
        assert_eq!(inside("top/a/b", true).as_deref(), Some("a/b"));
        assert_eq!(inside("top", true).as_deref(), Some(""));
        assert_eq!(inside("", true), None);
        assert_eq!(inside("top/a/b", false).as_deref(), Some("top/a/b"));
        assert_eq!(inside("", false).as_deref(), Some(""));
    }
}
