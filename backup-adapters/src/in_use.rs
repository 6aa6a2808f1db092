//! Who writes to a file or below a directory right now.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A process that has something open for writing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) pid: u32,
    /// The program's name, as the kernel knows it.
    pub(crate) command: String,
    /// What it has open.
    pub(crate) path: PathBuf,
}

/// Other processes with an open, writable file at or below `path`; one entry for each process.
///
/// Reads `/proc`: a process of another user can be seen by root only.
///
/// # Errors
/// `/proc` cannot be listed.
pub(crate) fn writers(path: &Path) -> io::Result<Vec<Holder>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        if pid == std::process::id() {
            continue;
        }
        if let Some(open) = writes_below(&entry.path(), path) {
            let command = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            found.push(Holder { pid, command: command.trim_end().to_owned(), path: open });
        }
    }
    Ok(found)
}

/// Processes end and files close while we look: what cannot be read is not there.
fn writes_below(process: &Path, path: &Path) -> Option<PathBuf> {
    for fd in fs::read_dir(process.join("fd")).ok()?.flatten() {
        let Ok(open) = fs::read_link(fd.path()) else { continue };
        if open.starts_with(path) && is_writable(&process.join("fdinfo").join(fd.file_name())) {
            return Some(open);
        }
    }
    None
}

/// The access mode is in the last two bits of `flags`, an octal number.
fn is_writable(info: &Path) -> bool {
    let text = fs::read_to_string(info).unwrap_or_default();
    let flags = text.lines().find_map(|l| l.strip_prefix("flags:"));
    flags.and_then(|f| u32::from_str_radix(f.trim(), 8).ok()).is_some_and(|f| f & 3 != 0)
}
