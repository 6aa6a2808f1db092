//! The containers of an engine, for discovery.

use std::collections::BTreeMap;

use backup_core::runtime::RunState;
use backup_core::{AdapterError, AdapterErrorKind, Secret, SeenContainer};
use bollard::models::ContainerInspectResponse;
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::engine::{DEFAULT_ENGINE, Engine};
use super::{find, mounts, name_of, state_of};

pub(super) const PROJECT: &str = "com.docker.compose.project";
pub(super) const SERVICE: &str = "com.docker.compose.service";

/// Containers that are looked at at the same time.
const PARALLEL: usize = 8;

/// The containers of the local engine, running or not, for discovery. Empty if there is no engine here.
///
/// # Errors
/// `Unavailable` and `PermissionDenied` for an engine that is there and does not answer us.
pub async fn survey() -> Result<Vec<SeenContainer>, AdapterError> {
    let socket = DEFAULT_ENGINE.trim_start_matches("unix://");
    match tokio::fs::symlink_metadata(socket).await {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        _ => survey_of(DEFAULT_ENGINE).await,
    }
}

/// The containers of the engine at `url` (`unix:///path` or `tcp://host:port`), by name.
///
/// # Errors
/// `Unavailable` if it does not answer, `PermissionDenied` if it does not answer us, `InvalidConfig` for another URL.
pub async fn survey_of(url: &str) -> Result<Vec<SeenContainer>, AdapterError> {
    let engine = Engine::new(url);
    let listed = find::list(&engine, None).await?;
    let engine = &engine;
    let mut seen: Vec<SeenContainer> = stream::iter(listed)
        .map(|c| async move {
            let id = c.id.unwrap_or_default();
            match find::inspect_id(engine, &id).await {
                Ok(found) => Ok(Some(see(engine, found, c.image).await)),
                // Removed since the list was made.
                Err(e) if e.kind() == AdapterErrorKind::NotFound => Ok(None),
                Err(e) => Err(e),
            }
        })
        .buffered(PARALLEL)
        .try_filter_map(|c| async move { Ok(c) })
        .try_collect()
        .await?;
    seen.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(seen)
}

async fn see(engine: &Engine, container: ContainerInspectResponse, image: Option<String>) -> SeenContainer {
    let name = name_of(&container).to_owned();
    let state = container.state.as_ref().map_or(RunState::Stopped, state_of);
    let mounts = mounts::of(engine, &container).await;
    let published = container.network_settings.and_then(|n| n.ports).unwrap_or_default().into_keys();
    let config = container.config.unwrap_or_default();
    let exposed = config.exposed_ports.unwrap_or_default();
    let mut ports: Vec<u16> =
        published.chain(exposed).filter_map(|p| p.strip_suffix("/tcp")?.parse().ok()).collect();
    ports.sort_unstable();
    ports.dedup();
    let command = container.path.into_iter().chain(container.args.unwrap_or_default());
    SeenContainer {
        name,
        image: config.image.or(image).unwrap_or_default(),
        state,
        labels: config.labels.unwrap_or_default().into_iter().collect(),
        env: environment(config.env.unwrap_or_default()),
        command: command.map(Secret::new).collect(),
        ports,
        mounts,
    }
}

pub(super) fn environment(lines: Vec<String>) -> BTreeMap<String, Secret> {
    lines
        .iter()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), Secret::new(value)))
        .collect()
}

/// The Compose project that a container belongs to.
#[must_use]
pub fn compose_project(container: &SeenContainer) -> Option<&str> {
    container.labels.get(PROJECT).map(String::as_str)
}

/// What the Compose file calls the service that a container runs; a better name than that of the container, which may
/// carry a number.
#[must_use]
pub fn compose_service(container: &SeenContainer) -> Option<&str> {
    container.labels.get(SERVICE).map(String::as_str)
}
