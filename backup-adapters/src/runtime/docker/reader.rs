//! A container beside a service's, which reads its volumes: when they cannot be reached from here and the service does
//! not run, or must not be disturbed.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use backup_core::runtime::{ExecCommand, Execution};
use backup_core::{AdapterError, AdapterErrorKind, RunId};
use bollard::Docker;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, HealthConfig, HostConfig, Mount, MountType,
    MountVolumeOptions,
};
use bollard::query_parameters::{
    AttachContainerOptions, CreateContainerOptions, RemoveContainerOptions, StartContainerOptions,
};
use tokio::io::AsyncWrite;

use super::engine::Engine;
use super::{exec, find, mounts, name_of};

/// The label of what a run leaves on an engine; its value is the run's id.
pub(super) const RUN_LABEL: &str = "backup.run-id";

/// A container with a service's image and its volumes, which it can only read. It has no network.
///
/// It ends when this is dropped, and when this process dies; what is left even so is found by [`DockerRuntime::reclaim`](super::DockerRuntime::reclaim).
pub struct VolumeReader {
    engine: Arc<Engine>,
    container: ContainerInspectResponse,
    /// Its first process ends when this closes.
    _alive: Mutex<Pin<Box<dyn AsyncWrite + Send>>>,
    removal: Removal,
}

impl std::fmt::Debug for VolumeReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VolumeReader").field("container", &name_of(&self.container)).finish_non_exhaustive()
    }
}

/// Makes one for `service`.
pub(super) async fn open(
    engine: &Arc<Engine>,
    service: &ContainerInspectResponse,
    run: &RunId,
) -> Result<VolumeReader, AdapterError> {
    let what = format!("read the volumes of container `{}`", name_of(service));
    let client = engine.client().await?;
    let script = ["sh", "-c", "cat >/dev/null"].map(str::to_owned).to_vec();
    let removal = create(engine, service, run, script, &what).await?;
    let options = AttachContainerOptions { stdin: true, stream: true, ..Default::default() };
    let attached = engine.call(&what, client.attach_container(&removal.id, Some(options))).await?;
    let started = client.start_container(&removal.id, None::<StartContainerOptions>);
    if let Err(e) = engine.call(&what, started).await {
        let no_shell = exec::says_no_shell(&e.to_string());
        removal.now().await?;
        return Err(if no_shell {
            AdapterError::unsupported(format!("cannot {what}: its image has no `sh`"))
        } else {
            e
        });
    }
    let container = find::inspect_id(engine, &removal.id).await?;
    Ok(VolumeReader { engine: Arc::clone(engine), container, _alive: Mutex::new(attached.input), removal })
}

impl VolumeReader {
    /// Runs a program in it, as root: `tar`, `cat`. The paths are those of the service.
    ///
    /// # Errors
    /// As those of [`ServiceRuntime::exec`](backup_core::runtime::ServiceRuntime::exec).
    pub async fn exec(&self, command: ExecCommand) -> Result<Execution, AdapterError> {
        exec::exec(Arc::clone(&self.engine), &self.container, command).await
    }

    /// Removes it, and waits for that.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`.
    pub async fn close(self) -> Result<(), AdapterError> {
        self.removal.now().await
    }
}

/// A container that only lends its view of the volumes to the archive API; it never runs.
pub(super) async fn shelf(
    engine: &Arc<Engine>,
    service: &ContainerInspectResponse,
    run: &RunId,
) -> Result<Removal, AdapterError> {
    let what = format!("read the volumes of container `{}`", name_of(service));
    create(engine, service, run, vec!["none".to_owned()], &what).await
}

async fn create(
    engine: &Arc<Engine>,
    service: &ContainerInspectResponse,
    run: &RunId,
    entrypoint: Vec<String>,
    what: &str,
) -> Result<Removal, AdapterError> {
    let host = HostConfig {
        mounts: Some(mounts_of(service, true)),
        network_mode: Some("none".to_owned()),
        auto_remove: Some(true),
        readonly_rootfs: Some(true),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(vec!["DAC_READ_SEARCH".to_owned()]),
        // What another container's label keeps to itself must be readable all the same.
        security_opt: Some(vec!["no-new-privileges".to_owned(), "label=disable".to_owned()]),
        ..Default::default()
    };
    let body = ContainerCreateBody {
        image: service.image.clone(),
        entrypoint: Some(entrypoint),
        cmd: Some(Vec::new()),
        user: Some("0:0".to_owned()),
        attach_stdin: Some(true),
        open_stdin: Some(true),
        stdin_once: Some(true),
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

/// The service's mounts, by name. What it may only read stays so. Not `VolumesFrom`: that makes the service's anonymous volumes those of
/// the new container too, and removing it would remove them if the service's container is gone by then.
pub(super) fn mounts_of(service: &ContainerInspectResponse, read_only: bool) -> Vec<Mount> {
    let mut all = Vec::new();
    for point in service.mounts.iter().flatten() {
        let (typ, source) = match point.typ.as_deref() {
            Some("bind") => (MountType::BIND, point.source.clone()),
            Some("volume") => (MountType::VOLUME, point.name.clone()),
            _ => continue,
        };
        let target = point.destination.clone();
        let subpath = mounts::subpath(service, target.as_deref().unwrap_or_default());
        let volume = MountVolumeOptions { no_copy: Some(true), subpath, ..Default::default() };
        let volume_options = (typ == MountType::VOLUME).then_some(volume);
        all.push(Mount {
            target,
            source,
            typ: Some(typ),
            read_only: Some(read_only || point.rw == Some(false)),
            volume_options,
            ..Default::default()
        });
    }
    all
}

/// A container of ours that has to go.
pub(super) struct Removal {
    client: Docker,
    engine: Arc<Engine>,
    pub(super) id: String,
    done: bool,
}

impl Removal {
    pub(super) fn new(client: &Docker, engine: &Arc<Engine>, id: String) -> Self {
        Self { client: client.clone(), engine: Arc::clone(engine), id, done: false }
    }

    pub(super) async fn now(mut self) -> Result<(), AdapterError> {
        self.done = true;
        self.engine.call("remove a container of ours", remove(&self.client, &self.id)).await.or_else(gone)
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        if let (false, Ok(runtime)) = (self.done, tokio::runtime::Handle::try_current()) {
            let (client, id) = (self.client.clone(), self.id.clone());
            runtime.spawn(async move {
                if let Err(e) = remove(&client, &id).await {
                    tracing::debug!(error = %e, "a container of ours may be left");
                }
            });
        }
    }
}

pub(super) async fn remove(client: &Docker, id: &str) -> Result<(), bollard::errors::Error> {
    // Its mounts are named, so that this removes only what its image declares and the service did not mount.
    let options = RemoveContainerOptions { v: true, force: true, ..Default::default() };
    client.remove_container(id, Some(options)).await
}

/// It is gone, or going: both is what was asked for.
pub(super) fn gone(e: AdapterError) -> Result<(), AdapterError> {
    match e.kind() {
        AdapterErrorKind::NotFound | AdapterErrorKind::Conflict => Ok(()),
        _ => Err(e),
    }
}
