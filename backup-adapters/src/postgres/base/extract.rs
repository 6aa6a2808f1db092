//! The files of a base backup, written out.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use backup_core::{AdapterError, keep_aside};

use super::check::Place;
use crate::on_disk::failed;
use crate::tree::pax::{Kind, Member};

/// What the server accepts for its data directory: nobody else may write.
const MODES: u32 = 0o750;

/// Into a new folder.
pub(super) struct Folder {
    root: PathBuf,
    /// Of everything, whatever the archive says.
    owner: Option<(u32, u32)>,
    file: Option<(PathBuf, File)>,
}

impl Folder {
    /// Makes `root` with these permissions, in place of what an earlier attempt left.
    pub(super) fn create(root: &Path, mode: u32, owner: Option<(u32, u32)>) -> Result<Self, AdapterError> {
        keep_aside::remove(root).map_err(failed("replace", root))?;
        let parent = root.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent).map_err(failed("create", parent))?;
        DirBuilder::new().mode(0o700).create(root).map_err(failed("create", root))?;
        let this = Self { root: root.to_owned(), owner, file: None };
        this.give(root, mode, None)?;
        Ok(this)
    }

    fn give(&self, path: &Path, mode: u32, written: Option<(u64, u64)>) -> Result<(), AdapterError> {
        let id = |n| u32::try_from(n).unwrap_or(u32::MAX);
        if let Some((uid, gid)) = self.owner.or(written.map(|(uid, gid)| (id(uid), id(gid)))) {
            chown(path, Some(uid), Some(gid)).map_err(failed("give to the server", path))?;
        }
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed("give to the server", path))
    }

    /// Everything is durable on return.
    pub(super) fn finish(self) -> Result<(), AdapterError> {
        keep_aside::sync_file_system(&self.root).map_err(failed("write", &self.root))
    }
}

impl Place for Folder {
    fn member(&mut self, member: &Member) -> Result<(), AdapterError> {
        use std::os::unix::ffi::OsStrExt as _;
        // The parser admits no name that climbs, and no links: everything stays below the folder that is ours.
        let path = self.root.join(std::ffi::OsStr::from_bytes(&member.path));
        // Only root may give files away.
        let owner = rustix::process::geteuid().is_root().then_some((member.uid, member.gid));
        match member.kind {
            Kind::Dir if path == self.root => Ok(()),
            Kind::Dir => {
                let created = DirBuilder::new().mode(0o700).recursive(true).create(&path);
                created.map_err(failed("create", &path))?;
                self.give(&path, (member.mode & MODES) | 0o700, owner)
            }
            _ => {
                let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
                let file = file.map_err(failed("create", &path))?;
                self.give(&path, member.mode & 0o640, owner)?;
                self.file = Some((path, file));
                Ok(())
            }
        }
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        match &mut self.file {
            Some((path, file)) => file.write_all(bytes).map_err(failed("write", path)),
            None => Ok(()),
        }
    }

    fn end(&mut self) -> Result<(), AdapterError> {
        self.file = None;
        Ok(())
    }
}
