//! What will happen: the configuration, validated, with its adapters.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::adapter::ServiceAdapter;
use crate::config::explain::{hint, quoted_key};
use crate::config::system_host;
use crate::config::{
    ComposeConfig, Config, Guard, IntervalConfig, Limits, NotifyConfig, PRIMARY_STORE, ServiceConfig,
    SpotConfig, StoreConfig,
};
use crate::encryption::Recipients;
use crate::error::ConfigError;
use crate::id::{Interval, ServiceName, StoreName};
use crate::registry::{AdapterRegistry, BuildContext};
use crate::retention::Policy;
use crate::secret::SecretRef;

mod encryption;
mod order;
mod spot;
mod stores;

pub use spot::SPOT;
pub use stores::PlannedStore;

/// The interval of runs that name none. It always exists.
pub const MANUAL: &str = "manual";

/// A validated configuration: every name in it exists, every adapter is made, paths are absolute (as far as the base
/// directory was).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BackupPlan {
    /// The host's folder for locks, journals and spools; `None`: the program chooses.
    pub state_dir: Option<PathBuf>,
    /// The host's name in metadata; `None`: the program asks the system.
    pub host: Option<String>,
    /// How long a recovery of all services may take.
    pub rto: Option<Duration>,
    /// Where backups go; opened by [`StoreRegistry::open`](crate::StoreRegistry::open).
    pub store: StoreConfig,
    /// What that store is called: [`PRIMARY_STORE`], but for a plan [`for_store`](Self::for_store).
    pub store_name: StoreName,
    /// Every store, that one as well, with what is kept there.
    pub stores: BTreeMap<StoreName, PlannedStore>,
    /// Where backups are copied to, of intervals that are not configured.
    pub copies: Vec<StoreName>,
    /// The services, the disabled ones as well.
    pub services: BTreeMap<ServiceName, PlannedService>,
    /// The series; [`MANUAL`] is always among them.
    pub intervals: BTreeMap<Interval, PlannedInterval>,
    /// How much of the machine a run may take.
    pub limits: Limits,
    /// The zstd level.
    pub compression_level: i32,
    /// When a backup is suspect.
    pub guard: Guard,
    /// What `recover` makes containers from; paths are absolute.
    pub compose: Option<ComposeConfig>,
    /// What opens encrypted backups; paths are absolute.
    pub keys: PlannedKeys,
    /// What is done when the host is taken away, step by step; paths are absolute.
    pub spot: Option<SpotConfig>,
    /// Who is told; paths are absolute.
    pub notify: NotifyConfig,
}

/// Where the keys are that open encrypted backups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlannedKeys {
    /// Secret keys.
    pub identities: Vec<SecretRef>,
    /// The passphrase.
    pub passphrase: Option<SecretRef>,
}

/// For whom a service is encrypted.
#[derive(Debug, Clone)]
pub enum EncryptFor {
    /// Whoever has one of these keys.
    Recipients(Recipients),
    /// Whoever knows this.
    Passphrase(SecretRef),
}

/// A service and its adapter.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PlannedService {
    /// Its name.
    pub name: ServiceName,
    /// The adapter's kind.
    pub kind: String,
    /// The adapter.
    pub adapter: Arc<dyn ServiceAdapter>,
    /// Services that must be done before in the same run. Free of cycles.
    pub after: Vec<ServiceName>,
    /// The budget of one backup; see [`BackupPlan::timeout`].
    pub timeout: Option<Duration>,
    /// The operator is alerted when the newest good backup is older.
    pub max_age: Option<Duration>,
    /// How long a recovery may take.
    pub rto: Option<Duration>,
    /// What restored data must answer; only where the adapter can be asked.
    pub smoke: Vec<String>,
    /// For whom it is encrypted; `None`: in clear.
    pub encrypt: Option<EncryptFor>,
    /// The secrets among its settings, by key.
    pub secrets: BTreeMap<String, SecretRef>,
    /// Whether it takes part in runs.
    pub enabled: bool,
    /// Whether `recover` and `drill` take it when no service is named.
    pub recovers: bool,
    /// For people and filters.
    pub labels: BTreeMap<String, String>,
}

