//! Replacing files and directories without ever deleting what was there.
//!
//! A restore builds beside the target ([`staging_path`]), then [`switch`]es: the new data takes the name and the old
//! data stays as `<name>.backup.<timestamp>` ([`kept_path`]) in the same directory, so that the swap is a rename within
//! one file system. [`undo`] swaps back. All steps can be called again after a crash.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use rustix::fs::{CWD, RenameFlags};
use serde::{Deserialize, Serialize};

use crate::id::{RunId, Timestamp};

/// A staged file or directory and the place it is meant for; what a restore's journal remembers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swap {
    /// The name that the data shall have.
    pub target: PathBuf,
    /// Where the new data was built.
    pub staged: PathBuf,
    /// What the old data will be called.
    pub kept: PathBuf,
    /// Device and inode of the staged data: tells after a crash which of the two carries which name.
    pub identity: (u64, u64),
    /// Whether something was there before.
    pub replaced: bool,
}

/// `<parent>/.<name>.restore-<run>`: on the same file system as the target.
#[must_use]
pub fn staging_path(target: &Path, run: &RunId) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or(OsStr::new("root")));
    name.push(format!(".restore-{run}"));
    target.with_file_name(name)
}

/// `<parent>/<name>.backup.<timestamp>`.
#[must_use]
pub fn kept_path(target: &Path, at: Timestamp) -> PathBuf {
    let mut name = target.file_name().unwrap_or(OsStr::new("root")).to_owned();
    name.push(format!(".backup.{at}"));
    target.with_file_name(name)
}

/// Whether a file name is one of [`kept_path`]'s or [`staging_path`]'s: such data is never backed up.
#[must_use]
pub fn is_set_aside(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    let kept =
        name.rsplit_once(".backup.").is_some_and(|(n, ts)| !n.is_empty() && ts.parse::<Timestamp>().is_ok());
    let staged = name.starts_with('.')
        && name.rsplit_once(".restore-").is_some_and(|(_, run)| {
            run.split_once('-').is_some_and(|(ts, _)| ts.parse::<Timestamp>().is_ok())
        });
    kept || staged
}

fn identity(path: &Path) -> io::Result<Option<(u64, u64)>> {
    match fs::symlink_metadata(path) {
        Ok(m) => Ok(Some((m.dev(), m.ino()))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Records a swap of `staged`, which must exist, into the place of `target`.
///
/// # Errors
/// I/O errors; `AlreadyExists` if the name for the old data is taken.
pub fn prepare(staged: &Path, target: &Path, at: Timestamp) -> io::Result<Swap> {
    let staged_id = identity(staged)?.ok_or(io::ErrorKind::NotFound)?;
    let kept = kept_path(target, at);
    if identity(&kept)?.is_some() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!("`{}` exists already", kept.display()),
        ));
    }
    let replaced = identity(target)?.is_some();
    Ok(Swap { target: target.to_owned(), staged: staged.to_owned(), kept, identity: staged_id, replaced })
}

/// Makes the staged data live and keeps the old data aside. The target's name is never without data, where the file
/// system can exchange two names (`renameat2` with `RENAME_EXCHANGE`: ext4, XFS, btrfs, tmpfs). Idempotent.
///
/// # Errors
/// I/O errors; the old data is live then.
pub fn switch(swap: &Swap) -> io::Result<()> {
    let parent = swap.target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if identity(&swap.target)? != Some(swap.identity) {
        if swap.replaced {
            match rustix::fs::renameat_with(CWD, &swap.staged, CWD, &swap.target, RenameFlags::EXCHANGE) {
                Ok(()) => {}
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => exchange_by_two_renames(swap)?,
                // A crash of the two-rename way in its middle: the old data is aside already.
                Err(rustix::io::Errno::NOENT) if identity(&swap.kept)?.is_some() => {
                    fs::rename(&swap.staged, &swap.target)?;
                }
                Err(e) => return Err(e.into()),
            }
        } else {
            rustix::fs::renameat_with(CWD, &swap.staged, CWD, &swap.target, RenameFlags::NOREPLACE)?;
        }
    }
    // Where the kept name is the staged one, the exchange did all. Otherwise a name that somebody else took meanwhile
    // is an error: what is left under the staged name is the old data.
    if swap.replaced && swap.kept != swap.staged && identity(&swap.staged)?.is_some() {
        rustix::fs::renameat_with(CWD, &swap.staged, CWD, &swap.kept, RenameFlags::NOREPLACE)?;
    }
    sync_dir(parent)
}

