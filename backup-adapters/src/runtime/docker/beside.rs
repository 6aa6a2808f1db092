//! What containers of ours beside a service's have in common: they carry the run's id, so that what a killed process
//! leaves is found by [`DockerRuntime::reclaim`](super::DockerRuntime::reclaim), and are removed however their use ends.

use std::collections::HashMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backup_core::runtime::{ExitStatus, RunState};
use backup_core::{AdapterError, AdapterErrorKind, RunId};
use bollard::Docker;
use bollard::models::{ContainerCreateBody, ContainerInspectResponse, HealthConfig, Mount, MountType};
use bollard::query_parameters::{
    AttachContainerOptions, CreateContainerOptions, RemoveContainerOptions, StartContainerOptions,
};
use tokio::io::AsyncWrite;
use tokio::time::{Instant, sleep};

use super::engine::Engine;
use super::{find, lifecycle, state_of};

/// The label of what a run leaves on an engine; its value is the run's id.
pub(super) const RUN_LABEL: &str = "backup.run-id";

/// The label with the container beside which it is.
pub(super) const SERVICE_LABEL: &str = "backup.beside";

/// The first process of a container that does nothing by itself: it ends with its input, and so when we die.
pub(super) const IDLE: [&str; 3] = ["sh", "-c", "cat >/dev/null"];

/// How long the engine may take to remove a container, and how often it is asked.
const GOING: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);

/// What keeps [`IDLE`] alive.
pub(super) type Input = Mutex<Pin<Box<dyn AsyncWrite + Send>>>;

/// A container of ours. Removed when this is dropped.
pub(super) struct Beside {
    engine: Arc<Engine>,
    removal: Removal,
}

impl Beside {
    /// Makes what `body` says for `run`, not started yet. It has no health check, which would be the service's.
    pub(super) async fn create(
        engine: &Arc<Engine>,
        run: &RunId,
        body: ContainerCreateBody,
        what: &str,
    ) -> Result<Self, AdapterError> {
        let body = ContainerCreateBody {
            healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }),
            labels: Some(HashMap::from([
                (RUN_LABEL.to_owned(), run.to_string()),
                (SERVICE_LABEL.to_owned(), engine.service().to_owned()),
            ])),
            ..body
        };
        let client = engine.client().await?;
        let request = client.create_container(None::<CreateContainerOptions>, body);
        let id = engine.call(what, request).await?.id;
        let removal = Removal { client: client.clone(), engine: Arc::clone(engine), id, done: false };
        Ok(Self { engine: Arc::clone(engine), removal })
    }

    /// Its input, before it is started.
    pub(super) async fn attach(&self, what: &str) -> Result<Input, AdapterError> {
        let options = AttachContainerOptions { stdin: true, stream: true, ..Default::default() };
        let attached = self.engine.client().await?.attach_container(self.id(), Some(options));
        Ok(Mutex::new(self.engine.call(what, attached).await?.input))
    }

    /// Starts it; it is gone if that fails.
    pub(super) async fn start(self, what: &str) -> Result<Self, AdapterError> {
        let started = self.engine.client().await?.start_container(self.id(), None::<StartContainerOptions>);
        match self.engine.call(what, started).await {
            Ok(()) => Ok(self),
            Err(e) => {
                self.close().await?;
                Err(e)
            }
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.removal.id
    }

    pub(super) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    pub(super) async fn inspect(&self) -> Result<ContainerInspectResponse, AdapterError> {
        find::inspect_id(&self.engine, self.id()).await
    }

    /// How its first process ended, if it has.
    pub(super) async fn ended(&self) -> Result<Option<ExitStatus>, AdapterError> {
        let state = self.inspect().await?.state.unwrap_or_default();
        Ok((state_of(&state) == RunState::Stopped).then(|| lifecycle::exit_of(&state)))
    }

    /// Asks it to end, and kills it once `grace` has passed.
    pub(super) async fn stop(&self, grace: Duration) -> Result<ExitStatus, AdapterError> {
        lifecycle::stop(&self.engine, self.inspect().await?, grace).await
    }

    /// The last lines of its log, as one; empty if they cannot be had.
    pub(super) async fn log(&self) -> String {
        self.engine.last_lines(self.id()).await.join(" ")
    }

    /// It stays until the run is reclaimed.
    pub(super) fn leave(mut self) {
        self.removal.done = true;
    }

    /// Removes it, and waits for that.
    pub(super) async fn close(self) -> Result<(), AdapterError> {
        self.removal.now().await
    }
}

/// A folder of this host, for writing.
pub(super) fn bind(host: &Path, inside: &Path) -> Mount {
    Mount {
        target: Some(inside.display().to_string()),
        source: Some(host.display().to_string()),
        typ: Some(MountType::BIND),
        ..Default::default()
    }
}

/// A container that has to go.
struct Removal {
    client: Docker,
    engine: Arc<Engine>,
    id: String,
    done: bool,
}

impl Removal {
    async fn now(mut self) -> Result<(), AdapterError> {
        self.done = true;
        remove_wholly(&self.engine, &self.client, &self.id).await
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

async fn remove(client: &Docker, id: &str) -> Result<(), bollard::errors::Error> {
    // Its mounts are named, so that this removes only what its image declares and the service did not mount.
    let options = RemoveContainerOptions { v: true, force: true, ..Default::default() };
    client.remove_container(id, Some(options)).await
}

/// Removes a container, and waits until it is gone, also where the engine is at it already.
///
/// # Errors
/// Those of the engine; `Conflict` if it is still going after [`GOING`].
pub(super) async fn remove_wholly(engine: &Engine, client: &Docker, id: &str) -> Result<(), AdapterError> {
    let until = Instant::now() + GOING;
    loop {
        match engine.call("remove a container of ours", remove(client, id)).await {
            Err(e) if e.kind() == AdapterErrorKind::NotFound => return Ok(()),
            Err(e) if e.kind() == AdapterErrorKind::Conflict && Instant::now() < until => sleep(LOOK).await,
            done => return done,
        }
    }
}
