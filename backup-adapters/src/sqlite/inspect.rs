//! What a database file that nobody writes holds: row counts, and SQLite's own check of its structure.

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use backup_core::{AdapterError, AdapterErrorKind, Evidence};
use rusqlite::{Connection, ErrorCode};

use super::connect::{number, open_error, open_immutable, sqlite_error};

/// How long a capture or a probe may count rows.
pub(super) const COUNT_TIME: Duration = Duration::from_secs(30);
/// How long a verification may count rows.
pub(super) const VERIFY_COUNT_TIME: Duration = Duration::from_secs(600);

/// So many rows of a table are enough to know that it holds data.
const ENOUGH: u64 = 100_000;

/// Tables whose rows are counted.
const MAX_TABLES: usize = 1000;

/// The tables of one's own: no indexes, no views, no shadow tables, nothing of SQLite's.
const TABLES: &str = "SELECT name, type FROM pragma_table_list \
                      WHERE schema = 'main' AND type IN ('table', 'virtual') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
                      ORDER BY name";

/// Calls `work`, and interrupts SQLite as soon as `stop` says so.
pub(super) fn interruptible<T>(
    conn: &Connection,
    stop: &(dyn Fn() -> bool + Sync),
    work: impl FnOnce() -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let handle = conn.get_interrupt_handle();
    std::thread::scope(|threads| {
        let (done, running) = channel::<()>();
        threads.spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = running.recv_timeout(Duration::from_millis(20)) {
                if stop() {
                    handle.interrupt();
                }
            }
        });
        let result = work();
        drop(done);
        result
    })
}

pub(super) fn was_interrupted(e: &rusqlite::Error) -> bool {
    e.sqlite_error_code() == Some(ErrorCode::OperationInterrupted)
}

/// The names of ordinary tables, and how many virtual ones there are: these may need a module that this program does not have.
fn tables(conn: &Connection, name: &Path) -> Result<(Vec<String>, u64), AdapterError> {
    let all = || {
        let mut query = conn.prepare(TABLES)?;
        let rows = query.query_map([], |r| Ok((r.get::<_, String>(0)?, r.get::<_, String>(1)?)))?;
        rows.collect::<rusqlite::Result<Vec<_>>>()
    };
    let mut all = all().map_err(|e| match e.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => open_error(name, e),
        _ => sqlite_error(format!("cannot read the tables of `{}`", name.display()), e),
    })?;
    let total = all.len();
    all.retain(|(_, kind)| kind == "table");
    let virtual_ones = (total - all.len()) as u64;
    Ok((all.into_iter().map(|(name, _)| name).collect(), virtual_ones))
}

fn quoted(table: &str) -> String {
    format!("main.\"{}\"", table.replace('"', "\"\""))
}

/// The rows of each table, `rows_at_least` if it has more than are counted: however large it is, that is quick.
pub(super) fn any_rows(
    conn: &Connection,
    name: &Path,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Evidence, AdapterError> {
    let mut evidence = Evidence::default();
    for table in tables(conn, name)?.0 {
        let query = format!("SELECT count(*) FROM (SELECT 1 FROM {} LIMIT {ENOUGH})", quoted(&table));
        let rows =
            interruptible(conn, stop, || number(conn, &query)).map_err(|e| match was_interrupted(&e) {
                true => AdapterError::cancelled(),
                false => sqlite_error(format!("cannot count table `{table}` of `{}`", name.display()), e),
            })?;
        let what = if rows < ENOUGH { "rows" } else { "rows_at_least" };
        evidence = evidence.with_count(format!("{what}.{table}"), rows);
    }
    Ok(evidence)
}

/// Counts tables, and rows per table as far as `time` allows: what is left out is noted. `name` is the database in
/// errors.
pub(super) fn count(
    conn: &Connection,
    name: &Path,
    time: Duration,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Evidence, AdapterError> {
    let shown = name.display();
    let (tables, virtual_ones) = tables(conn, name)?;
    let total = tables.len() as u64 + virtual_ones;
    let mut evidence = Evidence::default().with_count("tables", total);

    let began = Instant::now();
    let over = || began.elapsed() >= time || stop();
    let mut uncounted = tables.len().saturating_sub(MAX_TABLES);
    for table in tables.iter().take(MAX_TABLES) {
        if stop() {
            return Err(AdapterError::cancelled());
        }
        if over() {
            uncounted += 1;
            continue;
        }
        let query = format!("SELECT count(*) FROM {}", quoted(table));
        match interruptible(conn, &over, || number(conn, &query)) {
            Ok(rows) => evidence = evidence.with_count(format!("rows.{table}"), rows),
            Err(e) if was_interrupted(&e) => uncounted += 1,
            Err(e) => return Err(sqlite_error(format!("cannot count table `{table}` of `{shown}`"), e)),
        }
    }
    if stop() {
        return Err(AdapterError::cancelled());
    }
    if uncounted > 0 {
        let note = format!("{uncounted} tables: more than {MAX_TABLES}, or more than {} s", time.as_secs());
        evidence.notes.insert("rows_not_counted".into(), note);
    }
    Ok(evidence)
}

/// [`count`] of a file that nobody writes.
pub(super) fn count_file(
    file: &Path,
    name: &Path,
    time: Duration,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Evidence, AdapterError> {
    count(&open_immutable(file).map_err(|e| open_error(name, e))?, name, time, stop)
}

/// `PRAGMA integrity_check`, which must answer exactly `ok`. `name` is the database in errors. Returns what kept the
/// check from being complete, if anything did.
pub(super) fn integrity_check(
    file: &Path,
    name: &str,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Option<String>, AdapterError> {
    let conn = open_immutable(file).map_err(|e| open_error(Path::new(name), e))?;
    let check = || {
        let mut query = conn.prepare("PRAGMA integrity_check(10)")?;
        let lines = query.query_map([], |r| r.get::<_, String>(0))?;
        lines.collect::<rusqlite::Result<Vec<_>>>()
    };
    match interruptible(&conn, stop, check) {
        Ok(lines) if lines == ["ok"] => Ok(None),
        Ok(lines) => {
            let found = lines.join("; ").replace('\n', " ");
            Err(AdapterError::corrupt(format!("`{name}` fails its integrity check: {found}")))
        }
        Err(e) if was_interrupted(&e) => Err(AdapterError::cancelled()),
        // Only the service's own program knows its collations: no sign of damage.
        Err(e) if e.to_string().contains("no such collation sequence") => Ok(Some(e.to_string())),
        Err(e) if e.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {
            Err(open_error(Path::new(name), e))
        }
        Err(e) => Err(AdapterError::new(AdapterErrorKind::Corrupt, format!("`{name}` cannot be checked"))
            .with_source(e)),
    }
}
