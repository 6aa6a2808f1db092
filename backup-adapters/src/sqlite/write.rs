//! Whether a database takes writes.

use std::path::Path;

use backup_core::{AdapterError, AdapterErrorKind, OpContext};
use rusqlite::{Connection, OpenFlags};
use rustix::fs::StatVfsMountFlags;

use super::connect::{BUSY_TIMEOUT, Patience, kind_of, open_error, stat_database};

/// Commits a change of which nothing can be seen: the number that an application gives its schema becomes what it is.
///
/// It does so as any writer would, and what SQLite keeps beside the database goes with it: nobody shall find files there that
/// are ours.
///
/// # Errors
/// Whatever keeps it from that; `PermissionDenied` only where others may have the right that we lack.
pub(super) fn take_a_write(path: &Path, cx: &OpContext) -> Result<(), AdapterError> {
    stat_database(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(|e| open_error(path, e))?;
    conn.busy_timeout(BUSY_TIMEOUT).map_err(|e| open_error(path, e))?;
    let done = Patience::new(cx, path).retry(|| change_nothing(&conn))?;
    done.map_err(|e| {
        let kind = match kind_of(&e) {
            AdapterErrorKind::PermissionDenied if !others_may(path) => AdapterErrorKind::Other,
            kind => kind,
        };
        AdapterError::new(kind, format!("database `{}` takes no writes", path.display())).with_source(e)
    })
}

fn change_nothing(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute_batch("BEGIN IMMEDIATE")?;
    let changed = conn
        .query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))
        .and_then(|version| conn.pragma_update(None, "user_version", version))
        .and_then(|()| conn.execute_batch("COMMIT"));
    if changed.is_err() && !conn.is_autocommit() {
        // The first error tells more.
        let _second = conn.execute_batch("ROLLBACK");
    }
    changed
}

/// Whether somebody else may have the right to write: not if root has not, and not where the file system is read-only.
fn others_may(path: &Path) -> bool {
    let read_only = rustix::fs::statvfs(path).is_ok_and(|s| s.f_flag.contains(StatVfsMountFlags::RDONLY));
    !read_only && !rustix::process::geteuid().is_root()
}
