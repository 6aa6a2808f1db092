//! `weaviate`: a Weaviate server, by its own backup API.
//!
//! ```toml
//! [services.weaviate]
//! kind = "weaviate"
//! container = "truthsi-weaviate"               # or url = "http://localhost:8080"
//! api_key = { env = "WEAVIATE_API_KEY" }
//! capture = "auto"                             # backup, export
//! inactive_tenants = "auto"                    # activate, leave-out
//! smoke = ["{ Aggregate { Doc { meta { count } } } }"]   # GraphQL; what restored data must answer
//! ```
//!
//! The server writes a backup into its own backup folder (module `backup-filesystem`); its files are collected from
//! there into one archive and removed. What the server leaves out without a word is looked for: collections, and tenants
//! that are not loaded.
//!
//! With the module `backup-s3` it writes into a bucket, from where they are collected and removed likewise. A server with
//! neither is exported instead: see `export`.
//!
//! A restore runs a server of the same image beside the live one, which restores the backup into a folder in the live
//! one's volume, and counts it. Only then the live server is stopped for as long as it takes to exchange the two.

mod apart;
mod api;
mod ask;
mod capture;
mod census;
mod check;
mod discover;
mod exchange;
mod export;
mod files;
mod hand;
mod job;
mod live;
mod model;
mod place;
mod reclaim;
mod restore;
mod s3;
mod server;
mod tenants;
mod twin;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::runtime::{InterruptionEntry, Replay};
use backup_core::{
    AdapterConfig, AdapterError, Answer, ArtifactMeta, BackupSource, BuildContext, Capabilities,
    CheckPurpose, ConfigError, ContentCheck, DiscoverContext, Discovery, Evidence, HandContext, HandStep,
    Leftover, Metadata, OpContext, RestorePlan, RestoreSource, RestoreTarget, RunId, ServiceAdapter,
    StepToken,
};
use serde::Deserialize;
use url::Url;

pub use self::s3::S3Config;
use self::server::Server;
use crate::runtime::{DockerRuntime, ServiceSecret};

/// The port of Weaviate unless said otherwise.
const PORT: u16 = 8080;

/// The configuration: which server, and how to log in.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeaviateConfig {
    /// The container that it runs in: name, id or `label=key=value`. Restores over the live server need it.
    pub container: Option<String>,
    /// Where its API answers, if not at `port` of the container: `http://host:8080`.
    pub url: Option<Url>,
    /// Its port in the container. 8080 unless set.
    pub port: Option<u16>,
    /// The API key of a user that may see and back up everything.
    pub api_key: Option<ServiceSecret>,
    /// How the data is captured.
    #[serde(default)]
    pub capture: CaptureMode,
    /// What is done about tenants that are not loaded, which the server leaves out of its backups.
    #[serde(default)]
    pub inactive_tenants: Inactive,
    /// Where the server puts its own backups.
    #[serde(default)]
    pub backend: Backend,
    /// How this host reaches the bucket of the module `backup-s3`.
    pub s3: Option<S3Config>,
}

/// How the data is captured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum CaptureMode {
    /// By the server's own backup if it has the module `backup-filesystem` or `backup-s3`, else by an export, with a warning.
    #[default]
    Auto,
    /// By the server's own backup, or not at all.
    Backup,
    /// All objects with their vectors, collection by collection, while applications write. Without users and roles.
    Export,
}

/// Where the server puts its own backups, until their files are collected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Backend {
    /// Into its folder if it has the module `backup-filesystem`, else into its bucket if it has `backup-s3`.
    #[default]
    Auto,
    /// Into its folder.
    Filesystem,
    /// Into its bucket.
    S3,
}

/// What is done about tenants that are not loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Inactive {
    /// Up to a hundred are activated for the duration of the backup; more are an error.
    #[default]
    Auto,
    /// All are activated for the duration of the backup. Each takes memory of the server.
    Activate,
    /// They are not in the backup, which says so.
    LeaveOut,
}

impl AdapterConfig for WeaviateConfig {
    const KIND: &'static str = "weaviate";
    const SUMMARY: &'static str = "a Weaviate server, by its own backup API";
    const PROVEN: &'static str = "tested with Weaviate 1.35 in containers; one node";

