//! What the user wrote: `backup.toml`, checked as far as that needs no adapter.
//!
//! ```toml
//! [store]
//! url = "file:///mnt/data/backups/enterprise"
//!
//! [intervals.hourly]
//! services = ["data"]
//! keep = { latest = 4, hourly = 24, daily = 7 }
//!
//! [services.data]
//! kind = "files"
//! paths = ["/srv/data"]
//! max_age = "2h"
//!
//! [compose]                       # what `recover` makes containers from
//! file = "/srv/app/compose.yaml"
//! ```
//!
//! [`Config::parse`] does no I/O; [`Config::resolve`] looks the adapters up and gives a
//! [`BackupPlan`]. Whatever is unknown or cannot be honoured is an error that names the key:
//! nothing is silently ignored.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::ConfigError;
use crate::id::{Interval, ServiceName, StoreName};
use crate::plan::BackupPlan;
use crate::registry::{AdapterRegistry, without_password};
use crate::retention::Policy;
use crate::secret::{SecretRef, SecretResolver};

pub(crate) mod explain;
mod hosts;
mod raw;
mod spot;
mod stores;
mod values;

pub use hosts::StoresOfHosts;
pub(crate) use hosts::system_host;
pub use spot::{NotifyConfig, NtfyConfig, SPOT_POLL, SpotAction, SpotConfig, SpotStep};
pub use stores::{CopyStoreConfig, PRIMARY_STORE};

/// The keys of a service that are core's; all others are its adapter's.
pub const SERVICE_KEYS: &[&str] = &[
    "kind", "enabled", "after", "timeout", "max_age", "rto", "smoke", "encrypt", "limits", "hooks", "labels",
];

/// A whole configuration.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// Where it was read from, for messages.
    pub file_name: Option<String>,
    /// Where backups go.
    pub store: StoreConfig,
    /// Further stores, by name: where copies go.
    pub stores: BTreeMap<StoreName, CopyStoreConfig>,
    /// Where the backups of each run are copied to, unless its interval says otherwise.
    pub copies: Vec<StoreName>,
    /// The folder for locks, journals and spools. The program chooses one if it is not set.
    pub state_dir: Option<PathBuf>,
    /// The name of this host in metadata, and in the URLs of stores. The program asks the system if it is not set.
    pub host: Option<String>,
    /// How long a recovery of all services may take.
    pub rto: Option<Duration>,
    /// The series, by name.
    pub intervals: BTreeMap<Interval, IntervalConfig>,
    /// The services, by name.
    pub services: BTreeMap<ServiceName, ServiceConfig>,
    /// How much of the machine a run may take.
    pub limits: Limits,
    /// The zstd level, 1 to 19.
    pub compression_level: i32,
    /// When a backup is suspect.
    pub guard: Guard,
    /// The Compose project that the services run in.
    pub compose: Option<ComposeConfig>,
    /// For whom backups are encrypted, and what opens them.
    pub encryption: EncryptionConfig,
    /// What is done when the host is taken away.
    pub spot: Option<SpotConfig>,
    /// Who is told.
    pub notify: NotifyConfig,
    /// Whether each run keeps the configuration, too: a program that reads one from a file sees to that.
    pub backup_configuration: bool,
}

/// `[compose]`: what `recover` makes containers from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ComposeConfig {
    /// The Compose files, in their order.
    pub files: Vec<PathBuf>,
    /// The project's name; what Compose would take if it is not set.
    pub project: Option<String>,
    /// The file with values for variables; `.env` beside the first Compose file if it is not set.
    pub env_file: Option<PathBuf>,
    /// The Docker engine that it is on, if not the local one: `unix:///path` or `tcp://host:port`.
    pub docker: Option<String>,
}

impl ComposeConfig {
    pub(crate) fn relative_to(self, base: &Path) -> Self {
        Self {
            files: self.files.into_iter().map(|f| base.join(f)).collect(),
            env_file: self.env_file.map(|f| base.join(f)),
            ..self
        }
    }
}

