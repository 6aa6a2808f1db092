//! `files`: directories and files as one tar archive.
//!
//! The archive is read from a live tree: each file is whole in itself (or the backup fails), but two files may be of
//! different moments. Restoring builds beside the original and exchanges names; nothing is deleted.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::{
    AdapterConfig, AdapterError, AdapterErrorKind, Artifact, ArtifactMeta, BackupSource, BuildContext,
    Capabilities, CaptureReport, CheckPurpose, ConfigError, Consistency, ContentCheck, DiscoverContext,
    Discovery, Evidence, HandContext, HandStep, Leftover, Metadata, OpContext, ReadOutcome, Replaced,
    RestorePlan, RestoreSource, RestoreTarget, RunId, ServiceAdapter, StepToken,
};
use serde::Deserialize;

use crate::tree::capture::{self, Job};
use crate::tree::check::TarCheck;
use crate::tree::hand::{self, LeftOut};
use crate::tree::live::{Live, artifact_name, blocking, roots_attribute};
use crate::tree::restore;
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
        Ok(Arc::new(Files { live, on_change: self.on_change }))
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
impl ServiceAdapter for Files {
    fn kind(&self) -> &'static str {
        FilesConfig::KIND
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::full()
    }

    async fn check(&self, cx: &OpContext) -> Result<(), AdapterError> {
        self.live.roots(cx).await.map(|_| ())
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
        let job = Job { roots, rules: self.live.rules.clone(), excluded, on_change: self.on_change };
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

    fn content_check(&self, _: &CheckPurpose, _: &ArtifactMeta) -> Option<Box<dyn ContentCheck>> {
        Some(Box::new(TarCheck::new()))
    }

    fn by_hand(&self, backup: &HandContext<'_>) -> Vec<HandStep> {
        hand::steps(backup)
    }

    async fn plan_restore(
        &self,
        cx: &OpContext,
        backup: &Metadata,
        target: &RestoreTarget,
    ) -> Result<RestorePlan, AdapterError> {
        let (cx, live, backup, target) = (cx.clone(), self.live.clone(), backup.clone(), target.clone());
        blocking(move || restore::plan(&cx, &live, &backup, &target)).await
    }

    async fn stage(
        &self,
        cx: &OpContext,
        plan: &RestorePlan,
        source: &RestoreSource,
    ) -> Result<StepToken, AdapterError> {
        restore::stage(cx, &self.live, plan, source).await
    }

    fn replaces(&self, staged: &StepToken) -> Option<Vec<Replaced>> {
        restore::replaces(staged)
    }

    async fn switch(
        &self,
        _: &OpContext,
        _: &RestorePlan,
        staged: &StepToken,
    ) -> Result<StepToken, AdapterError> {
        let staged = staged.clone();
        blocking(move || restore::switch(&staged)).await
    }

    async fn probe(&self, cx: &OpContext, target: &RestoreTarget) -> Result<Evidence, AdapterError> {
        let (cx, live, target) = (cx.clone(), self.live.clone(), target.clone());
        blocking(move || Ok(live.count(&cx, &target)?.counts.evidence())).await
    }

    async fn undo(&self, cx: &OpContext, switched: &StepToken) -> Result<StepToken, AdapterError> {
        let (cx, switched) = (cx.clone(), switched.clone());
        blocking(move || restore::undo(&cx, &switched)).await
    }

    async fn leftovers(&self, cx: &OpContext, token: &StepToken) -> Result<Vec<Leftover>, AdapterError> {
        let (cx, token) = (cx.clone(), token.clone());
        blocking(move || restore::leftovers(&cx, &token)).await
    }

    async fn discard(&self, cx: &OpContext, token: &StepToken) -> Result<(), AdapterError> {
        let (cx, token) = (cx.clone(), token.clone());
        blocking(move || restore::discard(&cx, &token)).await
    }

    async fn reclaim(&self, cx: &OpContext, dead: &[RunId]) -> Result<Vec<String>, AdapterError> {
        // Roots that are gone have nothing beside them that we could find.
        let roots: Vec<PathBuf> = match self.live.roots(cx).await {
            Ok((roots, _)) => roots.into_iter().map(|r| r.path).collect(),
            Err(_) => self.live.paths.iter().map(|p| self.live.base.join(p)).collect(),
        };
        let dead = dead.to_vec();
        blocking(move || restore::reclaim(&roots, &dead)).await
    }
}
