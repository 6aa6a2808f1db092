//! Services of the host itself: a systemd unit, or something that is only reached by its address.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use backup_core::AdapterError;
use backup_core::runtime::{ExecCommand, Execution, ExitStatus, Inspection, ServiceRuntime};

mod exec;
mod group;
mod stdin;
mod stdout;
mod systemd;
mod tail;
mod user;

use systemd::Unit;

/// A service of this host.
#[derive(Debug, Clone, Default)]
pub struct HostRuntime {
    unit: Option<String>,
    path: Vec<PathBuf>,
}

impl HostRuntime {
    /// A service that this program can run programs beside, but neither start nor stop.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A systemd unit.
    pub fn unit(unit: impl Into<String>) -> Self {
        Self { unit: Some(unit.into()), ..Self::default() }
    }

    /// Looks for programs in these folders first, then where the environment says; e.g. `/usr/lib/postgresql/15/bin`.
    #[must_use]
    pub fn with_program_path(mut self, folders: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        self.path.extend(folders.into_iter().map(Into::into));
        self
    }

    fn systemd(&self, what: &str) -> Result<Unit<'_>, AdapterError> {
        let unknown = || {
            AdapterError::unsupported(format!(
                "cannot {what} a service that is only known by its address: name its systemd unit"
            ))
        };
        let name = self.unit.as_deref().ok_or_else(unknown)?;
        Ok(Unit { name, path: &self.path })
    }
}

#[async_trait]
impl ServiceRuntime for HostRuntime {
    async fn inspect(&self) -> Result<Inspection, AdapterError> {
        self.systemd("inspect")?.inspect().await
    }

    async fn start(&self) -> Result<(), AdapterError> {
        self.systemd("start")?.start().await
    }

    /// systemd kills the unit itself after its `TimeoutStopSec`, however long `grace` is: it counts as killed then.
    async fn stop(&self, grace: Duration) -> Result<ExitStatus, AdapterError> {
        self.systemd("stop")?.stop(grace).await
    }

    /// By the freezer of its control group: systemd 246 or newer, with the unified hierarchy.
    async fn pause(&self) -> Result<(), AdapterError> {
        self.systemd("pause")?.pause().await
    }

    async fn unpause(&self) -> Result<(), AdapterError> {
        self.systemd("let go on")?.unpause().await
    }

    /// Also while the service is stopped: a program of the host needs no running service.
    async fn exec(&self, command: ExecCommand) -> Result<Execution, AdapterError> {
        exec::run(command, &self.path).await
    }

    async fn volume_path(&self, inside: &Path) -> Result<Option<PathBuf>, AdapterError> {
        Ok(Some(inside.to_owned()))
    }
}
