//! `postgres`: PostgreSQL, and the SQL side (YSQL) of YugabyteDB.
//!
//! ```toml
//! [services.db]
//! kind = "postgres"
//! container = "app-postgres"          # or host, port | socket of a server on this host
//! user = "postgres"
//! password = { env = "PGPASSWORD" }   # not needed where the server trusts its socket
//! # databases = ["app"]               # all of them unless named
//! # flavor = "yugabyte"
//! # format = "custom"                 # or "directory", or "plain", which is YugabyteDB's default
//! # jobs = 4                          # processes for each database, with "directory"
//! # scratch = "/var/tmp"              # where such a directory lies until it is read, beside the server's programs
//! # globals = true                    # roles and table spaces
//! # counts = "estimated"              # or "exact", "off"
//! # programs = "/usr/lib/postgresql/15/bin"
//! # capture = "basebackup"            # the files of the whole server; "dump" unless set
//! # unit = "postgresql.service"       # what runs a server on this host; for restores of its files
//! # run_as = "postgres"               # the operating system's user, for peer authentication
//! # smoke = ["app: SELECT count(*) FROM orders"]   # what restored data must answer: see `ask`
//! ```
//!
//! Dumps are made by the server's own `pg_dump`, run beside it: no two versions meet, and no port has to be open. Each
//! dump is followed to its end while it passes (`format`): an exit status alone proves nothing, and neither does a
//! trailer. Its rows are counted on the way, so that the evidence is of the very snapshot that was dumped; with
//! `counts = "exact"` the server counts the same snapshot again and must agree.
//!
//! With `capture = "basebackup"` the files of the whole server are copied instead, with their WAL and a manifest that is
//! checked file by file: for servers whose dumps take too long. Such a backup fits the same major version only, and a
//! restore stops the server while its data directory is exchanged.
//!
//! A restore of dumps loads every database under another name beside the live one, compares its rows with the evidence, and then
//! exchanges the names in one transaction. The old databases are kept, closed, until `cleanup`. A test restore of a service in a
//! container loads them into a server of its own, in a container of the same image that reaches nothing.

mod apart;
mod ask;
mod base;
mod capture;
mod check;
mod dir;
mod discover;
mod dump;
mod evidence;
mod exchange;
mod facts;
mod fault;
mod format;
mod hand;
mod holds;
mod link;
mod load;
mod part;
mod probe;
mod programs;
mod properties;
mod restore;
mod roles;
mod scratch;
mod snapshot;
mod sql;
mod swap;
mod version;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::runtime::{InterruptionEntry, InterruptionKind, Replay};
use backup_core::{
    AdapterConfig, AdapterError, ArtifactMeta, ArtifactName, BackupSource, BuildContext, Capabilities,
    CheckPurpose, ConfigError, ContentCheck, DiscoverContext, Discovery, Evidence, HandContext, HandStep,
    Leftover, LegacyArtifact, Metadata, OpContext, RestorePlan, RestoreSource, RestoreTarget, RunId,
    ServiceAdapter, StepToken,
};
use serde::Deserialize;

use self::restore::Token;
use crate::legacy::{LEGACY, is_stamped};
use crate::runtime::{DockerRuntime, EngineUrl, ServiceSecret, container_of};

pub use self::format::DumpFormat;

/// Which server it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flavor {
    /// PostgreSQL.
    #[default]
    Postgres,
    /// YugabyteDB: `ysql_dump`, port 5433, statements about databases are no part of transactions.
    Yugabyte,
}

impl Flavor {
    /// Its first superuser.
    fn user(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Yugabyte => "yugabyte",
        }
    }
}

/// How rows are counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Counts {
    /// By the server, too, in the snapshot that is dumped: a scan of every table. The dump must hold as many.
    Exact,
    /// As they pass in the dump, which costs nothing; the planner's estimate is noted beside it.
    #[default]
    Estimated,
    /// As they pass in the dump; nothing is counted in live databases after a restore.
    Off,
}

/// What a backup is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capture {
    /// A dump of each database, and the roles.
    #[default]
    Dump,
    /// The files of the whole server with the WAL that makes them one state, by `pg_basebackup`. PostgreSQL 13 or newer.
    Basebackup,
}

