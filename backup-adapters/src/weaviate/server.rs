//! From the configuration to a server that answers, and to the place where it keeps backups.

mod facts;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use backup_core::runtime::{RunState, ServiceRuntime};
use backup_core::{AdapterError, AdapterErrorKind, OpContext};
use reqwest::Method;
use serde_json::{Value, json};
use url::Url;

use super::Backend;
use super::api::Api;
use super::files::{Files, Folder, InContainer};
use super::s3::S3Config;
use crate::runtime::{DockerRuntime, ServiceSecret};

pub(super) use self::facts::{Backups, FOLDER, Facts, MODULE, REMEDY, facts};

/// A server as it is configured.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) container: Option<DockerRuntime>,
    pub(super) url: Option<Url>,
    pub(super) port: u16,
    pub(super) api_key: Option<ServiceSecret>,
    pub(super) backend: Backend,
    pub(super) s3: S3Config,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.container, &self.url) {
            (Some(docker), _) => write!(f, "Weaviate in container `{}`", docker.container()),
            (None, Some(url)) => write!(f, "Weaviate at `{}`", shown(url)),
            (None, None) => f.write_str("Weaviate"),
        }
    }
}

/// A URL without what may be a password in it.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Fails only for URLs that cannot have them.
    let _none = url.set_password(None);
    let _none = url.set_username("");
    url.as_str().trim_end_matches('/').to_owned()
}

impl Server {
    /// Finds the address and resolves the key.
    ///
    /// # Errors
    /// `NotFound` for the container, `Unavailable` if it does not run; those of the secret.
    pub(super) async fn connect(&self, cx: &OpContext) -> Result<Api, AdapterError> {
        cx.check_alive()?;
        let key = match &self.api_key {
            Some(secret) => Some(Box::pin(secret.resolve(cx, self.container.as_ref())).await?),
            None => None,
        };
        let base = match (&self.url, &self.container) {
            (Some(url), _) => url.as_str().trim_end_matches('/').to_owned(),
            (None, Some(docker)) => {
                let address = cx.within(Box::pin(docker.endpoint(self.port))).await??;
                format!("http://{address}")
            }
            (None, None) => {
                return Err(AdapterError::new(AdapterErrorKind::InvalidConfig, "no server is named"));
            }
        };
        Api::new(base, self.to_string(), key.as_ref())
    }

    /// The same address with `key`, for a server of our own.
    pub(super) fn runtime(&self) -> Option<Arc<dyn ServiceRuntime>> {
        self.container.as_ref().map(|c| Arc::new(c.clone()) as Arc<dyn ServiceRuntime>)
    }

    /// How what the server sees as `backups` is reached from here, to hold a backup named `id`.
    ///
    /// # Errors
    /// `Unsupported` if it is not; those of the runtime; what is wrong with a bucket or its keys.
    pub(super) async fn files(
        &self,
        cx: &OpContext,
        backups: &Backups,
        id: &str,
    ) -> Result<Arc<dyn Files>, AdapterError> {
        match backups {
            Backups::Folder(inside) => self.folder(cx, inside).await,
            Backups::Bucket(module) => {
                let bucket = module.open(cx, &self.s3, self.container.as_ref()).await?;
                bucket.try_out(cx, id).await?;
                Ok(Arc::new(bucket))
            }
        }
    }

    async fn folder(&self, cx: &OpContext, inside: &Path) -> Result<Arc<dyn Files>, AdapterError> {
        let Some(docker) = &self.container else {
            let here = self.url.as_ref().and_then(Url::host_str).is_some_and(|host| {
                host == "localhost"
                    || host
                        .trim_matches(['[', ']'])
                        .parse::<std::net::IpAddr>()
                        .is_ok_and(|ip| ip.is_loopback())
            });
            if here && tokio::fs::metadata(inside).await.is_ok_and(|m| m.is_dir()) {
                return Ok(Arc::new(Folder(inside.to_owned())));
            }
            return Err(AdapterError::unsupported(format!(
                "`{}`, where {self} keeps its backups, is not on this host: name its `container`",
                inside.display()
            )));
        };
        if let Some(path) = cx.within(docker.volume_path(inside)).await?? {
            return Ok(Arc::new(Folder(path)));
        }
        Ok(Arc::new(InContainer::new(docker.clone(), inside.to_owned())))
    }

    /// Whether the container is there and does not run. Without one: no.
    pub(super) async fn is_stopped(&self) -> bool {
        match &self.container {
            Some(docker) => docker.inspect().await.is_ok_and(|i| i.state == RunState::Stopped),
            None => false,
        }
    }
}

/// Writes an object into a collection of its own, and removes that; and looks for shards that take none.
///
/// # Errors
/// Those of the API; `Conflict` names a shard that is read-only.
pub(super) async fn take_a_write(server: &Server, cx: &OpContext) -> Result<(), AdapterError> {
    let api = server.connect(cx).await?;
    let name: String = cx.run_id.as_str().chars().filter(char::is_ascii_alphanumeric).collect();
    let name = format!("BackupProof{name}");
    let place = format!("/v1/schema/{name}");
    let change = async |method, path: &str, body: Option<Value>| {
        let answer = api.once(cx, method, path, body.as_ref()).await?;
        if answer.is_success() { Ok(()) } else { Err(api.refused(path, &answer)) }
    };
    change(Method::POST, "/v1/schema", Some(json!({ "class": name, "vectorizer": "none" }))).await?;
    let object = json!({ "class": name, "vector": [0.0, 1.0] });
    let written = change(Method::POST, "/v1/objects", Some(object)).await;
    let removed = change(Method::DELETE, &place, None).await;
    written.and(removed)?;
    refuse_read_only(server, &api, cx).await
}

