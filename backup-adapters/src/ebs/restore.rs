//! Snapshots to volumes of an instance: planned, then done step by step, and taken up again where it was cut off.

use std::path::PathBuf;
use std::time::Duration;

use backup_core::{AdapterError, AdapterErrorKind, Advice, BackupId, OpContext};
use chrono::{DateTime, Utc};
use serde::Serialize;

use super::client::{Ec2, this_instance};
use super::model::{Instance, Snapshot, SnapshotSet, SnapshotState, Tags, Traits, Volume};
use super::{BACKUP, Ebs, Host, RESTORING, error};

/// How long a volume may take to be available, or attached, or to show as a device.
const STEP: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_secs(1);

/// What to restore, and where to.
#[derive(Debug, Clone, Default)]
pub struct RestoreOf {
    /// Exactly this snapshot, instead of the newest completed set.
    pub snapshot: Option<String>,
    /// The newest completed set of that moment or before.
    pub at: Option<DateTime<Utc>>,
    /// Only sets of this instance.
    pub from: Option<String>,
    /// The instance that gets the volumes; this one by default.
    pub instance: Option<String>,
    /// The zone, if no instance is to get them.
    pub zone: Option<String>,
    /// As which device; a free one by default.
    pub device: Option<String>,
    /// Where it is mounted, on this instance only.
    pub mount: Option<PathBuf>,
}

/// What a restore will do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VolumesPlan {
    /// The backup, if this program made it.
    pub backup: Option<BackupId>,
    /// The moment whose data it holds.
    pub started_at: DateTime<Utc>,
    /// The instance that it was made of.
    pub from: Option<String>,
    /// The instance that gets the volumes; without one, they are only made.
    pub instance: Option<String>,
    /// Whether that is the one that this runs on.
    pub here: bool,
    /// The availability zone.
    pub zone: String,
    /// One for each volume.
    pub volumes: Vec<VolumePlan>,
    /// What to know, one line each.
    pub notes: Vec<String>,
}

/// What will be done for one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VolumePlan {
    /// The snapshot.
    pub snapshot: String,
    /// The volume that it was made of.
    pub source: String,
    /// The device that this was.
    pub source_device: Option<String>,
    /// Size in GiB.
    pub gib: u64,
    /// Whether it is encrypted by EBS, as its source.
    pub encrypted: bool,
    /// Its type, e.g. `gp3`; that of the account if it is not known.
    pub volume_type: Option<String>,
    /// Operations per second.
    pub iops: Option<i32>,
    /// MiB per second.
    pub throughput: Option<i32>,
    /// The volume that a restore which was cut off had made.
    pub existing: Option<String>,
    /// As which device it is attached.
    pub device: Option<String>,
    /// Where it is mounted.
    pub mount: Option<PathBuf>,
}

/// A volume that was restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Restored {
    /// The snapshot.
    pub snapshot: String,
    /// The new volume.
    pub volume: String,
    /// As which device it is attached.
    pub device: Option<String>,
    /// The block device on this host.
    pub block: Option<PathBuf>,
    /// Where it is mounted.
    pub mount: Option<PathBuf>,
}

