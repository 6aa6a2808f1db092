//! A store in a directory.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use rustix::fs::AtFlags;

use self::tree::Call;
use super::{ObjectInfo, Space, Store, StoreCapabilities, StoreWriter, WriteOptions};
use crate::error::StoreError;
use crate::id::StoreKey;
use crate::source::ByteStream;

mod dirs;
mod read;
mod tree;
mod walk;
mod write;

/// A store in a directory of a local (or mounted) file system. Clones share the directory.
///
/// * **Durable:** data, names and newly made directories are fsynced before a call returns. (File systems that cannot
///   sync a directory and say so with `EINVAL` are taken as they are.)
/// * **Exclusive:** objects get their name by `renameat2(RENAME_NOREPLACE)`, or by a hard link where the file system
///   lacks that, so that nothing is ever replaced, by no other process either.
/// * Partial writes live beside their target under names that begin with `.tmp-`. No listing shows them;
///   `delete_prefix` removes them. Keys with such a segment are refused.
/// * Symbolic links below the root are never followed: listings leave them out, other calls fail on them. The root
///   itself may be one.
/// * The root is never made by any call but [`create_root`](Self::create_root): a missing root is
///   [`StoreError::NotAStore`], because an unmounted disk is not an empty store.
/// * Directories get mode 0700, files 0600.
#[derive(Debug, Clone)]
pub struct LocalStore {
    root: Arc<Path>,
}

impl LocalStore {
    /// A store in `root`, an absolute path. Does no I/O.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into().into() }
    }

    /// The directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the root, with its parents, if it is missing. For `init`.
    ///
    /// # Errors
    /// `PermissionDenied`, `NoSpace`, `Other`.
    pub async fn create_root(&self) -> Result<(), StoreError> {
        let root = Arc::clone(&self.root);
        blocking_at("create", &self.root, move || tree::create_root(&root)).await
    }

    fn call(&self, verb: &'static str, key: &StoreKey) -> Call {
        Call { root: Arc::clone(&self.root), verb, key: key.clone() }
    }
}

/// Runs `f` where blocking is allowed.
async fn blocking<T: Send + 'static>(
    call: Call,
    f: impl FnOnce(&Call) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let (verb, key) = (call.verb, call.key.clone());
    tokio::task::spawn_blocking(move || f(&call))
        .await
        .unwrap_or_else(|e| Err(StoreError::other(verb, &key, e)))
}

/// The same for what concerns the root rather than a key.
async fn blocking_at<T: Send + 'static>(
    verb: &'static str,
    root: &Path,
    f: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(f)
        .await
        .unwrap_or_else(|e| Err(tree::root_error(verb, root, std::io::Error::other(e))))
}

impl fmt::Display for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match url::Url::from_file_path(&self.root) {
            Ok(url) => url.fmt(f),
            Err(()) => write!(f, "file://{}", self.root.display()),
        }
    }
}

#[async_trait]
impl Store for LocalStore {
    fn capabilities(&self) -> StoreCapabilities {
        StoreCapabilities::full()
    }

    async fn writer(
        &self,
        key: &StoreKey,
        _options: WriteOptions,
    ) -> Result<Box<dyn StoreWriter>, StoreError> {
        let call = self.call("write", key);
        let temp = blocking(call.clone(), write::TempFile::new).await?;
        Ok(Box::new(write::LocalWriter::new(call, temp)))
    }

    async fn create(&self, key: &StoreKey, bytes: Bytes) -> Result<(), StoreError> {
        blocking(self.call("create", key), move |call| {
            let temp = write::TempFile::new(call)?;
            temp.write(&bytes).map_err(|e| call.write_error(e))?;
            temp.publish(call, bytes.len() as u64).map(|_info| ())
        })
        .await
    }

