//! Questions: SQL that only reads, of the live server and of what is restored into scratch.

use std::sync::Arc;

use backup_core::testkit::adapter_suite::{Captured, Damage, capture};
use backup_core::{AdapterErrorKind, OpContext, RestoreTarget, ScratchHandle, ServiceAdapter, chain, passes};

use crate::containers::{Container, yugabyte_image};
use crate::support::{CANARY, Cluster, adapter, bench};

const LIVE: RestoreTarget = RestoreTarget::Live;

/// What every server with the table `orders` of 3 rows in `app` says.
async fn answers(adapter: &dyn ServiceAdapter, cx: &OpContext, target: &RestoreTarget) {
    for (question, answer) in [
        ("app: SELECT count(*) FROM orders", Some("3")),
        ("app: SELECT id, note FROM orders ORDER BY id DESC;\n", Some("3")),
        ("app: WITH o AS (SELECT * FROM orders) SELECT EXISTS (SELECT 1 FROM o)", Some("true")),
        ("app: SELECT EXISTS (SELECT 1 FROM orders WHERE id > 9)", Some("false")),
        ("app: TABLE orders -- all of it", Some("1")),
        ("app: SELECT note FROM orders WHERE id = 1", Some("it's: \"one\"\nand two")),
        ("app: SELECT count(*) FROM orders WHERE id > 9", Some("0")),
        ("app: SELECT sum(price) FROM orders", Some("0.0")),
        ("app: SELECT id FROM orders WHERE id > 9", None),
        ("app: SELECT NULL", None),
        ("app: SELECT ''", Some("")),
        ("app: SELECT current_setting('transaction_read_only')", Some("on")),
    ] {
        let value = adapter.ask(cx, target, question).await;
        let value = value.unwrap_or_else(|e| panic!("{question}: {}", chain(&e)));
        assert_eq!(value.as_deref(), answer, "{question}");
        let nothing = answer.is_none_or(|a| ["", "0", "0.0", "false"].contains(&a));
        assert_eq!(passes(value.as_deref()), !nothing, "{question}");
    }
    for (question, said) in [
        ("app: DELETE FROM orders", "syntax error"),
        ("app: WITH gone AS (DELETE FROM orders RETURNING 1) SELECT count(*) FROM gone", "top level"),
        ("app: SELECT nextval('ticket')", "read-only transaction"),
        ("app: SELECT 1; DELETE FROM orders", "syntax error"),
        ("app: SELEC count(*)\nFROM orders", "syntax error"),
        ("app: SELECT count(*) FROM nothing", "\"nothing\" does not exist"),
        ("none: SELECT 1", "syntax error"),
    ] {
        let e = adapter.ask(cx, target, question).await.unwrap_err();
        let text = chain(&e);
        assert!(text.contains(said) && !text.contains('\n') && !text.contains(CANARY), "{question}: {text}");
        assert_ne!(e.kind(), AdapterErrorKind::Unsupported, "{question}: {text}");
    }
}

const ORDERS: &str = "CREATE TABLE orders (id int, note text, price numeric); CREATE SEQUENCE ticket;
    INSERT INTO orders SELECT g, E'it''s: \"one\"\\nand two', 0.0 FROM generate_series(1, 3) g";

