//! Exports: what is taken of a server without the module `backup-filesystem`, by its ordinary API.
//!
//! The archive holds, below a folder of the backup's name,
//!
//! - `schema.json`: the definitions of the collections, as the server tells them, and their aliases;
//! - `<collection>/<page>.jsonl`, or `<collection>/<tenant>/<page>.jsonl`: the objects with their vectors, one a line,
//!   as the server tells them, in the order of their ids. A page is of a few MiB, so that nothing large is ever held;
//! - `export.json`, last: what is in it. Without that file an export is not complete.
//!
//! Objects are read while applications write: what was there all the time is in it, the rest may be or not. Users and roles
//! are not.

mod check;
mod load;
mod pages;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use backup_core::{AdapterError, Evidence};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::census::NAMED_TENANTS;

pub(super) use self::check::ExportCheck;
pub(super) use self::load::load;
pub(super) use self::pages::{Told, stream};

/// The attribute of an artifact that says what it is, and its value for an export.
pub(super) const FORM: &str = "form";
pub(super) const EXPORT: &str = "export";

/// The first file.
pub(super) const SCHEMA: &str = "schema.json";
/// The last file.
pub(super) const MANIFEST: &str = "export.json";

/// Raised when older programs could not restore what is written.
const FORMAT: u32 = 1;

/// The longest line that is read, and the longest page.
const MAX_PAGE: usize = 64 << 20;

/// `export.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    format: u32,
    pub(super) id: String,
    /// Collections that are in the export.
    collections: Vec<String>,
    parts: Vec<Part>,
    /// Tenants that exist, and whose objects are not in the export, by collection.
    #[serde(default)]
    asleep: BTreeMap<String, Vec<String>>,
}

/// The objects of a collection, or of one tenant of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    class: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    objects: u64,
    pages: u64,
}

/// `schema.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Definitions {
    classes: Vec<Value>,
    #[serde(default)]
    aliases: Vec<Value>,
}

impl Part {
    /// Its folder below that of the export.
    fn folder(&self) -> String {
        match &self.tenant {
            Some(tenant) => format!("{}/{tenant}", self.class),
            None => self.class.clone(),
        }
    }

    /// For people.
    fn shown(&self) -> String {
        match &self.tenant {
            Some(tenant) => format!("tenant `{tenant}` of collection `{}`", self.class),
            None => format!("collection `{}`", self.class),
        }
    }
}

/// The name of a page, from 1.
fn page_name(number: u64) -> String {
    format!("{number:06}.jsonl")
}

impl Manifest {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, AdapterError> {
        let unreadable =
            |e| AdapterError::corrupt(format!("`{MANIFEST}` of the export cannot be read")).with_source(e);
        let manifest: Self = serde_json::from_slice(bytes).map_err(unreadable)?;
        if manifest.format > FORMAT {
            let what = format!(
                "the export is of format {}, which needs a newer version of this program",
                manifest.format
            );
            return Err(AdapterError::unsupported(what));
        }
        // Names become parts of paths.
        let odd = |part: &&Part| {
            !super::census::is_name(&part.class)
                || part.tenant.as_ref().is_some_and(|t| !super::census::is_tenant(t))
        };
        if let Some(part) = manifest.parts.iter().find(odd) {
            return Err(AdapterError::corrupt(format!("`{MANIFEST}` of the export names {}", part.shown())));
        }
        Ok(manifest)
    }

    /// What it holds, under the names under which a server's objects are counted.
    pub(super) fn evidence(&self) -> Evidence {
        let mut counts: BTreeMap<String, u64> =
            self.collections.iter().map(|class| (format!("objects.{class}"), 0)).collect();
        let tenants = self.tenants();
        for part in &self.parts {
            *counts.entry(format!("objects.{}", part.class)).or_default() += part.objects;
            if let Some(tenant) = part.tenant.as_ref().filter(|_| tenants <= NAMED_TENANTS) {
                counts.insert(format!("objects.{}.{tenant}", part.class), part.objects);
            }
        }
        counts.insert("collections".to_owned(), self.collections.len() as u64);
        if tenants > 0 {
            counts.insert("tenants".to_owned(), tenants as u64);
        }
        Evidence { counts, ..Evidence::default() }
    }

    fn tenants(&self) -> usize {
        self.parts.iter().filter(|p| p.tenant.is_some()).count()
            + self.asleep.values().map(Vec::len).sum::<usize>()
    }

    /// The files of a part below the export's folder, in order.
    fn pages(folder: &Path, part: &Part) -> impl Iterator<Item = PathBuf> + use<> {
        let folder = folder.join(part.folder());
        (1..=part.pages).map(move |n| folder.join(page_name(n)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_manifests_are_refused() {
        let of = |class: &str, format: u32| {
            let text = format!(
                r#"{{"format":{format},"id":"x","collections":[],"parts":[{{"class":"{class}","objects":1,"pages":1}}]}}"#
            );
            Manifest::parse(text.as_bytes())
        };
        assert!(of("Doc", 1).is_ok());
        assert!(of("../Doc", 1).is_err());
        assert!(of("Doc", 2).unwrap_err().to_string().contains("newer version"));
    }
}
