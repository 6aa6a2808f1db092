//! Restores of databases: beside, over, back, and refused.

use std::io::{BufRead, BufReader, Lines};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;

use crate::support::{Db, insert, integrity, rows};
use backup_adapters::sqlite::{Sqlite, SqliteConfig};
use backup_core::testkit::adapter_suite::{Captured, Damage, capture};
use backup_core::{
    AdapterConfig, AdapterErrorKind, BuildContext, DiscoverContext, RestoreTarget, ServiceAdapter,
    ServiceName,
};
use rusqlite::Connection;

/// A backup of 10 rows, and what a crash left of the service since: 300 rows, most of them only in the `-wal`.
async fn crashed_since() -> (Db, Captured) {
    let old = Db::new("wal", 10);
    let captured = capture(&old.adapter(), &old.bench.cx()).await.unwrap();
    let writer = old.connect();
    insert(&writer, 290);
    let db = Db::nowhere();
    for suffix in ["", "-wal", "-shm"] {
        std::fs::copy(old.beside(suffix), db.beside(suffix)).unwrap();
    }
    (db, captured)
}

#[tokio::test]
async fn a_stale_wal_neither_damages_the_new_database_nor_is_lost() {
    let (db, captured) = crashed_since().await;
    let wal = std::fs::read(db.beside("-wal")).unwrap();
    let (adapter, cx) = (db.adapter(), db.bench.cx());
    let plan = adapter.plan_restore(&cx, &captured.metadata, &RestoreTarget::Live).await.unwrap();
    let replaced: Vec<_> = plan.replaces.iter().map(|r| r.kept_as.clone()).collect();
    let kept = |suffix: &str| format!("{}.backup.{}", db.beside(suffix).display(), cx.timestamp);
    assert_eq!(replaced, [kept("-wal"), kept("-shm"), kept("")]);

    let switched = captured.restore(&adapter, &cx, &RestoreTarget::Live).await.unwrap();
    assert!(!db.beside("-wal").exists());
    assert_eq!(std::fs::read(kept("-wal")).unwrap(), wal);
    assert_eq!((db.rows(), integrity(&db.path)), (10, "ok".into()));
    let left = adapter.leftovers(&cx, &switched).await.unwrap();
    assert_eq!(left.len(), 3, "{left:?}");

    adapter.undo(&db.bench.cx(), &switched).await.unwrap();
    assert_eq!(std::fs::read(db.beside("-wal")).unwrap(), wal);
    assert_eq!((db.rows(), integrity(&db.path)), (300, "ok".into()));
}

#[tokio::test]
async fn the_same_restore_twice_gives_the_same_and_keeps_both() {
    let (db, captured) = crashed_since().await;
    for expected in [10, 10] {
        captured.restore(&db.adapter(), &db.bench.cx(), &RestoreTarget::Live).await.unwrap();
        assert_eq!(db.rows(), expected);
    }
    let kept = db.names().iter().filter(|n| n.starts_with("app.db.backup.")).count();
    assert_eq!(kept, 2);
}

/// What [`Holder`] runs: not a test by itself.
#[test]
#[ignore = "run by other tests, as the process that uses a database"]
fn holder() {
    let Some(path) = std::env::var_os("HELD_DATABASE") else { return };
    let conn = Connection::open(path).unwrap();
    conn.query_row("SELECT count(*) FROM log", [], |_| Ok(())).unwrap();
    println!("\nholding");
    // Until the other end is closed.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
}

struct Holder {
    child: Child,
    /// The pipe stays open for what the harness says at the end.
    _lines: Lines<BufReader<ChildStdout>>,
}

impl Holder {
    fn of(path: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "restore::holder", "--ignored", "--nocapture"])
            .env("HELD_DATABASE", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|l| l.unwrap() == "holding"), "the holder did not come up");
        Self { child, _lines: lines }
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

