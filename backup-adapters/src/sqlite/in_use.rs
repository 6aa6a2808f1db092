//! Who has a file open.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::connect::{SIDECARS, sidecar};

/// The processes that have the database at `path`, or what SQLite keeps beside it, open.
#[derive(Debug, Default)]
pub(super) struct Users {
    /// One line each, e.g. `pid 4711 (python3)`.
    pub(super) found: Vec<String>,
    /// Some processes could not be looked into, for want of rights.
    pub(super) incomplete: bool,
}

/// Looks through `/proc`. Files are compared by device and inode, so that names in containers do not matter.
pub(super) fn users(path: &Path) -> Users {
    let mut wanted = Vec::new();
    for file in SIDECARS.iter().map(|s| sidecar(path, s)).chain([path.to_owned()]) {
        if let Ok(meta) = fs::metadata(file) {
            wanted.push((meta.dev(), meta.ino()));
        }
    }
    let mut users = Users::default();
    if wanted.is_empty() {
        return users;
    }
    let Ok(processes) = fs::read_dir("/proc") else {
        users.incomplete = true;
        return users;
    };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else {
            // Gone meanwhile, or another user's.
            users.incomplete |= process.path().exists();
            continue;
        };
        let uses = descriptors.flatten().any(|fd| {
            // Only names of files begin with `/`: sockets and pipes need no second look.
            fs::read_link(fd.path()).is_ok_and(|name| name.is_absolute())
                && fs::metadata(fd.path()).is_ok_and(|m| wanted.contains(&(m.dev(), m.ino())))
        });
        if uses {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            users.found.push(format!("pid {pid} ({})", command.trim()));
        }
    }
    users
}
