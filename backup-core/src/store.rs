//! [`Store`] and [`StoreWriter`]: where bytes go.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use serde::Serialize;

use crate::error::StoreError;
use crate::id::{Interval, StoreKey};
use crate::source::ByteStream;

mod local;
mod memory;
mod split;
mod unreachable;

pub use local::LocalStore;
pub use memory::MemoryStore;
pub use split::SplitStore;
pub(crate) use unreachable::Unreachable;

/// Keeps bytes under keys. Knows nothing about backups: [`Catalog`](crate::Catalog) does.
///
/// # Contract
/// Implemented by authors of stores; called by the catalog and the pipeline.
///
/// * Prefixes match whole segments: `a/b` matches `a/b/c`, not `a/bc`.
/// * **All or nothing:** no reader or lister sees a key before `create` or [`StoreWriter::finish`] returned `Ok`, or was
///   about to. A failed, aborted or dropped write is never visible.
/// * **Durable on return** where [`StoreCapabilities::durable`] says so: the data survives a power cut.
/// * Read-after-write and list-after-write consistent.
/// * A full, read-only or broken medium becomes the matching [`StoreError`], never a panic or a silent loss.
/// * Wrappers implement every method and carry `#[deny(clippy::missing_trait_methods)]`.
///
/// The testkit's `store_conformance_tests!` executes these clauses.
#[async_trait]
pub trait Store: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// What this store guarantees.
    fn capabilities(&self) -> StoreCapabilities;

    /// Opens a large write; replaces nothing: `finish` fails with `AlreadyExists` if the key is taken, where the medium
    /// can tell (the catalog never writes a data key twice).
    async fn writer(&self, key: &StoreKey, options: WriteOptions)
    -> Result<Box<dyn StoreWriter>, StoreError>;

    /// Writes a small object (at most 1 MiB) if the key is free. Of any number of concurrent calls exactly one wins.
    ///
    /// # Errors
    /// `AlreadyExists` if the key is taken.
    async fn create(&self, key: &StoreKey, bytes: Bytes) -> Result<(), StoreError>;

    /// Size and version of an object.
    ///
    /// # Errors
    /// `NotFound`.
    async fn head(&self, key: &StoreKey) -> Result<ObjectInfo, StoreError>;

    /// The whole object, in chunks of about 1 MiB. A read that ends early is an `Err` in the stream, never a clean end.
    ///
    /// # Errors
    /// `NotFound`.
    async fn read(&self, key: &StoreKey) -> Result<ByteStream<StoreError>, StoreError>;

    /// A part of an object. `range` must lie within it.
    ///
    /// # Errors
    /// `NotFound`; `Other` for a range beyond the end.
    async fn read_range(&self, key: &StoreKey, range: Range<u64>) -> Result<Bytes, StoreError>;

    /// Every object below `prefix` (`None`: all), recursively, in any order. A missing prefix is an empty stream; an
    /// error means that the listing is not complete.
    fn list(&self, prefix: Option<&StoreKey>) -> BoxStream<'static, Result<ObjectInfo, StoreError>>;

    /// Every key below `prefix`, recursively, in any order: the cheapest listing that the store can do.
    fn list_keys(&self, prefix: Option<&StoreKey>) -> BoxStream<'static, Result<StoreKey, StoreError>>;

    /// Names of the directories right below `prefix` that hold at least one object, sorted.
    async fn list_dirs(&self, prefix: Option<&StoreKey>) -> Result<Vec<String>, StoreError>;

    /// Moves a small object. Locally a rename, which needs no free space; elsewhere create, then delete. Idempotent:
    /// success if `from` is gone and `to` is there.
    ///
    /// # Errors
    /// `NotFound` if neither is there.
    async fn rename(&self, from: &StoreKey, to: &StoreKey) -> Result<(), StoreError>;

    /// Removes one object. Idempotent: a missing key is success.
    async fn delete(&self, key: &StoreKey) -> Result<(), StoreError>;

    /// Removes everything below `prefix`, abandoned partial writes included. Not atomic; idempotent, safe to run again.
    async fn delete_prefix(&self, prefix: &StoreKey) -> Result<(), StoreError>;

    /// Removes partial writes below `prefix` that were never finished and were not touched for `untouched`, with what a
    /// store keeps for them alone (directories in which nothing else is), and nothing else. Idempotent. For directories whose writers are gone: zero removes them all.
    async fn delete_abandoned(&self, prefix: &StoreKey, untouched: Duration) -> Result<(), StoreError>;

    /// Where an object lies on this host's disk, if it does.
    fn local_path(&self, key: &StoreKey) -> Option<PathBuf>;

    /// Free and total bytes of the medium; `None` where that has no meaning.
    async fn space(&self) -> Result<Option<Space>, StoreError>;

    /// Whether what is committed here is to be locked against deletion for a while, by anybody, and how; `None`: it is not.
    fn object_lock(&self) -> Option<ObjectLock> {
        None
    }

    /// Locks an object against deletion until `until`, or leaves a lock that lasts longer; with `None` changes nothing.
    /// Returns until when the object is locked now.
    ///
    /// # Errors
    /// `NotFound`; `Other` where the medium has no locks, `PermissionDenied`.
    async fn lock(
        &self,
        key: &StoreKey,
        until: Option<DateTime<Utc>>,
    ) -> Result<Option<DateTime<Utc>>, StoreError> {
        let _needs_none = until;
        Err(StoreError::other("lock", key, "this store cannot lock what it holds"))
    }

    /// Whether an object can be read now. Where it lies in an archive that does not answer at once, and `ask` is given, asks
    /// for it to be made readable.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`.
    async fn thaw(&self, key: &StoreKey, ask: Option<Thaw>) -> Result<Readiness, StoreError> {
        let _not_needed = ask;
        self.head(key).await.map(|_there| Readiness::Now)
    }
}

