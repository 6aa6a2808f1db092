//! A store of one's own: any service that keeps bytes under keys. Here it is a map in memory; the comments say what a real
//! one has to see to.
//!
//! ```sh
//! cargo run --package backup-examples --example custom_store
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use backup_core::catalog::Filter;
use backup_core::config::StoreConfig;
use backup_core::engine::BackupRequest;
use backup_core::{
    AdapterRegistry, ByteStream, CHUNK_BYTES, ObjectInfo, Outcome, Space, Store, StoreCapabilities,
    StoreError, StoreKey, StoreRegistry, StoreWriter, WriteOptions,
};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::{self, BoxStream};

/// Bytes under keys.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shelf(Arc<Mutex<BTreeMap<StoreKey, Bytes>>>);

impl Shelf {
    fn map(&self) -> MutexGuard<'_, BTreeMap<StoreKey, Bytes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, key: &StoreKey) -> Result<Bytes, StoreError> {
        self.map().get(key).cloned().ok_or_else(|| StoreError::NotFound { key: key.clone() })
    }

    /// The one place that writes: nothing is ever replaced, and it happens at once or not at all.
    fn put(&self, key: &StoreKey, bytes: Bytes) -> Result<ObjectInfo, StoreError> {
        let mut map = self.map();
        if map.contains_key(key) {
            return Err(StoreError::AlreadyExists { key: key.clone() });
        }
        let info = info(key, &bytes);
        map.insert(key.clone(), bytes);
        Ok(info)
    }

    /// Prefixes count whole segments: `a/b` is not a prefix of `a/bc`.
    fn below(&self, prefix: Option<&StoreKey>) -> Vec<ObjectInfo> {
        let map = self.map();
        map.iter().filter(|(key, _)| is_below(key, prefix)).map(|(key, bytes)| info(key, bytes)).collect()
    }
}

fn is_below(key: &StoreKey, prefix: Option<&StoreKey>) -> bool {
    prefix.is_none_or(|prefix| key.below(prefix).is_some())
}

fn info(key: &StoreKey, bytes: &Bytes) -> ObjectInfo {
    // A real store has an etag. What never changes needs none.
    ObjectInfo { key: key.clone(), bytes: bytes.len() as u64, modified: None, version: Some("1".to_owned()) }
}

impl fmt::Display for Shelf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the shelf")
    }
}

#[async_trait]
impl Store for Shelf {
    fn capabilities(&self) -> StoreCapabilities {
        // Honest: a power cut takes all of it.
        StoreCapabilities::full().with_durable(false)
    }

    async fn writer(&self, key: &StoreKey, _: WriteOptions) -> Result<Box<dyn StoreWriter>, StoreError> {
        // A real store opens a multipart upload here: memory must stay bounded.
        Ok(Box::new(Writer { shelf: self.clone(), key: key.clone(), body: BytesMut::new() }))
    }

    async fn create(&self, key: &StoreKey, bytes: Bytes) -> Result<(), StoreError> {
        // The catalog rests on this being exclusive: in S3, `If-None-Match: *`.
        self.put(key, bytes).map(|_info| ())
    }

    async fn head(&self, key: &StoreKey) -> Result<ObjectInfo, StoreError> {
        Ok(info(key, &self.get(key)?))
    }

    async fn read(&self, key: &StoreKey) -> Result<ByteStream<StoreError>, StoreError> {
        let body = self.get(key)?;
        // A real store compares the length at the end: a cut connection must not look like the end of the object.
        let chunks = (0..body.len()).step_by(CHUNK_BYTES);
        let chunk = move |start: usize| Ok(body.slice(start..body.len().min(start + CHUNK_BYTES)));
        Ok(stream::iter(chunks.map(chunk)).boxed())
    }

    async fn read_range(&self, key: &StoreKey, range: Range<u64>) -> Result<Bytes, StoreError> {
        let body = self.get(key)?;
        match (usize::try_from(range.start), usize::try_from(range.end)) {
            (Ok(start), Ok(end)) if start <= end && end <= body.len() => Ok(body.slice(start..end)),
            _ => Err(StoreError::other("read", key, format!("it has {} bytes, not {range:?}", body.len()))),
        }
    }

