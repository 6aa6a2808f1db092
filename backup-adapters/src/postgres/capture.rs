//! From the server to artifacts: roles, properties of databases, and one dump for each database.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use backup_core::runtime::RunState;
use backup_core::{
    AdapterError, AdapterErrorKind, Artifact, ArtifactName, BackupSource, CaptureReport, Consistency,
    OpContext, ReadOutcome,
};
use bytes::Bytes;
use futures::stream;
use tokio::task::JoinSet;

use super::dump::{self, Started};
use super::evidence::Tally;
use super::facts::{Database, ServerFacts};
use super::format::{DumpFormat, Parser};
use super::link::Link;
use super::{Capture, Flavor, Settings, base, properties, scratch};

/// Databases of up to this size are dumped ahead, so that a hundred small ones do not wait for a hundred starts. A larger
/// one would hold its snapshot and its locks while it waits.
const SMALL: u64 = 64 << 20;
/// So many dumps run at a time.
const PARALLEL: usize = 3;

/// What the attribute `content` says.
pub(super) const DATABASE: &str = "database";
pub(super) const GLOBALS: &str = "globals";
pub(super) const PROPERTIES: &str = "properties";

pub(super) async fn open(settings: &Arc<Settings>, cx: &OpContext) -> Result<BackupSource, AdapterError> {
    if settings.capture == Capture::Basebackup {
        return base::open(settings, cx).await;
    }
    let link = Link::open(settings, cx).await?;
    let facts = ServerFacts::ask(&link).await?;
    let (chosen, left_out) = facts.selected(settings)?;
    let directory = settings.format() == DumpFormat::Directory;
    if directory {
        scratch::sweep(settings, &link).await?;
    }
    if chosen.is_empty() && !settings.globals {
        let what = "the server has no database to back up";
        return Err(AdapterError::new(AdapterErrorKind::NotFound, what));
    }
    let image = match settings.container {
        Some(_) => cx.within(link.runtime.inspect()).await?.ok().and_then(|i| i.image),
        None => None,
    };
    let mut tally = Tally::default();
    tally.warnings = left_out;
    let tally = Arc::new(Mutex::new(tally));
    let names = names(&chosen);
    let globals_pending = settings.globals;
    let source = Source {
        link: link.clone(),
        settings: Arc::clone(settings),
        alone: chosen.len() == 1,
        version: facts.version.clone(),
        superuser: facts.superuser,
        properties: (!chosen.is_empty()).then(|| chosen.clone()),
        globals_pending,
        queue: chosen.into(),
        ahead: VecDeque::new(),
        tally: Arc::clone(&tally),
        names,
    };
    let artifacts = stream::try_unfold(source, |mut source| async {
        Ok::<_, AdapterError>(source.next().await?.map(|artifact| (artifact, source)))
    });
    let (clock, mode, version) = (Arc::clone(&cx.clock), settings.format().name(), facts.version);
    let settings = Arc::clone(settings);
    Ok(BackupSource::new(artifacts, async move |outcome| {
        // What was not read to its end may have left files; after a success there are none.
        if directory
            && outcome != ReadOutcome::Complete
            && let Err(e) = scratch::sweep(&settings, &link).await
        {
            tracing::debug!(error = %e, "the files of a dump are left to the next capture");
        }
        let mut tally = std::mem::take(&mut *tally.lock().unwrap_or_else(PoisonError::into_inner));
        let (from, to) = tally.span(clock.now());
        let mut report = CaptureReport::new(mode, Consistency::Dump, from, to);
        if outcome == ReadOutcome::Complete {
            tally.evidence.notes.insert("server_version".into(), version.clone());
            report.evidence = tally.evidence;
        }
        // A dump holds a lock that excludes changes of tables' definitions only: no writer is ever locked out.
        report.lock_ms = 0;
        report.exit_codes = tally.exit_codes;
        report.warnings = tally.warnings;
        report.service_version = Some(version);
        report.image = image;
        Ok(report)
    }))
}

/// The names of the two artifacts that are no databases: plain words, unless a database has one.
struct Names {
    globals: ArtifactName,
    properties: ArtifactName,
}