impl Ebs {
    /// Finds out what a restore would do; changes nothing. Works by tags alone, without any catalogue.
    ///
    /// # Errors
    /// `NotFound` if there is no completed set; `Conflict` for a zone, device or directory that cannot be used; those of EC2.
    pub async fn plan_restore_of(
        &self,
        cx: &OpContext,
        host: &Host,
        what: &RestoreOf,
    ) -> Result<VolumesPlan, AdapterError> {
        let ec2 = self.connect(cx).await?;
        let mut notes = Vec::new();
        let (set, chosen) = self.choose_set(cx, &ec2, what, &mut notes).await?;
        let (instance, here) = target(cx, &ec2, what).await?;
        let zone = match (&instance, &what.zone) {
            (Some(i), Some(zone)) if i.zone != *zone => {
                let text = format!("the instance {} is in {}, not in {zone}", i.id, i.zone);
                let cause = Advice::new("a volume can only be attached in its own zone", "leave `--az` out");
                return Err(error(AdapterErrorKind::Conflict, text).with_source(cause));
            }
            (Some(i), _) => i.zone.clone(),
            (None, Some(zone)) => zone.clone(),
            (None, None) => {
                return Err(error(
                    AdapterErrorKind::InvalidConfig,
                    "neither an instance nor a zone is known",
                ));
            }
        };
        if chosen.len() > 1 && (what.device.is_some() || what.mount.is_some()) {
            let each: Vec<String> =
                chosen.iter().map(|s| format!("{} ({})", s.id, s.device().unwrap_or("?"))).collect();
            let cause = Advice::new(each.join(", "), "name one of them with `--snapshot`");
            let text = "one device or directory is named for several volumes";
            return Err(error(AdapterErrorKind::InvalidConfig, text).with_source(cause));
        }
        if let Some(dir) = &what.mount {
            if !here {
                return Err(error(
                    AdapterErrorKind::InvalidConfig,
                    "only a volume of this very instance can be mounted here",
                ));
            }
            host.check_free(dir)?;
        }
        let ids: Vec<String> = chosen.iter().map(|s| s.id.clone()).collect();
        let begun = ec2.volumes(cx, &format!("tag:{RESTORING}"), &ids).await?;
        let sources: Vec<String> = chosen.iter().map(|s| s.volume.clone()).collect();
        let sources = ec2.volumes(cx, "volume-id", &sources).await?;
        let mut taken: Vec<String> =
            instance.iter().flat_map(|i| &i.attached).map(|a| plain(&a.device).to_owned()).collect();
        let mut volumes = Vec::new();
        for s in &chosen {
            let traits = sources.get(&s.volume).map_or_else(|| s.traits(), |v| Traits::of(v, false));
            let tagged = ec2.made_of(&begun, s, &zone, instance.as_ref());
            let attached = tagged.and_then(|v| v.attached.as_ref()).map(|(_, device, _)| device.clone());
            let device = match (&instance, attached, &what.device) {
                (None, ..) => None,
                (_, Some(device), _) => Some(device),
                (_, None, Some(device)) if taken.iter().any(|t| t == plain(device)) => {
                    return Err(error(AdapterErrorKind::Conflict, format!("the device {device} is taken")));
                }
                (_, None, Some(device)) => Some(device.clone()),
                (_, None, None) => Some(free(s.device(), &taken)?),
            };
            taken.extend(device.iter().map(|d| plain(d).to_owned()));
            volumes.push(VolumePlan {
                snapshot: s.id.clone(),
                source: s.volume.clone(),
                source_device: s.device().map(str::to_owned),
                gib: s.gib,
                encrypted: s.encrypted,
                volume_type: traits.kind,
                iops: traits.iops,
                throughput: traits.throughput,
                existing: tagged.map(|v| v.id.clone()),
                device,
                mount: what.mount.clone(),
            });
        }
        notes.push(
            "blocks are fetched from the snapshot when they are first read: it is slow at first".to_owned(),
        );
        Ok(VolumesPlan {
            backup: set.backup.clone(),
            started_at: set.started_at(),
            from: chosen.iter().find_map(|s| s.instance().map(str::to_owned)),
            instance: instance.map(|i| i.id),
            here,
            zone,
            volumes,
            notes,
        })
    }

    /// Does what a plan says. The source is not touched. Killed at any point, the same plan, or a new one, goes on with the
    /// volumes that are there: until all is done they carry the tag [`RESTORING`].
    ///
    /// `step` hears what is done.
    ///
    /// # Errors
    /// Those of EC2 and of `mount`; what was made stays for the next attempt.
    pub async fn restore(
        &self,
        cx: &OpContext,
        host: &Host,
        plan: &VolumesPlan,
        step: &(dyn Fn(String) + Send + Sync),
    ) -> Result<Vec<Restored>, AdapterError> {
        let ec2 = self.connect(cx).await?;
        // What takes longest begins first, for all of them.
        let mut made = Vec::new();
        for v in &plan.volumes {
            let id = match &v.existing {
                Some(id) => id.clone(),
                None => {
                    let traits = Traits {
                        kind: v.volume_type.clone(),
                        iops: v.iops,
                        throughput: v.throughput,
                        ..Traits::default()
                    };
                    let id = ec2
                        .create_volume(cx, &v.snapshot, &plan.zone, &traits, &self.tags_of(plan, v))
                        .await?;
                    step(format!("made {id} of {} in {}", v.snapshot, plan.zone));
                    id
                }
            };
            made.push((v, id));
        }
        let mut restored = Vec::new();
        for (v, id) in made {
            restored.push(ec2.finish(cx, host, plan, v, id, step).await?);
        }
        Ok(restored)
    }

    fn tags_of(&self, plan: &VolumesPlan, v: &VolumePlan) -> Tags {
        let mut tags = self.config.tags.clone();
        let name = format!("{}-restored-{}", self.config.name_prefix, v.source);
        tags.extend([("Name".to_owned(), name), (RESTORING.to_owned(), v.snapshot.clone())]);
        tags.extend(plan.backup.as_ref().map(|b| (BACKUP.to_owned(), b.to_string())));
        tags
    }

