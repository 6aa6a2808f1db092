//! One file of a copy: its bytes, its owner, its times.

use std::fs::{self, File, FileTimes};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;
use std::time::{Duration, SystemTime};

use backup_core::{AdapterError, AdapterErrorKind};
use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use rustix::io::Errno;

use super::How;
use crate::on_disk::failed;

const PIECE: usize = 1 << 20;

type Alive<'a> = &'a dyn Fn() -> Result<(), AdapterError>;

pub(super) fn create(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Lets `to` share the blocks of `from`; whether that can be.
pub(super) fn shares_blocks(to: &File, from: &File) -> io::Result<bool> {
    match ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Its length; `None` if it is gone, and may be.
pub(super) fn file(
    source: &Path,
    target: &Path,
    how: How,
    alive: Alive<'_>,
) -> Result<Option<u64>, AdapterError> {
    let Some(from) = how.there(File::open(source)).map_err(failed("open", source))? else { return Ok(None) };
    let meta = from.metadata().map_err(failed("look at", source))?;
    let to = create(target).map_err(failed("create", target))?;
    let shared = match how {
        How::Reflink => {
            ioctl_ficlone(&to, &from).map(|()| true).map_err(|e| failed("clone", source)(e.into()))?
        }
        How::Live => shares_blocks(&to, &from).map_err(failed("clone", source))?,
        How::Copy => false,
    };
    if !shared {
        to.set_len(meta.len()).map_err(failed("write", target))?;
        match segments(&from, &to, meta.len(), alive)? {
            Err(e) if how == How::Live && e.kind() == io::ErrorKind::UnexpectedEof => {
                let what = format!("`{}` got shorter while it was copied", source.display());
                return Err(AdapterError::new(AdapterErrorKind::Changed, what));
            }
            done => done.map_err(failed("copy", source))?,
        }
    }
    dress(&to, &meta).map_err(failed("give its owner and times to", target))?;
    Ok(Some(meta.len()))
}

/// Copies a log that a server appends to: all that it held when this began, perhaps more, and nothing behind a gap.
pub(in crate::neo4j) fn log(source: &Path, target: &Path, alive: Alive<'_>) -> Result<(), AdapterError> {
    let Some(len) = file(source, target, How::Live, alive)? else {
        let what = format!("`{}` was removed while it was copied", source.display());
        return Err(AdapterError::new(AdapterErrorKind::Changed, what));
    };
    let from = File::open(source).map_err(failed("open", source))?;
    let to = File::options().read(true).write(true).open(target).map_err(failed("open", target))?;
    let meta = to.metadata().map_err(failed("look at", target))?;
    // What is appended while a file is read may be seen in any order, the later without the earlier. What is the same now
    // was all there: whatever was missing in between would be seen by now.
    let same = same(&from, &to, len, alive)?.map_err(failed("compare", source))?;
    if same < len {
        to.set_len(same).map_err(failed("cut", target))?;
        dress(&to, &meta).map_err(failed("give its owner and times to", target))?;
    }
    Ok(())
}

/// How many bytes both begin with, `len` at most.
fn same(one: &File, other: &File, len: u64, alive: Alive<'_>) -> Result<io::Result<u64>, AdapterError> {
    let mut buffers = (vec![0; PIECE], vec![0; PIECE]);
    let mut at = 0;
    while at < len {
        alive()?;
        let room = usize::try_from(len - at).unwrap_or(PIECE).min(PIECE);
        let (a, b) = (buffers.0.get_mut(..room), buffers.1.get_mut(..room));
        let (a, b) = (a.unwrap_or_default(), b.unwrap_or_default());
        if let Err(e) = one.read_exact_at(a, at).and_then(|()| other.read_exact_at(b, at)) {
            return Ok(Err(e));
        }
        if let Some(differs) = a.iter().zip(&*b).position(|(a, b)| a != b) {
            return Ok(Ok(at + differs as u64));
        }
        at += room as u64;
    }
    Ok(Ok(len))
}

/// Copies what is not a hole.
fn segments(from: &File, to: &File, len: u64, alive: Alive<'_>) -> Result<io::Result<()>, AdapterError> {
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

pub(super) fn dress(file: &File, meta: &fs::Metadata) -> io::Result<()> {
    fchown(file, Some(meta.uid()), Some(meta.gid()))?;
    file.set_permissions(fs::Permissions::from_mode(meta.mode() & 0o7777))?;
    let modified = SystemTime::UNIX_EPOCH
        + Duration::new(
            u64::try_from(meta.mtime()).unwrap_or(0),
            u32::try_from(meta.mtime_nsec()).unwrap_or(0),
        );
    file.set_times(FileTimes::new().set_modified(modified))
}

/// Makes a file of `bytes` that is like the one of `meta`.
pub(in crate::neo4j) fn write(path: &Path, bytes: &[u8], meta: &fs::Metadata) -> Result<(), AdapterError> {
    let file = create(path).map_err(failed("create", path))?;
    file.write_all_at(bytes, 0).map_err(failed("write", path))?;
    dress(&file, meta).map_err(failed("give its owner and times to", path))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A server that appends while its log is read: what is behind the reader is not read any more, what is before it is.
    #[test]
    fn a_log_is_copied_without_a_gap() {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("log"), dir.path().join("copy"));
        let mut bytes = vec![0; 4 * PIECE];
        bytes[..PIECE / 2].fill(1);
        fs::write(&source, &bytes).unwrap();
        let (asked, writer) = (Cell::new(0), File::options().write(true).open(&source).unwrap());
        let appends = || {
            asked.set(asked.get() + 1);
            if asked.get() == 2 {
                writer.write_all_at(&vec![2; PIECE], PIECE as u64 / 2).unwrap();
            }
            Ok(())
        };
        log(&source, &target, &appends).unwrap();
        let copy = fs::read(&target).unwrap();
        assert!(asked.get() > 2 && copy == [1].repeat(PIECE / 2), "{} bytes", copy.len());
        // Nothing moves: all of it.
        let again = dir.path().join("again");
        log(&source, &again, &|| Ok(())).unwrap();
        assert_eq!(fs::read(&again).unwrap(), fs::read(&source).unwrap());
        let gone = log(&dir.path().join("none"), &dir.path().join("x"), &|| Ok(())).unwrap_err();
        assert_eq!(gone.kind(), AdapterErrorKind::Changed);
    }

    #[test]
    fn a_file_that_gets_shorter_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("f");
        fs::write(&source, vec![1; 3 * PIECE]).unwrap();
        let writer = File::options().write(true).open(&source).unwrap();
        let shortens = || {
            writer.set_len(PIECE as u64).unwrap();
            Ok(())
        };
        let e = file(&source, &dir.path().join("copy"), How::Live, &shortens).unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::Changed, "{e}");
    }
}