    async fn head(&self, key: &StoreKey) -> Result<ObjectInfo, StoreError> {
        blocking(self.call("look up", key), |call| {
            let dir = call.open_parent()?;
            let stat = tree::stat_object(&dir, call.name()).map_err(|e| call.error(e))?;
            Ok(tree::object_info(call.key.clone(), &stat))
        })
        .await
    }

    async fn read(&self, key: &StoreKey) -> Result<ByteStream<StoreError>, StoreError> {
        let call = self.call("read", key);
        let reading = blocking(call.clone(), read::Reading::open).await?;
        Ok(reading.into_stream(call))
    }

    async fn read_range(&self, key: &StoreKey, range: Range<u64>) -> Result<Bytes, StoreError> {
        blocking(self.call("read", key), move |call| read::range(call, range)).await
    }

    fn list(&self, prefix: Option<&StoreKey>) -> BoxStream<'static, Result<ObjectInfo, StoreError>> {
        walk::stream(Arc::clone(&self.root), prefix, |dir, name, key| {
            tree::stat_object(dir, name).map(|stat| tree::object_info(key, &stat))
        })
    }

    fn list_keys(&self, prefix: Option<&StoreKey>) -> BoxStream<'static, Result<StoreKey, StoreError>> {
        walk::stream(Arc::clone(&self.root), prefix, |_, _, key| Ok(key))
    }

    async fn list_dirs(&self, prefix: Option<&StoreKey>) -> Result<Vec<String>, StoreError> {
        let (root, prefix) = (Arc::clone(&self.root), prefix.cloned());
        blocking_at("list", &self.root, move || dirs::list(&root, prefix.as_ref())).await
    }

    async fn rename(&self, from: &StoreKey, to: &StoreKey) -> Result<(), StoreError> {
        let to = self.call("rename to", to);
        blocking(self.call("rename", from), move |from| write::rename(from, &to)).await
    }

    async fn delete(&self, key: &StoreKey) -> Result<(), StoreError> {
        blocking(self.call("delete", key), |call| {
            let Some(chain) = call.open_chain_if_there(call.parents())? else { return Ok(()) };
            let dir = chain.last();
            match rustix::fs::unlinkat(dir, call.name(), AtFlags::empty()) {
                // A directory is not an object: there is none under this key.
                Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::ISDIR) => {}
                Err(e) => return Err(call.error(e.into())),
            }
            tree::sync_dir(dir).map_err(|e| call.error(e))?;
            chain.prune(call.parents());
            Ok(())
        })
        .await
    }

    async fn delete_prefix(&self, prefix: &StoreKey) -> Result<(), StoreError> {
        blocking(self.call("delete", prefix), |call| {
            let Some(chain) = call.open_chain_if_there(call.segments())? else { return Ok(()) };
            dirs::remove_below(chain.last()).map_err(|e| call.error(e))?;
            chain.prune(call.segments());
            chain.sync().map_err(|e| call.error(e))
        })
        .await
    }

    async fn delete_abandoned(&self, prefix: &StoreKey, untouched: Duration) -> Result<(), StoreError> {
        blocking(self.call("delete", prefix), move |call| {
            let Some(chain) = call.open_chain_if_there(call.segments())? else { return Ok(()) };
            dirs::remove_temps_below(chain.last(), untouched).map_err(|e| call.error(e))
        })
        .await
    }

    fn local_path(&self, key: &StoreKey) -> Option<PathBuf> {
        Some(self.root.join(key.as_str()))
    }

    async fn space(&self) -> Result<Option<Space>, StoreError> {
        let root = Arc::clone(&self.root);
        blocking_at("measure", &self.root, move || {
            let dir = tree::open_root("measure", &root)?;
            let s = rustix::fs::fstatvfs(&dir).map_err(|e| tree::root_error("measure", &root, e.into()))?;
            Ok(Some(Space {
                free: s.f_bavail.saturating_mul(s.f_frsize),
                total: s.f_blocks.saturating_mul(s.f_frsize),
            }))
        })
        .await
    }
}