/// `[encryption]`: with recipients or a passphrase, every service is encrypted that does not say otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EncryptionConfig {
    /// Public keys of age (`age1…`) or SSH (`ssh-ed25519 …`): for whom to encrypt.
    pub recipients: Vec<String>,
    /// Instead of recipients: whoever knows this.
    pub passphrase: Option<SecretRef>,
    /// Secret keys that open backups. A host that only makes backups needs none.
    pub identities: Vec<SecretRef>,
}

/// `encrypt` of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Encrypt {
    /// As `[encryption]` says.
    #[default]
    Default,
    /// For those of `[encryption]`, who must be named there.
    Yes,
    /// In clear.
    No,
    /// For these.
    For(Vec<String>),
}

/// `[store]`.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// A URL such as `file:///mnt/backups` or `s3://bucket/prefix`, or a path; `{host}` in it is the name of the host.
    pub url: String,
    /// What else the store wants to know.
    pub options: BTreeMap<String, String>,
    /// Options that are secrets, and where each is kept.
    pub secrets: BTreeMap<String, SecretRef>,
}

impl StoreConfig {
    /// The store at `url`, without options.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), options: BTreeMap::new(), secrets: BTreeMap::new() }
    }

    /// The same with the secrets among its options, for [`StoreRegistry::open`](crate::StoreRegistry::open). Not to be kept.
    ///
    /// # Errors
    /// [`ConfigError`] that names the option, and the reference.
    pub fn resolved(&self, secrets: &dyn SecretResolver) -> Result<Self, ConfigError> {
        let mut open =
            Self { url: self.url.clone(), options: self.options.clone(), secrets: BTreeMap::new() };
        for (key, reference) in &self.secrets {
            let secret = secrets.resolve(reference).map_err(|e| e.at(format!("store.options.{key}")))?;
            open.options.insert(key.clone(), secret.expose().to_owned());
        }
        Ok(open)
    }
}

impl fmt::Debug for StoreConfig {
    /// Shows which options there are, not their values, and no password: some stores take secrets there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options: Vec<&String> = self.options.keys().chain(self.secrets.keys()).collect();
        f.debug_struct("StoreConfig")
            .field("url", &without_password(&self.url))
            .field("options", &options)
            .finish()
    }
}

/// `[intervals.<name>]`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct IntervalConfig {
    /// What is backed up, in the order written.
    pub services: Vec<ServiceName>,
    /// What is kept; `None` keeps everything.
    pub policy: Option<Policy>,
    /// The budget of each service in this series, unless it has its own.
    pub timeout: Option<Duration>,
    /// When it runs, as systemd's `OnCalendar=` takes it.
    pub schedule: Option<String>,
    /// Where its backups are copied to; `None`: where those of all intervals go.
    pub copies: Option<Vec<StoreName>>,
}

impl IntervalConfig {
    /// A series of `services` that keeps everything; the rest can be set by field.
    pub fn new(services: impl IntoIterator<Item = ServiceName>) -> Self {
        let services = services.into_iter().collect();
        Self { services, policy: None, timeout: None, schedule: None, copies: None }
    }
}

/// `[services.<name>]`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServiceConfig {
    /// The adapter's kind.
    pub kind: String,
    /// Whether it takes part in runs.
    pub enabled: bool,
    /// Services that must be done before in the same run.
    pub after: Vec<ServiceName>,
    /// The budget of one backup.
    pub timeout: Option<Duration>,
    /// The operator is alerted when the newest good backup is older.
    pub max_age: Option<Duration>,
    /// How long a recovery may take.
    pub rto: Option<Duration>,
    /// Whether `recover` and `drill` take it when no service is named. Programs set it; there is no key for it.
    pub recovers: bool,
    /// Questions in the service's own language that restored data must answer; see
    /// [`ServiceAdapter::ask`](crate::ServiceAdapter::ask).
    pub smoke: Vec<String>,
    /// For whom it is encrypted.
    pub encrypt: Encrypt,
    /// For people and filters.
    pub labels: BTreeMap<String, String>,
    /// The adapter's own keys.
    pub settings: toml::Table,
}