/// The configuration: which server, which databases, how.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// The container that the server runs in: its name, its id or `label=key=value`.
    pub container: Option<String>,
    /// The Docker engine that the container is on, if not the local one: `unix:///path` or `tcp://host:port`.
    pub docker: Option<EngineUrl>,
    /// The server's address, as its client programs see it.
    pub host: Option<String>,
    /// Its port; 5432, or 5433 for YugabyteDB.
    pub port: Option<u16>,
    /// The folder of its Unix socket.
    pub socket: Option<PathBuf>,
    /// The role to connect as; in a container what `POSTGRES_USER` says, else `postgres` or `yugabyte`.
    pub user: Option<String>,
    /// The role's password.
    pub password: Option<ServiceSecret>,
    /// The databases; all that allow connections and are no templates, if empty.
    #[serde(default)]
    pub databases: Vec<String>,
    /// Which server it is.
    #[serde(default)]
    pub flavor: Flavor,
    /// The format of dumps; `custom`, or `plain` for YugabyteDB.
    pub format: Option<DumpFormat>,
    /// How many processes dump or load one database in the format `directory`.
    pub jobs: Option<u32>,
    /// The folder for dumps in that format until they are read, where the server's programs run; `/var/tmp`.
    pub scratch: Option<PathBuf>,
    /// Whether roles and table spaces are part of the backup.
    #[serde(default = "yes")]
    pub globals: bool,
    /// How rows are counted.
    #[serde(default)]
    pub counts: Counts,
    /// What a backup is made of.
    #[serde(default)]
    pub capture: Capture,
    /// The systemd unit of a server on this host, for restores of its files.
    pub unit: Option<String>,
    /// The folder of the client programs, where they run.
    pub programs: Option<PathBuf>,
    /// The operating system's user to run them as.
    pub run_as: Option<String>,
    /// libpq's `sslmode`, e.g. `verify-full`.
    pub sslmode: Option<String>,
}

fn yes() -> bool {
    true
}

impl AdapterConfig for PostgresConfig {
    const KIND: &'static str = "postgres";
    const SUMMARY: &'static str = "PostgreSQL and YugabyteDB (YSQL), dumped by their own programs";
    const PROVEN: &'static str = "tested with PostgreSQL 13, 15 and 17 in containers, with 15 on the host; YugabyteDB only with a stand-in, not proven on a real server";

    fn build(self, cx: &BuildContext) -> Result<Arc<dyn ServiceAdapter>, ConfigError> {
        container_of(self.container.as_deref(), self.docker.as_ref(), self.password.as_ref())?;
        if self.host.is_some() && self.socket.is_some() {
            return Err(ConfigError::new("`host` and `socket` exclude each other").at("socket"));
        }
        if self.capture == Capture::Basebackup {
            self.refuse_for_files()?;
        }
        if self.unit.is_some() && self.container.is_some() {
            return Err(ConfigError::new("`unit` is for a server outside of containers").at("unit"));
        }
        if self.format() != DumpFormat::Directory {
            for (key, set) in [("jobs", self.jobs.is_some()), ("scratch", self.scratch.is_some())] {
                if set {
                    return Err(ConfigError::new(format!("`{key}` is for `format = \"directory\"`")).at(key));
                }
            }
        }
        if self.jobs.is_some_and(|jobs| !(1..=64).contains(&jobs)) {
            return Err(ConfigError::new("`jobs` is a number from 1 to 64").at("jobs"));
        }
        if self.scratch.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err(ConfigError::new("`scratch` is no absolute path").at("scratch"));
        }
        for (key, value) in [("host", &self.host), ("user", &self.user)] {
            if value.as_ref().is_some_and(String::is_empty) {
                return Err(ConfigError::new(format!("`{key}` is empty")).at(key));
            }
        }
        let password = self.password.map(|p| p.relative_to(&cx.base_dir));
        Ok(Arc::new(Postgres { settings: Arc::new(Self { password, ..self }) }))
    }

    fn discover(cx: &DiscoverContext) -> Result<Discovery, AdapterError> {
        discover::discover(cx)
    }
}

