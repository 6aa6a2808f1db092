//! Captures of databases that are written while they are copied.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::{Db, Hammer, allow, insert, integrity, rows, unpack, without_rights};
use backup_core::testkit::adapter_suite::{Damage, capture};
use backup_core::{AdapterErrorKind, CheckPurpose, RestoreTarget, ServiceAdapter, chain};
use futures::StreamExt;
use rusqlite::Connection;
use tokio::time::Instant;

async fn capture_under_load(journal_mode: &str) -> (Db, backup_core::testkit::adapter_suite::Captured) {
    // Some 25 MB: several steps, so that the writer comes between them.
    let db = Db::new(journal_mode, 100_000);
    let hammer = Hammer::start(db.connect());
    let before = 100_000 + hammer.committed.load(Ordering::SeqCst);
    let captured = capture(&db.adapter(), &db.bench.cx()).await.unwrap();
    hammer.wait_for(10);
    let after = 100_000 + hammer.stop();

    let copy = unpack(&captured, db.dir.path());
    assert_eq!(integrity(&copy), "ok");
    let found = rows(&copy);
    assert!((before..=after).contains(&found), "{found} rows, not {before} to {after}");
    assert_eq!(captured.metadata.evidence.counts["rows.log"], found);
    (db, captured)
}

#[tokio::test]
async fn a_writer_in_wal_mode_is_never_locked_out() {
    let (_db, captured) = capture_under_load("wal").await;
    assert_eq!(captured.report.lock_ms, 0);
    assert!(captured.report.warnings.is_empty(), "{:?}", captured.report.warnings);
}

#[tokio::test]
async fn a_writer_in_rollback_mode_cannot_starve_the_copy() {
    capture_under_load("delete").await;
}

#[tokio::test]
async fn rows_that_are_only_in_the_wal_are_in_the_backup() {
    let db = Db::new("wal", 0);
    let writer = db.connect();
    writer.execute_batch("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA wal_autocheckpoint=0").unwrap();
    insert(&writer, 5_000);

    // The trap: a copy of the file alone.
    let copy = db.dir.path().join("cp.db");
    std::fs::copy(&db.path, &copy).unwrap();
    assert_eq!(rows(&copy), 0);

    let captured = capture(&db.adapter(), &db.bench.cx()).await.unwrap();
    assert_eq!(rows(&unpack(&captured, db.dir.path())), 5_000);
    assert_eq!(captured.metadata.evidence.notes["journal_mode"], "wal");
}

#[tokio::test]
async fn nothing_is_left_beside_an_idle_database() {
    for mode in ["wal", "delete"] {
        let db = Db::new(mode, 10);
        assert_eq!(db.names(), ["app.db"]);
        let before = std::fs::read(&db.path).unwrap();
        capture(&db.adapter(), &db.bench.cx()).await.unwrap();
        assert_eq!(db.names(), ["app.db"], "{mode}");
        assert_eq!(std::fs::read(&db.path).unwrap(), before, "{mode}");
    }
}

#[tokio::test]
async fn a_wal_that_a_crash_left_is_read_and_stays() {
    let db = Db::new("wal", 0);
    let writer = db.connect();
    insert(&writer, 100);
    let crashed = Db::nowhere();
    for suffix in ["", "-wal"] {
        std::fs::copy(db.beside(suffix), crashed.beside(suffix)).unwrap();
    }
    let before = std::fs::read(crashed.beside("-wal")).unwrap();
    let captured = capture(&crashed.adapter(), &crashed.bench.cx()).await.unwrap();
    assert_eq!(captured.metadata.evidence.counts["rows.log"], 100);
    assert_eq!(std::fs::read(crashed.beside("-wal")).unwrap(), before);
}

#[tokio::test]
async fn a_hot_journal_is_played_back() {
    let db = Db::new("delete", 5_000);
    let writer = db.connect();
    // A cache of a few pages, so that the transaction spills into the file before it is committed.
    writer
        .execute_batch("PRAGMA synchronous=FULL; PRAGMA cache_size=5; BEGIN; UPDATE log SET text = 'torn'")
        .unwrap();
    let crashed = Db::nowhere();
    for suffix in ["", "-journal"] {
        std::fs::copy(db.beside(suffix), crashed.beside(suffix)).unwrap();
    }
    writer.execute_batch("ROLLBACK").unwrap();
    let captured = capture(&crashed.adapter(), &crashed.bench.cx()).await.unwrap();
    let copy = Connection::open(unpack(&captured, crashed.dir.path())).unwrap();
    let torn =
        copy.query_row("SELECT count(*) FROM log WHERE text = 'torn'", [], |r| r.get::<_, i64>(0)).unwrap();
    assert_eq!(torn, 0);
    assert_eq!(captured.metadata.evidence.counts["rows.log"], 5_000);
}