impl ServiceConfig {
    /// A service of `kind` with the adapter's own keys; the rest can be set by field.
    #[must_use]
    pub fn new(kind: impl Into<String>, settings: toml::Table) -> Self {
        Self {
            kind: kind.into(),
            enabled: true,
            after: Vec::new(),
            timeout: None,
            max_age: None,
            rto: None,
            recovers: true,
            smoke: Vec::new(),
            encrypt: Encrypt::Default,
            labels: BTreeMap::new(),
            settings,
        }
    }
}

/// `[limits]`: backups must not starve what they protect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// How many threads compress and decode, over all services; at least 1. `None`: as many as there are processors.
    pub threads: Option<usize>,
    /// How many services are worked on at once, of copies to each store; at least 1. `None`: the engine chooses.
    pub parallel: Option<usize>,
    /// How many bytes a second copies to other stores may move, all together; at least 1. `None`: as many as can be.
    pub bandwidth: Option<u64>,
}

/// `[guard]`: a backup whose evidence or size collapses against its predecessors is committed as suspect.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Guard {
    /// Whether to compare at all.
    pub enabled: bool,
    /// Below this share of the recent good ones a backup is suspect; over 0, at most 1.
    pub ratio: f64,
}

impl Default for Guard {
    fn default() -> Self {
        Self { enabled: true, ratio: 0.5 }
    }
}

/// The zstd level that is used where none is configured: the fastest of the regular ones.
pub const DEFAULT_COMPRESSION_LEVEL: i32 = 1;

impl Config {
    /// A configuration without services, for programs that need no file.
    pub fn new(store_url: impl Into<String>) -> Self {
        Self {
            file_name: None,
            store: StoreConfig::new(store_url),
            stores: BTreeMap::new(),
            copies: Vec::new(),
            state_dir: None,
            host: None,
            rto: None,
            intervals: BTreeMap::new(),
            services: BTreeMap::new(),
            limits: Limits::default(),
            compression_level: DEFAULT_COMPRESSION_LEVEL,
            guard: Guard::default(),
            compose: None,
            encryption: EncryptionConfig::default(),
            spot: None,
            notify: NotifyConfig::default(),
            backup_configuration: true,
        }
    }

    /// Reads the text of a `backup.toml`. `file_name` stands in messages.
    ///
    /// # Errors
    /// [`ConfigError`] that says where, what is wrong, and (in its [`help`](ConfigError::help)) what was probably meant.
    pub fn parse(text: &str, file_name: &str) -> Result<Self, ConfigError> {
        let config = explain::parse_toml(text).and_then(raw::read).map_err(|e| e.at(file_name))?;
        Ok(Self { file_name: Some(file_name.to_owned()), ..config })
    }

    /// Adds a service.
    ///
    /// # Errors
    /// [`ConfigError`] if there is one of that name.
    pub fn add_service(&mut self, name: ServiceName, service: ServiceConfig) -> Result<(), ConfigError> {
        if self.services.contains_key(&name) {
            return Err(ConfigError::new(format!("there are two services named `{name}`")));
        }
        self.services.insert(name, service);
        Ok(())
    }

    /// Where the backups of this host go: `{host}` in the URL is its name.
    ///
    /// # Errors
    /// [`ConfigError`] for a name that cannot be a part of a path.
    pub fn store_here(&self) -> Result<StoreConfig, ConfigError> {
        self.store.for_host(&self.host.clone().unwrap_or_else(system_host))
    }

    /// Looks the adapters up, checks what belongs together, and makes paths relative to `base_dir`, the folder of the
    /// configuration file. Pure: no file system, no network.
    ///
    /// # Errors
    /// [`ConfigError`] for unknown kinds, keys, services, and services that wait for each other.
    pub fn resolve(self, registry: &AdapterRegistry, base_dir: &Path) -> Result<BackupPlan, ConfigError> {
        let file_name = self.file_name.clone();
        BackupPlan::resolve(self, registry, base_dir).map_err(|e| match file_name {
            Some(file) => e.at(file),
            None => e,
        })
    }
}
