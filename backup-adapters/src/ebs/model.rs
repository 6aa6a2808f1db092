//! Instances, volumes, snapshots, and what their tags say: values without a network.

use std::collections::BTreeMap;

use backup_core::BackupId;
use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{BACKUP, DEVICES, MEMBERS, OWNER, RUN, VOLUME};

pub(super) type Tags = BTreeMap<String, String>;

/// The longest value of a tag that EC2 takes, in characters.
const TAG_CHARS: usize = 256;

/// How far a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SnapshotState {
    /// Its data is still being copied; what it holds is fixed.
    Pending,
    /// It can be restored from.
    Completed,
    /// It never will be.
    Error,
    /// In the recycle bin.
    Recoverable,
    /// Something that this version does not know.
    Unknown,
}

impl SnapshotState {
    /// One word, as EC2 has it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Completed => "completed",
            Self::Error => "error",
            Self::Recoverable => "recoverable",
            Self::Unknown => "unknown",
        }
    }
}

/// A snapshot of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// Its id.
    pub id: String,
    /// The volume that it was made of, which may be gone.
    pub volume: String,
    /// How far it is.
    pub state: SnapshotState,
    /// The same in percent, e.g. `64%`.
    pub progress: String,
    /// Why it failed.
    pub message: Option<String>,
    /// The moment whose data it holds.
    pub started_at: DateTime<Utc>,
    /// Size of the volume in GiB.
    pub gib: u64,
    /// Whether it is encrypted by EBS.
    pub encrypted: bool,
    /// The account.
    pub account: String,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

impl Snapshot {
    pub(super) fn tag(&self, key: &str) -> Option<&str> {
        self.tags.get(key).map(String::as_str)
    }

    /// The device that the volume was, e.g. `/dev/sdf`.
    #[must_use]
    pub fn device(&self) -> Option<&str> {
        let of_set = || {
            let lists = self.tags.iter().filter(|(key, _)| key.starts_with(DEVICES)).map(|(_, list)| list);
            let mut pairs = lists.flat_map(|list| list.split(' ')).filter_map(|pair| pair.split_once('='));
            pairs.find(|(volume, _)| *volume == self.volume).map(|(_, device)| device)
        };
        self.tag("Device").or_else(of_set)
    }

    /// The instance that the volume was attached to.
    #[must_use]
    pub fn instance(&self) -> Option<&str> {
        self.tag("Instance")
    }

    /// Why it was made.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.tag("Reason")
    }

    /// The backup that it is a part of.
    #[must_use]
    pub fn backup(&self) -> Option<BackupId> {
        self.tag(BACKUP)?.parse().ok()
    }

    pub(super) fn traits(&self) -> Traits {
        self.tag(VOLUME).map(Traits::parse).unwrap_or_default()
    }
}

/// Snapshots that were made by one call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SnapshotSet {
    /// The snapshots, by device.
    pub snapshots: Vec<Snapshot>,
    /// The backup, if this program made it.
    pub backup: Option<BackupId>,
    /// The id of the store that it belongs to.
    pub owner: Option<String>,
    /// How many snapshots it should have.
    pub members: usize,
}

impl SnapshotSet {
    /// The moment whose data it holds.
    #[must_use]
    pub fn started_at(&self) -> DateTime<Utc> {
        self.snapshots.iter().map(|s| s.started_at).min().unwrap_or_default()
    }

    /// Whether every member is there and completed.
    #[must_use]
    pub fn is_completed(&self) -> bool {
        self.snapshots.len() >= self.members
            && self.snapshots.iter().all(|s| s.state == SnapshotState::Completed)
    }

    /// Whether it will never be of use as a whole.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.snapshots.iter().any(|s| s.state == SnapshotState::Error)
    }
}