#[tokio::test]
async fn a_database_that_another_process_uses_is_not_replaced() {
    let db = Db::new("wal", 10);
    let captured = capture(&db.adapter(), &db.bench.cx()).await.unwrap();
    insert(&db.connect(), 1);
    let (adapter, cx) = (db.adapter(), db.bench.cx());
    let plan = adapter.plan_restore(&cx, &captured.metadata, &RestoreTarget::Live).await.unwrap();
    let staged = adapter.stage(&cx, &plan, &captured.source(Damage::None)).await.unwrap();

    let holder = Holder::of(&db.path);
    let pid = holder.child.id();
    let planned = adapter.plan_restore(&cx, &captured.metadata, &RestoreTarget::Live).await.unwrap_err();
    // It came after the plan: the switch looks again.
    let switched = adapter.switch(&cx, &plan, &staged).await.unwrap_err();
    for error in [planned, switched] {
        assert_eq!(error.kind(), AdapterErrorKind::Conflict);
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("database `{}` is in use by pid {pid} (", db.path.display())),
            "{text}"
        );
    }
    let mut insisting = cx.clone();
    insisting.force = true;
    adapter.plan_restore(&insisting, &captured.metadata, &RestoreTarget::Live).await.unwrap();
    holder.end();

    assert_eq!(db.rows(), 11);
    let switched = adapter.switch(&cx, &plan, &staged).await.unwrap();
    assert_eq!(db.rows(), 10);

    let holder = Holder::of(&db.path);
    assert_eq!(adapter.undo(&db.bench.cx(), &switched).await.unwrap_err().kind(), AdapterErrorKind::Conflict);
    // The switch is done: asked again after a crash, it does not mind who uses the result.
    adapter.switch(&cx, &plan, &staged).await.unwrap();
    holder.end();
}

#[tokio::test]
async fn owner_and_mode_come_back() {
    let db = Db::new("delete", 10);
    let owner = if rustix::process::geteuid().is_root() { (12_345, 23_456) } else { ids(&db.path) };
    std::os::unix::fs::chown(&db.path, Some(owner.0), Some(owner.1)).unwrap();
    std::fs::set_permissions(&db.path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let captured = capture(&db.adapter(), &db.bench.cx()).await.unwrap();
    std::fs::remove_file(&db.path).unwrap();
    captured.restore(&db.adapter(), &db.bench.cx(), &RestoreTarget::Live).await.unwrap();
    assert_eq!(ids(&db.path), owner);
    assert_eq!(std::fs::metadata(&db.path).unwrap().mode() & 0o7777, 0o640);
    assert_eq!(db.rows(), 10);
}

fn ids(path: &Path) -> (u32, u32) {
    let meta = std::fs::metadata(path).unwrap();
    (meta.uid(), meta.gid())
}

#[tokio::test]
async fn a_lost_folder_is_made_again() {
    let db = Db::new("wal", 10);
    let captured = capture(&db.adapter(), &db.bench.cx()).await.unwrap();
    let elsewhere = db.dir.path().join("deep/down/app.db");
    captured.restore(&Sqlite::new(&elsewhere), &db.bench.cx(), &RestoreTarget::Live).await.unwrap();
    assert_eq!(rows(&elsewhere), 10);
}

#[tokio::test]
async fn a_symbolic_link_stays_one() {
    let db = Db::new("wal", 10);
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("link.db");
    std::os::unix::fs::symlink(&db.path, &link).unwrap();
    let captured = capture(&Sqlite::new(&link), &db.bench.cx()).await.unwrap();
    insert(&db.connect(), 5);
    captured.restore(&Sqlite::new(&link), &db.bench.cx(), &RestoreTarget::Live).await.unwrap();
    assert!(link.is_symlink());
    assert_eq!((rows(&link), db.rows()), (10, 10));
    // Also when what it points to is lost.
    std::fs::remove_file(&db.path).unwrap();
    captured.restore(&Sqlite::new(&link), &db.bench.cx(), &RestoreTarget::Live).await.unwrap();
    assert!(link.is_symlink());
    assert_eq!(db.rows(), 10);
}

#[tokio::test]
async fn a_directory_must_be_empty_and_gets_nothing_outside_itself() {
    let db = Db::new("delete", 10);
    let mut captured = capture(&db.adapter(), &db.bench.cx()).await.unwrap();
    let full = tempfile::tempdir().unwrap();
    std::fs::write(full.path().join("mine"), "").unwrap();
    let target = RestoreTarget::Dir(full.path().to_owned());
    let error = captured.restore(&db.adapter(), &db.bench.cx(), &target).await.unwrap_err();
    assert_eq!(error.kind(), AdapterErrorKind::Conflict);
    assert_eq!(error.to_string(), format!("directory `{}` is not empty", full.path().display()));

    let outer = tempfile::tempdir().unwrap();
    let inner = outer.path().join("in");
    for hostile in ["../../evil.db", "/etc/evil.db", ".."] {
        let metadata = Arc::make_mut(&mut captured.metadata);
        metadata.artifacts[0].attributes.insert("path".into(), hostile.into());
        let target = RestoreTarget::Dir(inner.clone());
        captured.restore(&db.adapter(), &db.bench.cx(), &target).await.unwrap();
        let made: Vec<_> = std::fs::read_dir(&inner).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(made.len(), 1, "{hostile}");
        assert_eq!(rows(&made[0]), 10);
        assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 1, "{hostile}");
        std::fs::remove_dir_all(&inner).unwrap();
    }
}

