//! The second server of a test restore: it takes little, reaches nothing, and goes.

use backup_core::testkit::adapter_suite::{Captured, Damage};
use backup_core::{
    AdapterError, Evidence, OpContext, RestoreTarget, ScratchHandle, ServiceAdapter, StepToken, chain,
};

use crate::graph::Graph;
use crate::support::{CANARY, bench, captured, with_secrets};
use crate::watched::{Watch, assert_gone, assert_restrained};

async fn tried(
    adapter: &dyn ServiceAdapter,
    cx: &OpContext,
    backup: &Captured,
) -> Result<(StepToken, Evidence), AdapterError> {
    let dir = cx.spool.join("scratch");
    let target = RestoreTarget::Scratch(ScratchHandle { dir, run_id: cx.run_id.clone() });
    let plan = adapter.plan_restore(cx, &backup.metadata, &target).await?;
    let token = adapter.stage(cx, &plan, &backup.source(Damage::None)).await?;
    let token = adapter.switch(cx, &plan, &token).await?;
    Ok((token, adapter.probe(cx, &target).await?))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn the_servers_of_a_test_restore_are_restrained_and_those_of_a_capture_are_not() {
    let graph = Graph::with(&["-e", "NEO4J_ACCEPT_LICENSE_AGREEMENT=eval"]);
    graph.seed("backup", 200);
    let adapter = graph.adapter("capture = 'stop-dump'");
    let backup = captured(&*adapter).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    graph.wait_until_up();
    let bench = bench();
    let cx = with_secrets(bench.cx());
    let watch = Watch::of(&cx.run_id);
    let (token, found) = tried(&*adapter, &cx, &backup).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(backup.report.evidence.contradictions(&found), Vec::<String>::new());
    adapter.discard(&cx, &token).await.unwrap();
    let seen = watch.end();
    // One that loads the dumps, the server, and one that checks it.
    assert!(seen.len() >= 2, "{}", seen.len());
    for container in &seen {
        assert_restrained(container, &[CANARY]);
        assert!(container["Config"]["Env"].to_string().contains("NEO4J_ACCEPT_LICENSE_AGREEMENT=eval"));
    }
    assert_gone(&cx.run_id, &seen);
    // A dump of the live server waits for nobody.
    let cx = with_secrets(bench.cx());
    let watch = Watch::of(&cx.run_id);
    backup_core::testkit::adapter_suite::capture(&*adapter, &cx)
        .await
        .unwrap_or_else(|e| panic!("{}", chain(&e)));
    let seen = watch.end();
    assert!(!seen.is_empty());
    assert!(seen.iter().all(|c| c["HostConfig"]["OomScoreAdj"] == 0 && c["HostConfig"]["CpuShares"] == 0));
}
