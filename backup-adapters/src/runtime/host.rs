//! Services of the host itself: a systemd unit, or something that is only reached by its address.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use backup_core::AdapterError;
use backup_core::runtime::{ExecCommand, Execution, ExitStatus, Inspection, ServiceRuntime};

/// A service of this host.
#[derive(Debug, Clone, Default)]
pub struct HostRuntime {
    unit: Option<String>,
}

fn todo(what: &str) -> AdapterError {
    AdapterError::unsupported(format!("cannot {what} yet"))
}

impl HostRuntime {
    /// A service that this program can run programs beside, but neither start nor stop.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A systemd unit.
    pub fn unit(unit: impl Into<String>) -> Self {
        Self { unit: Some(unit.into()) }
    }
}

#[async_trait]
impl ServiceRuntime for HostRuntime {
    async fn inspect(&self) -> Result<Inspection, AdapterError> {
        let _ = &self.unit;
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
        Ok(Some(inside.to_owned()))
    }
}
