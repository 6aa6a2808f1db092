//! Services in containers, over the API of the Docker engine.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use backup_core::runtime::{ExecCommand, Execution, ExitStatus, Inspection, ServiceRuntime};
use backup_core::{AdapterError, Secret, SeenContainer};

/// One container, by name, id or label (`label=key=value`).
#[derive(Debug, Clone)]
pub struct DockerRuntime {
    container: String,
}

fn todo(what: &str) -> AdapterError {
    AdapterError::unsupported(format!("cannot {what} yet"))
}

impl DockerRuntime {
    /// The container that `container` names: its name, its id, or `label=key=value`. Makes no contact.
    pub fn new(container: impl Into<String>) -> Self {
        Self { container: container.into() }
    }

    /// What the configuration calls it.
    #[must_use]
    pub fn container(&self) -> &str {
        &self.container
    }

    /// An address at which this process reaches TCP port `port` of the container.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` for an engine that does not answer and a container without a reachable address.
    pub async fn endpoint(&self, port: u16) -> Result<SocketAddr, AdapterError> {
        Err(todo(&format!("find port {port}")))
    }

    /// The container's own addresses: those from which it connects to us.
    ///
    /// # Errors
    /// As [`Self::endpoint`].
    pub async fn addresses(&self) -> Result<Vec<IpAddr>, AdapterError> {
        Err(todo("find addresses"))
    }

    /// The address of this host at which the container reaches a server of this process.
    ///
    /// # Errors
    /// As [`Self::endpoint`].
    pub async fn host_address(&self) -> Result<IpAddr, AdapterError> {
        Err(todo("find the host"))
    }

    /// A variable of the container's environment.
    ///
    /// # Errors
    /// As [`Self::endpoint`].
    pub async fn env(&self, name: &str) -> Result<Option<Secret>, AdapterError> {
        Err(todo(&format!("read {name}")))
    }

    /// A small file in the container.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` if it is larger than `limit` bytes.
    pub async fn read_file(&self, path: &Path, limit: usize) -> Result<Vec<u8>, AdapterError> {
        Err(todo(&format!("read {} ({limit})", path.display())))
    }
}

#[async_trait]
impl ServiceRuntime for DockerRuntime {
    async fn inspect(&self) -> Result<Inspection, AdapterError> {
        Err(todo("inspect"))
    }

    async fn start(&self) -> Result<(), AdapterError> {
        Err(todo("start"))
    }

    async fn stop(&self, grace: Duration) -> Result<ExitStatus, AdapterError> {
        let _ = grace;
        Err(todo("stop"))
    }

    async fn pause(&self) -> Result<(), AdapterError> {
        Err(todo("pause"))
    }

    async fn unpause(&self) -> Result<(), AdapterError> {
        Err(todo("unpause"))
    }

    async fn exec(&self, command: ExecCommand) -> Result<Execution, AdapterError> {
        let _ = command;
        Err(todo("exec"))
    }

    async fn volume_path(&self, inside: &Path) -> Result<Option<PathBuf>, AdapterError> {
        let _ = inside;
        Err(todo("volume_path"))
    }
}

/// The containers of the local engine, running or not, for discovery. Empty if there is no engine here.
///
/// # Errors
/// `Unavailable` and `PermissionDenied` for an engine that is there and does not answer us.
pub async fn survey() -> Result<Vec<SeenContainer>, AdapterError> {
    Ok(Vec::new())
}
