//! A store in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};

use super::{ObjectInfo, ObjectLock, Space, Store, StoreCapabilities, StoreWriter, WriteOptions};
use crate::error::StoreError;
use crate::id::StoreKey;
use crate::source::{ByteStream, CHUNK_BYTES};

/// The most that [`Store::create`] and [`Store::rename`] are meant for (1 MiB).
const SMALL_BYTES: usize = 1 << 20;

/// A store in memory, for tests and examples. Clones share the content.
///
/// It is stricter than what runs in production, so that code which works here works on any store: small-object calls
/// refuse more than 1 MiB, a key cannot be an object and a directory at once, and nothing replaces an object.
#[derive(Clone, Default)]
pub struct MemoryStore {
    content: Arc<Mutex<Content>>,
    object_lock: Option<ObjectLock>,
}

#[derive(Default)]
struct Content {
    objects: BTreeMap<StoreKey, Object>,
    version: u64,
}

struct Object {
    chunks: Vec<Bytes>,
    bytes: u64,
    version: u64,
    locked: Option<DateTime<Utc>>,
}

impl Content {
    fn get(&self, key: &StoreKey) -> Result<&Object, StoreError> {
        self.objects.get(key).ok_or_else(|| StoreError::NotFound { key: key.clone() })
    }

    fn insert(
        &mut self,
        verb: &'static str,
        key: &StoreKey,
        chunks: Vec<Bytes>,
    ) -> Result<ObjectInfo, StoreError> {
        if self.objects.contains_key(key) {
            return Err(StoreError::AlreadyExists { key: key.clone() });
        }
        let in_the_way = std::iter::successors(key.parent(), StoreKey::parent)
            .find(|parent| self.objects.contains_key(parent))
            .or_else(|| self.below(key).next().map(|(k, _)| k.clone()));
        if let Some(other) = in_the_way {
            let what = format!("`{other}` is there: a key is an object or a directory, not both");
            return Err(StoreError::other(verb, key, what));
        }
        self.version += 1;
        let bytes = chunks.iter().map(|c| c.len() as u64).sum();
        let object = Object { chunks, bytes, version: self.version, locked: None };
        let info = object.info(key);
        self.objects.insert(key.clone(), object);
        Ok(info)
    }

    /// Objects below a prefix, in order.
    fn below<'a>(&'a self, prefix: &'a StoreKey) -> impl Iterator<Item = (&'a StoreKey, &'a Object)> {
        // Between the prefix and its first child may sort others, e.g. `a-b` between `a` and `a/b`.
        self.objects
            .range(prefix.clone()..)
            .take_while(|(k, _)| k.as_str().starts_with(prefix.as_str()))
            .filter(|(k, _)| k.below(prefix).is_some())
    }

    fn listed(&self, prefix: Option<&StoreKey>) -> Vec<ObjectInfo> {
        match prefix {
            None => self.objects.iter().map(|(k, o)| o.info(k)).collect(),
            Some(p) => self.below(p).map(|(k, o)| o.info(k)).collect(),
        }
    }
}

impl Object {
    fn info(&self, key: &StoreKey) -> ObjectInfo {
        ObjectInfo {
            key: key.clone(),
            bytes: self.bytes,
            modified: None,
            version: Some(self.version.to_string()),
        }
    }

    fn body(&self) -> Vec<u8> {
        self.chunks.concat()
    }
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes locks on what is committed here. Having no clock, it deletes what is locked all the same.
    #[must_use]
    pub fn with_object_lock(mut self, lock: ObjectLock) -> Self {
        self.object_lock = Some(lock);
        self
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        // Every change below is a single insertion or removal: a panic leaves nothing half-done.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("objects", &self.content().objects.len()).finish()
    }
}

