//! Opening the live database without disturbing whoever uses it.
//!
//! The database is read through SQLite alone, never through a file descriptor of our own: closing any descriptor of a
//! file drops all POSIX locks that this process holds on it, also those of a service that embeds this library and
//! uses the same database (<https://www.sqlite.org/howtocorrupt.html>, section 2.2).

use std::fs::Metadata;
use std::io;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backup_core::{AdapterError, AdapterErrorKind, OpContext};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

/// How long one call into SQLite waits for a lock: short, so that cancellation is seen soon.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_millis(100);

/// How long to wait for a lock without any progress when the operation itself has no deadline.
const LOCK_WAIT: Duration = Duration::from_secs(60);

/// What SQLite keeps beside a database, by suffix (<https://www.sqlite.org/tempfiles.html>).
pub(super) const SIDECARS: [&str; 3] = ["-wal", "-journal", "-shm"];

/// `<path><suffix>`.
pub(super) fn sidecar(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

pub(super) fn kind_of(error: &rusqlite::Error) -> AdapterErrorKind {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => AdapterErrorKind::Unavailable,
        Some(ErrorCode::DiskFull) => AdapterErrorKind::NoSpace,
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => AdapterErrorKind::Corrupt,
        Some(ErrorCode::PermissionDenied | ErrorCode::ReadOnly | ErrorCode::CannotOpen) => {
            AdapterErrorKind::PermissionDenied
        }
        _ => AdapterErrorKind::Other,
    }
}

/// An error of SQLite while doing `what`; the kind follows from the error.
pub(super) fn sqlite_error(what: impl Into<String>, source: rusqlite::Error) -> AdapterError {
    AdapterError::new(kind_of(&source), what).with_source(source)
}

/// As [`sqlite_error`], for the first look at a file, which tells a database from anything else.
pub(super) fn open_error(path: &Path, source: rusqlite::Error) -> AdapterError {
    let shown = path.display();
    sqlite_error(
        match source.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => {
                format!("`{shown}` is not a SQLite database, or it is encrypted")
            }
            _ => format!("cannot open database `{shown}`"),
        },
        source,
    )
}

/// The regular file that `path` names, symbolic links followed.
pub(super) fn stat_database(path: &Path) -> Result<Metadata, AdapterError> {
    let shown = path.display();
    let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            AdapterError::new(AdapterErrorKind::NotFound, format!("database `{shown}` does not exist"))
        }
        _ => AdapterError::io(format!("cannot look at database `{shown}`"), e),
    })?;
    if !meta.is_file() {
        let what = if meta.is_dir() { "a directory" } else { "no regular file" };
        let message = format!("`{shown}` is {what}, not a SQLite database");
        return Err(AdapterError::new(AdapterErrorKind::InvalidConfig, message));
    }
    Ok(meta)
}

/// Opens a database that nobody else writes: no locks, no `-wal`, no `-shm`
/// (<https://www.sqlite.org/uri.html#uriimmutable>).
pub(super) fn open_immutable(path: &Path) -> rusqlite::Result<Connection> {
    let mut uri = String::from("file:");
    for &b in path.as_os_str().as_bytes() {
        if b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'_' | b'-') {
            uri.push(char::from(b));
        } else {
            uri.push_str(&format!("%{b:02X}"));
        }
    }
    uri.push_str("?immutable=1");
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(uri, flags)
}

/// Reads the header, which tells a database from anything else.
pub(super) fn read_header(conn: &Connection) -> rusqlite::Result<i64> {
    conn.query_row("PRAGMA schema_version", [], |row| row.get(0))
}

/// The one number that `query` yields. SQLite has signed ones only; counts and sizes are never negative.
pub(super) fn number(conn: &Connection, query: &str) -> rusqlite::Result<u64> {
    Ok(conn.query_row(query, [], |row| row.get::<_, i64>(0))?.unsigned_abs())
}

/// Waits for locks of others, within the operation's budget.
pub(super) struct Patience<'a> {
    cx: &'a OpContext,
    path: &'a Path,
    since: Option<Instant>,
}

impl<'a> Patience<'a> {
    pub(super) fn new(cx: &'a OpContext, path: &'a Path) -> Self {
        Self { cx, path, since: None }
    }

    /// Something went on: the wait begins anew.
    pub(super) fn progress(&mut self) -> Result<(), AdapterError> {
        self.since = None;
        self.cx.check_alive()
    }

