//! A store of two: one prefix lies elsewhere.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use futures::stream::BoxStream;

use super::{
    ObjectInfo, ObjectLock, Readiness, Space, Store, StoreCapabilities, StoreWriter, Thaw, WriteOptions,
};
use crate::error::StoreError;
use crate::id::StoreKey;
use crate::source::ByteStream;

/// What is at and below one prefix is in a second store, under the same keys; everything else in the first.
///
/// For leases: they come and go, which in a bucket that locks all that is written leaves a locked version of each.
#[derive(Debug, Clone)]
pub struct SplitStore {
    main: Arc<dyn Store>,
    prefix: StoreKey,
    other: Arc<dyn Store>,
}

impl SplitStore {
    /// `main`, but for what is below `prefix`.
    #[must_use]
    pub fn new(main: Arc<dyn Store>, prefix: StoreKey, other: Arc<dyn Store>) -> Self {
        Self { main, prefix, other }
    }

    /// `main`, but for its leases.
    #[must_use]
    pub fn with_leases_in(main: Arc<dyn Store>, other: Arc<dyn Store>) -> Self {
        Self::new(main, crate::catalog::leases_key(), other)
    }

    fn of(&self, key: &StoreKey) -> &dyn Store {
        if *key == self.prefix || key.below(&self.prefix).is_some() {
            self.other.as_ref()
        } else {
            self.main.as_ref()
        }
    }

    /// Whether `prefix` holds both what is here and what is there.
    fn holds_both(&self, prefix: Option<&StoreKey>) -> bool {
        prefix.is_none_or(|prefix| self.prefix.below(prefix).is_some())
    }
}

impl fmt::Display for SplitStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.main.fmt(f)
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Store for SplitStore {
    fn capabilities(&self) -> StoreCapabilities {
        let (main, other) = (self.main.capabilities(), self.other.capabilities());
        main.with_durable(main.durable && other.durable)
            .with_exclusive_create(main.exclusive_create && other.exclusive_create)
    }

    async fn writer(
        &self,
        key: &StoreKey,
        options: WriteOptions,
    ) -> Result<Box<dyn StoreWriter>, StoreError> {
        self.of(key).writer(key, options).await
    }

    async fn create(&self, key: &StoreKey, bytes: Bytes) -> Result<(), StoreError> {
        self.of(key).create(key, bytes).await
    }

    async fn head(&self, key: &StoreKey) -> Result<ObjectInfo, StoreError> {
        self.of(key).head(key).await
    }

    async fn read(&self, key: &StoreKey) -> Result<ByteStream<StoreError>, StoreError> {
        self.of(key).read(key).await
    }

    async fn read_range(&self, key: &StoreKey, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.of(key).read_range(key, range).await
    }

    fn list(&self, prefix: Option<&StoreKey>) -> BoxStream<'static, Result<ObjectInfo, StoreError>> {
        match prefix {
            Some(prefix) if !self.holds_both(Some(prefix)) => self.of(prefix).list(Some(prefix)),
            _ => self.main.list(prefix).chain(self.other.list(Some(&self.prefix))).boxed(),
        }
    }

    fn list_keys(&self, prefix: Option<&StoreKey>) -> BoxStream<'static, Result<StoreKey, StoreError>> {
        match prefix {
            Some(prefix) if !self.holds_both(Some(prefix)) => self.of(prefix).list_keys(Some(prefix)),
            _ => self.main.list_keys(prefix).chain(self.other.list_keys(Some(&self.prefix))).boxed(),
        }
    }

    async fn list_dirs(&self, prefix: Option<&StoreKey>) -> Result<Vec<String>, StoreError> {
        match prefix {
            Some(prefix) if !self.holds_both(Some(prefix)) => self.of(prefix).list_dirs(Some(prefix)).await,
            _ => {
                let mut dirs = self.main.list_dirs(prefix).await?;
                dirs.extend(self.other.list_dirs(prefix).await?);
                dirs.sort_unstable();
                dirs.dedup();
                Ok(dirs)
            }
        }
    }

    async fn rename(&self, from: &StoreKey, to: &StoreKey) -> Result<(), StoreError> {
        if std::ptr::addr_eq(self.of(from), self.of(to)) {
            return self.of(from).rename(from, to).await;
        }
        Err(StoreError::other("rename", from, format!("`{to}` is in another store")))
    }

    async fn delete(&self, key: &StoreKey) -> Result<(), StoreError> {
        self.of(key).delete(key).await
    }

    async fn delete_prefix(&self, prefix: &StoreKey) -> Result<(), StoreError> {
        if self.holds_both(Some(prefix)) {
            self.other.delete_prefix(&self.prefix).await?;
            return self.main.delete_prefix(prefix).await;
        }
        self.of(prefix).delete_prefix(prefix).await
    }

    async fn delete_abandoned(&self, prefix: &StoreKey, untouched: Duration) -> Result<(), StoreError> {
        if self.holds_both(Some(prefix)) {
            self.other.delete_abandoned(&self.prefix, untouched).await?;
            return self.main.delete_abandoned(prefix, untouched).await;
        }
        self.of(prefix).delete_abandoned(prefix, untouched).await
    }

    fn local_path(&self, key: &StoreKey) -> Option<PathBuf> {
        self.of(key).local_path(key)
    }

    async fn space(&self) -> Result<Option<Space>, StoreError> {
        self.main.space().await
    }

    fn object_lock(&self) -> Option<ObjectLock> {
        self.main.object_lock()
    }

    async fn lock(
        &self,
        key: &StoreKey,
        until: Option<DateTime<Utc>>,
    ) -> Result<Option<DateTime<Utc>>, StoreError> {
        self.of(key).lock(key, until).await
    }

    async fn thaw(&self, key: &StoreKey, ask: Option<Thaw>) -> Result<Readiness, StoreError> {
        self.of(key).thaw(key, ask).await
    }
}
