//! The version before, 4.4: other settings, other programs, another form of dumps.

use backup_core::Consistency;

use crate::capture::under_a_writer;
use crate::graph::{Graph, Release};
use crate::restore::{round_trip, set_password};
use crate::support::Disk;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker and root"]
async fn captures_of_4_4_hold_every_commit() {
    let disk = Disk::xfs();
    let graph = Graph::over_of(Release::Four, &disk.folder("data"));
    let (clone, _) = under_a_writer(&graph, "capture = 'auto'").await;
    assert_eq!(
        (clone.report.mode.as_str(), clone.report.consistency),
        ("clone", Consistency::CrashConsistent)
    );
    assert!(clone.report.service_version.as_deref().is_some_and(|v| v.starts_with("4.4.")));
    graph.cypher("MATCH (n) DETACH DELETE n");
    let (dump, _) = under_a_writer(&graph, "capture = 'stop-dump'").await;
    let names: Vec<&str> = dump.metadata.artifacts.iter().map(|a| a.name.as_str()).collect();
    assert_eq!(names, ["neo4j", "system"]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker and root"]
async fn dumps_and_files_of_4_4_there_and_back() {
    let disk = Disk::xfs();
    let graph = Graph::over_of(Release::Four, &disk.folder("data"));
    round_trip(&graph, "stop-dump").await;
    // The moment of the second restore is that of the first.
    graph.forget_kept();
    graph.cypher("MATCH (n) DETACH DELETE n");
    round_trip(&graph, "stop-copy").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker and root"]
async fn the_password_of_4_4_is_set_if_that_is_wanted() {
    let disk = Disk::xfs();
    set_password(&Graph::over_of(Release::Four, &disk.folder("data"))).await;
}