fn names(databases: &[Database]) -> Names {
    let taken: BTreeSet<ArtifactName> = databases.iter().map(|d| ArtifactName::sanitized(&d.name)).collect();
    let free = |word: &str| {
        let plain = ArtifactName::sanitized(word);
        // A dash that no hex digits follow is in no sanitized name.
        let other = ArtifactName::new(format!("server-{word}")).unwrap_or_else(|_| plain.clone());
        if taken.contains(&plain) { other } else { plain }
    };
    Names { globals: free("globals"), properties: free("properties") }
}

struct Source {
    link: Link,
    settings: Arc<Settings>,
    alone: bool,
    version: String,
    superuser: bool,
    globals_pending: bool,
    properties: Option<Vec<Database>>,
    queue: VecDeque<Database>,
    ahead: VecDeque<JoinSet<Result<Started, AdapterError>>>,
    tally: Arc<Mutex<Tally>>,
    names: Names,
}

impl Source {
    async fn next(&mut self) -> Result<Option<Artifact>, AdapterError> {
        self.link.cx.check_alive()?;
        if std::mem::take(&mut self.globals_pending) {
            return self.globals().await.map(Some);
        }
        if let Some(databases) = self.properties.take() {
            let script = properties::script(&databases)?;
            let artifact = text(self.names.properties.clone(), script);
            return Ok(Some(artifact.with_attribute("content", PROPERTIES)));
        }
        loop {
            match self.started().await? {
                Next::Dump(started) => return self.artifact(*started).map(Some),
                Next::Skipped(why) => self.warn(why),
                Next::End => return Ok(None),
            }
        }
    }

    fn warn(&self, warning: String) {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).warnings.push(warning);
    }

    /// The next dump that has begun; keeps more of them beginning.
    async fn started(&mut self) -> Result<Next, AdapterError> {
        while self.ahead.len() < PARALLEL {
            let small = |d: &Database| d.size.is_some_and(|size| size <= SMALL);
            let fits =
                self.ahead.is_empty() || (self.queue.front().is_some_and(small) && self.tolerates_ahead());
            let Some(database) = self.queue.pop_front_if(|_| fits) else { break };
            let (link, settings) = (self.link.clone(), Arc::clone(&self.settings));
            let (one_of_all, alone) = (self.settings.databases.is_empty(), self.alone);
            let mut task = JoinSet::new();
            task.spawn(async move {
                let name = database.name.clone();
                let mut started = dump::start(&link, &settings, database).await?;
                if one_of_all && !alone && name == "postgres" && !started.inside.has_objects {
                    started.skip = Some("database `postgres` is empty and was left out".to_owned());
                }
                Ok(started)
            });
            self.ahead.push_back(task);
        }
        let Some(mut front) = self.ahead.pop_front() else { return Ok(Next::End) };
        match front.join_next().await {
            Some(Ok(Ok(mut started))) => Ok(match started.skip.take() {
                Some(why) => Next::Skipped(why),
                None => Next::Dump(Box::new(started)),
            }),
            Some(Ok(Err(e)))
                if e.kind() == AdapterErrorKind::NotFound && self.settings.databases.is_empty() =>
            {
                let still = ServerFacts::ask(&self.link).await?;
                let text = backup_core::chain(&e);
                if still.databases.iter().any(|d| text.contains(&format!("`{}`", d.name))) {
                    return Err(e);
                }
                Ok(Next::Skipped(format!("a database was dropped meanwhile: {text}")))
            }
            Some(Ok(Err(e))) => Err(e),
            Some(Err(_)) | None => {
                Err(AdapterError::new(AdapterErrorKind::Other, "the work on a database broke off"))
            }
        }
    }

    /// YugabyteDB forgets the rows that an old snapshot needs: there a dump begins when it can be read.
    fn tolerates_ahead(&self) -> bool {
        self.settings.flavor == Flavor::Postgres
    }

    fn artifact(&self, started: Started) -> Result<Artifact, AdapterError> {
        let (database, inside) = (started.database.clone(), started.inside.clone());
        let format = self.settings.format();
        let body = started.body(self.link.clone(), Arc::clone(&self.settings), Arc::clone(&self.tally));
        let name = ArtifactName::sanitized(&database.name);
        let mut artifact = Artifact::stream(name, format.extension(), body);
        artifact.size_hint = database.size;
        let extensions: Vec<String> = inside.extensions.iter().map(|(n, v)| format!("{n} {v}")).collect();
        Ok(artifact
            .with_attribute("content", DATABASE)
            .with_attribute("database", database.name.as_str())
            .with_attribute("format", format.name())
            .with_attribute("server_version", self.version.as_str())
            .with_attribute("properties", properties::public(&database)?)
            .with_attribute("roles", inside.roles)
            .with_attribute("tablespaces", inside.tablespaces)
            .with_attribute("public_schema", inside.public_schema)
            .with_attribute("extensions", extensions))
    }

    /// Roles, their memberships and settings, and table spaces.
    async fn globals(&mut self) -> Result<Artifact, AdapterError> {
        let mut argv = vec![self.link.programs.dumpall.clone()];
        argv.extend(["--no-password", "--globals-only", "-l"].map(str::to_owned));
        argv.push(self.link.home.clone());
        if !self.superuser {
            argv.push("--no-role-passwords".to_owned());
            self.warn(
                "only a superuser may read the passwords of roles: they are not in the backup".to_owned(),
            );
        }
        let script = self.link.run(self.link.command(argv)).await;
        let script =
            script.map_err(|f| f.explain("cannot dump the roles (`globals = false` leaves them out)"))?;
        let mut parser = Parser::new(DumpFormat::Plain, self.names.globals.as_str());
        parser.update(script.as_bytes())?;
        parser.finish()?;
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).exited("pg_dumpall", Some(0));
        Ok(text(self.names.globals.clone(), script).with_attribute("content", GLOBALS))
    }
}