async fn scratch(
    adapter: &Arc<dyn ServiceAdapter>,
    cx: &OpContext,
    captured: &Captured,
) -> (tempfile::TempDir, RestoreTarget, backup_core::StepToken) {
    let dir = tempfile::tempdir().unwrap();
    let handle = ScratchHandle { dir: dir.path().join("scratch"), run_id: cx.run_id.clone() };
    let target = RestoreTarget::Scratch(handle);
    let plan = adapter.plan_restore(cx, &captured.metadata, &target).await.unwrap();
    let staged = adapter.stage(cx, &plan, &captured.source(Damage::None)).await.unwrap();
    let switched = adapter.switch(cx, &plan, &staged).await.unwrap();
    (dir, target, switched)
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn queries_are_answered_live_and_in_scratch_and_change_nothing() {
    let server = Cluster::start(&[]);
    server.sql("postgres", "CREATE DATABASE app");
    server.sql("postgres", "CREATE TABLE here AS SELECT 7 AS x");
    server.sql("app", ORDERS);
    let adapter = server.adapter("user = 'pw'\npassword = { env = 'PW' }");
    let cx = bench().cx();
    let before = server.dump("app");
    answers(&*adapter, &cx, &LIVE).await;
    assert_eq!(adapter.ask(&cx, &LIVE, "SELECT x FROM here").await.unwrap().unwrap(), "7");
    assert_eq!(server.dump("app"), before);

    let captured = capture(&*adapter, &bench().cx()).await.unwrap();
    server.sql("app", "DELETE FROM orders");
    server.sql("postgres", "DROP TABLE here");
    server.sql("postgres", "CREATE DATABASE later");
    let changed = server.dump("app");
    let (_dir, target, switched) = scratch(&adapter, &cx, &captured).await;
    answers(&*adapter, &cx, &target).await;
    assert_eq!(adapter.ask(&cx, &target, "SELECT x FROM here").await.unwrap().unwrap(), "7");
    let e = adapter.ask(&cx, &target, "later: SELECT 1").await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::NotFound);
    assert!(e.to_string().contains("holds no database `later`"), "{e}");
    assert_eq!(server.dump("app"), changed);
    adapter.discard(&cx, &switched).await.unwrap();
    assert_eq!(server.databases(), ["app", "later", "postgres"]);

    // With one database there is no doubt which is meant.
    let one = server.adapter("user = 'postgres'\ndatabases = ['app']");
    assert_eq!(one.ask(&cx, &LIVE, "SELECT count(*) FROM orders").await.unwrap().unwrap(), "0");
    let captured = capture(&*one, &bench().cx()).await.unwrap();
    let cx = bench().cx();
    let (_dir, target, switched) = scratch(&one, &cx, &captured).await;
    assert_eq!(one.ask(&cx, &target, "SELECT count(*) FROM orders").await.unwrap().unwrap(), "0");
    one.discard(&cx, &switched).await.unwrap();
    let two = server.adapter("user = 'postgres'\ndatabases = ['app', 'later']");
    let captured = capture(&*two, &bench().cx()).await.unwrap();
    let cx = bench().cx();
    let (_dir, target, switched) = scratch(&two, &cx, &captured).await;
    let e = two.ask(&cx, &target, "SELECT 1").await.unwrap_err();
    assert!(e.to_string().contains("`postgres`") && e.to_string().contains("(app, later)"), "{e}");
    two.discard(&cx, &switched).await.unwrap();
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn an_answer_that_takes_too_long_is_given_up() {
    let server = Cluster::start(&[]);
    let adapter = server.adapter("user = 'postgres'");
    let cx = bench().cx().limited_to(std::time::Duration::from_secs(3));
    adapter.ask(&cx, &LIVE, "SELECT 1 FROM pg_sleep(60)").await.unwrap_err();
    let sleeping =
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND pid <> pg_backend_pid()";
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while server.sql("postgres", sleeping) != "0" {
        assert!(std::time::Instant::now() < until, "the server goes on");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn the_files_of_a_base_backup_have_no_server_in_scratch() {
    let server = Cluster::start(&[]);
    server.sql("postgres", "CREATE DATABASE app");
    server.sql("app", ORDERS);
    let adapter = server.adapter("user = 'postgres'\ncapture = 'basebackup'");
    let captured = capture(&*adapter, &bench().cx()).await.unwrap();
    let cx = bench().cx();
    answers(&*adapter, &cx, &LIVE).await;
    let (_dir, target, switched) = scratch(&adapter, &cx, &captured).await;
    let (_, answers) = adapter.probe_and_ask(&cx, &target, &["app: SELECT 1".to_owned()]).await.unwrap();
    let e = answers[0].as_ref().unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Unsupported);
    assert!(e.to_string().contains("base backup"), "{e}");
    adapter.discard(&cx, &switched).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn yugabytes_flavor_is_asked_likewise() {
    let container = Container::start(&yugabyte_image(), &[]);
    container.sql("yugabyte", "CREATE DATABASE app");
    container.sql("yugabyte", "CREATE TABLE here AS SELECT 7 AS x");
    container.sql("app", ORDERS);
    let keys = format!("container = '{}'\nflavor = 'yugabyte'\npassword = {{ env = 'PW' }}", container.name);
    let adapter = adapter(&keys);
    let cx = bench().cx();
    answers(&*adapter, &cx, &LIVE).await;
    assert_eq!(adapter.ask(&cx, &LIVE, "SELECT x FROM here").await.unwrap().unwrap(), "7");
    let captured = capture(&*adapter, &bench().cx()).await.unwrap();
    let (_dir, target, switched) = scratch(&adapter, &cx, &captured).await;
    answers(&*adapter, &cx, &target).await;
    assert_eq!(adapter.ask(&cx, &target, "SELECT x FROM here").await.unwrap().unwrap(), "7");
    adapter.discard(&cx, &switched).await.unwrap();
}
