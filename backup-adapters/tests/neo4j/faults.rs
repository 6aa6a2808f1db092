//! What goes wrong: kills, servers that do not end, wrong passwords, file systems that cannot clone.

use std::panic::AssertUnwindSafe;
use std::process::Command;
use std::sync::Arc;

use backup_core::testkit::adapter_suite::{Captured, Damage};
use backup_core::{AdapterErrorKind, Event, EventSink, OpContext, RestoreTarget, chain};
use futures::FutureExt;

use crate::graph::Graph;
use crate::support::{Disk, bench, captured, docker, wait_for, with_secrets};

/// Panics in a phase, which ends everything there as a kill does: nothing is tidied up.
#[derive(Debug)]
struct KillIn(&'static str);

impl EventSink for KillIn {
    fn emit(&self, event: Event) {
        if let Event::Phase { phase, .. } = event
            && phase == self.0
        {
            std::panic::resume_unwind(Box::new("killed"));
        }
    }
}

#[derive(Debug)]
struct Silent;

impl EventSink for Silent {
    fn emit(&self, _: Event) {}
}

/// As another process that finds the journal.
pub(crate) async fn bring_back(graph: &Graph, cx: &OpContext) {
    let adapter = graph.adapter("");
    let mut next = cx.clone();
    next.events = Arc::new(Silent);
    for entry in cx.journal.entries().await.unwrap() {
        adapter.bring_back(&next, &entry).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    }
    assert!(cx.journal.entries().await.unwrap().is_empty());
    assert!(graph.is_running());
    graph.wait_until_up();
}

/// Each phase of a capture: the server comes back, nothing is left, and the next capture works. What was reclaimed.
async fn captures_killed(graph: &Graph, mode: &str, phases: &[&'static str]) -> Vec<String> {
    let (adapter, mut left) = (graph.adapter(&format!("capture = '{mode}'")), Vec::new());
    let before = graph.content();
    for phase in phases {
        let bench = bench();
        let mut cx = with_secrets(bench.cx());
        cx.events = Arc::new(KillIn(phase));
        let died = AssertUnwindSafe(adapter.open(&cx)).catch_unwind().await;
        assert!(!matches!(died, Ok(Ok(_))), "{mode}: it never got to `{phase}`");
        bring_back(graph, &cx).await;
        left.extend(adapter.reclaim(&bench.cx(), std::slice::from_ref(&cx.run_id)).await.unwrap());
        assert!(adapter.reclaim(&bench.cx(), &[cx.run_id]).await.unwrap().is_empty());
        assert_eq!(graph.content(), before, "{mode} killed in `{phase}`");
    }
    captured(&*adapter).await.unwrap_or_else(|e| panic!("{mode}: {}", chain(&e)));
    left
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn a_dump_killed_in_each_phase() {
    let graph = Graph::start();
    graph.seed("page", 50);
    let phases = ["stopping the server", "dumping its databases", "waiting for the server to answer"];
    captures_killed(&graph, "stop-dump", &phases).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker and root"]
async fn a_clone_killed_in_each_phase() {
    let xfs = Disk::xfs();
    let data = xfs.folder("data");
    let graph = Graph::over(&data);
    graph.seed("page", 50);
    let reclaimed = captures_killed(&graph, "clone", &["pausing the server", "cloning its files"]).await;
    let clones = reclaimed.iter().filter(|r| r.contains("a clone of a dead run")).count();
    assert_eq!(clones, 2, "{reclaimed:?}");
    let left: Vec<_> = std::fs::read_dir(&data).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|n| !n.to_string_lossy().contains("clone")), "{left:?}");
}

/// Nothing was done to the server; what is left is a copy.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker and root"]
async fn an_online_copy_killed_in_each_phase() {
    let xfs = Disk::xfs();
    let data = xfs.folder("data");
    let graph = Graph::over(&data);
    graph.seed("page", 50);
    let phases = [
        "copying its files while it runs",
        "starting a second server over the captured data",
        "checking the consistency of the captured data",
    ];
    let reclaimed = captures_killed(&graph, "online", &phases).await;
    let clones = reclaimed.iter().filter(|r| r.contains("a clone of a dead run")).count();
    assert_eq!(clones, 3, "{reclaimed:?}");
    let left: Vec<_> = std::fs::read_dir(&data).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|n| !n.to_string_lossy().contains("clone")), "{left:?}");
}