/// Puts snapshots together as they were made; newest first. What has no set of ours belongs together by its instance and
/// name, as the old script tagged it.
#[must_use]
pub(super) fn sets(snapshots: Vec<Snapshot>) -> Vec<SnapshotSet> {
    let mut by_key: BTreeMap<String, Vec<Snapshot>> = BTreeMap::new();
    for snapshot in snapshots {
        let tag = |key| snapshot.tag(key).unwrap_or_default();
        let key = match (tag(OWNER), tag(RUN), tag("Name")) {
            (owner, run, _) if !owner.is_empty() => format!("{owner} {run} {}", tag(BACKUP)),
            (_, _, name) if !name.is_empty() => format!("{} {name}", tag("Instance")),
            _ => snapshot.id.clone(),
        };
        by_key.entry(key).or_default().push(snapshot);
    }
    let mut sets: Vec<SnapshotSet> = by_key
        .into_values()
        .map(|mut snapshots| {
            snapshots.sort_by(|a, b| (a.device(), &a.id).cmp(&(b.device(), &b.id)));
            let first = snapshots.first();
            let members = first.and_then(|s| s.tag(MEMBERS)?.parse().ok()).unwrap_or(snapshots.len());
            let backup = first.and_then(Snapshot::backup);
            let owner = first.and_then(|s| s.tag(OWNER)).map(str::to_owned);
            SnapshotSet { backup, owner, members, snapshots }
        })
        .collect();
    // EC2 may tell no more than the second.
    sets.sort_by_key(|s| std::cmp::Reverse((s.started_at(), s.backup.as_ref().map(|b| b.timestamp))));
    sets
}

/// A volume that is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attached {
    pub(super) device: String,
    pub(super) volume: String,
    pub(super) boot: bool,
    /// It is deleted when the instance ends.
    pub(super) ends: bool,
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Instance {
    pub(super) id: String,
    pub(super) zone: String,
    pub(super) attached: Vec<Attached>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Volume {
    pub(super) id: String,
    pub(super) state: String,
    pub(super) zone: String,
    pub(super) gib: u64,
    /// The snapshot that it was made of.
    pub(super) source: Option<String>,
    pub(super) kind: String,
    pub(super) iops: Option<i32>,
    pub(super) throughput: Option<i32>,
    /// Instance, device, and how far that is.
    pub(super) attached: Option<(String, String, String)>,
}

/// What a volume was, as a tag keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Traits {
    pub(super) kind: Option<String>,
    pub(super) iops: Option<i32>,
    pub(super) throughput: Option<i32>,
    pub(super) zone: Option<String>,
    pub(super) boot: bool,
}

impl Traits {
    pub(super) fn of(volume: &Volume, boot: bool) -> Self {
        let kind = Some(volume.kind.clone()).filter(|k| !k.is_empty());
        // Of gp2 they follow from its size, and may not be asked for.
        let settable = |kinds: &[&str]| kinds.contains(&volume.kind.as_str());
        Self {
            iops: volume.iops.filter(|_| settable(&["gp3", "io1", "io2"])),
            throughput: volume.throughput.filter(|_| settable(&["gp3"])),
            zone: Some(volume.zone.clone()).filter(|z| !z.is_empty()),
            kind,
            boot,
        }
    }

    pub(super) fn parse(text: &str) -> Self {
        let mut traits = Self::default();
        for word in text.split(' ') {
            match word.split_once('=') {
                None if word == "boot" => traits.boot = true,
                Some(("type", v)) => traits.kind = Some(v.to_owned()),
                Some(("iops", v)) => traits.iops = v.parse().ok(),
                Some(("throughput", v)) => traits.throughput = v.parse().ok(),
                Some(("zone", v)) => traits.zone = Some(v.to_owned()),
                _ => {}
            }
        }
        traits
    }

