//! `neo4j`: a Neo4j server in a container, captured while it stands still for as short as possible, or goes on.
//!
//! ```toml
//! [services.neo4j]
//! kind = "neo4j"
//! container = "truthsi-neo4j"
//! password = { env = "NEO4J_PASSWORD" }
//! capture = "auto"                # clone, stop-dump, stop-copy, pause-copy, online
//! max_interruption = "5s"         # binds `auto`
//! smoke = ["MATCH (n:Page) RETURN count(n)"]   # what restored data must answer; `movies: MATCH …` asks that database
//! ```
//!
//! Neo4j Community has no online backup, and copies of a running store are unsound as they are. So the server is paused while its
//! files are cloned (`clone`: a fraction of a second, whatever their size, on XFS and btrfs), or stopped while
//! `neo4j-admin` dumps every database, `system` among them (`stop-dump`), or while its files are copied. `online` copies
//! them while it works on them, and stores what a second server recovered from that and Neo4j's own check passed.
//!
//! A restore builds the data beside what is there, starts a second server over it, which recovers it and counts, and
//! then stops the server for as long as it takes to exchange names. Nothing is deleted.

mod ask;
mod bolt;
mod capture;
mod check;
mod discover;
mod hand;
mod mode;
mod packstream;
mod places;
mod proof;
mod replica;
mod restore;
mod server;
mod tools;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backup_core::runtime::{InterruptionEntry, Replay};
use backup_core::{
    AdapterConfig, AdapterError, Answer, ArtifactMeta, BackupSource, BuildContext, Capabilities,
    CheckPurpose, ConfigError, ContentCheck, DiscoverContext, Discovery, Evidence, HandContext, HandStep,
    Leftover, LegacyArtifact, Metadata, OpContext, RestorePlan, RestoreSource, RestoreTarget, RunId, Secret,
    ServiceAdapter, StepToken,
};
use serde::Deserialize;

pub use self::mode::CaptureMode;
use self::server::Server;
use crate::legacy::LEGACY;
use crate::runtime::{EngineUrl, ServiceSecret};

/// The configuration: which server, how to log in, and what it may be put through.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Neo4jConfig {
    /// The container that it runs in: name, id or `label=key=value`.
    pub container: String,
    /// The Docker engine that the container is on, if it listens on another socket: `unix:///path`.
    pub docker: Option<EngineUrl>,
    /// The port of Bolt in there. 7687 unless set.
    pub port: Option<u16>,
    /// The user; `neo4j` unless set. Needs to be an administrator.
    pub user: Option<String>,
    /// The password; none for a server that asks for none.
    pub password: Option<ServiceSecret>,
    /// How the data is captured.
    #[serde(default)]
    pub capture: CaptureMode,
    /// How long `auto` may interrupt the server. 5 s unless set.
    pub max_interruption: Option<Span>,
    /// How long the server may take to end by itself, before it is killed. 180 s unless set.
    pub stop_timeout: Option<Span>,
    /// Whether a restore over the server gives `user` the configured password, instead of that of the backup's time.
    #[serde(default)]
    pub reset_password: bool,
}

/// A time such as `5s`, `500ms` or `3m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        span(&text).map(Self).ok_or_else(|| {
            serde::de::Error::custom(format!("`{text}` is no time: write e.g. `5s`, `500ms` or `3m`"))
        })
    }
}

