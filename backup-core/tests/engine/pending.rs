//! Backups that keep their data elsewhere, from a service that takes its time.

use std::collections::BTreeMap;

use async_trait::async_trait;
use backup_core::{
    AdapterError, Artifact, ArtifactMeta, ArtifactName, BackupSource, Capabilities, CaptureReport,
    CheckPurpose, Consistency, ContentCheck, ExternalRef, ExternalState, HandContext, HandStep, Metadata,
    OpContext, RunId,
};

use super::*;

/// What the service says, and what was asked of it.
#[derive(Debug, Clone, Default)]
struct Elsewhere(Arc<Mutex<Said>>);

#[derive(Debug, Default)]
struct Said {
    state: Option<ExternalState>,
    doubtful: bool,
    purged: Vec<String>,
    reclaimed: Vec<RunId>,
}

#[async_trait]
impl ServiceAdapter for Elsewhere {
    fn kind(&self) -> &'static str {
        "elsewhere"
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::backup_only()
    }
    async fn check(&self, _: &OpContext) -> Result<(), AdapterError> {
        Ok(())
    }
    async fn open(&self, cx: &OpContext) -> Result<BackupSource, AdapterError> {
        assert_eq!(cx.interval.as_ref().unwrap().as_str(), "hourly");
        assert!(!cx.store_id.is_empty());
        let id = format!("snap-{}", cx.timestamp);
        let reference = ExternalRef { kind: "snapshot".into(), id, location: BTreeMap::new() };
        let artifact = Artifact::external(ArtifactName::sanitized("vol"), reference);
        let mut report =
            CaptureReport::new("snapshot", Consistency::CrashConsistent, cx.clock.now(), cx.clock.now());
        report.pending = true;
        let rows = if self.0.lock().unwrap().doubtful { 1 } else { 1000 };
        report.evidence = report.evidence.with_count("rows", rows);
        Ok(BackupSource::single(artifact, move |_| async move { Ok(report) }))
    }
    fn content_check(&self, _: &CheckPurpose, _: &ArtifactMeta) -> Option<Box<dyn ContentCheck>> {
        None
    }
    fn by_hand(&self, _: &HandContext<'_>) -> Vec<HandStep> {
        Vec::new()
    }
    async fn reclaim(&self, _: &OpContext, _: &[RunId]) -> Result<Vec<String>, AdapterError> {
        Ok(Vec::new())
    }
    async fn external_state(&self, _: &OpContext, _: &Metadata) -> Result<ExternalState, AdapterError> {
        let state = self.0.lock().unwrap().state.clone();
        state.ok_or_else(|| {
            AdapterError::new(backup_core::AdapterErrorKind::Unavailable, "it does not answer")
        })
    }
    async fn reclaim_external(&self, _: &OpContext, dead: &[RunId]) -> Result<Vec<String>, AdapterError> {
        self.0.lock().unwrap().reclaimed.extend(dead.iter().cloned());
        Ok(Vec::new())
    }
    async fn purge_external(&self, _: &OpContext, refs: &[ExternalRef]) -> Result<(), AdapterError> {
        self.0.lock().unwrap().purged.extend(refs.iter().map(|r| r.id.clone()));
        Ok(())
    }
}

/// Hands out the adapter of this test.
#[derive(Debug, serde::Deserialize)]
struct ElsewhereConfig {}

tokio::task_local! {
    static ELSEWHERE: Elsewhere;
}

impl AdapterConfig for ElsewhereConfig {
    const KIND: &'static str = "elsewhere";
    const SUMMARY: &'static str = "";
    const PROVEN: &'static str = "";
    fn build(self, _: &BuildContext) -> Result<Arc<dyn ServiceAdapter>, ConfigError> {
        Ok(ELSEWHERE.with(|a| Arc::new(a.clone())))
    }
}

async fn world(adapter: &Elsewhere) -> World {
    let world = World::new(FakeAdapter::new()).await;
    let registry = AdapterRegistry::new().with::<ElsewhereConfig>();
    let text = CONFIG.replace("'fake'", "'elsewhere'");
    let plan = ELSEWHERE
        .sync_scope(adapter.clone(), || {
            Config::parse(&text, "t.toml")?.resolve(&registry, std::path::Path::new("/"))
        })
        .unwrap();
    assert!(!plan.service("a").unwrap().recovers, "what restores nothing is no part of a recovery");
    let (catalog, state) = (world.engine.catalog().clone(), world.engine.state().clone());
    let engine = Engine::builder(plan, catalog, state)
        .clock(Arc::new(world.clock.clone()))
        .events(Arc::new(world.events.clone()))
        .lock_patience(Duration::ZERO)
        .build();
    World { engine, ..world }
}

