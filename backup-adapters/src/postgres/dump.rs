//! One dump: started, proven to have begun well, and followed to its proven end.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backup_core::runtime::Execution;
use backup_core::{AdapterError, AdapterErrorKind, ByteStream};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{StreamExt as _, stream};
use tokio::task::JoinSet;

use super::evidence::Tally;
use super::facts::{Database, Inside, inside_sql};
use super::fault::Failure;
use super::format::{DumpFormat, Parser};
use super::link::{Link, ended};
use super::snapshot::{Rows, Session};
use super::sql::conninfo;
use super::{Counts, Settings, scratch};

/// How much of a dump is read before it is handed out: what fails until then can be tried again unseen.
const READ_AHEAD: usize = 4 << 20;
const ATTEMPTS: u32 = 3;
/// A dump gives up on a table that somebody holds locked for so long, rather than wait for ever.
const LOCK_WAIT: Duration = Duration::from_secs(60);
/// What counting may take longer than the dump.
const COUNT_GRACE: Duration = Duration::from_secs(600);

/// A dump that has begun well.
pub(super) struct Started {
    pub(super) database: Database,
    pub(super) inside: Inside,
    pub(super) warnings: Vec<String>,
    /// Why it is not wanted after all.
    pub(super) skip: Option<String>,
    /// Its snapshot was taken between these.
    pub(super) from: DateTime<Utc>,
    pub(super) to: DateTime<Utc>,
    ahead: VecDeque<Bytes>,
    execution: Execution,
    at_end: bool,
    counting: Option<JoinSet<Result<Rows, Failure>>>,
}

/// Starts the dump of `database`; tries again what passes.
pub(super) async fn start(
    link: &Link,
    settings: &Settings,
    database: Database,
) -> Result<Started, AdapterError> {
    let what = format!("cannot dump database `{}`", database.name);
    let mut attempt = 1;
    loop {
        match try_start(link, settings, &database).await {
            Ok(started) => return Ok(started),
            Err(failure) if failure.passes() && attempt < ATTEMPTS => {
                tracing::debug!(database = %database.name, attempt, ?failure, "A dump is tried again.");
                link.cx.within(tokio::time::sleep(Duration::from_millis(200) * attempt)).await?;
                attempt += 1;
            }
            Err(failure) => return Err(failure.explain(&what)),
        }
    }
}

async fn try_start(link: &Link, settings: &Settings, database: &Database) -> Result<Started, Failure> {
    let name = &database.name;
    let mut warnings = Vec::new();
    let from = link.cx.clock.now();
    let mut session = None;
    if settings.counts == Counts::Exact {
        match Session::open(link, name).await {
            Ok(opened) => session = Some(opened),
            // Older versions of YugabyteDB.
            Err(failure) if failure.mentions("export") || failure.mentions("not supported") => warnings.push(
                format!("database `{name}`: the server exports no snapshots, so that its rows were not counted twice"),
            ),
            Err(failure) => return Err(failure),
        }
    }
    let (session, snapshot, inside) = match session {
        Some((session, snapshot, inside)) => (Some(session), Some(snapshot), inside),
        None => (None, None, link.json(name, &inside_sql()).await?),
    };
    let mut argv = vec![link.programs.dump.clone(), "--no-password".to_owned()];
    argv.extend(match settings.format() {
        DumpFormat::Plain => vec!["--format=plain".to_owned()],
        // We compress ourselves, faster and on all processors.
        DumpFormat::Custom => vec!["--format=custom".to_owned(), "--compress=0".to_owned()],
        DumpFormat::Directory => {
            scratch::refuse_full(settings, link, database).await.map_err(|e| Failure::new(e, ""))?;
            let jobs = format!("--jobs={}", settings.jobs(&link.cx));
            vec!["--format=directory".to_owned(), "--compress=0".to_owned(), jobs]
        }
    });
    argv.push(format!("--lock-wait-timeout={}", LOCK_WAIT.as_millis()));
    argv.extend(snapshot.map(|id| format!("--snapshot={id}")));
    argv.extend(["-d".to_owned(), conninfo(name)]);
    let command = match settings.format() {
        DumpFormat::Directory => scratch::dump(settings, link, name, argv),
        _ => link.command(argv),
    };
    let execution = link.start(command).await.map_err(|e| Failure::new(e, ""))?;
    let mut started = Started {
        database: database.clone(),
        inside,
        warnings,
        skip: None,
        from,
        to: from,
        ahead: VecDeque::new(),
        execution,
        at_end: false,
        counting: None,
    };
    let mut bytes = 0;
    while bytes < READ_AHEAD && !started.at_end {
        match link.cx.within(started.execution.stdout.next()).await {
            Ok(Some(Ok(chunk))) => {
                if bytes == 0 {
                    started.to = link.cx.clock.now();
                }
                bytes += chunk.len();
                started.ahead.push_back(chunk);
            }
            Ok(Some(Err(e))) => return Err(ended(e, started.execution).await),
            Ok(None) => started.at_end = true,
            Err(e) => return Err(Failure::new(e, "")),
        }
    }
    if let Some(session) = session {
        let mut counting = JoinSet::new();
        counting.spawn(session.count());
        started.counting = Some(counting);
    }
    Ok(started)
}

