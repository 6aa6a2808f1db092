//! What an adapter hands to the engine: a lazy sequence of named bodies, and the two hooks that end the capture.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use futures::stream::{BoxStream, Stream, StreamExt};

use crate::error::AdapterError;
use crate::id::{ArtifactName, BackupId};
use crate::metadata::{Consistency, Evidence, ExternalRef, Image};

/// A stream of bytes. Chunks may have any size; [`CHUNK_BYTES`] is best. Ends with `None` only when complete.
pub type ByteStream<E> = BoxStream<'static, Result<Bytes, E>>;

/// The chunk size that passes through the pipeline without a copy: that of one compression frame (1 MiB).
pub const CHUNK_BYTES: usize = 1 << 20;

/// One logical thing to store.
#[non_exhaustive]
pub struct Artifact {
    /// Unique in this source; begins the stored file's name.
    pub name: ArtifactName,
    /// Suffix of the stored file before encodings, e.g. `rdb`, `tar`. May be empty.
    pub extension: String,
    /// Facts that a restore needs, e.g. a database's exact name. Written to metadata.json as they are: no secrets.
    pub attributes: BTreeMap<String, serde_json::Value>,
    /// About how many plain bytes will come; for progress and part sizes.
    pub size_hint: Option<u64>,
    /// The data.
    pub body: ArtifactBody,
}

/// The data of an artifact.
#[non_exhaustive]
pub enum ArtifactBody {
    /// Plain bytes. **The end of the stream is a claim of completeness**: a source that cannot prove that it reached
    /// the end (exit status, length, trailer, checksum) must yield `Err` instead of ending.
    Stream(ByteStream<AdapterError>),
    /// Data kept elsewhere, e.g. a snapshot.
    External(ExternalRef),
}

impl fmt::Debug for ArtifactBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(_) => f.write_str("Stream"),
            Self::External(r) => f.debug_tuple("External").field(r).finish(),
        }
    }
}

impl Artifact {
    /// An artifact of plain bytes.
    pub fn stream(
        name: ArtifactName,
        extension: impl Into<String>,
        body: impl Stream<Item = Result<Bytes, AdapterError>> + Send + 'static,
    ) -> Self {
        let body = ArtifactBody::Stream(body.boxed());
        Self { name, extension: extension.into(), attributes: BTreeMap::new(), size_hint: None, body }
    }

    /// An artifact that is kept elsewhere.
    #[must_use]
    pub fn external(name: ArtifactName, reference: ExternalRef) -> Self {
        let body = ArtifactBody::External(reference);
        Self { name, extension: String::new(), attributes: BTreeMap::new(), size_hint: None, body }
    }

    /// Sets the expected length in bytes.
    #[must_use]
    pub fn with_size_hint(mut self, bytes: u64) -> Self {
        self.size_hint = Some(bytes);
        self
    }

    /// Adds a fact.
    #[must_use]
    pub fn with_attribute(mut self, key: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
        self.attributes.insert(key.into(), value.into());
        self
    }
}

impl fmt::Debug for Artifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Artifact")
            .field("name", &self.name)
            .field("size_hint", &self.size_hint)
            .finish_non_exhaustive()
    }
}

/// How the reading of a source ended, told to the `release` of a [`BackupSource`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadOutcome {
    /// Every body was read to its end and stored.
    Complete,
    /// Something failed; nothing will be committed.
    Failed,
    /// The run was cancelled; nothing will be committed.
    Cancelled,
}

/// What became of the backup, told to the `settle` of a [`BackupSource`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settlement {
    /// It is committed and durable: what the service holds for us may be acknowledged or deleted.
    Committed(BackupId),
    /// It will never be committed: what the service holds for us may be deleted.
    Abandoned,
    /// Nobody can tell: the store did not acknowledge the commit, and could not be asked afterwards. The backup may be
    /// listed as good now, or never. What the service holds for us is **neither acknowledged nor deleted**: a listed
    /// backup may need it, and so may the next capture if there is none. It stays under the run's id for
    /// [`reclaim`](crate::ServiceAdapter::reclaim), which the next run of the service on this host calls for this one,
    /// as for one that was killed here.
    Unknown(BackupId),
}

