//! A server that keeps its backups in a bucket.

use std::time::{Duration, Instant};

use backup_core::testkit::adapter_suite::capture;
use backup_core::{AdapterErrorKind, ReadOutcome, RestoreTarget, ScratchHandle, chain};
use futures::StreamExt as _;

use crate::support::storage::{ID, SECRET, Storage};
use crate::support::{CANARY, Server, bench, docker, later, staged, until};

/// Nothing may show a key.
fn assert_secret(text: &str) {
    assert!([CANARY, ID, SECRET].iter().all(|key| !text.contains(key)), "{text}");
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_backup_by_way_of_a_bucket_needs_none_to_be_restored() {
    let storage = Storage::start().await;
    let server = storage.server().await;
    server.seed().await;
    server.make_class("Wide", false).await;
    server.fill("Wide", None, 0, 500, 768).await;
    storage.put("some/where/neighbour/backup.json").await;
    storage.put("elsewhere").await;
    let before = server.digest().await;
    let adapter = server.adapter("");
    adapter.check(&bench().cx()).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    let captured = capture(&*adapter, &bench().cx()).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(captured.report.mode, "s3");
    assert_eq!(captured.report.warnings, Vec::<String>::new());
    assert_eq!(captured.report.evidence.counts["objects.Ten.asleep"], 50);
    assert_eq!(captured.report.evidence.notes["users"], "in the backup");
    assert_secret(&format!("{adapter:?} {captured:?}"));
    server.assert_holds(&before, "the capture changed something").await;
    assert_eq!(storage.objects().await, ["elsewhere", "some/where/neighbour/backup.json"]);
    // The bucket is gone, and so is what the server held.
    drop(storage);
    let cx = bench().cx();
    let dir = tempfile::tempdir().unwrap();
    let target =
        RestoreTarget::Scratch(ScratchHandle { dir: dir.path().to_owned(), run_id: cx.run_id.clone() });
    captured.restore(&*adapter, &cx, &target).await.unwrap();
    let found = adapter.probe(&cx, &target).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    let differences = captured.metadata.evidence.contradictions(&found);
    assert!(differences.is_empty(), "{differences:?}");
    for class in ["Doc", "Wide"] {
        server.call("DELETE", &format!("/v1/schema/{class}"), None).await;
    }
    let lost = server.digest().await;
    let cx = bench().cx();
    let (plan, token) = staged(&*adapter, &cx, &captured).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    let switched = adapter.switch(&cx, &plan, &token).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    server.assert_holds(&before, "restored").await;
    let later = later(&cx);
    let undone = adapter.undo(&later, &switched).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    server.assert_holds(&lost, "undone").await;
    adapter.discard(&later, &undone).await.unwrap();
}

async fn assert_refused(server: &Server, keys: &str, kind: AdapterErrorKind, says: &str) {
    let adapter = server.adapter(keys);
    let cx = bench().cx();
    let began = Instant::now();
    for e in [adapter.check(&cx).await.unwrap_err(), adapter.open(&cx).await.unwrap_err()] {
        let text = chain(&e);
        assert!(e.kind() == kind && text.contains(says) && !text.contains('\n'), "{text}");
        assert_secret(&text);
    }
    assert!(began.elapsed() < Duration::from_secs(60), "{says}: it took {:?}", began.elapsed());
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_bucket_that_cannot_be_used_is_told_before_anything_is_begun() {
    let storage = Storage::start().await;
    let server = storage.server().await;
    server.seed().await;
    let keys = |id: &str, secret: &str| {
        format!("s3.access_key = {{ env = '{id}' }}\ns3.secret_key = {{ env = '{secret}' }}")
    };
    assert_refused(&server, &keys("nobody", SECRET), AdapterErrorKind::PermissionDenied, "`s3.access_key`")
        .await;
    assert_refused(
        &server,
        &keys(ID, "wrong"),
        AdapterErrorKind::PermissionDenied,
        "(SignatureDoesNotMatch)",
    )
    .await;
    let nowhere = "s3.endpoint = 'http://127.0.0.1:9'";
    assert_refused(&server, nowhere, AdapterErrorKind::Unavailable, "http://127.0.0.1:9").await;
    let folder = "backend = 'filesystem'";
    assert_refused(&server, folder, AdapterErrorKind::Unsupported, "backup-filesystem").await;
    docker(&["exec", &storage.name, "rm", "-rf", "/data/vectors"]).await;
    assert_refused(&server, "", AdapterErrorKind::NotFound, "bucket `vectors` at").await;
    docker(&["exec", &storage.name, "mkdir", "/data/vectors"]).await;
    assert_eq!(storage.objects().await, Vec::<String>::new());
    assert!(["COLD", "INACTIVE"].contains(&server.tenant("Ten", "asleep").await.as_str()));
    // The same address said by hand, and an export for want of a bucket.
    let by_hand = format!("s3.endpoint = '{}'\n{}", storage.endpoint().await, keys(ID, SECRET));
    let captured =
        capture(&*server.adapter(&by_hand), &bench().cx()).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(captured.report.mode, "s3");
    let captured = capture(&*server.adapter("capture = 'export'"), &bench().cx()).await.unwrap();
    assert_eq!(captured.report.mode, "export");
    assert_eq!(storage.objects().await, Vec::<String>::new());
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn what_a_dead_run_left_in_the_bucket_is_removed() {
    let storage = Storage::start().await;
    let server = storage.server().await;
    server.seed().await;
    let adapter = server.adapter("");
    let cx = bench().cx();
    // The server was asked, and goes on without us.
    let parts = adapter.open(&cx).await.unwrap().into_parts();
    let mut artifacts = parts.artifacts;
    {
        let mut next = artifacts.next();
        let begun = until("the backup", async || {
            storage.objects().await.iter().any(|name| name.ends_with("/backup_config.json"))
        });
        futures::future::select(std::pin::pin!(begun), &mut next).await;
    }
    std::mem::forget(parts.release);
    drop(artifacts);
    for entry in cx.journal.entries().await.unwrap() {
        adapter.bring_back(&cx, &entry).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    }
    assert!(!storage.objects().await.is_empty(), "nothing is left that could be removed");
    storage.put("some/where/backup-vectors-of-another-run/backup.json").await;
    let removed = adapter.reclaim(&cx, std::slice::from_ref(&cx.run_id)).await.unwrap();
    assert!(removed.iter().any(|r| r.contains("backup `backup-")), "{removed:?}");
    assert!(adapter.reclaim(&cx, std::slice::from_ref(&cx.run_id)).await.unwrap().is_empty());
    let theirs = ["some/where/backup-vectors-of-another-run/backup.json"];
    assert_eq!(storage.objects().await, theirs);
    // One that ends early tidies up by itself.
    let mut parts = adapter.open(&later(&cx)).await.unwrap().into_parts();
    let artifact = parts.artifacts.next().await.unwrap();
    assert!(artifact.is_ok() && storage.objects().await.len() > theirs.len());
    drop((artifact, parts.artifacts));
    (parts.release)(ReadOutcome::Failed).await.unwrap();
    assert_eq!(storage.objects().await, theirs);
    capture(&*adapter, &bench().cx()).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(storage.objects().await, theirs);
}
