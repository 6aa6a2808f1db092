//! The server of a test restore: it takes little, reaches nothing, knows no keys to the outside, and goes.

use std::sync::Arc;

use backup_core::testkit::adapter_suite::{Captured, Damage, capture};
use backup_core::{
    AdapterError, AdapterErrorKind, Evidence, OpContext, RestoreTarget, ScratchHandle, ServiceAdapter, chain,
};

use crate::killed::killed_in;
use crate::support::{CANARY, Server, bench};
use crate::watched::{Watch, assert_gone, assert_restrained, left_of};

const KEY: &str = "canary-key-to-the-outside";

async fn tried(
    adapter: &dyn ServiceAdapter,
    cx: &OpContext,
    backup: &Captured,
) -> Result<Evidence, AdapterError> {
    let dir = cx.spool.join("scratch");
    let target = RestoreTarget::Scratch(ScratchHandle { dir, run_id: cx.run_id.clone() });
    let plan = adapter.plan_restore(cx, &backup.metadata, &target).await?;
    let token = adapter.stage(cx, &plan, &backup.source(Damage::None)).await?;
    let token = adapter.switch(cx, &plan, &token).await?;
    let found = adapter.probe(cx, &target).await;
    adapter.discard(cx, &token).await?;
    found
}

async fn server(options: &[&str]) -> (Server, Arc<dyn ServiceAdapter>, Captured) {
    let keys = ["OPENAI_APIKEY", "COHERE_APIKEY", "AWS_SECRET_ACCESS_KEY", "BACKUP_S3_ENDPOINT"]
        .map(|name| format!("{name}={KEY}"));
    let mut all: Vec<&str> = keys.iter().flat_map(|key| ["-e", key.as_str()]).collect();
    all.extend(["-e", "ENABLE_MODULES=backup-filesystem,text2vec-openai,text2vec-cohere"]);
    all.extend(options);
    let server = Server::with(&all).await;
    server.seed().await;
    let adapter = server.adapter("");
    let backup = capture(&*adapter, &bench().cx()).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    (server, adapter, backup)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn the_server_of_a_test_restore_reaches_nothing_and_knows_no_keys() {
    let (server, adapter, backup) =
        server(&["-p", "127.0.0.1::8080", "-e", "CLUSTER_ADVERTISE_ADDR=127.0.0.1"]).await;
    let before = server.digest().await;
    let bench = bench();
    let cx = bench.cx();
    let watch = Watch::of(&cx.run_id);
    let found = tried(&*adapter, &cx, &backup).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(backup.report.evidence.contradictions(&found), Vec::<String>::new());
    let seen = watch.end();
    assert_eq!(seen.len(), 1);
    assert_restrained(&seen[0], &[KEY, CANARY]);
    assert!(seen[0]["Config"]["Env"].to_string().contains("text2vec-openai"), "its modules are the same");
    assert_gone(&cx.run_id, &seen);
    server.assert_holds(&before, "a test restore changed something").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn a_test_restore_that_dies_or_is_refused_leaves_nothing() {
    let (_server, adapter, backup) = server(&["--memory", "3g"]).await;
    for phase in ["starting a server of the same image", "counting what was restored"] {
        let bench = bench();
        let cx = bench.cx();
        let dead = killed_in(phase, &cx, async |cx| tried(&*adapter, &cx, &backup).await.map(drop));
        assert!(dead.await, "it was not killed in `{phase}`");
        adapter.reclaim(&cx, std::slice::from_ref(&cx.run_id)).await.unwrap();
        assert_eq!(left_of(&cx.run_id), "", "{phase}");
    }
    let (_server, adapter, backup) = self::server(&["--memory", "8000g"]).await;
    let bench = bench();
    let cx = bench.cx();
    let e = tried(&*adapter, &cx, &backup).await.unwrap_err();
    assert!(e.kind() == AdapterErrorKind::NoSpace && e.to_string().contains("free some"), "{}", chain(&e));
    assert_eq!(left_of(&cx.run_id), "");
}