fn says(adapter: &Elsewhere, state: Option<ExternalState>) {
    adapter.0.lock().unwrap().state = state;
}

fn on_its_way() -> Option<ExternalState> {
    Some(ExternalState::Pending("64%".into()))
}

#[tokio::test]
async fn pending_ones_count_for_nothing_until_they_are_complete() {
    let adapter = Elsewhere::default();
    let world = world(&adapter).await;
    says(&adapter, on_its_way());
    for _ in 0..4 {
        assert_eq!(outcome(&world.back_up().await).0, Outcome::Ok);
    }
    assert_eq!(world.states().await, ["pending"; 4], "two are kept, and none of them is good");
    let status = world.engine.status(&[]).await.unwrap();
    assert!(status[0].problems[0].contains("is pending"), "{:?}", status[0].problems);
    // A verification that is asked for them says so, and damages nothing; nor does a service that does not answer.
    for state in [on_its_way(), None] {
        says(&adapter, state);
        let (found, _) = outcome(&world.verify(VerifyLevel::Stored).await);
        assert!(matches!(found, Outcome::Failed | Outcome::Ok | Outcome::Skipped), "{found:?}");
        assert_eq!(world.states().await, ["pending"; 4]);
    }
    says(&adapter, Some(ExternalState::Complete));
    world.back_up().await;
    assert_eq!(world.states().await, ["pending", "good", "good"], "the older good ones went");
    assert_eq!(adapter.0.lock().unwrap().purged.len(), 2, "with what they kept elsewhere");
    let id = world.entries().await[0].id.clone();
    let e = world.engine.mark(&id, backup_core::catalog::FactKind::Complete, None).await.unwrap_err();
    assert!(e.to_string().contains("only the engine"), "{e}");
}

#[tokio::test]
async fn what_is_lost_is_damaged_before_and_after_it_was_good() {
    let adapter = Elsewhere::default();
    let world = world(&adapter).await;
    says(&adapter, on_its_way());
    world.back_up().await;
    says(&adapter, Some(ExternalState::Lost("snap-1 is gone".into())));
    let settled = world.engine.settle_pending(&[]).await.unwrap();
    assert_eq!(settled[0].state, ExternalState::Lost("snap-1 is gone".into()));
    assert_eq!(world.states().await, ["damaged"]);
    // Back from the recycle bin: complete, as the verification notes.
    says(&adapter, Some(ExternalState::Complete));
    assert_eq!(outcome(&world.verify(VerifyLevel::Stored).await), (Outcome::Ok, String::new()));
    assert_eq!(world.states().await, ["good"]);
    says(&adapter, Some(ExternalState::Lost("snap-1 is gone".into())));
    let (found, error) = outcome(&world.verify(VerifyLevel::Stored).await);
    assert!(found == Outcome::Damaged && error.contains("snap-1 is gone"), "{found:?} {error}");
    assert_eq!(world.states().await, ["damaged"]);
}

#[tokio::test]
async fn a_doubtful_one_is_suspect_when_it_is_complete() {
    let adapter = Elsewhere::default();
    let world = world(&adapter).await;
    says(&adapter, Some(ExternalState::Complete));
    world.back_up().await;
    world.engine.settle_pending(&[]).await.unwrap();
    adapter.0.lock().unwrap().doubtful = true;
    says(&adapter, on_its_way());
    let (found, error) = outcome(&world.back_up().await);
    assert!(found == Outcome::Suspect && error.contains("rows"), "{found:?} {error}");
    assert_eq!(world.states().await, ["pending", "good"]);
    says(&adapter, Some(ExternalState::Complete));
    world.engine.settle_pending(&[]).await.unwrap();
    assert_eq!(world.states().await, ["suspect", "good"]);
}

#[tokio::test]
async fn only_runs_that_certainly_committed_nothing_are_reclaimed_elsewhere() {
    let adapter = Elsewhere::default();
    let world = world(&adapter).await;
    says(&adapter, on_its_way());
    let made = world.back_up().await;
    // A run that died after its commit, and one that died before.
    let killed = RunId::generate(world.clock.now());
    for id in [&made.run_id, &killed] {
        let guard = world.engine.state().begin_run(id).unwrap();
        guard.spool(&a()).unwrap();
        guard.keep();
    }
    world.back_up().await;
    assert_eq!(adapter.0.lock().unwrap().reclaimed, [killed]);
}