fn exchange_by_two_renames(swap: &Swap) -> io::Result<()> {
    fs::rename(&swap.target, &swap.kept)?;
    fs::rename(&swap.staged, &swap.target).inspect_err(|_| {
        // The old data goes back to its name; if even that fails, the first error still tells more.
        let _second = fs::rename(&swap.kept, &swap.target);
    })
}

/// Puts the kept-aside data back; the restored data is kept aside as of `at`. Returns the swap that would redo it.
/// Idempotent for one `at`.
///
/// # Errors
/// `NotFound` if the kept-aside data is gone; other I/O errors. What is live stays live then.
pub fn undo(swap: &Swap, at: Timestamp) -> io::Result<Swap> {
    let kept = kept_path(&swap.target, at);
    if !swap.replaced {
        // Nothing was there before: the restored data steps aside.
        if identity(&swap.target)?.is_some() {
            rustix::fs::renameat_with(CWD, &swap.target, CWD, &kept, RenameFlags::NOREPLACE)?;
        }
        return Ok(Swap { staged: kept.clone(), kept, ..swap.clone() });
    }
    let old = match (identity(&swap.kept)?, identity(&kept)?) {
        // An earlier call exchanged the two and then died: what was restored awaits its last name.
        (Some(found), _) if found == swap.identity => {
            identity(&swap.target)?.ok_or(io::ErrorKind::NotFound)?
        }
        (Some(old), _) => old,
        // Done already by an earlier call.
        (None, Some(_)) => identity(&swap.target)?.ok_or(io::ErrorKind::NotFound)?,
        (None, None) => {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("`{}` is gone", swap.kept.display()),
            ));
        }
    };
    let replaced = identity(&swap.target)?.is_some();
    let back = Swap { target: swap.target.clone(), staged: swap.kept.clone(), kept, identity: old, replaced };
    switch(&back)?;
    Ok(back)
}

/// Removes a file or a tree; what is gone already is success.
///
/// # Errors
/// I/O errors.
pub fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(m) if m.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes the names in a directory durable.
///
/// # Errors
/// I/O errors.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

/// Makes everything written to the file system of `path` durable, e.g. a freshly extracted tree, in one call.
///
/// # Errors
/// I/O errors, also those of earlier writes to that file system.
pub fn sync_file_system(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(fs::File::open(path)?)?)
}

