//! Shared by the tests of the `sqlite` adapter.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use backup_adapters::sqlite::Sqlite;
use backup_core::ServiceAdapter;
use backup_core::testkit::adapter_suite::{AdapterFixture, Bench, Captured};
use rusqlite::Connection;

/// A folder with a database `app.db` in it.
pub(crate) struct Db {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) path: PathBuf,
    pub(crate) bench: Bench,
}

/// Only contexts are wanted of the bench.
struct Unused;

#[async_trait]
impl AdapterFixture for Unused {
    fn adapter(&self) -> Arc<dyn ServiceAdapter> {
        unreachable!()
    }
    async fn mutate(&self) {}
    async fn live(&self) -> String {
        String::new()
    }
}

impl Db {
    /// A folder without a database yet.
    pub(crate) fn nowhere() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        Self { dir, path, bench: Bench::new(Unused) }
    }

    /// A database in `journal_mode` with `rows` rows of about 200 bytes in the table `log`.
    pub(crate) fn new(journal_mode: &str, rows: u64) -> Self {
        let db = Self::nowhere();
        let conn = db.connect();
        conn.pragma_update(None, "journal_mode", journal_mode).unwrap();
        conn.execute_batch("CREATE TABLE log (id INTEGER PRIMARY KEY, text TEXT)").unwrap();
        insert(&conn, rows);
        db
    }

    pub(crate) fn connect(&self) -> Connection {
        let conn = Connection::open(&self.path).unwrap();
        conn.busy_timeout(Duration::from_secs(20)).unwrap();
        conn.execute_batch("PRAGMA synchronous=OFF").unwrap();
        conn
    }

    pub(crate) fn adapter(&self) -> Sqlite {
        Sqlite::new(&self.path)
    }

    pub(crate) fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(suffix);
        name.into()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub(crate) fn rows(&self) -> u64 {
        rows(&self.path)
    }
}

/// Inserts rows in one transaction.
pub(crate) fn insert(conn: &Connection, rows: u64) {
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    for n in 0..rows {
        conn.execute("INSERT INTO log (text) VALUES (?1)", [format!("{n:0>200}")]).unwrap();
    }
    conn.execute_batch("COMMIT").unwrap();
}

pub(crate) fn rows(path: &Path) -> u64 {
    let conn = Connection::open(path).unwrap();
    u64::try_from(conn.query_row("SELECT count(*) FROM log", [], |r| r.get::<_, i64>(0)).unwrap()).unwrap()
}

/// The backup as a file of its own.
pub(crate) fn unpack(captured: &Captured, dir: &Path) -> PathBuf {
    let path = dir.join("unpacked.db");
    std::fs::write(&path, captured.bodies[0].1.concat()).unwrap();
    path
}

pub(crate) fn integrity(path: &Path) -> String {
    Connection::open(path).unwrap().query_row("PRAGMA integrity_check", [], |r| r.get(0)).unwrap()
}

/// Writes as fast as it can, one row per transaction, until it is stopped.
pub(crate) struct Hammer {
    stop: Arc<AtomicBool>,
    /// Rows committed so far.
    pub(crate) committed: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Hammer {
    pub(crate) fn start(conn: Connection) -> Self {
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = std::thread::spawn({
            let (stop, committed) = (Arc::clone(&stop), Arc::clone(&committed));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    conn.execute("INSERT INTO log (text) VALUES ('hammer')", []).unwrap();
                    committed.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        let hammer = Self { stop, committed, thread };
        hammer.wait_for(10);
        hammer
    }

    pub(crate) fn wait_for(&self, more: u64) {
        let goal = self.committed.load(Ordering::SeqCst) + more;
        while self.committed.load(Ordering::SeqCst) < goal {
            assert!(!self.thread.is_finished(), "the writer died");
            std::thread::yield_now();
        }
    }

    pub(crate) fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.committed.load(Ordering::SeqCst)
    }
}

/// What the ignored test `test` prints about `DATABASE` as a user who has no rights there but those that everybody has.
pub(crate) fn without_rights(test: &str, database: &Path) -> String {
    use std::os::unix::process::CommandExt as _;
    let mut program = std::env::current_exe().unwrap();
    let public = tempfile::tempdir().unwrap();
    if rustix::process::geteuid().is_root() {
        // Root may write everything, and others may not see where the program is.
        let copy = public.path().join("program");
        std::fs::copy(&program, &copy).unwrap();
        allow(public.path(), 0o755);
        program = copy;
    }
    let mut command = std::process::Command::new(program);
    command.args(["--exact", test, "--ignored", "--nocapture"]).env("DATABASE", database);
    if rustix::process::geteuid().is_root() {
        command.uid(65_534).gid(65_534);
    }
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

pub(crate) fn allow(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}
