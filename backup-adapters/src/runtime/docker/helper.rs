//! A container beside a service's, of the same image: for the service's own programs while it does not run, and for a
//! second server over other data.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backup_core::runtime::{ExecCommand, Execution, ExitStatus, RunState};
use backup_core::{AdapterError, RunId};
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, HealthConfig, HostConfig, Mount, MountType,
};
use bollard::query_parameters::{
    AttachContainerOptions, CreateContainerOptions, LogsOptions, StartContainerOptions, StopContainerOptions,
};
use futures::StreamExt as _;
use tokio::io::AsyncWrite;

use super::engine::{Engine, REQUEST, one_line};
use super::reader::{RUN_LABEL, Removal, mounts_of};
use super::{exec, find, lifecycle, name_of, state_of};

/// What a [`Helper`] gets. It has no network, no capabilities, and none of the service's environment.
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
    /// Its first process; none: it does nothing by itself until it is dropped.
    pub program: Vec<String>,
}

/// A container for programs of a service's image.
///
/// Without a program of its own it ends when this is dropped, and when this process dies. What is left even so is found by
/// [`DockerRuntime::reclaim`](super::DockerRuntime::reclaim).
pub struct Helper {
    engine: Arc<Engine>,
    container: ContainerInspectResponse,
    /// Its first process ends when this closes.
    _alive: Option<Mutex<Pin<Box<dyn AsyncWrite + Send>>>>,
    removal: Removal,
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
    let idle = spec.program.is_empty();
    let removal = create(engine, service, run, spec, what).await?;
    let client = engine.client().await?;
    let alive = if idle {
        let options = AttachContainerOptions { stdin: true, stream: true, ..Default::default() };
        let attached = engine.call(what, client.attach_container(&removal.id, Some(options))).await?;
        Some(Mutex::new(attached.input))
    } else {
        None
    };
    let started = client.start_container(&removal.id, None::<StartContainerOptions>);
    if let Err(e) = engine.call(what, started).await {
        removal.now().await?;
        return Err(e);
    }
    let container = find::inspect_id(engine, &removal.id).await?;
    Ok(Helper { engine: Arc::clone(engine), container, _alive: alive, removal })
}

async fn create(
    engine: &Arc<Engine>,
    service: Option<&ContainerInspectResponse>,
    run: &RunId,
    spec: HelperSpec,
    what: &str,
) -> Result<Removal, AdapterError> {
    let mut mounts = match service {
        Some(service) if spec.mounts => mounts_of(service, false),
        _ => Vec::new(),
    };
    mounts.extend(spec.binds.iter().map(|(here, inside)| Mount {
        target: Some(inside.display().to_string()),
        source: Some(here.display().to_string()),
        typ: Some(MountType::BIND),
        ..Default::default()
    }));
    let memory = spec.memory.and_then(|m| i64::try_from(m).ok());
    let idle = spec.program.is_empty();
    let host = HostConfig {
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
    let program =
        if idle { ["sh", "-c", "cat >/dev/null"].map(str::to_owned).to_vec() } else { spec.program };
    let body = ContainerCreateBody {
        image: spec.image.or_else(|| service.and_then(|s| s.image.clone())),
        entrypoint: Some(program),
        cmd: Some(Vec::new()),
        env: Some(spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        user: Some(spec.user),
        // Without a network no other name has an address, and there are programs that look for their own.
        hostname: Some("localhost".to_owned()),
        attach_stdin: Some(idle),
        open_stdin: Some(idle),
        stdin_once: Some(idle),
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }),
        labels: Some(HashMap::from([(RUN_LABEL.to_owned(), run.to_string())])),
        host_config: Some(host),
        ..Default::default()
    };
    let client = engine.client().await?;
    let request = client.create_container(None::<CreateContainerOptions>, body);
    let id = engine.call(what, request).await?.id;
    Ok(Removal::new(client, engine, id))
}

impl Helper {
    /// Runs a program in it. The paths are those of the container.
    ///
    /// # Errors
    /// As those of [`ServiceRuntime::exec`](backup_core::runtime::ServiceRuntime::exec).
    pub async fn exec(&self, command: ExecCommand) -> Result<Execution, AdapterError> {
        exec::exec(Arc::clone(&self.engine), &self.container, command).await
    }

    /// How its first process ended, if it has.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Timeout`.
    pub async fn ended(&self) -> Result<Option<ExitStatus>, AdapterError> {
        let state = find::inspect_id(&self.engine, &self.removal.id).await?.state.unwrap_or_default();
        Ok((state_of(&state) == RunState::Stopped).then(|| lifecycle::exit_of(&state)))
    }

    /// Asks its first process to end, kills it after `grace`, and tells how it ended.
    ///
    /// # Errors
    /// As [`Self::ended`].
    pub async fn stop(&self, grace: Duration) -> Result<ExitStatus, AdapterError> {
        let seconds = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
        let client = self.engine.client().await?.clone().with_timeout(grace + REQUEST);
        let options = StopContainerOptions { t: Some(seconds), ..Default::default() };
        let what = "stop a container of ours";
        client
            .stop_container(&self.removal.id, Some(options))
            .await
            .map_err(|e| self.engine.error(what, e))?;
        let state = find::inspect_id(&self.engine, &self.removal.id).await?.state.unwrap_or_default();
        Ok(lifecycle::exit_of(&state))
    }

    /// The last lines that its first process printed, as one line.
    pub async fn last_words(&self) -> String {
        let read = async {
            let client = self.engine.client().await?;
            let options =
                LogsOptions { stdout: true, stderr: true, tail: "6".to_owned(), ..Default::default() };
            let mut lines = client.logs(&self.removal.id, Some(options));
            let mut text = String::new();
            while let Some(Ok(line)) = lines.next().await {
                text.push_str(&line.to_string());
                text.push(' ');
            }
            Ok::<_, AdapterError>(one_line(&text))
        };
        match tokio::time::timeout(REQUEST, read).await {
            Ok(Ok(text)) => text,
            _ => String::new(),
        }
    }

    /// Removes it, and waits for that.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`.
    pub async fn close(self) -> Result<(), AdapterError> {
        self.removal.now().await
    }
}
