//! Visits a tree in a fixed order, without ever following a symlink.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use backup_core::AdapterError;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, StatxAttributes, StatxFlags, fstat, openat, statat,
    statx,
};
use rustix::io::Errno;

use super::roots::{Root, RootKind};
use super::rules::{Excluded, RuleSpec, Rules, Why};

/// Sees a tree. Everything comes before what follows it by name; a directory comes before its contents.
pub(crate) trait Visit {
    /// A directory, open.
    fn dir(&mut self, path: &Path, fd: BorrowedFd<'_>, stat: &Stat) -> Result<(), AdapterError>;
    /// A regular file, as far as the directory told.
    fn file(&mut self, path: &Path, parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), AdapterError>;
    /// Neither directory nor regular file.
    fn other(
        &mut self,
        path: &Path,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        stat: &Stat,
    ) -> Result<(), AdapterError>;
    /// It was listed and is gone.
    fn vanished(&mut self, path: &Path) -> Result<(), AdapterError>;
    /// Something is left out. (A mount point was visited as an empty directory.)
    fn left_out(&mut self, path: &Path, why: Why);
}

/// An error about `path` in the course of a visit.
pub(crate) fn error(doing: &str, path: &Path, e: impl Into<io::Error>) -> AdapterError {
    AdapterError::io(format!("cannot {doing} `{}`", path.display()), e.into())
}

/// How directories are opened: only directories, never through a symlink.
pub(crate) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A directory to start names from. Needs no right to list it.
pub(crate) fn handle(dir: &Path) -> rustix::io::Result<OwnedFd> {
    openat(CWD, dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Walks one root.
///
/// # Errors
/// What the visitor says, and any entry that cannot be looked at, by name.
pub(crate) fn walk(
    root: &Root,
    spec: &RuleSpec,
    excluded: &Excluded,
    visit: &mut impl Visit,
) -> Result<(), AdapterError> {
    let rules = Rules::new(spec, &root.path).map_err(|e| error("read the rules for", &root.path, e))?;
    let mut walk = Walk { rules, excluded, visit, path: root.path.clone() };
    let parent = root.path.parent().unwrap_or(&root.path);
    match root.kind {
        RootKind::Dir => {
            let fd = openat(CWD, &root.path, DIRECTORY, Mode::empty());
            walk.dir(fd.map_err(|e| error("open", &root.path, e))?, true)
        }
        RootKind::File => {
            let fd = handle(parent).map_err(|e| error("open", parent, e))?;
            walk.entry(fd.as_fd(), root.path.file_name().unwrap_or_default(), FileType::Unknown)
        }
    }
}

struct Walk<'a, V> {
    rules: Rules,
    excluded: &'a Excluded,
    visit: &'a mut V,
    path: PathBuf,
}

impl<V: Visit> Walk<'_, V> {
    fn dir(&mut self, fd: OwnedFd, is_root: bool) -> Result<(), AdapterError> {
        let stat = fstat(&fd).map_err(|e| error("look at", &self.path, e))?;
        if !is_root {
            if self.excluded.contains(&self.path, (stat.st_dev, stat.st_ino)) {
                self.visit.left_out(&self.path, Why::Excluded);
                return Ok(());
            }
            if !self.rules.cross_mounts && is_mount_point(fd.as_fd()) {
                self.visit.dir(&self.path, fd.as_fd(), &stat)?;
                self.visit.left_out(&self.path, Why::Mount);
                return Ok(());
            }
        }
        self.visit.dir(&self.path, fd.as_fd(), &stat)?;
        let names = list(fd.as_fd()).map_err(|e| error("list", &self.path, e))?;
        let has = |name: &str| names.binary_search_by(|(n, _)| n.as_os_str().cmp(OsStr::new(name))).is_ok();
        self.rules.enter(&self.path, has(".git"), has(".gitignore"));
        for (name, file_type) in names {
            self.path.push(&name);
            self.listed(fd.as_fd(), &name, file_type)?;
            self.path.pop();
        }
        self.rules.leave();
        Ok(())
    }

    fn listed(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        mut kind: FileType,
    ) -> Result<(), AdapterError> {
        if kind == FileType::Unknown {
            match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => kind = FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT) => return self.visit.vanished(&self.path),
                Err(e) => return Err(error("look at", &self.path, e)),
            }
        }
        if let Some(why) = self.rules.left_out(&self.path, kind == FileType::Directory) {
            self.visit.left_out(&self.path, why);
            return Ok(());
        }
        self.entry(parent, name, kind)
    }

    fn entry(&mut self, parent: BorrowedFd<'_>, name: &OsStr, kind: FileType) -> Result<(), AdapterError> {
        match kind {
            FileType::RegularFile => self.visit.file(&self.path, parent, name),
            FileType::Directory => match openat(parent, name, DIRECTORY, Mode::empty()) {
                Ok(fd) => self.dir(fd, false),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.visit.vanished(&self.path),
                Err(e) => Err(error("open", &self.path, e)),
            },
            _ => match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                    FileType::RegularFile => self.visit.file(&self.path, parent, name),
                    // It was something else when it was listed.
                    FileType::Directory => self.visit.vanished(&self.path),
                    _ => self.visit.other(&self.path, parent, name, &stat),
                },
                Err(Errno::NOENT) => self.visit.vanished(&self.path),
                Err(e) => Err(error("look at", &self.path, e)),
            },
        }
    }
}

/// The names in a directory, sorted by their bytes.
pub(crate) fn list(fd: BorrowedFd<'_>) -> io::Result<Vec<(OsString, FileType)>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(fd)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push((OsString::from_vec(name.to_vec()), entry.file_type()));
        }
    }
    names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(names)
}

/// Whether a directory is the root of a mount, bind mounts included (a comparison of device numbers misses those, and
/// takes a btrfs subvolume for one).
pub(crate) fn is_mount_point(fd: BorrowedFd<'_>) -> bool {
    let by_attribute = statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
        .ok()
        .filter(|s| s.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT))
        .map(|s| s.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    by_attribute.unwrap_or_else(|| {
        // Kernels before 5.8.
        let above = statat(fd, "..", AtFlags::empty());
        matches!((fstat(fd), above), (Ok(here), Ok(above)) if here.st_dev != above.st_dev)
    })
}
