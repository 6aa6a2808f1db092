//! Extended attributes, POSIX ACLs and file capabilities among them (`system.posix_acl_*`, `security.capability`).

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr, lgetxattr, llistxattr, lsetxattr};
use rustix::io::{Errno, Result};

/// The most that Linux returns for a list or a value.
const MOST: usize = 64 << 10;

/// What carries the attributes.
#[derive(Clone, Copy)]
pub(crate) enum Object<'a> {
    /// An open file or directory.
    Open(BorrowedFd<'a>),
    /// A name in an open directory, not followed.
    Named(BorrowedFd<'a>, &'a OsStr),
}

/// There is no `lgetxattrat`; a path through `/proc` reaches a name in an open directory, however long its path is.
fn proc_path(dir: BorrowedFd<'_>, name: &OsStr) -> PathBuf {
    Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name)
}

fn list(object: Object<'_>, buffer: &mut [u8]) -> Result<usize> {
    match object {
        Object::Open(fd) => flistxattr(fd, buffer),
        Object::Named(dir, name) => llistxattr(proc_path(dir, name), buffer),
    }
}

/// All attributes, sorted by name: one system call where there are none.
pub(crate) fn read(object: Object<'_>) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut small = [0; 1024];
    let mut large = Vec::new();
    let names = match list(object, &mut small) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(length) => small.get(..length),
        Err(Errno::RANGE) => {
            large.resize(MOST, 0);
            let length = list(object, &mut large)?;
            large.get(..length)
        }
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    let mut buffer = vec![0; MOST];
    for name in names.unwrap_or_default().split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let length = match object {
            Object::Open(fd) => fgetxattr(fd, OsStr::from_bytes(name), buffer.as_mut_slice()),
            Object::Named(dir, file) => {
                lgetxattr(proc_path(dir, file), OsStr::from_bytes(name), buffer.as_mut_slice())
            }
        };
        match length {
            Ok(length) => found.push((name.to_vec(), buffer.get(..length).unwrap_or_default().to_vec())),
            // Removed since it was listed, or listed and not readable for us (`trusted.*` on some file systems).
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e),
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Sets one attribute. `Ok(false)` if the file system or our rights do not allow it.
pub(crate) fn write(object: Object<'_>, name: &[u8], value: &[u8]) -> Result<bool> {
    let name = OsStr::from_bytes(name);
    let done = match object {
        Object::Open(fd) => fsetxattr(fd, name, value, XattrFlags::empty()),
        Object::Named(dir, file) => lsetxattr(proc_path(dir, file), name, value, XattrFlags::empty()),
    };
    match done {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => Ok(false),
        Err(e) => Err(e),
    }
}
