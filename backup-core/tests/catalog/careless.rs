//! Stores that do not keep what they promise.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backup_core::catalog::Catalog;
use backup_core::testkit::ManualClock;
use backup_core::{
    BackupError, ByteStream, Clock, MemoryStore, ObjectInfo, Space, Store, StoreCapabilities, StoreError,
    StoreKey, StoreWriter, WriteOptions,
};
use bytes::Bytes;
use futures::TryStreamExt as _;
use futures::stream::BoxStream;

/// A store that claims to create once, and replaces.
#[derive(Debug)]
struct Replacing(MemoryStore, bool);

impl std::fmt::Display for Replacing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("s3://careless")
    }
}

#[async_trait]
impl Store for Replacing {
    fn capabilities(&self) -> StoreCapabilities {
        StoreCapabilities::full().with_exclusive_create(self.1)
    }
    async fn create(&self, key: &StoreKey, bytes: Bytes) -> Result<(), StoreError> {
        self.0.delete(key).await?;
        self.0.create(key, bytes).await
    }
    async fn writer(
        &self,
        key: &StoreKey,
        options: WriteOptions,
    ) -> Result<Box<dyn StoreWriter>, StoreError> {
        self.0.writer(key, options).await
    }
    async fn head(&self, key: &StoreKey) -> Result<ObjectInfo, StoreError> {
        self.0.head(key).await
    }
    async fn read(&self, key: &StoreKey) -> Result<ByteStream<StoreError>, StoreError> {
        self.0.read(key).await
    }
    async fn read_range(&self, key: &StoreKey, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.0.read_range(key, range).await
    }
    fn list(&self, prefix: Option<&StoreKey>) -> BoxStream<'static, Result<ObjectInfo, StoreError>> {
        self.0.list(prefix)
    }
    fn list_keys(&self, prefix: Option<&StoreKey>) -> BoxStream<'static, Result<StoreKey, StoreError>> {
        self.0.list_keys(prefix)
    }
    async fn list_dirs(&self, prefix: Option<&StoreKey>) -> Result<Vec<String>, StoreError> {
        self.0.list_dirs(prefix).await
    }
    async fn rename(&self, from: &StoreKey, to: &StoreKey) -> Result<(), StoreError> {
        self.0.rename(from, to).await
    }
    async fn delete(&self, key: &StoreKey) -> Result<(), StoreError> {
        self.0.delete(key).await
    }
    async fn delete_prefix(&self, prefix: &StoreKey) -> Result<(), StoreError> {
        self.0.delete_prefix(prefix).await
    }
    async fn delete_abandoned(&self, prefix: &StoreKey, untouched: Duration) -> Result<(), StoreError> {
        self.0.delete_abandoned(prefix, untouched).await
    }
    fn local_path(&self, key: &StoreKey) -> Option<PathBuf> {
        self.0.local_path(key)
    }
    async fn space(&self) -> Result<Option<Space>, StoreError> {
        self.0.space().await
    }
}

#[tokio::test]
async fn a_store_that_replaces_is_not_marked_unless_it_says_so() {
    let init = |store| {
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::at("20260309_043820"));
        Catalog::init(store, clock)
    };
    let store = Arc::new(Replacing(MemoryStore::new(), true));
    let e = init(Arc::clone(&store) as Arc<dyn Store>).await.unwrap_err();
    assert!(matches!(&e, BackupError::Refused(what) if what.contains("If-None-Match")), "{e}");
    let left: Vec<_> = store.list_keys(None).try_collect().await.unwrap();
    assert_eq!(left, [] as [StoreKey; 0], "nothing of the attempt stays");

    let (_, new) = init(Arc::new(Replacing(MemoryStore::new(), false))).await.unwrap();
    assert!(new);
}
