//! A second copy of a directory on this host: by sharing its blocks, in no time, or by reading and writing it.

mod bytes;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use backup_core::{AdapterError, AdapterErrorKind, keep_aside};

use self::bytes::{create, dress, file, shares_blocks};
pub(super) use self::bytes::{log, write};
use crate::on_disk::failed;

/// What the names of our clones begin with; the id of the run follows.
pub(super) const PREFIX: &str = ".backup-clone-";

/// What a server that starts makes anew, and one that finds them takes for another server at work.
const LOCKS: [&str; 4] = ["store_lock", "database_lock", "quarantine_marker", "write.lock"];

/// How files are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// They share their blocks (`ioctl_ficlone(2)`): XFS with reflinks, btrfs.
    Reflink,
    /// They are read and written; holes stay holes.
    Copy,
    /// A server works on them: whichever of the two goes, and what vanishes meanwhile is left out.
    Live,
}

impl How {
    /// What was tried; nothing, if it is no longer there, and may be so.
    fn there<T>(self, tried: io::Result<T>) -> io::Result<Option<T>> {
        match tried {
            Err(e) if self == Self::Live && e.kind() == io::ErrorKind::NotFound => Ok(None),
            tried => tried.map(Some),
        }
    }
}

/// What a copy came to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Copied {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// Where the clone of a run is, in the mount that holds what is cloned.
pub(super) fn place(mount: &Path, run: &backup_core::RunId) -> PathBuf {
    mount.join(format!("{PREFIX}{run}"))
}

/// What is never copied: locks, what restores keep aside, clones.
pub(super) fn is_left_out(name: &std::ffi::OsStr) -> bool {
    let text = name.to_str().unwrap_or_default();
    LOCKS.contains(&text) || text.starts_with(PREFIX) || keep_aside::is_set_aside(name)
}

/// Whether files of `from` can be cloned into `into`, an existing directory: tries it with an empty file of each.
///
/// # Errors
/// `Unsupported`, saying why; other I/O errors.
pub(super) fn can_reflink(from: &Path, into: &Path) -> Result<(), AdapterError> {
    let some = first_file(from).map_err(failed("read", from))?;
    let Some(some) = some else { return Ok(()) };
    let source = File::open(&some).map_err(failed("open", &some))?;
    let probe = into.join("probe");
    let target = create(&probe).map_err(failed("create", &probe))?;
    let tried = shares_blocks(&target, &source);
    drop(target);
    fs::remove_file(&probe).map_err(failed("remove", &probe))?;
    match tried.map_err(failed("clone", &some))? {
        true => Ok(()),
        false => Err(AdapterError::unsupported(format!(
            "the file system of `{}` cannot clone files (XFS with reflinks and btrfs can)",
            from.display()
        ))),
    }
}

fn first_file(dir: &Path) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if is_left_out(&entry.file_name()) {
            continue;
        }
        let kind = entry.file_type()?;
        // An empty file has no blocks: sharing none works anywhere.
        if kind.is_file() && entry.metadata()?.len() > 0 {
            return Ok(Some(entry.path()));
        }
        if kind.is_dir()
            && let Some(found) = first_file(&entry.path())?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The names of the folders in `dir`, sorted, without what a restore keeps aside.
///
/// # Errors
/// I/O errors.
pub(super) fn folders(dir: &Path) -> Result<Vec<String>, AdapterError> {
    let list = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() && !is_left_out(&entry.file_name()) {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        Ok(names)
    };
    list().map_err(failed("list", dir))
}

/// Bytes that the files below `dir` occupy, as far as they would be copied.
pub(super) fn occupied(dir: &Path, except: &[PathBuf]) -> io::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let (entry, path) = entry.map(|e| (e.path(), e))?;
        if is_left_out(&path.file_name()) || except.contains(&entry) {
            continue;
        }
        let meta = match fs::symlink_metadata(&entry) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        sum += if meta.is_dir() { occupied(&entry, except)? } else { meta.blocks() * 512 };
    }
    Ok(sum)
}

