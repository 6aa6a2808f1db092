//! Adapters that do nothing, to configure.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::{
    AdapterConfig, AdapterError, AdapterRegistry, ArtifactMeta, BackupSource, BuildContext, Capabilities,
    CheckPurpose, ConfigError, ContentCheck, DiscoverContext, Discovered, Discovery, HandContext, HandStep,
    OpContext, RunId, SecretRef, ServiceAdapter, ServiceName,
};
use serde::Deserialize;

#[derive(Debug)]
pub(crate) struct Stub(pub(crate) &'static str);

#[async_trait]
impl ServiceAdapter for Stub {
    fn kind(&self) -> &'static str {
        self.0
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::backup_only()
    }
    async fn check(&self, _: &OpContext) -> Result<(), AdapterError> {
        Ok(())
    }
    async fn open(&self, _: &OpContext) -> Result<BackupSource, AdapterError> {
        Err(AdapterError::unsupported("a stub"))
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
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FilesConfig {
    pub(crate) paths: Vec<PathBuf>,
    #[serde(default)]
    #[expect(dead_code, reason = "only its shape matters")]
    pub(crate) exclude: Vec<String>,
    #[serde(default)]
    #[expect(dead_code, reason = "only its shape matters")]
    pub(crate) on_change: OnChange,
    #[expect(dead_code, reason = "only its shape matters")]
    pub(crate) password: Option<SecretRef>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnChange {
    #[default]
    Fail,
    Record,
}

impl AdapterConfig for FilesConfig {
    const KIND: &'static str = "files";
    const SUMMARY: &'static str = "directories";
    const PROVEN: &'static str = "not at all";

    fn build(self, cx: &BuildContext) -> Result<Arc<dyn ServiceAdapter>, ConfigError> {
        assert!(cx.base_dir.is_absolute());
        match self.paths.is_empty() {
            true => Err(ConfigError::new("there is nothing to back up").at("paths")),
            false => Ok(Arc::new(Stub("files"))),
        }
    }

    fn discover(cx: &DiscoverContext) -> Result<Discovery, AdapterError> {
        let all = [cx.dir.join("a"), cx.dir.join(".env")];
        let rest = all.into_iter().filter(|p| !cx.covered.contains(p)).collect();
        Ok(Discovery { found: vec![discovered("data", rest)], left_out: Vec::new() })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EnvConfig {
    #[expect(dead_code, reason = "only its shape matters")]
    pub(crate) paths: Vec<PathBuf>,
}

impl AdapterConfig for EnvConfig {
    const KIND: &'static str = "env";
    const SUMMARY: &'static str = "dotenv files";
    const PROVEN: &'static str = "not at all";

    fn build(self, _: &BuildContext) -> Result<Arc<dyn ServiceAdapter>, ConfigError> {
        Ok(Arc::new(Stub("env")))
    }

    fn discover(cx: &DiscoverContext) -> Result<Discovery, AdapterError> {
        Ok(Discovery { found: vec![discovered("data", vec![cx.dir.join(".env")])], left_out: Vec::new() })
    }
}

fn discovered(name: &str, covers: Vec<PathBuf>) -> Discovered {
    let service = ServiceName::new(name).expect("a valid name");
    Discovered { service, summary: String::new(), settings: toml::Table::new(), covers }
}

pub(crate) fn registry() -> AdapterRegistry {
    AdapterRegistry::new().with::<EnvConfig>().with::<FilesConfig>().with_disabled("redis", "redis")
}
