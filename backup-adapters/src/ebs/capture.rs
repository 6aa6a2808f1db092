//! One set of snapshots of one moment, and how it comes to be there exactly once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backup_core::{
    AdapterError, AdapterErrorKind, Artifact, ArtifactName, BackupId, BackupSource, CaptureReport,
    Consistency, ExternalRef, Interval, OpContext, ReadOutcome, Settlement,
};
use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::client::Ec2;
use super::fault::Fault;
use super::freeze::{Freeze, Thawed};
use super::model::{Attached, Instance, Snapshot, SnapshotState, Tags, Traits, Volume, device_tags};
use super::{BACKUP, Ebs, EbsConfig, Host, MEMBERS, OWNER, RUN, VOLUME, error};

/// The kind of our external references.
pub(super) const KIND: &str = "ebs-snapshot";
/// EC2 wants so long between two snapshots of a volume
/// (<https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html>).
const TOO_SOON: Duration = Duration::from_secs(15);
/// What is made is listed a little later.
const LISTED_AFTER: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(5)];
/// How long a request that nobody waits for any more may go on before its result is not waited for.
const LAST_REQUEST: Duration = Duration::from_secs(60);
const ATTEMPTS: u32 = 5;

/// What is to be in the set, and what is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) wanted: Vec<Attached>,
    /// Data volumes that are left out.
    pub(super) without: Vec<String>,
    pub(super) without_boot: bool,
}

/// Which of the instance's volumes are wanted.
pub(super) fn choose(instance: &Instance, config: &EbsConfig) -> Result<Choice, AdapterError> {
    let named = |a: &Attached| config.volumes.iter().any(|v| *v == a.volume || *v == a.device);
    if let Some(missing) =
        config.volumes.iter().find(|v| instance.attached.iter().all(|a| **v != a.volume && **v != a.device))
    {
        let there: Vec<String> =
            instance.attached.iter().map(|a| format!("{} ({})", a.device, a.volume)).collect();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        let what = format!("{missing} is not attached to {}; attached: {there}", instance.id);
        return Err(error(AdapterErrorKind::NotFound, what));
    }
    let is_wanted = |a: &&Attached| match a.boot {
        true if config.volumes.is_empty() => config.boot,
        _ => config.volumes.is_empty() || named(a),
    };
    let (wanted, others): (Vec<&Attached>, Vec<&Attached>) = instance.attached.iter().partition(is_wanted);
    if wanted.is_empty() {
        let what = format!("the instance {} has no volume that is to be backed up", instance.id);
        return Err(error(AdapterErrorKind::NotFound, what));
    }
    Ok(Choice {
        without_boot: others.iter().any(|a| a.boot),
        without: others.iter().filter(|a| !a.boot).map(|a| a.volume.clone()).collect(),
        wanted: wanted.into_iter().cloned().collect(),
    })
}

/// Why a backup of this interval is made, in the words of the runbook.
pub(super) fn reason(interval: Option<&Interval>) -> String {
    match interval.map(Interval::as_str) {
        None => "manual".to_owned(),
        Some("spot") => "spot-warning".to_owned(),
        Some(other) => other.to_owned(),
    }
}

/// A set on its way.
#[derive(Debug)]
struct Making {
    ec2: Ec2,
    cx: OpContext,
    instance: Instance,
    choice: Choice,
    volumes: BTreeMap<String, Volume>,
    tags: Tags,
    id: String,
    freeze: Option<Freeze>,
    /// How the file systems stood still.
    stood: Mutex<Option<Thawed>>,
    begun: AtomicBool,
    ended: CancellationToken,
    /// Lives as long as the source, whose `settle` waits for it.
    task: Mutex<JoinSet<()>>,
    made: Mutex<Vec<String>>,
    report: Mutex<Option<CaptureReport>>,
}

/// How the set was made.
struct Made {
    snapshots: Vec<Snapshot>,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
    warnings: Vec<String>,
}