impl fmt::Display for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory://")
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn capabilities(&self) -> StoreCapabilities {
        StoreCapabilities::full().with_durable(false)
    }

    async fn writer(
        &self,
        key: &StoreKey,
        _options: WriteOptions,
    ) -> Result<Box<dyn StoreWriter>, StoreError> {
        Ok(Box::new(MemoryWriter { store: self.clone(), key: key.clone(), chunks: Vec::new() }))
    }

    async fn create(&self, key: &StoreKey, bytes: Bytes) -> Result<(), StoreError> {
        if bytes.len() > SMALL_BYTES {
            let what = format!("{} bytes are too many for `create`: use a writer", bytes.len());
            return Err(StoreError::other("create", key, what));
        }
        self.content().insert("create", key, vec![bytes]).map(|_info| ())
    }

    async fn head(&self, key: &StoreKey) -> Result<ObjectInfo, StoreError> {
        self.content().get(key).map(|object| object.info(key))
    }

    async fn read(&self, key: &StoreKey) -> Result<ByteStream<StoreError>, StoreError> {
        let mut chunks = Vec::new();
        for chunk in &self.content().get(key)?.chunks {
            let mut rest = chunk.clone();
            while !rest.is_empty() {
                chunks.push(Ok(rest.split_to(rest.len().min(CHUNK_BYTES))));
            }
        }
        Ok(stream::iter(chunks).boxed())
    }

    async fn read_range(&self, key: &StoreKey, range: Range<u64>) -> Result<Bytes, StoreError> {
        let content = self.content();
        let object = content.get(key)?;
        let part = |i: u64| usize::try_from(i).ok();
        let body = object.body();
        match (part(range.start), part(range.end)) {
            (Some(start), Some(end)) if start <= end && end <= body.len() => {
                Ok(Bytes::from(body).slice(start..end))
            }
            _ => {
                let what = format!("bytes {}..{} of {} were asked for", range.start, range.end, object.bytes);
                Err(StoreError::other("read", key, what))
            }
        }
    }

    fn list(&self, prefix: Option<&StoreKey>) -> BoxStream<'static, Result<ObjectInfo, StoreError>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        // Looked up when polled, as every other store does.
        stream::once(async move { store.content().listed(prefix.as_ref()) })
            .flat_map(|listed| stream::iter(listed.into_iter().map(Ok)))
            .boxed()
    }

    fn list_keys(&self, prefix: Option<&StoreKey>) -> BoxStream<'static, Result<StoreKey, StoreError>> {
        self.list(prefix).map(|info| info.map(|i| i.key)).boxed()
    }

    async fn list_dirs(&self, prefix: Option<&StoreKey>) -> Result<Vec<String>, StoreError> {
        let mut dirs: Vec<String> = self
            .content()
            .listed(prefix)
            .iter()
            .filter_map(|info| prefix.map_or(Some(info.key.as_str()), |p| info.key.below(p)))
            .filter_map(|rest| rest.split_once('/').map(|(dir, _)| dir.to_owned()))
            .collect();
        dirs.sort_unstable();
        dirs.dedup();
        Ok(dirs)
    }

    async fn rename(&self, from: &StoreKey, to: &StoreKey) -> Result<(), StoreError> {
        let mut content = self.content();
        let Ok(object) = content.get(from) else {
            return match content.get(to) {
                Ok(_) => Ok(()),
                Err(_) => Err(StoreError::NotFound { key: from.clone() }),
            };
        };
        if from == to {
            return Ok(());
        }
        let (bytes, chunks) = (object.bytes, object.chunks.clone());
        if bytes > SMALL_BYTES as u64 {
            return Err(StoreError::other(
                "rename",
                from,
                format!("{bytes} bytes are too many for `rename`"),
            ));
        }
        match content.get(to) {
            Ok(there) if there.body() == chunks.concat() => {}
            Ok(_) => return Err(StoreError::AlreadyExists { key: to.clone() }),
            Err(_) => content.insert("rename", to, chunks).map(|_info| ())?,
        }
        content.objects.remove(from);
        Ok(())
    }

    async fn delete(&self, key: &StoreKey) -> Result<(), StoreError> {
        self.content().objects.remove(key);
        Ok(())
    }

    async fn delete_prefix(&self, prefix: &StoreKey) -> Result<(), StoreError> {
        self.content().objects.retain(|key, _| key.below(prefix).is_none());
        Ok(())
    }

    async fn delete_abandoned(&self, _: &StoreKey, _: Duration) -> Result<(), StoreError> {
        // A writer's chunks are its own until it finishes: there is nothing to abandon.
        Ok(())
    }

    fn local_path(&self, _: &StoreKey) -> Option<PathBuf> {
        None
    }

    async fn space(&self) -> Result<Option<Space>, StoreError> {
        Ok(None)
    }

    fn object_lock(&self) -> Option<ObjectLock> {
        self.object_lock
    }

    async fn lock(
        &self,
        key: &StoreKey,
        until: Option<DateTime<Utc>>,
    ) -> Result<Option<DateTime<Utc>>, StoreError> {
        let mut content = self.content();
        let object = content.objects.get_mut(key).ok_or_else(|| StoreError::NotFound { key: key.clone() })?;
        object.locked = object.locked.max(until);
        Ok(object.locked)
    }
}

struct MemoryWriter {
    store: MemoryStore,
    key: StoreKey,
    chunks: Vec<Bytes>,
}

impl fmt::Debug for MemoryWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryWriter").field("key", &self.key).finish_non_exhaustive()
    }
}

#[async_trait]
impl StoreWriter for MemoryWriter {
    async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        self.chunks.push(chunk);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<ObjectInfo, StoreError> {
        let Self { store, key, chunks } = *self;
        store.content().insert("write", &key, chunks)
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }
}