impl PostgresConfig {
    /// The container that the server runs in.
    fn docker(&self) -> Option<DockerRuntime> {
        self.container.as_deref().map(|name| EngineUrl::container(self.docker.as_ref(), name))
    }

    /// Keys that only make sense for dumps.
    fn refuse_for_files(&self) -> Result<(), ConfigError> {
        if self.flavor == Flavor::Yugabyte {
            let what = "`capture = \"basebackup\"` is for PostgreSQL: YugabyteDB's files are not those of one server";
            return Err(ConfigError::new(what).at("capture").hint("use dumps"));
        }
        let keys = [
            ("databases", !self.databases.is_empty()),
            ("format", self.format.is_some()),
            ("globals", !self.globals),
        ];
        match keys.into_iter().find(|(_, set)| *set) {
            Some((key, _)) => {
                let what = format!("`{key}` is for dumps: a base backup holds the whole server");
                Err(ConfigError::new(what).at(key))
            }
            None => Ok(()),
        }
    }

    fn port(&self) -> u16 {
        self.port.unwrap_or(match self.flavor {
            Flavor::Postgres => 5432,
            Flavor::Yugabyte => 5433,
        })
    }

    fn format(&self) -> DumpFormat {
        self.format.unwrap_or(match self.flavor {
            Flavor::Postgres => DumpFormat::Custom,
            Flavor::Yugabyte => DumpFormat::Plain,
        })
    }
}

impl PostgresConfig {
    /// Processes for one database.
    fn jobs(&self, cx: &OpContext) -> u32 {
        let usual = match self.flavor {
            Flavor::Postgres => u32::try_from(cx.threads.clamp(1, 4)).unwrap_or(1),
            // Its snapshots may not be shared among sessions.
            Flavor::Yugabyte => 1,
        };
        self.jobs.unwrap_or(usual)
    }
}

/// The configuration as the modules use it.
type Settings = PostgresConfig;

/// Protects the databases of one server.
#[derive(Debug, Clone)]
pub struct Postgres {
    settings: Arc<Settings>,
}

