//! Restores over the live server, and what stays of it.

use std::sync::Once;

use backup_core::testkit::adapter_suite::capture;
use backup_core::{AdapterErrorKind, Event, EventSink, RestoreTarget, ScratchHandle, chain};

use crate::support::{Server, bench, docker, later, staged};

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_server_is_restored_undone_and_restarted() {
    let server = Server::start().await;
    server.seed().await;
    let adapter = server.adapter("");
    let wanted = server.digest().await;
    assert!(wanted.contains("tenant asleep COLD") || wanted.contains("tenant asleep INACTIVE"));
    assert!(wanted.contains("reader") && wanted.contains("custom"));
    let backup = capture(&*adapter, &bench().cx()).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(backup.report.evidence.counts["objects.Ten.asleep"], 50);
    server.assert_holds(&wanted, "a capture changed something").await;
    server.call("DELETE", "/v1/schema/Doc", None).await;
    server.call("DELETE", "/v1/authz/roles/reader", None).await;
    server.make_class("Other", false).await;
    server.fill("Other", None, 0, 5, 3).await;
    let old = server.digest().await;
    let bench = bench();
    let cx = bench.cx();
    let (plan, token) = staged(&*adapter, &cx, &backup).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    server.assert_holds(&old, "digest").await;
    let switched = adapter.switch(&cx, &plan, &token).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    server.assert_holds(&wanted, "digest").await;
    let probed = adapter.probe(&cx, &RestoreTarget::Live).await.unwrap();
    assert_eq!(backup.report.evidence.contradictions(&probed), Vec::<String>::new());
    // The tenant that sleeps has its objects.
    server.set_tenant("Ten", "asleep", "ACTIVE").await;
    let count = server
        .call(
            "POST",
            "/v1/graphql",
            Some(serde_json::json!({ "query": "{Aggregate{Ten(tenant:\"asleep\"){meta{count}}}}" })),
        )
        .await;
    assert_eq!(count["data"]["Aggregate"]["Ten"][0]["meta"]["count"], 50, "{count}");
    server.set_tenant("Ten", "asleep", "INACTIVE").await;
    server.restart().await;
    server.assert_holds(&wanted, "after a restart").await;
    let later = later(&cx);
    let undone = adapter.undo(&later, &switched).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    server.assert_holds(&old, "undone").await;
    assert_eq!(adapter.undo(&later, &switched).await.unwrap(), undone);
    server.restart().await;
    server.assert_holds(&old, "undone and restarted").await;
    adapter.discard(&later, &undone).await.unwrap();
    assert!(adapter.leftovers(&later, &undone).await.unwrap().is_empty());
    server.assert_holds(&old, "cleaned up").await;
    assert_eq!(server.backups().await, Vec::<String>::new());
    let twins = docker(&["ps", "-aq", "--filter", &format!("label=backup.run-id={}", cx.run_id)]).await;
    assert_eq!(twins, "");
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn an_empty_server_and_one_of_another_name() {
    let server = Server::with(&["-e", "CLUSTER_HOSTNAME=first"]).await;
    let adapter = server.adapter("");
    let nothing = capture(&*adapter, &bench().cx()).await.unwrap();
    assert_eq!(nothing.report.evidence.counts["collections"], 0);
    assert!(nothing.report.warnings.iter().any(|w| w.contains("no collections")));
    server.seed().await;
    let wanted = server.digest().await;
    let backup = capture(&*adapter, &bench().cx()).await.unwrap();
    // The name of the node is in the backup.
    let other = Server::with(&["-e", "CLUSTER_HOSTNAME=second"]).await;
    let e = staged(&*other.adapter(""), &bench().cx(), &backup).await.unwrap_err();
    assert!(
        e.kind() == AdapterErrorKind::Conflict && chain(&e).contains("CLUSTER_HOSTNAME=first"),
        "{}",
        chain(&e)
    );
    let other = Server::with(&["-e", "CLUSTER_HOSTNAME=first"]).await;
    let adapter = other.adapter("");
    let cx = bench().cx();
    let (plan, token) = staged(&*adapter, &cx, &backup).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    adapter.switch(&cx, &plan, &token).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    other.assert_holds(&wanted, "another server").await;
    // And nothing restored gives nothing.
    let cx = bench().cx();
    let (plan, token) = staged(&*adapter, &cx, &nothing).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    adapter.switch(&cx, &plan, &token).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(other.call("GET", "/v1/schema", None).await["classes"], serde_json::json!([]));
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_stopped_server_is_restored_and_a_scratch_one_tells_damage() {
    let server = Server::start().await;
    server.seed().await;
    let adapter = server.adapter("");
    let wanted = server.digest().await;
    let backup = capture(&*adapter, &bench().cx()).await.unwrap();
    // What a disaster leaves: a container that cannot start on its data.
    docker(&[
        "exec",
        &server.name,
        "sh",
        "-c",
        "rm -rf /var/lib/weaviate/raft; echo broken >/var/lib/weaviate/raft",
    ])
    .await;
    docker(&["kill", &server.name]).await;
    let cx = bench().cx();
    let (plan, token) = staged(&*adapter, &cx, &backup).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    adapter.switch(&cx, &plan, &token).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    server.assert_holds(&wanted, "digest").await;
    // A test restore of files that were damaged on the way fails, though they are all there.
    let cx = bench().cx();
    let dir = tempfile::tempdir().unwrap();
    let target =
        RestoreTarget::Scratch(ScratchHandle { dir: dir.path().to_owned(), run_id: cx.run_id.clone() });
    backup.restore(&*adapter, &cx, &target).await.unwrap();
    let good = adapter.probe(&cx, &target).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(backup.report.evidence.contradictions(&good), Vec::<String>::new());
    assert!(good.counts["objects.Ten.asleep"] == 50);
    let backup_dir = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    std::fs::write(backup_dir.join("node1/Doc/chunk-1"), b"nothing of use").unwrap();
    let e = adapter.probe(&cx, &target).await.unwrap_err();
    println!("{}", chain(&e));
    assert_ne!(e.kind(), AdapterErrorKind::Timeout);
}

/// Makes what the server starts from unreadable, at the moment at which it is started.
#[derive(Debug)]
struct Spoil(std::path::PathBuf, Once);

impl EventSink for Spoil {
    fn emit(&self, event: Event) {
        if let Event::Phase { phase, .. } = event
            && phase == "starting the server"
        {
            // Not the old data, which is started, too.
            self.1.call_once(|| {
                std::fs::remove_dir_all(&self.0).unwrap();
                std::fs::write(&self.0, "broken").unwrap();
            });
        }
    }
}

/// Nobody waits for a server that has ended, and it does not stay down: it runs on its old data.
#[tokio::test]
#[ignore = "needs Docker and root"]
async fn a_server_that_ends_with_the_restored_data_runs_on_the_old_one() {
    let server = Server::start().await;
    server.seed().await;
    let adapter = server.adapter("");
    let backup = capture(&*adapter, &bench().cx()).await.unwrap();
    server.make_class("Other", false).await;
    server.fill("Other", None, 0, 5, 3).await;
    let old = server.digest().await;
    let of_data = "{{range .Mounts}}{{if eq .Destination \"/var/lib/weaviate\"}}{{.Source}}{{end}}{{end}}";
    let data = std::path::PathBuf::from(docker(&["inspect", "-f", of_data, &server.name]).await.trim());
    let mut cx = bench().cx();
    let (plan, token) = staged(&*adapter, &cx, &backup).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    cx.events = std::sync::Arc::new(Spoil(data.join("raft"), Once::new()));
    let e = adapter.switch(&cx, &plan, &token).await.unwrap_err();
    let text = chain(&e);
    // As early as that is seen.
    assert!(text.contains("ended") || text.contains("does not run again"), "{text}");
    server.wait_until_ready().await;
    server.assert_holds(&old, "put back").await;
    adapter.discard(&cx, &token).await.unwrap();
    assert!(adapter.leftovers(&cx, &token).await.unwrap().is_empty());
}
