//! A container beside a service's, of the same image: for the service's own programs while it does not run, and for a
//! second server over other data.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backup_core::runtime::{ExecCommand, Execution, ExitStatus};
use backup_core::{AdapterError, RunId};
use bollard::models::{ContainerCreateBody, ContainerInspectResponse, HostConfig};

use super::beside::{Beside, IDLE, Input, bind};
use super::engine::Engine;
use super::reader::mounts_of;
use super::scratch::{self, Purpose};
use super::{exec, name_of};
use crate::runtime::memory::Grant;

/// What a [`Helper`] gets. It has no network, no capabilities, and of the service's environment only what is named.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct HelperSpec {
    /// The image, if it is not that of the service's container.
    pub image: Option<String>,
    /// Whether it gets what is mounted into the service, for writing.
    pub mounts: bool,
    /// Folders of this host, and where they are in it.
    pub binds: Vec<(PathBuf, PathBuf)>,
    /// The user, as numbers: `7474:7474`.
    pub user: String,
    /// The most memory that it may take, in bytes.
    pub memory: Option<u64>,
    /// Its environment. No secrets: whoever may inspect containers sees it.
    pub env: Vec<(String, String)>,
    /// Variables that it gets as the service has them, e.g. that a licence is accepted.
    pub keep: Vec<String>,
    /// What it is for.
    pub purpose: Purpose,
    /// Its first process; none: it does nothing by itself until it is dropped.
    pub program: Vec<String>,
}

/// A container for programs of a service's image.
///
/// Without a program of its own it ends when this is dropped, and when this process dies. What is left even so is found by
/// [`DockerRuntime::reclaim`](super::DockerRuntime::reclaim).
pub struct Helper {
    container: ContainerInspectResponse,
    /// Its first process ends when this closes.
    _alive: Option<Input>,
    beside: Beside,
    /// What no other test restore gets as long as this one may still take it.
    _memory: Option<Grant>,
}

impl std::fmt::Debug for Helper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Helper").field("container", &name_of(&self.container)).finish_non_exhaustive()
    }
}

/// Makes one; `service` is the service's container, if there is one.
pub(super) async fn open(
    engine: &Arc<Engine>,
    service: Option<&ContainerInspectResponse>,
    run: &RunId,
    spec: HelperSpec,
) -> Result<Helper, AdapterError> {
    let what = "make a container for the service's programs";
    let mut spec = spec;
    let grant = match (spec.purpose, spec.memory, service) {
        (Purpose::Work, ..) | (Purpose::Scratch, None, None) => None,
        (Purpose::Scratch, Some(bytes), _) => Some(scratch::chosen(engine, bytes).await?),
        (Purpose::Scratch, None, Some(service)) => {
            let grant = scratch::most_memory(engine, service, None).await?;
            spec.memory = grant.most;
            Some(grant)
        }
    };
    let launch = async |all: bool| {
        let beside = Beside::create(engine, run, body(service, &spec, all), what).await?;
        let alive = if spec.program.is_empty() { Some(beside.attach(what).await?) } else { None };
        Ok((beside.start(what).await?, alive))
    };
    let (beside, alive) = match launch(true).await {
        Err(e) if spec.purpose == Purpose::Scratch && scratch::is_too_much(&e) => launch(false).await?,
        launched => launched?,
    };
    let container = beside.inspect().await?;
    Ok(Helper { container, _alive: alive, beside, _memory: grant })
}

fn body(service: Option<&ContainerInspectResponse>, spec: &HelperSpec, all: bool) -> ContainerCreateBody {
    let mut mounts = match service {
        Some(service) if spec.mounts => mounts_of(service, false),
        _ => Vec::new(),
    };
    mounts.extend(spec.binds.iter().map(|(here, inside)| bind(here, inside)));
    let memory = spec.memory.and_then(|m| i64::try_from(m).ok());
    let idle = spec.program.is_empty();
    let mut host = HostConfig {
        mounts: Some(mounts),
        network_mode: Some("none".to_owned()),
        // One that has a program of its own is asked how that ended.
        auto_remove: Some(idle),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned(), "label=disable".to_owned()]),
        memory,
        memory_swap: memory,
        init: Some(true),
        ..Default::default()
    };
    if spec.purpose == Purpose::Scratch {
        scratch::restrain(&mut host, all);
    }
    let theirs = service.and_then(|s| s.config.as_ref()?.env.as_ref()).into_iter().flatten();
    let kept =
        theirs.filter(|l| l.split_once('=').is_some_and(|(name, _)| spec.keep.iter().any(|k| k == name)));
    let own = spec.env.iter().map(|(name, value)| format!("{name}={value}"));
    let env = kept.cloned().chain(own).collect();
    let program = if idle { IDLE.map(str::to_owned).to_vec() } else { spec.program.clone() };
    ContainerCreateBody {
        image: spec.image.clone().or_else(|| service.and_then(|s| s.image.clone())),
        entrypoint: Some(program),
        cmd: Some(Vec::new()),
        env: Some(env),
        user: Some(spec.user.clone()),
        // Without a network no other name has an address, and there are programs that look for their own.
        hostname: Some("localhost".to_owned()),
        attach_stdin: Some(idle),
        open_stdin: Some(idle),
        stdin_once: Some(idle),
        host_config: Some(host),
        ..Default::default()
    }
}

impl Helper {
    /// Runs a program in it. The paths are those of the container.
    ///
    /// # Errors
    /// As those of [`ServiceRuntime::exec`](backup_core::runtime::ServiceRuntime::exec).
    pub async fn exec(&self, command: ExecCommand) -> Result<Execution, AdapterError> {
        exec::exec(Arc::clone(self.beside.engine()), &self.container, command).await
    }

    /// How its first process ended, if it has.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Timeout`.
    pub async fn ended(&self) -> Result<Option<ExitStatus>, AdapterError> {
        self.beside.ended().await
    }

    /// Asks its first process to end, kills it after `grace`, and tells how it ended.
    ///
    /// # Errors
    /// As [`Self::ended`].
    pub async fn stop(&self, grace: Duration) -> Result<ExitStatus, AdapterError> {
        self.beside.stop(grace).await
    }

    /// The last lines that its first process printed, as one.
    pub async fn log(&self) -> String {
        self.beside.log().await
    }

    /// Removes it, and waits for that.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`.
    pub async fn close(self) -> Result<(), AdapterError> {
        self.beside.close().await
    }
}