    fn list(&self, prefix: Option<&StoreKey>) -> BoxStream<'static, Result<ObjectInfo, StoreError>> {
        stream::iter(self.below(prefix)).map(Ok).boxed()
    }

    fn list_keys(&self, prefix: Option<&StoreKey>) -> BoxStream<'static, Result<StoreKey, StoreError>> {
        stream::iter(self.below(prefix)).map(|info| Ok(info.key)).boxed()
    }

    async fn list_dirs(&self, prefix: Option<&StoreKey>) -> Result<Vec<String>, StoreError> {
        let all = self.below(prefix);
        let dirs: BTreeSet<&str> = all
            .iter()
            .filter_map(|info| prefix.map_or(Some(info.key.as_str()), |prefix| info.key.below(prefix)))
            .filter_map(|rest| rest.split_once('/').map(|(dir, _)| dir))
            .collect();
        Ok(dirs.into_iter().map(str::to_owned).collect())
    }

    async fn rename(&self, from: &StoreKey, to: &StoreKey) -> Result<(), StoreError> {
        let Ok(body) = self.get(from) else {
            // Done before, and interrupted before anybody heard of it.
            return self.get(to).map(|_body| ()).map_err(|_| StoreError::NotFound { key: from.clone() });
        };
        match self.get(to) {
            Ok(there) if there == body => {}
            _ => self.put(to, body).map(|_info| ())?,
        }
        if from == to { Ok(()) } else { self.delete(from).await }
    }

    async fn delete(&self, key: &StoreKey) -> Result<(), StoreError> {
        self.map().remove(key);
        Ok(())
    }

    async fn delete_prefix(&self, prefix: &StoreKey) -> Result<(), StoreError> {
        self.map().retain(|key, _| !is_below(key, Some(prefix)));
        Ok(())
    }

    async fn delete_abandoned(&self, _: &StoreKey, _: Duration) -> Result<(), StoreError> {
        // A real store aborts multipart uploads here that nobody finished.
        Ok(())
    }

    fn local_path(&self, _: &StoreKey) -> Option<PathBuf> {
        None
    }

    async fn space(&self) -> Result<Option<Space>, StoreError> {
        Ok(None)
    }
}

/// Collects the body; only `finish` shows it.
#[derive(Debug)]
struct Writer {
    shelf: Shelf,
    key: StoreKey,
    body: BytesMut,
}

#[async_trait]
impl StoreWriter for Writer {
    async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        self.body.extend_from_slice(&chunk);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<ObjectInfo, StoreError> {
        let Self { shelf, key, body } = *self;
        shelf.put(&key, body.freeze())
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Where `shelf://` URLs lead. With a program of your own: `backup_cli::Cli::new().with_store("shelf", …)`.
pub(crate) fn registry(shelf: &Shelf) -> StoreRegistry {
    let shelf = shelf.clone();
    StoreRegistry::new().with_scheme("shelf", move |_url, _options| {
        let store: Arc<dyn Store> = Arc::new(shelf.clone());
        async { Ok(store) }
    })
}

const CONFIG: &str = "
[store]
url = 'shelf://upper'

[services.notes]
kind = 'files'
paths = ['notes']
";

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    std::fs::create_dir(dir.path().join("notes"))?;
    std::fs::write(dir.path().join("notes/one"), "worth keeping")?;

    let shelf = Shelf::default();
    let place = StoreConfig::new("shelf://upper");
    let store = registry(&shelf).open(&place).await?;
    let adapters = AdapterRegistry::new().with::<backup_adapters::files::FilesConfig>();
    let engine = backup_examples::engine(CONFIG, &adapters, store, dir.path()).await?;

    let report = engine.back_up(&BackupRequest::new("manual".parse()?)).await?;
    assert_eq!(report.outcome(), Outcome::Ok, "{report:?}");
    let listing = engine.catalog().list(&Filter::default()).await?;
    assert!(listing.entries.iter().all(|entry| entry.is_good()) && listing.entries.len() == 1);
    engine.shutdown().await;
    Ok(())
}
