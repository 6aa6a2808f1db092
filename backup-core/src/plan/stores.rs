//! The stores of a plan, and what is kept in each.

use std::collections::BTreeMap;
use std::path::Path;

use super::{BackupPlan, MANUAL, PlannedInterval, unknown};
use crate::config::explain::quoted_key;
use crate::config::{CopyStoreConfig, PRIMARY_STORE, StoreConfig, StoresOfHosts};
use crate::error::ConfigError;
use crate::id::{Interval, StoreName};
use crate::retention::Policy;

/// A store and what is kept there.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PlannedStore {
    /// Its name.
    pub name: StoreName,
    /// Where it is; a path is absolute.
    pub store: StoreConfig,
    /// Where the stores of all hosts are, this one among them.
    pub hosts: Option<StoresOfHosts>,
    /// What holds secrets may be there in clear: the user insists, or it is this host's own disk.
    pub secrets_in_clear: bool,
    /// What is kept of each series; of those that are not named, everything.
    pub policies: BTreeMap<Interval, Policy>,
}

impl BackupPlan {
    /// The store that a user named.
    ///
    /// # Errors
    /// [`ConfigError`] that says which ones exist.
    pub fn store_named(&self, name: &str) -> Result<&PlannedStore, ConfigError> {
        let found = self.stores.values().find(|s| s.name.as_str() == name);
        found.ok_or_else(|| unknown("store", name, self.stores.keys()))
    }

    /// The same plan over another of its stores, with what is kept there.
    ///
    /// # Errors
    /// [`ConfigError`] that says which stores exist.
    pub fn for_store(&self, name: &str) -> Result<Self, ConfigError> {
        let store = self.store_named(name)?;
        let mut plan = self.clone();
        (plan.store, plan.store_name) = (store.store.clone(), store.name.clone());
        for (name, interval) in &mut plan.intervals {
            interval.policy = store.policies.get(name).cloned();
        }
        Ok(plan)
    }

    /// Whether anything is copied anywhere.
    #[must_use]
    pub fn has_copies(&self) -> bool {
        let named = self.intervals.values().flat_map(|i| &i.copies).chain(&self.copies);
        named.into_iter().any(|to| *to != self.store_name)
    }

    /// Where the backups of `interval` are copied to.
    #[must_use]
    pub fn copies_of(&self, interval: &Interval) -> &[StoreName] {
        self.intervals.get(interval).map_or(&self.copies, |i| &i.copies)
    }
}

/// The further stores. `intervals` are those that are configured: what nobody wrote a schedule for is kept until a
/// person prunes it, in every store.
pub(super) fn plan(
    primary: &StoreConfig,
    stores: BTreeMap<StoreName, CopyStoreConfig>,
    intervals: &BTreeMap<Interval, PlannedInterval>,
    base_dir: &Path,
    host: &str,
) -> Result<BTreeMap<StoreName, PlannedStore>, ConfigError> {
    let mut planned: BTreeMap<StoreName, PlannedStore> = BTreeMap::new();
    for (name, config) in stores {
        let place = format!("stores.{}", quoted_key(name.as_str()));
        let (store, hosts) = placed(config.store, base_dir, host).map_err(|e| e.at(place.clone()))?;
        let others =
            || planned.values().map(|s| (s.name.as_str(), &s.store)).chain([(PRIMARY_STORE, primary)]);
        if let Some((other, _)) = others().find(|(_, o)| same_place(o, &store)) {
            return Err(ConfigError::new(format!("is where the store `{other}` is: a copy there is none"))
                .at(format!("{place}.url")));
        }
        let mut policies: BTreeMap<Interval, Policy> = match config.policy {
            Some(policy) => intervals.keys().map(|i| (i.clone(), policy.clone())).collect(),
            None => BTreeMap::new(),
        };
        for (interval, policy) in config.intervals {
            if !intervals.contains_key(&interval) && interval.as_str() != MANUAL {
                return Err(
                    unknown("interval", interval.as_str(), intervals.keys()).at(format!("{place}.intervals"))
                );
            }
            match policy {
                Some(policy) => drop(policies.insert(interval, policy)),
                None => drop(policies.remove(&interval)),
            }
        }
        let secrets_in_clear = config.secrets_in_clear || store.local_path().is_some();
        planned.insert(name.clone(), PlannedStore { name, store, hosts, secrets_in_clear, policies });
    }
    Ok(planned)
}

/// A store for this host, and where those of all hosts are.
pub(super) fn placed(
    store: StoreConfig,
    base_dir: &Path,
    host: &str,
) -> Result<(StoreConfig, Option<StoresOfHosts>), ConfigError> {
    let ours = store.for_host(host)?.relative_to(base_dir)?;
    // As the user wrote it, it says which part is the host's. Braces are no part of a URL that can be parsed as one.
    let written = match store.url.contains("://") {
        true => store,
        false => store.relative_to(base_dir)?,
    };
    Ok((ours, written.of_hosts()))
}

fn same_place(a: &StoreConfig, b: &StoreConfig) -> bool {
    match (a.local_path(), b.local_path()) {
        (Some(a), Some(b)) => a.components().eq(b.components()),
        _ => a == b,
    }
}

pub(super) fn primary(
    name: &StoreName,
    (store, hosts): (&StoreConfig, Option<StoresOfHosts>),
    intervals: &BTreeMap<Interval, PlannedInterval>,
) -> PlannedStore {
    let policies = intervals.iter().filter_map(|(name, i)| Some((name.clone(), i.policy.clone()?)));
    // Where the user backs up to directly, there it is.
    let (name, store, policies) = (name.clone(), store.clone(), policies.collect());
    PlannedStore { name, store, hosts, secrets_in_clear: true, policies }
}

/// Whatever `copies` names must be one of the further stores.
pub(super) fn check_copies(
    copies: &[StoreName],
    intervals: &BTreeMap<Interval, PlannedInterval>,
    stores: &BTreeMap<StoreName, PlannedStore>,
) -> Result<(), ConfigError> {
    let check = |names: &[StoreName], place: String| match names.iter().find(|n| !stores.contains_key(*n)) {
        Some(name) if name.as_str() == PRIMARY_STORE => Err(ConfigError::new(format!(
            "`{PRIMARY_STORE}` is [store], where the backups are that are copied"
        ))
        .at(place)),
        Some(name) => Err(unknown("store", name.as_str(), stores.keys()).at(place)),
        None => Ok(()),
    };
    check(copies, "copies".to_owned())?;
    intervals.iter().filter(|(_, i)| i.copies != copies).try_for_each(|(name, interval)| {
        check(&interval.copies, format!("intervals.{}.copies", quoted_key(name.as_str())))
    })
}