/// A series of backups.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PlannedInterval {
    /// Its name.
    pub name: Interval,
    /// What is backed up: enabled services only, in the order written.
    pub services: Vec<ServiceName>,
    /// Services that it names but that are disabled.
    pub disabled: Vec<ServiceName>,
    /// What is kept; `None` keeps everything.
    pub policy: Option<Policy>,
    /// The budget of each service, unless it has its own.
    pub timeout: Option<Duration>,
    /// When it runs, as systemd's `OnCalendar=` takes it.
    pub schedule: Option<String>,
    /// Where its backups are copied to after each run.
    pub copies: Vec<StoreName>,
}

impl BackupPlan {
    pub(crate) fn resolve(
        config: Config,
        registry: &AdapterRegistry,
        base_dir: &Path,
    ) -> Result<Self, ConfigError> {
        let encryption = encryption::resolve(config.encryption, base_dir)?;
        let mut services = BTreeMap::new();
        for (name, service) in config.services {
            let encrypt = encryption::of(&name, &service.encrypt, &encryption)?;
            let planned = plan_service(name.clone(), service, encrypt, registry, base_dir)?;
            services.insert(name, planned);
        }
        order::check(&services)?;
        let mut intervals = BTreeMap::new();
        for (name, interval) in config.intervals {
            intervals.insert(name.clone(), plan_interval(name, interval, &services, &config.copies)?);
        }
        let host = config.host.clone().unwrap_or_else(system_host);
        let (store, hosts) = stores::placed(config.store, base_dir, &host)?;
        let mut stores = stores::plan(&store, config.stores, &intervals, base_dir, &host)?;
        stores::check_copies(&config.copies, &intervals, &stores)?;
        let manual = Interval::new(MANUAL)?;
        let made = everything(manual.clone(), &services, &config.copies);
        intervals.entry(manual).or_insert(made);
        let spot = match config.spot {
            None => None,
            Some(spot) => {
                let name = spot::name()?;
                let written = intervals.contains_key(&name);
                let made = everything(name.clone(), &services, &config.copies);
                let interval = intervals.entry(name).or_insert(made);
                Some(spot::plan(spot, interval, written, &services, base_dir)?)
            }
        };
        let store_name = StoreName::new(PRIMARY_STORE)?;
        stores.insert(store_name.clone(), stores::primary(&store_name, (&store, hosts), &intervals));
        Ok(Self {
            state_dir: config.state_dir.map(|dir| base_dir.join(dir)),
            host: config.host,
            rto: config.rto,
            store,
            store_name,
            stores,
            copies: config.copies,
            services,
            intervals,
            limits: config.limits,
            compression_level: config.compression_level,
            guard: config.guard,
            compose: config.compose.map(|c| c.relative_to(base_dir)),
            keys: encryption.keys,
            spot,
            notify: spot::notify(config.notify, base_dir),
        })
    }

    /// The interval that a user named.
    ///
    /// # Errors
    /// [`ConfigError`] that says which ones exist.
    pub fn interval(&self, name: &str) -> Result<&PlannedInterval, ConfigError> {
        let found = self.intervals.values().find(|i| i.name.as_str() == name);
        found.ok_or_else(|| unknown("interval", name, self.intervals.keys()))
    }

    /// The service that a user named.
    ///
    /// # Errors
    /// [`ConfigError`] that says which ones exist.
    pub fn service(&self, name: &str) -> Result<&PlannedService, ConfigError> {
        let found = self.services.values().find(|s| s.name.as_str() == name);
        found.ok_or_else(|| unknown("service", name, self.services.keys()))
    }

