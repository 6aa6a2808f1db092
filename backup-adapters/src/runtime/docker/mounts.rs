//! What is mounted into a container, and where that lies on this host.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use backup_core::runtime::{Inspection, Mount, RunState};
use bollard::models::{ContainerInspectResponse, MountPoint};

use super::archive;
use super::engine::Engine;

/// What is mounted into `container`. A mount whose place is not known for sure has none.
pub(super) async fn of(engine: &Engine, container: &ContainerInspectResponse) -> Vec<Mount> {
    let id = container.id.as_deref().unwrap_or_default();
    let mut mounts = Vec::new();
    for point in container.mounts.iter().flatten() {
        let Some(inside) = &point.destination else { continue };
        // Whether the engine names the volume or the folder in it is not settled among its versions.
        let part = subpath(container, inside).is_some();
        mounts.push(Mount {
            inside: PathBuf::from(inside),
            host: if part { None } else { host(engine, id, point).await },
            read_only: point.rw == Some(false),
        });
    }
    mounts
}

/// The folder in a volume that is mounted at `inside`, if not all of it is.
pub(super) fn subpath(container: &ContainerInspectResponse, inside: &str) -> Option<String> {
    let asked = container.host_config.as_ref()?.mounts.iter().flatten();
    let mount = asked.into_iter().find(|m| m.target.as_deref() == Some(inside))?;
    mount.volume_options.as_ref()?.subpath.clone().filter(|s| !s.is_empty())
}

/// See [`Inspection::host_path`].
pub(super) fn host_path(mounts: &[Mount], inside: &Path) -> Option<PathBuf> {
    let all = Inspection {
        instance: String::new(),
        state: RunState::Running,
        image: None,
        labels: std::collections::BTreeMap::new(),
        mounts: mounts.to_vec(),
    };
    all.host_path(inside)
}

async fn host(engine: &Engine, container: &str, point: &MountPoint) -> Option<PathBuf> {
    // Paths are those of the engine's host: ours, if we talk over a socket.
    engine.socket()?;
    let mut source = PathBuf::from(point.source.as_deref().filter(|s| !s.is_empty())?);
    match point.typ.as_deref() {
        Some("bind") => {}
        Some("volume") => {
            let volume = engine.client().await.ok()?.inspect_volume(point.name.as_deref()?);
            let volume = engine.call("inspect a volume", volume).await.ok()?;
            if volume.driver != "local" {
                return None;
            }
            if !volume.options.is_empty() {
                source = bound(&volume.options)?;
            }
        }
        _ => return None,
    }
    let here = tokio::fs::metadata(&source).await.ok()?;
    // In a container of our own, the same path may be something else.
    let same = !in_container() || is_same(engine, container, point.destination.as_deref()?, &here).await;
    same.then_some(source)
}

/// The folder that a volume with options is. Others (NFS, a device) are mounted only while a container uses them: before
/// and after, their path is an empty directory.
fn bound(options: &HashMap<String, String>) -> Option<PathBuf> {
    let flags = options.get("o")?;
    let bind = flags.split(',').any(|f| f == "bind" || f == "rbind");
    let folder = PathBuf::from(options.get("device").filter(|_| bind)?);
    folder.is_absolute().then_some(folder)
}

pub(super) fn in_container() -> bool {
    Path::new("/.dockerenv").exists() || Path::new("/run/.containerenv").exists()
}

/// Whether the engine sees at `inside` what we see, to the nanosecond. Doubts are a no.
async fn is_same(engine: &Engine, container: &str, inside: &str, here: &Metadata) -> bool {
    let Ok(there) = archive::stat(engine, container, inside).await else { return false };
    let Ok(changed) = chrono::DateTime::parse_from_rfc3339(&there.changed) else { return false };
    changed.timestamp() == here.mtime() && i64::from(changed.timestamp_subsec_nanos()) == here.mtime_nsec()
}
