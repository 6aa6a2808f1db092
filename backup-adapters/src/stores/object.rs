//! A store on object storage.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backup_core::{
    ByteStream, ObjectInfo, Space, Store, StoreCapabilities, StoreError, StoreKey, StoreWriter, WriteOptions,
};
use bytes::Bytes;
use chrono::SubsecRound as _;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt as _, PutMode, PutPayload};

mod open;
mod read;
mod write;

/// How often one object is tried to be created before an error is final, and the first pause between attempts; each
/// further pause is twice as long.
const CREATE_ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The most that is read into memory to move or compare an object (16 MiB). Only small objects are moved.
const SMALL_BYTES: u64 = 16 << 20;

/// A store on object storage: S3 and what speaks its protocol, or `object_store`'s memory for tests.
///
/// * **`create` and small writes are exclusive** by a conditional put (`If-None-Match: *`). An attempt that failed on
///   the way back may have succeeded: when a later attempt of the same call finds the key taken, the bodies are
///   compared, and equal bodies are a success. Two callers can therefore both win if, and only if, they create the same
///   bytes and one of them had to retry; what the catalog creates carries a run id or a random token.
/// * **Large writes** are multipart uploads, which cannot be conditional: `finish` looks whether the key is taken just
///   before it completes the upload, which is no protection against a race.
/// * **Abandoned uploads** are aborted when a writer is dropped, as far as the process lives. What a killed process
///   leaves is invisible but costs money: set a lifecycle rule (`AbortIncompleteMultipartUpload`) on the bucket.
/// * `rename` reads, creates and deletes; it is meant for small objects.
#[derive(Clone)]
pub struct ObjectStore {
    inner: Arc<dyn object_store::ObjectStore>,
    /// The same storage, through a client that does not retry by itself: only so can `create` know what it did.
    once: Arc<dyn object_store::ObjectStore>,
    prefix: Path,
    url: String,
    capabilities: StoreCapabilities,
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

