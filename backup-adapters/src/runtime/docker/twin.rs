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
use super::{DockerRuntime, name_of};

/// How a [`Twin`] differs from the service's container.
#[derive(Debug, Clone, Default)]
pub struct TwinChange {
    /// Variables that are set, or with `None` removed.
    pub env: Vec<(String, Option<Secret>)>,
    /// Folders of this host, and where the twin sees them. It has none of the service's volumes.
    pub mounts: Vec<(PathBuf, String)>,
    /// The user that it runs as, if not that of the service: `uid:gid`.
    pub user: Option<String>,
}

/// A container like a service's, on other data. It has a network, and no published port.
///
/// Removed when this is dropped; what a killed process leaves is found by [`DockerRuntime::reclaim`].
pub struct Twin {
    runtime: DockerRuntime,
    beside: Beside,
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
    let beside = Beside::create(engine, run, body(service, change), &what).await?.start(&what).await?;
    let runtime = DockerRuntime { container: beside.id().to_owned(), engine: Arc::clone(engine) };
    Ok(Twin { runtime, beside })
}

fn body(service: ContainerInspectResponse, change: TwinChange) -> ContainerCreateBody {
    let config = service.config.unwrap_or_default();
    let changed = |line: &String| {
        let name = line.split_once('=').map_or(line.as_str(), |(name, _)| name);
        change.env.iter().any(|(n, _)| n == name)
    };
    let mut env: Vec<String> = config.env.unwrap_or_default().into_iter().filter(|l| !changed(l)).collect();
    env.extend(
        change.env.iter().filter_map(|(n, v)| v.as_ref().map(|value| format!("{n}={}", value.expose()))),
    );
    let limits = service.host_config.unwrap_or_default();
    // Its neighbours are reachable by the same names; it has no name there itself.
    let network = limits.network_mode.filter(|m| m != "host" && m != "none" && !m.starts_with("container:"));
    let host = HostConfig {
        mounts: Some(change.mounts.iter().map(|(host, inside)| bind(host, Path::new(inside))).collect()),
        network_mode: network,
        memory: limits.memory,
        nano_cpus: limits.nano_cpus,
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        ..Default::default()
    };
    ContainerCreateBody {
        image: service.image,
        entrypoint: config.entrypoint,
        cmd: config.cmd,
        user: change.user.or(config.user),
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

    /// Removes it, and waits for that.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`.
    pub async fn close(self) -> Result<(), AdapterError> {
        self.beside.close().await
    }
}
