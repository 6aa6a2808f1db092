//! Services in containers, over the API of the Docker engine.
//!
//! An embedder that installs a logger for the `log` crate should keep the target `bollard` above `debug`: there it
//! writes down the engine's answers, which hold the environment of containers.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backup_core::runtime::{ExecCommand, Execution, ExitStatus, Inspection, RunState, ServiceRuntime, Signs};
use backup_core::{AdapterError, AdapterErrorKind, Image, RunId, Secret, shell_quote};
use bollard::models::{ContainerInspectResponse, ContainerState};

use self::engine::Engine;

mod archive;
mod beside;
mod compose;
mod engine;
mod exec;
mod files;
mod find;
mod helper;
mod image;
mod isolated;
mod lifecycle;
mod mounts;
mod network;
mod outward;
mod reader;
mod reclaim;
mod scratch;
mod survey;
mod twin;

pub use compose::Compose;
pub use engine::DEFAULT_ENGINE;
pub use files::ContainerFile;
pub use helper::{Helper, HelperSpec};
pub use reader::VolumeReader;
pub use scratch::{Network, Purpose};
pub use survey::{compose_project, compose_service, survey, survey_of};
pub use twin::{Twin, TwinChange};

/// One container, by name, id or label (`label=key=value`).
///
/// The container is looked up anew for each call, so that one that was made anew is found again.
#[derive(Debug, Clone)]
pub struct DockerRuntime {
    container: String,
    engine: Arc<Engine>,
}

impl DockerRuntime {
    /// The container that `container` names on the local engine ([`DEFAULT_ENGINE`]): its name, its id (at least 12
    /// digits of it), or `key=value`, a label that it alone has. Makes no contact.
    ///
    /// `label=key=value` is the same as `key=value`. Compose's are `com.docker.compose.project` and
    /// `com.docker.compose.service`.
    pub fn new(container: impl Into<String>) -> Self {
        let container = container.into();
        Self { engine: Arc::new(Engine::new(DEFAULT_ENGINE).of(&container)), container }
    }

    /// The same on another engine: `unix:///path`, or `tcp://host:port` without encryption.
    #[must_use]
    pub fn with_engine(mut self, url: impl Into<String>) -> Self {
        self.engine = Arc::new(Engine::new(url).of(&self.container));
        self
    }

    /// What the configuration calls it.
    #[must_use]
    pub fn container(&self) -> &str {
        &self.container
    }

    /// How people call the engine's own command line for it: `docker`, with the engine if it is not the usual one.
    #[must_use]
    pub fn program(&self) -> String {
        match self.engine.url() {
            DEFAULT_ENGINE => "docker".to_owned(),
            url => format!("docker -H {}", shell_quote(url)),
        }
    }

    async fn found(&self) -> Result<ContainerInspectResponse, AdapterError> {
        find::inspect(&self.engine, self.container.strip_prefix("label=").unwrap_or(&self.container)).await
    }

    /// An address at which this process reaches TCP port `port` of the container.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` for an engine that does not answer and a container without a reachable address.
    pub async fn endpoint(&self, port: u16) -> Result<SocketAddr, AdapterError> {
        let owner = network::owner(&self.engine, self.found().await?).await?;
        network::endpoint(&self.engine, &owner, port).await
    }

    /// The container's own addresses: those from which it connects to us.
    ///
    /// # Errors
    /// As [`Self::endpoint`].
    pub async fn addresses(&self) -> Result<Vec<IpAddr>, AdapterError> {
        let owner = network::owner(&self.engine, self.found().await?).await?;
        Ok(network::addresses(&owner))
    }

    /// The address of this host at which the container reaches a server of this process.
    ///
    /// # Errors
    /// As [`Self::endpoint`].
    pub async fn host_address(&self) -> Result<IpAddr, AdapterError> {
        let owner = network::owner(&self.engine, self.found().await?).await?;
        network::host_address(&self.engine, &owner).await
    }

