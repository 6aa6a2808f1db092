//! A file by itself, as the scripts before this program copied it, in the place of an archive with that one member.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use backup_core::{AdapterError, ArtifactMeta, ByteStream};
use bytes::Bytes;
use futures::{StreamExt, stream};

use super::BLOCK;
use super::roots::{Root, member_name};

/// An attribute of artifacts: the bytes are those of the file, not of an archive.
pub(crate) const BARE: &str = "bare";

pub(crate) fn is_bare(artifact: &ArtifactMeta) -> bool {
    artifact.attributes.contains_key(BARE)
}

/// `body`, which has `bytes` bytes, as an archive of the one file `root`. Owner and mode are those of the file that is
/// there, else ours and private: nobody recorded them. `changed` is its time, in seconds. Blocking, but for the body.
///
/// # Errors
/// Names that no archive can hold.
pub(crate) fn archived(
    body: ByteStream<AdapterError>,
    bytes: u64,
    root: &Root,
    changed: u64,
) -> Result<ByteStream<AdapterError>, AdapterError> {
    let there = fs::metadata(&root.path).ok();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(bytes);
    header.set_mode(there.as_ref().map_or(0o600, |m| m.permissions().mode() & 0o7777));
    header.set_uid(
        there.as_ref().map_or_else(|| rustix::process::geteuid().as_raw().into(), |m| m.uid().into()),
    );
    header.set_gid(
        there.as_ref().map_or_else(|| rustix::process::getegid().as_raw().into(), |m| m.gid().into()),
    );
    header.set_mtime(changed);
    let mut archive = tar::Builder::new(Vec::new());
    let name = Path::new(std::ffi::OsStr::new(&root.member));
    debug_assert_eq!(member_name(&root.path), root.member.as_bytes());
    archive
        .append_data(&mut header, name, std::io::empty())
        .map_err(|e| AdapterError::io(format!("cannot name `{}` in an archive", root.path.display()), e))?;
    let head = archive.get_ref().clone();
    let over = usize::try_from(bytes % BLOCK as u64).unwrap_or(0);
    let pad = if over == 0 { 0 } else { BLOCK - over };
    let part = |bytes: Vec<u8>| stream::iter([Ok(Bytes::from(bytes))]);
    Ok(part(head).chain(body).chain(part(vec![0; pad + 2 * BLOCK])).boxed())
}
