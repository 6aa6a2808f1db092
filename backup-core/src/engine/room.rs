//! Free space: how much a restore needs of it, and how much there is.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Inner;
use crate::adapter::SpaceNeed;
use crate::error::BackupError;
use crate::keep_aside;

/// Free space that a restore needs, and how much there is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// A directory on the file system.
    pub path: PathBuf,
    /// Bytes needed there.
    pub bytes: u64,
    /// Bytes that were free there when it was looked at; others may need some of them.
    #[serde(default)]
    pub free: u64,
}

impl Inner {
    /// Looks how much is free where something is needed, and refuses what there is not enough for, adding up what lies on one
    /// file system.
    pub(super) fn check_space(&self, space: &[SpaceNeed]) -> Result<Vec<Room>, BackupError> {
        let mut rooms = Vec::new();
        let mut needs: BTreeMap<u64, Room> = BTreeMap::new();
        for SpaceNeed { path, bytes } in space {
            let device = std::fs::metadata(path).map(|m| m.dev()).map_err(|source| BackupError::State {
                what: format!("looking at `{}`", path.display()),
                source,
            })?;
            let room = Room { path: path.clone(), bytes: *bytes, free: free(path)? };
            let all = needs.entry(device).or_insert_with(|| Room { bytes: 0, ..room.clone() });
            all.bytes = all.bytes.saturating_add(room.bytes);
            rooms.push(room);
        }
        match needs.into_values().find(|all| all.free < all.bytes) {
            None => Ok(rooms),
            Some(Room { path, bytes, free }) => Err(BackupError::Refused(format!(
                "not enough room below `{}`: the restore needs {bytes} bytes, {free} are free",
                path.display()
            ))),
        }
    }
}

fn free(path: &Path) -> Result<u64, BackupError> {
    keep_aside::free_space(path).map_err(|source| BackupError::State {
        what: format!("asking for the free space of `{}`", path.display()),
        source,
    })
}
