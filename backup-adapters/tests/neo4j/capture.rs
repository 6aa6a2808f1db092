//! Captures under a writer, and what they hold.

use std::time::Duration;

use backup_core::testkit::adapter_suite::{Captured, Damage, capture};
use backup_core::{AdapterErrorKind, Consistency, RestoreTarget, ServiceAdapter, chain};
use tokio::time::Instant;

use crate::graph::{Graph, Release};
use crate::support::{Disk, Writer, bench, captured, with_secrets, written};

/// Restores into a folder, and tells what a server over it holds.
pub(crate) async fn in_a_folder(
    adapter: &dyn ServiceAdapter,
    backup: &Captured,
    release: Release,
    dir: &std::path::Path,
) -> Graph {
    let bench = bench();
    let cx = with_secrets(bench.cx());
    let target = RestoreTarget::Dir(dir.to_owned());
    let plan = adapter.plan_restore(&cx, &backup.metadata, &target).await.unwrap();
    let staged = adapter.stage(&cx, &plan, &backup.source(Damage::None)).await;
    let staged = staged.unwrap_or_else(|e| panic!("{}", chain(&e)));
    adapter.switch(&cx, &plan, &staged).await.unwrap();
    // Neo4j's own check, and its counts.
    let found = adapter.probe(&cx, &target).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(backup.report.evidence.contradictions(&found), Vec::<String>::new());
    Graph::open_over(release, &dir.join("data"))
}