/// A write in progress: invisible until [`finish`](Self::finish).
///
/// `finish` and `abort` consume the writer, so that "write after finish" does not compile. Dropped without either, it
/// leaves nothing visible, but maybe invisible parts, which `delete_prefix` removes.
#[async_trait]
pub trait StoreWriter: fmt::Debug + Send {
    /// Takes the next bytes: `Ok` means that every one was accepted. Slow media hold the caller back here.
    /// After a dropped call only `abort` is allowed.
    async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError>;

    /// Makes the object visible, and durable where the store promises that.
    async fn finish(self: Box<Self>) -> Result<ObjectInfo, StoreError>;

    /// Gives the write up and removes its parts.
    async fn abort(self: Box<Self>) -> Result<(), StoreError>;
}

/// What a store guarantees beyond the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreCapabilities {
    /// What was written survives a power cut.
    pub durable: bool,
    /// `create` is exclusive against other processes and hosts.
    pub exclusive_create: bool,
}

impl StoreCapabilities {
    /// Durable and exclusive.
    #[must_use]
    pub const fn full() -> Self {
        Self { durable: true, exclusive_create: true }
    }

    /// Sets whether what was written survives a power cut.
    #[must_use]
    pub const fn with_durable(mut self, durable: bool) -> Self {
        self.durable = durable;
        self
    }

    /// Sets whether `create` is exclusive against other processes and hosts.
    #[must_use]
    pub const fn with_exclusive_create(mut self, exclusive: bool) -> Self {
        self.exclusive_create = exclusive;
        self
    }
}

/// How to bring back what lies in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thaw {
    /// For how many days it is to stay readable.
    pub days: u32,
    /// How fast, which has its price.
    pub speed: ThawSpeed,
}

/// How fast an archive is to answer; the words are those of S3.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ThawSpeed {
    /// Within minutes, where the archive can.
    Expedited,
    /// Within hours.
    #[default]
    Standard,
    /// Within a day or two, for the least money.
    Bulk,
}

/// Whether an object can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Readiness {
    /// At once.
    Now,
    /// It was asked for, and is on its way.
    Underway,
    /// It lies in an archive.
    Archived,
}

/// How what is committed to a store becomes locked against deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ObjectLock {
    /// By the store itself, which knows for how long.
    OfTheStore,
    /// By [`Store::lock`], for so long after the commit.
    For(Duration),
}

/// What an object is for; decides its storage class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Role {
    /// Small, read often: metadata, facts, leases. Always in the fastest class.
    Control,
    /// Large, read seldom: artifacts.
    #[default]
    Data,
}

/// How to write an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteOptions {
    /// What it is for.
    pub role: Role,
    /// About how many bytes will come; decides part sizes. May be wrong.
    pub size_hint: Option<u64>,
    /// The interval of the backup that it is a part of: storage classes may differ by it.
    pub interval: Option<Interval>,
}

impl WriteOptions {
    /// Data of about `size_hint` bytes.
    #[must_use]
    pub fn data(size_hint: Option<u64>) -> Self {
        Self { role: Role::Data, size_hint, interval: None }
    }

    /// The same for what is small and read often.
    #[must_use]
    pub fn with_role(self, role: Role) -> Self {
        Self { role, ..self }
    }

    /// The same for a backup of `interval`.
    #[must_use]
    pub fn of_interval(self, interval: &Interval) -> Self {
        Self { interval: Some(interval.clone()), ..self }
    }
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its key.
    pub key: StoreKey,
    /// Its length in bytes.
    pub bytes: u64,
    /// When it was written, by the store's clock.
    pub modified: Option<DateTime<Utc>>,
    /// Changes whenever the object does (an etag, or inode and times).
    pub version: Option<String>,
}

/// Room on a medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that may still be written.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}
