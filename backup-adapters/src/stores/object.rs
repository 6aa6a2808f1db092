//! A store on object storage.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backup_core::{
    ByteStream, ObjectInfo, ObjectLock, Readiness, Space, Store, StoreCapabilities, StoreError, StoreKey,
    StoreWriter, Thaw, WriteOptions,
};
use bytes::Bytes;
use chrono::{DateTime, SubsecRound as _, Utc};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt as _};

use marks::Marked;

mod again;
mod ahead;
mod api;
mod chain;
mod cloud;
mod create;
mod fault;
mod list;
mod lock;
mod marks;
mod open;
mod read;
mod renew;
mod sums;
mod thaw;
mod uploads;
mod write;

pub(crate) use chain::{complete, complete_azure, complete_google};

/// The most that is read into memory to move or compare an object (16 MiB). Only small objects are moved.
const SMALL_BYTES: u64 = 16 << 20;

/// A store on object storage: S3 and what speaks its protocol, Azure's blobs, Google's buckets, or `object_store`'s memory
/// for tests.
///
/// * **`create` and small writes are exclusive** by a conditional put (`If-None-Match: *`, Google's
///   `x-goog-if-generation-match: 0`). An attempt that failed on
///   the way back may have succeeded: when a later attempt of the same call finds the key taken, the bodies are
///   compared, and equal bodies are a success. Two callers can therefore both win if, and only if, they create the same
///   bytes and one of them had to retry; what the catalog creates carries a run id or a random token.
/// * **Large writes** are multipart uploads, which cannot be conditional: `finish` looks whether the key is taken just
///   before it completes the upload, which is no protection against a race.
/// * **What may pass is tried again**, with growing pauses, for as long as the option `retry_for` says: answers of 5xx and
///   429, connections that end early. An upload or download that is cut goes on with the part that it was in.
/// * **Abandoned uploads** are aborted when a writer is dropped, as far as the process lives. What a killed process
///   leaves is invisible but costs money: `delete_abandoned` finds and aborts it on S3, if the key may list uploads. A
///   lifecycle rule (`AbortIncompleteMultipartUpload`) of the bucket does so, too. Azure removes it by itself after a week.
/// * `rename` reads, creates and deletes; it is meant for small objects.
#[derive(Clone)]
pub struct ObjectStore {
    inner: Arc<dyn object_store::ObjectStore>,
    /// The same storage, through a client that does not retry by itself: only so can `create` know what it did.
    once: Arc<dyn object_store::ObjectStore>,
    prefix: Path,
    url: String,
    /// Whose words its errors are told in.
    cloud: cloud::Cloud,
    capabilities: StoreCapabilities,
    /// How long a request is tried again.
    retry_for: Duration,
    /// The class and the tags of artifacts; everything else stays in the usual class, and has none.
    marks: marks::Marks,
    /// How what is committed becomes locked.
    lock: Option<lock::Lock>,
    /// What the client cannot do by itself; only S3's.
    api: Option<Arc<api::Api>>,
    /// With what the parts of uploads go, unless it is a signed SHA-256.
    sums: Option<Arc<sums::Sums>>,
}

impl ObjectStore {
    fn path(&self, verb: &'static str, key: &StoreKey) -> Result<Path, StoreError> {
        let path = if self.prefix.is_root() { key.to_string() } else { format!("{}/{key}", self.prefix) };
        // `parse`, not `from`: keys are stored as they are, never percent-encoded.
        Path::parse(path).map_err(|e| StoreError::other(verb, key, e))
    }

    fn prefix_path(&self, prefix: Option<&StoreKey>) -> Result<Path, StoreError> {
        prefix.map_or_else(|| Ok(self.prefix.clone()), |p| self.path("list", p))
    }

