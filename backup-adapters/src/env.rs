//! `env`: dotenv files, as one small tar archive, with a new backup only when they changed.
//!
//! What they contain is never logged, and never part of errors, attributes or evidence.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use backup_core::{
    AdapterConfig, AdapterError, AdapterErrorKind, Artifact, BackupSource, BuildContext, CaptureReport,
    ConfigError, Consistency, ContentCheck, DiscoverContext, Discovered, Discovery, Evidence, LeftOut,
    LegacyArtifact, OpContext, ReadOutcome, RestoreTarget, ServiceAdapter, ServiceName,
};
use futures::StreamExt;
use serde::Deserialize;

use crate::tree::adapter::{Kind, Tree};
use crate::tree::bare::BARE;
use crate::tree::capture::{self, Job};
use crate::tree::live::{Live, artifact_name, roots_attribute};
use crate::tree::roots::{self, Root, RootKind};
use crate::tree::rules::{Excluded, RuleSpec};
use crate::tree::write::{OnChange, Summary};

mod inspect;
mod read;

use inspect::Inspector;
pub use read::{DotenvFile, read};

/// The keys of a service of the kind `env`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvConfig {
    /// Files or globs, e.g. `.env`, `*/.env`. Each must match something. Relative to the configuration file.
    pub paths: Vec<String>,
    /// Make a new backup only if a file's name, contents, mode or owner changed since the newest good one.
    #[serde(default = "yes")]
    pub only_if_changed: bool,
}

/// What the scripts before this program copied.
const FILE: &str = ".env";

fn yes() -> bool {
    true
}

impl AdapterConfig for EnvConfig {
    const KIND: &'static str = "env";
    const SUMMARY: &'static str = "dotenv files, a new version when they changed";
    const PROVEN: &'static str = "round trips, change detection, GNU tar, faults";

    fn build(self, cx: &BuildContext) -> Result<Arc<dyn ServiceAdapter>, ConfigError> {
        roots::validate(&self.paths)?;
        let live = Live { base: cx.base_dir.clone(), paths: self.paths, rules: RuleSpec::default() };
        Ok(Arc::new(Tree(Env { live, only_if_changed: self.only_if_changed })))
    }

    fn discover(cx: &DiscoverContext) -> Result<Discovery, AdapterError> {
        discover(cx)
    }
}

#[derive(Debug)]
struct Env {
    live: Live,
    only_if_changed: bool,
}

#[async_trait]
impl Kind for Env {
    const NAME: &'static str = EnvConfig::KIND;
    // Containers and services take their settings from it.
    const FIRST: bool = true;

    // The configuration of this program and Compose files say where secrets are, and have none.
    fn secrets(&self) -> bool {
        let plain = |path: &String| [".toml", ".yaml", ".yml"].iter().any(|end| path.ends_with(end));
        !self.live().paths.iter().all(plain)
    }

    const FRAME: &'static str = "files";

    fn live(&self) -> &Live {
        &self.live
    }

    async fn roots(&self, cx: &OpContext) -> Result<(Vec<Root>, Excluded), AdapterError> {
        let (roots, excluded) = self.live.roots(cx).await?;
        match roots.iter().find(|r| r.kind == RootKind::Dir) {
            None => Ok((roots, excluded)),
            Some(dir) => Err(AdapterError::new(
                AdapterErrorKind::InvalidConfig,
                format!("`{}` is a folder: name the files in it, e.g. `*/.env`", dir.path.display()),
            )),
        }
    }