    pub(super) fn tag(&self) -> String {
        let number = |name: &str, value: Option<i32>| value.map(|v| format!("{name}={v}"));
        let words = [
            self.kind.as_ref().map(|k| format!("type={k}")),
            number("iops", self.iops),
            number("throughput", self.throughput),
            self.zone.as_ref().map(|z| format!("zone={z}")),
            self.boot.then(|| "boot".to_owned()),
        ];
        words.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}

/// Which volume is which device, in as many tags as it takes.
pub(super) fn device_tags(attached: &[Attached]) -> Tags {
    let mut lists = vec![String::new()];
    for one in attached {
        let pair = format!("{}={}", one.volume, one.device);
        match lists.last_mut() {
            Some(last) if last.is_empty() => last.push_str(&pair),
            Some(last) if last.len() + 1 + pair.len() <= TAG_CHARS => last.push_str(&format!(" {pair}")),
            _ => lists.push(pair),
        }
    }
    let key = |n: usize| if n == 0 { DEVICES.to_owned() } else { format!("{DEVICES}.{n}") };
    // EC2 allows 50 tags: these are for about 40 volumes, and each snapshot gets its own `Device` as well.
    lists.into_iter().take(5).enumerate().map(|(n, list)| (key(n), list)).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::ebs) fn snapshot(id: &str, volume: &str, at: i64, tags: &[(&str, &str)]) -> Snapshot {
        Snapshot {
            id: id.to_owned(),
            volume: volume.to_owned(),
            state: SnapshotState::Completed,
            progress: "100%".to_owned(),
            message: None,
            started_at: DateTime::from_timestamp(at, 0).unwrap(),
            gib: 8,
            encrypted: false,
            account: "1".to_owned(),
            tags: tags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        }
    }

    #[test]
    fn a_set_with_a_member_that_is_missing_or_failed_is_not_completed() {
        let tags = [(OWNER, "s"), (RUN, "r"), (BACKUP, "ebs/daily/20260309_043820"), (MEMBERS, "2")];
        let one = snapshot("snap-1", "vol-1", 1, &tags);
        let two = snapshot("snap-2", "vol-2", 1, &tags);
        assert!(!sets(vec![one.clone()])[0].is_completed(), "one of two");
        let whole = sets(vec![one.clone(), two.clone()]);
        assert!(whole.len() == 1 && whole[0].is_completed());
        assert_eq!(whole[0].backup.as_ref().unwrap().to_string(), "ebs/daily/20260309_043820");
        let failed = Snapshot { state: SnapshotState::Error, ..two };
        let failed = sets(vec![one, failed]);
        assert!(!failed[0].is_completed() && failed[0].is_failed());
    }

    #[test]
    fn the_old_scripts_belong_together_by_instance_and_name_newest_first() {
        let old = |id: &str, at, name| snapshot(id, id, at, &[("Instance", "i-1"), ("Name", name)]);
        let all = sets(vec![old("a", 1, "X-daily-1"), old("b", 1, "X-daily-1"), old("c", 9, "X-manual-2")]);
        let ids = |s: &SnapshotSet| s.snapshots.iter().map(|s| s.id.clone()).collect::<Vec<_>>();
        assert_eq!(all.iter().map(ids).collect::<Vec<_>>(), [vec!["c"], vec!["a", "b"]]);
        assert!(all.iter().all(|s| s.owner.is_none() && s.is_completed()));
    }

    #[test]
    fn devices_are_known_from_the_set_however_many_volumes_there_are() {
        let attached: Vec<Attached> = (0..20)
            .map(|n| Attached {
                device: format!("/dev/sd{n}"),
                volume: format!("vol-{n:017}"),
                boot: n == 0,
                ends: n == 0,
            })
            .collect();
        let tags = device_tags(&attached);
        assert!(tags.values().all(|v| v.len() <= TAG_CHARS) && tags.len() > 1, "{tags:?}");
        for one in attached {
            let s = Snapshot { tags: tags.clone(), ..snapshot("s", &one.volume, 1, &[]) };
            assert_eq!(s.device(), Some(one.device.as_str()));
        }
    }

    #[test]
    fn what_a_volume_was_survives_its_tag() {
        let traits = Traits {
            kind: Some("gp3".into()),
            iops: Some(4000),
            throughput: Some(250),
            zone: Some("eu-1a".into()),
            boot: true,
        };
        assert_eq!(Traits::parse(&traits.tag()), traits);
        assert_eq!(Traits::parse("of somebody else"), Traits::default());
    }
}
