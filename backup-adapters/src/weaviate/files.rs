//! The place where the server keeps its backups: read, measured and cleaned from here. And the archives that are made
//! of it.

mod bucket;
mod container;
mod folder;

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use async_trait::async_trait;
use backup_core::{AdapterError, ByteStream, OpContext};
use bytes::Bytes;

pub(super) use self::bucket::Bucket;
pub(super) use self::container::InContainer;
pub(super) use self::folder::Folder;
use crate::tree::BLOCK;
use crate::tree::pax::{Kind, Member, encode, pad};

/// Where the server keeps its backups: each is a folder, or a common prefix of names, that is called as the backup is.
#[async_trait]
pub(super) trait Files: fmt::Debug + Send + Sync {
    /// Everything of the backup `id` as a tar archive. The files must not change any more.
    ///
    /// # Errors
    /// Those of the place; what happens later comes in the stream.
    async fn archive(&self, cx: &OpContext, id: &str) -> Result<ByteStream<AdapterError>, AdapterError>;

    /// The same while the server writes it: what is complete is read at once, and the rest when it is `over`. To be asked
    /// for before the server begins. `None` where nothing tells what is complete.
    async fn follow(
        &self,
        _cx: &OpContext,
        _id: &str,
        _over: &Arc<AtomicBool>,
    ) -> Option<ByteStream<AdapterError>> {
        None
    }

    /// One small file, by its path from the top.
    ///
    /// # Errors
    /// `NotFound`; those of the place.
    async fn read(&self, cx: &OpContext, path: &str) -> Result<Vec<u8>, AdapterError>;

    /// Bytes of the backup `id` so far, if that is cheap to find out.
    async fn size(&self, id: &str) -> Option<u64>;

    /// Whether [`Self::size`] grows while the server writes one file.
    fn grows(&self) -> bool {
        true
    }

    /// The names of the backups.
    ///
    /// # Errors
    /// Those of the place.
    async fn names(&self, cx: &OpContext) -> Result<Vec<String>, AdapterError>;

    /// Removes the backup `id`. Idempotent.
    ///
    /// # Errors
    /// Those of the place.
    async fn remove(&self, id: &str) -> Result<(), AdapterError>;
}

/// A file of an archive.
pub(super) fn member_of(path: &str, content: &[u8]) -> Result<Vec<u8>, AdapterError> {
    let mut out = file_header(path, content.len() as u64)?;
    out.extend_from_slice(content);
    pad(&mut out, content.len());
    Ok(out)
}

/// What comes before the content of a file.
fn file_header(path: &str, size: u64) -> Result<Vec<u8>, AdapterError> {
    let mut out = Vec::with_capacity(2 * BLOCK);
    encode(&Member { size, mode: 0o644, ..Member::new(path.into(), Kind::File) }, &mut out)?;
    Ok(out)
}

/// What an archive ends with.
pub(super) fn end_of_archive(out: &mut Vec<u8>) {
    out.resize(out.len() + 2 * BLOCK, 0);
}

/// An archive of one small file, for a server that has nothing to back up.
pub(super) fn archive_of(path: &str, content: &[u8]) -> Result<Bytes, AdapterError> {
    let mut out = member_of(path, content)?;
    end_of_archive(&mut out);
    Ok(out.into())
}

/// Whether `name` may be a backup's name and nothing else.
pub(super) fn is_plain(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    !bytes.is_empty()
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
}
