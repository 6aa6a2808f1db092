//! The snapshots of an account that are of interest: listed, and pruned by age.

use std::collections::{BTreeMap, BTreeSet};

use backup_core::{AdapterError, AdapterErrorKind, BackupId, OpContext};
use chrono::{DateTime, TimeDelta, Utc};

use super::keep::is_ours;
use super::model::{Snapshot, SnapshotSet, sets};
use super::{Ebs, OWNER, error};

/// The tag by which the old script's snapshots are known.
const PROJECT: &str = "Project";

impl Ebs {
    /// The snapshots of the account that a backup made, on whichever host, or that have the configured tag `Project`, as
    /// those of the old script have; as sets, newest first.
    ///
    /// # Errors
    /// Those of EC2, with what to do.
    pub async fn sets(&self, cx: &OpContext) -> Result<Vec<SnapshotSet>, AdapterError> {
        let ec2 = self.connect(cx).await?;
        let mut found = ec2.snapshots(cx, "tag-key", &[OWNER.to_owned()]).await?;
        if let Some(project) = self.config.tags.get(PROJECT) {
            found.extend(ec2.snapshots(cx, &format!("tag:{PROJECT}"), std::slice::from_ref(project)).await?);
        }
        let by_id: BTreeMap<String, Snapshot> = found.into_iter().map(|s| (s.id.clone(), s)).collect();
        Ok(sets(by_id.into_values().collect()))
    }

    /// Deletes a set of our own that no catalogue knows, e.g. of a run that died. What is gone already is fine.
    ///
    /// # Errors
    /// `Conflict` if it is not our own; those of EC2.
    pub async fn delete_set(&self, cx: &OpContext, set: &SnapshotSet) -> Result<(), AdapterError> {
        if let Some(foreign) = set.snapshots.iter().find(|s| !is_ours(s, cx)) {
            return Err(error(AdapterErrorKind::Conflict, format!("{} is not of this store", foreign.id)));
        }
        let ec2 = self.connect(cx).await?;
        for s in &set.snapshots {
            ec2.delete(cx, &s.id).await?;
        }
        Ok(())
    }
}

/// What is to become of a set.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PruneItem<'a> {
    /// The set.
    pub set: &'a SnapshotSet,
    /// Whether it goes.
    pub delete: bool,
    /// Why.
    pub reason: String,
}

/// Which sets of the store `store_id` go, because they are older than `older_than`.
///
/// The newest completed set of every volume of every instance stays, and so does what is not completed yet, what another
/// store owns, and what `stays` gives a reason for.
pub fn plan_prune<'a>(
    sets: &'a [SnapshotSet],
    store_id: &str,
    older_than: TimeDelta,
    now: DateTime<Utc>,
    stays: impl Fn(&BackupId) -> Option<String>,
) -> Vec<PruneItem<'a>> {
    let mut seen: BTreeSet<(Option<&str>, &str)> = BTreeSet::new();
    let mut newest_first: Vec<&SnapshotSet> = sets.iter().collect();
    newest_first.sort_by_key(|s| std::cmp::Reverse(s.started_at()));
    let judge = |set: &'a SnapshotSet| {
        let mut keep = None;
        let mut note = |reason: String| {
            keep.get_or_insert(reason);
        };
        if set.owner.as_deref() != Some(store_id) {
            note("another store or program made it".to_owned());
        }
        // Those of others count for nothing here: they may go at any time.
        if set.owner.as_deref() == Some(store_id) && set.is_completed() {
            for s in &set.snapshots {
                if seen.insert((s.instance(), &s.volume)) {
                    note(format!("the newest completed one of {}", s.volume));
                }
            }
        }
        if !set.is_completed() && !set.is_failed() {
            note("not completed".to_owned());
        }
        if now - set.started_at() <= older_than {
            note("young enough".to_owned());
        }
        if let Some(reason) = set.backup.as_ref().and_then(&stays) {
            note(reason);
        }
        let failed = if set.is_failed() { ", and failed" } else { "" };
        match keep {
            Some(reason) => PruneItem { set, delete: false, reason },
            None => PruneItem { set, delete: true, reason: format!("older than asked for{failed}") },
        }
    };
    newest_first.into_iter().map(judge).collect()
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::snapshot;
    use super::super::{BACKUP, MEMBERS, RUN, SnapshotState};
    use super::*;

    const DAY: i64 = 86_400;

    fn one(id: &str, volume: &str, day: i64, owner: &str) -> Snapshot {
        let at = format!("ebs/daily/202603{:02}_000000", day + 1);
        let tags = [(OWNER, owner), (RUN, id), (BACKUP, at.as_str()), (MEMBERS, "1"), ("Instance", "i-1")];
        snapshot(id, volume, day * DAY, &tags)
    }

    fn verdicts(snapshots: Vec<Snapshot>, stays: &str) -> Vec<(String, bool, String)> {
        let sets = sets(snapshots);
        let now = DateTime::from_timestamp(20 * DAY, 0).unwrap();
        let stays = |id: &BackupId| (id.to_string() == stays).then(|| "held".to_owned());
        let plan = plan_prune(&sets, "ours", TimeDelta::days(7), now, stays);
        plan.into_iter().map(|i| (i.set.snapshots[0].id.clone(), i.delete, i.reason)).collect()
    }

    #[test]
    fn only_our_own_old_completed_ones_go_and_never_the_newest() {
        let pending = Snapshot { state: SnapshotState::Pending, ..one("pending", "v", 6, "ours") };
        let failed = Snapshot { state: SnapshotState::Error, ..one("failed", "v", 5, "ours") };
        let all = vec![
            one("old", "v", 1, "ours"),
            one("held", "v", 2, "ours"),
            one("newest", "v", 4, "ours"),
            one("other-volume", "w", 1, "ours"),
            one("foreign", "v", 1, "theirs"),
            snapshot("script", "v", DAY, &[("Name", "X-daily-1"), ("Project", "truth-si")]),
            pending,
            failed,
        ];
        let found = verdicts(all, "ebs/daily/20260303_000000");
        let gone: Vec<&str> = found.iter().filter(|v| v.1).map(|v| v.0.as_str()).collect();
        assert_eq!(gone, ["failed", "old"], "{found:#?}");
        let reason = |id: &str| found.iter().find(|v| v.0 == id).unwrap().2.clone();
        assert_eq!(reason("newest"), "the newest completed one of v");
        assert_eq!(reason("held"), "held");
        assert_eq!(reason("pending"), "not completed");
        assert!(reason("foreign").contains("another") && reason("script").contains("another"));
    }

    #[test]
    fn what_is_young_stays_however_many_there_are() {
        let all = (14..20).map(|day| one(&format!("s{day}"), "v", day, "ours")).collect();
        assert!(verdicts(all, "").iter().all(|v| !v.1));
    }
}