pub(super) async fn open(ebs: &Ebs, cx: &OpContext) -> Result<BackupSource, AdapterError> {
    cx.check_alive()?;
    let ec2 = ebs.connect(cx).await?;
    let instance = ebs.instance(cx, &ec2).await?;
    let choice = choose(&instance, &ebs.config)?;
    let ids: Vec<String> = choice.wanted.iter().map(|a| a.volume.clone()).collect();
    let volumes = ec2.volumes(cx, "volume-id", &ids).await?;
    // On a host that goes away other work saves what it can: it must not wait for a thaw.
    let freeze = if cx.last_chance { None } else { Freeze::look(ebs, cx, &instance.id, ids).await? };
    let hurried = cx.last_chance && !ebs.config.freeze.is_empty();
    let reason = reason(cx.interval.as_ref());
    let interval = cx.interval.clone().map_or_else(|| Interval::new("manual"), Ok);
    let interval = interval.map_err(|e| error(AdapterErrorKind::Other, e.to_string()))?;
    let id = BackupId { service: cx.service.clone(), interval, timestamp: cx.timestamp }.to_string();
    let mut tags = ebs.config.tags.clone();
    tags.extend(device_tags(&choice.wanted));
    let own = [
        ("Name", format!("{}-{reason}-{}", ebs.config.name_prefix, cx.timestamp)),
        ("Instance", instance.id.clone()),
        ("Reason", reason),
        (OWNER, cx.store_id.clone()),
        (RUN, cx.run_id.to_string()),
        (BACKUP, id.clone()),
        (MEMBERS, choice.wanted.len().to_string()),
    ];
    tags.extend(own.map(|(key, value)| (key.to_owned(), value)));
    let making = Arc::new(Making {
        ec2,
        cx: cx.clone(),
        instance,
        choice,
        volumes,
        tags,
        id,
        freeze,
        stood: Mutex::new(hurried.then(Thawed::default)),
        begun: AtomicBool::new(false),
        ended: CancellationToken::new(),
        task: Mutex::default(),
        made: Mutex::default(),
        report: Mutex::default(),
    });
    let (reported, settled) = (Arc::clone(&making), Arc::clone(&making));
    let artifacts = stream::once(artifacts(making)).map_ok(|all| stream::iter(all).map(Ok)).try_flatten();
    let source = BackupSource::new(artifacts, move |outcome| async move {
        let report = reported.report.lock().unwrap_or_else(PoisonError::into_inner).take();
        let now = reported.cx.clock.now();
        match (report, outcome) {
            (Some(report), _) => Ok(report),
            (None, ReadOutcome::Complete) => Err(error(AdapterErrorKind::Other, "no snapshots were made")),
            (None, _) => Ok(CaptureReport::new(MODE, Consistency::CrashConsistent, now, now)),
        }
    });
    Ok(source.on_settle(move |settlement| async move {
        // A backup that is committed refers to them, and one that may be may: `reclaim_external` will be told.
        match settlement {
            // When the host goes away with its store, they are what is left: tags alone are enough to restore by.
            Settlement::Abandoned if settled.cx.last_chance => Ok(()),
            Settlement::Abandoned => settled.remove().await,
            _ => Ok(()),
        }
    }))
}

const MODE: &str = "create-snapshots";

/// Why nothing was frozen although the configuration says so.
const HURRIED: &str = "nothing was frozen, because the host goes away: file systems are as after a power cut";