/// Under a writer: every commit that was acknowledged before the capture is in it, without a hole.
#[expect(clippy::print_stdout, reason = "figures for whoever asks with --nocapture")]
pub(crate) async fn under_a_writer(graph: &Graph, keys: &str) -> (Captured, u32) {
    let adapter = graph.adapter(keys);
    graph.seed("page", 2000);
    let before = graph.content();
    let writer = Writer::start(graph);
    let acknowledged = writer.acknowledged();
    let backup = captured(&*adapter).await.unwrap_or_else(|e| panic!("{keys}: {}", chain(&e)));
    let later = writer.acknowledged();
    let gap = writer.end();
    println!(
        "{keys}: interruption {} ms, longest gap of the writer {} ms, {acknowledged} commits before, {later} after",
        backup.report.interruption_ms,
        gap.as_millis()
    );
    assert!(later > acknowledged || backup.report.mode.starts_with("stop"), "the writer could not go on");
    assert!(graph.is_running());
    let dir = tempfile::tempdir().unwrap();
    let restored = in_a_folder(&*adapter, &backup, graph.release, dir.path()).await;
    assert_eq!(restored.content(), before, "{keys}");
    let there = written(&restored);
    assert!(there >= acknowledged, "{keys}: {acknowledged} were acknowledged, {there} are restored");
    (backup, there)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn a_dump_holds_every_commit() {
    let graph = Graph::start();
    let (backup, _) = under_a_writer(&graph, "capture = 'stop-dump'").await;
    let report = &backup.report;
    assert_eq!((report.mode.as_str(), report.consistency), ("stop-dump", Consistency::Dump));
    assert!(report.interruption_ms > 0);
    assert!(matches!(report.exit_codes.get("neo4j"), Some(0 | 143)), "{:?}", report.exit_codes);
    assert_eq!(report.exit_codes.get("neo4j-admin"), Some(&0));
    let names: Vec<&str> = backup.metadata.artifacts.iter().map(|a| a.name.as_str()).collect();
    assert_eq!(names, ["neo4j", "system"]);
    assert_eq!(report.service_version.as_deref(), Some("5.26.0"));
    assert_eq!(report.evidence.counts.get("users"), Some(&1));
    assert!(report.evidence.notes.contains_key("store.neo4j"), "{:?}", report.evidence.notes);
}

/// Two minutes are less than the usual `stop_timeout`: the server ends much sooner, and an exercise is judged by that.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn an_exercise_dumps_what_a_notice_would() {
    let graph = Graph::start();
    let adapter = graph.adapter("capture = 'stop-dump'");
    let bench = bench();
    let mut cx = with_secrets(bench.cx());
    (cx.rehearsal, cx.deadline) = (true, Some(Instant::now() + Duration::from_secs(60)));
    let backup = capture(&*adapter, &cx).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(backup.report.exit_codes.get("neo4j-admin"), Some(&0));
    assert!(graph.is_running());
    // Too little for any server: it fails, and still nobody is killed.
    let second = crate::support::bench();
    let mut cx = with_secrets(second.cx());
    cx.rehearsal = true;
    cx.deadline = Some(Instant::now() + Duration::from_secs(3));
    let e = capture(&*adapter, &cx).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Timeout, "{}", chain(&e));
    graph.wait_until_up();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn a_paused_copy_holds_every_commit() {
    let graph = Graph::start();
    let (backup, _) = under_a_writer(&graph, "capture = 'pause-copy'").await;
    assert_eq!(backup.report.consistency, Consistency::CrashConsistent);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn a_stopped_copy_holds_every_commit() {
    let graph = Graph::start();
    let (backup, _) = under_a_writer(&graph, "capture = 'stop-copy'").await;
    assert_eq!(backup.report.consistency, Consistency::Quiesced);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker and root"]
async fn a_clone_holds_every_commit_and_interrupts_for_less_than_a_second() {
    cloned_on(&Disk::xfs()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker and root"]
async fn a_clone_on_btrfs_holds_every_commit() {
    cloned_on(&Disk::btrfs()).await;
}

async fn cloned_on(disk: &Disk) {
    let data = disk.folder("data");
    let graph = Graph::over(&data);
    let (backup, _) = under_a_writer(&graph, "capture = 'auto'").await;
    assert_eq!(
        (backup.report.mode.as_str(), backup.report.consistency),
        ("clone", Consistency::CrashConsistent)
    );
    assert!(backup.report.interruption_ms < 1000, "{} ms", backup.report.interruption_ms);
    let left: Vec<_> = std::fs::read_dir(&data).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|n| !n.to_string_lossy().contains("clone")), "{left:?}");
}

/// Nobody waits for it, and what is stored is what a second server opened and Neo4j checked.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn an_online_copy_holds_every_commit() {
    let graph = Graph::start();
    let (backup, _) = under_a_writer(&graph, "capture = 'online'").await;
    let report = &backup.report;
    assert_eq!((report.mode.as_str(), report.consistency), ("online", Consistency::OnlineUnverified));
    assert_eq!((report.interruption_ms, report.exit_codes.get("neo4j-admin")), (0, Some(&0)));
    assert!(report.evidence.notes.contains_key("proof"), "{:?}", report.evidence.notes);
    assert!(report.evidence.counts_after.contains_key("nodes.neo4j"), "{:?}", report.evidence.counts_after);
}

/// Logs on a volume of their own: they belong to the clone, and go back to their place.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker and root"]
async fn split_logs_are_cloned_and_restored() {
    let xfs = Disk::xfs();
    let (data, logs) = (xfs.folder("data"), xfs.folder("logs"));
    let graph = Graph::with(&[
        "-v",
        &format!("{}:/data", data.display()),
        "-v",
        &format!("{}:/tx", logs.display()),
        "-e",
        "NEO4J_server_directories_transaction_logs_root=/tx",
    ]);
    assert!(logs.join("neo4j").is_dir());
    let (backup, _) = under_a_writer(&graph, "capture = 'clone'").await;
    let adapter = graph.adapter("");
    let before = graph.content();
    graph.seed("later", 5);
    let bench = bench();
    let cx = with_secrets(bench.cx());
    crate::restore::restored(&*adapter, &cx, &backup).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(graph.content(), before);
    graph.restart();
    assert_eq!(graph.content(), before);
}