    /// The key of an object below `prefix`; `None` for what no store wrote, e.g. the marker of an empty directory.
    fn key(&self, location: &Path, prefix: Option<&StoreKey>) -> Option<StoreKey> {
        let mut rest = location.as_ref();
        if !self.prefix.is_root() {
            rest = rest.strip_prefix(self.prefix.as_ref())?.strip_prefix('/')?;
        }
        let key = StoreKey::new(rest).ok()?;
        prefix.is_none_or(|p| key.below(p).is_some()).then_some(key)
    }

    async fn small_body(&self, key: &StoreKey) -> Result<Bytes, StoreError> {
        let fail = |e| self.fault("read", key, e);
        let there = self.inner.get(&self.path("rename", key)?).await.map_err(fail)?;
        if there.meta.size > SMALL_BYTES {
            return Err(StoreError::other("rename", key, "it is too large to be moved on object storage"));
        }
        there.bytes().await.map_err(fail)
    }
}

fn info(key: StoreKey, meta: ObjectMeta) -> ObjectInfo {
    // Listings have fractions of a second, the header of an object has none: the same object has one time.
    let modified = Some(meta.last_modified.trunc_subsecs(0));
    ObjectInfo { key, bytes: meta.size, modified, version: meta.e_tag.map(unquoted) }
}

/// Azure's listings have etags without the quotes that its headers have: the same object has one version.
fn unquoted(etag: String) -> String {
    etag.trim_matches('"').to_owned()
}

impl fmt::Debug for ObjectStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the client: it knows credentials.
        f.debug_struct("ObjectStore").field("url", &self.url).finish_non_exhaustive()
    }
}

impl fmt::Display for ObjectStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

#[async_trait]
impl Store for ObjectStore {
    fn capabilities(&self) -> StoreCapabilities {
        self.capabilities
    }

    async fn writer(
        &self,
        key: &StoreKey,
        options: WriteOptions,
    ) -> Result<Box<dyn StoreWriter>, StoreError> {
        Ok(Box::new(write::ObjectWriter::new(self.clone(), key.clone(), options)?))
    }

    async fn create(&self, key: &StoreKey, bytes: Bytes) -> Result<(), StoreError> {
        self.put_new("create", key, &bytes.into(), Marked::default()).await.map(drop)
    }

    async fn head(&self, key: &StoreKey) -> Result<ObjectInfo, StoreError> {
        let meta = self.inner.head(&self.path("look up", key)?).await;
        meta.map(|meta| info(key.clone(), meta)).map_err(|e| self.fault("look up", key, e))
    }

    async fn read(&self, key: &StoreKey) -> Result<ByteStream<StoreError>, StoreError> {
        let path = self.path("read", key)?;
        let got = self.inner.get(&path).await.map_err(|e| self.fault("read", key, e))?;
        Ok(read::stream(self.clone(), key.clone(), path, got))
    }

    async fn read_range(&self, key: &StoreKey, range: Range<u64>) -> Result<Bytes, StoreError> {
        let path = self.path("read", key)?;
        let beyond = || {
            let what = format!("bytes {}..{} lie beyond its end", range.start, range.end);
            StoreError::other("read", key, what)
        };
        // Storages disagree on what an empty range means, and cut one that reaches beyond the end.
        if range.is_empty() {
            let size = self.head(key).await?.bytes;
            let within = range.start == range.end && range.end <= size;
            return if within { Ok(Bytes::new()) } else { Err(beyond()) };
        }
        let bytes =
            self.inner.get_range(&path, range.clone()).await.map_err(|e| self.fault("read", key, e))?;
        if bytes.len() as u64 == range.end - range.start { Ok(bytes) } else { Err(beyond()) }
    }

