//! What a backup of the configuration holds, without unpacking it: there may be secrets in it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_adapters::env::{self, DotenvFile};
use backup_core::catalog::{Catalog, Entry};
use backup_core::config::Config;
use backup_core::engine::{Engine, Selector};
use backup_core::state::StateDir;
use backup_core::{Metadata, NoEvents, chain};
use serde::{Deserialize, Serialize};

use super::{StoreConfig, prepared, service};
use crate::context::Context;
use crate::error::CliError;
use crate::secrets::Secrets;

/// A file of the backup.
#[derive(Debug, Serialize)]
pub(super) struct File {
    /// Where it was, and will be.
    pub(super) path: PathBuf,
    /// How it is here.
    pub(super) here: Here,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Here {
    Missing,
    Same,
    Differs,
}

/// What the archive says of a path, as far as this needs it.
#[derive(Debug, Deserialize)]
pub(super) struct Root {
    pub(super) path: PathBuf,
    member: PathBuf,
}

/// A backup of the configuration.
pub(super) struct Found {
    pub(super) entry: Entry,
    pub(super) metadata: Metadata,
    pub(super) roots: Vec<Root>,
}

/// What the backup holds, read and proven.
pub(super) struct Content {
    pub(super) files: Vec<File>,
    /// The configuration among them.
    pub(super) config: Config,
    pub(super) path: PathBuf,
}

/// Reads one of them.
pub(super) async fn read(
    cx: &Context,
    store: &StoreConfig,
    catalog: &Catalog,
    entry: &Entry,
) -> Result<(Found, Content), CliError> {
    let metadata = catalog.metadata(&entry.id).await?;
    let roots = metadata.artifacts.first().and_then(|a| a.attributes.get("roots")).cloned();
    let roots = roots.and_then(|roots| serde_json::from_value::<Vec<Root>>(roots).ok());
    let Some(roots) = roots.filter(|r| !r.is_empty()) else {
        return Err(CliError::failed(format!("{} does not say where its files were", entry.id)));
    };
    let found = Found { entry: entry.clone(), metadata, roots };
    let read = unpacked(cx, store, catalog, &found).await?;
    let (mut files, mut configs) = (Vec::new(), Vec::new());
    for root in &found.roots {
        let member = Path::new("/").join(&root.member);
        files.push(File { path: root.path.clone(), here: here(&read, &member, &root.path)? });
        for file in &read {
            let Ok(below) = file.path.strip_prefix(&member) else { continue };
            let path = if below.as_os_str().is_empty() { root.path.clone() } else { root.path.join(below) };
            // Of a Compose file, or anything else, this makes an error.
            if let Ok(config) = Config::parse(file.text.expose(), &path.display().to_string()) {
                configs.push((config, path));
            }
        }
    }
    let Some((config, path)) = configs.into_iter().next() else {
        return Err(CliError::failed(format!(
            "{} holds no configuration that this version can read",
            found.entry.id
        ))
        .hint("`backup show configuration --by-hand` tells how to unpack it"));
    };
    Ok((found, Content { files, config, path }))
}

/// Its files, in memory.
async fn unpacked(
    cx: &Context,
    store: &StoreConfig,
    catalog: &Catalog,
    found: &Found,
) -> Result<Vec<DotenvFile>, CliError> {
    let id = &found.entry.id;
    // Nothing may be written where the configuration will say that the state is: this may be a dry run.
    let folder = tempfile::Builder::new().prefix("backup-").tempdir();
    let folder = folder.map_err(|e| CliError::failed("cannot make a temporary folder").because(&e))?;
    let engine =
        Engine::builder(prepared(cx, store, found)?.plan, catalog.clone(), StateDir::open(folder.path())?)
            .clock(Arc::clone(&cx.clock))
            .events(Arc::new(NoEvents))
            .secrets(Arc::new(Secrets))
            .build();
    let source = engine.source(&service()?, &Selector::Exactly(id.clone())).await?;
    let read = env::read(&source).await;
    drop(source);
    engine.shutdown().await;
    read.map_err(|e| CliError::failed(format!("{id} cannot be read: {}", chain(&e))))
}

/// How `path` is on this host, compared with what the backup has as `member`. Of a folder only whether it is there.
fn here(read: &[DotenvFile], member: &Path, path: &Path) -> Result<Here, CliError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(match read.iter().find(|f| f.path == member) {
            Some(file) if file.text.expose().as_bytes() == bytes => Here::Same,
            _ => Here::Differs,
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Here::Missing),
        Err(e) if e.kind() == std::io::ErrorKind::IsADirectory => Ok(Here::Differs),
        Err(e) => Err(CliError::failed(format!("cannot read `{}`", path.display())).because(&e)),
    }
}
