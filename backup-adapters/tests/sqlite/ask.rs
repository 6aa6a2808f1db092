//! Questions to databases: what passes, what is refused, and that nothing changes.

use backup_core::testkit::adapter_suite::capture;
use backup_core::{AdapterErrorKind, RestoreTarget, ScratchHandle, ServiceAdapter, passes};

use crate::support::Db;

const TARGET: RestoreTarget = RestoreTarget::Live;

#[tokio::test]
async fn a_question_gets_its_first_value() {
    for mode in ["wal", "delete"] {
        let db = Db::new(mode, 20);
        db.connect().execute_batch("CREATE TABLE empty (x)").unwrap();
        let (adapter, cx, before) = (db.adapter(), db.bench.cx(), db.names());
        for (question, answer) in [
            ("SELECT count(*) FROM log", Some("20")),
            ("SELECT id, text FROM log ORDER BY id DESC; ", Some("20")),
            ("SELECT EXISTS (SELECT 1 FROM log)", Some("1")),
            ("SELECT count(*) FROM empty", Some("0")),
            ("SELECT x FROM empty", None),
            ("SELECT NULL", None),
            ("SELECT ''", Some("")),
            ("SELECT 0.0", Some("0")),
            ("SELECT x'00ff'", Some("x00ff")),
            ("PRAGMA user_version -- none was set", Some("0")),
        ] {
            let value = adapter.ask(&cx, &TARGET, question).await.unwrap();
            assert_eq!(value.as_deref(), answer, "{question}");
            assert_eq!(passes(value.as_deref()), matches!(answer, Some("20" | "1" | "x00ff")), "{question}");
        }
        assert_eq!(db.names(), before, "a question leaves no files");
    }
}

#[tokio::test]
async fn what_would_write_or_is_no_question_is_one_line() {
    let db = Db::new("wal", 20);
    let (adapter, cx) = (db.adapter(), db.bench.cx());
    for (question, kind, said) in [
        ("DELETE FROM log", AdapterErrorKind::InvalidConfig, "would change the database"),
        ("INSERT INTO log (text) VALUES ('x') RETURNING id", AdapterErrorKind::InvalidConfig, "would change"),
        ("VACUUM INTO 'elsewhere.db'", AdapterErrorKind::InvalidConfig, "would change"),
        ("PRAGMA journal_mode = delete", AdapterErrorKind::InvalidConfig, "would change"),
        ("SELECT 1; DELETE FROM log", AdapterErrorKind::Other, "Multiple statements"),
        ("SELEC count(*)\nFROM log", AdapterErrorKind::Other, "syntax error"),
        ("SELECT count(*) FROM orders", AdapterErrorKind::Other, "no such table: orders"),
    ] {
        let e = adapter.ask(&cx, &TARGET, question).await.unwrap_err();
        assert_eq!(e.kind(), kind, "{question}: {e}");
        assert!(e.to_string().contains(said) && !e.to_string().contains('\n'), "{question}: {e}");
    }
    assert_eq!(db.rows(), 20);
    assert!(!std::path::Path::new("elsewhere.db").exists());
    let mut soon = cx.limited_to(std::time::Duration::from_millis(300));
    let endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n";
    let e = adapter.ask(&soon, &TARGET, endless).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Timeout, "{e}");
    soon.deadline = None;
    soon.cancel.cancel();
    let e = adapter.ask(&soon, &TARGET, endless).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Cancelled, "{e}");
}

#[tokio::test]
async fn scratch_answers_as_the_backup_was() {
    let db = Db::new("wal", 20);
    let captured = capture(&db.adapter(), &db.bench.cx()).await.unwrap();
    db.connect().execute_batch("DELETE FROM log").unwrap();
    let (adapter, cx, dir) = (db.adapter(), db.bench.cx(), tempfile::tempdir().unwrap());
    let handle = ScratchHandle { dir: dir.path().join("scratch"), run_id: cx.run_id.clone() };
    let target = RestoreTarget::Scratch(handle);
    captured.restore(&adapter, &cx, &target).await.unwrap();
    let question = "SELECT count(*) FROM log";
    assert_eq!(adapter.ask(&cx, &target, question).await.unwrap().unwrap(), "20");
    assert_eq!(adapter.ask(&cx, &TARGET, question).await.unwrap().unwrap(), "0");
    assert!(adapter.ask(&cx, &target, "DELETE FROM log").await.is_err());
}