    async fn open(&self, cx: &OpContext) -> Result<BackupSource, AdapterError> {
        let (roots, excluded) = self.roots(cx).await?;
        let attribute = roots_attribute(&roots)?;
        let started = cx.clock.now();
        let rules = self.live.rules.clone();
        let (stream, running) =
            capture::start(cx, Job { roots, bases: Vec::new(), rules, excluded, on_change: OnChange::Fail });
        // Fingerprint and counts come from the very bytes that are stored.
        let seen = Arc::new(Mutex::new(Inspector::new()));
        let watch = Arc::clone(&seen);
        let stream = stream.map(move |chunk| {
            let chunk = chunk?;
            watch.lock().unwrap_or_else(PoisonError::into_inner).update(&chunk)?;
            Ok(chunk)
        });
        let artifact = Artifact::stream(artifact_name(cx), "tar", stream).with_attribute("roots", attribute);
        let only_if_changed = self.only_if_changed;
        Ok(BackupSource::single(artifact, move |outcome| async move {
            let ended = running.ended().await;
            if ended.is_none() && outcome == ReadOutcome::Complete {
                return Err(AdapterError::new(AdapterErrorKind::Other, "the archive was not completed"));
            }
            let (summary, until) = ended.unwrap_or_else(|| (Summary::default(), started));
            let mut report = CaptureReport::new("tar", Consistency::OnlineUnverified, started, until);
            report.warnings = summary.warnings;
            report.only_if_changed = only_if_changed;
            if outcome == ReadOutcome::Complete {
                let seen = std::mem::replace(
                    &mut *seen.lock().unwrap_or_else(PoisonError::into_inner),
                    Inspector::new(),
                );
                let (evidence, fingerprint) = seen.finish()?;
                report.evidence = evidence;
                report.fingerprint = Some(fingerprint);
            }
            Ok(report)
        }))
    }

    /// The scripts copied one file: that which is configured as `.env`, else the only one that is configured, else the one
    /// beside the configuration.
    fn legacy(&self, file: &str) -> Option<LegacyArtifact> {
        if file != FILE {
            return None;
        }
        let exact = |p: &PathBuf| !p.to_string_lossy().contains(['*', '?', '[', '{']);
        let named: Vec<PathBuf> =
            self.live.paths.iter().map(|p| self.live.base.join(p)).filter(exact).collect();
        let so_called = named.iter().find(|p| p.file_name().is_some_and(|name| name == FILE));
        let path = match (so_called, named.as_slice()) {
            (Some(path), _) => path.clone(),
            (None, [only]) if self.live.paths.len() == 1 => only.clone(),
            _ => self.live.base.join(FILE),
        };
        let folder = path.parent().and_then(|p| p.canonicalize().ok());
        let path = match (folder, path.file_name()) {
            (Some(folder), Some(name)) => folder.join(name),
            _ => path,
        };
        let member = String::from_utf8(roots::member_name(&path).to_vec()).ok()?;
        let attribute = roots_attribute(&[Root { path, member, kind: RootKind::File }]).ok()?;
        Some(LegacyArtifact::plain("env").with_attribute(BARE, true).with_attribute("roots", attribute))
    }

    fn check() -> Box<dyn ContentCheck> {
        Box::new(Inspector::new())
    }

    fn count(cx: &OpContext, live: &Live, target: &RestoreTarget) -> Result<Evidence, AdapterError> {
        inspect::probe(cx, live, target)
    }
}

/// `.env` and `.env.<anything>` in the directory and in the folders right below it. Examples are taken too: they are
/// small, and which of them is real cannot be told by name.
fn discover(cx: &DiscoverContext) -> Result<Discovery, AdapterError> {
    let fail = |e| AdapterError::io(format!("cannot look into `{}`", cx.dir.display()), e);
    let mut out = Discovery::default();
    let mut paths = Vec::new();
    let mut folders = vec![cx.dir.clone()];
    for entry in fs::read_dir(&cx.dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let path = entry.path();
        if entry.file_type().map_err(fail)?.is_dir() && !cx.excluded.contains(&path) {
            folders.push(path);
        }
    }
    for folder in folders {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) => {
                let what = folder.display().to_string();
                out.left_out.push(LeftOut { what, why: format!("it cannot be listed: {e}") });
                continue;
            }
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let is_env = name.to_str().is_some_and(|n| n == ".env" || n.starts_with(".env."));
            let path = entry.path();
            if is_env
                && path.is_file()
                && !backup_core::keep_aside::is_set_aside(&name)
                && !cx.covered.contains(&path)
            {
                paths.push(path);
            }
        }
    }
    paths.sort_unstable();
    let relative: Vec<String> =
        paths.iter().filter_map(|p| p.strip_prefix(&cx.dir).ok()?.to_str().map(str::to_owned)).collect();
    if relative.is_empty() {
        return Ok(out);
    }
    let mut settings = toml::Table::new();
    settings.insert("paths".to_owned(), relative.clone().into());
    if let Ok(service) = ServiceName::new("env") {
        let summary = relative.join(", ");
        out.found.push(Discovered { service, summary, settings, covers: paths });
    }
    Ok(out)
}