/// A shard that was made read-only, by somebody or because its disk ran full, stays so until somebody says that it is ready
/// (1.35): a new collection, which takes writes, does not show that.
async fn refuse_read_only(server: &Server, api: &Api, cx: &OpContext) -> Result<(), AdapterError> {
    let nodes = match api.get(cx, "/v1/nodes?output=verbose").await {
        // Who may not look has written, at least.
        Err(e) if matches!(e.kind(), AdapterErrorKind::PermissionDenied | AdapterErrorKind::NotFound) => {
            return Ok(());
        }
        nodes => nodes?,
    };
    let nodes = nodes["nodes"].as_array().into_iter().flatten();
    let mut shards = nodes.flat_map(|node| node["shards"].as_array().into_iter().flatten());
    let Some(shard) = shards.find(|shard| shard["vectorIndexingStatus"] == "READONLY") else { return Ok(()) };
    let text = |key: &str| shard[key].as_str().unwrap_or_default();
    let (class, name) = (text("class"), text("name"));
    let what = format!(
        "shard `{name}` of collection `{class}` of {server} is read-only, as it is once its disk ran full: see that there is \
         room, and set it to READY (PUT /v1/schema/{class}/shards/{name})"
    );
    Err(AdapterError::new(AdapterErrorKind::Conflict, what))
}

/// What a key must be allowed to see and do, for nothing to be missing.
const NEEDED: [(&str, &str); 4] = [
    ("manage_backups", "backups"),
    ("read_collections", "collections"),
    ("read_tenants", "tenants"),
    ("read_data", "data"),
];

/// Refuses a key that sees a part of the collections only: the server would leave out the others and say nothing. Only its
/// own `backups` need the right to make them.
///
/// # Errors
/// `PermissionDenied` that names the rights.
pub(super) async fn check_rights(api: &Api, cx: &OpContext, backups: bool) -> Result<(), AdapterError> {
    let info = match api.get(cx, "/v1/users/own-info").await {
        // Older servers, and those that let everybody in.
        Err(e) if e.kind() == AdapterErrorKind::NotFound => return Ok(()),
        Err(e) if e.kind() == AdapterErrorKind::PermissionDenied => {
            // Without keys there is nobody to tell about: what it does refuse is refused at the next request.
            api.get(cx, "/v1/schema").await?;
            return Ok(());
        }
        info => info?,
    };
    let mut missing = missing_rights(&info);
    missing.retain(|right| backups || *right != NEEDED[0].0);
    if missing.is_empty() {
        return Ok(());
    }
    let user = info["username"].as_str().unwrap_or_default();
    let what = format!(
        "user `{user}` of {} does not see everything, so that collections could be missing: give it {} for `*`",
        api.name(),
        missing.join(", ")
    );
    Err(AdapterError::new(AdapterErrorKind::PermissionDenied, what))
}

fn missing_rights(info: &Value) -> Vec<&'static str> {
    // Without roles in use there is no such list.
    let Some(roles) = info["roles"].as_array() else { return Vec::new() };
    let granted = |action: &str, resource: &str| {
        let mut all = roles.iter().flat_map(|r| r["permissions"].as_array().into_iter().flatten());
        all.any(|p| {
            let on = &p[resource];
            let whole = |field: &str| on[field].as_str().is_none_or(|v| v == "*");
            p["action"] == action && whole("collection") && whole("tenant") && whole("object")
        })
    };
    NEEDED
        .into_iter()
        .filter(|(action, resource)| !granted(action, resource))
        .map(|(action, _)| action)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_for_a_part_are_not_enough() {
        let right = |action: &str, resource: &str, on: &str| serde_json::json!({"action": action, resource: {"collection": on}});
        let info = |on: &str| {
            let all: Vec<Value> = NEEDED.iter().map(|(a, r)| right(a, r, on)).collect();
            serde_json::json!({"username": "u", "roles": [{"name": "r", "permissions": all}]})
        };
        assert_eq!(missing_rights(&info("*")), Vec::<&str>::new());
        assert_eq!(missing_rights(&info("A")).len(), 4);
        assert_eq!(missing_rights(&serde_json::json!({"username": "u", "roles": []})).len(), 4);
        assert_eq!(missing_rights(&serde_json::json!({"username": "u"})), Vec::<&str>::new());
        assert_eq!(missing_rights(&serde_json::json!({"username": "u", "roles": null})), Vec::<&str>::new());
    }

    #[test]
    fn a_url_shows_no_password() {
        let url = Url::parse("https://u:hunter2@host:8080/").unwrap();
        assert_eq!(shown(&url), "https://host:8080");
    }
}
