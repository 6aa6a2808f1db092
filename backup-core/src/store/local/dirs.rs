//! Reading and removing directories.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{AtFlags, FileType, RawDir};

use super::tree::{self, Call, TEMP_PREFIX};
use crate::error::StoreError;
use crate::id::StoreKey;

/// Directory entries as the kernel packs them.
pub(super) type Buffer = Box<[MaybeUninit<u8>]>;

pub(super) fn buffer() -> Buffer {
    Box::new_uninit_slice(32 * 1024)
}

/// Calls `each` for every entry of `dir` but `.` and `..`, in any order, until it breaks, with the type that the
/// directory knows: no look-up of the entry itself where the file system can avoid it.
pub(super) fn entries(
    dir: &OwnedFd,
    buffer: &mut Buffer,
    mut each: impl FnMut(&CStr, FileType) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut raw = RawDir::new(dir, buffer);
    while let Some(entry) = raw.next() {
        let entry = match entry {
            // The directory was removed while it was read.
            Err(rustix::io::Errno::NOENT) => break,
            other => other?,
        };
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(rustix::io::Errno::NOENT) => continue,
                Err(e) => return Err(e.into()),
            },
            known => known,
        };
        if each(name, kind).is_break() {
            break;
        }
    }
    Ok(())
}

/// The name of an entry that can be part of a key. What cannot was not written by a store.
pub(super) fn key_part(name: &CStr) -> Option<&str> {
    name.to_str().ok().filter(|n| !n.starts_with(TEMP_PREFIX))
}

/// Opens the directory of a prefix; `None` if there is nothing below it.
pub(super) fn open_prefix(
    root: &Arc<Path>,
    prefix: Option<&StoreKey>,
) -> Result<Option<OwnedFd>, StoreError> {
    let Some(prefix) = prefix else { return tree::open_root("list", root).map(Some) };
    if tree::is_reserved(prefix) {
        return Ok(None);
    }
    let call = Call { root: Arc::clone(root), verb: "list", key: prefix.clone() };
    Ok(call.open_chain_if_there(call.segments())?.map(tree::Chain::into_last))
}

/// Whether an entry vanished, or became something else, between two looks.
pub(super) fn gone(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

pub(super) fn dir_error(root: &Path, path: &str, e: io::Error) -> StoreError {
    match StoreKey::new(path.trim_end_matches('/')) {
        Ok(key) => StoreError::io("list", &key, e),
        Err(_top) => tree::root_error("list", root, e),
    }
}

/// Names of the directories right below `prefix` with an object somewhere in them, sorted.
pub(super) fn list(root: &Arc<Path>, prefix: Option<&StoreKey>) -> Result<Vec<String>, StoreError> {
    let Some(dir) = open_prefix(root, prefix)? else { return Ok(Vec::new()) };
    let path = prefix.map(|p| format!("{p}/")).unwrap_or_default();
    let mut buffer = buffer();
    let mut found = Vec::new();
    entries(&dir, &mut buffer, |name, kind| {
        if let (FileType::Directory, Some(part)) = (kind, key_part(name)) {
            found.push(part.to_owned());
        }
        ControlFlow::Continue(())
    })
    .map_err(|e| dir_error(root, &path, e))?;
    let mut dirs = Vec::with_capacity(found.len());
    for name in found {
        // As in listings, a name that no key can have is not ours.
        if StoreKey::new(format!("{path}{name}")).is_err() {
            continue;
        }
        match tree::open_dir(&dir, name.as_str()).and_then(|d| has_object(&d, &mut buffer)) {
            Ok(true) => dirs.push(name),
            Ok(false) => {}
            Err(e) if gone(&e) => {}
            Err(e) => return Err(dir_error(root, &format!("{path}{name}"), e)),
        }
    }
    dirs.sort_unstable();
    Ok(dirs)
}

fn has_object(dir: &OwnedFd, buffer: &mut Buffer) -> io::Result<bool> {
    let mut dirs: Vec<CString> = Vec::new();
    let mut found = false;
    entries(dir, buffer, |name, kind| match (kind, key_part(name)) {
        (FileType::RegularFile, Some(_)) => {
            found = true;
            ControlFlow::Break(())
        }
        (FileType::Directory, Some(_)) => {
            dirs.push(name.to_owned());
            ControlFlow::Continue(())
        }
        _ => ControlFlow::Continue(()),
    })?;
    if found {
        return Ok(true);
    }
    for name in dirs {
        match tree::open_dir(dir, name.as_c_str()).and_then(|d| has_object(&d, buffer)) {
            Ok(false) => {}
            Ok(true) => return Ok(true),
            Err(e) if gone(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}

/// Removes the partial writes below `dir` that were not touched for so long, then the directories in which nothing is
/// left, and nothing else.
pub(super) fn remove_temps_below(dir: &OwnedFd, untouched: Duration) -> io::Result<()> {
    let mut names: Vec<(CString, FileType)> = Vec::new();
    entries(dir, &mut buffer(), |name, kind| {
        names.push((name.to_owned(), kind));
        ControlFlow::Continue(())
    })?;
    for (name, kind) in names {
        let removed = if kind == FileType::Directory {
            // Asked first: removing something touches it.
            untouched_for(dir, &name, untouched).and_then(|old| {
                tree::open_dir(dir, name.as_c_str()).and_then(|d| remove_temps_below(&d, untouched))?;
                if !old {
                    return Ok(());
                }
                match rustix::fs::unlinkat(dir, &name, AtFlags::REMOVEDIR) {
                    // Refused while anything is in it.
                    Err(rustix::io::Errno::NOTEMPTY | rustix::io::Errno::EXIST) => Ok(()),
                    other => Ok(other?),
                }
            })
        } else if name.to_bytes().starts_with(TEMP_PREFIX.as_bytes()) {
            untouched_for(dir, &name, untouched).and_then(|yes| match yes {
                true => Ok(rustix::fs::unlinkat(dir, &name, AtFlags::empty())?),
                false => Ok(()),
            })
        } else {
            Ok(())
        };
        match removed {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

fn untouched_for(dir: &OwnedFd, name: &CStr, untouched: Duration) -> io::Result<bool> {
    if untouched.is_zero() {
        return Ok(true);
    }
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let touched = UNIX_EPOCH + Duration::from_secs(stat.st_mtime.try_into().unwrap_or(0));
    // One from the future is as young as can be.
    Ok(touched.elapsed().is_ok_and(|age| age >= untouched))
}

/// Removes everything below `dir`: objects, partial writes, and whatever else is there. Links are removed, not
/// followed.
pub(super) fn remove_below(dir: &OwnedFd) -> io::Result<()> {
    let mut names: Vec<(CString, FileType)> = Vec::new();
    // Read to the end first: removing while reading may skip entries.
    entries(dir, &mut buffer(), |name, kind| {
        names.push((name.to_owned(), kind));
        ControlFlow::Continue(())
    })?;
    for (name, kind) in names {
        let removed = if kind == FileType::Directory {
            tree::open_dir(dir, name.as_c_str()).and_then(|below| {
                remove_below(&below)?;
                match rustix::fs::unlinkat(dir, &name, AtFlags::REMOVEDIR) {
                    // Somebody writes there at this very moment: theirs is a new object.
                    Err(rustix::io::Errno::NOTEMPTY | rustix::io::Errno::EXIST) => Ok(()),
                    other => Ok(other?),
                }
            })
        } else {
            Ok(rustix::fs::unlinkat(dir, &name, AtFlags::empty())?)
        };
        match removed {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}
