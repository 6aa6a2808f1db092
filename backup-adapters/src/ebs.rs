//! `ebs`: snapshots of the EBS volumes of an EC2 instance, all of one moment.
//!
//! ```toml
//! [services.ebs]
//! kind = "ebs"
//! instance = "i-0abc"                 # default: the instance that this runs on, as its metadata service says
//! volumes = ["/dev/sdf", "vol-0abc"]  # default: all that are attached
//! boot = false                        # leave the boot volume out (default: true)
//! region = "eu-central-1"             # default: as the other tools of AWS find it
//! name_prefix = "TruthSI"             # tag Name: TruthSI-<reason>-<timestamp> (default: backup)
//! tags = { Project = "truth-si" }     # besides Name, Instance, Device and Reason
//! freeze = ["/mnt/data"]              # file systems that stand still meanwhile (default: none)
//! max_interruption = "10s"            # how long at most
//! ```
//!
//! A set is made by one call of `CreateSnapshots`: crash-consistent over all volumes, as after a power cut at one moment
//! (<https://docs.aws.amazon.com/ebs/latest/userguide/ebs-creating-snapshot.html>). That call knows no client token, so
//! each set carries the run's id as a tag, and is looked for by it before anything is tried again. The call returns at
//! once; the data is copied later, maybe after the host is gone. Until then the backup is `pending`.
//!
//! Whose a snapshot is, tags tell: what has no [`OWNER`] tag with the id of our store is never deleted. They are also
//! enough to restore by ([`Ebs::plan_restore_of`]): a new instance has no catalogue yet.
//!
//! Keys come from the configuration (`access_key_id`, `secret_access_key`, `session_token` as references), else from where
//! all clients of AWS look for them: environment, profile, web identity, the container's or the instance's role.

mod account;
mod capture;
mod client;
mod fault;
mod freeze;
mod hand;
mod host;
mod keep;
mod model;
mod restore;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backup_core::runtime::{InterruptionEntry, Replay};
use backup_core::{
    AdapterConfig, AdapterError, AdapterErrorKind, ArtifactMeta, BackupSource, BuildContext, Capabilities,
    CheckPurpose, ConfigError, ContentCheck, ExternalRef, ExternalState, HandContext, HandStep, Metadata,
    OpContext, RunId, SecretRef, ServiceAdapter,
};
use serde::Deserialize;

pub use account::{PruneItem, plan_prune};
pub use host::Host;
pub use model::{Snapshot, SnapshotSet, SnapshotState};
pub use restore::{RestoreOf, Restored, VolumePlan, VolumesPlan};

/// Whose snapshot it is: the id of the store whose catalogue knows it.
pub const OWNER: &str = "backup:owner";
/// The run that made it.
pub const RUN: &str = "backup:run";
/// The backup that it is a part of, as `SERVICE/INTERVAL/TIMESTAMP`.
pub const BACKUP: &str = "backup:id";
/// How many snapshots its set has.
pub const MEMBERS: &str = "backup:members";
/// Which volume was which device, of the whole set: known even if the host died before each snapshot got its own tags.
pub const DEVICES: &str = "backup:devices";
/// What the volume was: type, operations and MiB per second, zone, and whether the instance boots from it.
pub const VOLUME: &str = "backup:volume";
/// On volumes: the snapshot that it was made from, while the restore is not done.
pub const RESTORING: &str = "backup:restoring";

/// The keys of a service of the kind `ebs`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EbsConfig {
    /// The instance; the one that this runs on if there is none.
    #[serde(default)]
    pub instance: Option<String>,
    /// Only these volumes, by id or device; all that are attached if empty.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// Whether the volume is taken that the instance boots from.
    #[serde(default = "yes")]
    pub boot: bool,
    /// The region.
    #[serde(default)]
    pub region: Option<String>,
    /// Further tags of each snapshot.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Mount points whose file systems are frozen (`fsfreeze`) until EC2 has answered.
    #[serde(default)]
    pub freeze: Vec<PathBuf>,
    /// How long they may be, e.g. `10s`: then the watchdog thaws them. 10 s unless set.
    #[serde(default)]
    pub max_interruption: Option<String>,
    /// What the tag `Name` begins with.
    #[serde(default = "name_prefix")]
    pub name_prefix: String,
    /// Where EC2 is, if it is not that of AWS: a URL.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The id of the access key.
    #[serde(default)]
    pub access_key_id: Option<SecretRef>,
    /// The access key.
    #[serde(default)]
    pub secret_access_key: Option<SecretRef>,
    /// The session token that belongs to it.
    #[serde(default)]
    pub session_token: Option<SecretRef>,
}

