//! Errors of the library.
//!
//! `Display` is one line that names the operation and the object; the cause is in `source()`, never repeated in the
//! text. Print the whole chain with [`chain`].

use std::error::Error;
use std::fmt::Write as _;
use std::io;

use crate::id::{BackupId, InvalidId, ServiceName, StoreKey};

mod advice;

pub use advice::{Advice, advice};

/// Any cause.
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// `error: cause: deeper cause`, on one line. Texts that repeat what was already said are left out.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut out = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !out.ends_with(&text) {
            // Writing to a String cannot fail.
            let _infallible = write!(out, ": {text}");
        }
        next = cause.source();
    }
    out
}

/// What kind of trouble an adapter met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdapterErrorKind {
    /// The configuration cannot work.
    InvalidConfig,
    /// The service does not answer; may pass.
    Unavailable,
    /// A deadline passed.
    Timeout,
    /// A right is missing; the message names it.
    PermissionDenied,
    /// What was asked for is not there.
    NotFound,
    /// This adapter cannot do that.
    Unsupported,
    /// Bytes are not what they should be.
    Corrupt,
    /// The target is in use, or holds what would be lost.
    Conflict,
    /// The data kept changing while it was read.
    Changed,
    /// No room left.
    NoSpace,
    /// The run was cancelled.
    Cancelled,
    /// Anything else.
    Other,
}

/// The error of adapters: a kind, one line, and the cause.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct AdapterError {
    kind: AdapterErrorKind,
    message: String,
    #[source]
    source: Option<BoxError>,
}

impl AdapterError {
    /// An error with `message`: a lower-case fragment that names the operation and the object.
    pub fn new(kind: AdapterErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// An I/O error while doing `what`; the kind follows from the error.
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::NotFound => AdapterErrorKind::NotFound,
            io::ErrorKind::PermissionDenied => AdapterErrorKind::PermissionDenied,
            io::ErrorKind::TimedOut => AdapterErrorKind::Timeout,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => AdapterErrorKind::NoSpace,
            _ => AdapterErrorKind::Other,
        };
        Self::new(kind, what).with_source(source)
    }

    /// [`AdapterErrorKind::Unsupported`].
    pub fn unsupported(what: impl Into<String>) -> Self {
        Self::new(AdapterErrorKind::Unsupported, what)
    }

    /// [`AdapterErrorKind::Corrupt`].
    pub fn corrupt(what: impl Into<String>) -> Self {
        Self::new(AdapterErrorKind::Corrupt, what)
    }

    /// [`AdapterErrorKind::Cancelled`].
    #[must_use]
    pub fn cancelled() -> Self {
        Self::new(AdapterErrorKind::Cancelled, "cancelled")
    }

    /// What kind of trouble this is.
    #[must_use]
    pub fn kind(&self) -> AdapterErrorKind {
        self.kind
    }
}

/// The error of stores. `Catalog` decides by variant; each names the key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Nothing is stored under the key.
    #[error("`{key}` is not in the store")]
    NotFound {
        /// The key asked for.
        key: StoreKey,
    },
    /// `create` lost: the key exists already.
    #[error("`{key}` exists already")]
    AlreadyExists {
        /// The key that was to be created.
        key: StoreKey,
    },
    /// A right is missing.
    #[error("not allowed to {operation} `{key}`")]
    PermissionDenied {
        /// What was tried: a verb.
        operation: &'static str,
        /// The object of it.
        key: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// No room left. What is stored already is intact; `prune` works on a full disk.
    #[error("no space left to {operation} `{key}`: free some, or run `backup prune`")]
    NoSpace {
        /// What was tried: a verb.
        operation: &'static str,
        /// The object of it.
        key: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// The root is not a store, or is not there.
    #[error("{message}")]
    NotAStore {
        /// What is wrong and what to do.
        message: String,
    },
    /// The store cannot do that.
    #[error("{store} cannot {operation}")]
    Unsupported {
        /// Which store.
        store: String,
        /// What was asked: a verb phrase.
        operation: &'static str,
    },
    /// Anything else.
    #[error("cannot {operation} `{key}`")]
    Other {
        /// What was tried: a verb.
        operation: &'static str,
        /// The object of it.
        key: String,
        /// Whether trying again may help.
        retryable: bool,
        /// The cause.
        #[source]
        source: BoxError,
    },
}

impl StoreError {
    /// Maps an I/O error of `operation` on `key` to the variant that says most.
    #[must_use]
    pub fn io(operation: &'static str, key: &StoreKey, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound { key: key.clone() },
            io::ErrorKind::AlreadyExists => Self::AlreadyExists { key: key.clone() },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::PermissionDenied { operation, key: key.to_string(), source: source.into() }
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { operation, key: key.to_string(), source: source.into() }
            }
            _ => Self::Other { operation, key: key.to_string(), retryable: false, source: source.into() },
        }
    }

    /// Any other failure of `operation` on `key`.
    pub fn other(operation: &'static str, key: &StoreKey, source: impl Into<BoxError>) -> Self {
        Self::Other { operation, key: key.to_string(), retryable: false, source: source.into() }
    }

    /// Whether this is [`StoreError::NotFound`].
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether this is [`StoreError::AlreadyExists`].
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::AlreadyExists { .. })
    }
}

/// What the user wrote cannot be used. Exit code 2 in the command line.
#[derive(Debug, thiserror::Error)]
#[error("{}{message}", .place.as_ref().map(|p| format!("{p}: ")).unwrap_or_default())]
pub struct ConfigError {
    place: Option<String>,
    message: String,
    hint: Option<String>,
}

