//! What dead runs left on an engine: found by its labels, and removed.

use backup_core::{AdapterError, RunId};

use super::engine::Engine;
use super::{beside, find, isolated};

/// See [`DockerRuntime::reclaim`](super::DockerRuntime::reclaim).
pub(super) async fn reclaim(engine: &Engine, dead: &[RunId]) -> Result<Vec<String>, AdapterError> {
    let mut removed = Vec::new();
    for run in dead {
        for left in find::list(engine, Some(format!("{}={run}", beside::RUN_LABEL))).await? {
            if !["", engine.service()].contains(&find::label(&left, beside::SERVICE_LABEL)) {
                continue;
            }
            let id = left.id.clone().unwrap_or_default();
            beside::remove_wholly(engine, engine.client().await?, &id).await?;
            removed.push(format!("container `{}`, which was there for run {run}", find::name(&left)));
        }
        // After the containers that are in them.
        for left in isolated::of_run(engine, run).await? {
            isolated::remove(engine, left.id.as_deref().unwrap_or_default()).await?;
            let name = left.name.unwrap_or_default();
            removed.push(format!("network `{name}`, which was there for run {run}"));
        }
    }
    Ok(removed)
}
