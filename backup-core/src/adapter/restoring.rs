//! What a restore is made of: where it goes, what it will do, and what its steps remember.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::AdapterError;
use crate::id::RunId;

/// Where a restore goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RestoreTarget {
    /// The service itself, where its configuration says it is.
    Live,
    /// A directory of the user's choice; created if missing, must be empty.
    Dir(PathBuf),
    /// A throw-away place that the engine made and removes.
    Scratch(ScratchHandle),
}

/// A throw-away place for a test restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScratchHandle {
    /// An empty private directory on local disk.
    pub dir: PathBuf,
    /// Tags whatever the adapter creates elsewhere (containers, networks).
    pub run_id: RunId,
}

/// What a restore will do, as data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePlan {
    /// Where it goes.
    pub target: RestoreTarget,
    /// What will happen, in order, one line each, for people.
    pub steps: Vec<String>,
    /// What is there now and will be kept aside.
    pub replaces: Vec<Replaced>,
    /// Free space that it needs, per file system. Checked by the engine before `stage`.
    pub space: Vec<SpaceNeed>,
    /// The adapter's own plan.
    pub token: StepToken,
}

/// Something that a restore replaces and keeps aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaced {
    /// What, e.g. a path.
    pub what: String,
    /// What it will be called then.
    pub kept_as: String,
    /// Its newest change: what would be lost is what changed after the backup.
    pub changed_at: Option<DateTime<Utc>>,
}

/// Free space that a restore needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceNeed {
    /// An existing directory on the file system.
    pub path: PathBuf,
    /// Bytes needed there.
    pub bytes: u64,
}

/// What a step of a restore must remember; opaque to the engine, kept in its journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StepToken(serde_json::Value);

impl StepToken {
    /// Wraps the adapter's own state.
    ///
    /// # Errors
    /// `Other` when it does not serialise to JSON.
    pub fn new<T: Serialize>(state: &T) -> Result<Self, AdapterError> {
        serde_json::to_value(state).map(Self).map_err(|e| {
            AdapterError::new(crate::AdapterErrorKind::Other, "cannot record the restore step").with_source(e)
        })
    }

    /// The adapter's own state again.
    ///
    /// # Errors
    /// `Corrupt` when it is of another shape, e.g. written by another version.
    pub fn get<T: serde::de::DeserializeOwned>(&self) -> Result<T, AdapterError> {
        serde_json::from_value(self.0.clone())
            .map_err(|e| AdapterError::corrupt("the recorded restore step is not readable").with_source(e))
    }
}

/// Something that occupies space or a name after a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    /// What, e.g. a path.
    pub what: String,
    /// Its size, if known.
    pub bytes: Option<u64>,
}
