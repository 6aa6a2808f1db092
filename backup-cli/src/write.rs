//! Small files that people or later runs read: whole, or not there. A full disk leaves no half of one behind.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
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

fn fill(mut file: File, text: &str) -> io::Result<()> {
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