fn span(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(unit)?;
    let number: u64 = number.parse().ok()?;
    let ms = match unit.trim() {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(ms).map(Duration::from_millis)
}

impl AdapterConfig for Neo4jConfig {
    const KIND: &'static str = "neo4j";
    const SUMMARY: &'static str =
        "a Neo4j server in a container: cloned while paused, or dumped while stopped";
    const PROVEN: &'static str =
        "tested with Neo4j 5.26 and 4.4 Community in containers; Enterprise is not proven";

    fn build(self, cx: &BuildContext) -> Result<Arc<dyn ServiceAdapter>, ConfigError> {
        if self.container.is_empty() {
            return Err(ConfigError::new("`container` is empty").at("container"));
        }
        if self.user.is_some() && self.password.is_none() {
            return Err(ConfigError::new("`user` without `password`").at("user").hint("set `password` too"));
        }
        if self.reset_password && self.password.is_none() {
            let e = ConfigError::new("`reset_password` without `password`").at("reset_password");
            return Err(e.hint("set `password`: it is what the user gets"));
        }
        let server = Server {
            docker: EngineUrl::container(self.docker.as_ref(), &self.container),
            port: self.port.unwrap_or(7687),
            user: self.user.unwrap_or_else(|| "neo4j".to_owned()),
            password: self.password.map(|p| p.relative_to(&cx.base_dir)),
        };
        let or = |span: Option<Span>, seconds| span.map_or(Duration::from_secs(seconds), |s| s.0);
        Ok(Arc::new(Neo4j {
            server,
            capture: self.capture,
            max_interruption: or(self.max_interruption, 5),
            stop_timeout: or(self.stop_timeout, 180),
            reset_password: self.reset_password,
        }))
    }

    fn discover(cx: &DiscoverContext) -> Result<Discovery, AdapterError> {
        Ok(discover::discover(cx))
    }
}

/// Protects one server.
#[derive(Debug, Clone)]
pub struct Neo4j {
    server: Server,
    capture: CaptureMode,
    max_interruption: Duration,
    stop_timeout: Duration,
    reset_password: bool,
}

impl Neo4j {
    /// What restored data gets for its password, if anything.
    async fn password_to_set(&self, cx: &OpContext) -> Result<Option<Secret>, AdapterError> {
        match &self.server.password {
            Some(secret) if self.reset_password => {
                secret.resolve(cx, Some(&self.server.docker)).await.map(Some)
            }
            _ => Ok(None),
        }
    }
}

#[async_trait]
impl ServiceAdapter for Neo4j {
    fn kind(&self) -> &'static str {
        Neo4jConfig::KIND
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::full().with_ask()
    }

    async fn check(&self, cx: &OpContext) -> Result<(), AdapterError> {
        capture::look(self, cx).await.map(drop)
    }

    async fn open(&self, cx: &OpContext) -> Result<BackupSource, AdapterError> {
        cx.check_alive()?;
        capture::open(self, cx).await
    }

    fn container(&self) -> Option<String> {
        Some(self.server.docker.container().to_owned())
    }

    async fn live_paths(&self, _cx: &OpContext) -> Vec<PathBuf> {
        self.server.docker.live_paths().await
    }

    fn content_check(
        &self,
        _purpose: &CheckPurpose,
        artifact: &ArtifactMeta,
    ) -> Option<Box<dyn ContentCheck>> {
        Some(check::of(artifact))
    }

    fn legacy(&self, file: &str) -> Option<LegacyArtifact> {
        (file == "neo4j_data.tar.gz").then(|| {
            LegacyArtifact::gzip("files").with_attribute(LEGACY, true).with_caution(
                "the files were copied while the server wrote them: Neo4j may not be able to open them, which a second \
                 server over them tells before anything is replaced, and even then what it holds may be of several moments",
            )
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
        restore::plan(self, cx, backup, target).await
    }

    async fn stage(
        &self,
        cx: &OpContext,
        plan: &RestorePlan,
        source: &RestoreSource,
    ) -> Result<StepToken, AdapterError> {
        restore::stage(self, cx, plan, source).await
    }

    async fn switch(
        &self,
        cx: &OpContext,
        _plan: &RestorePlan,
        staged: &StepToken,
    ) -> Result<StepToken, AdapterError> {
        restore::switch(self, cx, staged).await
    }

    async fn probe(&self, cx: &OpContext, target: &RestoreTarget) -> Result<Evidence, AdapterError> {
        restore::probe(self, cx, target, &[]).await.map(|(found, _)| found)
    }

    async fn ask(
        &self,
        cx: &OpContext,
        target: &RestoreTarget,
        question: &str,
    ) -> Result<Option<String>, AdapterError> {
        ask::ask(self, cx, target, question).await
    }

    async fn probe_and_ask(
        &self,
        cx: &OpContext,
        target: &RestoreTarget,
        questions: &[String],
    ) -> Result<(Evidence, Vec<Answer>), AdapterError> {
        restore::probe(self, cx, target, questions).await
    }

    /// A new database has indexes, and a new server users.
    async fn data(&self, cx: &OpContext) -> Result<Evidence, AdapterError> {
        let mut found = self.probe(cx, &RestoreTarget::Live).await?;
        found.counts.retain(|name, _| name.starts_with("nodes.") || name.starts_with("relationships."));
        Ok(found)
    }

    async fn prove_writable(&self, cx: &OpContext) -> Result<bool, AdapterError> {
        self.server.take_a_write(cx).await?;
        Ok(true)
    }

    async fn undo(&self, cx: &OpContext, switched: &StepToken) -> Result<StepToken, AdapterError> {
        restore::undo(self, cx, switched).await
    }

    async fn leftovers(&self, _cx: &OpContext, token: &StepToken) -> Result<Vec<Leftover>, AdapterError> {
        restore::leftovers(token).await
    }

    async fn discard(&self, cx: &OpContext, token: &StepToken) -> Result<(), AdapterError> {
        restore::discard(self, cx, token).await
    }

    async fn bring_back(&self, cx: &OpContext, entry: &InterruptionEntry) -> Result<Replay, AdapterError> {
        restore::bring_back(self, cx, entry).await
    }

    async fn reclaim(&self, cx: &OpContext, dead: &[RunId]) -> Result<Vec<String>, AdapterError> {
        capture::reclaim(self, cx, dead).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (text, ms) in [("5s", 5000), ("500ms", 500), ("3m", 180_000), ("1 h", 3_600_000)] {
            assert_eq!(span(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for wrong in ["", "5", "s", "-5s", "5 days", "99999999999999999999s"] {
            assert_eq!(span(wrong), None, "{wrong}");
        }
    }
}