    async fn choose_set(
        &self,
        cx: &OpContext,
        ec2: &Ec2,
        what: &RestoreOf,
        notes: &mut Vec<String>,
    ) -> Result<(SnapshotSet, Vec<Snapshot>), AdapterError> {
        if let Some(id) = &what.snapshot {
            let found = ec2.snapshots(cx, "snapshot-id", std::slice::from_ref(id)).await?.pop();
            let found = found.ok_or_else(|| {
                error(
                    AdapterErrorKind::NotFound,
                    format!("there is no snapshot {id} of this account in {}", ec2.region),
                )
            })?;
            if found.state != SnapshotState::Completed {
                let text = format!(
                    "{id} is {} ({}): nothing can be restored from it",
                    found.state.word(),
                    found.progress
                );
                return Err(error(AdapterErrorKind::Conflict, text));
            }
            let set = super::model::sets(vec![found.clone()]).pop();
            return set.map(|set| (set, vec![found])).ok_or_else(|| error(AdapterErrorKind::Other, "no set"));
        }
        for set in self.sets(cx).await? {
            let of_service = set.backup.as_ref().is_none_or(|b| b.service == cx.service);
            let of_instance = what
                .from
                .as_deref()
                .is_none_or(|from| set.snapshots.iter().all(|s| s.instance() == Some(from)));
            if !of_service || !of_instance || what.at.is_some_and(|at| set.started_at() > at) {
                continue;
            }
            if !set.is_completed() {
                let state: Vec<String> = set
                    .snapshots
                    .iter()
                    .map(|s| format!("{} {} {}", s.id, s.state.word(), s.progress))
                    .collect();
                notes.push(format!("passed over, as it is not completed: {}", state.join(", ")));
                continue;
            }
            // What an instance boots from is of no use beside another's.
            let data: Vec<Snapshot> = set.snapshots.iter().filter(|s| !s.traits().boot).cloned().collect();
            let chosen = if data.is_empty() { set.snapshots.clone() } else { data };
            if chosen.len() < set.snapshots.len() {
                notes.push(
                    "the volume that the instance booted from is left out; `--snapshot` takes it".to_owned(),
                );
            }
            return Ok((set, chosen));
        }
        let seen = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join("; ")) };
        let text =
            format!("there is no completed set of snapshots of `{}` in {}{seen}", cx.service, ec2.region);
        let cause = Advice::new(
            "none has its tags",
            "`backup ebs list` shows what there is; compare `region` and the keys",
        );
        Err(error(AdapterErrorKind::NotFound, text).with_source(cause))
    }
}

/// The instance that gets the volumes, and whether that is this one.
async fn target(
    cx: &OpContext,
    ec2: &Ec2,
    what: &RestoreOf,
) -> Result<(Option<Instance>, bool), AdapterError> {
    match (&what.instance, &what.zone) {
        (Some(id), _) => {
            // Whether it is this one matters only to what is mounted.
            let here = what.mount.is_some() && this_instance(cx).await.is_ok_and(|this| this == *id);
            Ok((Some(ec2.instance(cx, id).await?), here))
        }
        // To be made there; who is to have it, is said later.
        (None, Some(_)) if what.device.is_none() && what.mount.is_none() => Ok((None, false)),
        (None, _) => {
            let id = this_instance(cx).await?;
            Ok((Some(ec2.instance(cx, &id).await?), true))
        }
    }
}

/// Without what differs between the ways to name a device.
fn plain(device: &str) -> &str {
    let name = device.strip_prefix("/dev/").unwrap_or(device);
    name.strip_prefix("xvd").or_else(|| name.strip_prefix("sd")).unwrap_or(name)
}

/// A device that is free: that of the source, or one of those that AWS recommends for data.
fn free(source: Option<&str>, taken: &[String]) -> Result<String, AdapterError> {
    let recommended = ('f'..='p').map(|c| format!("/dev/sd{c}"));
    let is_data = |d: &&str| !matches!(plain(d), "a" | "a1");
    let mut all = source.filter(is_data).map(str::to_owned).into_iter().chain(recommended);
    all.find(|d| taken.iter().all(|t| t != plain(d)))
        .ok_or_else(|| error(AdapterErrorKind::Conflict, "no device is free: name one with `--device`"))
}

