//! What a server says of itself, and which of its places for backups is used.

use std::path::PathBuf;

use backup_core::{AdapterError, AdapterErrorKind, OpContext};
use serde_json::Value;

use super::Server;
use crate::weaviate::api::Api;
use crate::weaviate::{Backend, CaptureMode, s3};

/// The module whose files are collected, unless it is [`s3::MODULE`].
pub(in crate::weaviate) const MODULE: &str = "backup-filesystem";

/// What the API calls them.
pub(in crate::weaviate) const FOLDER: &str = "filesystem";
const BUCKET: &str = "s3";

/// What brings it.
pub(in crate::weaviate) const REMEDY: &str =
    "set ENABLE_MODULES=backup-filesystem and BACKUP_FILESYSTEM_PATH=/var/lib/weaviate/backups";

/// What `/v1/meta` and `/v1/nodes` tell.
#[derive(Debug, Clone)]
pub(in crate::weaviate) struct Facts {
    pub(in crate::weaviate) version: String,
    pub(in crate::weaviate) modules: Vec<String>,
    /// Its name, under which backups keep its part; empty if it does not tell.
    pub(in crate::weaviate) node: String,
    /// Where the filesystem module keeps backups, as the server sees it.
    folder: Option<PathBuf>,
    /// Where the module for S3 keeps them.
    bucket: Option<s3::Module>,
}

/// Where the server puts its backups, as it sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::weaviate) enum Backups {
    Folder(PathBuf),
    Bucket(s3::Module),
}

impl Backups {
    /// What the API calls this backend.
    pub(in crate::weaviate) fn backend(&self) -> &'static str {
        match self {
            Self::Folder(_) => FOLDER,
            Self::Bucket(_) => BUCKET,
        }
    }
}

/// What the server says of itself.
///
/// # Errors
/// `Unsupported` for a cluster of several nodes; those of the requests.
pub(in crate::weaviate) async fn facts(api: &Api, cx: &OpContext) -> Result<Facts, AdapterError> {
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
    pub(in crate::weaviate) fn backups(
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
    pub(in crate::weaviate) fn reclaimable(&self, server: &Server, mode: CaptureMode) -> Vec<Backups> {
        match self.backups(server, mode) {
            Ok(Some(backups)) => vec![backups],
            _ => self.folder.clone().map(Backups::Folder).into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weaviate::S3Config;

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
}
