//! Calls of EC2, in our values.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_config::imds;
use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::http::HttpResponse;
use aws_sdk_ec2::config::retry::RetryConfig;
use aws_sdk_ec2::config::timeout::TimeoutConfig;
use aws_sdk_ec2::config::{BehaviorVersion, Builder, Credentials, Region};
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::types::{
    Filter, InstanceSpecification, ResourceType, SnapshotState as State, Tag, TagSpecification, VolumeType,
};
use backup_core::{AdapterError, AdapterErrorKind, OpContext, SecretRef};
use chrono::{DateTime, Utc};

use super::fault::Fault;
use super::model::{Attached, Instance, Snapshot, SnapshotState, Tags, Traits, Volume};
use super::{Ebs, error};

/// How long one request may take.
const ATTEMPT: Duration = Duration::from_secs(30);
/// How often the client tries again by itself what changes nothing, or knows its token.
const ATTEMPTS: u32 = 5;
/// EC2 takes so many values of one filter.
const VALUES: usize = 200;

/// EC2 in one region.
#[derive(Debug)]
pub(super) struct Ec2 {
    client: Client,
    pub(super) region: String,
}

impl Ebs {
    /// A client as configured.
    pub(super) async fn connect(&self, cx: &OpContext) -> Result<Ec2, AdapterError> {
        self.connect_to(cx, self.config.region.as_deref()).await
    }

    /// The same for another region. Nothing is asked yet, but for the instance's role and region.
    pub(super) async fn connect_to(&self, cx: &OpContext, region: Option<&str>) -> Result<Ec2, AdapterError> {
        let config = &self.config;
        let keys = self.keys(cx).await?;
        let builder = match (keys, region) {
            // All is said: nobody else is asked, neither the environment nor the instance.
            (Some(keys), Some(region)) => Builder::new()
                .behavior_version(BehaviorVersion::latest())
                .credentials_provider(keys)
                .region(Region::new(region.to_owned())),
            (keys, region) => {
                let mut loader = aws_config::defaults(BehaviorVersion::latest());
                if let Some(keys) = keys {
                    loader = loader.credentials_provider(keys);
                }
                if let Some(region) = region {
                    loader = loader.region(Region::new(region.to_owned()));
                }
                Builder::from(&cx.within(loader.load()).await?)
            }
        };
        let timeouts = TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT).build();
        let mut builder = builder
            .timeout_config(timeouts)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS));
        if let Some(endpoint) = &config.endpoint {
            builder.set_endpoint_url(Some(endpoint.clone()));
        }
        let built = builder.build();
        let Some(region) = built.region().map(ToString::to_string) else {
            return Err(error(
                AdapterErrorKind::InvalidConfig,
                "the region is not known: set `region` of the service",
            ));
        };
        Ok(Ec2 { client: Client::from_conf(built), region })
    }

    async fn keys(&self, cx: &OpContext) -> Result<Option<Credentials>, AdapterError> {
        let config = &self.config;
        let (Some(id), Some(secret)) = (config.access_key_id.clone(), config.secret_access_key.clone())
        else {
            return Ok(None);
        };
        let (token, secrets) = (config.session_token.clone(), std::sync::Arc::clone(&cx.secrets));
        // A secret may be the output of a program.
        let resolved = tokio::task::spawn_blocking(move || {
            let of = |reference: &SecretRef| secrets.resolve(reference).map(|s| s.expose().to_owned());
            let token = token.as_ref().map(of).transpose()?;
            Ok::<_, backup_core::ConfigError>(Credentials::new(
                of(&id)?,
                of(&secret)?,
                token,
                None,
                "backup.toml",
            ))
        });
        let resolved = cx.within(resolved).await?;
        let resolved =
            resolved.map_err(|e| error(AdapterErrorKind::Other, "cannot look up the keys").with_source(e))?;
        let wrong =
            |e| error(AdapterErrorKind::InvalidConfig, "the keys of EC2 cannot be had").with_source(e);
        resolved.map(Some).map_err(wrong)
    }

    /// The id of the instance: the configured one, or this one.
    pub(super) async fn instance_id(&self, cx: &OpContext) -> Result<String, AdapterError> {
        match &self.config.instance {
            Some(id) => Ok(id.clone()),
            None => this_instance(cx).await,
        }
    }

    /// The instance, as EC2 describes it.
    pub(super) async fn instance(&self, cx: &OpContext, ec2: &Ec2) -> Result<Instance, AdapterError> {
        let id = self.instance_id(cx).await?;
        ec2.instance(cx, &id).await
    }
}

/// The instance that this runs on, as its metadata service says.
pub(super) async fn this_instance(cx: &OpContext) -> Result<String, AdapterError> {
    let client = imds::Client::builder()
        .connect_timeout(Duration::from_secs(1))
        .read_timeout(Duration::from_secs(2))
        .max_attempts(2)
        .build();
    let id = cx.within(client.get("/latest/meta-data/instance-id")).await?;
    id.map(String::from).map_err(|e| {
        let help = "on another host, name the `instance` of the service; in a container, the metadata service needs a hop limit of 2";
        let cause = backup_core::Advice::new("the metadata service of EC2 (IMDSv2) does not say it", help);
        tracing::debug!(error = %backup_core::chain(&e), "No answer of the metadata service.");
        error(AdapterErrorKind::Unavailable, "cannot find out which instance this is").with_source(cause)
    })
}