/// Copies the tree `from` to `to`, which must not exist, without `except`. `alive` is asked before each file.
///
/// # Errors
/// `Unsupported` for anything but files and directories; what `alive` says; I/O errors.
pub(super) fn copy(
    from: &Path,
    to: &Path,
    except: &[PathBuf],
    how: How,
    alive: &dyn Fn() -> Result<(), AdapterError>,
) -> Result<Copied, AdapterError> {
    let mut copied = Copied::default();
    let there = how.there(fs::metadata(from)).map_err(failed("look at", from))?;
    let Some(meta) = there else { return Ok(copied) };
    fs::create_dir(to).map_err(failed("create", to))?;
    let listed = how.there(fs::read_dir(from)).map_err(failed("list", from))?;
    for entry in listed.into_iter().flatten() {
        let entry = entry.map_err(failed("list", from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if is_left_out(&entry.file_name()) || except.contains(&source) {
            continue;
        }
        alive()?;
        let there = how.there(entry.file_type()).map_err(failed("look at", &source))?;
        let Some(kind) = there else { continue };
        if kind.is_dir() {
            let below = copy(&source, &target, except, how, alive)?;
            copied.files += below.files;
            copied.bytes += below.bytes;
        } else if kind.is_file() {
            let Some(bytes) = file(&source, &target, how, alive)? else { continue };
            copied.files += 1;
            copied.bytes += bytes;
        } else {
            let what = format!("`{}` is neither a file nor a directory", source.display());
            return Err(AdapterError::unsupported(what));
        }
    }
    let dir = File::open(to).map_err(failed("open", to))?;
    dress(&dir, &meta).map_err(failed("give its owner and times to", to))?;
    Ok(copied)
}

/// Makes an empty directory like `from`.
pub(super) fn empty_like(from: &Path, to: &Path) -> Result<(), AdapterError> {
    let meta = fs::metadata(from).map_err(failed("look at", from))?;
    fs::create_dir(to).map_err(failed("create", to))?;
    let dir = File::open(to).map_err(failed("open", to))?;
    dress(&dir, &meta).map_err(failed("give its owner and times to", to))
}

/// Removes the locks that a server left below `dir`.
pub(super) fn unlock(dir: &Path) -> Result<(), AdapterError> {
    for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
        let entry = entry.map_err(failed("list", dir))?;
        let path = entry.path();
        if LOCKS.contains(&entry.file_name().to_str().unwrap_or_default()) {
            fs::remove_file(&path).map_err(failed("remove", &path))?;
        } else if entry.file_type().map_err(failed("look at", &path))?.is_dir() {
            unlock(&path)?;
        }
    }
    Ok(())
}

/// Removes a clone; what is gone already is success.
pub(super) fn remove(path: &Path) -> Result<(), AdapterError> {
    keep_aside::remove(path).map_err(failed("remove", path))
}

/// Makes a private directory that must not exist.
pub(super) fn make_private(path: &Path) -> Result<(), AdapterError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(path).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => {
            let what = format!("cannot create `{}`", path.display());
            AdapterError::new(AdapterErrorKind::Conflict, what).with_source(e)
        }
        _ => failed("create", path)(e),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, PermissionsExt, symlink};

    use super::*;

    fn fixture() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::write(from.join("a/b/f"), "text").unwrap();
        fs::write(from.join("a/database_lock"), "").unwrap();
        fs::create_dir(from.join("databases.backup.20260101_000000")).unwrap();
        fs::create_dir(from.join("except")).unwrap();
        let sparse = File::create(from.join("sparse")).unwrap();
        sparse.set_len(8 << 20).unwrap();
        sparse.write_all_at(b"middle", 4 << 20).unwrap();
        fs::set_permissions(from.join("a/b/f"), fs::Permissions::from_mode(0o640)).unwrap();
        (dir, from)
    }

    #[test]
    fn a_copy_is_the_same_without_locks() {
        let (dir, from) = fixture();
        let to = dir.path().join("to");
        let copied = copy(&from, &to, &[from.join("except")], How::Copy, &|| Ok(())).unwrap();
        assert_eq!((copied.files, copied.bytes), (2, 4 + (8 << 20)));
        assert_eq!(fs::read(to.join("a/b/f")).unwrap(), b"text");
        assert_eq!(fs::read(to.join("sparse")).unwrap(), fs::read(from.join("sparse")).unwrap());
        assert!(fs::metadata(to.join("sparse")).unwrap().blocks() * 512 < 1 << 20, "the hole was filled");
        let (new, old) = (fs::metadata(to.join("a/b/f")).unwrap(), fs::metadata(from.join("a/b/f")).unwrap());
        assert_eq!((new.mode(), new.mtime(), new.mtime_nsec()), (old.mode(), old.mtime(), old.mtime_nsec()));
        for gone in ["a/database_lock", "except", "databases.backup.20260101_000000"] {
            assert!(!to.join(gone).exists(), "{gone}");
        }
        assert!(occupied(&from, &[from.join("except")]).unwrap() < 1 << 20);
    }

    #[test]
    fn a_copy_ends_when_it_shall_and_refuses_links() {
        let (dir, from) = fixture();
        let ended = copy(&from, &dir.path().join("b"), &[], How::Copy, &|| Err(AdapterError::cancelled()));
        assert_eq!(ended.unwrap_err().kind(), AdapterErrorKind::Cancelled);
        symlink("x", from.join("link")).unwrap();
        let refused = copy(&from, &dir.path().join("c"), &[], How::Copy, &|| Ok(()));
        assert_eq!(refused.unwrap_err().kind(), AdapterErrorKind::Unsupported);
    }
    /// A server removes what it works on: a file that was listed, and one in a folder that is gone by then.
    #[test]
    fn what_vanishes_from_a_server_at_work_is_left_out() {
        let (dir, from) = fixture();
        let removes = || {
            keep_aside::remove(&from.join("a")).unwrap();
            Ok(())
        };
        let to = dir.path().join("to");
        let copied = copy(&from, &to, &[], How::Live, &removes).unwrap();
        assert!(copied.files == 1 && to.join("sparse").exists() && !to.join("a/b/f").exists(), "{copied:?}");
        fs::create_dir_all(from.join("a")).unwrap();
        fs::write(from.join("a/f"), "text").unwrap();
        let e = copy(&from, &dir.path().join("other"), &[], How::Copy, &removes).unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::NotFound, "{e}");
        assert!(copy(&dir.path().join("none"), &dir.path().join("x"), &[], How::Live, &|| Ok(())).is_ok());
    }
}