/// Apparent size and newest change below `path` (itself included). Entries that vanish meanwhile are left out.
///
/// # Errors
/// I/O errors other than `NotFound`.
pub fn measure(path: &Path) -> io::Result<(u64, Option<DateTime<Utc>>)> {
    let mut bytes = 0;
    let mut newest = None;
    let mut todo = vec![path.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = match fs::symlink_metadata(&path) {
            Ok(m) => m,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        newest = newest.max(DateTime::from_timestamp(meta.mtime(), 0));
        if meta.is_dir() {
            for entry in fs::read_dir(&path)? {
                todo.push(entry?.path());
            }
        } else if meta.is_file() {
            bytes += meta.len();
        }
    }
    Ok((bytes, newest))
}

/// Free bytes for an unprivileged writer on the file system of `path`.
///
/// # Errors
/// I/O errors.
pub fn free_space(path: &Path) -> io::Result<u64> {
    let s = rustix::fs::statvfs(path)?;
    Ok(s.f_bavail.saturating_mul(s.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: &str) -> Timestamp {
        s.parse().unwrap()
    }

    fn run() -> RunId {
        "20260101_000000-abcdef01".parse().unwrap()
    }

    fn setup() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("data");
        let staged = staging_path(&target, &run());
        fs::create_dir(&staged).unwrap();
        fs::write(staged.join("f"), "new").unwrap();
        (dir, target, staged)
    }

    fn read(target: &Path) -> String {
        fs::read_to_string(target.join("f")).unwrap()
    }

    #[test]
    fn a_switch_keeps_the_old_data_and_can_be_repeated_and_undone() {
        let (dir, target, staged) = setup();
        fs::create_dir(&target).unwrap();
        fs::write(target.join("f"), "old").unwrap();
        let swap = prepare(&staged, &target, at("20260101_000000")).unwrap();
        for _ in 0..2 {
            switch(&swap).unwrap();
            assert_eq!((read(&target), read(&swap.kept)), ("new".into(), "old".into()));
            assert!(!staged.exists());
        }
        for _ in 0..2 {
            let back = undo(&swap, at("20260101_000001")).unwrap();
            assert_eq!((read(&target), read(&back.kept)), ("old".into(), "new".into()));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_crash_between_exchange_and_rename_is_completed() {
        let (_dir, target, staged) = setup();
        fs::create_dir(&target).unwrap();
        fs::write(target.join("f"), "old").unwrap();
        let swap = prepare(&staged, &target, at("20260101_000000")).unwrap();
        rustix::fs::renameat_with(CWD, &staged, CWD, &target, RenameFlags::EXCHANGE).unwrap();
        switch(&swap).unwrap();
        assert_eq!((read(&target), read(&swap.kept)), ("new".into(), "old".into()));
    }

    #[test]
    fn a_crash_between_two_renames_is_completed() {
        let (_dir, target, staged) = setup();
        fs::create_dir(&target).unwrap();
        fs::write(target.join("f"), "old").unwrap();
        let swap = prepare(&staged, &target, at("20260101_000000")).unwrap();
        fs::rename(&target, &swap.kept).unwrap();
        switch(&swap).unwrap();
        assert_eq!((read(&target), read(&swap.kept)), ("new".into(), "old".into()));
    }

    #[test]
    fn a_crash_amid_an_undo_is_completed() {
        let (_dir, target, staged) = setup();
        fs::create_dir(&target).unwrap();
        fs::write(target.join("f"), "old").unwrap();
        let swap = prepare(&staged, &target, at("20260101_000000")).unwrap();
        switch(&swap).unwrap();
        rustix::fs::renameat_with(CWD, &swap.kept, CWD, &target, RenameFlags::EXCHANGE).unwrap();
        for _ in 0..2 {
            let back = undo(&swap, at("20260101_000001")).unwrap();
            assert_eq!((read(&target), read(&back.kept)), ("old".into(), "new".into()));
        }
    }

    #[test]
    fn where_nothing_was_undo_steps_aside() {
        let (_dir, target, staged) = setup();
        let swap = prepare(&staged, &target, at("20260101_000000")).unwrap();
        switch(&swap).unwrap();
        assert_eq!(read(&target), "new");
        let back = undo(&swap, at("20260101_000001")).unwrap();
        assert!(!target.exists());
        assert_eq!(read(&back.kept), "new");
    }

    #[test]
    fn undo_without_kept_data_changes_nothing() {
        let (_dir, target, staged) = setup();
        fs::create_dir(&target).unwrap();
        let swap = prepare(&staged, &target, at("20260101_000000")).unwrap();
        switch(&swap).unwrap();
        fs::remove_dir_all(&swap.kept).unwrap();
        assert_eq!(undo(&swap, at("20260101_000001")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(read(&target), "new");
    }

    #[test]
    fn names_set_aside_are_recognised() {
        for name in ["data.backup.20260101_000000", ".data.restore-20260101_000000-abcdef01"] {
            assert!(is_set_aside(OsStr::new(name)), "{name}");
        }
        for name in ["data.backup.old", "data.backup", "a.restore-1", "notes.backup.2026"] {
            assert!(!is_set_aside(OsStr::new(name)), "{name}");
        }
    }
}