    fn build(self, cx: &BuildContext) -> Result<Arc<dyn ServiceAdapter>, ConfigError> {
        if self.container.as_ref().is_some_and(String::is_empty) {
            return Err(ConfigError::new("`container` is empty").at("container"));
        }
        if self.container.is_none() && self.url.is_none() {
            return Err(ConfigError::new("no server is named").hint("set `container`, or `url`"));
        }
        if let Some(url) = &self.url
            && (!matches!(url.scheme(), "http" | "https") || url.host_str().is_none())
        {
            return Err(ConfigError::new("`url` is not of a web server")
                .at("url")
                .hint("write `http://host:8080` or `https://host`"));
        }
        if let Some(url) = &self.url
            && (!url.username().is_empty() || url.password().is_some() || url.query().is_some())
        {
            return Err(ConfigError::new("`url` holds more than an address").at("url").hint("use `api_key`"));
        }
        if self.port.is_some() && self.url.is_some() {
            return Err(ConfigError::new("`port` is for a server in a container without `url`").at("port"));
        }
        if self.api_key.as_ref().is_some_and(ServiceSecret::in_container) && self.container.is_none() {
            return Err(ConfigError::new("a key in a container needs `container`").at("api_key"));
        }
        if self.capture == CaptureMode::Export && self.backend != Backend::Auto {
            return Err(ConfigError::new("an export needs no `backend`").at("backend"));
        }
        if self.s3.is_some() && (self.capture == CaptureMode::Export || self.backend == Backend::Filesystem) {
            return Err(ConfigError::new("no bucket is used, as `capture` or `backend` says").at("s3"));
        }
        let server = Server {
            s3: self.s3.unwrap_or_default().check(&cx.base_dir, self.container.is_some())?,
            backend: self.backend,
            container: self.container.map(DockerRuntime::new),
            url: self.url,
            port: self.port.unwrap_or(PORT),
            api_key: self.api_key.map(|key| key.relative_to(&cx.base_dir)),
        };
        Ok(Arc::new(Weaviate { server, mode: self.capture, inactive: self.inactive_tenants }))
    }

    fn discover(cx: &DiscoverContext) -> Result<Discovery, AdapterError> {
        Ok(discover::discover(cx))
    }
}

/// Protects one server.
#[derive(Debug, Clone)]
pub struct Weaviate {
    server: Server,
    mode: CaptureMode,
    inactive: Inactive,
}