#[tokio::test]
async fn vacuum_and_schema_changes_do_not_harm_the_copy() {
    for mode in ["wal", "delete"] {
        let db = Db::new(mode, 20_000);
        let conn = db.connect();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let vacuum = std::thread::spawn({
            let stop = std::sync::Arc::clone(&stop);
            move || {
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    conn.execute_batch(&format!("CREATE TABLE t{n} (x); VACUUM; DROP TABLE t{n}; VACUUM"))
                        .unwrap();
                }
            }
        });
        for _ in 0..5 {
            let captured = capture(&db.adapter(), &db.bench.cx()).await.unwrap();
            let copy = unpack(&captured, db.dir.path());
            assert_eq!(integrity(&copy), "ok", "{mode}");
            assert_eq!(rows(&copy), 20_000, "{mode}");
        }
        stop.store(true, Ordering::Relaxed);
        vacuum.join().unwrap();
    }
}

#[tokio::test]
async fn a_lock_that_stays_is_a_timeout_and_does_no_harm() {
    let db = Db::new("delete", 10);
    let holder = db.connect();
    holder.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let mut cx = db.bench.cx();
    cx.deadline = Some(Instant::now() + Duration::from_millis(300));
    let error = db.adapter().open(&cx).await.unwrap_err();
    assert_eq!(error.kind(), AdapterErrorKind::Timeout);
    let expected = format!(
        "database `{}` stayed locked by another connection until the time budget was used up",
        db.path.display()
    );
    assert_eq!(error.to_string(), expected);
    assert_eq!(std::fs::read_dir(&cx.spool).unwrap().count(), 0);
    holder.execute_batch("INSERT INTO log (text) VALUES ('x'); COMMIT").unwrap();
    assert_eq!(db.rows(), 11);
}

#[tokio::test]
async fn a_lock_that_goes_is_waited_for() {
    let db = Db::new("delete", 10);
    let holder = db.connect();
    holder.execute_batch("BEGIN EXCLUSIVE; INSERT INTO log (text) VALUES ('x')").unwrap();
    let (adapter, cx) = (db.adapter(), db.bench.cx());
    let mut capturing = std::pin::pin!(capture(&adapter, &cx));
    // Still at it after some busy timeouts.
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut capturing).await.is_err());
    holder.execute_batch("COMMIT").unwrap();
    assert_eq!(capturing.await.unwrap().metadata.evidence.counts["rows.log"], 11);
}

#[tokio::test]
async fn what_is_no_database_is_named() {
    let db = Db::nowhere();
    let shown = db.path.display().to_string();
    let error = async || {
        let (checked, opened) =
            (db.adapter().check(&db.bench.cx()).await, db.adapter().open(&db.bench.cx()).await);
        let (checked, opened) = (checked.unwrap_err(), opened.unwrap_err());
        assert_eq!((checked.kind(), checked.to_string()), (opened.kind(), opened.to_string()));
        assert!(!chain(&opened).contains('\n'));
        (opened.kind(), opened.to_string())
    };
    assert_eq!(error().await, (AdapterErrorKind::NotFound, format!("database `{shown}` does not exist")));
    assert!(!db.path.exists(), "the database was created");

    std::fs::create_dir(&db.path).unwrap();
    let message = format!("`{shown}` is a directory, not a SQLite database");
    assert_eq!(error().await, (AdapterErrorKind::InvalidConfig, message));
    std::fs::remove_dir(&db.path).unwrap();

    let message = format!("`{shown}` is not a SQLite database, or it is encrypted");
    for garbage in [b"hello".to_vec(), vec![0x5a; 8192]] {
        std::fs::write(&db.path, &garbage).unwrap();
        assert_eq!(error().await, (AdapterErrorKind::Corrupt, message.clone()));
        assert_eq!(std::fs::read(&db.path).unwrap(), garbage);
    }
}