impl ConfigError {
    /// An error that says what is wrong and what is allowed.
    pub fn new(message: impl Into<String>) -> Self {
        Self { place: None, message: message.into(), hint: None }
    }

    /// Says where: a file, or a key such as `services.redis.container`.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Self {
        let outer = place.into();
        self.place = Some(match self.place {
            Some(inner) => format!("{outer}: {inner}"),
            None => outer,
        });
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What to do, if it is known.
    #[must_use]
    pub fn help(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl From<InvalidId> for ConfigError {
    fn from(e: InvalidId) -> Self {
        Self::new(e.to_string())
    }
}

/// What the engine was doing when an adapter failed; completes "failed to …".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Opening the capture.
    Open,
    /// Reading the data.
    Read,
    /// Ending the capture.
    Release,
    /// After the commit.
    Settle,
    /// Planning a restore.
    PlanRestore,
    /// Preparing restored data beside the target.
    StageRestore,
    /// Making restored data live.
    Switch,
    /// Counting what the live service holds.
    Probe,
    /// Putting kept-aside data back.
    Undo,
    /// Removing kept-aside data or leftovers.
    CleanUp,
    /// Ending an interruption that a run has left.
    BringBack,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Open => "start its capture",
            Self::Read => "produce its data",
            Self::Release => "end its capture cleanly",
            Self::Settle => "settle after the commit",
            Self::PlanRestore => "plan the restore",
            Self::StageRestore => "prepare the restored data",
            Self::Switch => "switch to the restored data",
            Self::Probe => "answer the probe",
            Self::Undo => "put the kept-aside data back",
            Self::CleanUp => "clean up",
            Self::BringBack => "bring the service back",
        })
    }
}

/// The error that users of the engine see.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// An adapter failed.
    #[error("service `{service}` failed to {stage}")]
    Adapter {
        /// Whose adapter.
        service: ServiceName,
        /// Doing what.
        stage: Stage,
        /// The cause.
        #[source]
        source: AdapterError,
    },
    /// A store failed.
    #[error("cannot {operation}")]
    Store {
        /// What the engine was doing.
        operation: String,
        /// The cause.
        #[source]
        source: StoreError,
    },
    /// Stored bytes are not what metadata.json says.
    #[error("{id}: `{file}` is damaged: {what}")]
    Damaged {
        /// The backup.
        id: BackupId,
        /// The stored file.
        file: String,
        /// What does not match, and where.
        what: String,
    },
    /// It is encrypted, and none of the keys at hand opens it.
    #[error(
        "{id} is encrypted for {}: {}",
        .recipients.join(", "),
        no_key(.missing, *.tried)
    )]
    NoKey {
        /// The backup.
        id: BackupId,
        /// The public keys that it was made for, or `passphrase`.
        recipients: Vec<String>,
        /// Why configured keys are not there, one line each.
        missing: Vec<String>,
        /// How many keys were tried.
        tried: usize,
    },
    /// A deadline passed.
    #[error("service `{service}` was not done within {}", humantime::format_duration(*.timeout))]
    Timeout {
        /// The service.
        service: ServiceName,
        /// Its budget.
        timeout: std::time::Duration,
    },
    /// Another process works on the service.
    #[error("service `{service}` is busy: {holder}")]
    Busy {
        /// The service.
        service: ServiceName,
        /// Who holds the lock, and since when.
        holder: String,
    },
    /// The run was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// What was asked for cannot be done as things stand.
    #[error("{0}")]
    Refused(String),
    /// The state directory cannot be used.
    #[error("cannot use the state directory: {what}")]
    State {
        /// Doing what, with which file.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

fn no_key(missing: &[String], tried: usize) -> String {
    match (missing, tried) {
        ([], 0) => "no key is configured that would open it".to_owned(),
        ([], 1) => "the key at hand does not open it".to_owned(),
        ([], n) => format!("none of the {n} keys at hand opens it"),
        (missing, 0) => missing.join("; "),
        (missing, n) => format!("none of the {n} keys at hand opens it; {}", missing.join("; ")),
    }
}

/// A name that breaks its rule was given: as a wrong configuration.
impl From<InvalidId> for BackupError {
    fn from(e: InvalidId) -> Self {
        Self::Config(e.into())
    }
}

impl BackupError {
    /// A store's error while doing `operation` (an infinitive phrase).
    pub fn store(operation: impl Into<String>, source: StoreError) -> Self {
        Self::Store { operation: operation.into(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_one_line_and_says_nothing_twice() {
        let cause = AdapterError::io("read `a`", io::Error::other("disk on fire"));
        let e = BackupError::Adapter {
            service: ServiceName::new("redis").unwrap(),
            stage: Stage::Read,
            source: cause,
        };
        assert_eq!(chain(&e), "service `redis` failed to produce its data: read `a`: disk on fire");
    }

    #[test]
    fn help_is_found_among_the_causes() {
        let cause = Advice::new("a right is missing", "ask for it").with_source("the server says so");
        let key = StoreKey::new("a").unwrap();
        let e = BackupError::store("list", StoreError::other("list", &key, cause));
        assert_eq!(advice(&e), Some("ask for it"));
        assert!(chain(&e).ends_with("a right is missing: the server says so"));
        assert_eq!(advice(&BackupError::Cancelled), None);
    }

    #[test]
    fn a_config_error_says_where() {
        let e = ConfigError::new("unknown key `keeep`")
            .at("intervals.15min")
            .at("backup.toml")
            .hint("did you mean `keep`?");
        assert_eq!(e.to_string(), "backup.toml: intervals.15min: unknown key `keeep`");
        assert_eq!(e.help(), Some("did you mean `keep`?"));
    }
}