    /// A variable of the container's environment.
    ///
    /// # Errors
    /// As [`Self::endpoint`].
    pub async fn env(&self, name: &str) -> Result<Option<Secret>, AdapterError> {
        let lines = self.found().await?.config.and_then(|c| c.env).unwrap_or_default();
        Ok(survey::environment(lines).remove(name))
    }

    /// A small file in the container, running or not; links are followed.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` if it is larger than `limit` bytes; `Unsupported` for what is not a plain file.
    pub async fn read_file(&self, path: &Path, limit: usize) -> Result<Vec<u8>, AdapterError> {
        files::read(&self.engine, &self.found().await?, files::plain(path)?, limit).await
    }

    /// A file of any size in the container, running, frozen or stopped, that nobody changes while it is read.
    ///
    /// What this has to put beside the container for that carries `run` and goes when the body was read or dropped;
    /// see [`Self::reclaim`].
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` for what is not a plain file. A file that changes all the same ends in `Changed`.
    pub async fn open_file(&self, path: &Path, run: &RunId) -> Result<ContainerFile, AdapterError> {
        files::open(&self.engine, &self.found().await?, files::plain(path)?, run).await
    }

    /// A container beside this one that reads its volumes, whatever state this one is in.
    ///
    /// # Errors
    /// `Unsupported` if the image has no shell.
    pub async fn volume_reader(&self, run: &RunId) -> Result<VolumeReader, AdapterError> {
        reader::open(&self.engine, &self.found().await?, run).await
    }

    /// A container like this one on other data, started: for a test restore, or to prepare data. It carries `run`; see
    /// [`Self::reclaim`].
    ///
    /// # Errors
    /// `NotFound`, and those of the engine.
    pub async fn twin(&self, run: &RunId, change: TwinChange) -> Result<Twin, AdapterError> {
        twin::start(&self.engine, self.found().await?, run, change).await
    }

    /// Another container on the same engine, which a run has [left](Twin::leave) beside this one.
    #[must_use]
    pub fn left_beside(&self, id: &str) -> Self {
        Self { container: id.to_owned(), engine: Arc::clone(&self.engine) }
    }

    /// The program that the container starts, with its arguments: its entry point, and its command.
    ///
    /// # Errors
    /// As [`Self::endpoint`].
    pub async fn started_by(&self) -> Result<(Vec<String>, Vec<String>), AdapterError> {
        let config = self.found().await?.config.unwrap_or_default();
        Ok((config.entrypoint.unwrap_or_default(), config.cmd.unwrap_or_default()))
    }

    /// The folder of this host that holds the engine's own data: volumes, and what containers write.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`.
    pub async fn root(&self) -> Result<Option<PathBuf>, AdapterError> {
        self.engine.root().await
    }

    /// Where on this host the container's data lies: what is mounted into it for writing, else the engine's own folder. Empty
    /// if that cannot be told.
    pub async fn live_paths(&self) -> Vec<PathBuf> {
        let Ok(found) = self.inspect().await else { return Vec::new() };
        let writable = found.mounts.into_iter().filter(|mount| !mount.read_only);
        let paths: Vec<PathBuf> = writable.filter_map(|mount| mount.host).collect();
        match paths.is_empty() {
            true => self.root().await.ok().flatten().into_iter().collect(),
            false => paths,
        }
    }

    /// Whether the engine sees the files of this host: it is reached over a socket.
    #[must_use]
    pub fn shares_files(&self) -> bool {
        self.engine.socket().is_some()
    }

    /// A container beside this one, of the same image, for programs over its data or over other data. The container
    /// need not exist if `spec` names an image and asks for no mounts.
    ///
    /// # Errors
    /// `NotFound` without a container and an image.
    pub async fn helper(&self, run: &RunId, spec: HelperSpec) -> Result<Helper, AdapterError> {
        let service = match self.found().await {
            Ok(found) => Some(found),
            Err(e) if e.kind() == AdapterErrorKind::NotFound && spec.image.is_some() && !spec.mounts => None,
            Err(e) => return Err(e),
        };
        helper::open(&self.engine, service.as_ref(), run, spec).await
    }

