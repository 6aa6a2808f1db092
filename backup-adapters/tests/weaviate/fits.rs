//! What a server does not take: backups of newer ones, parts of backups, and writes.

use backup_core::testkit::adapter_suite::capture;
use backup_core::{AdapterErrorKind, RestoreTarget, chain};
use serde_json::json;

use crate::support::{Server, adapter, bench, docker, until};

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_backup_of_a_newer_server_is_refused_in_the_plan() {
    let server = Server::start().await;
    server.make_class("Doc", false).await;
    server.fill("Doc", None, 0, 10, 4).await;
    let version = server.call("GET", "/v1/meta", None).await["version"].as_str().unwrap().to_owned();
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().unwrap());
    let (major, minor) = (numbers.next().unwrap(), numbers.next().unwrap());
    for mode in ["backup", "export"] {
        let adapter = server.adapter(&format!("capture = '{mode}'"));
        let captured = capture(&*adapter, &bench().cx()).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
        assert_eq!(captured.metadata.service_version.as_ref(), Some(&version));
        let plan = async |version: Option<String>, force: bool| {
            let (mut metadata, mut cx) = ((*captured.metadata).clone(), bench().cx());
            (metadata.service_version, cx.force) = (version, force);
            adapter.plan_restore(&cx, &metadata, &RestoreTarget::Live).await
        };
        for newer in [format!("{major}.{}.0", minor + 1), format!("{}.0.0", major + 1)] {
            let e = plan(Some(newer.clone()), false).await.unwrap_err();
            assert_eq!(e.kind(), AdapterErrorKind::Conflict, "{}", chain(&e));
            let told =
                format!("the backup is of Weaviate {newer}, and the server is {version}: restore into");
            assert!(e.to_string().starts_with(&told) && e.to_string().ends_with("--force"), "{e}");
            plan(Some(newer), true).await.unwrap();
        }
        for fits in [Some(format!("{major}.{minor}.99")), Some(format!("{major}.{}.7", minor - 1)), None] {
            plan(fits.clone(), false).await.unwrap_or_else(|e| panic!("{fits:?}: {}", chain(&e)));
        }
        let part = adapter.part(&captured.metadata, &[captured.metadata.artifacts[0].name.clone()]);
        let e = part.unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::Unsupported);
        assert_eq!(e.to_string(), "backups of `weaviate` are restored as a whole");
    }
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_write_is_made_and_nothing_stays() {
    let server = Server::start().await;
    server.seed().await;
    let files = async || {
        let list = "cd /var/lib/weaviate && find . -maxdepth 1 -mindepth 1 -printf '%f\\n' | sort";
        docker(&["exec", &server.name, "sh", "-c", list]).await
    };
    let (before, folders) = (server.digest().await, files().await);
    assert!(folders.contains("doc"), "{folders}");
    let whole = server.adapter("");
    assert!(whole.prove_writable(&bench().cx()).await.unwrap_or_else(|e| panic!("{}", chain(&e))));
    server.assert_holds(&before, "a write has left something").await;
    // It forgets a collection first, and removes its folder then.
    until("the end of the collection's folder", async || files().await == folders).await;

    let key = format!("container = '{}'\napi_key = {{ env = 'view' }}", server.name);
    let e = adapter(&key).prove_writable(&bench().cx()).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::PermissionDenied, "{}", chain(&e));

    // One shard, as when its disk ran full: new collections take writes all the same.
    let shards = server.call("GET", "/v1/schema/Doc/shards", None).await;
    let shard = shards[0]["name"].as_str().unwrap();
    let set = async |status: &str| {
        let path = format!("/v1/schema/Doc/shards/{shard}");
        server.call("PUT", &path, Some(json!({ "status": status }))).await;
    };
    set("READONLY").await;
    let e = whole.prove_writable(&bench().cx()).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Conflict, "{}", chain(&e));
    assert!(e.to_string().contains(&format!("shard `{shard}` of collection `Doc`")), "{}", chain(&e));
    set("READY").await;
    assert!(whole.prove_writable(&bench().cx()).await.unwrap_or_else(|e| panic!("{}", chain(&e))));
    server.assert_holds(&before, "a write has left something").await;
    until("the end of the collection's folder", async || files().await == folders).await;
}
