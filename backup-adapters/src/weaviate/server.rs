//! From the configuration to a server that answers, and to the folders that it uses.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::runtime::{RunState, ServiceRuntime};
use backup_core::{AdapterError, AdapterErrorKind, OpContext};
use serde_json::Value;
use url::Url;

use super::api::Api;
use super::files::{Files, Folder, InContainer};
use super::s3::{self, S3Config};
use super::{Backend, CaptureMode};
use crate::runtime::{DockerRuntime, ServiceSecret};

/// The module whose files are collected, unless it is [`s3::MODULE`].
pub(super) const MODULE: &str = "backup-filesystem";

/// What the API calls them.
pub(super) const FOLDER: &str = "filesystem";
const BUCKET: &str = "s3";

/// What brings it.
pub(super) const REMEDY: &str =
    "set ENABLE_MODULES=backup-filesystem and BACKUP_FILESYSTEM_PATH=/var/lib/weaviate/backups";

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

/// What `/v1/meta` and `/v1/nodes` tell.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) version: String,
    pub(super) modules: Vec<String>,
    /// Its name, under which backups keep its part; empty if it does not tell.
    pub(super) node: String,
    /// Where the filesystem module keeps backups, as the server sees it.
    folder: Option<PathBuf>,
    /// Where the module for S3 keeps them.
    bucket: Option<s3::Module>,
}

/// Where the server puts its backups, as it sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Backups {
    Folder(PathBuf),
    Bucket(s3::Module),
}

impl Backups {
    /// What the API calls this backend.
    pub(super) fn backend(&self) -> &'static str {
        match self {
            Self::Folder(_) => FOLDER,
            Self::Bucket(_) => BUCKET,
        }
    }
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

/// What the server says of itself.
///
/// # Errors
/// `Unsupported` for a cluster of several nodes; those of the requests.
pub(super) async fn facts(api: &Api, cx: &OpContext) -> Result<Facts, AdapterError> {
    let meta = api.get(cx, "/v1/meta").await?;
    let Some(version) = meta["version"].as_str() else {
        let what = format!("{} does not answer like Weaviate", api.name());
        return Err(AdapterError::new(AdapterErrorKind::InvalidConfig, what));
    };
    let modules = meta["modules"].as_object();
    let folder = meta["modules"][MODULE]["backupsPath"].as_str().map(PathBuf::from);
    let bucket = s3::Module::parse(&meta["modules"][s3::MODULE]);
    // Without the right to look at nodes, the server itself refuses to back up a cluster.
    let nodes = match api.get(cx, "/v1/nodes?output=minimal").await {
        Err(e) if matches!(e.kind(), AdapterErrorKind::PermissionDenied | AdapterErrorKind::NotFound) => {
            Value::Null
        }
        nodes => nodes?,
    };
    let all = nodes["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    if all.len() > 1 {
        return Err(AdapterError::unsupported(format!(
            "{} is a cluster of {} nodes, which this version does not back up",
            api.name(),
            all.len()
        )));
    }
    let node = all.first().and_then(|n| n["name"].as_str()).unwrap_or_default().to_owned();
    Ok(Facts {
        version: version.to_owned(),
        modules: modules.map(|m| m.keys().cloned().collect()).unwrap_or_default(),
        node,
        folder,
        bucket,
    })
}

impl Facts {
    /// Where backups are kept; `None` if an export is made instead.
    ///
    /// # Errors
    /// `Unsupported`, with what to set, if a module is asked for and off.
    pub(super) fn backups(
        &self,
        server: &Server,
        mode: CaptureMode,
    ) -> Result<Option<Backups>, AdapterError> {
        if mode == CaptureMode::Export {
            return Ok(None);
        }
        let folder = || self.folder.clone().map(Backups::Folder);
        let bucket = || self.bucket.clone().map(Backups::Bucket);
        let (found, missing) = match server.backend {
            Backend::Auto => (folder().or_else(bucket), format!("{MODULE}: {REMEDY}")),
            Backend::Filesystem => (folder(), format!("{MODULE}: {REMEDY}")),
            Backend::S3 => {
                let remedy = "add it to ENABLE_MODULES, and set BACKUP_S3_BUCKET";
                (bucket(), format!("{}: {remedy}", s3::MODULE))
            }
        };
        match found {
            // Whoever names one wants that one.
            None if mode == CaptureMode::Backup || server.backend != Backend::Auto => {
                Err(AdapterError::unsupported(format!("{server} has no module {missing}")))
            }
            found => Ok(found),
        }
    }

    /// Where backups of ours may have stayed: in the bucket only if it is the configured place, for it may be out of reach.
    pub(super) fn reclaimable(&self, server: &Server, mode: CaptureMode) -> Vec<Backups> {
        match self.backups(server, mode) {
            Ok(Some(backups)) => vec![backups],
            _ => self.folder.clone().map(Backups::Folder).into_iter().collect(),
        }
    }
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
    fn the_bucket_is_used_where_there_is_no_folder_or_where_it_is_asked_for() {
        let facts = |folder: Option<&str>, bucket: bool| Facts {
            version: String::new(),
            modules: Vec::new(),
            node: String::new(),
            folder: folder.map(PathBuf::from),
            bucket: s3::Module::parse(&serde_json::json!({ "bucketName": if bucket { "b" } else { "" } })),
        };
        let chosen = |facts: Facts, backend, mode| {
            let server = Server {
                container: None,
                url: None,
                port: 1,
                api_key: None,
                backend,
                s3: S3Config::default(),
            };
            let backups = facts.backups(&server, mode).map_err(|e| e.to_string())?;
            Ok::<_, String>(backups.map(|b| b.backend()))
        };
        use CaptureMode::{Auto, Backup, Export};
        let both = || facts(Some("/b"), true);
        assert_eq!(chosen(both(), Backend::Auto, Auto), Ok(Some("filesystem")));
        assert_eq!(chosen(both(), Backend::S3, Auto), Ok(Some("s3")));
        assert_eq!(chosen(both(), Backend::Auto, Export), Ok(None));
        assert_eq!(chosen(facts(None, true), Backend::Auto, Auto), Ok(Some("s3")));
        assert_eq!(chosen(facts(None, false), Backend::Auto, Auto), Ok(None));
        for (facts, backend, mode, says) in [
            (facts(None, false), Backend::Auto, Backup, "backup-filesystem"),
            (facts(None, true), Backend::Filesystem, Auto, "backup-filesystem"),
            (facts(Some("/b"), false), Backend::S3, Auto, "backup-s3"),
        ] {
            let e = chosen(facts, backend, mode).unwrap_err();
            assert!(e.contains(says) && e.contains("ENABLE_MODULES"), "{e}");
        }
    }

    #[test]
    fn a_url_shows_no_password() {
        let url = Url::parse("https://u:hunter2@host:8080/").unwrap();
        assert_eq!(shown(&url), "https://host:8080");
    }
}
