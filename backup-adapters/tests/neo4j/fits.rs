//! What a server does not take: backups of newer ones and of other major ones, parts of backups, and writes.

use backup_core::{AdapterErrorKind, RestoreTarget, chain};

use crate::graph::{Graph, Release};
use crate::support::{Disk, bench, captured, docker, with_secrets};

/// All that could be left behind.
fn look(graph: &Graph) -> Vec<String> {
    let mut rows = vec![graph.content()];
    for names in ["CALL db.labels()", "CALL db.propertyKeys()", "CALL db.relationshipTypes()"] {
        rows.extend(graph.cypher(names));
    }
    rows.extend(graph.cypher("MATCH (n) RETURN count(n)"));
    rows
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker and root"]
async fn a_backup_of_another_major_version_is_refused_in_the_plan() {
    let disk = Disk::xfs();
    let (five, four) = (Graph::start(), Graph::over_of(Release::Four, &disk.folder("data")));
    let mut backups = Vec::new();
    for graph in [&five, &four] {
        graph.seed("backup", 50);
        backups.push(captured(&*graph.adapter("capture = 'stop-copy'")).await.unwrap());
        graph.wait_until_up();
    }
    let bench = bench();
    for (graph, backup, told) in [
        (&four, &backups[0], "the backup is of Neo4j 5."),
        (&five, &backups[1], "the backup is of Neo4j 4.4."),
    ] {
        let (adapter, before) = (graph.adapter(""), look(graph));
        let plan = async |force: bool| {
            let mut cx = with_secrets(bench.cx());
            cx.force = force;
            adapter.plan_restore(&cx, &backup.metadata, &RestoreTarget::Live).await
        };
        let e = plan(false).await.unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::Conflict, "{}", chain(&e));
        let now = if told.contains("5.") { "and the server is 4.4." } else { "and the server is 5." };
        assert!(e.to_string().starts_with(told) && e.to_string().contains(now), "{e}");
        assert!(e.to_string().ends_with("use the same version, or --force"), "{e}");
        plan(true).await.unwrap();
        assert_eq!(look(graph), before);
        // One that cannot be asked is known by its image.
        docker(&["stop", "-t", "120", &graph.name]);
        let stopped = plan(false).await.unwrap_err();
        assert_eq!(stopped.to_string(), e.to_string());
        let part = adapter.part(&backup.metadata, &[backup.metadata.artifacts[0].name.clone()]);
        let part = part.unwrap_err();
        assert_eq!(part.kind(), AdapterErrorKind::Unsupported);
        assert_eq!(part.to_string(), "backups of `neo4j` are restored as a whole");
        docker(&["start", &graph.name]);
        graph.wait_until_up();
        assert_eq!(look(graph), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn a_backup_of_a_newer_minor_version_is_refused_in_the_plan() {
    let graph = Graph::start();
    let adapter = graph.adapter("capture = 'pause-copy'");
    let backup = captured(&*adapter).await.unwrap();
    let version = backup.metadata.service_version.clone().unwrap();
    let minor: u32 = version.split('.').nth(1).unwrap().parse().unwrap();
    let bench = bench();
    let plan = async |version: String| {
        let mut metadata = (*backup.metadata).clone();
        metadata.service_version = Some(version);
        adapter.plan_restore(&with_secrets(bench.cx()), &metadata, &RestoreTarget::Live).await
    };
    let newer = format!("5.{}.0", minor + 1);
    let e = plan(newer.clone()).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Conflict, "{}", chain(&e));
    let told = format!("the backup is of Neo4j {newer}, and the server is {version}: ");
    assert!(e.to_string().starts_with(&told), "{e}");
    for fits in [version, format!("5.{minor}.99"), format!("5.{}.3", minor - 1)] {
        plan(fits.clone()).await.unwrap_or_else(|e| panic!("{fits}: {}", chain(&e)));
    }
}

async fn writes(graph: &Graph) {
    graph.seed("backup", 50);
    let (before, adapter) = (look(graph), graph.adapter(""));
    let bench = bench();
    let proven = adapter.prove_writable(&with_secrets(bench.cx())).await;
    assert!(proven.unwrap_or_else(|e| panic!("{}", chain(&e))));
    assert_eq!(look(graph), before);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker and root"]
async fn a_write_is_made_and_nothing_stays() {
    writes(&Graph::start()).await;
    let disk = Disk::xfs();
    writes(&Graph::over_of(Release::Four, &disk.folder("data"))).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker and root"]
async fn a_database_that_is_read_only_takes_no_writes() {
    let disk = Disk::xfs();
    let dir = disk.folder("data");
    // It has to be made first.
    let made = Graph::over(&dir);
    docker(&["stop", "-t", "120", &made.name]);
    drop(made);
    let volume = format!("{}:/data", dir.display());
    let graph = Graph::with(&["-v", &volume, "-e", "NEO4J_server_databases_read__only=neo4j"]);
    assert!(graph.ask("CREATE (:Page)").is_err(), "it is not read-only");
    let bench = bench();
    let e = graph.adapter("").prove_writable(&with_secrets(bench.cx())).await.unwrap_err();
    assert!(e.to_string().contains("read-only") && !e.to_string().contains('\n'), "{}", chain(&e));
    assert_ne!(e.kind(), AdapterErrorKind::PermissionDenied, "that is for users who may not write");
    assert_eq!(graph.cypher("MATCH (n) RETURN count(n)"), ["[0]"]);
}
