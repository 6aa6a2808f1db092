//! Adapters as users configure them, and contexts for their operations.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backup_adapters::weaviate::WeaviateConfig;
use backup_core::testkit::adapter_suite::{AdapterFixture, Bench, Captured, Damage};
use backup_core::{
    AdapterConfig, AdapterError, BuildContext, ConfigError, OpContext, RestorePlan, RestoreTarget, RunId,
    Secret, SecretRef, SecretResolver, ServiceAdapter, ServiceName, StepToken,
};
use tokio::time::{Instant, sleep};

use super::CANARY;

pub(crate) fn adapter(keys: &str) -> Arc<dyn ServiceAdapter> {
    let config: WeaviateConfig = toml::from_str(keys).unwrap();
    config.build(&BuildContext::new(ServiceName::new("vectors").unwrap(), "/")).unwrap()
}

/// `CANARY` is the administrator's key; any other name is itself the key.
#[derive(Debug)]
pub(crate) struct Keys;

impl SecretResolver for Keys {
    fn resolve(&self, reference: &SecretRef) -> Result<Secret, ConfigError> {
        match reference {
            SecretRef::Env(name) if name != "CANARY" => Ok(Secret::new(name.as_str())),
            _ => Ok(Secret::new(CANARY)),
        }
    }
}

/// Only contexts are wanted of it.
struct Unused;

#[async_trait]
impl AdapterFixture for Unused {
    fn adapter(&self) -> Arc<dyn ServiceAdapter> {
        unreachable!()
    }
    async fn mutate(&self) {}
    async fn live(&self) -> String {
        String::new()
    }
    fn context(&self, cx: OpContext) -> OpContext {
        with_keys(cx)
    }
}

pub(crate) fn with_keys(mut cx: OpContext) -> OpContext {
    cx.secrets = Arc::new(Keys);
    cx.run_id = RunId::generate(cx.clock.now());
    cx.at_work = cx.run_id.clone();
    cx
}

pub(crate) fn bench() -> Bench {
    Bench::new(Unused)
}

/// The context of another operation, a moment later, with the same private folders.
pub(crate) fn later(cx: &OpContext) -> OpContext {
    let mut later = with_keys(cx.clone());
    later.timestamp = cx.timestamp.next();
    later
}

pub(crate) async fn staged(
    adapter: &dyn ServiceAdapter,
    cx: &OpContext,
    backup: &Captured,
) -> Result<(RestorePlan, StepToken), AdapterError> {
    let plan = adapter.plan_restore(cx, &backup.metadata, &RestoreTarget::Live).await?;
    let staged = adapter.stage(cx, &plan, &backup.source(Damage::None)).await?;
    Ok((plan, staged))
}

/// Waits until `seen` says yes.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut seen: impl FnMut() -> F) {
    let end = Instant::now() + Duration::from_secs(60);
    while !seen().await {
        assert!(Instant::now() < end, "{what} does not come");
        sleep(Duration::from_millis(20)).await;
    }
}