#[tokio::test]
async fn an_empty_file_is_an_empty_database() {
    let db = Db::nowhere();
    std::fs::write(&db.path, "").unwrap();
    db.adapter().check(&db.bench.cx()).await.unwrap();
    let captured = capture(&db.adapter(), &db.bench.cx()).await.unwrap();
    assert_eq!(captured.metadata.evidence.counts["tables"], 0);
    assert_eq!(integrity(&unpack(&captured, db.dir.path())), "ok");
    assert_eq!(std::fs::metadata(&db.path).unwrap().len(), 0);
}

#[tokio::test]
async fn a_damaged_source_never_becomes_a_backup() {
    let db = Db::new("delete", 5_000);
    let mut bytes = std::fs::read(&db.path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 8192].fill(0xa5);
    std::fs::write(&db.path, bytes).unwrap();
    let error = capture(&db.adapter(), &db.bench.cx()).await.unwrap_err();
    assert_eq!(error.kind(), AdapterErrorKind::Corrupt, "{}", chain(&error));
    assert!(error.to_string().contains("table `log`"), "{error}");
}

#[tokio::test]
async fn odd_tables_are_counted_or_left_out() {
    let db = Db::new("delete", 3);
    db.connect()
        .execute_batch(
            "CREATE TABLE \"say \"\"hi\"\"\" (x); INSERT INTO \"say \"\"hi\"\"\" VALUES (1);
             CREATE TABLE kv (k TEXT PRIMARY KEY, v) WITHOUT ROWID; INSERT INTO kv VALUES ('a', 1);
             CREATE VIEW v AS SELECT * FROM kv; CREATE TABLE auto (id INTEGER PRIMARY KEY AUTOINCREMENT);
             CREATE VIRTUAL TABLE words USING fts5(text); INSERT INTO words VALUES ('x');
             PRAGMA user_version = 7",
        )
        .unwrap();
    let evidence = capture(&db.adapter(), &db.bench.cx()).await.unwrap().metadata.evidence.clone();
    let counts: Vec<_> = evidence.counts.iter().map(|(k, &v)| (k.as_str(), v)).collect();
    let expected = [("rows.auto", 0), ("rows.kv", 1), ("rows.log", 3), ("rows.say \"hi\"", 1), ("tables", 5)];
    assert_eq!(counts, expected);
    assert_eq!(evidence.notes["user_version"], "7");

    let held = db.adapter().data(&db.bench.cx()).await.unwrap();
    assert_eq!(held.counts.into_iter().filter(|(_, n)| *n > 0).count(), 3, "tables are no data, rows are");
    let all = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 150000)
               INSERT INTO auto SELECT i FROM n";
    db.connect().execute_batch(all).unwrap();
    let held = db.adapter().data(&db.bench.cx()).await.unwrap();
    assert_eq!(held.counts["rows_at_least.auto"], 100_000, "{held:?}");
}