fn yes() -> bool {
    true
}

fn name_prefix() -> String {
    "backup".to_owned()
}

impl AdapterConfig for EbsConfig {
    const KIND: &'static str = "ebs";
    const SUMMARY: &'static str = "snapshots of the EBS volumes of an EC2 instance";
    const PROVEN: &'static str = "tested against a simulated EC2 (moto), with faults; not yet on AWS itself";

    fn build(self, cx: &BuildContext) -> Result<Arc<dyn ServiceAdapter>, ConfigError> {
        Ok(Arc::new(Ebs::new(self, cx)?))
    }
}

/// The volumes of one instance, and the snapshots of an account.
#[derive(Debug, Clone)]
pub struct Ebs {
    config: Arc<EbsConfig>,
    /// How long file systems may be frozen.
    limit: Duration,
}

impl Ebs {
    /// The adapter as configured.
    ///
    /// # Errors
    /// [`ConfigError`] that names the key.
    pub fn new(mut config: EbsConfig, cx: &BuildContext) -> Result<Self, ConfigError> {
        if let Some(instance) = config.instance.as_ref().filter(|i| !i.starts_with("i-")) {
            return Err(ConfigError::new(format!("`{}` is no id of an instance", instance.escape_debug()))
                .at("instance")
                .hint("write it like `i-0123456789abcdef0`, or leave the key out for this instance"));
        }
        if let Some(volume) =
            config.volumes.iter().find(|v| !v.starts_with("vol-") && !v.starts_with("/dev/"))
        {
            return Err(ConfigError::new(format!(
                "`{}` is neither a volume nor a device",
                volume.escape_debug()
            ))
            .at("volumes")
            .hint("write `vol-0123456789abcdef0` or `/dev/sdf`"));
        }
        if let Some(key) = config.tags.keys().find(|k| is_reserved(k)) {
            return Err(ConfigError::new(format!(
                "the tag `{}` is set by the backup itself",
                key.escape_debug()
            ))
            .at("tags")
            .hint("Name is made of `name_prefix`; leave the others out"));
        }
        // EC2 allows 50; the rest is ours.
        if config.tags.len() > 30 {
            return Err(ConfigError::new("more than 30 tags").at("tags"));
        }
        if config.access_key_id.is_some() != config.secret_access_key.is_some() {
            return Err(ConfigError::new("`access_key_id` and `secret_access_key` come together")
                .hint("set both, or none: then they are looked for where all clients of AWS look"));
        }
        if let Some(path) = config.freeze.iter().find(|p| !p.is_absolute()) {
            let path = path.display().to_string();
            return Err(ConfigError::new(format!("`{}` is no absolute path", path.escape_debug()))
                .at("freeze")
                .hint("write where a file system is mounted, e.g. `/mnt/data`"));
        }
        let limit = limit(config.max_interruption.as_deref())?;
        let endpoint = config.endpoint.as_deref();
        if endpoint.is_some_and(|e| !e.starts_with("http://") && !e.starts_with("https://")) {
            return Err(ConfigError::new("the endpoint is no URL").at("endpoint").hint("write `https://…`"));
        }
        for key in [&mut config.access_key_id, &mut config.secret_access_key, &mut config.session_token] {
            *key = key.take().map(|k| k.relative_to(&cx.base_dir));
        }
        Ok(Self { config: Arc::new(config), limit })
    }

    /// The volumes of the instance that are deleted when it ends (`DeleteOnTermination`), less the one that it boots from,
    /// which usually is: devices with their volumes.
    ///
    /// # Errors
    /// Those of `DescribeInstances`.
    pub async fn ending_with_the_instance(&self, cx: &OpContext) -> Result<Vec<String>, AdapterError> {
        let ec2 = self.connect(cx).await?;
        let attached = self.instance(cx, &ec2).await?.attached;
        let ending = attached.into_iter().filter(|a| a.ends && !a.boot);
        Ok(ending.map(|a| format!("{} ({})", a.device, a.volume)).collect())
    }
}

