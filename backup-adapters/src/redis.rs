//! `redis`: a Redis or Valkey server, through its own snapshot.
//!
//! ```toml
//! [services.redis]
//! kind = "redis"
//! container = "truthsi-redis"                  # or host and port, or socket
//! password = { env = "REDIS_PASSWORD" }
//! capture = "auto"                             # stream, bgsave
//! restore = "wire"                             # file
//! smoke = ["EXISTS config:version", "5: LLEN queue"]   # what restored data must answer: see `ask`
//! ```
//!
//! `stream` asks for a full resynchronisation as a replica would and keeps the snapshot that the server sends. `bgsave`
//! lets the server write its file and reads that one. Either way the bytes are an RDB file, which is walked and whose
//! checksum is checked while it streams (`rdb`): the counts of the backup come from the very bytes that it holds.
//!
//! A restore turns this round (`wire`): the server becomes a replica of a port of ours for as long as it takes to load the
//! file. `restore = "file"` exchanges its files instead (`file`).

mod ask;
mod bgsave;
mod capture;
mod check;
mod compat;
mod conn;
mod discover;
mod elsewhere;
mod facts;
mod file;
mod hand;
mod kept;
mod live;
mod rdb;
mod resp;
mod restore;
mod room;
mod serve;
mod spill;
mod stream;
mod tls;
mod trial;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::runtime::{InterruptionEntry, Replay};
use backup_core::{
    AdapterConfig, AdapterError, Answer, ArtifactMeta, BackupSource, BuildContext, Capabilities,
    CheckPurpose, ConfigError, ContentCheck, DiscoverContext, Discovery, Evidence, HandContext, HandStep,
    Leftover, LegacyArtifact, Metadata, OpContext, RestorePlan, RestoreSource, RestoreTarget, RunId,
    ServiceAdapter, StepToken,
};
use serde::Deserialize;

use self::conn::{Place, Server, relative};
use self::tls::Tls;
use crate::legacy::is_stamped;
use crate::runtime::{EngineUrl, ServiceSecret, container_of};

/// The port of Redis unless said otherwise.
const PORT: u16 = 6379;

/// The configuration: which server, and how to log in.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedisConfig {
    /// The container that it runs in: name, id or `label=key=value`.
    pub container: Option<String>,
    /// The Docker engine that the container is on, if not the local one: `unix:///path` or `tcp://host:port`.
    pub docker: Option<EngineUrl>,
    /// The host that it listens on, if it is in no container.
    pub host: Option<String>,
    /// Its port; in a container, that in there. 6379 unless set.
    pub port: Option<u16>,
    /// Its Unix socket, instead of a host. Relative to the configuration file.
    pub socket: Option<PathBuf>,
    /// The systemd unit that runs it on this host; only restores by file need it.
    pub unit: Option<String>,
    /// The ACL user; `default` unless set.
    pub username: Option<String>,
    /// The password.
    pub password: Option<ServiceSecret>,
    /// How the data is captured.
    #[serde(default)]
    pub capture: CaptureMode,
    /// How a restore over the live server is done.
    #[serde(default)]
    pub restore: RestoreMode,
    /// Whether the connection is encrypted. Also set by each of the next four.
    #[serde(default)]
    pub tls: bool,
    /// The authority that signed the server's certificate, PEM; those that the host trusts unless set.
    pub ca: Option<PathBuf>,
    /// Our own certificate, PEM, if the server wants one; with `key`.
    pub cert: Option<PathBuf>,
    /// The key of `cert`, PEM.
    pub key: Option<PathBuf>,
    /// The name in the server's certificate, if it is not that of `host`.
    pub server_name: Option<String>,
}

/// How the data is captured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum CaptureMode {
    /// `stream` if the user may, else `bgsave`.
    #[default]
    Auto,
    /// A full resynchronisation, as a replica gets it.
    Stream,
    /// The server's own file, after a `BGSAVE`.
    BgSave,
}

/// How a restore over the live server is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RestoreMode {
    /// The server loads the backup as a replica of this program. It is neither stopped, nor are its files touched.
    #[default]
    Wire,
    /// The server is stopped, gets new files, and is started: for one that may not follow others.
    File,
}

impl RedisConfig {
    fn place(&self, cx: &BuildContext) -> Result<Place, ConfigError> {
        let port = self.port.unwrap_or(PORT);
        let container =
            container_of(self.container.as_deref(), self.docker.as_ref(), self.password.as_ref())?;
        match (container, &self.host, &self.socket) {
            (Some(container), None, None) => Ok(Place::Container(container, port)),
            (None, Some(host), None) if !host.is_empty() => Ok(Place::Tcp(host.clone(), port)),
            (None, None, Some(socket)) if self.port.is_none() => Ok(Place::Socket(cx.base_dir.join(socket))),
            (None, None, None) => Err(ConfigError::new("no server is named")
                .hint("set `container`, or `host` and `port`, or `socket`")),
            _ => Err(ConfigError::new("more than one server is named, or an empty one")
                .hint("set one of `container`, `host` (with `port`), `socket`")),
        }
    }

    fn encryption(&self, cx: &BuildContext) -> Result<Option<Tls>, ConfigError> {
        let path = |p: &Option<PathBuf>| relative(&cx.base_dir, p.clone());
        let client = match (path(&self.cert), path(&self.key)) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => {
                return Err(ConfigError::new("`cert` and `key` go together").hint("set both, or neither"));
            }
        };
        let tls = Tls { ca: path(&self.ca), client, server_name: self.server_name.clone() };
        let wanted = self.tls || tls.ca.is_some() || tls.client.is_some() || tls.server_name.is_some();
        if wanted && self.socket.is_some() {
            return Err(ConfigError::new("a Unix socket is not encrypted").hint("remove the keys for TLS"));
        }
        Ok(wanted.then_some(tls))
    }
}