/// What the adapter knows once the capture ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CaptureReport {
    /// The capture mode used, e.g. `stream`.
    pub mode: String,
    /// How far the parts belong to one moment.
    pub consistency: Consistency,
    /// The data is not older than this.
    pub consistent_from: DateTime<Utc>,
    /// The data is not newer than this.
    pub consistent_to: DateTime<Utc>,
    /// How long the service was stopped or paused, in ms.
    pub interruption_ms: u64,
    /// How long writers were locked out, in ms.
    pub lock_ms: u64,
    /// Exit codes of the programs that produced the data.
    pub exit_codes: BTreeMap<String, i64>,
    /// Counts of what was captured.
    pub evidence: Evidence,
    /// The service's version.
    pub service_version: Option<String>,
    /// The service's container image.
    pub image: Option<Image>,
    /// What an operator should know.
    pub warnings: Vec<String>,
    /// Equal fingerprints mean equal content.
    pub fingerprint: Option<String>,
    /// External artifacts are not complete yet: the backup is committed as pending, and good once
    /// [`external_state`](crate::ServiceAdapter::external_state) says that they are.
    pub pending: bool,
    /// Do not commit when the newest good backup of the series has the same fingerprint: mark that one as seen.
    pub only_if_changed: bool,
}

impl CaptureReport {
    /// A report of a capture in `mode` between two moments.
    pub fn new(
        mode: impl Into<String>,
        consistency: Consistency,
        consistent_from: DateTime<Utc>,
        consistent_to: DateTime<Utc>,
    ) -> Self {
        Self {
            mode: mode.into(),
            consistency,
            consistent_from,
            consistent_to,
            interruption_ms: 0,
            lock_ms: 0,
            exit_codes: BTreeMap::new(),
            evidence: Evidence::default(),
            service_version: None,
            image: None,
            warnings: Vec::new(),
            fingerprint: None,
            pending: false,
            only_if_changed: false,
        }
    }
}

type Release = Box<dyn FnOnce(ReadOutcome) -> BoxFuture<'static, Result<CaptureReport, AdapterError>> + Send>;
type Settle = Box<dyn FnOnce(Settlement) -> BoxFuture<'static, Result<(), AdapterError>> + Send>;

/// A running capture: its artifacts, and what must happen when it ends.
///
/// # Contract
/// * Artifact names are unique. The engine reads each body to its end, or drops it, **before** it asks for the next
///   artifact, so that several bodies may come from one sequential stream.
/// * `release` runs exactly once, as soon as the last body ended or was dropped, on success, failure, cancellation and
///   after a panic: afterwards the service is undisturbed. It does not run if the process dies: what it would undo must be found by
///   `reclaim`, and stops and pauses go through
///   [`Interruption`](crate::runtime::Interruption).
/// * `settle` runs exactly once after the commit or its failure, and ends what the service still holds for us (a
///   replication slot, a snapshot on its side), unless nobody knows whether there was a commit
///   ([`Settlement::Unknown`]).
/// * Both run in tasks that the engine tracks, also when the run is cancelled. An error of either is reported; good
///   bytes are committed even if `release` fails *after* having delivered its report. A `release` that returns `Err`
///   for [`ReadOutcome::Complete`] says that the capture cannot be trusted: nothing is committed.
pub struct BackupSource {
    artifacts: BoxStream<'static, Result<Artifact, AdapterError>>,
    release: Release,
    settle: Option<Settle>,
}

impl BackupSource {
    /// A source of `artifacts` that ends with `release`.
    pub fn new<S, R, F>(artifacts: S, release: R) -> Self
    where
        S: Stream<Item = Result<Artifact, AdapterError>> + Send + 'static,
        R: FnOnce(ReadOutcome) -> F + Send + 'static,
        F: Future<Output = Result<CaptureReport, AdapterError>> + Send + 'static,
    {
        Self { artifacts: artifacts.boxed(), release: Box::new(|o| Box::pin(release(o))), settle: None }
    }

    /// A source of one artifact.
    pub fn single<R, F>(artifact: Artifact, release: R) -> Self
    where
        R: FnOnce(ReadOutcome) -> F + Send + 'static,
        F: Future<Output = Result<CaptureReport, AdapterError>> + Send + 'static,
    {
        Self::new(futures::stream::iter([Ok(artifact)]), release)
    }

    /// Adds what happens after the commit or its failure.
    #[must_use]
    pub fn on_settle<F>(mut self, settle: impl FnOnce(Settlement) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<(), AdapterError>> + Send + 'static,
    {
        self.settle = Some(Box::new(|s| Box::pin(settle(s))));
        self
    }

    /// Takes the source apart; for the engine and for wrappers.
    #[must_use]
    pub fn into_parts(self) -> SourceParts {
        SourceParts { artifacts: self.artifacts, release: self.release, settle: self.settle }
    }
}

impl fmt::Debug for BackupSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackupSource").finish_non_exhaustive()
    }
}

/// The parts of a [`BackupSource`].
pub struct SourceParts {
    /// The artifacts, lazily.
    pub artifacts: BoxStream<'static, Result<Artifact, AdapterError>>,
    /// Ends the capture.
    pub release: Release,
    /// Ends what the service holds for us.
    pub settle: Option<Settle>,
}

impl fmt::Debug for SourceParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceParts").finish_non_exhaustive()
    }
}
