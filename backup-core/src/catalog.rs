//! [`Catalog`]: the backups in a store, and the protocol that keeps them whole.
//!
//! ```text
//! <root>/store.json                                 marks the store
//! <root>/<service>/<interval>/<YYYYMMDD_HHMMSS>/    one backup
//!     run.json          first, create-only: reserves the directory
//!     …                 stored files, SHA256SUMS, RESTORE.md
//!     metadata.json     last, create-only: the commit
//!     <fact>-<ts>….json later facts, create-only
//!     tombstone.json    what metadata.json becomes while the backup is deleted
//! ```
//!
//! Whoever creates `metadata.json` decides: the writer commits, or the sweeper aborts, never both. All of it works with
//! three guarantees of a [`Store`]: `create` is exclusive, unfinished writes are invisible, listings are consistent.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::error::{BackupError, StoreError};
use crate::id::{BackupId, Interval, ServiceName, StoreKey, Timestamp};
use crate::metadata::{Metadata, Reservation};
use crate::store::{Store, Unreachable};

mod cache;
mod copies;
mod delete;
mod draft;
mod facts;
mod judge;
mod lease;
mod legacy;
mod links;
mod listing;
mod locks;
mod probe;

pub(crate) use copies::{Adopted, Pin};
pub use delete::{DeleteReport, PurgeExternal};
pub use draft::Draft;
pub use facts::{Fact, FactKind, VerifyLevel};
pub use lease::Lease;
pub use legacy::{LegacyDir, LegacyFile};
pub use listing::{BackupState, Entry, Filter, Listing, Summary};

/// Names of the protocol's own files.
pub(crate) const METADATA: &str = "metadata.json";
pub(crate) const RUN: &str = "run.json";
pub(crate) const TOMBSTONE: &str = "tombstone.json";
/// The file with the SHA-256 of the stored files, in `sha256sum -c` format.
pub const SHA256SUMS: &str = "SHA256SUMS";
/// The file with the instructions for a restore by hand.
pub const RESTORE_MD: &str = "RESTORE.md";
/// Name of the file with what would tell of an encrypted backup's contents.
pub const PRIVATE: &str = "private.json.age";

/// Control files are small; a larger one is not ours.
const CONTROL_BYTES: u64 = 16 << 20;

/// `store.json`: marks a directory or prefix as a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreMark {
    /// Tells stores apart.
    pub id: String,
    /// Version of the layout; 1 today.
    pub layout: u32,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

const LAYOUT: u32 = 1;

/// The backups in one store.
#[derive(Debug, Clone)]
pub struct Catalog {
    store: Arc<dyn Store>,
    mark: StoreMark,
    clock: Arc<dyn Clock>,
    cache: Option<std::path::PathBuf>,
}

