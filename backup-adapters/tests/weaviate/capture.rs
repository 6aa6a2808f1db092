//! Captures: under writers, while collections come and go, beside another backup, with keys that see less.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use backup_core::testkit::adapter_suite::capture;
use backup_core::{AdapterErrorKind, ArtifactBody, ReadOutcome, RestoreTarget, ScratchHandle, chain};
use futures::StreamExt as _;
use serde_json::json;

use crate::support::{CANARY, Server, adapter, bench, docker, try_docker, until};

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_capture_holds_everything_and_leaves_nothing() {
    let server = Server::start().await;
    server.seed().await;
    let before = server.digest().await;
    let captured =
        capture(&*server.adapter(""), &bench().cx()).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    let evidence = &captured.report.evidence;
    for (name, count) in [
        ("collections", 2),
        ("tenants", 2),
        ("searchable", 3),
        ("objects.Doc", 300),
        ("objects.Ten", 90),
        ("objects.Ten.awake", 40),
        ("objects.Ten.asleep", 50),
    ] {
        assert_eq!(evidence.counts.get(name), Some(&count), "{name}: {evidence:?}");
    }
    assert!(evidence.counts_after.is_empty(), "{evidence:?}");
    assert_eq!(evidence.notes["dimensions.Doc"], "16");
    assert_eq!(evidence.notes["users"], "in the backup");
    assert!(evidence.notes["modules"].contains("backup-filesystem"));
    assert_eq!(captured.report.service_version.as_deref().map(|v| v.starts_with("1.")), Some(true));
    assert!(captured.report.image.is_some());
    assert_eq!(captured.report.warnings, Vec::<String>::new());
    server.assert_holds(&before, "the capture changed something").await;
    assert!(["COLD", "INACTIVE"].contains(&server.tenant("Ten", "asleep").await.as_str()));
    assert_eq!(server.backups().await, Vec::<String>::new());
    assert!(!format!("{captured:?}").contains(CANARY));
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn tenants_that_sleep_are_left_out_only_if_asked_for() {
    let server = Server::start().await;
    server.seed().await;
    let captured = capture(&*server.adapter("inactive_tenants = 'leave-out'"), &bench().cx()).await.unwrap();
    assert!(captured.report.warnings.iter().any(|w| w.contains("inactive tenants of `Ten`")));
    assert_eq!(captured.report.evidence.counts["objects.Ten"], 40);
    // More than a few are not loaded without being asked.
    let names: Vec<_> =
        (0..150).map(|n| json!({ "name": format!("more-{n}"), "activityStatus": "COLD" })).collect();
    server.call("POST", "/v1/schema/Ten/tenants", Some(json!(names))).await;
    let e = capture(&*server.adapter(""), &bench().cx()).await.unwrap_err();
    assert!(e.kind() == AdapterErrorKind::Conflict && chain(&e).contains("151 inactive"), "{}", chain(&e));
    let captured = capture(&*server.adapter("inactive_tenants = 'activate'"), &bench().cx()).await.unwrap();
    assert_eq!(captured.report.evidence.counts["objects.Ten.asleep"], 50);
    assert_eq!(captured.report.evidence.counts["tenants"], 152);
    assert_eq!(server.backups().await, Vec::<String>::new());
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn every_write_before_the_capture_is_in_the_backup() {
    let server = Arc::new(Server::start().await);
    server.seed().await;
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let mut writer = tokio::task::JoinSet::new();
    {
        let (server, stop, written) = (Arc::clone(&server), Arc::clone(&stop), Arc::clone(&written));
        writer.spawn(async move {
            let mut n = 10_000;
            while !stop.load(Ordering::SeqCst) {
                server.fill("Doc", None, n, n + 50, 16).await;
                n += 50;
                written.fetch_add(50, Ordering::SeqCst);
            }
        });
    }
    until("the writer", async || written.load(Ordering::SeqCst) >= 200).await;
    let acknowledged = u64::from(written.load(Ordering::SeqCst));
    let adapter = server.adapter("");
    let captured = capture(&*adapter, &bench().cx()).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    stop.store(true, Ordering::SeqCst);
    writer.join_next().await.unwrap().unwrap();
    let evidence = &captured.report.evidence;
    let (low, high) = (evidence.counts["objects.Doc"], evidence.counts_after["objects.Doc"]);
    assert!(low >= 300 + acknowledged && high > low, "{low} to {high}");
    let cx = bench().cx();
    let dir = tempfile::tempdir().unwrap();
    let target =
        RestoreTarget::Scratch(ScratchHandle { dir: dir.path().to_owned(), run_id: cx.run_id.clone() });
    let plan = adapter.plan_restore(&cx, &captured.metadata, &target).await.unwrap();
    let source = captured.source(backup_core::testkit::adapter_suite::Damage::None);
    let staged = adapter.stage(&cx, &plan, &source).await.unwrap();
    adapter.switch(&cx, &plan, &staged).await.unwrap();
    let found = adapter.probe(&cx, &target).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(evidence.contradictions(&found), Vec::<String>::new());
    assert!(found.counts["objects.Doc"] >= 300 + acknowledged);
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn collections_that_come_and_go_are_told() {
    let server = Server::start().await;
    server.seed().await;
    server.make_class("Gone", false).await;
    server.fill("Gone", None, 0, 20, 4).await;
    let mut parts = server.adapter("").open(&bench().cx()).await.unwrap().into_parts();
    let artifact = parts.artifacts.next().await.unwrap().unwrap_or_else(|e| panic!("{}", chain(&e)));
    let ArtifactBody::Stream(mut body) = artifact.body else { panic!() };
    while let Some(chunk) = body.next().await {
        chunk.unwrap_or_else(|e| panic!("{}", chain(&e)));
    }
    // The server's backup is done; what comes now is not in it.
    server.call("DELETE", "/v1/schema/Gone", None).await;
    server.make_class("Fresh", false).await;
    drop((body, parts.artifacts));
    let report = (parts.release)(ReadOutcome::Complete).await.unwrap();
    let warned = |what: &str| report.warnings.iter().any(|w| w.contains(what));
    assert!(
        warned("`Fresh` was made meanwhile") && warned("`Gone` was deleted meanwhile"),
        "{:?}",
        report.warnings
    );
    assert_eq!(
        (report.evidence.counts["objects.Gone"], report.evidence.counts_after["objects.Gone"]),
        (20, 0)
    );
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn its_files_are_read_while_the_server_is_at_work() {
    let server = Server::start().await;
    server.seed().await;
    for class in ["Big", "Large"] {
        let text = json!({ "name": "text", "dataType": ["text"], "indexFilterable": false, "indexSearchable": false });
        let schema = json!({ "class": class, "vectorizer": "none", "properties": [text] });
        server.call("POST", "/v1/schema", Some(schema)).await;
        for _ in 0..40 {
            let properties = json!({ "text": "x".repeat(1 << 20) });
            server
                .call("POST", "/v1/objects", Some(json!({ "class": class, "properties": properties })))
                .await;
        }
    }
    let mut early = 0;
    // One that is closed before its folder is watched is read in the end: so more than one try.
    for touched in [false, false, false, true, true, true] {
        let mut parts = server.adapter("").open(&bench().cx()).await.unwrap().into_parts();
        let artifact = parts.artifacts.next().await.unwrap().unwrap_or_else(|e| panic!("{}", chain(&e)));
        let path = format!("/v1/backups/filesystem/{}", artifact.attributes["backup_id"].as_str().unwrap());
        let ArtifactBody::Stream(mut body) = artifact.body else { panic!() };
        body.next().await.unwrap().unwrap_or_else(|e| panic!("{}", chain(&e)));
        let working = server.call("GET", &path, None).await["status"] != "SUCCESS";
        early += u32::from(working);
        if touched {
            let touch = "touch /var/lib/weaviate/backups/*/*/*/chunk-*";
            docker(&["exec", &server.name, "sh", "-c", touch]).await;
        }
        let mut rest = Ok(());
        while let Some(chunk) = body.next().await {
            rest = rest.and(chunk.map(drop));
        }
        drop((body, parts.artifacts));
        let outcome = if touched { ReadOutcome::Failed } else { ReadOutcome::Complete };
        let _report = (parts.release)(outcome).await.unwrap();
        if working || !touched {
            assert_eq!(rest.err().map(|e| e.kind()), touched.then_some(AdapterErrorKind::Changed));
        }
        assert_eq!(server.backups().await, Vec::<String>::new());
    }
    assert!(early > 0, "nothing came before the server was done");
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn another_backup_is_waited_for() {
    let server = Server::start().await;
    server.seed().await;
    server.call("POST", "/v1/backups/filesystem", Some(json!({ "id": "by-hand" }))).await;
    let captured =
        capture(&*server.adapter(""), &bench().cx()).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(captured.report.evidence.counts["objects.Doc"], 300);
    // What is not ours stays.
    assert_eq!(server.backups().await, ["by-hand"]);
    // Without the time for that, the other one is named.
    server.call("POST", "/v1/backups/filesystem", Some(json!({ "id": "by-hand-2" }))).await;
    let mut cx = bench().cx();
    cx.deadline = Some(tokio::time::Instant::now() + Duration::from_millis(1500));
    let e = capture(&*server.adapter(""), &cx).await.unwrap_err();
    assert!(matches!(e.kind(), AdapterErrorKind::Conflict | AdapterErrorKind::Timeout), "{}", chain(&e));
    println!("{}", chain(&e));
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn keys_that_see_less_are_refused() {
    let server = Server::start().await;
    server.seed().await;
    for (key, says) in [("view", "manage_backups"), ("part", "read_collections"), ("wrong", "API key")] {
        let adapter = adapter(&format!("container = '{}'\napi_key = {{ env = '{key}' }}", server.name));
        let cx = bench().cx();
        for e in [adapter.check(&cx).await.unwrap_err(), adapter.open(&cx).await.unwrap_err()] {
            assert_eq!(e.kind(), AdapterErrorKind::PermissionDenied, "{key}: {}", chain(&e));
            assert!(chain(&e).contains(says), "{key}: {}", chain(&e));
        }
    }
    let adapter = adapter(&format!("container = '{}'", server.name));
    assert_eq!(adapter.check(&bench().cx()).await.unwrap_err().kind(), AdapterErrorKind::PermissionDenied);
    server.adapter("").check(&bench().cx()).await.unwrap();
    assert_eq!(server.backups().await, Vec::<String>::new());
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_server_without_the_module_says_what_to_set() {
    let server = Server::with(&["-e", "ENABLE_MODULES="]).await;
    let e = server.adapter("capture = 'backup'").check(&bench().cx()).await.unwrap_err();
    assert!(
        e.kind() == AdapterErrorKind::Unsupported && chain(&e).contains("ENABLE_MODULES"),
        "{}",
        chain(&e)
    );
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_backup_folder_that_this_host_does_not_see_is_read_in_the_container() {
    // In no volume at all: only programs in the container reach it.
    let server = Server::with(&["-e", "BACKUP_FILESYSTEM_PATH=/backups"]).await;
    server.seed().await;
    let captured =
        capture(&*server.adapter(""), &bench().cx()).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(captured.report.evidence.counts["objects.Doc"], 300);
    assert_eq!(docker(&["exec", &server.name, "ls", "-A", "/backups"]).await, "");
    let (_, text) = try_docker(&["exec", &server.name, "ls", "-A", "/var/lib/weaviate"]).await;
    assert!(!text.contains("backups"), "{text}");
}