/// A dump on its way to the store.
struct Body {
    link: Link,
    settings: Arc<Settings>,
    started: Started,
    parser: Parser,
    tally: Arc<Mutex<Tally>>,
}

impl Started {
    /// The bytes. Their end is proven: the program's exit status, the structure of the dump, and with exact counts its
    /// rows.
    pub(super) fn body(
        self,
        link: Link,
        settings: Arc<Settings>,
        tally: Arc<Mutex<Tally>>,
    ) -> ByteStream<AdapterError> {
        let parser = Parser::new(settings.format(), &self.database.name);
        let body = Body { link, settings, started: self, parser, tally };
        stream::try_unfold(Some(body), |body| async {
            let Some(mut body) = body else { return Ok(None) };
            match body.next().await? {
                Some(chunk) => {
                    body.parser.update(&chunk)?;
                    Ok(Some((chunk, Some(body))))
                }
                None => {
                    body.finish().await?;
                    Ok(None)
                }
            }
        })
        .boxed()
    }
}

impl Body {
    fn what(&self) -> String {
        format!("the dump of database `{}` broke off", self.started.database.name)
    }

    async fn next(&mut self) -> Result<Option<Bytes>, AdapterError> {
        if let Some(chunk) = self.started.ahead.pop_front() {
            return Ok(Some(chunk));
        }
        if self.started.at_end {
            return Ok(None);
        }
        match self.link.cx.within(self.started.execution.stdout.next()).await? {
            Some(Ok(chunk)) => Ok(Some(chunk)),
            None => Ok(None),
            Some(Err(e)) => {
                let outcome = &mut self.started.execution.outcome;
                let told = tokio::time::timeout(Duration::from_secs(10), outcome).await;
                let said = told.ok().and_then(Result::ok).map(|o| o.stderr_tail).unwrap_or_default();
                Err(Failure::new(e, said).explain(&self.what()))
            }
        }
    }

    async fn finish(self) -> Result<(), AdapterError> {
        let what = self.what();
        let Self { link, settings, started, parser, tally } = self;
        let Started { database, inside, mut warnings, from, to, execution, counting, .. } = started;
        let contents = parser.finish()?;
        let Execution { stdout, outcome } = execution;
        drop(stdout);
        let outcome = link.cx.within(outcome).await??;
        if let Some(mut counting) = counting {
            let counted = link.cx.within(tokio::time::timeout(COUNT_GRACE, counting.join_next())).await?;
            let rows = match counted {
                Ok(Some(Ok(rows))) => {
                    rows.map_err(|f| f.explain(&format!("{what}: cannot count its rows")))?
                }
                _ => {
                    return Err(AdapterError::new(
                        AdapterErrorKind::Timeout,
                        format!("{what}: counting took too long"),
                    ));
                }
            };
            if contents.counted {
                compare(&database.name, &rows, &contents.rows)?;
            }
        }
        warnings.extend(
            outcome
                .stderr_tail
                .lines()
                .filter(|l| l.contains("warning"))
                .take(5)
                .map(|l| l.trim().to_owned()),
        );
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.dumped(&database.name, &inside, &contents, settings.counts);
        tally.between(from, to);
        tally.exited("pg_dump", outcome.status.code);
        tally.warnings.extend(warnings);
        Ok(())
    }
}

/// The dump must hold what was counted in its snapshot.
fn compare(database: &str, counted: &Rows, dumped: &Rows) -> Result<(), AdapterError> {
    for (table, &rows) in counted {
        let found = dumped.get(table).copied().unwrap_or(0);
        if found != rows {
            let (schema, table) = table;
            return Err(AdapterError::corrupt(format!(
                "the dump of database `{database}` has {found} rows of table {schema}.{table}, the server counts {rows}"
            )));
        }
    }
    Ok(())
}