#[async_trait]
impl ServiceAdapter for Weaviate {
    fn kind(&self) -> &'static str {
        WeaviateConfig::KIND
    }

    fn capabilities(&self) -> Capabilities {
        if self.server.container.is_some() {
            return Capabilities::full().with_ask();
        }
        // Nothing here could start or stop a server.
        let mut can = Capabilities::backup_only();
        can.restore_dir = true;
        can
    }

    async fn check(&self, cx: &OpContext) -> Result<(), AdapterError> {
        let api = self.server.connect(cx).await?;
        let facts = server::facts(&api, cx).await?;
        let backups = facts.backups(&self.server, self.mode)?;
        if let Some(backups) = &backups {
            self.server.files(cx, backups, &reclaim::backup_id(cx)).await?;
        }
        server::check_rights(&api, cx, backups.is_some()).await
    }

    async fn open(&self, cx: &OpContext) -> Result<BackupSource, AdapterError> {
        capture::open(&self.server, self.mode, self.inactive, cx).await
    }

    fn container(&self) -> Option<String> {
        self.server.container.as_ref().map(|docker| docker.container().to_owned())
    }

    async fn live_paths(&self, _cx: &OpContext) -> Vec<PathBuf> {
        match &self.server.container {
            Some(docker) => docker.live_paths().await,
            None => Vec::new(),
        }
    }

    fn content_check(
        &self,
        purpose: &CheckPurpose,
        artifact: &ArtifactMeta,
    ) -> Option<Box<dyn ContentCheck>> {
        Some(match restore::is_export(artifact) {
            true => Box::new(export::ExportCheck::new(purpose)),
            false => Box::new(check::BackupCheck::new(purpose)),
        })
    }

    fn by_hand(&self, backup: &HandContext<'_>) -> Vec<HandStep> {
        hand::steps(&self.server, backup)
    }

    async fn plan_restore(
        &self,
        cx: &OpContext,
        backup: &Metadata,
        target: &RestoreTarget,
    ) -> Result<RestorePlan, AdapterError> {
        let can = self.capabilities();
        if (*target == RestoreTarget::Live && !can.restore_live)
            || (matches!(target, RestoreTarget::Scratch(_)) && !can.restore_scratch)
        {
            return Err(AdapterError::unsupported(format!(
                "nothing here can start or stop {}: name its `container`, or restore into a directory",
                self.server
            )));
        }
        restore::plan(&self.server, cx, backup, target).await
    }

    async fn stage(
        &self,
        cx: &OpContext,
        plan: &RestorePlan,
        source: &RestoreSource,
    ) -> Result<StepToken, AdapterError> {
        restore::stage(&self.server, cx, plan, source).await
    }

    async fn switch(
        &self,
        cx: &OpContext,
        _plan: &RestorePlan,
        staged: &StepToken,
    ) -> Result<StepToken, AdapterError> {
        restore::switch(&self.server, cx, staged).await
    }

    async fn probe(&self, cx: &OpContext, target: &RestoreTarget) -> Result<Evidence, AdapterError> {
        if !self.capabilities().probe {
            return Err(AdapterError::unsupported("counting needs `container`"));
        }
        restore::probe(&self.server, cx, target, &[]).await.map(|(found, _)| found)
    }

    /// Collections are made by applications that have no data yet. What tenants hold that are not active cannot be counted.
    async fn data(&self, cx: &OpContext) -> Result<Evidence, AdapterError> {
        let api = self.server.connect(cx).await?;
        let schema = census::Schema::read(&api, cx).await?;
        let mut found = schema.count(&api, cx).await?;
        found.counts.retain(|name, _| name.starts_with("objects."));
        Ok(found.with_count("inactive_tenants", schema.uncounted_tenants()))
    }

    async fn ask(
        &self,
        cx: &OpContext,
        target: &RestoreTarget,
        question: &str,
    ) -> Result<Option<String>, AdapterError> {
        if !self.capabilities().ask {
            return Err(AdapterError::unsupported("questions after restores need `container`"));
        }
        ask::ask(&self.server, cx, target, question).await
    }

    async fn probe_and_ask(
        &self,
        cx: &OpContext,
        target: &RestoreTarget,
        questions: &[String],
    ) -> Result<(Evidence, Vec<Answer>), AdapterError> {
        if !self.capabilities().probe {
            return Err(AdapterError::unsupported("counting needs `container`"));
        }
        restore::probe(&self.server, cx, target, questions).await
    }

    async fn prove_writable(&self, cx: &OpContext) -> Result<bool, AdapterError> {
        server::take_a_write(&self.server, cx).await?;
        Ok(true)
    }

    async fn undo(&self, cx: &OpContext, switched: &StepToken) -> Result<StepToken, AdapterError> {
        if !self.capabilities().undo {
            return Err(AdapterError::unsupported("nothing was restored that could be undone"));
        }
        restore::undo(&self.server, cx, switched).await
    }

    async fn leftovers(&self, _cx: &OpContext, token: &StepToken) -> Result<Vec<Leftover>, AdapterError> {
        restore::leftovers(token).await
    }

    async fn discard(&self, cx: &OpContext, token: &StepToken) -> Result<(), AdapterError> {
        restore::discard(&self.server, cx, token).await
    }

    async fn bring_back(&self, cx: &OpContext, entry: &InterruptionEntry) -> Result<Replay, AdapterError> {
        restore::bring_back(&self.server, cx, entry).await
    }

    async fn reclaim(&self, cx: &OpContext, dead: &[RunId]) -> Result<Vec<String>, AdapterError> {
        reclaim::reclaim(&self.server, self.mode, cx, dead).await
    }
}