impl AdapterConfig for RedisConfig {
    const KIND: &'static str = "redis";
    const SUMMARY: &'static str = "a Redis or Valkey server, as a replica gets it or by BGSAVE";
    const PROVEN: &'static str = "tested with Redis 7.0; restored to Redis 6.0, 7.0, 8.0 and Valkey 8.1";

    fn build(self, cx: &BuildContext) -> Result<Arc<dyn ServiceAdapter>, ConfigError> {
        let (place, tls) = (self.place(cx)?, self.encryption(cx)?);
        if self.username.is_some() && self.password.is_none() {
            return Err(ConfigError::new("`username` without `password`")
                .at("username")
                .hint("set `password` too"));
        }
        if self.unit.is_some() && !matches!(place, Place::Tcp(..) | Place::Socket(_)) {
            return Err(ConfigError::new("`unit` is for a server outside of containers").at("unit"));
        }
        let password = self.password.map(|p| p.relative_to(&cx.base_dir));
        let server = Server { place, unit: self.unit, username: self.username, password, tls };
        Ok(Arc::new(Redis { server, mode: self.capture, restore: self.restore }))
    }

    fn discover(cx: &DiscoverContext) -> Result<Discovery, AdapterError> {
        Ok(discover::discover(cx))
    }
}

/// Protects one server.
#[derive(Debug, Clone)]
pub struct Redis {
    server: Server,
    mode: CaptureMode,
    restore: RestoreMode,
}

#[async_trait]
impl ServiceAdapter for Redis {
    fn kind(&self) -> &'static str {
        RedisConfig::KIND
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::full().with_ask()
    }

    async fn check(&self, cx: &OpContext) -> Result<(), AdapterError> {
        let mut conn = self.server.connect(cx).await?;
        if self.mode != CaptureMode::Stream {
            return Ok(());
        }
        let user = self.server.username.as_deref().unwrap_or("default");
        match stream::dry_run(&mut conn, cx, user).await? {
            Some(false) => Err(stream::not_allowed(&conn)),
            Some(true) | None => Ok(()),
        }
    }

    async fn open(&self, cx: &OpContext) -> Result<BackupSource, AdapterError> {
        cx.check_alive()?;
        capture::open(&self.server, self.mode, cx).await
    }

    fn container(&self) -> Option<String> {
        self.server.container().map(|docker| docker.container().to_owned())
    }

    async fn live_paths(&self, _cx: &OpContext) -> Vec<PathBuf> {
        match self.server.container() {
            Some(docker) => docker.live_paths().await,
            None => Vec::new(),
        }
    }

    fn content_check(
        &self,
        _purpose: &CheckPurpose,
        _artifact: &ArtifactMeta,
    ) -> Option<Box<dyn ContentCheck>> {
        Some(Box::new(check::RdbCheck::default()))
    }

    fn legacy(&self, file: &str) -> Option<LegacyArtifact> {
        match file {
            "dump.rdb.gz" => Some(LegacyArtifact::gzip("dump")),
            _ => is_stamped(file, "redis_", ".rdb").then(|| LegacyArtifact::plain("redis")),
        }
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
        restore::plan(&self.server, self.restore, cx, backup, target).await
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
        restore::probe(&self.server, cx, target, &[]).await.map(|(found, _)| found)
    }

    /// Libraries of functions are loaded by applications that have no data yet.
    async fn data(&self, cx: &OpContext) -> Result<Evidence, AdapterError> {
        let mut found = self.probe(cx, &RestoreTarget::Live).await?;
        found.counts.retain(|name, _| name == "keys");
        Ok(found)
    }

    async fn ask(
        &self,
        cx: &OpContext,
        target: &RestoreTarget,
        question: &str,
    ) -> Result<Option<String>, AdapterError> {
        ask::ask(&self.server, cx, target, question).await
    }

    async fn probe_and_ask(
        &self,
        cx: &OpContext,
        target: &RestoreTarget,
        questions: &[String],
    ) -> Result<(Evidence, Vec<Answer>), AdapterError> {
        restore::probe(&self.server, cx, target, questions).await
    }

    async fn prove_writable(&self, cx: &OpContext) -> Result<bool, AdapterError> {
        live::take_a_write(&self.server, cx).await?;
        Ok(true)
    }

    async fn undo(&self, cx: &OpContext, switched: &StepToken) -> Result<StepToken, AdapterError> {
        restore::undo(&self.server, cx, switched).await
    }

    async fn leftovers(&self, _cx: &OpContext, token: &StepToken) -> Result<Vec<Leftover>, AdapterError> {
        restore::leftovers(token).await
    }

    async fn discard(&self, cx: &OpContext, token: &StepToken) -> Result<(), AdapterError> {
        restore::discard(cx, token).await
    }

    async fn bring_back(&self, cx: &OpContext, entry: &InterruptionEntry) -> Result<Replay, AdapterError> {
        restore::bring_back(&self.server, cx, entry).await
    }

    async fn reclaim(&self, _cx: &OpContext, dead: &[RunId]) -> Result<Vec<String>, AdapterError> {
        // A killed capture leaves nothing: the server ends a resynchronisation with its connection, and a save of its
        // own is its normal file. The spool is the engine's. A killed test restore leaves its container.
        match self.server.container() {
            Some(docker) => docker.reclaim(dead).await,
            None => Ok(Vec::new()),
        }
    }
}