    /// SQLite waited [`BUSY_TIMEOUT`] in vain. An error once that was often enough.
    pub(super) fn locked(&mut self) -> Result<(), AdapterError> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let stuck = |kind, until: &str| {
            let path = self.path.display();
            AdapterError::new(kind, format!("database `{path}` stayed locked by another connection {until}"))
        };
        match self.cx.check_alive() {
            Err(e) if e.kind() == AdapterErrorKind::Timeout => {
                return Err(stuck(AdapterErrorKind::Timeout, "until the time budget was used up"));
            }
            other => other?,
        }
        if self.cx.deadline.is_none() && since.elapsed() >= LOCK_WAIT {
            return Err(stuck(AdapterErrorKind::Unavailable, &format!("for {} s", LOCK_WAIT.as_secs())));
        }
        Ok(())
    }

    /// Calls `read` until no lock is in its way.
    pub(super) fn retry<T>(
        &mut self,
        mut read: impl FnMut() -> rusqlite::Result<T>,
    ) -> Result<rusqlite::Result<T>, AdapterError> {
        loop {
            match read().map_err(|e| (e.sqlite_error_code(), e)) {
                // `SQLITE_BUSY_RECOVERY` and the like may come back at once, without the busy handler's wait.
                Err((Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked), _)) => {
                    std::thread::sleep(BUSY_TIMEOUT / 10);
                    self.locked()?;
                }
                Err((_, e)) => return Ok(Err(e)),
                Ok(value) => return Ok(Ok(value)),
            }
        }
    }
}

/// The live database, open for reading.
pub(super) struct Source {
    conn: Option<Connection>,
    path: PathBuf,
    /// A read-only connection makes `-wal` and `-shm` but cannot remove them again.
    tidy: bool,
    /// Opened without locks: the file must not have changed when the reading ends.
    unlocked: Option<(u64, i64, i64)>,
}

impl Source {
    /// Opens `path`: read-only where that works. It does not where a crash left a rollback journal that must be
    /// played back first; then read-write, as the service itself would, but never creating anything.
    pub(super) fn open(path: &Path, cx: &OpContext) -> Result<Self, AdapterError> {
        let meta = stat_database(path)?;
        let tidy = !sidecar(path, "-wal").exists();
        let made = |conn, tidy, unlocked| Self { conn: Some(conn), path: path.to_owned(), tidy, unlocked };
        let mut patience = Patience::new(cx, path);
        let error = match attempt(path, OpenFlags::SQLITE_OPEN_READ_ONLY, &mut patience)? {
            Ok(conn) => return Ok(made(conn, tidy, None)),
            Err(e) if kind_of(&e) != AdapterErrorKind::PermissionDenied => return Err(open_error(path, e)),
            Err(e) => e,
        };
        if let Ok(conn) = attempt(path, OpenFlags::SQLITE_OPEN_READ_WRITE, &mut patience)? {
            return Ok(made(conn, tidy, None));
        }
        // A database in WAL mode needs its `-shm`, which cannot be made in a folder that we may not write. Without a
        // `-wal` the file is complete in itself, and whoever writes it would make one.
        if !SIDECARS.iter().any(|s| sidecar(path, s).exists())
            && let Ok(conn) = open_immutable(path)
            && read_header(&conn).is_ok()
        {
            return Ok(made(conn, false, Some(stamp(&meta))));
        }
        let message = format!(
            "cannot read database `{}`: that needs the right to read it and its `-wal`, and to write its `-shm` or \
             its folder",
            path.display()
        );
        Err(AdapterError::new(AdapterErrorKind::PermissionDenied, message).with_source(error))
    }

    /// Proves that a reading without locks met no writer.
    pub(super) fn confirm(&self) -> Result<(), AdapterError> {
        let Some(before) = self.unlocked else { return Ok(()) };
        let same = stamp(&stat_database(&self.path)?) == before;
        if same && !SIDECARS.iter().any(|s| sidecar(&self.path, s).exists()) {
            return Ok(());
        }
        let message = format!("database `{}` changed while it was read without locks", self.path.display());
        Err(AdapterError::new(AdapterErrorKind::Changed, message))
    }
}

impl Deref for Source {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.conn.as_ref().expect("the connection is taken only when this is dropped")
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        drop(self.conn.take());
        if self.tidy && sidecar(&self.path, "-wal").exists() {
            // The last connection to close removes them, if it may write; with nothing in the `-wal`, that is all it
            // does. Another process that came meanwhile keeps them.
            let conn = Connection::open_with_flags(
                &self.path,
                OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
            );
            // At worst two small files stay, which the service uses or removes itself.
            let _harmless = conn.and_then(|c| read_header(&c));
        }
    }
}

fn attempt(
    path: &Path,
    flags: OpenFlags,
    patience: &mut Patience<'_>,
) -> Result<rusqlite::Result<Connection>, AdapterError> {
    let open = || {
        let conn = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        conn.busy_timeout(BUSY_TIMEOUT)?;
        if flags.contains(OpenFlags::SQLITE_OPEN_READ_WRITE) {
            // Checkpoints are the service's business.
            conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        }
        Ok(conn)
    };
    match open() {
        Ok(conn) => Ok(patience.retry(|| read_header(&conn))?.map(|_| conn)),
        Err(e) => Ok(Err(e)),
    }
}

/// Length, and the inode's change to the nanosecond.
fn stamp(meta: &Metadata) -> (u64, i64, i64) {
    (meta.len(), meta.ctime(), meta.ctime_nsec())
}
