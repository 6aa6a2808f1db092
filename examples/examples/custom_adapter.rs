//! An adapter of one's own: what a command prints, e.g. `crontab -l`, trusted only if the command succeeded.
use backup_core::*;
use futures::{TryStreamExt, stream};
use std::{fs, path::PathBuf, sync::Arc};

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CommandOutput {
    pub(crate) command: String,
}

impl AdapterConfig for CommandOutput {
    const KIND: &'static str = "command";
    const SUMMARY: &'static str = "what a command prints";
    const PROVEN: &'static str = "by the conformance suite";
    fn build(self, _: &BuildContext) -> Result<Arc<dyn ServiceAdapter>, ConfigError> {
        Ok(Arc::new(self))
    }
}

type Res<T> = Result<T, AdapterError>;
#[async_trait::async_trait]
impl ServiceAdapter for CommandOutput {
    fn kind(&self) -> &'static str {
        Self::KIND
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::restore_elsewhere()
    }
    async fn check(&self, _: &OpContext) -> Res<()> {
        Ok(()) // Running the command might have effects.
    }
    async fn open(&self, cx: &OpContext) -> Res<BackupSource> {
        let (from, mut shell) = (cx.clock.now(), tokio::process::Command::new("sh"));
        let run = shell.args(["-c", &self.command]).kill_on_drop(true).output();
        let output = cx.within(run).await?.map_err(|e| AdapterError::io("cannot start `sh`", e))?;
        if !output.status.success() {
            return Err(AdapterError::corrupt(format!("`sh` ended with {}", output.status)));
        }
        let (name, body) = (ArtifactName::sanitized("output"), stream::iter([Ok(output.stdout.into())]));
        let report = CaptureReport::new("output", Consistency::Dump, from, cx.clock.now());
        Ok(BackupSource::single(Artifact::stream(name, "txt", body), async |_| Ok(report)))
    }
    fn content_check(&self, _: &CheckPurpose, _: &ArtifactMeta) -> Option<Box<dyn ContentCheck>> {
        None
    }
    fn by_hand(&self, backup: &HandContext<'_>) -> Vec<HandStep> {
        backup.metadata.artifacts.iter().map(|a| HandStep::new("Print it.", backup.decode(a))).collect()
    }
    async fn reclaim(&self, _: &OpContext, _: &[RunId]) -> Res<Vec<String>> {
        Ok(Vec::new())
    }
    async fn plan_restore(&self, _: &OpContext, of: &Metadata, target: &RestoreTarget) -> Res<RestorePlan> {
        let (RestoreTarget::Dir(dir) | RestoreTarget::Scratch(ScratchHandle { dir, .. })) = target else {
            return Err(AdapterError::unsupported("only a person can restore this in place"));
        };
        let at = dir.ancestors().find(|d| d.is_dir()).unwrap_or(dir);
        let space = vec![SpaceNeed { path: at.to_owned(), bytes: of.plain_bytes() }];
        let (steps, token) = (vec!["write `output`".to_owned()], StepToken::new(&dir.join("output"))?);
        Ok(RestorePlan { target: target.clone(), steps, replaces: vec![], space, token })
    }
    async fn stage(&self, cx: &OpContext, plan: &RestorePlan, source: &RestoreSource) -> Res<StepToken> {
        let (path, name) = (plan.token.get::<PathBuf>()?, ArtifactName::sanitized("output"));
        let chunks: Vec<_> = source.open(&name).await?.try_collect().await?;
        let staged = keep_aside::staging_path(&path, &cx.run_id);
        let made = path.parent().map_or(Ok(()), fs::create_dir_all);
        let write = made.and_then(|()| fs::write(&staged, chunks.concat()));
        let swap = write.and_then(|()| keep_aside::prepare(&staged, &path, cx.timestamp));
        StepToken::new(&swap.map_err(|e| AdapterError::io("cannot write `output`", e))?)
    }
    async fn switch(&self, _: &OpContext, _: &RestorePlan, staged: &StepToken) -> Res<StepToken> {
        let failed = |e| AdapterError::io("cannot place `output`", e);
        keep_aside::switch(&staged.get()?).map(|()| staged.clone()).map_err(failed)
    }
}

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn std::error::Error>> {
    backup_examples::round_trip::<CommandOutput>("command = 'echo precious'", "output", "precious\n").await
}