/// How long file systems may be frozen.
fn limit(text: Option<&str>) -> Result<Duration, ConfigError> {
    let Some(text) = text else { return Ok(freeze::LIMIT) };
    let (least, most) = freeze::LIMITS;
    humantime::parse_duration(text).ok().filter(|limit| (least..=most).contains(limit)).ok_or_else(|| {
        ConfigError::new(format!("`{}` is no time between 1 s and 60 s", text.escape_debug()))
            .at("max_interruption")
            .hint("write e.g. `10s`")
    })
}

fn is_reserved(tag: &str) -> bool {
    tag.starts_with("aws:")
        || tag.starts_with("backup:")
        || ["Name", "Instance", "Device", "Reason"].contains(&tag)
}

#[async_trait]
impl ServiceAdapter for Ebs {
    fn kind(&self) -> &'static str {
        EbsConfig::KIND
    }

    fn capabilities(&self) -> Capabilities {
        // What a restore makes is a new volume: `Ebs::restore`. Tags alone are enough to find snapshots by.
        Capabilities::backup_only().with_found_without_catalog()
    }

    async fn check(&self, cx: &OpContext) -> Result<(), AdapterError> {
        cx.check_alive()?;
        let ec2 = self.connect(cx).await?;
        let instance = self.instance(cx, &ec2).await?;
        let chosen = capture::choose(&instance, &self.config)?;
        let set = chosen.wanted.into_iter().map(|a| a.volume).collect();
        freeze::Freeze::look(self, cx, &instance.id, set).await.map(drop)
    }

    async fn open(&self, cx: &OpContext) -> Result<BackupSource, AdapterError> {
        capture::open(self, cx).await
    }

    fn content_check(&self, _: &CheckPurpose, _: &ArtifactMeta) -> Option<Box<dyn ContentCheck>> {
        None
    }

    fn by_hand(&self, backup: &HandContext<'_>) -> Vec<HandStep> {
        hand::steps(backup)
    }

    async fn reclaim(&self, _: &OpContext, _: &[RunId]) -> Result<Vec<String>, AdapterError> {
        // A backup may refer to whatever is there: `reclaim_external` is told which runs committed none.
        Ok(Vec::new())
    }

    async fn reclaim_external(&self, cx: &OpContext, dead: &[RunId]) -> Result<Vec<String>, AdapterError> {
        keep::reclaim(self, cx, dead).await
    }

    async fn bring_back(&self, cx: &OpContext, entry: &InterruptionEntry) -> Result<Replay, AdapterError> {
        freeze::bring_back(cx, entry).await
    }

    async fn external_state(&self, cx: &OpContext, backup: &Metadata) -> Result<ExternalState, AdapterError> {
        keep::state(self, cx, backup).await
    }

    async fn purge_external(&self, cx: &OpContext, refs: &[ExternalRef]) -> Result<(), AdapterError> {
        keep::purge(self, cx, refs).await
    }
}

/// An error of this adapter.
fn error(kind: AdapterErrorKind, message: impl Into<String>) -> AdapterError {
    AdapterError::new(kind, message)
}

#[cfg(test)]
mod tests {
    use backup_core::ServiceName;

    use super::*;

    fn built(text: &str) -> Result<Ebs, ConfigError> {
        let config: EbsConfig = toml::from_str(text).unwrap();
        Ebs::new(config, &BuildContext::new(ServiceName::new("ebs").unwrap(), "/etc/backup"))
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (text, says) in [
            ("instance = 'web'", "`web`"),
            ("volumes = ['sdf']", "`sdf`"),
            ("tags = { Name = 'x' }", "`Name`"),
            ("tags = { 'backup:owner' = 'x' }", "`backup:owner`"),
            ("endpoint = 'localhost:5000'", "endpoint"),
            ("access_key_id = { env = 'A' }", "come together"),
            ("freeze = ['data']", "`data` is no absolute path"),
            ("max_interruption = '5 parsecs'", "`5 parsecs`"),
            ("max_interruption = '2min'", "60 s"),
        ] {
            let e = built(text).unwrap_err();
            assert!(e.to_string().contains(says), "{text}: {e}");
        }
        built("").unwrap();
        assert_eq!(built("max_interruption = '1500ms'").unwrap().limit, Duration::from_millis(1500));
        built("volumes = ['/dev/sdf', 'vol-1']\ntags = { Project = 'truth-si' }").unwrap();
    }
}
