//! A server and a network that fail.

use std::sync::Arc;
use std::time::Duration;

use backup_core::testkit::adapter_suite::{Captured, capture};
use backup_core::{AdapterError, AdapterErrorKind, ArtifactBody, ServiceAdapter, chain};
use futures::StreamExt as _;

use crate::proxy::{Fault, Proxy};
use crate::support::{Network, Server, adapter, bench, docker};

pub(crate) fn through(server: &Server, proxy: &Proxy) -> Arc<dyn ServiceAdapter> {
    adapter(&format!(
        "container = '{}'\nurl = 'http://{}'\napi_key = {{ env = 'CANARY' }}",
        server.name, proxy.address
    ))
}

async fn with(
    server: &Server,
    rule: impl FnMut(&str) -> Fault + Send + 'static,
) -> Result<Captured, AdapterError> {
    let proxy = Proxy::start(&server.base().await, rule).await;
    let mut cx = bench().cx();
    cx.deadline = Some(tokio::time::Instant::now() + Duration::from_secs(90));
    capture(&*through(server, &proxy), &cx).await
}

/// The n-th request of a kind, from 1.
fn nth(what: &'static str, mut n: u32, fault: Fault) -> impl FnMut(&str) -> Fault {
    move |first| {
        if !first.starts_with(what) {
            return Fault::Pass;
        }
        n = n.wrapping_sub(1);
        if n == 0 { fault.clone() } else { Fault::Pass }
    }
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn blips_are_survived() {
    let server = Server::start().await;
    server.seed().await;
    let create = "POST /v1/backups/filesystem ";
    for (what, n, fault) in [
        ("GET /v1/meta", 1, Fault::Answer(503, "{}".into())),
        ("GET /v1/schema ", 1, Fault::Cut),
        ("POST /v1/graphql", 1, Fault::Lose),
        // Accepted, and nobody heard.
        (create, 1, Fault::Lose),
        (create, 1, Fault::Cut),
        (create, 1, Fault::Answer(500, "{}".into())),
        ("GET /v1/backups/filesystem/", 1, Fault::Answer(404, "{}".into())),
        ("GET /v1/backups/filesystem/", 2, Fault::Answer(500, "<html>".into())),
        ("GET /v1/backups/filesystem/", 2, Fault::Cut),
        ("PUT /v1/schema/Ten/tenants", 1, Fault::Lose),
    ] {
        let label = format!("{what} {n} {fault:?}");
        let captured =
            with(&server, nth(what, n, fault)).await.unwrap_or_else(|e| panic!("{label}: {}", chain(&e)));
        assert_eq!(captured.report.evidence.counts["objects.Ten.asleep"], 50, "{label}");
        assert_eq!(server.backups().await, Vec::<String>::new(), "{label}");
        assert_ne!(server.tenant("Ten", "asleep").await, "HOT", "{label}");
    }
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn what_the_server_leaves_out_fails_the_backup() {
    let server = Server::start().await;
    server.seed().await;
    // As servers since 1.36 do for keys that may not back up all: fewer collections, and SUCCESS.
    let rule = |first: &str| match first.starts_with("POST /v1/backups/filesystem ") {
        true => Fault::Replace("\"Ten\"".into(), "\"Doc\"".into()),
        false => Fault::Pass,
    };
    let e = with(&server, rule).await.unwrap_err();
    assert!(chain(&e).contains("lacks the collections Ten"), "{}", chain(&e));
    // FAILED comes with HTTP 200.
    let rule = |first: &str| match first.starts_with("GET /v1/backups/filesystem/") {
        true => Fault::Answer(200, r#"{"status":"FAILED","error":"disk\nfull"}"#.into()),
        false => Fault::Pass,
    };
    let e = with(&server, rule).await.unwrap_err();
    assert!(chain(&e).contains("FAILED: disk full"), "{}", chain(&e));
    // The real one may have been running still: nothing of it stays in the end.
    assert_ne!(server.tenant("Ten", "asleep").await, "HOT");
    // STARTED for ever ends with the budget.
    let proxy = Proxy::start(&server.base().await, |first: &str| {
        match first.starts_with("GET /v1/backups/filesystem/backup-") {
            true => Fault::Answer(200, r#"{"status":"STARTED"}"#.into()),
            false => Fault::Pass,
        }
    })
    .await;
    let mut cx = bench().cx();
    cx.deadline = Some(tokio::time::Instant::now() + Duration::from_secs(8));
    let e = capture(&*through(&server, &proxy), &cx).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Timeout, "{}", chain(&e));
    assert!(proxy.seen.lock().unwrap().iter().any(|l| l.starts_with("DELETE /v1/backups/filesystem/")));
    // Nobody could tell that it was over: the next run of the service finds it.
    let left = server.backups().await;
    assert!(left.iter().any(|l| l.ends_with(cx.run_id.as_str())), "{left:?}");
    let next = bench().cx();
    let removed = server.adapter("").reclaim(&next, std::slice::from_ref(&cx.run_id)).await;
    assert_eq!(removed.unwrap_or_else(|e| panic!("{}", chain(&e))).len(), 1);
    assert!(!server.backups().await.iter().any(|l| l.ends_with(cx.run_id.as_str())));
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_server_that_dies_or_restarts_midway_is_an_error() {
    let server = Server::start().await;
    server.seed().await;
    server.fill("Doc", None, 1000, 6000, 16).await;
    for fault in ["kill", "restart"] {
        let adapter = server.adapter("");
        let cx = bench().cx();
        let mut parts = adapter.open(&cx).await.unwrap().into_parts();
        let name = server.name.clone();
        let accident = async {
            crate::support::until("the backup", async || !server.backups().await.is_empty()).await;
            let args: &[&str] =
                if fault == "kill" { &["kill", &name] } else { &["restart", "-t", "0", &name] };
            docker(args).await;
        };
        let read = async {
            let ArtifactBody::Stream(mut body) = parts.artifacts.next().await.unwrap()?.body else {
                panic!()
            };
            while let Some(chunk) = body.next().await {
                chunk?;
            }
            Ok::<_, AdapterError>(())
        };
        match tokio::join!(read, accident).0 {
            Err(e) => println!("{fault}: {}", chain(&e)),
            // It was done already, or the container has another address now and the same data.
            Ok(()) => println!("{fault}: the backup was done before"),
        }
        drop(parts.artifacts);
        let _report = (parts.release)(backup_core::ReadOutcome::Failed).await;
        docker(&["start", &server.name]).await;
        server.wait_until_ready().await;
        for entry in cx.journal.entries().await.unwrap() {
            adapter.bring_back(&cx, &entry).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
        }
        assert_ne!(server.tenant("Ten", "asleep").await, "HOT", "{fault}");
        adapter
            .reclaim(&cx, std::slice::from_ref(&cx.run_id))
            .await
            .unwrap_or_else(|e| panic!("{}", chain(&e)));
        assert_eq!(server.backups().await, Vec::<String>::new(), "{fault}");
        let captured = capture(&*adapter, &bench().cx()).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
        assert_eq!(captured.report.evidence.counts["objects.Doc"], 5300);
    }
}

/// Its address is another container's then, and what has to be undone there must not be undone to that one.
#[tokio::test]
#[ignore = "needs Docker"]
async fn a_neighbour_that_gets_the_address_of_a_dead_server_is_left_alone() {
    let network = Network::create().await;
    let server = Server::with(&["--network", &network.0]).await;
    server.seed().await;
    let (adapter, cx, base) = (server.adapter(""), bench().cx(), server.base().await);
    let mut parts = adapter.open(&cx).await.unwrap().into_parts();
    // Not read: the tenants are lulled once all is.
    let artifact = parts.artifacts.next().await.unwrap().unwrap();
    assert_eq!(server.tenant("Ten", "asleep").await, "HOT");
    docker(&["kill", &server.name]).await;
    let neighbour = Server::with(&["--network", &network.0]).await;
    assert_eq!(neighbour.base().await, base);
    neighbour.make_class("Ten", true).await;
    let asleep = serde_json::json!([{ "name": "asleep", "activityStatus": "HOT" }]);
    neighbour.call("POST", "/v1/schema/Ten/tenants", Some(asleep)).await;
    drop((artifact, parts.artifacts));
    let e = (parts.release)(backup_core::ReadOutcome::Failed).await.unwrap_err();
    assert!(chain(&e).contains("does not run"), "{}", chain(&e));
    assert_eq!(neighbour.tenant("Ten", "asleep").await, "HOT");
    docker(&["start", &server.name]).await;
    server.wait_until_ready().await;
    let entries = cx.journal.entries().await.unwrap();
    assert_eq!(entries.len(), 1);
    adapter.bring_back(&cx, &entries[0]).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(server.tenant("Ten", "asleep").await, "COLD");
    assert_eq!(neighbour.tenant("Ten", "asleep").await, "HOT");
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn errors_that_do_not_end_and_a_collection_that_goes_while_the_server_works() {
    let server = Server::start().await;
    server.seed().await;
    for what in ["POST /v1/backups/filesystem ", "GET /v1/schema "] {
        let rule = move |first: &str| match first.starts_with(what) {
            true => Fault::Answer(500, "{}".into()),
            false => Fault::Pass,
        };
        let proxy = Proxy::start(&server.base().await, rule).await;
        let mut cx = bench().cx();
        cx.deadline = Some(tokio::time::Instant::now() + Duration::from_secs(5));
        let e = capture(&*through(&server, &proxy), &cx).await.unwrap_err();
        let expected = [AdapterErrorKind::Timeout, AdapterErrorKind::Unavailable];
        assert!(expected.contains(&e.kind()), "{what}: {}", chain(&e));
        assert_eq!(server.backups().await, Vec::<String>::new(), "{what}");
        assert_ne!(server.tenant("Ten", "asleep").await, "HOT", "{what}");
    }
    server.make_class("Gone", false).await;
    server.fill("Gone", None, 0, 2000, 16).await;
    let proxy = Proxy::start(&server.base().await, |_: &str| Fault::Pass).await;
    let accident = async {
        let asked = async || proxy.seen.lock().unwrap().iter().any(|l| l.starts_with("POST /v1/backups/"));
        crate::support::until("the server's backup", asked).await;
        server.call("DELETE", "/v1/schema/Gone", None).await;
    };
    let (adapter, cx) = (through(&server, &proxy), bench().cx());
    let (captured, ()) = tokio::join!(capture(&*adapter, &cx), accident);
    match captured {
        Ok(captured) => {
            let warnings = &captured.report.warnings;
            assert!(warnings.iter().any(|w| w.contains("`Gone` was deleted meanwhile")), "{warnings:?}");
            assert_eq!(captured.report.evidence.counts["objects.Doc"], 300);
        }
        // The server may not like it either: then it is no backup.
        Err(e) => println!("{}", chain(&e)),
    }
    assert_eq!(server.backups().await, Vec::<String>::new());
    capture(&*server.adapter(""), &bench().cx()).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
}
