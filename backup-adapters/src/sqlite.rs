//! `sqlite`: one SQLite database file, copied while it is used.
//!
//! ```toml
//! [services.app]
//! kind = "sqlite"
//! path = "data/app.db"
//! smoke = ["SELECT count(*) FROM users"]      # optional: what restored data must answer; one statement that only reads
//! ```
//!
//! A database is more than its file: `cp` of the file alone misses what is still in its `-wal`, and a copy under
//! write load is damaged. So the copy is made by SQLite's own backup API (`copy`), into the spool, and streamed from
//! there. A restore is built and checked beside the database and then changes names with it and with what lies beside
//! it (`swap`).
//!
//! A process may use only one copy of the SQLite library for one database
//! (<https://www.sqlite.org/howtocorrupt.html>, section 2.2.1): a service that embeds this adapter and has the same
//! database open must use this crate's `rusqlite` too, or run the backup in a process of its own.

mod ask;
mod capture;
mod check;
mod connect;
mod copy;
mod discover;
mod in_use;
mod inspect;
mod restore;
mod swap;
mod write;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::{
    AdapterConfig, AdapterError, AdapterErrorKind, ArtifactMeta, BackupSource, BuildContext, Capabilities,
    CheckPurpose, ConfigError, ContentCheck, DiscoverContext, Discovery, Evidence, HandContext, HandStep,
    Leftover, Metadata, OpContext, RestorePlan, RestoreSource, RestoreTarget, RunId, ServiceAdapter,
    StepToken, shell_quote,
};
use serde::Deserialize;
use tokio::task::{JoinError, spawn_blocking};

use self::swap::DatabaseSwap;

/// The configuration: which file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqliteConfig {
    /// The database file; relative to the configuration file.
    pub path: PathBuf,
}

impl AdapterConfig for SqliteConfig {
    const KIND: &'static str = "sqlite";
    const SUMMARY: &'static str = "a SQLite database, copied while it is used";
    const PROVEN: &'static str = "tested with writers at work, in WAL and rollback mode";

    fn build(self, cx: &BuildContext) -> Result<Arc<dyn ServiceAdapter>, ConfigError> {
        if self.path.as_os_str().is_empty() {
            return Err(ConfigError::new("`path` is empty").at("path").hint("name the database file"));
        }
        Ok(Arc::new(Sqlite::new(cx.base_dir.join(self.path))))
    }

    fn discover(cx: &DiscoverContext) -> Result<Discovery, AdapterError> {
        discover::discover(cx)
    }
}

/// Protects one SQLite database.
#[derive(Debug, Clone)]
pub struct Sqlite {
    path: PathBuf,
}

impl Sqlite {
    /// Protects the database at `path`. Does no I/O.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The file that a restore to `target` makes.
    fn restored(&self, target: &RestoreTarget) -> Result<PathBuf, AdapterError> {
        let dir = match target {
            RestoreTarget::Live => return resolve(&self.path),
            RestoreTarget::Dir(dir) => dir,
            RestoreTarget::Scratch(scratch) => &scratch.dir,
            _ => return Err(AdapterError::unsupported("a database cannot be restored there")),
        };
        let named = self.path.file_name().map(|n| dir.join(n));
        if let Some(named) = named.filter(|n| n.is_file()) {
            return Ok(named);
        }
        // The service had another path when it was backed up: the file has that one's name.
        let listed = std::fs::read_dir(dir)
            .map_err(|e| AdapterError::io(format!("cannot list `{}`", dir.display()), e))?;
        let mut files = listed.flatten().map(|e| e.path()).filter(|p| p.is_file());
        match (files.next(), files.next()) {
            (Some(one), None) => Ok(one),
            _ => {
                let message = format!("`{}` does not hold one restored database", dir.display());
                Err(AdapterError::new(AdapterErrorKind::NotFound, message))
            }
        }
    }
}

/// `path` with symbolic links resolved, also where nothing is yet.
fn resolve(path: &Path) -> Result<PathBuf, AdapterError> {
    let failed = |e| AdapterError::io(format!("cannot resolve `{}`", path.display()), e);
    match path.canonicalize() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => return other.map_err(failed),
    }
    let followed = match std::fs::read_link(path) {
        Ok(link) => path.parent().unwrap_or(Path::new("")).join(link),
        Err(_) => path.to_owned(),
    };
    std::path::absolute(followed).map_err(failed)
}

