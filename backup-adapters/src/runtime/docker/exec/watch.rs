//! Watches the container while a program runs in it: a stream alone does not tell that its other end is frozen.

use std::time::Duration;

use backup_core::{AdapterError, AdapterErrorKind};
use bollard::models::ContainerState;

use super::Spot;
use super::failure::Failure;
use crate::runtime::docker::find;

const EVERY: Duration = Duration::from_secs(1);

impl Spot {
    /// Returns once the container is no longer as it was.
    pub(super) async fn changed(&self) -> Failure {
        loop {
            tokio::time::sleep(EVERY).await;
            if let Some(failure) = self.look().await {
                return failure;
            }
        }
    }

    /// The container has ended. That its engine knows this, too, takes a moment: it collects the rest of its output first.
    pub(super) async fn stopped(&self) -> Failure {
        for _ in 0..50 {
            if let Some(failure) = self.look().await {
                return failure;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Failure::over(AdapterErrorKind::Unavailable, format!("container `{}` stopped", self.name))
    }

    /// What keeps a program from going on in the container, if anything.
    pub(super) async fn look(&self) -> Option<Failure> {
        use AdapterErrorKind as Kind;
        let name = &self.name;
        let container = match find::inspect_id(&self.engine, &self.id).await {
            Ok(container) => container,
            Err(e) => return self.lost(&e),
        };
        let ContainerState { running, paused, restarting, started_at, exit_code, .. } =
            container.state.unwrap_or_default();
        if running != Some(true) || restarting == Some(true) {
            let code = exit_code.map(|c| format!(" with exit code {c}")).unwrap_or_default();
            return Some(Failure::over(Kind::Unavailable, format!("container `{name}` stopped{code}")));
        }
        if started_at.unwrap_or_default() != self.started_at {
            return Some(Failure::over(Kind::Unavailable, format!("container `{name}` was restarted")));
        }
        if paused == Some(true) {
            return Some(Failure::over(Kind::Conflict, format!("container `{name}` was paused")));
        }
        None
    }

    fn lost(&self, e: &AdapterError) -> Option<Failure> {
        if e.kind() == AdapterErrorKind::NotFound {
            let message = format!("container `{}` was removed", self.name);
            return Some(Failure::over(AdapterErrorKind::NotFound, message));
        }
        // An engine that is busy with the container (a copy holds its lock) says nothing about the program.
        tracing::debug!(error = %e, "a container in use could not be inspected");
        None
    }
}