    /// Puts `payload` under a key that must be free, and tries again where that is safe. Returns the etag, if known.
    async fn put_new(
        &self,
        verb: &'static str,
        key: &StoreKey,
        payload: &PutPayload,
    ) -> Result<Option<String>, StoreError> {
        let path = self.path(verb, key)?;
        let mut pause = FIRST_PAUSE;
        // Whether an attempt may have succeeded without our knowing.
        let mut doubt = false;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let last = attempt == CREATE_ATTEMPTS;
            let put = self.once.put_opts(&path, payload.clone(), PutMode::Create.into()).await;
            match put {
                Ok(put) => return Ok(put.e_tag),
                Err(object_store::Error::AlreadyExists { source, .. }) => {
                    match self.holds(&path, payload, doubt).await {
                        Ok(true) => return Ok(None),
                        Ok(false) => return Err(StoreError::AlreadyExists { key: key.clone() }),
                        // S3 answers "conflict" also while the key is being deleted: it is free.
                        Err(object_store::Error::NotFound { .. }) if !last => {}
                        Err(object_store::Error::NotFound { .. }) => {
                            return Err(retryable(verb, key, source));
                        }
                        Err(e) => return Err(error(verb, key, e)),
                    }
                }
                Err(object_store::Error::Generic { .. }) if !last => doubt = true,
                Err(e) => return Err(write_error(verb, key, e, &self.url)),
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    /// Whether what is under `path` is ours: looked at only if there is a doubt.
    ///
    /// # Errors
    /// `NotFound` if nothing is there.
    async fn holds(&self, path: &Path, payload: &PutPayload, doubt: bool) -> object_store::Result<bool> {
        if !doubt {
            return self.inner.head(path).await.map(|_meta| false);
        }
        let there = self.inner.get(path).await?;
        if there.meta.size != payload.content_length() as u64 {
            return Ok(false);
        }
        let there = there.bytes().await?;
        Ok(payload.iter().flatten().eq(there.iter()))
    }

    async fn small_body(&self, key: &StoreKey) -> Result<Bytes, StoreError> {
        let fail = |e| error("rename", key, e);
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
    ObjectInfo { key, bytes: meta.size, modified, version: meta.e_tag }
}

fn retryable(operation: &'static str, key: &StoreKey, source: backup_core::BoxError) -> StoreError {
    StoreError::Other { operation, key: key.to_string(), retryable: true, source }
}

fn error(operation: &'static str, key: &StoreKey, e: object_store::Error) -> StoreError {
    use object_store::Error as E;
    let name = || key.to_string();
    match e {
        E::NotFound { .. } => StoreError::NotFound { key: key.clone() },
        E::AlreadyExists { .. } => StoreError::AlreadyExists { key: key.clone() },
        E::PermissionDenied { source, .. } | E::Unauthenticated { source, .. } => {
            StoreError::PermissionDenied { operation, key: name(), source }
        }
        // How S3-compatible servers on a full disk answer; there is no variant for it.
        E::Generic { source, .. } if source.to_string().contains("507 Insufficient Storage") => {
            StoreError::NoSpace { operation, key: name(), source }
        }
        E::Generic { source, .. } => retryable(operation, key, source),
        e => StoreError::other(operation, key, e),
    }
}

/// The same for writes: what they miss is the bucket, not the key.
fn write_error(operation: &'static str, key: &StoreKey, e: object_store::Error, url: &str) -> StoreError {
    match e {
        object_store::Error::NotFound { .. } => StoreError::NotAStore {
            message: format!("`{url}` is not there: make the bucket, or correct the URL"),
        },
        e => error(operation, key, e),
    }
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
        self.put_new("create", key, &bytes.into()).await.map(drop)
    }

    async fn head(&self, key: &StoreKey) -> Result<ObjectInfo, StoreError> {
        let meta = self.inner.head(&self.path("look up", key)?).await;
        meta.map(|meta| info(key.clone(), meta)).map_err(|e| error("look up", key, e))
    }

    async fn read(&self, key: &StoreKey) -> Result<ByteStream<StoreError>, StoreError> {
        let got = self.inner.get(&self.path("read", key)?).await.map_err(|e| error("read", key, e))?;
        Ok(read::stream(key.clone(), got))
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
        let bytes = self.inner.get_range(&path, range.clone()).await.map_err(|e| error("read", key, e))?;
        if bytes.len() as u64 == range.end - range.start { Ok(bytes) } else { Err(beyond()) }
    }

    fn list(&self, prefix: Option<&StoreKey>) -> BoxStream<'static, Result<ObjectInfo, StoreError>> {
        let path = match self.prefix_path(prefix) {
            Ok(path) => path,
            Err(e) => return futures::stream::iter([Err(e)]).boxed(),
        };
        let (store, prefix) = (self.clone(), prefix.cloned());
        self.inner
            .list(Some(&path))
            .filter_map(move |meta| {
                let item = match meta {
                    Ok(meta) => store.key(&meta.location, prefix.as_ref()).map(|key| Ok(info(key, meta))),
                    Err(e) => Some(Err(store.list_error(prefix.as_ref(), e))),
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
        let listed = self.inner.list_with_delimiter(Some(&path)).await;
        let mut dirs: Vec<String> = listed
            .map_err(|e| self.list_error(prefix, e))?
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
        match self.put_new("rename", to, &body.clone().into()).await {
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
            Err(e) => Err(error("delete", key, e)),
        }
    }

    /// Does nothing: parts of an unfinished upload are invisible to every call of the protocol that `object_store` offers.
    /// A lifecycle rule of the bucket (`AbortIncompleteMultipartUpload`) removes them.
    async fn delete_abandoned(&self, _: &StoreKey, _: Duration) -> Result<(), StoreError> {
        Ok(())
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
                Err(e) => return Err(error("delete", prefix, e)),
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
}

impl ObjectStore {
    fn list_error(&self, prefix: Option<&StoreKey>, e: object_store::Error) -> StoreError {
        match (prefix, e) {
            (Some(prefix), e) => write_error("list", prefix, e, &self.url),
            (None, object_store::Error::NotFound { .. }) => StoreError::NotAStore {
                message: format!("`{}` is not there: make the bucket, or correct the URL", self.url),
            },
            (None, e) => StoreError::Other {
                operation: "list",
                key: self.url.clone(),
                retryable: matches!(e, object_store::Error::Generic { .. }),
                source: e.into(),
            },
        }
    }
}
