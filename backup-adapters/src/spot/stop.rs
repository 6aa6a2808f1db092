//! Stops what only holds memory, so that it can end in order.

use std::time::Duration;

use async_trait::async_trait;
use backup_core::engine::{FlushAction, FlushContext};
use backup_core::runtime::ServiceRuntime;
use backup_core::{AdapterError, AdapterErrorKind, chain};
use tokio::time::Instant;

use crate::runtime::{DockerRuntime, HostRuntime};

/// What a service is given to end, if there is as much left.
const GRACE: Duration = Duration::from_secs(10);
/// What is left for the end by force: a busy engine takes more than a second, and nobody would hear what came of the others.
const FORCE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Stop {
    pub(super) containers: Vec<String>,
    pub(super) units: Vec<String>,
    pub(super) docker: Option<String>,
}

impl Stop {
    fn services(&self) -> Vec<(&str, Box<dyn ServiceRuntime>)> {
        let containers = self.containers.iter().map(|name| {
            let runtime = DockerRuntime::new(name.as_str());
            let runtime = match &self.docker {
                Some(url) => runtime.with_engine(url.as_str()),
                None => runtime,
            };
            (name.as_str(), Box::new(runtime) as Box<dyn ServiceRuntime>)
        });
        let units = self.units.iter().map(|name| {
            (name.as_str(), Box::new(HostRuntime::unit(name.as_str())) as Box<dyn ServiceRuntime>)
        });
        containers.chain(units).collect()
    }
}

#[async_trait]
impl FlushAction for Stop {
    async fn perform(&self, cx: &FlushContext) -> Result<String, AdapterError> {
        let services = self.services();
        if services.is_empty() {
            return Err(AdapterError::unsupported("nothing is to be stopped"));
        }
        let left = cx.until.saturating_duration_since(Instant::now());
        let grace = GRACE.min(left.saturating_sub(FORCE));
        // Not by `Interruption`, which brings back what it stops: this host does not come back.
        let stopping = services.iter().map(|(name, runtime)| async move {
            let stopped = match cx.rehearsal {
                true => runtime.inspect().await.map(drop),
                false => runtime.stop(grace).await.map(drop),
            };
            stopped.map_err(|e| format!("{name}: {}", chain(&e)))
        });
        let failed: Vec<String> =
            futures::future::join_all(stopping).await.into_iter().filter_map(Result::err).collect();
        if !failed.is_empty() {
            return Err(AdapterError::new(AdapterErrorKind::Other, failed.join("; ")));
        }
        let names: Vec<&str> = services.iter().map(|(name, _)| *name).collect();
        let verb = if cx.rehearsal { "would stop" } else { "stopped" };
        Ok(format!("{verb} {}", names.join(", ")))
    }
}