fn filter(name: impl Into<String>, values: impl IntoIterator<Item = impl Into<String>>) -> Filter {
    Filter::builder().name(name).set_values(Some(values.into_iter().map(Into::into).collect())).build()
}

fn specification(resource: ResourceType, tags: &Tags) -> TagSpecification {
    TagSpecification::builder().resource_type(resource).set_tags(Some(to_tags(tags))).build()
}

fn to_tags(tags: &Tags) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}

fn from_tags(tags: &[Tag]) -> Tags {
    let pair = |t: &Tag| Some((t.key()?.to_owned(), t.value().unwrap_or_default().to_owned()));
    tags.iter().filter_map(pair).collect()
}

fn moment(at: Option<&aws_sdk_ec2::primitives::DateTime>) -> DateTime<Utc> {
    at.and_then(|at| DateTime::from_timestamp(at.secs(), at.subsec_nanos())).unwrap_or_default()
}

fn gib(size: Option<i32>) -> u64 {
    size.and_then(|s| u64::try_from(s).ok()).unwrap_or_default()
}

fn state(state: Option<&State>) -> SnapshotState {
    match state {
        Some(State::Pending | State::Recovering) => SnapshotState::Pending,
        Some(State::Completed) => SnapshotState::Completed,
        Some(State::Error) => SnapshotState::Error,
        Some(State::Recoverable) => SnapshotState::Recoverable,
        _ => SnapshotState::Unknown,
    }
}

