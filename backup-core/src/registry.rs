//! Adapters and stores by name: plain values, no globals. The list of what is built in is in `backup-adapters`; a program
//! of your own adds to it, or starts from an empty one.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::adapter::ServiceAdapter;
use crate::error::{AdapterError, ConfigError};
use crate::id::ServiceName;
use crate::runtime::{Mount, RunState};
use crate::secret::Secret;

mod adapters;
mod stores;

pub use adapters::{AdapterRegistry, KindDiscovery, KindInfo};
pub use stores::StoreRegistry;
pub(crate) use stores::without_password;

/// The configuration of one kind of adapter, which makes the adapter: the only thing that its author registers.
///
/// Derive `Deserialize` with `#[serde(deny_unknown_fields)]`; core's own keys of a service (`kind`, `timeout`, …) are
/// taken out before.
pub trait AdapterConfig: DeserializeOwned + fmt::Debug + Send + 'static {
    /// The word after `kind =`. Equals [`ServiceAdapter::kind`].
    const KIND: &'static str;
    /// What it protects, in a few words; shown by `backup adapters`.
    const SUMMARY: &'static str;
    /// How far it is proven, in a few words; shown by `backup adapters`.
    const PROVEN: &'static str;

    /// Makes the adapter. Pure: no network, file system or environment.
    ///
    /// # Errors
    /// [`ConfigError`] that names the key.
    fn build(self, cx: &BuildContext) -> Result<Arc<dyn ServiceAdapter>, ConfigError>;

    /// Finds what this kind could protect in and around a directory, for `backup init` and for runs without any
    /// configuration. Blocking. The default finds nothing.
    ///
    /// # Errors
    /// `PermissionDenied` and other I/O trouble that makes the answer incomplete.
    fn discover(cx: &DiscoverContext) -> Result<Discovery, AdapterError> {
        let _unused = cx;
        Ok(Discovery::default())
    }
}

/// What [`AdapterConfig::build`] may use.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BuildContext {
    /// The service's name.
    pub service: ServiceName,
    /// The folder of the configuration file: relative paths are relative to it.
    pub base_dir: PathBuf,
}

impl BuildContext {
    /// A context for `service` with paths relative to `base_dir`.
    pub fn new(service: ServiceName, base_dir: impl Into<PathBuf>) -> Self {
        Self { service, base_dir: base_dir.into() }
    }
}

/// Where to look, and what is taken care of already.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DiscoverContext {
    /// The directory to look in.
    pub dir: PathBuf,
    /// Paths that an adapter registered earlier protects: leave them out.
    pub covered: Vec<PathBuf>,
    /// Paths that are never part of a backup: stores, the state directory.
    pub excluded: Vec<PathBuf>,
    /// The containers of the local engine, running or not.
    pub containers: Vec<SeenContainer>,
}

/// A container of the local engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenContainer {
    /// Its name, without a slash.
    pub name: String,
    /// Its image as it was asked for, e.g. `redis:7`.
    pub image: String,
    /// Whether it runs.
    pub state: RunState,
    /// Its labels, Compose's among them.
    pub labels: BTreeMap<String, String>,
    /// Its environment; values may be secrets.
    pub env: BTreeMap<String, Secret>,
    /// Its command line, with that of its entry point; some pass secrets so.
    pub command: Vec<Secret>,
    /// TCP ports that it exposes or publishes, as the container numbers them.
    pub ports: Vec<u16>,
    /// What is mounted into it.
    pub mounts: Vec<Mount>,
}

impl DiscoverContext {
    /// Looks in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), covered: Vec::new(), excluded: Vec::new(), containers: Vec::new() }
    }
}

/// What one kind found.
#[derive(Debug, Clone, Default)]
pub struct Discovery {
    /// Services that could be configured.
    pub found: Vec<Discovered>,
    /// What is left out, and why.
    pub left_out: Vec<LeftOut>,
}

/// A service that could be configured.
#[derive(Debug, Clone)]
pub struct Discovered {
    /// A good name for it.
    pub service: ServiceName,
    /// What it is, for people, e.g. `312 files, 14 MB`.
    pub summary: String,
    /// The adapter's own keys, as they would stand in `backup.toml` (paths relative to the directory looked in).
    pub settings: toml::Table,
    /// Paths that it protects.
    pub covers: Vec<PathBuf>,
}

/// Something that a backup will not contain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// What.
    pub what: String,
    /// Why, and what to do to have it.
    pub why: String,
}