impl Catalog {
    /// Marks `store` as a store, unless it is one. Returns the catalog, and whether the mark is new.
    ///
    /// # Errors
    /// [`BackupError::Refused`] if the store claims that its `create` is exclusive, and a second one replaced the first;
    /// [`BackupError::Store`].
    pub async fn init(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Result<(Self, bool), BackupError> {
        let key = mark_key();
        if store.head(&key).await.is_err() {
            probe::exclusive_create(store.as_ref()).await?;
        }
        let mark =
            StoreMark { id: uuid::Uuid::new_v4().to_string(), layout: LAYOUT, created_at: clock.now() };
        let created = match draft::create_or_same(store.as_ref(), &key, json(&mark)?).await {
            Ok(()) => true,
            Err(e) if e.is_already_exists() => false,
            Err(e) => return Err(BackupError::store(format!("mark {store} as a store"), e)),
        };
        Ok((Self::open(store, clock).await?, created))
    }

    /// Opens the catalog of a marked store.
    ///
    /// # Errors
    /// [`BackupError::Refused`] if there is no `store.json`: an unmounted disk is not a store.
    pub async fn open(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Result<Self, BackupError> {
        let key = mark_key();
        let text = match read_small(store.as_ref(), &key).await {
            Ok(text) => text,
            Err(StoreError::NotFound { .. }) => {
                return Err(BackupError::Refused(format!(
                    "{store} is not a backup store (no store.json): mount its disk, or make a new store there with `backup init`"
                )));
            }
            Err(e) => return Err(BackupError::store(format!("open {store}"), e)),
        };
        let mark: StoreMark = serde_json::from_slice(&text)
            .map_err(|e| BackupError::store(format!("open {store}"), StoreError::other("read", &key, e)))?;
        if mark.layout > LAYOUT {
            return Err(BackupError::Refused(format!(
                "{store} has layout {}, this program knows {LAYOUT}: use a newer version",
                mark.layout
            )));
        }
        Ok(Self { store, mark, clock, cache: None })
    }

    /// A catalog for as long as its store cannot be reached, for what must be done all the same: everything that needs the
    /// store fails at once, and says `why`. It has no id.
    #[must_use]
    pub fn unreachable(store: impl Into<String>, why: impl Into<String>, clock: Arc<dyn Clock>) -> Self {
        let mark = StoreMark { id: String::new(), layout: LAYOUT, created_at: clock.now() };
        Self { store: Arc::new(Unreachable::new(store, why)), mark, clock, cache: None }
    }

    /// Keeps a cache of listings in `dir`, a folder of the state directory.
    #[must_use]
    pub fn with_cache(mut self, dir: std::path::PathBuf) -> Self {
        self.cache = Some(dir);
        self
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The store's id.
    #[must_use]
    pub fn store_id(&self) -> &str {
        &self.mark.id
    }

    /// Reserves a directory for a new backup: named by now, or one second after the newest, whichever is later, so that
    /// a clock that goes backwards never makes a new backup look old.
    ///
    /// # Errors
    /// [`BackupError::Store`].
    pub async fn reserve(
        &self,
        service: &ServiceName,
        interval: &Interval,
        reservation: Reservation,
    ) -> Result<Draft, BackupError> {
        let what = || format!("reserve a backup of `{service}`");
        let series = StoreKey::new(format!("{service}/{interval}"))
            .map_err(|e| BackupError::Refused(e.to_string()))?;
        let names = self.store.list_dirs(Some(&series)).await.map_err(|e| BackupError::store(what(), e))?;
        let newest = names.iter().filter_map(|n| n.parse::<Timestamp>().ok()).max();
        let now = Timestamp::new(self.clock.now());
        let mut timestamp = newest.map_or(now, |newest| now.max(newest.next()));
        // Another process may reserve at the same moment: the next second is as good.
        loop {
            let id = BackupId { service: service.clone(), interval: interval.clone(), timestamp };
            match draft::create_or_same(self.store.as_ref(), &file(&id, RUN), json(&reservation)?).await {
                Ok(()) => return Ok(Draft::new(self.clone(), id, reservation)),
                Err(e) if e.is_already_exists() => timestamp = timestamp.next(),
                Err(e) => return Err(BackupError::store(what(), e)),
            }
        }
    }

    /// The whole metadata of a committed backup, read from the store.
    ///
    /// # Errors
    /// [`BackupError::Damaged`] if it cannot be right; [`BackupError::Refused`] if a newer version of this program is
    /// needed; [`BackupError::Store`].
    pub async fn metadata(&self, id: &BackupId) -> Result<Metadata, BackupError> {
        Ok(self.metadata_text(id).await?.1)
    }

    /// The same with the bytes that it was read from.
    pub(crate) async fn metadata_text(&self, id: &BackupId) -> Result<(Bytes, Metadata), BackupError> {
        let text = self.read_file(id, METADATA).await?;
        let metadata = judge::parse_metadata(id, &text).map_err(|why| match why.newer {
            true => BackupError::Refused(format!("{id}: {}", why.reason)),
            false => BackupError::Damaged { id: id.clone(), file: METADATA.to_owned(), what: why.reason },
        })?;
        Ok((text, metadata))
    }

    /// Whether a backup is there: committed, and not being deleted.
    ///
    /// # Errors
    /// [`BackupError::Store`].
    pub async fn exists(&self, id: &BackupId) -> Result<bool, BackupError> {
        match self.store.head(&file(id, METADATA)).await {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(e) => Err(BackupError::store(format!("look at {id}"), e)),
        }
    }

    /// A small file of a backup.
    ///
    /// # Errors
    /// [`BackupError::Store`].
    pub async fn read_file(&self, id: &BackupId, name: &str) -> Result<Bytes, BackupError> {
        let key = id.file(name).map_err(|e| BackupError::Refused(format!("{id}: {e}")))?;
        read_small(self.store.as_ref(), &key).await.map_err(|e| BackupError::store(format!("read {id}"), e))
    }

    /// Writes the report of a run to `.runs/`.
    ///
    /// # Errors
    /// [`BackupError::Store`].
    pub async fn write_report(
        &self,
        run: &crate::RunId,
        report: &(impl Serialize + Sync),
    ) -> Result<(), BackupError> {
        let key = report_key(run);
        self.store
            .create(&key, json(report)?)
            .await
            .map_err(|e| BackupError::store(format!("write the report of run {run}"), e))
    }

    /// The report of a run, as it was written.
    ///
    /// # Errors
    /// [`BackupError::Store`] with `NotFound` for an unknown run.
    pub async fn read_report(&self, run: &crate::RunId) -> Result<Bytes, BackupError> {
        let what = format!("read the report of run {run}");
        read_small(self.store.as_ref(), &report_key(run)).await.map_err(|e| BackupError::store(what, e))
    }

    /// The runs with a report, newest first.
    ///
    /// # Errors
    /// [`BackupError::Store`].
    pub async fn reports(&self) -> Result<Vec<crate::RunId>, BackupError> {
        let keys: Vec<StoreKey> = self
            .store
            .list_keys(Some(&runs_key()))
            .try_collect()
            .await
            .map_err(|e| BackupError::store("list the reports", e))?;
        let mut runs: Vec<crate::RunId> =
            keys.iter().filter_map(|k| k.file_name().strip_suffix(".json")?.parse().ok()).collect();
        runs.sort();
        runs.reverse();
        Ok(runs)
    }
}

fn fixed_key(text: &'static str) -> StoreKey {
    StoreKey::new(text).expect("a literal without hostile parts")
}

fn mark_key() -> StoreKey {
    fixed_key("store.json")
}

fn runs_key() -> StoreKey {
    fixed_key(".runs")
}

pub(crate) fn leases_key() -> StoreKey {
    fixed_key(".leases")
}

fn report_key(run: &crate::RunId) -> StoreKey {
    runs_key().join(&format!("{run}.json")).expect("a run id is a plain name")
}

/// The key of one of the protocol's own files.
fn file(id: &BackupId, name: &'static str) -> StoreKey {
    id.file(name).expect("a literal file name")
}

pub(crate) fn json(value: &impl Serialize) -> Result<Bytes, BackupError> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|e| BackupError::Refused(format!("cannot describe it as JSON: {e}")))?;
    text.push(b'\n');
    Ok(text.into())
}

/// Reads a control file, refusing one that is too large to be one.
async fn read_small(store: &dyn Store, key: &StoreKey) -> Result<Bytes, StoreError> {
    let mut stream = store.read(key).await?;
    let mut text = BytesMut::new();
    while let Some(chunk) = stream.try_next().await? {
        if (text.len() + chunk.len()) as u64 > CONTROL_BYTES {
            return Err(StoreError::other("read", key, "it is larger than any file of its kind"));
        }
        text.extend_from_slice(&chunk);
    }
    Ok(text.freeze())
}