impl Ec2 {
    async fn ask<T, E>(
        &self,
        cx: &OpContext,
        (what, action): (&str, &str),
        call: impl Future<Output = Result<T, SdkError<E, HttpResponse>>> + Send,
    ) -> Result<T, AdapterError>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        cx.within(call).await?.map_err(|e| Fault::of(&e).during(what, action))
    }

    pub(super) async fn instance(&self, cx: &OpContext, id: &str) -> Result<Instance, AdapterError> {
        let call = self.client.describe_instances().instance_ids(id).send();
        let what = format!("look at the instance {id}");
        let answer = self.ask(cx, (&what, "DescribeInstances"), call).await?;
        let found = answer.reservations().iter().flat_map(|r| r.instances()).next();
        let gone =
            || error(AdapterErrorKind::NotFound, format!("there is no instance {id} in {}", self.region));
        let found = found.ok_or_else(gone)?;
        let root = found.root_device_name().unwrap_or_default();
        let attached = found.block_device_mappings().iter().filter_map(|m| {
            let (device, volume) = (m.device_name()?.to_owned(), m.ebs()?.volume_id()?.to_owned());
            let ends = m.ebs()?.delete_on_termination().unwrap_or_default();
            Some(Attached { boot: device == root, device, volume, ends })
        });
        let zone = found.placement().and_then(|p| p.availability_zone()).unwrap_or_default();
        Ok(Instance { id: id.to_owned(), zone: zone.to_owned(), attached: attached.collect() })
    }

    /// Those of these volumes that are there, or all that have this tag.
    pub(super) async fn volumes(
        &self,
        cx: &OpContext,
        by: &str,
        values: &[String],
    ) -> Result<BTreeMap<String, Volume>, AdapterError> {
        let mut volumes = BTreeMap::new();
        for values in values.chunks(VALUES) {
            let mut pages =
                self.client.describe_volumes().filters(filter(by, values)).into_paginator().send();
            while let Some(page) = cx
                .within(pages.next())
                .await?
                .transpose()
                .map_err(|e| Fault::of(&e).during("look at the volumes", "DescribeVolumes"))?
            {
                for v in page.volumes() {
                    let attached = v.attachments().first().map(|a| {
                        let text = |t: Option<&str>| t.unwrap_or_default().to_owned();
                        let state = a.state().map(|s| s.as_str());
                        (text(a.instance_id()), text(a.device()), text(state))
                    });
                    let id = v.volume_id().unwrap_or_default().to_owned();
                    let volume = Volume {
                        id: id.clone(),
                        state: v.state().map(|s| s.as_str().to_owned()).unwrap_or_default(),
                        zone: v.availability_zone().unwrap_or_default().to_owned(),
                        gib: gib(v.size()),
                        source: v.snapshot_id().filter(|s| !s.is_empty()).map(str::to_owned),
                        kind: v.volume_type().map(|t| t.as_str().to_owned()).unwrap_or_default(),
                        iops: v.iops(),
                        throughput: v.throughput(),
                        attached,
                    };
                    volumes.insert(id, volume);
                }
            }
        }
        Ok(volumes)
    }

    /// The snapshots of this account for which a filter holds: one that is not there is no error.
    pub(super) async fn snapshots(
        &self,
        cx: &OpContext,
        by: &str,
        values: &[String],
    ) -> Result<Vec<Snapshot>, AdapterError> {
        let mut all = Vec::new();
        for values in values.chunks(VALUES) {
            let ask = self.client.describe_snapshots().owner_ids("self").filters(filter(by, values));
            let mut pages = ask.into_paginator().send();
            while let Some(page) = cx
                .within(pages.next())
                .await?
                .transpose()
                .map_err(|e| Fault::of(&e).during("look at the snapshots", "DescribeSnapshots"))?
            {
                all.extend(page.snapshots().iter().map(|s| Snapshot {
                    id: s.snapshot_id().unwrap_or_default().to_owned(),
                    volume: s.volume_id().unwrap_or_default().to_owned(),
                    state: state(s.state()),
                    progress: s.progress().unwrap_or_default().to_owned(),
                    message: s.state_message().filter(|m| !m.is_empty()).map(str::to_owned),
                    started_at: moment(s.start_time()),
                    gib: gib(s.volume_size()),
                    encrypted: s.encrypted().unwrap_or_default(),
                    account: s.owner_id().unwrap_or_default().to_owned(),
                    tags: from_tags(s.tags()),
                }));
            }
        }
        Ok(all)
    }

    /// One call for the whole set, tried once: whoever does not know whether it was done looks before the next time.
    pub(super) async fn create_snapshots(
        &self,
        instance: &str,
        without_boot: bool,
        without: &[String],
        description: &str,
        tags: &Tags,
    ) -> Result<Vec<Snapshot>, Fault> {
        let which = InstanceSpecification::builder()
            .instance_id(instance)
            .exclude_boot_volume(without_boot)
            .set_exclude_data_volume_ids((!without.is_empty()).then(|| without.to_vec()))
            .build();
        let once = aws_sdk_ec2::config::Config::builder().retry_config(RetryConfig::disabled());
        let answer = self
            .client
            .create_snapshots()
            .instance_specification(which)
            .description(description)
            .tag_specifications(specification(ResourceType::Snapshot, tags))
            .customize()
            .config_override(once)
            .send()
            .await
            .map_err(|e| Fault::of(&e))?;
        Ok(answer
            .snapshots()
            .iter()
            .map(|s| Snapshot {
                id: s.snapshot_id().unwrap_or_default().to_owned(),
                volume: s.volume_id().unwrap_or_default().to_owned(),
                state: state(s.state()),
                progress: s.progress().unwrap_or_default().to_owned(),
                message: None,
                started_at: moment(s.start_time()),
                gib: gib(s.volume_size()),
                encrypted: s.encrypted().unwrap_or_default(),
                account: s.owner_id().unwrap_or_default().to_owned(),
                tags: tags.clone(),
            })
            .collect())
    }

    pub(super) async fn tag(&self, cx: &OpContext, resource: &str, tags: &Tags) -> Result<(), AdapterError> {
        let call = self.client.create_tags().resources(resource).set_tags(Some(to_tags(tags))).send();
        self.ask(cx, (&format!("tag {resource}"), "CreateTags"), call).await.map(drop)
    }

    pub(super) async fn untag(&self, cx: &OpContext, resource: &str, key: &str) -> Result<(), AdapterError> {
        let call = self.client.delete_tags().resources(resource).tags(Tag::builder().key(key).build()).send();
        self.ask(cx, (&format!("remove a tag of {resource}"), "DeleteTags"), call).await.map(drop)
    }

    /// Deletes a snapshot; what is gone is gone. Returns whether it was there.
    pub(super) async fn delete(&self, cx: &OpContext, id: &str) -> Result<bool, AdapterError> {
        match cx.within(self.client.delete_snapshot().snapshot_id(id).send()).await? {
            Ok(_) => Ok(true),
            Err(e) => {
                let fault = Fault::of(&e);
                if fault.is_gone() {
                    Ok(false)
                } else {
                    Err(fault.during(format!("delete {id}"), "DeleteSnapshot"))
                }
            }
        }
    }

    /// Makes a volume of a snapshot. The client's own token keeps its repetitions from making a second one.
    pub(super) async fn create_volume(
        &self,
        cx: &OpContext,
        snapshot: &str,
        zone: &str,
        traits: &Traits,
        tags: &Tags,
    ) -> Result<String, AdapterError> {
        let call = self
            .client
            .create_volume()
            .snapshot_id(snapshot)
            .availability_zone(zone)
            .set_volume_type(traits.kind.as_deref().map(VolumeType::from))
            .set_iops(traits.iops)
            .set_throughput(traits.throughput)
            .tag_specifications(specification(ResourceType::Volume, tags))
            .send();
        let answer = self.ask(cx, (&format!("make a volume of {snapshot}"), "CreateVolume"), call).await?;
        Ok(answer.volume_id().unwrap_or_default().to_owned())
    }

    pub(super) async fn attach(
        &self,
        cx: &OpContext,
        volume: &str,
        instance: &str,
        device: &str,
    ) -> Result<(), AdapterError> {
        let call = self.client.attach_volume().volume_id(volume).instance_id(instance).device(device).send();
        let what = format!("attach {volume} to {instance} as {device}");
        self.ask(cx, (&what, "AttachVolume"), call).await.map(drop)
    }
}
