//! Restores into directories: the backup's own folder, as the server's backup folder holds it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use backup_core::keep_aside::{self, Swap};
use backup_core::{
    AdapterError, AdapterErrorKind, Evidence, OpContext, Replaced, RestorePlan, RestoreSource, RestoreTarget,
    SpaceNeed, StepToken,
};
use serde::{Deserialize, Serialize};

use super::restore::{Backup, Token, unpack};
use super::twin::What;
use super::{export, model};
use crate::tree::live::blocking;

/// A backup's folder in a directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Place {
    target: PathBuf,
    staged: PathBuf,
    swap: Option<Swap>,
}

fn failed(what: &str, path: &Path) -> impl Fn(io::Error) -> AdapterError + use<> {
    let message = format!("cannot {what} `{}`", path.display());
    move |e| AdapterError::io(message.clone(), e)
}

/// The nearest folder above `path` that exists.
pub(super) fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

pub(super) async fn plan(
    cx: &OpContext,
    dir: &Path,
    target: &RestoreTarget,
    backup: &Backup,
) -> Result<RestorePlan, AdapterError> {
    let folder = dir.join(&backup.id);
    let place =
        Place { staged: keep_aside::staging_path(&folder, &cx.run_id), target: folder.clone(), swap: None };
    let (cx, dir, bytes) = (cx.clone(), dir.to_owned(), backup.bytes);
    let (replaces, space) = blocking(move || {
        let full =
            fs::read_dir(&dir).is_ok_and(|e| e.flatten().any(|e| !keep_aside::is_set_aside(&e.file_name())));
        if full && !cx.force {
            let what = format!("directory `{}` is not empty", dir.display());
            return Err(AdapterError::new(AdapterErrorKind::Conflict, what));
        }
        let mut replaces = Vec::new();
        if folder.exists() {
            let (_, changed_at) = keep_aside::measure(&folder).map_err(failed("look at", &folder))?;
            let kept_as = keep_aside::kept_path(&folder, cx.timestamp).display().to_string();
            replaces.push(Replaced { what: folder.display().to_string(), kept_as, changed_at });
        }
        Ok((replaces, vec![SpaceNeed { path: existing(&dir), bytes }]))
    })
    .await?;
    let of = if backup.export { "export" } else { "server's backup" };
    let steps = vec![format!("write the files of the {of} to `{}`", place.target.display())];
    let token = StepToken::new(&Token::Place(place))?;
    Ok(RestorePlan { target: target.clone(), steps, replaces, space, token })
}

impl Place {
    pub(super) async fn stage(self, cx: &OpContext, source: &RestoreSource) -> Result<Self, AdapterError> {
        unpack(cx, source, self.staged.clone()).await?;
        let at = cx.timestamp;
        blocking(move || {
            let swap = keep_aside::prepare(&self.staged, &self.target, at)
                .map_err(failed("plan to replace", &self.target))?;
            Ok(Self { swap: Some(swap), ..self })
        })
        .await
    }

    fn swap(&self) -> Result<&Swap, AdapterError> {
        self.swap.as_ref().ok_or_else(|| AdapterError::corrupt("the restore was never staged"))
    }

    pub(super) async fn switch(self) -> Result<Self, AdapterError> {
        blocking(move || {
            keep_aside::switch(self.swap()?).map_err(failed("replace", &self.target))?;
            Ok(self)
        })
        .await
    }

    pub(super) async fn undo(self, cx: &OpContext) -> Result<Self, AdapterError> {
        let at = cx.timestamp;
        blocking(move || {
            let swap = keep_aside::undo(self.swap()?, at).map_err(failed("put back", &self.target))?;
            Ok(Self { swap: Some(swap), ..self })
        })
        .await
    }

    /// What may lie beside the target.
    pub(super) fn remains(&self) -> Vec<PathBuf> {
        let kept = self.swap.iter().filter(|s| s.replaced).map(|s| s.kept.clone());
        [self.staged.clone()].into_iter().chain(kept).collect()
    }
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
