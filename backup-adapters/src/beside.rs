//! Restores into directories: what is restored is built beside its place, and exchanged for what is there.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use backup_core::keep_aside::{self, Swap};
use backup_core::{AdapterError, AdapterErrorKind, OpContext, Replaced, SpaceNeed};
use serde::{Deserialize, Serialize};

use crate::on_disk::{blocking, existing, failed};

/// A file or folder in a directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) target: PathBuf,
    /// Where it is built.
    pub(crate) staged: PathBuf,
    swap: Option<Swap>,
}

impl Place {
    /// `name` in `dir`, what it would replace, and the room that `bytes` need. The directory must be empty but for what
    /// `is_own` says, unless the user insists.
    pub(crate) async fn plan(
        cx: &OpContext,
        dir: &Path,
        name: &str,
        bytes: u64,
        is_own: fn(&OsStr) -> bool,
    ) -> Result<(Self, Vec<Replaced>, Vec<SpaceNeed>), AdapterError> {
        let target = dir.join(name);
        let place = Self { staged: keep_aside::staging_path(&target, &cx.run_id), target, swap: None };
        let (cx, dir) = (cx.clone(), dir.to_owned());
        blocking(move || {
            let full = fs::read_dir(&dir).is_ok_and(|e| e.flatten().any(|e| !is_own(&e.file_name())));
            if full && !cx.force {
                let what = format!("directory `{}` is not empty", dir.display());
                return Err(AdapterError::new(AdapterErrorKind::Conflict, what));
            }
            let (target, mut replaces) = (&place.target, Vec::new());
            if target.exists() {
                let (_, changed_at) = keep_aside::measure(target).map_err(failed("look at", target))?;
                let kept_as = keep_aside::kept_path(target, cx.timestamp).display().to_string();
                replaces.push(Replaced { what: target.display().to_string(), kept_as, changed_at });
            }
            Ok((place, replaces, vec![SpaceNeed { path: existing(&dir), bytes }]))
        })
        .await
    }

    /// It has been built.
    pub(crate) async fn built(self, cx: &OpContext) -> Result<Self, AdapterError> {
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

    pub(crate) async fn switch(self) -> Result<Self, AdapterError> {
        blocking(move || {
            keep_aside::switch(self.swap()?).map_err(failed("replace", &self.target))?;
            Ok(self)
        })
        .await
    }

    pub(crate) async fn undo(self, cx: &OpContext) -> Result<Self, AdapterError> {
        let at = cx.timestamp;
        blocking(move || {
            let swap = keep_aside::undo(self.swap()?, at).map_err(failed("put back", &self.target))?;
            Ok(Self { swap: Some(swap), ..self })
        })
        .await
    }

    /// What may lie beside the target.
    pub(crate) fn remains(&self) -> Vec<PathBuf> {
        let kept = self.swap.iter().filter(|s| s.replaced).map(|s| s.kept.clone());
        [self.staged.clone()].into_iter().chain(kept).collect()
    }
}
