//! Files that a restore need not touch.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::xattrs::{self, Object};

/// The most that is compared of a file, in bytes: it is read into memory.
const SMALL: u64 = 16 << 20;

/// Whether both are files, and the same in content, mode, owner and extended attributes. Larger ones are never the same.
pub(super) fn same(one: &Path, other: &Path) -> io::Result<bool> {
    let (a, b) = (fs::symlink_metadata(one)?, fs::symlink_metadata(other)?);
    let of = |m: &fs::Metadata| (m.len(), m.mode(), m.uid(), m.gid());
    if !a.is_file() || of(&a) != of(&b) || a.len() > SMALL || fs::read(one)? != fs::read(other)? {
        return Ok(false);
    }
    let attributes = |path: &Path| Ok::<_, io::Error>(xattrs::read(Object::Open(File::open(path)?.as_fd()))?);
    Ok(attributes(one)? == attributes(other)?)
}