#[tokio::test]
async fn what_cannot_be_staged_leaves_nothing_behind() {
    let db = Db::new("delete", 5_000);
    let captured = capture(&db.adapter(), &db.bench.cx()).await.unwrap();
    let (adapter, cx) = (db.adapter(), db.bench.cx());
    let plan = adapter.plan_restore(&cx, &captured.metadata, &RestoreTarget::Live).await.unwrap();
    for damage in [Damage::Truncated, Damage::Flipped] {
        let error = adapter.stage(&cx, &plan, &captured.source(damage)).await.unwrap_err();
        assert_eq!(error.kind(), AdapterErrorKind::Corrupt);
    }
    // Damage that no hash knows of, because it was there before: SQLite's own check finds it.
    let mut torn = captured.clone();
    let mut bytes = torn.bodies[0].1.concat();
    bytes.copy_within(4096..8192, 40 * 4096);
    torn.bodies[0].1 = vec![bytes.into()];
    let error = adapter.stage(&cx, &plan, &torn.source(Damage::None)).await.unwrap_err();
    assert_eq!(error.kind(), AdapterErrorKind::Corrupt);

    let cancelled = db.bench.cx();
    cancelled.cancel.cancel();
    let error = adapter.stage(&cancelled, &plan, &captured.source(Damage::None)).await.unwrap_err();
    assert_eq!(error.kind(), AdapterErrorKind::Cancelled);
    assert_eq!(db.names(), ["app.db"]);
}

#[test]
fn the_configuration_is_one_path() {
    let cx = BuildContext::new(ServiceName::new("app").unwrap(), "/srv");
    let parse = |text: &str| toml::from_str::<SqliteConfig>(text);
    let adapter = parse("path = 'data/app.db'").unwrap().build(&cx).unwrap();
    assert!(format!("{adapter:?}").contains("/srv/data/app.db"));
    assert!(parse("path = ''").unwrap().build(&cx).is_err());
    assert!(parse("path = 'a'\npaht = 'b'").is_err());
    assert!(parse("").is_err());
}

#[test]
fn databases_are_discovered_by_their_content() {
    let dir = tempfile::tempdir().unwrap();
    let database = |path: &str| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
        path
    };
    let app = database("data/app.db");
    for path in ["var/app.db", "my notes", "covered.db", "stores/s.db"] {
        database(path);
    }
    for path in
        [".git/x.db", "node_modules/x.db", "target/x.db", ".cache/x.db", "app.db.backup.20260101_000000"]
    {
        database(path);
    }
    std::fs::write(dir.path().join("fake.db"), vec![0; 4096]).unwrap();
    std::fs::write(dir.path().join(".gitignore"), "data/").unwrap();

    let mut cx = DiscoverContext::new(dir.path());
    cx.covered.push(dir.path().join("covered.db"));
    cx.excluded.push(dir.path().join("stores"));
    let discovery = SqliteConfig::discover(&cx).unwrap();
    let mut found: Vec<_> = discovery
        .found
        .iter()
        .map(|d| (d.service.to_string(), d.settings["path"].as_str().unwrap().to_owned()))
        .collect();
    found.sort();
    let expected = [("app", "data/app.db"), ("app-2", "var/app.db"), ("my-notes", "my notes")];
    assert_eq!(found, expected.map(|(s, p)| (s.to_owned(), p.to_owned())));
    let wal = dir.path().join("data/app.db-wal");
    assert!(discovery.found.iter().any(|d| d.covers.contains(&app) && d.covers.contains(&wal)));
    assert!(discovery.left_out.is_empty(), "{:?}", discovery.left_out);
}
