//! Restores into directories: the backup's own folder, as the server's backup folder holds it.

use std::fs;
use std::path::{Path, PathBuf};

use backup_core::keep_aside;
use backup_core::{
    AdapterError, AdapterErrorKind, Evidence, OpContext, RestorePlan, RestoreTarget, StepToken,
};

use super::restore::{Backup, Token};
use super::twin::What;
use super::{export, model};
use crate::beside::Place;
use crate::on_disk::{blocking, failed};

/// A backup's folder in a directory.
pub(super) async fn plan(
    cx: &OpContext,
    dir: &Path,
    target: &RestoreTarget,
    backup: &Backup,
) -> Result<RestorePlan, AdapterError> {
    let (place, replaces, space) =
        Place::plan(cx, dir, &backup.id, backup.bytes, keep_aside::is_set_aside).await?;
    let of = if backup.export { "export" } else { "server's backup" };
    let steps = vec![format!("write the files of the {of} to `{}`", place.target.display())];
    let token = StepToken::new(&Token::Place(place))?;
    Ok(RestorePlan { target: target.clone(), steps, replaces, space, token })
}

/// What lies in a folder.
pub(super) enum Found {
    /// The server's own backup.
    Backup(model::Config),
    Export(export::Manifest),
}

impl Found {
    pub(super) fn id(&self) -> &str {
        match self {
            Self::Backup(config) => &config.id,
            Self::Export(manifest) => &manifest.id,
        }
    }

    /// The node that it is of; empty if it is of none.
    pub(super) fn node(&self) -> String {
        match self {
            Self::Backup(config) => config.nodes.keys().next().cloned().unwrap_or_default(),
            Self::Export(_) => String::new(),
        }
    }

    /// How a server gets it, which lies in `dir`.
    pub(super) fn what(&self, dir: &Path) -> What {
        match self {
            // A backup of nothing: a server that was just started holds the same.
            Self::Backup(config) if config.nodes.is_empty() => What::Nothing,
            Self::Backup(config) => What::Backup(config.id.clone()),
            Self::Export(manifest) => What::Export(dir.join(&manifest.id)),
        }
    }

    /// What can be told from the files alone.
    pub(super) fn evidence(&self) -> Evidence {
        match self {
            Self::Backup(config) => {
                Evidence::default().with_count("collections", config.classes().len() as u64)
            }
            Self::Export(manifest) => manifest.evidence(),
        }
    }
}

/// The one backup in `dir`.
pub(super) async fn find(dir: PathBuf) -> Result<Found, AdapterError> {
    blocking(move || {
        let unreadable = failed("list", &dir);
        for entry in fs::read_dir(&dir).map_err(&unreadable)? {
            let entry = entry.map_err(&unreadable)?;
            if keep_aside::is_set_aside(&entry.file_name()) {
                continue;
            }
            let read = |path: &Path| fs::read(path).map_err(failed("read", path));
            let (backup, export) = (entry.path().join(model::CONFIG), entry.path().join(export::MANIFEST));
            if backup.is_file() {
                return Ok(Found::Backup(model::Config::parse(&read(&backup)?)?));
            }
            if export.is_file() {
                return Ok(Found::Export(export::Manifest::parse(&read(&export)?)?));
            }
        }
        let what = format!("there is no backup of Weaviate in `{}`", dir.display());
        Err(AdapterError::new(AdapterErrorKind::NotFound, what))
    })
    .await
}