/// The result of blocking work.
async fn joined<T>(
    work: impl Future<Output = Result<Result<T, AdapterError>, JoinError>>,
) -> Result<T, AdapterError> {
    work.await.unwrap_or_else(|e| {
        Err(AdapterError::new(AdapterErrorKind::Other, "the work on the database broke off").with_source(e))
    })
}

#[async_trait]
impl ServiceAdapter for Sqlite {
    fn kind(&self) -> &'static str {
        SqliteConfig::KIND
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::full().with_ask()
    }

    async fn check(&self, _cx: &OpContext) -> Result<(), AdapterError> {
        let path = self.path.clone();
        joined(spawn_blocking(move || {
            connect::stat_database(&path)?;
            // Without locks and without `-shm`: a look at the header disturbs nobody.
            let header = connect::open_immutable(&path).and_then(|conn| connect::read_header(&conn));
            header.map(drop).map_err(|e| connect::open_error(&path, e))
        }))
        .await
    }

    async fn live_paths(&self, _cx: &OpContext) -> Vec<PathBuf> {
        vec![self.path.clone()]
    }

    async fn open(&self, cx: &OpContext) -> Result<BackupSource, AdapterError> {
        cx.check_alive()?;
        capture::open(self.path.clone(), cx).await
    }

    fn content_check(
        &self,
        purpose: &CheckPurpose,
        artifact: &ArtifactMeta,
    ) -> Option<Box<dyn ContentCheck>> {
        Some(Box::new(check::DatabaseCheck::new(artifact.name.as_str(), purpose)))
    }

    fn by_hand(&self, backup: &HandContext<'_>) -> Vec<HandStep> {
        backup.metadata.artifacts.iter().flat_map(|artifact| hand_steps(backup, artifact)).collect()
    }

    async fn plan_restore(
        &self,
        cx: &OpContext,
        backup: &Metadata,
        target: &RestoreTarget,
    ) -> Result<RestorePlan, AdapterError> {
        let (path, cx, backup, target) = (self.path.clone(), cx.clone(), backup.clone(), target.clone());
        joined(spawn_blocking(move || restore::plan(&path, &backup, &target, &cx))).await
    }

    async fn stage(
        &self,
        cx: &OpContext,
        plan: &RestorePlan,
        source: &RestoreSource,
    ) -> Result<StepToken, AdapterError> {
        StepToken::new(&restore::stage(cx, plan, source).await?)
    }

    async fn switch(
        &self,
        cx: &OpContext,
        _plan: &RestorePlan,
        staged: &StepToken,
    ) -> Result<StepToken, AdapterError> {
        let (cx, swap) = (cx.clone(), staged.get::<DatabaseSwap>()?);
        joined(spawn_blocking(move || {
            let failed = failed("replace", &swap);
            if !swap.is_done().map_err(&failed)? {
                restore::refuse_used(&swap.swap.target, &cx)?;
            }
            StepToken::new(&swap.switch().map_err(failed)?)
        }))
        .await
    }

    async fn probe(&self, cx: &OpContext, target: &RestoreTarget) -> Result<Evidence, AdapterError> {
        let (adapter, cx, target) = (self.clone(), cx.clone(), target.clone());
        joined(spawn_blocking(move || {
            let path = adapter.restored(&target)?;
            let source = connect::Source::open(&path, &cx)?;
            let evidence =
                inspect::count(&source, &path, inspect::COUNT_TIME, &|| cx.check_alive().is_err())?;
            source.confirm()?;
            Ok(evidence)
        }))
        .await
    }

    async fn data(&self, cx: &OpContext) -> Result<Evidence, AdapterError> {
        let (adapter, cx) = (self.clone(), cx.clone());
        joined(spawn_blocking(move || {
            let path = adapter.restored(&RestoreTarget::Live)?;
            let source = connect::Source::open(&path, &cx)?;
            let found = inspect::any_rows(&source, &path, &|| cx.check_alive().is_err())?;
            source.confirm()?;
            Ok(found)
        }))
        .await
    }

    async fn prove_writable(&self, cx: &OpContext) -> Result<bool, AdapterError> {
        let (path, cx) = (self.path.clone(), cx.clone());
        joined(spawn_blocking(move || write::take_a_write(&path, &cx))).await?;
        Ok(true)
    }

    async fn ask(
        &self,
        cx: &OpContext,
        target: &RestoreTarget,
        question: &str,
    ) -> Result<Option<String>, AdapterError> {
        let (adapter, cx, target) = (self.clone(), cx.clone(), target.clone());
        let question = question.to_owned();
        joined(spawn_blocking(move || ask::ask(&adapter.restored(&target)?, &cx, &question))).await
    }

    async fn undo(&self, cx: &OpContext, switched: &StepToken) -> Result<StepToken, AdapterError> {
        let (cx, swap) = (cx.clone(), switched.get::<DatabaseSwap>()?);
        joined(spawn_blocking(move || {
            let failed = failed("put back", &swap);
            if !swap.is_undone(cx.timestamp).map_err(&failed)? {
                restore::refuse_used(&swap.swap.target, &cx)?;
            }
            StepToken::new(&swap.undo(cx.timestamp).map_err(failed)?)
        }))
        .await
    }

    async fn leftovers(&self, cx: &OpContext, token: &StepToken) -> Result<Vec<Leftover>, AdapterError> {
        let Some(swap) = swap_of(cx, token).await? else { return Ok(Vec::new()) };
        joined(spawn_blocking(move || swap.leftovers().map_err(failed("find what is kept of", &swap)))).await
    }

    async fn discard(&self, cx: &OpContext, token: &StepToken) -> Result<(), AdapterError> {
        let Some(swap) = swap_of(cx, token).await? else { return Ok(()) };
        joined(spawn_blocking(move || swap.discard().map_err(failed("remove what is kept of", &swap)))).await
    }

    async fn reclaim(&self, _cx: &OpContext, _dead: &[RunId]) -> Result<Vec<String>, AdapterError> {
        // A killed capture leaves nothing beside the database; its spool is the engine's.
        Ok(Vec::new())
    }
}