/// Makes the set, in a task that does not end with its reader: who asked EC2 for something must hear what came of it.
async fn artifacts(making: Arc<Making>) -> Result<Vec<Artifact>, AdapterError> {
    making.cx.check_alive()?;
    making.begun.store(true, Ordering::SeqCst);
    let (task, cx) = (Arc::clone(&making), making.cx.clone());
    let (tell, told) = oneshot::channel();
    making.task.lock().unwrap_or_else(PoisonError::into_inner).spawn(async move {
        let _ended = task.ended.clone().drop_guard();
        // Who does not wait any more hears of it from `settle`.
        let _nobody = tell.send(task.make().await);
    });
    let made = cx
        .within(told)
        .await?
        .map_err(|e| error(AdapterErrorKind::Other, "the snapshots were not made").with_source(e))??;
    let mut report = CaptureReport::new(MODE, Consistency::CrashConsistent, made.from, made.to);
    report.pending = made.snapshots.iter().any(|s| s.state != SnapshotState::Completed);
    report.warnings = made.warnings;
    let gib: u64 = made.snapshots.iter().map(|s| s.gib).sum();
    report.evidence.notes = [
        ("instance", making.instance.id.clone()),
        ("volumes", made.snapshots.len().to_string()),
        ("gib", gib.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    let stood = making.stood.lock().unwrap_or_else(PoisonError::into_inner).take();
    match &stood {
        Some(_) if making.freeze.is_none() => report.warnings.push(HURRIED.to_owned()),
        Some(stood) => stood.tell(&mut report),
        None => {}
    }
    let stood = stood.unwrap_or_default();
    let mounts = tokio::task::spawn_blocking({
        let ids: Vec<String> = made.snapshots.iter().map(|s| s.volume.clone()).collect();
        move || Host::this().mounts(&ids)
    });
    let mounts = mounts.await.unwrap_or_default();
    let artifact = |s: &Snapshot| {
        let frozen = stood.of(&s.volume);
        let artifact = making.artifact(s, mounts.get(&s.volume));
        if frozen.is_empty() { artifact } else { artifact.with_attribute("frozen", frozen) }
    };
    let all = made.snapshots.iter().map(artifact).collect();
    *making.report.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
    Ok(all)
}

impl Making {
    async fn make(&self) -> Result<Made, AdapterError> {
        let from = self.cx.clock.now();
        let snapshots = self.create().await?;
        let to = self.cx.clock.now();
        self.made
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(snapshots.iter().map(|s| s.id.clone()));
        if let Some(a) = self.choice.wanted.iter().find(|a| snapshots.iter().all(|s| s.volume != a.volume)) {
            let what = format!("EC2 made no snapshot of {} ({}): the set is not whole", a.device, a.volume);
            return Err(error(AdapterErrorKind::Other, what));
        }
        if let Some(failed) = snapshots.iter().find(|s| s.state == SnapshotState::Error) {
            let what =
                format!("the snapshot {} of {} is in error: the set is of no use", failed.id, failed.volume);
            return Err(error(AdapterErrorKind::Other, what));
        }
        let mut warnings = Vec::new();
        for snapshot in &snapshots {
            let (device, traits) = self.of(&snapshot.volume);
            let mut tags = Tags::from([(VOLUME.to_owned(), traits.tag())]);
            tags.extend(device.map(|d| ("Device".to_owned(), d.to_owned())));
            // Where each was is known without; what cannot be tagged can be restored all the same.
            if let Err(e) = self.ec2.tag(&self.cx, &snapshot.id, &tags).await {
                warnings.push(backup_core::chain(&e));
            }
        }
        Ok(Made { snapshots, from, to, warnings })
    }

    async fn create(&self) -> Result<Vec<Snapshot>, AdapterError> {
        let mut pause = Duration::from_secs(1);
        let mut attempt = 0;
        loop {
            attempt += 1;
            self.cx.check_alive()?;
            let description = format!("backup {} of {}", self.id, self.instance.id);
            let Choice { without, without_boot, .. } = &self.choice;
            let asked = self.ec2.create_snapshots(
                &self.instance.id,
                *without_boot,
                without,
                &description,
                &self.tags,
            );
            let fault: Fault = match self.still(asked).await? {
                Ok(made) => return Ok(made),
                Err(fault) => fault,
            };
            if !fault.is_refusal() {
                for wait in LISTED_AFTER {
                    self.pause(wait).await?;
                    let there = self.ours().await?;
                    if !there.is_empty() {
                        tracing::info!("The answer was lost; the snapshots are there.");
                        // They may have been made later than it looked.
                        if let Some(stood) = &mut *self.stood.lock().unwrap_or_else(PoisonError::into_inner) {
                            stood.to_the_end = false;
                        }
                        return Ok(there);
                    }
                }
            }
            let again = !fault.is_refusal() || fault.is_throttled() || fault.is_too_soon();
            if !again || attempt >= ATTEMPTS {
                let what = format!("make the snapshots of {}", self.instance.id);
                return Err(fault.during(what, "CreateSnapshots"));
            }
            pause = if fault.is_too_soon() { TOO_SOON } else { pause * 2 };
            self.pause(pause).await?;
        }
    }

    /// Asks while the file systems stand still, if they are to.
    async fn still<T>(&self, asked: impl Future<Output = T>) -> Result<T, AdapterError> {
        let Some(freeze) = &self.freeze else { return Ok(asked.await) };
        let (answer, thawed) = freeze.during(&self.cx, asked).await?;
        self.stood.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().then(thawed);
        Ok(answer)
    }

    async fn pause(&self, time: Duration) -> Result<(), AdapterError> {
        self.cx.within(tokio::time::sleep(time)).await
    }

    /// What this run made for this very backup.
    async fn ours(&self) -> Result<Vec<Snapshot>, AdapterError> {
        self.ours_in(&self.cx).await
    }

    async fn ours_in(&self, cx: &OpContext) -> Result<Vec<Snapshot>, AdapterError> {
        let of_run = self.ec2.snapshots(cx, &format!("tag:{RUN}"), &[cx.run_id.to_string()]).await?;
        Ok(of_run.into_iter().filter(|s| s.tag(BACKUP) == Some(&self.id)).collect())
    }

    /// Deletes the set: no backup will refer to it.
    async fn remove(&self) -> Result<(), AdapterError> {
        if !self.begun.load(Ordering::SeqCst) {
            return Ok(());
        }
        // Its run may be cancelled, or out of time: what was made has to go all the same.
        let mut calm = self.cx.clone();
        (calm.cancel, calm.deadline) = (CancellationToken::new(), None);
        let calm = calm.limited_to(LAST_REQUEST * 3);
        if tokio::time::timeout(LAST_REQUEST, self.ended.cancelled()).await.is_err() {
            let what = format!(
                "EC2 has not answered whether it made the snapshots of {}: `backup ebs list` tells",
                self.id
            );
            return Err(error(AdapterErrorKind::Timeout, what));
        }
        let known = self.made.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut ids = known;
        if ids.is_empty() {
            ids = self.ours_in(&calm).await?.into_iter().map(|s| s.id).collect();
        }
        for id in ids {
            self.ec2.delete(&calm, &id).await?;
        }
        Ok(())
    }

    fn of(&self, volume: &str) -> (Option<&str>, Traits) {
        let attached = self.instance.attached.iter().find(|a| a.volume == volume);
        let boot = attached.is_some_and(|a| a.boot);
        let traits = self.volumes.get(volume).map(|v| Traits::of(v, boot)).unwrap_or_default();
        (attached.map(|a| a.device.as_str()), traits)
    }

    fn artifact(&self, s: &Snapshot, mount: Option<&String>) -> Artifact {
        let mut location = BTreeMap::from([("region".to_owned(), self.ec2.region.clone())]);
        if !s.account.is_empty() {
            location.insert("account".to_owned(), s.account.clone());
        }
        let reference = ExternalRef { kind: KIND.to_owned(), id: s.id.clone(), location };
        let (device, traits) = self.of(&s.volume);
        let mut artifact = Artifact::external(ArtifactName::sanitized(&s.volume), reference)
            .with_attribute("volume", s.volume.clone())
            .with_attribute("instance", self.instance.id.clone())
            .with_attribute("size_gib", s.gib)
            .with_attribute("started_at", s.started_at.to_rfc3339())
            .with_attribute("encrypted", s.encrypted)
            .with_attribute("boot", traits.boot);
        let texts = [
            ("device", device.map(str::to_owned)),
            ("availability_zone", traits.zone),
            ("volume_type", traits.kind),
            ("mounted_at", mount.cloned()),
        ];
        for (key, value) in texts {
            if let Some(value) = value {
                artifact = artifact.with_attribute(key, value);
            }
        }
        for (key, value) in [("iops", traits.iops), ("throughput", traits.throughput)] {
            if let Some(value) = value {
                artifact = artifact.with_attribute(key, value);
            }
        }
        artifact
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance() -> Instance {
        let one = |device: &str, volume: &str, boot| Attached {
            device: device.into(),
            volume: volume.into(),
            boot,
            ends: boot,
        };
        let attached = vec![
            one("/dev/sda1", "vol-b", true),
            one("/dev/sdf", "vol-f", false),
            one("/dev/sdg", "vol-g", false),
        ];
        Instance { id: "i-1".into(), zone: "eu-1a".into(), attached }
    }

    fn chosen(text: &str) -> Result<(Vec<String>, bool, Vec<String>), AdapterError> {
        let choice = choose(&instance(), &toml::from_str(text).unwrap())?;
        Ok((choice.wanted.into_iter().map(|a| a.volume).collect(), choice.without_boot, choice.without))
    }

    fn strings(all: &[&str]) -> Vec<String> {
        all.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn all_volumes_are_taken_unless_some_are_named() {
        assert_eq!(chosen("").unwrap(), (strings(&["vol-b", "vol-f", "vol-g"]), false, vec![]));
        assert_eq!(chosen("boot = false").unwrap(), (strings(&["vol-f", "vol-g"]), true, vec![]));
        let one = (strings(&["vol-f"]), true, strings(&["vol-g"]));
        assert_eq!(chosen("volumes = ['/dev/sdf']").unwrap(), one);
        assert_eq!(chosen("volumes = ['vol-f']").unwrap(), one);
        let e = chosen("volumes = ['/dev/sdz']").unwrap_err();
        assert!(
            e.to_string().contains("/dev/sdz is not attached") && e.to_string().contains("/dev/sdf (vol-f)"),
            "{e}"
        );
    }

    #[test]
    fn reasons_are_those_of_the_runbook() {
        let of = |name: &str| reason(Some(&Interval::new(name).unwrap()));
        assert_eq!(
            (of("spot"), of("manual"), of("daily")),
            ("spot-warning".into(), "manual".into(), "daily".into())
        );
        assert_eq!(reason(None), "manual");
    }
}
