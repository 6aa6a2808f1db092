//! Getting around below the root: one directory at a time, relative to an open one, so that no symbolic link is ever
//! followed, whoever plants it and whenever.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use chrono::DateTime;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;
use rustix::path::Arg;

use crate::error::StoreError;
use crate::id::StoreKey;
use crate::store::ObjectInfo;

/// Begins the names of partial writes.
pub(super) const TEMP_PREFIX: &str = ".tmp-";

/// How often a directory that vanishes while it is entered (another process tidies up) is made again.
const ATTEMPTS: usize = 32;

/// One operation on one key: knows the way there, and what to say when it fails.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) root: Arc<Path>,
    pub(super) verb: &'static str,
    pub(super) key: StoreKey,
}

impl Call {
    /// The last segment.
    pub(super) fn name(&self) -> &str {
        self.key.file_name()
    }

    /// All segments.
    pub(super) fn segments(&self) -> Vec<&str> {
        self.key.as_str().split('/').collect()
    }

    /// All segments but the last.
    pub(super) fn parents(&self) -> Vec<&str> {
        let mut all = self.segments();
        all.pop();
        all
    }

    /// The error of a look-up.
    pub(super) fn error(&self, e: io::Error) -> StoreError {
        match e.kind() {
            // A file is where a directory would be: the key cannot be there.
            io::ErrorKind::NotADirectory => StoreError::NotFound { key: self.key.clone() },
            _ => StoreError::io(self.verb, &self.key, e),
        }
    }

    /// The error of a write, which neither misses a key nor finds one taken.
    pub(super) fn write_error(&self, e: io::Error) -> StoreError {
        match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists => {
                StoreError::other(self.verb, &self.key, e)
            }
            _ => StoreError::io(self.verb, &self.key, e),
        }
    }

    /// Opens the directories on a way from the root.
    pub(super) fn open_chain(&self, segments: &[&str]) -> Result<Chain, StoreError> {
        let mut dirs = vec![open_root(self.verb, &self.root)?];
        for name in segments {
            let next = match dirs.last() {
                Some(dir) => open_dir(dir, *name).map_err(|e| self.error(e))?,
                None => continue,
            };
            dirs.push(next);
        }
        Ok(Chain(dirs))
    }

    /// The same; `None` if one of them is missing.
    pub(super) fn open_chain_if_there(&self, segments: Vec<&str>) -> Result<Option<Chain>, StoreError> {
        match self.open_chain(&segments) {
            Ok(chain) => Ok(Some(chain)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Opens the directory that holds the key.
    pub(super) fn open_parent(&self) -> Result<OwnedFd, StoreError> {
        if is_reserved(&self.key) {
            return Err(StoreError::NotFound { key: self.key.clone() });
        }
        self.open_chain(&self.parents()).map(Chain::into_last)
    }

    /// Runs `f` in the directory that holds the key, which is made if it is missing, durably. `f` runs again when it
    /// fails with `NotFound`, because another process may remove a directory as long as it is empty.
    pub(super) fn in_parent<T>(
        &self,
        mut f: impl FnMut(&OwnedFd) -> io::Result<T>,
    ) -> Result<(OwnedFd, T), StoreError> {
        if is_reserved(&self.key) {
            let why = format!("names that begin with `{TEMP_PREFIX}` are reserved");
            return Err(StoreError::other(self.verb, &self.key, why));
        }
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for _ in 0..ATTEMPTS {
            let root = open_root(self.verb, &self.root)?;
            match self.make_parent(root).and_then(|dir| f(&dir).map(|t| (dir, t))) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => last = e,
                done => return done.map_err(|e| self.write_error(e)),
            }
        }
        Err(self.write_error(last))
    }

    fn make_parent(&self, root: OwnedFd) -> io::Result<OwnedFd> {
        let mut dir = root;
        for name in self.parents() {
            let next = match open_dir(&dir, name) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    match rustix::fs::mkdirat(&dir, name, Mode::RWXU) {
                        Ok(()) => sync_dir(&dir)?,
                        Err(Errno::EXIST) => {}
                        Err(e) => return Err(e.into()),
                    }
                    open_dir(&dir, name)?
                }
                other => other?,
            };
            dir = next;
        }
        Ok(dir)
    }
}

/// Open directories, the root first. Never empty.
pub(super) struct Chain(Vec<OwnedFd>);

impl Chain {
    pub(super) fn last(&self) -> &OwnedFd {
        &self.0[self.0.len() - 1]
    }

    pub(super) fn into_last(mut self) -> OwnedFd {
        self.0.swap_remove(self.0.len() - 1)
    }

    /// Removes the directories (named `segments`, below the root) that are empty, from the last one up.
    pub(super) fn prune(&self, segments: Vec<&str>) {
        for (parent, name) in self.0.iter().zip(segments).rev() {
            // Not empty, in use, or gone already: all fine.
            if rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).is_err() {
                break;
            }
        }
    }

    /// Makes what was removed below durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.0.iter().rev().try_for_each(sync_dir)
    }
}

/// Whether a key could be mistaken for a partial write.
pub(super) fn is_reserved(key: &StoreKey) -> bool {
    key.as_str().split('/').any(|s| s.starts_with(TEMP_PREFIX))
}

