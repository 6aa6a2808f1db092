//! A container beside a service's, which reads its volumes: when they cannot be reached from here and the service does
//! not run, or must not be disturbed.

use std::sync::Arc;

use backup_core::runtime::{ExecCommand, Execution};
use backup_core::{AdapterError, RunId};
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, HostConfig, Mount, MountType, MountVolumeOptions,
};

use super::beside::{Beside, IDLE, Input};
use super::engine::Engine;
use super::{exec, mounts, name_of};

/// A container with a service's image and its volumes, which it can only read. It has no network.
///
/// It ends when this is dropped, and when this process dies; what is left even so is found by [`DockerRuntime::reclaim`](super::DockerRuntime::reclaim).
pub struct VolumeReader {
    container: ContainerInspectResponse,
    /// Its first process ends when this closes.
    _alive: Input,
    beside: Beside,
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
    let script = IDLE.map(str::to_owned).to_vec();
    let beside = Beside::create(engine, run, body(service, script), &what).await?;
    let alive = beside.attach(&what).await?;
    let beside = beside.start(&what).await.map_err(|e| match exec::says_no_shell(&e.to_string()) {
        true => AdapterError::unsupported(format!("cannot {what}: its image has no `sh`")),
        false => e,
    })?;
    let container = beside.inspect().await?;
    Ok(VolumeReader { container, _alive: alive, beside })
}

impl VolumeReader {
    /// Runs a program in it, as root: `tar`, `cat`. The paths are those of the service.
    ///
    /// # Errors
    /// As those of [`ServiceRuntime::exec`](backup_core::runtime::ServiceRuntime::exec).
    pub async fn exec(&self, command: ExecCommand) -> Result<Execution, AdapterError> {
        exec::exec(Arc::clone(self.beside.engine()), &self.container, command).await
    }

    /// Removes it, and waits for that.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`.
    pub async fn close(self) -> Result<(), AdapterError> {
        self.beside.close().await
    }
}

/// A container that only lends its view of the volumes to the archive API; it never runs.
pub(super) async fn shelf(
    engine: &Arc<Engine>,
    service: &ContainerInspectResponse,
    run: &RunId,
) -> Result<Beside, AdapterError> {
    let what = format!("read the volumes of container `{}`", name_of(service));
    Beside::create(engine, run, body(service, vec!["none".to_owned()]), &what).await
}

fn body(service: &ContainerInspectResponse, entrypoint: Vec<String>) -> ContainerCreateBody {
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
    ContainerCreateBody {
        image: service.image.clone(),
        entrypoint: Some(entrypoint),
        cmd: Some(Vec::new()),
        user: Some("0:0".to_owned()),
        attach_stdin: Some(true),
        open_stdin: Some(true),
        stdin_once: Some(true),
        host_config: Some(host),
        ..Default::default()
    }
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