    /// The budget of one backup of `service` in `interval`: the service's own, else the interval's.
    #[must_use]
    pub fn timeout(&self, service: &ServiceName, interval: &Interval) -> Option<Duration> {
        let own = self.services.get(service).and_then(|s| s.timeout);
        own.or_else(|| self.intervals.get(interval).and_then(|i| i.timeout))
    }

    /// Folders that are never part of a backup, as far as the configuration knows them: the stores, the state directory.
    #[must_use]
    pub fn excluded(&self) -> Vec<PathBuf> {
        let stores = self.stores.values().filter_map(|s| s.store.local_path());
        stores.chain(self.state_dir.clone()).collect()
    }
}

fn plan_service(
    name: ServiceName,
    config: ServiceConfig,
    encrypt: Option<EncryptFor>,
    registry: &AdapterRegistry,
    base_dir: &Path,
) -> Result<PlannedService, ConfigError> {
    let cx = BuildContext::new(name.clone(), base_dir);
    let secrets = SecretRef::among(&config.settings, base_dir);
    let adapter = registry.build(&config.kind, config.settings, &cx)?;
    if !config.smoke.is_empty() && !adapter.capabilities().ask {
        let what =
            format!("a service of kind `{}` cannot be asked anything, as it is configured", config.kind);
        return Err(ConfigError::new(what)
            .at(format!("services.{}.smoke", quoted_key(name.as_str())))
            .hint("remove the key"));
    }
    // What comes back by a verb of its own is no part of a recovery.
    let can = adapter.capabilities();
    let can_restore = can.restore_live || can.restore_dir || can.restore_scratch;
    Ok(PlannedService {
        name,
        kind: config.kind,
        adapter,
        after: config.after,
        timeout: config.timeout,
        max_age: config.max_age,
        rto: config.rto,
        smoke: config.smoke,
        encrypt,
        secrets,
        enabled: config.enabled,
        recovers: config.recovers && can_restore,
        labels: config.labels,
    })
}

fn plan_interval(
    name: Interval,
    config: IntervalConfig,
    services: &BTreeMap<ServiceName, PlannedService>,
    copies: &[StoreName],
) -> Result<PlannedInterval, ConfigError> {
    if let Some(missing) = config.services.iter().find(|s| !services.contains_key(*s)) {
        let place = format!("intervals.{}.services", quoted_key(name.as_str()));
        return Err(unknown("service", missing.as_str(), services.keys()).at(place));
    }
    let is_enabled = |s: &ServiceName| services.get(s).is_some_and(|s| s.enabled);
    let (services, disabled) = config.services.into_iter().partition(is_enabled);
    Ok(PlannedInterval {
        name,
        services,
        disabled,
        policy: config.policy,
        timeout: config.timeout,
        schedule: config.schedule,
        copies: config.copies.unwrap_or_else(|| copies.to_vec()),
    })
}

/// The interval of everything that is enabled, which deletes nothing.
fn everything(
    name: Interval,
    services: &BTreeMap<ServiceName, PlannedService>,
    copies: &[StoreName],
) -> PlannedInterval {
    let names = |enabled| services.values().filter(move |s| s.enabled == enabled).map(|s| s.name.clone());
    PlannedInterval {
        name,
        services: names(true).collect(),
        disabled: names(false).collect(),
        policy: None,
        timeout: None,
        schedule: None,
        copies: copies.to_vec(),
    }
}

fn unknown<'a, T: AsRef<str> + 'a>(
    what: &str,
    given: &str,
    known: impl Iterator<Item = &'a T>,
) -> ConfigError {
    let known: Vec<&str> = known.map(AsRef::as_ref).collect();
    let error = ConfigError::new(format!("unknown {what} `{}`", given.escape_debug()));
    match hint(given, &known, "configured:") {
        Some(hint) => error.hint(hint),
        None => error.hint(format!("no {what} is configured")),
    }
}