/// What a token speaks of. A restore that died while it staged has only its plan; `None` if that left nothing.
async fn swap_of(cx: &OpContext, token: &StepToken) -> Result<Option<DatabaseSwap>, AdapterError> {
    if let Ok(swap) = token.get() {
        return Ok(Some(swap));
    }
    let restore::Plan { target } = token.get()?;
    let (staged, at) = (backup_core::keep_aside::staging_path(&target, &cx.run_id), cx.timestamp);
    joined(spawn_blocking(move || {
        DatabaseSwap::never(staged.clone(), target, at)
            .map_err(|e| AdapterError::io(format!("cannot look at `{}`", staged.display()), e))
    }))
    .await
}

fn failed(what: &str, swap: &DatabaseSwap) -> impl Fn(io::Error) -> AdapterError + use<> {
    let message = format!("cannot {what} database `{}`", swap.swap.target.display());
    move |e| AdapterError::io(message.clone(), e)
}

fn hand_steps(backup: &HandContext<'_>, artifact: &ArtifactMeta) -> [HandStep; 3] {
    [
        HandStep::new("Unpack the database.", format!("{} > {RESTORED}", backup.decode(artifact))),
        HandStep::new(
            "Check it.\nWith SQLite's own command line (package `sqlite3`).",
            format!("test \"$(sqlite3 {RESTORED} 'PRAGMA integrity_check')\" = ok"),
        ),
        put_into_place(artifact),
    ]
}

/// What the steps by hand call the unpacked database.
const RESTORED: &str = "restored.sqlite";

fn put_into_place(artifact: &ArtifactMeta) -> HandStep {
    let title = "Put it into its place.";
    let why = "`-wal`, `-journal` and `-shm` belong to the old database and would damage the new one";
    // A name that is not UTF-8 is recorded with replacements.
    let path = artifact.attributes.get("path").and_then(|p| p.as_str()).filter(|p| !p.contains('\u{fffd}'));
    let Some(path) = path else {
        let text = format!(
            "{title}\nStop whatever uses the database. Move it away together with the files whose names begin with its \
             own, if there are any ({why}), copy `{RESTORED}` there, give it the old one's owner and mode, and start the \
             service again."
        );
        return HandStep::new(text, "");
    };
    let quoted = shell_quote(path);
    let number = |key: &str| artifact.attributes.get(key).and_then(|v| v.as_u64());
    let install = match (number("mode"), number("uid"), number("gid")) {
        (Some(mode), Some(uid), Some(gid)) => {
            format!("install -D -m {mode:o} -o {uid} -g {gid} {RESTORED} {quoted}")
        }
        _ => format!("install -D {RESTORED} {quoted}"),
    };
    let text = format!(
        "{title}\nStop whatever uses `{path}` first, and start it again afterwards. What is there now stays beside it as \
         `{path}.old`, with what belongs to it: {why}."
    );
    let command = format!(
        "for part in '' -wal -journal -shm; do\n  \
           if [ -e {quoted}\"$part\" ]; then mv -T --backup=numbered {quoted}\"$part\" {quoted}.old\"$part\"; fi\n\
         done\n{install}"
    );
    HandStep::new(text, command)
}
