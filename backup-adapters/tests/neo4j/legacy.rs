//! Archives of the old scripts, through the engine: a copy of a data directory while the server ran.

use std::process::Command;
use std::sync::Arc;

use backup_adapters::neo4j::Neo4jConfig;
use backup_core::catalog::VerifyLevel;
use backup_core::{Outcome, chain};

use crate::graph::Graph;
use crate::old::{Old, ok};
use crate::support::{Secrets, docker, run};

const AT: &str = "20250301_040000";
const TOP: &str = "neo4j_bak_20250301_040000";

/// What the scripts did: `docker cp` of the data, and `tar`.
fn archive(graph: &Graph, spoil: impl Fn(&std::path::Path)) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join(TOP);
    std::fs::create_dir(&copy).unwrap();
    docker(&["cp", &format!("{}:/data/.", graph.name), copy.to_str().unwrap()]);
    spoil(&copy);
    let tar = dir.path().join("x.tar.gz");
    run("tar", &["czf", tar.to_str().unwrap(), "-C", dir.path().to_str().unwrap(), TOP]);
    std::fs::read(tar).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn an_old_archive_is_verified_restored_and_undone() {
    let graph = Graph::start();
    graph.seed("backup", 100);
    let old = graph.content();
    let keys = format!("container = '{}'\npassword = {{ env = 'CANARY' }}\n", graph.name);
    let store = Old::new::<Neo4jConfig>(&keys, Arc::new(Secrets)).await;
    // Nobody writes, so that this live copy is a sound one.
    let whole = archive(&graph, |_| {});
    let id = store.put(AT, "neo4j_data.tar.gz", &whole);
    // One that lost a part of its store, as a copy may that took minutes.
    let torn = archive(&graph, |copy| {
        for file in ["neostore", "neostore.nodestore.db", "neostore.propertystore.db"] {
            let name = copy.join("databases/neo4j").join(file);
            let block = copy.join("databases/neo4j").join(format!("block.{file}"));
            for path in [name, block].iter().filter(|p| p.exists()) {
                std::fs::write(path, b"torn").unwrap();
            }
        }
        std::fs::remove_dir_all(copy.join("transactions/neo4j")).unwrap();
    });
    let bad = store.put("20250302_040000", "neo4j_data.tar.gz", &torn);
    let cut = store.put("20250303_040000", "neo4j_data.tar.gz", &whole[..whole.len() - 20]);
    graph.cypher("MATCH (n) DETACH DELETE n");
    graph.seed("changed", 50);
    let changed = graph.content();

    assert_eq!(store.verify(&id, VerifyLevel::Content).await, ok());
    let (outcome, error) = store.verify(&cut, VerifyLevel::Content).await;
    assert!(outcome == Outcome::Damaged && error.contains("gzip stream is cut"), "{error}");
    assert!(chain(&store.plan(&cut, None).await.unwrap_err()).contains("gzip stream is cut"));

    // It is whole as an archive; Neo4j itself says what it is worth, before anything is replaced.
    let started = || docker(&["inspect", "-f", "{{.State.StartedAt}}", &graph.name]);
    let before = started();
    let (outcome, error) = store.restore(&bad, None).await;
    assert!(outcome == Outcome::Failed && error.contains("does not open the restored data"), "{error}");
    assert_eq!((graph.content(), started()), (changed.clone(), before));

    let preview = store.plan(&id, None).await.unwrap();
    let warned = preview.metadata.capture.warnings.join("\n");
    assert!(warned.contains("copied while the server wrote them"), "{warned}");
    assert_eq!(store.restore(&id, None).await, ok());
    graph.wait_until_up();
    assert_eq!(graph.content(), old);
    let owners =
        docker(&["exec", &graph.name, "find", "/data", "!", "-user", "neo4j", "-not", "-path", "/data"]);
    assert_eq!(owners, "", "not of the server's user");
    assert_eq!(store.undo().await, ok());
    graph.wait_until_up();
    assert_eq!(graph.content(), changed);

    assert_eq!(store.restore(&id, Some("out")).await, ok());
    assert!(
        store.path("out/data/databases/neo4j").is_dir() && store.path("out/data/transactions/neo4j").is_dir()
    );
    let listed = Command::new("ls").arg(store.path("out/data")).output().unwrap();
    assert!(!String::from_utf8_lossy(&listed.stdout).contains("neo4j_bak"), "{listed:?}");
}
