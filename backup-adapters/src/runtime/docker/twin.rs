//! A throw-away container with a service's image, command and environment, for a server that loads a copy of its data.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backup_core::runtime::ExitStatus;
use backup_core::{AdapterError, RunId, Secret};
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, HostConfig, RestartPolicy, RestartPolicyNameEnum,
};

use super::beside::{Beside, bind};
use super::engine::Engine;
use super::isolated::Isolated;
use super::scratch::{self, Network, Purpose};
use super::{DockerRuntime, image, name_of, outward};
use crate::runtime::memory::Grant;

/// How a [`Twin`] differs from the service's container.
#[derive(Debug, Clone, Default)]
pub struct TwinChange {
    /// Variables that are set, or with `None` removed.
    pub env: Vec<(String, Option<Secret>)>,
    /// Folders of this host, and where the twin sees them. It has none of the service's volumes.
    pub mounts: Vec<(PathBuf, String)>,
    /// The user that it runs as, if not that of the service: `uid:gid`.
    pub user: Option<String>,
    /// Its command, if not that of the service.
    pub command: Option<Vec<String>>,
    /// Its image, if not that of the service.
    pub image: Option<String>,
    /// What it is for. For a test restore, it gets no credentials for what is outside.
    pub purpose: Purpose,
    /// What it reaches.
    pub network: Network,
    /// For [`Purpose::Scratch`]: the memory that it needs, in bytes, where the service's container has no limit that tells it.
    pub memory: Option<u64>,
}

/// A container like a service's, on other data. It has no published port.
///
/// Removed when this is dropped; what a killed process leaves is found by [`DockerRuntime::reclaim`].
pub struct Twin {
    runtime: DockerRuntime,
    beside: Beside,
    /// Goes after the container that is in it.
    network: Option<Isolated>,
    /// What no other test restore gets as long as this one may still take it.
    _memory: Option<Grant>,
}

impl std::fmt::Debug for Twin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Twin").field("id", &self.beside.id()).finish_non_exhaustive()
    }
}

/// Makes and starts one for `service`.
pub(super) async fn start(
    engine: &Arc<Engine>,
    service: ContainerInspectResponse,
    run: &RunId,
    change: TwinChange,
) -> Result<Twin, AdapterError> {
    let what = format!("run a container like `{}` beside it", name_of(&service));
    let mut service = service;
    if let (Some(_), Some(own)) = (&change.image, &service.image) {
        let brings = image::brings(engine, own).await?;
        service.config = service.config.map(|config| image::given(config, &brings));
    }
    let grant = match change.purpose {
        Purpose::Scratch => Some(scratch::most_memory(engine, &service, change.memory).await?),
        Purpose::Work => None,
    };
    let memory = match &grant {
        Some(grant) => grant.most.and_then(|bytes| i64::try_from(bytes).ok()),
        None => service.host_config.as_ref().and_then(|h| h.memory),
    };
    let network = match change.network {
        Network::Isolated => Some(Isolated::create(engine, run).await?),
        Network::Service | Network::None => None,
    };
    let place = match (change.network, &network) {
        (_, Some(network)) => Some(network.id().to_owned()),
        (Network::None, None) => Some("none".to_owned()),
        (_, None) => network_of(&service),
    };
    let launch = async |all: bool| {
        let body = body(&service, &change, memory, place.clone(), all);
        Beside::create(engine, run, body, &what).await?.start(&what).await
    };
    let started = match launch(true).await {
        Err(e) if change.purpose == Purpose::Scratch && scratch::is_too_much(&e) => launch(false).await,
        started => started,
    };
    match started {
        Ok(beside) => {
            let runtime = DockerRuntime { container: beside.id().to_owned(), engine: Arc::clone(engine) };
            Ok(Twin { runtime, beside, network, _memory: grant })
        }
        Err(e) => {
            if let Some(network) = network {
                network.close().await?;
            }
            Err(e)
        }
    }
}

/// The service's network: its neighbours are reachable by the same names; it has no name there itself.
fn network_of(service: &ContainerInspectResponse) -> Option<String> {
    let mode = service.host_config.as_ref()?.network_mode.clone()?;
    Some(mode).filter(|m| m != "host" && m != "none" && !m.starts_with("container:"))
}

fn body(
    service: &ContainerInspectResponse,
    change: &TwinChange,
    memory: Option<i64>,
    network: Option<String>,
    all: bool,
) -> ContainerCreateBody {
    let config = service.config.clone().unwrap_or_default();
    let changed = |line: &String| {
        let name = line.split_once('=').map_or(line.as_str(), |(name, _)| name);
        change.env.iter().any(|(n, _)| n == name)
            || (change.purpose == Purpose::Scratch && outward::is_outward(name))
    };
    let mut env: Vec<String> = config.env.unwrap_or_default().into_iter().filter(|l| !changed(l)).collect();
    env.extend(
        change.env.iter().filter_map(|(n, v)| v.as_ref().map(|value| format!("{n}={}", value.expose()))),
    );
    let limits = service.host_config.clone().unwrap_or_default();
    let mut host = HostConfig {
        mounts: Some(change.mounts.iter().map(|(host, inside)| bind(host, Path::new(inside))).collect()),
        network_mode: network,
        memory,
        nano_cpus: limits.nano_cpus,
        shm_size: limits.shm_size,
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        ..Default::default()
    };
    if change.purpose == Purpose::Scratch {
        scratch::restrain(&mut host, all);
    }
    ContainerCreateBody {
        image: change.image.clone().or_else(|| service.image.clone()),
        entrypoint: config.entrypoint,
        cmd: change.command.clone().or(config.cmd),
        user: change.user.clone().or(config.user),
        working_dir: config.working_dir,
        env: Some(env),
        host_config: Some(host),
        ..Default::default()
    }
}

impl Twin {
    /// The container.
    #[must_use]
    pub fn runtime(&self) -> &DockerRuntime {
        &self.runtime
    }

    /// The last lines of its log, on one line.
    pub async fn log(&self) -> String {
        self.beside.log().await
    }

    /// Asks it to end, and kills it once `grace` has passed.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn stop(&self, grace: Duration) -> Result<ExitStatus, AdapterError> {
        self.beside.stop(grace).await
    }

    /// How its first process ended, if it has.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Timeout`.
    pub async fn ended(&self) -> Result<Option<ExitStatus>, AdapterError> {
        self.beside.ended().await
    }

    /// Leaves it running for later steps of the run: [`DockerRuntime::reclaim`] removes it.
    #[must_use]
    pub fn leave(self) -> DockerRuntime {
        self.beside.leave();
        if let Some(network) = self.network {
            network.leave_be();
        }
        self.runtime
    }

    /// Removes it, and waits for that.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`.
    pub async fn close(self) -> Result<(), AdapterError> {
        let removed = self.beside.close().await;
        match self.network {
            Some(network) => removed.and(network.close().await),
            None => removed,
        }
    }
}