#[tokio::test]
async fn a_symbolic_link_is_followed_to_the_database_and_its_wal() {
    let db = Db::new("wal", 0);
    let writer = db.connect();
    insert(&writer, 10);
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("link.db");
    std::os::unix::fs::symlink(&db.path, &link).unwrap();
    let adapter = backup_adapters::sqlite::Sqlite::new(&link);
    let captured = capture(&adapter, &db.bench.cx()).await.unwrap();
    assert_eq!(captured.metadata.evidence.counts["rows.log"], 10);
    assert_eq!(captured.metadata.artifacts[0].attributes["path"], db.path.to_str().unwrap());
    adapter.probe(&db.bench.cx(), &RestoreTarget::Live).await.unwrap();
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn the_check_finds_what_the_header_does_not_tell() {
    let db = Db::new("delete", 5_000);
    let captured = capture(&db.adapter(), &db.bench.cx()).await.unwrap();
    let artifact = &captured.metadata.artifacts[0];
    let verify = |bytes: &[u8], purpose: &CheckPurpose| {
        let mut check = db.adapter().content_check(purpose, artifact).unwrap();
        bytes.chunks(10_000).try_for_each(|c| check.update(c)).and_then(|()| check.finish())
    };
    let spool = tempfile::tempdir().unwrap();
    let deep = CheckPurpose::Verify { spool: spool.path().to_owned() };
    let good = captured.bodies[0].1.concat();
    assert_eq!(verify(&good, &deep).unwrap().counts, captured.metadata.evidence.counts);

    // Whole pages of the right length, one of them from elsewhere: only SQLite itself can tell.
    let mut swapped = good.clone();
    let middle = swapped.len() / 2 / 4096 * 4096;
    swapped.copy_within(4096..8192, middle);
    assert!(verify(&swapped, &CheckPurpose::Capture).is_ok());
    let error = verify(&swapped, &deep).unwrap_err();
    assert_eq!(error.kind(), AdapterErrorKind::Corrupt);
    assert!(error.to_string().contains("integrity check"), "{error}");

    for cut in [0, 50, 4096, good.len() - 4096, good.len() - 1] {
        assert_eq!(
            verify(&good[..cut], &CheckPurpose::Capture).unwrap_err().kind(),
            AdapterErrorKind::Corrupt
        );
    }
    assert_eq!(std::fs::read_dir(spool.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn the_commands_by_hand_give_the_database() {
    let db = Db::new("wal", 100);
    let captured = capture(&db.adapter(), &db.bench.cx()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut body = captured.source(Damage::None).open(&captured.bodies[0].0).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(chunk) = body.next().await {
        bytes.extend_from_slice(&chunk.unwrap());
    }
    std::fs::write(dir.path().join(&captured.metadata.artifacts[0].files[0].path), bytes).unwrap();
    let steps = db.adapter().by_hand(&backup_core::HandContext { metadata: &captured.metadata });
    // The database of that time is in use, and its log is not empty: neither is lost, and neither spoils the new one.
    let conn = db.connect();
    conn.execute_batch("PRAGMA wal_autocheckpoint=0").unwrap();
    insert(&conn, 5);
    std::mem::forget(conn);
    assert!(std::fs::metadata(db.beside("-wal")).unwrap().len() > 0);
    for step in &steps {
        let title = step.text.lines().next().unwrap();
        assert!(title.len() <= 60, "a heading, not a paragraph: {title}");
        if step.command.contains("sqlite3") && !has_sqlite3() {
            continue;
        }
        let done = std::process::Command::new("bash")
            .args(["-ec", &step.command])
            .current_dir(dir.path())
            .status()
            .unwrap();
        assert!(done.success(), "{}", step.command);
    }
    assert_eq!(rows(&dir.path().join("restored.sqlite")), 100);
    assert_eq!((db.rows(), integrity(&db.path)), (100, "ok".to_owned()));
    assert_eq!(rows(&db.beside(".old")), 105, "the old one is whole, too");
}

fn has_sqlite3() -> bool {
    std::process::Command::new("sqlite3").arg("-version").output().is_ok()
}

/// What [`a_folder_that_may_not_be_written_is_no_obstacle_where_it_need_not_be`] runs: not a test by itself.
#[tokio::test]
#[ignore = "run by another test, as a user who may not write the folder"]
async fn reader_without_rights() {
    let Some(path) = std::env::var_os("DATABASE") else { return };
    let db = Db::nowhere();
    match capture(&backup_adapters::sqlite::Sqlite::new(path), &db.bench.cx()).await {
        Ok(captured) => println!("\nrows: {}", captured.metadata.evidence.counts["rows.log"]),
        Err(e) => println!("\n{:?}: {e}", e.kind()),
    }
}

#[test]
fn a_folder_that_may_not_be_written_is_no_obstacle_where_it_need_not_be() {
    for mode in ["wal", "delete"] {
        let db = Db::new(mode, 10);
        allow(&db.path, 0o444);
        allow(db.dir.path(), 0o555);
        let output = without_rights("capture::reader_without_rights", &db.path);
        assert!(output.contains("\nrows: 10\n"), "{mode}: {output}");
        allow(db.dir.path(), 0o755);
    }
    // With a log that cannot be read without a `-shm`, the missing right is named.
    let old = Db::new("wal", 10);
    let writer = old.connect();
    insert(&writer, 5);
    let db = Db::nowhere();
    for suffix in ["", "-wal"] {
        std::fs::copy(old.beside(suffix), db.beside(suffix)).unwrap();
        allow(&db.beside(suffix), 0o444);
    }
    allow(db.dir.path(), 0o555);
    let output = without_rights("capture::reader_without_rights", &db.path);
    let expected = format!("\nPermissionDenied: cannot read database `{}`: that needs", db.path.display());
    assert!(output.contains(&expected), "{output}");
    allow(db.dir.path(), 0o755);
}
