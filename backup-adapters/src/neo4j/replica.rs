//! A second copy of a directory on this host: by sharing its blocks, in no time, or by reading and writing it.

use std::fs::{self, File, FileTimes};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use backup_core::{AdapterError, AdapterErrorKind, keep_aside};
use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use rustix::io::Errno;

/// What the names of our clones begin with; the id of the run follows.
pub(super) const PREFIX: &str = ".backup-clone-";

/// What a server that starts makes anew, and one that finds them takes for another server at work.
const LOCKS: [&str; 4] = ["store_lock", "database_lock", "quarantine_marker", "write.lock"];

const PIECE: usize = 1 << 20;

/// How files are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// They share their blocks (`ioctl_ficlone(2)`): XFS with reflinks, btrfs.
    Reflink,
    /// They are read and written; holes stay holes.
    Copy,
}

/// What a copy came to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Copied {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

fn failed(what: &str, path: &Path) -> impl Fn(io::Error) -> AdapterError + use<> {
    let message = format!("cannot {what} `{}`", path.display());
    move |e| AdapterError::io(message.clone(), e)
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
    let tried = ioctl_ficlone(&target, &source);
    drop(target);
    fs::remove_file(&probe).map_err(failed("remove", &probe))?;
    tried.map_err(|e| match e {
        Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS => {
            AdapterError::unsupported(format!(
                "the file system of `{}` cannot clone files (XFS with reflinks and btrfs can)",
                from.display()
            ))
        }
        e => failed("clone", &some)(e.into()),
    })
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

fn create(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).mode(0o600).open(path)
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
    let meta = fs::metadata(from).map_err(failed("look at", from))?;
    fs::create_dir(to).map_err(failed("create", to))?;
    for entry in fs::read_dir(from).map_err(failed("list", from))? {
        let entry = entry.map_err(failed("list", from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if is_left_out(&entry.file_name()) || except.contains(&source) {
            continue;
        }
        alive()?;
        let kind = entry.file_type().map_err(failed("look at", &source))?;
        if kind.is_dir() {
            let below = copy(&source, &target, except, how, alive)?;
            copied.files += below.files;
            copied.bytes += below.bytes;
        } else if kind.is_file() {
            copied.files += 1;
            copied.bytes += file(&source, &target, how, alive)?;
        } else {
            let what = format!("`{}` is neither a file nor a directory", source.display());
            return Err(AdapterError::unsupported(what));
        }
    }
    let dir = File::open(to).map_err(failed("open", to))?;
    dress(&dir, &meta).map_err(failed("give its owner and times to", to))?;
    Ok(copied)
}

fn file(
    source: &Path,
    target: &Path,
    how: How,
    alive: &dyn Fn() -> Result<(), AdapterError>,
) -> Result<u64, AdapterError> {
    let from = File::open(source).map_err(failed("open", source))?;
    let meta = from.metadata().map_err(failed("look at", source))?;
    let to = create(target).map_err(failed("create", target))?;
    match how {
        How::Reflink => ioctl_ficlone(&to, &from).map_err(|e| failed("clone", source)(e.into()))?,
        How::Copy => {
            to.set_len(meta.len()).map_err(failed("write", target))?;
            segments(&from, &to, meta.len(), alive)?.map_err(failed("copy", source))?;
        }
    }
    dress(&to, &meta).map_err(failed("give its owner and times to", target))?;
    Ok(meta.len())
}

/// Copies what is not a hole.
fn segments(
    from: &File,
    to: &File,
    len: u64,
    alive: &dyn Fn() -> Result<(), AdapterError>,
) -> Result<io::Result<()>, AdapterError> {
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while at < len {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(Ok(())),
            Err(e) => return Ok(Err(e.into())),
        };
        let end = match seek(from, SeekFrom::Hole(start)) {
            Ok(end) => end.min(len),
            Err(e) => return Ok(Err(e.into())),
        };
        at = start;
        while at < end {
            alive()?;
            let room = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            let piece = buffer.get_mut(..room).unwrap_or_default();
            let done = from.read_exact_at(piece, at).and_then(|()| to.write_all_at(piece, at));
            if let Err(e) = done {
                return Ok(Err(e));
            }
            at += room as u64;
        }
    }
    Ok(Ok(()))
}

fn dress(file: &File, meta: &fs::Metadata) -> io::Result<()> {
    fchown(file, Some(meta.uid()), Some(meta.gid()))?;
    file.set_permissions(fs::Permissions::from_mode(meta.mode() & 0o7777))?;
    let modified = SystemTime::UNIX_EPOCH
        + Duration::new(
            u64::try_from(meta.mtime()).unwrap_or(0),
            u32::try_from(meta.mtime_nsec()).unwrap_or(0),
        );
    file.set_times(FileTimes::new().set_modified(modified))
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
    use std::os::unix::fs::symlink;

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
}
