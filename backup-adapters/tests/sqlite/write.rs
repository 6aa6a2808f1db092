//! Whether a database takes writes: what is found out leaves no trace.

use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use crate::disk::Disk;
use crate::support::{Db, allow, insert, integrity, rows, without_rights};
use backup_adapters::sqlite::Sqlite;
use backup_core::{AdapterErrorKind, ServiceAdapter, chain};
use rusqlite::Connection;

fn number(conn: &Connection, query: &str) -> i64 {
    conn.query_row(query, [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn a_write_is_made_and_nothing_of_it_is_seen() {
    for mode in ["wal", "delete"] {
        let db = Db::new(mode, 20);
        db.connect().execute_batch("PRAGMA user_version = 7").unwrap();
        let (names, schema) = (db.names(), number(&db.connect(), "PRAGMA schema_version"));
        assert!(db.adapter().prove_writable(&db.bench.cx()).await.unwrap());
        assert_eq!(db.names(), names, "{mode}: files are left");

        // An application is at work, and sees that somebody has committed.
        let app = db.connect();
        let before = number(&app, "PRAGMA data_version");
        assert!(db.adapter().prove_writable(&db.bench.cx()).await.unwrap());
        assert_ne!(number(&app, "PRAGMA data_version"), before, "{mode}: nothing was written");
        assert_eq!(number(&app, "PRAGMA user_version"), 7, "{mode}");
        assert_eq!(number(&app, "PRAGMA schema_version"), schema, "{mode}");
        insert(&app, 1);
        drop(app);
        assert_eq!((db.rows(), integrity(&db.path)), (21, "ok".into()), "{mode}");
        assert_eq!(db.names(), names, "{mode}");
    }
}

#[tokio::test]
async fn a_lock_that_stays_is_told_and_one_that_goes_is_waited_for() {
    let db = Db::new("delete", 20);
    let writer = db.connect();
    writer.execute_batch("BEGIN IMMEDIATE; INSERT INTO log (text) VALUES ('half done')").unwrap();
    let cx = db.bench.cx().limited_to(Duration::from_millis(500));
    let e = db.adapter().prove_writable(&cx).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Timeout, "{}", chain(&e));
    assert!(e.to_string().contains("stayed locked by another connection"), "{e}");

    // A reader keeps the commit out, until it has read.
    writer.execute_batch("ROLLBACK").unwrap();
    let reader = db.connect();
    reader.execute_batch("BEGIN").unwrap();
    number(&reader, "SELECT count(*) FROM log");
    let ends = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        drop(reader);
    });
    assert!(db.adapter().prove_writable(&db.bench.cx()).await.unwrap());
    ends.join().unwrap();
    assert_eq!((db.rows(), db.names()), (20, vec!["app.db".to_owned()]));
}

#[tokio::test]
async fn what_is_no_database_takes_no_writes() {
    let db = Db::nowhere();
    let e = db.adapter().prove_writable(&db.bench.cx()).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::NotFound, "{}", chain(&e));
    assert_eq!(db.names(), Vec::<String>::new());
    std::fs::write(&db.path, [b'x'; 4096]).unwrap();
    let e = db.adapter().prove_writable(&db.bench.cx()).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Corrupt, "{}", chain(&e));
}

/// What [`others_may_have_the_right_that_we_lack`] runs: not a test by itself.
#[tokio::test]
#[ignore = "run by another test, as a user who may not write"]
async fn writer_without_rights() {
    let Some(path) = std::env::var_os("DATABASE") else { return };
    let e = Sqlite::new(path).prove_writable(&Db::nowhere().bench.cx()).await.unwrap_err();
    println!("\n{:?}: {e}", e.kind());
}

#[test]
fn others_may_have_the_right_that_we_lack() {
    for (mode, file, folder) in [("wal", 0o444, 0o555), ("delete", 0o444, 0o555), ("delete", 0o666, 0o555)] {
        let db = Db::new(mode, 20);
        allow(&db.path, file);
        allow(db.dir.path(), folder);
        let output = without_rights("write::writer_without_rights", &db.path);
        allow(db.dir.path(), 0o755);
        let expected = format!("\nPermissionDenied: database `{}` takes no writes", db.path.display());
        assert!(output.contains(&expected), "{mode} {file:o}: {output}");
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_disk_that_is_full_or_read_only_takes_no_writes() {
    for mode in ["wal", "delete"] {
        let disk = Disk::tmpfs();
        let path = disk.path().join("app.db");
        let source = Db::new(mode, 20);
        std::fs::copy(&source.path, &path).unwrap();
        let remount = |option: &str| {
            let mut mount = Command::new("mount");
            mount.args(["-o", &format!("remount,{option}")]).arg(disk.path());
            assert!(mount.status().unwrap().success(), "{option}");
        };
        remount("size=1m");
        let mut fill = std::fs::File::create(disk.path().join("fill")).unwrap();
        while fill.write_all(&[0; 512]).is_ok() {}
        drop(fill);
        let (adapter, cx) = (Sqlite::new(&path), source.bench.cx());
        let full = adapter.prove_writable(&cx).await.unwrap_err();
        // That is no lack of a right of ours, which would be let pass.
        assert_ne!(full.kind(), AdapterErrorKind::PermissionDenied, "{mode}: {}", chain(&full));
        println!("{mode}: {}", chain(&full));

        std::fs::remove_file(disk.path().join("fill")).unwrap();
        assert!(adapter.prove_writable(&cx).await.unwrap());
        remount("ro");
        let e = adapter.prove_writable(&cx).await.unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::Other, "{mode}: {}", chain(&e));
        assert!(e.to_string().contains("takes no writes"), "{mode}: {}", chain(&e));
        remount("rw");
        assert_eq!(rows(&path), 20);
        let names = std::fs::read_dir(disk.path()).unwrap().count();
        assert_eq!(names, 1, "{mode}: files are left");
    }
}
