//! One [`ServiceAdapter`] for everything that is archived as a tree: `files` and `env` say only what differs.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use backup_core::{
    AdapterError, ArtifactMeta, BackupSource, Capabilities, CheckPurpose, ContentCheck, Evidence,
    HandContext, HandStep, Leftover, LegacyArtifact, Metadata, OpContext, Replaced, RestorePlan,
    RestoreSource, RestoreTarget, RunId, ServiceAdapter, StepToken,
};

use super::live::Live;
use super::roots::Root;
use super::rules::Excluded;
use super::{bare, hand, restore};
use crate::on_disk::blocking;

/// How long files are counted at most when only whether there are any decides: a cold disk may need minutes for millions.
const LOOK: Duration = Duration::from_secs(20);

/// What differs.
#[async_trait]
pub(crate) trait Kind: fmt::Debug + Send + Sync + 'static {
    /// Its name in metadata.json.
    const NAME: &'static str;

    /// Whether others read what it restores, as of the trait of adapters.
    const FIRST: bool = false;

    /// The count that also those have that hold nothing.
    const FRAME: &'static str;

    /// What was configured.
    fn live(&self) -> &Live;

    /// Whether it is secrets that are there.
    fn secrets(&self) -> bool {
        false
    }

    /// What there is to archive now.
    async fn roots(&self, cx: &OpContext) -> Result<(Vec<Root>, Excluded), AdapterError> {
        self.live().roots(cx).await
    }

    /// As of the trait of adapters.
    async fn open(&self, cx: &OpContext) -> Result<BackupSource, AdapterError>;

    /// As of the trait of adapters.
    fn legacy(&self, file: &str) -> Option<LegacyArtifact> {
        let _unused = file;
        None
    }

    /// A check of the archive.
    fn check() -> Box<dyn ContentCheck>;

    /// Counts what a target holds. Blocking.
    fn count(cx: &OpContext, live: &Live, target: &RestoreTarget) -> Result<Evidence, AdapterError>;
}

/// The adapter.
#[derive(Debug)]
pub(crate) struct Tree<K>(pub(crate) K);

#[async_trait]
impl<K: Kind> ServiceAdapter for Tree<K> {
    fn kind(&self) -> &'static str {
        K::NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::full().with_secrets(self.0.secrets())
    }

    fn comes_first(&self) -> bool {
        K::FIRST
    }

    async fn live_paths(&self, cx: &OpContext) -> Vec<PathBuf> {
        self.0
            .roots(cx)
            .await
            .map(|(roots, _)| roots.into_iter().map(|r| r.path).collect())
            .unwrap_or_default()
    }

    async fn check(&self, cx: &OpContext) -> Result<(), AdapterError> {
        self.0.roots(cx).await.map(|_| ())
    }

    async fn open(&self, cx: &OpContext) -> Result<BackupSource, AdapterError> {
        self.0.open(cx).await
    }

    fn content_check(&self, _: &CheckPurpose, artifact: &ArtifactMeta) -> Option<Box<dyn ContentCheck>> {
        // Any bytes may be a file.
        (!bare::is_bare(artifact)).then(K::check)
    }

    fn legacy(&self, file: &str) -> Option<LegacyArtifact> {
        self.0.legacy(file)
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
        let (cx, live, backup, target) = (cx.clone(), self.0.live().clone(), backup.clone(), target.clone());
        blocking(move || restore::plan(&cx, &live, &backup, &target)).await
    }

    async fn stage(
        &self,
        cx: &OpContext,
        plan: &RestorePlan,
        source: &RestoreSource,
    ) -> Result<StepToken, AdapterError> {
        restore::stage(cx, self.0.live(), plan, source).await
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
        let (cx, live, target) = (cx.clone(), self.0.live().clone(), target.clone());
        blocking(move || K::count(&cx, &live, &target)).await
    }

    async fn data(&self, cx: &OpContext) -> Result<Evidence, AdapterError> {
        let (context, live) = (cx.clone(), self.0.live().clone());
        let many = blocking(move || live.at_least(&context, Instant::now() + LOOK)).await?;
        if let Some(files) = many {
            return Ok(Evidence::default().with_count("files_at_least", files));
        }
        let mut found = self.probe(cx, &RestoreTarget::Live).await?;
        found.counts.remove(K::FRAME);
        Ok(found)
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
        let roots: Vec<PathBuf> = match self.0.roots(cx).await {
            Ok((roots, _)) => roots.into_iter().map(|r| r.path).collect(),
            Err(_) => self.0.live().paths.iter().map(|p| self.0.live().base.join(p)).collect(),
        };
        let dead = dead.to_vec();
        blocking(move || restore::reclaim(&roots, &dead)).await
    }
}
