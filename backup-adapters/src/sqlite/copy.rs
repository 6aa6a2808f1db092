//! The online copy through SQLite's backup API.
//!
//! What <https://www.sqlite.org/backup.html> and <https://www.sqlite.org/c3ref/backup_finish.html> say, and what
//! follows: between two steps the source is unlocked, and when *another* connection wrote meanwhile, the next step
//! begins the copy anew. A source that is written all the time would never be copied. But a step that finds a read
//! transaction open on the source's connection uses it and leaves it open:
//!
//! * In WAL mode readers do not block writers, so one read transaction spans the whole copy: the copy is the state of
//!   that moment, nothing restarts, and writers go on. (Their `-wal` cannot be reset until the copy ends.)
//! * In rollback mode a read transaction keeps writers from committing. Up to [`MAX_RESTARTS`] times the copy begins
//!   anew; then it holds the transaction to its end. How long that locked writers out is reported.

use std::path::Path;
use std::time::{Duration, Instant};

use backup_core::{AdapterError, AdapterErrorKind, OpContext, keep_aside};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::connect::{Patience, Source, number, read_header, sqlite_error};

/// How often a copy may begin anew before it locks writers out.
const MAX_RESTARTS: u32 = 3;

/// Bytes per step: a few milliseconds of a lock in rollback mode.
const STEP_BYTES: u64 = 4 << 20;

/// What was copied.
#[derive(Debug)]
pub(super) struct Copied {
    pub(super) bytes: u64,
    pub(super) page_size: u64,
    pub(super) user_version: i64,
    pub(super) journal_mode: String,
    /// How long writers were locked out on purpose.
    pub(super) locked: Duration,
    /// How often the copy began anew.
    pub(super) restarts: u32,
}

/// Copies the live database at `path` into the new or empty file `into`.
pub(super) fn copy(path: &Path, into: &Path, cx: &OpContext) -> Result<Copied, AdapterError> {
    copy_in_steps(path, into, cx, STEP_BYTES)
}

fn copy_in_steps(path: &Path, into: &Path, cx: &OpContext, step_bytes: u64) -> Result<Copied, AdapterError> {
    let source = Source::open(path, cx)?;
    let shown = path.display();
    let failed = |e| sqlite_error(format!("cannot read database `{shown}`"), e);
    // Even these wait for locks: after a change of the schema SQLite reads it anew.
    let mut patience = Patience::new(cx, path);
    let page_size = patience.retry(|| number(&source, "PRAGMA page_size"))?.map_err(failed)?;
    let journal_mode: String =
        patience.retry(|| source.query_row("PRAGMA journal_mode", [], |r| r.get(0)))?.map_err(failed)?;

    let snapshot = journal_mode == "wal";
    if snapshot {
        hold(&source, &mut patience)?.map_err(failed)?;
    }
    let pages = patience.retry(|| number(&source, "PRAGMA page_count"))?.map_err(failed)?;
    check_space(into, pages.saturating_mul(page_size))?;

    let mut target = open_target(into).map_err(|e| spool_error(into, e))?;
    let backup = Backup::new(&source, &mut target).map_err(failed)?;
    let step = i32::try_from((step_bytes / page_size.max(512)).max(1)).unwrap_or(i32::MAX);
    let (mut done, mut restarts, mut held) = (0, 0, None);
    loop {
        match backup.step(step).map_err(|e| copy_error(path, into, e))? {
            StepResult::Done => break,
            StepResult::More => {
                patience.progress()?;
                let progress = backup.progress();
                let now = progress.pagecount - progress.remaining;
                if now <= done && !snapshot {
                    restarts += 1;
                    if restarts > MAX_RESTARTS && held.is_none() {
                        hold(&source, &mut patience)?.map_err(failed)?;
                        held = Some(Instant::now());
                    }
                }
                done = now;
            }
            // Busy or locked: SQLite waited for its busy timeout already.
            _ => patience.locked()?,
        }
    }
    let locked = held.map(|since| since.elapsed()).unwrap_or_default();
    drop(backup);
    let user_version =
        target.query_row("PRAGMA user_version", [], |r| r.get(0)).map_err(|e| spool_error(into, e))?;
    target.close().map_err(|(_, e)| spool_error(into, e))?;
    source.confirm()?;
    let bytes =
        std::fs::metadata(into).map_err(|e| AdapterError::io("cannot look at the spooled copy", e))?.len();
    Ok(Copied { bytes, page_size, user_version, journal_mode, locked, restarts })
}

