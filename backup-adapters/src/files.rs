//! `files`: directories and files as one tar archive.
//!
//! The archive is read from a live tree: each file is whole in itself (or the backup fails), but two files may be of
//! different moments. Restoring builds beside the original and exchanges names; nothing is deleted.

use std::sync::Arc;

use async_trait::async_trait;
use backup_core::{
    AdapterConfig, AdapterError, AdapterErrorKind, Artifact, BackupSource, BuildContext, CaptureReport,
    ConfigError, Consistency, ContentCheck, DiscoverContext, Discovery, Evidence, OpContext, ReadOutcome,
    RestoreTarget, ServiceAdapter,
};
use serde::Deserialize;

use crate::on_disk::blocking;
use crate::tree::adapter::{Kind, Tree};
use crate::tree::capture::{self, Job};
use crate::tree::check::TarCheck;
use crate::tree::hand::LeftOut;
use crate::tree::live::{Live, artifact_name, roots_attribute};
use crate::tree::roots;
use crate::tree::rules::RuleSpec;
pub use crate::tree::write::OnChange;
use crate::tree::write::Summary;

mod discover;

/// The keys of a service of the kind `files`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilesConfig {
    /// Directories, files or globs (`*`, `?`, `[…]`, `{…}` within one part of a path; `**` for any number of folders;
    /// hidden names match too). Symlinks named here are followed; symlinks inside are archived as such.
    /// Relative to the configuration file.
    pub paths: Vec<String>,
    /// What to leave out, written as in a `.gitignore`: `*.log` anywhere, `/cache` at the top of each path, `tmp/`
    /// folders only, `!keep.log` takes back.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Leave out what Git ignores in a work tree: `.gitignore` at every level and `.git/info/exclude` (not the user's
    /// global list, and without asking whether an ignored file was added nevertheless). `.git` itself stays in.
    #[serde(default)]
    pub gitignore: bool,
    /// Go into other file systems that are mounted below. Otherwise they are empty folders in the backup.
    #[serde(default)]
    pub cross_mounts: bool,
    /// What to do about a file that keeps changing while it is read.
    #[serde(default)]
    pub on_change: OnChange,
}

impl AdapterConfig for FilesConfig {
    const KIND: &'static str = "files";
    const SUMMARY: &'static str = "directories and files, with owners, attributes, links and holes";
    const PROVEN: &'static str = "round trips of every kind of entry, GNU tar in both directions, faults";

    fn build(self, cx: &BuildContext) -> Result<Arc<dyn ServiceAdapter>, ConfigError> {
        roots::validate(&self.paths)?;
        let rules =
            RuleSpec { exclude: self.exclude, gitignore: self.gitignore, cross_mounts: self.cross_mounts };
        rules.validate()?;
        let live = Live { base: cx.base_dir.clone(), paths: self.paths, rules };
        Ok(Arc::new(Tree(Files { live, on_change: self.on_change })))
    }

    fn discover(cx: &DiscoverContext) -> Result<Discovery, AdapterError> {
        discover::discover(cx)
    }
}

#[derive(Debug)]
struct Files {
    live: Live,
    on_change: OnChange,
}

#[async_trait]
impl Kind for Files {
    const NAME: &'static str = FilesConfig::KIND;
    const FRAME: &'static str = "directories";

    fn live(&self) -> &Live {
        &self.live
    }

    async fn open(&self, cx: &OpContext) -> Result<BackupSource, AdapterError> {
        let (roots, excluded) = self.live.roots(cx).await?;
        let attribute = roots_attribute(&roots)?;
        let rules = self.live.rules.clone();
        let (roots, excluded, left_out) = blocking(move || {
            let left_out = LeftOut::find(&roots, &rules, &excluded);
            Ok((roots, excluded, left_out))
        })
        .await?;
        let started = cx.clock.now();
        let job = Job {
            roots,
            bases: Vec::new(),
            rules: self.live.rules.clone(),
            excluded,
            on_change: self.on_change,
        };
        let (stream, running) = capture::start(cx, job);
        let mut artifact =
            Artifact::stream(artifact_name(cx), "tar", stream).with_attribute("roots", attribute);
        if !left_out.is_empty() {
            artifact = artifact.with_attribute(LeftOut::ATTRIBUTE, left_out.attribute()?);
        }
        Ok(BackupSource::single(artifact, move |outcome| async move {
            let ended = running.ended().await;
            let (summary, until) = match ended {
                Some((summary, until)) => (summary, until),
                None if outcome != ReadOutcome::Complete => (Summary::default(), started),
                None => {
                    return Err(AdapterError::new(AdapterErrorKind::Other, "the archive was not completed"));
                }
            };
            let mut report = CaptureReport::new("tar", Consistency::OnlineUnverified, started, until);
            report.evidence = summary.counts.evidence();
            if !summary.changed.is_empty() {
                let names: Vec<String> =
                    summary.changed.iter().take(20).map(|p| p.display().to_string()).collect();
                report.evidence.notes.insert("changed".to_owned(), names.join(", "));
            }
            report.warnings = summary.warnings;
            Ok(report)
        }))
    }

    fn check() -> Box<dyn ContentCheck> {
        Box::new(TarCheck::new())
    }

    fn count(cx: &OpContext, live: &Live, target: &RestoreTarget) -> Result<Evidence, AdapterError> {
        Ok(live.count(cx, target)?.counts.evidence())
    }
}
