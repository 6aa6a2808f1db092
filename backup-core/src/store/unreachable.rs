//! A store that cannot be reached.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};

use super::{
    ObjectInfo, ObjectLock, Readiness, Space, Store, StoreCapabilities, StoreWriter, Thaw, WriteOptions,
};
use crate::error::StoreError;
use crate::id::StoreKey;
use crate::source::ByteStream;

/// Stands for a store that nobody has reached yet: every call fails with the reason, none waits. Nothing that is done over it
/// can look as if it were saved.
#[derive(Debug, Clone)]
pub(crate) struct Unreachable {
    store: String,
    why: String,
}

impl Unreachable {
    pub(crate) fn new(store: impl Into<String>, why: impl Into<String>) -> Self {
        Self { store: store.into(), why: why.into() }
    }

    fn refuse(&self, operation: &'static str, key: Option<&StoreKey>) -> StoreError {
        let key = key.map_or_else(|| self.store.clone(), StoreKey::to_string);
        StoreError::Other { operation, key, retryable: true, source: self.why.clone().into() }
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.store)
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Store for Unreachable {
    fn capabilities(&self) -> StoreCapabilities {
        StoreCapabilities::full()
    }

    async fn writer(
        &self,
        key: &StoreKey,
        _options: WriteOptions,
    ) -> Result<Box<dyn StoreWriter>, StoreError> {
        Err(self.refuse("write", Some(key)))
    }

    async fn create(&self, key: &StoreKey, _bytes: Bytes) -> Result<(), StoreError> {
        Err(self.refuse("create", Some(key)))
    }

    async fn head(&self, key: &StoreKey) -> Result<ObjectInfo, StoreError> {
        Err(self.refuse("look at", Some(key)))
    }

    async fn read(&self, key: &StoreKey) -> Result<ByteStream<StoreError>, StoreError> {
        Err(self.refuse("read", Some(key)))
    }

    async fn read_range(&self, key: &StoreKey, _range: Range<u64>) -> Result<Bytes, StoreError> {
        Err(self.refuse("read", Some(key)))
    }

    fn list(&self, prefix: Option<&StoreKey>) -> BoxStream<'static, Result<ObjectInfo, StoreError>> {
        stream::iter([Err(self.refuse("list", prefix))]).boxed()
    }

    fn list_keys(&self, prefix: Option<&StoreKey>) -> BoxStream<'static, Result<StoreKey, StoreError>> {
        stream::iter([Err(self.refuse("list", prefix))]).boxed()
    }

    async fn list_dirs(&self, prefix: Option<&StoreKey>) -> Result<Vec<String>, StoreError> {
        Err(self.refuse("list", prefix))
    }

    async fn rename(&self, from: &StoreKey, _to: &StoreKey) -> Result<(), StoreError> {
        Err(self.refuse("rename", Some(from)))
    }

    async fn delete(&self, key: &StoreKey) -> Result<(), StoreError> {
        Err(self.refuse("delete", Some(key)))
    }

    async fn delete_prefix(&self, prefix: &StoreKey) -> Result<(), StoreError> {
        Err(self.refuse("delete", Some(prefix)))
    }

    async fn delete_abandoned(&self, prefix: &StoreKey, _untouched: Duration) -> Result<(), StoreError> {
        Err(self.refuse("tidy up", Some(prefix)))
    }

    fn local_path(&self, _key: &StoreKey) -> Option<PathBuf> {
        None
    }

    async fn space(&self) -> Result<Option<Space>, StoreError> {
        Err(self.refuse("look at the space of", None))
    }

    fn object_lock(&self) -> Option<ObjectLock> {
        None
    }

    async fn lock(
        &self,
        key: &StoreKey,
        _until: Option<DateTime<Utc>>,
    ) -> Result<Option<DateTime<Utc>>, StoreError> {
        Err(self.refuse("lock", Some(key)))
    }

    async fn thaw(&self, key: &StoreKey, _ask: Option<Thaw>) -> Result<Readiness, StoreError> {
        Err(self.refuse("look at", Some(key)))
    }
}
