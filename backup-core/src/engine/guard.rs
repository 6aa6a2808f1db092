//! The guard on evidence: a backup that holds far less than its predecessors is kept, but not trusted.

use std::collections::BTreeSet;

use crate::config::Guard;
use crate::metadata::Metadata;

/// How many recent good backups make the baseline.
pub(super) const RECENT: usize = 5;

/// Why `metadata` is suspect, one line for each doubt. `recent` are good backups, newest first.
///
/// A count or a size is doubted when it is zero or under `ratio` of the median of the recent good ones. Without any
/// predecessor only a backup that holds nothing at all is doubted.
pub(super) fn doubts(guard: &Guard, metadata: &Metadata, recent: &[Metadata]) -> Vec<String> {
    if !guard.enabled {
        return Vec::new();
    }
    if recent.is_empty() {
        let counts = &metadata.evidence.counts;
        let external = metadata.artifacts.iter().any(|a| a.external.is_some());
        let empty = (metadata.plain_bytes() == 0 && !external)
            || (!counts.is_empty() && counts.values().all(|n| *n == 0));
        return if empty { vec!["it holds nothing".to_owned()] } else { Vec::new() };
    }
    let mut out = Vec::new();
    let mut judge = |name: &str, now: u64, before: Vec<u64>| {
        let Some(usual) = median(before) else { return };
        #[expect(clippy::cast_precision_loss, reason = "a ratio of counts needs no last digit")]
        let collapsed = usual > 0 && (now == 0 || (now as f64) < usual as f64 * guard.ratio);
        if collapsed {
            out.push(format!("{name}: {now}, usually {usual}"));
        }
    };
    judge("plain bytes", metadata.plain_bytes(), recent.iter().map(Metadata::plain_bytes).collect());
    // Of the artifacts alone: what is private is added later, and is of no size that says anything.
    let stored = |m: &Metadata| m.artifacts.iter().flat_map(|a| &a.files).map(|f| f.stored_bytes).sum();
    judge("stored bytes", stored(metadata), recent.iter().map(stored).collect());
    let names: BTreeSet<&String> = recent.iter().flat_map(|m| m.evidence.counts.keys()).collect();
    for name in names {
        // A count that is missing now was not taken, or is of something that is gone: that is zero.
        let now = metadata.evidence.counts.get(name).copied().unwrap_or(0);
        judge(name, now, recent.iter().filter_map(|m| m.evidence.counts.get(name).copied()).collect());
    }
    out
}

fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}
