//! `[stores.<name>]`: where copies go.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::StoreConfig;
use super::explain::{quoted_key, read_table};
use super::raw::{RawOptions, policy};
use super::values::{Keep, Size, Span};
use crate::error::ConfigError;
use crate::id::{Interval, StoreName};
use crate::retention::Policy;

/// What `[store]` is called where stores have names.
pub const PRIMARY_STORE: &str = "primary";

/// `[stores.<name>]`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CopyStoreConfig {
    /// Where it is.
    pub store: StoreConfig,
    /// What holds secrets may be there in clear.
    pub secrets_in_clear: bool,
    /// What is kept there of each series of `[intervals]`; `None` keeps everything.
    pub policy: Option<Policy>,
    /// What is kept there of single series instead; `None` keeps everything.
    pub intervals: BTreeMap<Interval, Option<Policy>>,
}

impl CopyStoreConfig {
    /// A store that keeps everything; the rest can be set by field.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            store: StoreConfig::new(url),
            secrets_in_clear: false,
            policy: None,
            intervals: BTreeMap::new(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCopyStore {
    url: String,
    #[serde(default)]
    options: RawOptions,
    #[serde(default)]
    secrets_in_clear: bool,
    keep: Option<Keep>,
    delete_older_than: Option<Span>,
    max_total_bytes: Option<Size>,
    #[serde(default)]
    intervals: BTreeMap<String, toml::Table>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRetention {
    keep: Option<Keep>,
    delete_older_than: Option<Span>,
    max_total_bytes: Option<Size>,
}

pub(super) fn read(
    tables: BTreeMap<String, toml::Table>,
) -> Result<BTreeMap<StoreName, CopyStoreConfig>, ConfigError> {
    let mut stores = BTreeMap::new();
    for (name, table) in tables {
        let place = format!("stores.{}", quoted_key(&name));
        let name = StoreName::new(name).map_err(|e| ConfigError::from(e).at("stores"))?;
        if name.as_str() == PRIMARY_STORE {
            return Err(ConfigError::new(format!("`{PRIMARY_STORE}` is the name of [store]"))
                .at(place)
                .hint("give it another name"));
        }
        stores.insert(name, one(table, &place)?);
    }
    Ok(stores)
}

fn one(table: toml::Table, place: &str) -> Result<CopyStoreConfig, ConfigError> {
    let raw: RawCopyStore = read_table(table, place, &[])?;
    if raw.url.trim().is_empty() {
        return Err(ConfigError::new("the URL is empty").at(format!("{place}.url")));
    }
    let mut intervals = BTreeMap::new();
    for (name, table) in raw.intervals {
        let place = format!("{place}.intervals.{}", quoted_key(&name));
        let name = Interval::new(name).map_err(|e| ConfigError::from(e).at(place.clone()))?;
        let raw: RawRetention = read_table(table, &place, &[])?;
        let kept = policy(raw.keep, raw.delete_older_than, raw.max_total_bytes, &place)?;
        intervals.insert(name, kept);
    }
    Ok(CopyStoreConfig {
        store: raw.options.of(raw.url),
        secrets_in_clear: raw.secrets_in_clear,
        policy: policy(raw.keep, raw.delete_older_than, raw.max_total_bytes, place)?,
        intervals,
    })
}

/// The names of a list of stores, each once.
pub(super) fn named_once(names: Vec<StoreName>, place: &str) -> Result<Vec<StoreName>, ConfigError> {
    let mut seen = BTreeSet::new();
    if let Some(twice) = names.iter().find(|name| !seen.insert(*name)) {
        return Err(ConfigError::new(format!("`{twice}` is named twice")).at(place));
    }
    Ok(names)
}