/// Each phase of a restore: old or new data, whole; and the next switch finishes it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn a_restore_killed_in_each_phase() {
    let graph = Graph::start();
    let adapter = graph.adapter("capture = 'pause-copy'");
    graph.seed("backup", 50);
    let restored = graph.content();
    let backup: Captured = captured(&*adapter).await.unwrap();
    graph.seed("changed", 20);
    let bench = bench();
    for phase in [
        "stopping the server",
        "replacing its data",
        "starting the server",
        "waiting for the server to open its data",
    ] {
        let old = graph.content();
        let cx = with_secrets(bench.cx());
        let plan = adapter.plan_restore(&cx, &backup.metadata, &RestoreTarget::Live).await.unwrap();
        let staged = adapter.stage(&cx, &plan, &backup.source(Damage::None)).await;
        let staged = staged.unwrap_or_else(|e| panic!("{phase}: {}", chain(&e)));
        let mut dying = cx.clone();
        dying.events = Arc::new(KillIn(phase));
        let died = AssertUnwindSafe(adapter.switch(&dying, &plan, &staged)).catch_unwind().await;
        assert!(died.is_err(), "it never got to `{phase}`");
        bring_back(&graph, &cx).await;
        let found = graph.content();
        assert!(found == old || found == restored, "{phase}: neither the old nor the new data");
        adapter.switch(&cx, &plan, &staged).await.unwrap_or_else(|e| panic!("{phase}: {}", chain(&e)));
        assert_eq!(graph.content(), restored, "{phase}");
        graph.seed("changed", 20);
    }
}

/// It is killed, recovers, is killed again, and runs: no dump is made of what a crash leaves.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn a_server_that_does_not_end_is_no_backup() {
    let deaf = "trap '' TERM; /startup/docker-entrypoint.sh neo4j & while :; do wait; sleep 1; done";
    let graph = Graph::running(&["--entrypoint", "bash"], &["-c", deaf]);
    graph.seed("page", 50);
    let before = graph.content();
    let e = captured(&*graph.adapter("capture = 'stop-dump'\nstop_timeout = '1s'")).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Conflict, "{}", chain(&e));
    assert!(chain(&e).contains("killed twice"), "{}", chain(&e));
    graph.wait_until_up();
    assert_eq!(graph.content(), before);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn refusals_come_before_anything_is_done() {
    let graph = Graph::start();
    graph.seed("page", 50);
    let started = || docker(&["inspect", "-f", "{{.State.StartedAt}}", &graph.name]);
    let before = started();
    let wrong =
        crate::support::adapter(&format!("container = '{}'\npassword = {{ env = 'WRONG' }}", graph.name));
    let e = captured(&*wrong).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::PermissionDenied, "{}", chain(&e));
    assert!(!chain(&e).contains("wrong-one"));
    // The volumes of this engine are on a file system without reflinks, or the rest is not tested here.
    let no_clone = captured(&*graph.adapter("capture = 'clone'")).await;
    let e = no_clone.expect_err("no reflinks here");
    assert_eq!(e.kind(), AdapterErrorKind::Unsupported, "{}", chain(&e));
    let e = captured(&*graph.adapter("max_interruption = '400ms'")).await.unwrap_err();
    let text = chain(&e);
    assert_eq!(e.kind(), AdapterErrorKind::Conflict, "{text}");
    for part in
        ["max_interruption", "`stop-dump` about", "`stop-copy` about", "`pause-copy` about", "cannot clone"]
    {
        assert!(text.contains(part), "{text}");
    }
    // An engine that is busy may fail to freeze at once.
    wait_for("a pause", || Command::new("docker").args(["pause", &graph.name]).status().unwrap().success());
    let e = captured(&*graph.adapter("")).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Conflict, "{}", chain(&e));
    docker(&["unpause", &graph.name]);
    assert_eq!(started(), before, "it was restarted");
}