enum Next {
    Dump(Box<Started>),
    Skipped(String),
    End,
}

fn text(name: ArtifactName, text: String) -> Artifact {
    let length = u64::try_from(text.len()).unwrap_or(u64::MAX);
    Artifact::stream(name, "sql", stream::iter([Ok(Bytes::from(text))])).with_size_hint(length)
}

/// Ends what runs that died have left: their sessions, and the databases of their test restores.
pub(super) async fn reclaim(
    settings: &Settings,
    cx: &OpContext,
    dead: &[backup_core::RunId],
) -> Result<Vec<String>, AdapterError> {
    if dead.is_empty() {
        return Ok(Vec::new());
    }
    let mut removed = Vec::new();
    // First what a test restore left: the live server need not answer for that.
    if let Some(docker) = settings.docker() {
        removed.extend(cx.within(docker.reclaim(dead)).await??);
    }
    let link = Link::open(settings, cx).await?;
    let mut tags = String::new();
    for run in dead {
        let comma = if tags.is_empty() { "" } else { ", " };
        // Writing to a String cannot fail.
        let _infallible = write!(tags, "{comma}{}", super::sql::literal(&super::link::tag(run)));
    }
    let sql = format!(
        "SELECT pid FROM (SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name IN ({tags}) \
         AND pid <> pg_backend_pid()) t"
    );
    let ended = link.query(&link.home, &sql).await;
    let ended = ended.map_err(|f| f.explain("cannot end the sessions of a run that died"))?;
    removed.extend(ended.lines().map(|pid| format!("session {pid} of a run that died")));
    if settings.format() == DumpFormat::Directory {
        removed.extend(scratch::sweep(settings, &link).await?);
    }
    let facts = ServerFacts::ask(&link).await?;
    for run in dead {
        let suffix = super::facts::staged_suffix(run);
        for database in facts.databases.iter().filter(|d| d.name.ends_with(&suffix)) {
            super::swap::drop_database(&link, &database.name).await?;
            removed.push(format!("database `{}` of a test restore", database.name));
        }
    }
    Ok(removed)
}

/// Whether `check` would let `open` succeed.
pub(super) async fn check(settings: &Settings, cx: &OpContext) -> Result<(), AdapterError> {
    if let Some(docker) = settings.docker() {
        let seen = cx.within(backup_core::runtime::ServiceRuntime::inspect(&docker)).await??;
        if seen.state != RunState::Running {
            let message = format!("container `{}` is not running", docker.container());
            return Err(AdapterError::new(AdapterErrorKind::Unavailable, message));
        }
    }
    let link = Link::open(settings, cx).await?;
    if settings.capture == Capture::Basebackup {
        return base::check(settings, &link).await;
    }
    ServerFacts::ask(&link).await?.selected(settings).map(drop)
}
