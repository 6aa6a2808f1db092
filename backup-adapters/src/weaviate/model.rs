//! What the server writes about a backup, as far as it matters: `backup_config.json` and each node's `backup.json`.

use std::collections::{BTreeMap, BTreeSet};

use backup_core::AdapterError;
use serde::Deserialize;

/// The file at the top of a backup.
pub(super) const CONFIG: &str = "backup_config.json";
/// The file of each node.
pub(super) const NODE: &str = "backup.json";

/// `backup_config.json`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Config {
    pub(super) id: String,
    pub(super) status: String,
    #[serde(default)]
    pub(super) error: String,
    #[serde(default)]
    pub(super) nodes: BTreeMap<String, NodeClasses>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct NodeClasses {
    #[serde(default)]
    pub(super) classes: Option<Vec<String>>,
}

/// A node's `backup.json`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Node {
    pub(super) id: String,
    #[serde(default)]
    pub(super) status: String,
    #[serde(default)]
    pub(super) error: String,
    #[serde(default)]
    pub(super) classes: Option<Vec<Class>>,
    /// Base64.
    #[serde(default, rename = "userBackups")]
    pub(super) users: Option<String>,
    #[serde(default, rename = "rbacBackups")]
    pub(super) roles: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Class {
    pub(super) name: String,
    #[serde(default)]
    pub(super) shards: Option<Vec<Shard>>,
    /// The shards in each chunk.
    #[serde(default)]
    pub(super) chunks: Option<BTreeMap<String, Vec<String>>>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Shard {
    pub(super) name: String,
    #[serde(default)]
    pub(super) files: Option<Vec<String>>,
}

impl Config {
    /// # Errors
    /// `Corrupt` if it is not that of a backup that succeeded.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, AdapterError> {
        let config: Self = parse(CONFIG, bytes)?;
        succeeded(CONFIG, &config.status, &config.error)?;
        Ok(config)
    }

    /// The classes of all nodes.
    pub(super) fn classes(&self) -> BTreeSet<&str> {
        self.nodes.values().flat_map(|n| n.classes.iter().flatten()).map(String::as_str).collect()
    }
}

impl Node {
    /// # Errors
    /// As [`Config::parse`].
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, AdapterError> {
        let node: Self = parse(NODE, bytes)?;
        succeeded(NODE, &node.status, &node.error)?;
        Ok(node)
    }

    pub(super) fn classes(&self) -> impl Iterator<Item = &Class> {
        self.classes.iter().flatten()
    }
}

impl Class {
    pub(super) fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.shards.iter().flatten()
    }
}

fn parse<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T, AdapterError> {
    serde_json::from_slice(bytes)
        .map_err(|e| AdapterError::corrupt(format!("`{what}` of the backup cannot be read")).with_source(e))
}

fn succeeded(what: &str, status: &str, error: &str) -> Result<(), AdapterError> {
    if status == "SUCCESS" && error.is_empty() {
        return Ok(());
    }
    let error = super::api::one_line(error);
    Err(AdapterError::corrupt(format!("`{what}` of the backup says {status} {error}")))
}