#[async_trait]
impl ServiceAdapter for Postgres {
    fn kind(&self) -> &'static str {
        PostgresConfig::KIND
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::full().with_ask()
    }

    async fn check(&self, cx: &OpContext) -> Result<(), AdapterError> {
        capture::check(&self.settings, cx).await
    }

    async fn open(&self, cx: &OpContext) -> Result<BackupSource, AdapterError> {
        capture::open(&self.settings, cx).await
    }

    fn container(&self) -> Option<String> {
        self.settings.container.clone()
    }

    async fn live_paths(&self, _cx: &OpContext) -> Vec<PathBuf> {
        match self.settings.docker() {
            Some(docker) => docker.live_paths().await,
            None => Vec::new(),
        }
    }

    fn content_check(
        &self,
        purpose: &CheckPurpose,
        artifact: &ArtifactMeta,
    ) -> Option<Box<dyn ContentCheck>> {
        check::content_check(purpose, artifact)
    }

    fn part(&self, backup: &Metadata, only: &[ArtifactName]) -> Result<Metadata, AdapterError> {
        part::of(backup, only)
    }

    /// The scripts dumped one database as SQL: that which is configured, if it is one, else the one that they restored to.
    fn legacy(&self, file: &str) -> Option<LegacyArtifact> {
        let database = match self.settings.databases.as_slice() {
            [one] => one,
            _ => Flavor::Yugabyte.user(),
        };
        is_stamped(file, "yugabyte_", ".sql.gz").then(|| {
            LegacyArtifact::gzip(database)
                .with_attribute(LEGACY, true)
                .with_attribute("content", capture::DATABASE)
                .with_attribute("database", database)
                .with_attribute("format", DumpFormat::Plain.name())
        })
    }

    fn by_hand(&self, backup: &HandContext<'_>) -> Vec<HandStep> {
        hand::steps(&self.settings, backup)
    }

    async fn plan_restore(
        &self,
        cx: &OpContext,
        backup: &Metadata,
        target: &RestoreTarget,
    ) -> Result<RestorePlan, AdapterError> {
        restore::plan(&self.settings, cx, backup, target).await
    }

    async fn stage(
        &self,
        cx: &OpContext,
        plan: &RestorePlan,
        source: &RestoreSource,
    ) -> Result<StepToken, AdapterError> {
        StepToken::new(&restore::stage(&self.settings, cx, plan, source).await?)
    }

    async fn switch(
        &self,
        cx: &OpContext,
        _plan: &RestorePlan,
        staged: &StepToken,
    ) -> Result<StepToken, AdapterError> {
        StepToken::new(&match staged.get()? {
            Token::Server(plan) => Token::Server(swap::switch(&self.settings, cx, plan).await?),
            Token::Dir(plan) => Token::Dir(dir::switch(plan).await?),
            Token::Base(plan) => Token::Base(Box::new(base::switch(&self.settings, cx, *plan).await?)),
            apart @ Token::Apart(_) => apart,
        })
    }

    async fn probe(&self, cx: &OpContext, target: &RestoreTarget) -> Result<Evidence, AdapterError> {
        match target {
            RestoreTarget::Live => probe::live(&self.settings, cx).await,
            RestoreTarget::Dir(dir) => probe::elsewhere(&self.settings, cx, dir, false).await,
            RestoreTarget::Scratch(scratch) => probe::elsewhere(&self.settings, cx, &scratch.dir, true).await,
            _ => Err(AdapterError::unsupported("databases cannot be counted there")),
        }
    }

    async fn data(&self, cx: &OpContext) -> Result<Evidence, AdapterError> {
        holds::data(&self.settings, cx).await
    }

    async fn ask(
        &self,
        cx: &OpContext,
        target: &RestoreTarget,
        question: &str,
    ) -> Result<Option<String>, AdapterError> {
        match target {
            RestoreTarget::Live => ask::live(&self.settings, cx, question).await,
            RestoreTarget::Scratch(scratch) => ask::scratch(&self.settings, cx, &scratch.dir, question).await,
            _ => Err(AdapterError::unsupported("no server runs in a directory")),
        }
    }

    async fn prove_writable(&self, cx: &OpContext) -> Result<bool, AdapterError> {
        probe::take_a_write(&self.settings, cx).await?;
        Ok(true)
    }

    async fn undo(&self, cx: &OpContext, switched: &StepToken) -> Result<StepToken, AdapterError> {
        match switched.get()? {
            Token::Server(plan) => {
                StepToken::new(&Token::Server(swap::undo(&self.settings, cx, plan).await?))
            }
            Token::Base(plan) => {
                StepToken::new(&Token::Base(Box::new(base::undo(&self.settings, cx, *plan).await?)))
            }
            Token::Dir(_) => Err(AdapterError::unsupported("a restore into a directory replaced nothing")),
            Token::Apart(_) => Err(AdapterError::unsupported("a test restore replaced nothing")),
        }
    }

    async fn leftovers(&self, cx: &OpContext, token: &StepToken) -> Result<Vec<Leftover>, AdapterError> {
        match token.get()? {
            Token::Server(plan) => swap::leftovers(&self.settings, cx, &plan).await,
            Token::Dir(plan) => dir::leftovers(plan).await,
            Token::Base(plan) => base::leftovers(*plan).await,
            Token::Apart(plan) => apart::leftovers(&self.settings, &plan).await,
        }
    }

    async fn discard(&self, cx: &OpContext, token: &StepToken) -> Result<(), AdapterError> {
        match token.get()? {
            Token::Server(plan) => swap::discard(&self.settings, cx, &plan).await,
            Token::Dir(plan) => dir::discard(plan).await,
            Token::Base(plan) => base::discard(cx, *plan).await,
            Token::Apart(_) => apart::discard(&self.settings, cx).await,
        }
    }

    async fn reclaim(&self, cx: &OpContext, dead: &[RunId]) -> Result<Vec<String>, AdapterError> {
        capture::reclaim(&self.settings, cx, dead).await
    }

    async fn bring_back(&self, cx: &OpContext, entry: &InterruptionEntry) -> Result<Replay, AdapterError> {
        match &entry.kind {
            InterruptionKind::Other { token, .. } => {
                exchange::bring_back(&self.settings, cx, entry, token).await
            }
            _ => base::bring_back(&self.settings, cx, entry).await,
        }
    }
}
