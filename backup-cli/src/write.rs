//! Small files that people or later runs read: whole, or not there. A full disk leaves no half of one behind.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Writes a new file.
///
/// # Errors
/// `AlreadyExists`: nothing is replaced; other I/O errors, after which there is no file.
pub(crate) fn create(path: &Path, text: &str) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    fill(file, text).inspect_err(|_| {
        // The first error says more than a failure to tidy up.
        let _second = fs::remove_file(path);
    })
}

/// Writes a file, or replaces it.
///
/// # Errors
/// I/O errors, after which the file is what it was.
pub(crate) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = Path::new(&beside);
    let written =
        File::create(beside).and_then(|file| fill(file, text)).and_then(|()| fs::rename(beside, path));
    written.inspect_err(|_| {
        let _second = fs::remove_file(beside);
    })
}

/// Replaces a file that may hold a secret: the new one has the rights and the owner of the old one from its first byte on.
/// Follows a link.
///
/// # Errors
/// I/O errors, after which the file is what it was.
pub(crate) fn rewrite(path: &Path, text: &str) -> io::Result<()> {
    let path = path.canonicalize()?;
    let old = fs::metadata(&path)?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    let beside = tempfile::Builder::new().prefix(".backup-").tempfile_in(dir)?;
    let (uid, gid) = (old.uid(), old.gid());
    let new = beside.as_file().metadata()?;
    if (uid, gid) != (new.uid(), new.gid()) {
        std::os::unix::fs::fchown(beside.as_file(), Some(uid), Some(gid))?;
    }
    beside.as_file().set_permissions(old.permissions())?;
    fill(beside.as_file().try_clone()?, text)?;
    beside.persist(&path).map_err(|e| e.error)?;
    File::open(dir)?.sync_all()
}

/// Writes a new file for its owner alone.
///
/// # Errors
/// Those of [`create`].
pub(crate) fn create_private(path: &Path, text: &str) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    fill(file, text).inspect_err(|_| {
        let _second = fs::remove_file(path);
    })
}

fn fill(mut file: File, text: &str) -> io::Result<()> {
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
