//! A cache of listings: metadata.json never changes, so that its summary can be kept beside the state directory.
//!
//! It is known again by its key and, where a listing tells that for nothing, its version: the copy of a backup may take the
//! place of a given-up one of the same name. Where none is told, what was given up is not kept.
//!
//! The cache may be deleted or damaged at any time; it is only ever a shortcut to what metadata.json says. Verification,
//! restore and show read metadata.json itself.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Summary;
use crate::id::{Interval, ServiceName, Timestamp};

/// The number is that of the file's shape.
const FILE: &str = "summaries-3.json";

/// Summaries of one series.
pub(super) type Known = HashMap<Timestamp, Cached>;

/// A summary, and of which version of metadata.json it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cached {
    pub(super) version: Option<String>,
    pub(super) summary: Summary,
}

#[derive(Debug, Default)]
pub(super) struct Cache {
    path: Option<PathBuf>,
    /// By `service/interval`.
    series: BTreeMap<String, Known>,
    changed: bool,
}

impl Cache {
    pub(super) async fn load(dir: Option<&Path>) -> Self {
        let Some(path) = dir.map(|d| d.join(FILE)) else { return Self::default() };
        let read = {
            let path = path.clone();
            tokio::task::spawn_blocking(move || -> Option<BTreeMap<String, Vec<(i64, Cached)>>> {
                serde_json::from_slice(&std::fs::read(path).ok()?).ok()
            })
        };
        let stored = read.await.ok().flatten().unwrap_or_default();
        let known = |list: Vec<(i64, Cached)>| {
            let at = |seconds| chrono::DateTime::from_timestamp(seconds, 0).map(Timestamp::new);
            list.into_iter().filter_map(|(seconds, cached)| Some((at(seconds)?, cached))).collect()
        };
        let series = stored.into_iter().map(|(name, list)| (name, known(list))).collect();
        Self { path: Some(path), series, changed: false }
    }

    /// What is known of a series.
    pub(super) fn series(&self, service: &ServiceName, interval: &Interval) -> &Known {
        static NOTHING: std::sync::LazyLock<Known> = std::sync::LazyLock::new(HashMap::new);
        self.series.get(&format!("{service}/{interval}")).unwrap_or(&NOTHING)
    }

    /// Remembers the present state of a series that was listed, and forgets what is gone from it.
    pub(super) fn replace(&mut self, service: &ServiceName, interval: &Interval, present: Known) {
        if self.path.is_none() {
            return;
        }
        let known = self.series.entry(format!("{service}/{interval}")).or_default();
        if *known != present {
            self.changed = true;
            *known = present;
        }
    }

    pub(super) async fn save(self) {
        let Some(path) = self.path.filter(|_| self.changed) else { return };
        let write = tokio::task::spawn_blocking(move || {
            let list = |known: Known| -> Vec<(i64, Cached)> {
                known.into_iter().map(|(at, cached)| (at.time().timestamp(), cached)).collect()
            };
            let stored: BTreeMap<String, _> =
                self.series.into_iter().map(|(name, known)| (name, list(known))).collect();
            let text = serde_json::to_vec(&stored).map_err(|e| e.to_string())?;
            crate::state::write_atomically(&path, &text).map_err(|e| e.to_string())
        });
        if let Ok(Err(error)) = write.await {
            tracing::debug!(%error, "The listing cache could not be written.");
        }
    }
}