/// Opens the root; the only place where a symbolic link is followed.
pub(super) fn open_root(verb: &'static str, root: &Path) -> Result<OwnedFd, StoreError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(root, flags, Mode::empty()).map_err(|e| match e {
        Errno::NOENT => StoreError::NotAStore {
            message: format!(
                "`{}` is not there: mount its disk, or make a store there with `backup init`",
                root.display()
            ),
        },
        Errno::NOTDIR => {
            StoreError::NotAStore { message: format!("`{}` is not a directory", root.display()) }
        }
        e => root_error(verb, root, e.into()),
    })
}

/// The error of `verb` on the root itself.
pub(super) fn root_error(operation: &'static str, root: &Path, e: io::Error) -> StoreError {
    let (key, source) = (root.display().to_string(), e);
    match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            StoreError::PermissionDenied { operation, key, source: source.into() }
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StoreError::NoSpace { operation, key, source: source.into() }
        }
        _ => StoreError::Other { operation, key, retryable: false, source: source.into() },
    }
}

/// Makes the root and its parents, durably.
pub(super) fn create_root(root: &Path) -> Result<(), StoreError> {
    let missing: Vec<&Path> = root.ancestors().take_while(|p| !p.exists()).collect();
    for dir in missing.into_iter().rev() {
        let made = match rustix::fs::mkdirat(CWD, dir, Mode::RWXU) {
            Err(Errno::EXIST) => Ok(()),
            other => other.map_err(io::Error::from).and_then(|()| match dir.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => sync_dir(&File::open(parent)?.into()),
                _ => Ok(()),
            }),
        };
        made.map_err(|e| root_error("create", dir, e))?;
    }
    open_root("create", root).map(drop)
}

/// Opens a directory right in `dir`.
pub(super) fn open_dir(dir: &OwnedFd, name: impl Arg + Copy) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(|e| no_links(dir, name, e))
}

/// Opens an object for reading.
pub(super) fn open_object(dir: &OwnedFd, name: &str) -> io::Result<(File, Stat)> {
    // NONBLOCK: a planted FIFO must not hang us.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(|e| no_links(dir, name, e))?;
    let stat = rustix::fs::fstat(&file)?;
    only_objects(&stat)?;
    Ok((file.into(), stat))
}

/// Looks up an object.
pub(super) fn stat_object(dir: &OwnedFd, name: impl Arg) -> io::Result<Stat> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    only_objects(&stat)?;
    Ok(stat)
}

fn only_objects(stat: &Stat) -> io::Result<()> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Symlink => Err(link_error()),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Says clearly that a symbolic link is in the way. The kernel's word for it depends on the flags of `open`.
fn no_links(dir: &OwnedFd, name: impl Arg, e: Errno) -> io::Error {
    if matches!(e, Errno::LOOP | Errno::NOTDIR)
        && rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Symlink)
    {
        return link_error();
    }
    e.into()
}

fn link_error() -> io::Error {
    io::Error::other("a symbolic link is in the way, and a store follows none")
}

/// What the store tells about an object.
pub(super) fn object_info(key: StoreKey, stat: &Stat) -> ObjectInfo {
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
    ObjectInfo {
        key,
        bytes: u64::try_from(stat.st_size).unwrap_or_default(),
        modified: DateTime::from_timestamp(stat.st_mtime, nanos),
        version: Some(format!("{:x}-{:x}-{:x}.{nanos:09}", stat.st_ino, stat.st_size, stat.st_mtime)),
    }
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &OwnedFd) -> io::Result<()> {
    match rustix::fs::fsync(dir) {
        // Some network and FUSE file systems cannot sync a directory.
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Gives a file a new name that must be free.
///
/// # Errors
/// `AlreadyExists` if it is not.
pub(super) fn move_new(from_dir: &OwnedFd, from: &str, to_dir: &OwnedFd, to: &str) -> io::Result<()> {
    match rustix::fs::renameat_with(from_dir, from, to_dir, to, RenameFlags::NOREPLACE) {
        Ok(()) => return Ok(()),
        // The file system or the kernel does not know the flag (e.g. NFS): a hard link is as exclusive.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        Err(e) => return Err(e.into()),
    }
    link_new(from_dir, from, to_dir, to)
}

/// [`move_new`] by hard link.
fn link_new(from_dir: &OwnedFd, from: &str, to_dir: &OwnedFd, to: &str) -> io::Result<()> {
    rustix::fs::linkat(from_dir, from, to_dir, to, AtFlags::empty())?;
    rustix::fs::unlinkat(from_dir, from, AtFlags::empty()).map_err(|e| {
        // Back to where we were; the first error tells more than a second one.
        let _second = rustix::fs::unlinkat(to_dir, to, AtFlags::empty());
        e.into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The way for file systems without `RENAME_NOREPLACE`, which are not at hand in a test.
    #[test]
    fn a_hard_link_is_as_exclusive_as_a_rename() {
        let dir = tempfile::tempdir().unwrap();
        let fd: OwnedFd = File::open(dir.path()).unwrap().into();
        for how in [move_new, link_new] {
            std::fs::write(dir.path().join("new"), "new").unwrap();
            std::fs::write(dir.path().join("taken"), "old").unwrap();
            assert_eq!(how(&fd, "new", &fd, "taken").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(std::fs::read(dir.path().join("taken")).unwrap(), b"old");
            how(&fd, "new", &fd, "free").unwrap();
            assert!(!dir.path().join("new").exists());
            assert_eq!(std::fs::read(dir.path().join("free")).unwrap(), b"new");
            std::fs::remove_file(dir.path().join("free")).unwrap();
            assert_eq!(how(&fd, "gone", &fd, "free").unwrap_err().kind(), io::ErrorKind::NotFound);
        }
    }
}
