//! A network of a run's own, from which nothing but this host can be reached. It carries the run's id as containers do.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use backup_core::{AdapterError, AdapterErrorKind, RunId};
use bollard::models::{
    Network as Found, NetworkConnectRequest, NetworkCreateRequest, NetworkDisconnectRequest,
};
use bollard::query_parameters::ListNetworksOptions;
use tokio::time::{Instant, sleep};

use super::beside::{RUN_LABEL, SERVICE_LABEL};
use super::engine::Engine;
use super::mounts;

/// How long a container may take to leave it, and how often that is tried.
const GOING: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(200);

/// Such a network. Removed when this is dropped.
pub(super) struct Isolated {
    engine: Arc<Engine>,
    id: String,
    done: bool,
}

impl Isolated {
    /// Makes one for `run`.
    pub(super) async fn create(engine: &Arc<Engine>, run: &RunId) -> Result<Self, AdapterError> {
        let body = NetworkCreateRequest {
            name: format!("backup-{run}-{}", uuid::Uuid::new_v4().simple()),
            driver: Some("bridge".to_owned()),
            internal: Some(true),
            labels: Some(HashMap::from([
                (RUN_LABEL.to_owned(), run.to_string()),
                (SERVICE_LABEL.to_owned(), engine.service().to_owned()),
            ])),
            ..Default::default()
        };
        let request = engine.client().await?.create_network(body);
        let id = engine.call("make a network for a test restore", request).await?.id;
        let made = Self { engine: Arc::clone(engine), id, done: false };
        made.join().await;
        Ok(made)
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Where this process runs in a container itself, the host's address in the network is not ours: we join it.
    async fn join(&self) {
        if self.engine.socket().is_none() || !mounts::in_container() {
            return;
        }
        let Ok(own) = tokio::fs::read_to_string("/etc/hostname").await else { return };
        let Ok(client) = self.engine.client().await else { return };
        let request = NetworkConnectRequest { container: own.trim().to_owned(), ..Default::default() };
        let joined = self.engine.call("join a network", client.connect_network(&self.id, request)).await;
        if let Err(error) = joined {
            // It may be reached all the same; if not, the server there is reported as not answering.
            tracing::debug!(%error, "our own container does not join the network of a test restore");
        }
    }

    /// It stays until the run is reclaimed.
    pub(super) fn leave_be(mut self) {
        self.done = true;
    }

    /// Removes it, and waits for that; containers in it must be on their way out.
    pub(super) async fn close(mut self) -> Result<(), AdapterError> {
        self.done = true;
        remove(&self.engine, &self.id).await
    }
}

impl Drop for Isolated {
    fn drop(&mut self) {
        if let (false, Ok(runtime)) = (self.done, tokio::runtime::Handle::try_current()) {
            let (engine, id) = (Arc::clone(&self.engine), self.id.clone());
            runtime.spawn(async move {
                if let Err(e) = remove(&engine, &id).await {
                    tracing::debug!(error = %e, "a network of ours may be left");
                }
            });
        }
    }
}

/// The networks of `run` that are there for this service.
pub(super) async fn of_run(engine: &Engine, run: &RunId) -> Result<Vec<Found>, AdapterError> {
    let filters = HashMap::from([("label".to_owned(), vec![format!("{RUN_LABEL}={run}")])]);
    let request = engine.client().await?.list_networks(Some(ListNetworksOptions { filters: Some(filters) }));
    let mut found = match engine.call("list networks", request).await {
        // Whoever may not see networks, behind a proxy in front of the engine, has made none.
        Err(e) if e.kind() == AdapterErrorKind::PermissionDenied => Vec::new(),
        found => found?,
    };
    let of = |n: &Found| n.labels.as_ref().and_then(|l| l.get(SERVICE_LABEL)).cloned().unwrap_or_default();
    found.retain(|n| ["", engine.service()].contains(&of(n).as_str()));
    Ok(found)
}

/// Removes a network of ours; what is gone already is success.
pub(super) async fn remove(engine: &Engine, id: &str) -> Result<(), AdapterError> {
    use AdapterErrorKind as Kind;
    let client = engine.client().await?;
    let until = Instant::now() + GOING;
    loop {
        match engine.call("remove a network of ours", client.remove_network(id)).await {
            Err(e) if e.kind() == Kind::NotFound => return Ok(()),
            // Somebody is still in it: a container that is about to go, or the one that we run in.
            Err(e)
                if matches!(e.kind(), Kind::PermissionDenied | Kind::Conflict) && Instant::now() < until =>
            {
                leave(engine, id).await;
                sleep(LOOK).await;
            }
            done => return done,
        }
    }
}

/// Takes the container that we run in out of a network.
async fn leave(engine: &Engine, id: &str) {
    if !mounts::in_container() {
        return;
    }
    let Ok(own) = tokio::fs::read_to_string("/etc/hostname").await else { return };
    let Ok(client) = engine.client().await else { return };
    let request = NetworkDisconnectRequest { container: own.trim().to_owned(), force: Some(true) };
    // Not in it is as good.
    let _left = engine.call("leave a network", client.disconnect_network(id, request)).await;
}
