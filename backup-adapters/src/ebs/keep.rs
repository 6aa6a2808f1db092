//! What becomes of snapshots: completed, lost, purged, reclaimed.

use std::collections::{BTreeMap, BTreeSet};

use backup_core::{
    AdapterError, AdapterErrorKind, Advice, ExternalRef, ExternalState, Metadata, OpContext, RunId,
};
use chrono::TimeDelta;

use super::capture::KIND;
use super::model::{Snapshot, SnapshotState};
use super::{BACKUP, Ebs, OWNER, RUN, error};

/// What was made is listed a little later: so long nothing is taken for lost.
const LISTED_WITHIN: TimeDelta = TimeDelta::minutes(10);

/// The references by region.
fn by_region<'a>(refs: impl Iterator<Item = &'a ExternalRef>) -> BTreeMap<Option<String>, Vec<String>> {
    let mut regions: BTreeMap<Option<String>, Vec<String>> = BTreeMap::new();
    for r in refs.filter(|r| r.kind == KIND) {
        regions.entry(r.location.get("region").cloned()).or_default().push(r.id.clone());
    }
    regions
}

pub(super) async fn state(
    ebs: &Ebs,
    cx: &OpContext,
    backup: &Metadata,
) -> Result<ExternalState, AdapterError> {
    let refs = backup.artifacts.iter().filter_map(|a| a.external.as_ref());
    let (mut lost, mut pending) = (Vec::new(), Vec::new());
    for (region, ids) in by_region(refs) {
        let region = region.or_else(|| ebs.config.region.clone());
        let ec2 = ebs.connect_to(cx, region.as_deref()).await?;
        let found = ec2.snapshots(cx, "snapshot-id", &ids).await?;
        let is_new = cx.clock.now() - backup.backed_up_at < LISTED_WITHIN;
        for id in ids {
            match found.iter().find(|s| s.id == id) {
                None if is_new => pending.push(format!("{id} is not listed yet")),
                None => lost.push(format!("{id} is gone")),
                Some(s) => judge(s, &mut lost, &mut pending),
            }
        }
    }
    Ok(match (lost.is_empty(), pending.is_empty()) {
        (false, _) => ExternalState::Lost(lost.join(", ")),
        (true, false) => ExternalState::Pending(pending.join(", ")),
        (true, true) => ExternalState::Complete,
    })
}

fn judge(s: &Snapshot, lost: &mut Vec<String>, pending: &mut Vec<String>) {
    match s.state {
        SnapshotState::Completed => {}
        SnapshotState::Pending | SnapshotState::Unknown => {
            let progress = if s.progress.is_empty() { s.state.word() } else { &s.progress };
            pending.push(format!("{} {progress}", s.id));
        }
        SnapshotState::Error | SnapshotState::Recoverable => {
            let why = s.message.as_ref().map(|m| format!(" ({m})")).unwrap_or_default();
            lost.push(format!("{} is in state `{}`{why}", s.id, s.state.word()));
        }
    }
}

pub(super) async fn purge(ebs: &Ebs, cx: &OpContext, refs: &[ExternalRef]) -> Result<(), AdapterError> {
    if let Some(other) = refs.iter().find(|r| r.kind != KIND) {
        return Err(AdapterError::unsupported(format!("{} {} is no snapshot of EBS", other.kind, other.id)));
    }
    for (region, ids) in by_region(refs.iter()) {
        let region = region.or_else(|| ebs.config.region.clone());
        let ec2 = ebs.connect_to(cx, region.as_deref()).await?;
        let found = ec2.snapshots(cx, "snapshot-id", &ids).await?;
        // All of them before any: half a set is worth nothing.
        if let Some(foreign) = found.iter().find(|s| !is_ours(s, cx)) {
            let help = format!(
                "if it may go, delete it by hand: aws ec2 delete-snapshot --snapshot-id {}",
                foreign.id
            );
            let cause = Advice::new(format!("its tag `{OWNER}` does not name this store"), help);
            let what = format!("{} is not deleted", foreign.id);
            return Err(error(AdapterErrorKind::Conflict, what).with_source(cause));
        }
        for s in found {
            ec2.delete(cx, &s.id).await?;
        }
    }
    Ok(())
}

/// Whether the store that is worked on may delete it.
pub(super) fn is_ours(s: &Snapshot, cx: &OpContext) -> bool {
    s.tag(OWNER).is_some_and(|owner| owner == cx.store_id)
}

pub(super) async fn reclaim(ebs: &Ebs, cx: &OpContext, dead: &[RunId]) -> Result<Vec<String>, AdapterError> {
    let runs: Vec<String> = dead.iter().map(ToString::to_string).collect();
    if runs.is_empty() {
        return Ok(Vec::new());
    }
    let ec2 = ebs.connect(cx).await?;
    let found = ec2.snapshots(cx, &format!("tag:{RUN}"), &runs).await?;
    let mine = found.iter().filter(|s| is_ours(s, cx) && s.backup().is_some_and(|b| b.service == cx.service));
    let mut removed = BTreeSet::new();
    for s in mine {
        if ec2.delete(cx, &s.id).await? {
            removed.insert(format!(
                "snapshot {} of {} ({})",
                s.id,
                s.volume,
                s.tag(BACKUP).unwrap_or_default()
            ));
        }
    }
    Ok(removed.into_iter().collect())
}