impl Ec2 {
    /// The volume that an earlier attempt has made of this snapshot, for the same target.
    fn made_of<'a>(
        &self,
        begun: &'a std::collections::BTreeMap<String, Volume>,
        snapshot: &Snapshot,
        zone: &str,
        instance: Option<&Instance>,
    ) -> Option<&'a Volume> {
        begun.values().find(|v| {
            let free_or_ours = v.attached.as_ref().is_none_or(|(i, ..)| instance.is_some_and(|t| t.id == *i));
            v.zone == zone
                && v.gib >= snapshot.gib
                && free_or_ours
                && v.source.as_deref() == Some(snapshot.id.as_str())
                && matches!(v.state.as_str(), "creating" | "available" | "in-use")
        })
    }

    async fn finish(
        &self,
        cx: &OpContext,
        host: &Host,
        plan: &VolumesPlan,
        v: &VolumePlan,
        id: String,
        step: &(dyn Fn(String) + Send + Sync),
    ) -> Result<Restored, AdapterError> {
        let mut restored = Restored {
            snapshot: v.snapshot.clone(),
            volume: id.clone(),
            device: None,
            block: None,
            mount: None,
        };
        let attached_here = |volume: &Volume| match (&volume.attached, &plan.instance) {
            (Some((i, _, state)), Some(target)) => i == target && state == "attached",
            _ => false,
        };
        self.wait(cx, &id, "available", |v| v.state == "available" || v.attached.is_some()).await?;
        if let (Some(instance), Some(device)) = (&plan.instance, &v.device) {
            let now = self.volume(cx, &id).await?;
            if now.is_none_or(|v| v.attached.is_none()) {
                self.attach(cx, &id, instance, device).await?;
            }
            self.wait(cx, &id, "attached", attached_here).await?;
            step(format!("attached {id} to {instance} as {device}"));
            restored.device = Some(device.clone());
            if plan.here {
                let block = find(cx, host, &id, device).await?;
                step(format!("{id} is {}", block.display()));
                if let Some(dir) = &v.mount {
                    host.mount(&block, dir).await?;
                    step(format!("mounted at {}", dir.display()));
                    restored.mount = Some(dir.clone());
                }
                restored.block = Some(block);
            }
        }
        // From here on it is a volume like any other: the next restore makes its own.
        if let Err(e) = self.untag(cx, &id, RESTORING).await {
            step(format!("all is done, but {id} keeps its tag `{RESTORING}`: {}", backup_core::chain(&e)));
        }
        Ok(restored)
    }

    async fn volume(&self, cx: &OpContext, id: &str) -> Result<Option<Volume>, AdapterError> {
        Ok(self.volumes(cx, "volume-id", &[id.to_owned()]).await?.remove(id))
    }

    async fn wait(
        &self,
        cx: &OpContext,
        id: &str,
        word: &str,
        done: impl Fn(&Volume) -> bool + Send + Sync,
    ) -> Result<(), AdapterError> {
        let cx = cx.limited_to(STEP);
        loop {
            // What was made is listed a little later.
            if let Some(volume) = self.volume(&cx, id).await? {
                if done(&volume) {
                    return Ok(());
                }
                if matches!(volume.state.as_str(), "error" | "deleting" | "deleted") {
                    let text = format!("{id} is in state `{}`: it will not be {word}", volume.state);
                    return Err(error(AdapterErrorKind::Other, text));
                }
            }
            cx.within(tokio::time::sleep(POLL)).await?;
        }
    }
}

async fn find(cx: &OpContext, host: &Host, volume: &str, device: &str) -> Result<PathBuf, AdapterError> {
    let cx = cx.limited_to(Duration::from_secs(60));
    loop {
        if let Some(block) = host.find(volume, device) {
            return Ok(block);
        }
        if cx.within(tokio::time::sleep(POLL)).await.is_err() {
            cx.check_alive().or_else(|e| if cx.cancel.is_cancelled() { Err(e) } else { Ok(()) })?;
            let cause = Advice::new(
                "no block device has its serial number",
                "look with `lsblk -o +SERIAL`, then mount it by hand",
            );
            return Err(error(AdapterErrorKind::NotFound, format!("{volume} does not show on this host"))
                .with_source(cause));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_device_is_that_of_the_source_or_the_next() {
        let taken = |all: &[&str]| all.iter().map(|d| plain(d).to_owned()).collect::<Vec<_>>();
        assert_eq!(free(Some("/dev/sdb"), &taken(&["/dev/sda1"])).unwrap(), "/dev/sdb");
        assert_eq!(
            free(Some("/dev/sdf"), &taken(&["/dev/xvdf"])).unwrap(),
            "/dev/sdg",
            "the same by another name"
        );
        assert_eq!(
            free(Some("/dev/sda1"), &[]).unwrap(),
            "/dev/sdf",
            "that of the boot volume is none for data"
        );
        let all: Vec<String> = ('f'..='p').map(String::from).collect();
        assert!(free(None, &all).unwrap_err().to_string().contains("--device"));
    }
}