    /// The variables of the container's environment that begin with `prefix`, without those that `secret` names.
    ///
    /// # Errors
    /// As [`Self::endpoint`].
    pub async fn settings(
        &self,
        prefix: &str,
        secret: &[&str],
    ) -> Result<std::collections::BTreeMap<String, String>, AdapterError> {
        let lines = self.found().await?.config.and_then(|c| c.env).unwrap_or_default();
        let wanted =
            |(name, _): &(String, Secret)| name.starts_with(prefix) && !secret.contains(&name.as_str());
        let all = survey::environment(lines).into_iter().filter(wanted);
        Ok(all.map(|(name, value)| (name, value.expose().to_owned())).collect())
    }

    /// Removes what dead runs, or this one, left beside this container. What they have beside those of other services stays: one
    /// run works on several at once.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`.
    pub async fn reclaim(&self, dead: &[RunId]) -> Result<Vec<String>, AdapterError> {
        reclaim::reclaim(&self.engine, dead).await
    }
}

/// The name of a container without its slash.
fn name_of(container: &ContainerInspectResponse) -> &str {
    container.name.as_deref().unwrap_or_default().trim_start_matches('/')
}

fn state_of(state: &ContainerState) -> RunState {
    if state.paused == Some(true) {
        RunState::Paused
    } else if state.running == Some(true) {
        RunState::Running
    } else {
        RunState::Stopped
    }
}

#[async_trait]
impl ServiceRuntime for DockerRuntime {
    async fn inspect(&self) -> Result<Inspection, AdapterError> {
        let container = self.found().await?;
        let mounts = mounts::of(&self.engine, &container).await;
        let digest = find::digest(&self.engine, &container).await;
        let config = container.config.unwrap_or_default();
        Ok(Inspection {
            instance: container.id.unwrap_or_default(),
            state: container.state.as_ref().map_or(RunState::Stopped, state_of),
            image: config.image.map(|name| Image { name, digest }),
            labels: config.labels.unwrap_or_default().into_iter().collect(),
            mounts,
        })
    }

    async fn signs(&self) -> Result<Signs, AdapterError> {
        let container = self.found().await?;
        let state = container.state.unwrap_or_default();
        let last_lines = match &container.id {
            Some(id) => self.engine.last_lines(id).await,
            None => Vec::new(),
        };
        Ok(Signs { state: state_of(&state), started: state.started_at, last_lines })
    }

    async fn start(&self) -> Result<(), AdapterError> {
        lifecycle::start(&self.engine, self.found().await?).await
    }

    /// The engine's client waits for `grace` and a minute. Refuses a paused container (`Conflict`), which the engine
    /// would kill, and one that was started with `--rm`, which it would delete.
    async fn stop(&self, grace: Duration) -> Result<ExitStatus, AdapterError> {
        lifecycle::stop(&self.engine, self.found().await?, grace).await
    }

    async fn pause(&self) -> Result<(), AdapterError> {
        lifecycle::pause(&self.engine, self.found().await?).await
    }

    async fn unpause(&self) -> Result<(), AdapterError> {
        lifecycle::unpause(&self.engine, self.found().await?).await
    }

    async fn exec(&self, command: ExecCommand) -> Result<Execution, AdapterError> {
        let container = self.found().await?;
        let conflict = |what: &str| {
            let message = format!("container `{}` {what}: nothing can be run in it", name_of(&container));
            Err(AdapterError::new(AdapterErrorKind::Conflict, message))
        };
        match container.state.as_ref().map_or(RunState::Stopped, state_of) {
            RunState::Running => exec::exec(Arc::clone(&self.engine), &container, command).await,
            RunState::Paused => conflict("is paused"),
            _ => conflict("does not run"),
        }
    }

    async fn volume_path(&self, inside: &Path) -> Result<Option<PathBuf>, AdapterError> {
        Ok(self.inspect().await?.host_path(inside))
    }
}