    fn list(&self, prefix: Option<&StoreKey>) -> BoxStream<'static, Result<ObjectInfo, StoreError>> {
        let path = match self.prefix_path(prefix) {
            Ok(path) => path,
            Err(e) => return futures::stream::iter([Err(e)]).boxed(),
        };
        let (store, prefix) = (self.clone(), prefix.cloned());
        self.list_again(path)
            .filter_map(move |meta| {
                let item = match meta {
                    Ok(meta) => store.key(&meta.location, prefix.as_ref()).map(|key| Ok(info(key, meta))),
                    Err(e) => Some(Err(store.list_fault(prefix.as_ref(), e))),
                };
                std::future::ready(item)
            })
            .boxed()
    }

    fn list_keys(&self, prefix: Option<&StoreKey>) -> BoxStream<'static, Result<StoreKey, StoreError>> {
        self.list(prefix).map_ok(|info| info.key).boxed()
    }

    async fn list_dirs(&self, prefix: Option<&StoreKey>) -> Result<Vec<String>, StoreError> {
        let path = self.prefix_path(prefix)?;
        let listed = self.dirs_again(&path).await;
        let mut dirs: Vec<String> = listed
            .map_err(|e| self.list_fault(prefix, e))?
            .common_prefixes
            .iter()
            .filter_map(|dir| self.key(dir, prefix))
            .map(|key| key.file_name().to_owned())
            .collect();
        dirs.sort_unstable();
        Ok(dirs)
    }

    async fn rename(&self, from: &StoreKey, to: &StoreKey) -> Result<(), StoreError> {
        let body = match self.small_body(from).await {
            // Moved already?
            Err(e) if e.is_not_found() => return self.head(to).await.map(drop).map_err(|_| e),
            body => body?,
        };
        if from == to {
            return Ok(());
        }
        match self.put_new("rename", to, &body.clone().into(), Marked::default()).await {
            // An earlier call was cut short before it deleted.
            Err(e) if e.is_already_exists() => {
                if self.small_body(to).await? != body {
                    return Err(e);
                }
            }
            created => drop(created?),
        }
        self.delete(from).await
    }

    async fn delete(&self, key: &StoreKey) -> Result<(), StoreError> {
        match self.inner.delete(&self.path("delete", key)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.fault("delete", key, e)),
        }
    }

    /// Aborts uploads of S3 that nobody finished, as far as the key may list them and the server does. Azure removes its own
    /// after a week; Google needs a lifecycle rule of the bucket (`AbortIncompleteMultipartUpload`).
    async fn delete_abandoned(&self, prefix: &StoreKey, untouched: Duration) -> Result<(), StoreError> {
        match &self.api {
            Some(api) => self.abort_abandoned(api, prefix, untouched).await,
            None => Ok(()),
        }
    }

    async fn delete_prefix(&self, prefix: &StoreKey) -> Result<(), StoreError> {
        let (store, below) = (self.clone(), prefix.clone());
        let mine = self
            .inner
            .list(Some(&self.path("delete", prefix)?))
            .try_filter(move |meta| std::future::ready(store.key(&meta.location, Some(&below)).is_some()));
        // In bulk, where the storage can.
        let mut deleted = self.inner.delete_stream(mine.map_ok(|meta| meta.location).boxed());
        while let Some(one) = deleted.next().await {
            match one {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(e) => return Err(self.write_fault("delete", prefix, e)),
            }
        }
        Ok(())
    }

    fn local_path(&self, _: &StoreKey) -> Option<PathBuf> {
        None
    }

    async fn space(&self) -> Result<Option<Space>, StoreError> {
        Ok(None)
    }

    fn object_lock(&self) -> Option<ObjectLock> {
        self.lock.map(lock::Lock::told)
    }

    async fn lock(
        &self,
        key: &StoreKey,
        until: Option<DateTime<Utc>>,
    ) -> Result<Option<DateTime<Utc>>, StoreError> {
        self.lock_object(key, until).await
    }

    async fn thaw(&self, key: &StoreKey, ask: Option<Thaw>) -> Result<Readiness, StoreError> {
        match &self.api {
            Some(api) => self.thaw_object(api, key, ask).await,
            None => self.head(key).await.map(|_there| Readiness::Now),
        }
    }
}