/// Opens a read transaction on the source, and reads, so that it takes hold.
fn hold(source: &Connection, patience: &mut Patience<'_>) -> Result<rusqlite::Result<i64>, AdapterError> {
    if let Err(e) = source.execute_batch("BEGIN") {
        return Ok(Err(e));
    }
    patience.retry(|| read_header(source))
}

/// The spool is scratch: no journal, no waiting for the disk.
fn open_target(path: &Path) -> rusqlite::Result<Connection> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.execute_batch("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;")?;
    Ok(conn)
}

fn check_space(into: &Path, bytes: u64) -> Result<(), AdapterError> {
    let folder = into.parent().unwrap_or(into);
    match keep_aside::free_space(folder) {
        Ok(free) if free < bytes => Err(AdapterError::new(
            AdapterErrorKind::NoSpace,
            format!("the copy needs {bytes} bytes in `{}`, where {free} are free", folder.display()),
        )),
        // A file system that does not tell is found out by writing.
        _ => Ok(()),
    }
}

fn spool_error(into: &Path, e: rusqlite::Error) -> AdapterError {
    sqlite_error(format!("cannot write the copy in `{}`", into.parent().unwrap_or(into).display()), e)
}

/// A step reads one file and writes the other; only a full disk tells which.
fn copy_error(path: &Path, into: &Path, e: rusqlite::Error) -> AdapterError {
    match e.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => spool_error(into, e),
        _ => sqlite_error(format!("cannot copy database `{}`", path.display()), e),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use backup_core::{RunId, ServiceName, SystemClock};

    use super::*;

    #[test]
    fn a_copy_that_would_begin_anew_for_ever_locks_writers_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let writer = Connection::open(&path).unwrap();
        writer.busy_timeout(Duration::from_secs(60)).unwrap();
        // 12 MB: so many steps of one page that the writer comes between them again and again.
        writer
            .execute_batch(
                "PRAGMA synchronous=OFF; CREATE TABLE t (x);
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
                 INSERT INTO t SELECT zeroblob(4000) FROM n",
            )
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let writing = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    writer.execute_batch("INSERT INTO t VALUES (1)").unwrap();
                }
            }
        });
        let clock = Arc::new(SystemClock);
        let timestamp = "20260101_000000".parse().unwrap();
        let run: RunId = "20260101_000000-00000000".parse().unwrap();
        let cx = OpContext::new(ServiceName::new("app").unwrap(), run, timestamp, dir.path(), clock);
        let into = dir.path().join("copy.db");
        let copied = copy_in_steps(&path, &into, &cx, 4096);
        stop.store(true, Ordering::Relaxed);
        writing.join().unwrap();
        let copied = copied.unwrap();
        assert!(copied.restarts > MAX_RESTARTS, "{copied:?}");
        assert!(!copied.locked.is_zero(), "{copied:?}");
        let copy = Connection::open(&into).unwrap();
        let ok: String = copy.query_row("PRAGMA integrity_check", [], |r| r.get(0)).unwrap();
        assert_eq!(ok, "ok");
        assert!(number(&copy, "SELECT count(*) FROM t").unwrap() >= 3000);
    }

    #[test]
    fn a_full_spool_is_named() {
        let error =
            rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL), None);
        let error = copy_error(Path::new("/srv/app.db"), Path::new("/spool/copy"), error);
        assert_eq!(error.kind(), AdapterErrorKind::NoSpace);
        assert_eq!(error.to_string(), "cannot write the copy in `/spool`");
        let error = check_space(Path::new("/tmp/copy"), u64::MAX).unwrap_err();
        assert_eq!(error.kind(), AdapterErrorKind::NoSpace);
    }
}
