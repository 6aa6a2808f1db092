//! Captures of a server that goes on: what moves meanwhile, copies that do not pass, and what is left.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use backup_core::testkit::adapter_suite::{Captured, capture};
use backup_core::{AdapterError, AdapterErrorKind, Event, EventSink, OpContext, ServiceAdapter, chain};

use crate::capture::in_a_folder;
use crate::graph::{Client, Graph};
use crate::support::{Disk, bench, captured, docker, wait_for, with_secrets};

const ONLINE: &str = "capture = 'online'";
const COPYING: &str = "copying database `neo4j`";
const PROVING: &str = "starting a second server over the captured data";

/// Remembers the phases, and does something when one begins; it is told how often it began.
struct Phases<F> {
    seen: Mutex<Vec<String>>,
    phase: &'static str,
    then: F,
}

impl<F: Fn(usize) + Send + Sync + 'static> Phases<F> {
    fn new(phase: &'static str, then: F) -> Arc<Self> {
        Arc::new(Self { seen: Mutex::default(), phase, then })
    }

    fn count(&self, is: impl Fn(&str) -> bool) -> usize {
        self.seen.lock().unwrap().iter().filter(|phase| is(phase)).count()
    }
}

impl<F> std::fmt::Debug for Phases<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.phase)
    }
}

impl<F: Fn(usize) + Send + Sync + 'static> EventSink for Phases<F> {
    fn emit(&self, event: Event) {
        let Event::Phase { phase, .. } = event else { return };
        let is_it = phase == self.phase;
        self.seen.lock().unwrap().push(phase);
        if is_it {
            (self.then)(self.count(|p| p == self.phase));
        }
    }
}

/// A capture that `phases` follow; and nothing is left of it, however it ended.
async fn online<F: Fn(usize) + Send + Sync + 'static>(
    adapter: &dyn ServiceAdapter,
    phases: &Arc<Phases<F>>,
) -> Result<Captured, AdapterError> {
    let bench = bench();
    let mut cx = with_secrets(bench.cx());
    cx.events = Arc::<Phases<F>>::clone(phases);
    let done = capture(adapter, &cx).await;
    assert_nothing_is_left(&cx);
    done
}

fn assert_nothing_is_left(cx: &OpContext) {
    assert!(!cx.spool.join("copy").exists(), "a copy in the spool");
    assert_eq!(docker(&["ps", "-aq", "--filter", &format!("label=backup.run-id={}", cx.run_id)]), "");
}

/// A server that makes a checkpoint a second after a commit.
fn checkpoints_often(data: &Path) -> Graph {
    let volume = format!("{}:/data", data.display());
    Graph::with(&["-v", &volume, "-e", "NEO4J_db_checkpoint_interval_time=1s"])
}

/// Commits, and waits until that is in a checkpoint.
fn checkpoint(client: &Client, data: &Path) {
    let files = || -> Vec<Vec<u8>> {
        let dir = std::fs::read_dir(data.join("transactions/neo4j")).unwrap().map(|e| e.unwrap().path());
        let mut named: Vec<PathBuf> = dir.filter(|p| p.to_str().unwrap().contains("/checkpoint.")).collect();
        named.sort();
        named.iter().map(|f| std::fs::read(f).unwrap()).collect()
    };
    let before = files();
    client.ask("neo4j", "CREATE (:Writer {n: 0})").unwrap();
    wait_for("a checkpoint", || files() != before);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker and root"]
async fn a_checkpoint_during_the_copy_leads_to_another_copy() {
    let xfs = Disk::xfs();
    let data = xfs.folder("data");
    let graph = checkpoints_often(&data);
    graph.seed("page", 200);
    let before = graph.content();
    let (client, at) = (graph.client(), data.clone());
    let phases = Phases::new(COPYING, move |n| {
        if n == 1 {
            checkpoint(&client, &at);
        }
    });
    let adapter = graph.adapter(ONLINE);
    let backup = online(&*adapter, &phases).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(phases.count(|p| p == COPYING), 2);
    assert_eq!(phases.count(|p| p == "database `neo4j`: a checkpoint was made: once more"), 1);
    let report = &backup.report;
    assert_eq!((report.mode.as_str(), report.interruption_ms), ("online", 0));
    assert_eq!(report.evidence.notes.get("attempts.neo4j").map(String::as_str), Some("2"));
    assert!(report.evidence.notes.contains_key("proof"));
    let left = std::fs::read_dir(&data).unwrap().map(|e| e.unwrap().file_name());
    assert!(!left.into_iter().any(|n| n.to_string_lossy().contains("clone")));
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(in_a_folder(&*adapter, &backup, graph.release, dir.path()).await.content(), before);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker and root"]
async fn a_server_that_always_makes_checkpoints_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::os::unix::fs::chown(&data, Some(7474), Some(7474)).unwrap();
    let graph = checkpoints_often(&data);
    graph.seed("page", 200);
    let before = graph.content();
    let (client, at) = (graph.client(), data.clone());
    let phases = Phases::new(COPYING, move |_| checkpoint(&client, &at));
    let e = online(&*graph.adapter(ONLINE), &phases).await.unwrap_err();
    let text = chain(&e);
    assert_eq!(e.kind(), AdapterErrorKind::Changed, "{text}");
    for part in ["`neo4j`", "5 attempts", "a checkpoint was made", "`stop-copy`"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(phases.count(|p| p == COPYING), 5);
    assert_eq!(phases.count(|p| p == PROVING), 0);
    assert_eq!(graph.content(), before);
}

/// And a server that does not run is copied as it is.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn an_index_made_during_the_copy_leads_to_another_copy() {
    let graph = Graph::start();
    graph.seed("page", 200);
    let client = graph.client();
    let phases = Phases::new(COPYING, move |n| {
        if n == 1 {
            client.ask("neo4j", "CREATE INDEX meanwhile FOR (p:Page) ON (p.id)").unwrap();
            client.ask("neo4j", "CALL db.awaitIndexes(60)").unwrap();
        }
    });
    let adapter = graph.adapter(ONLINE);
    let backup = online(&*adapter, &phases).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(phases.count(|p| p.contains("an index came")), 1);
    assert_eq!(phases.count(|p| p == COPYING), 2);
    let dir = tempfile::tempdir().unwrap();
    let restored = in_a_folder(&*adapter, &backup, graph.release, dir.path()).await;
    assert_eq!(restored.content(), graph.content());
    assert!(restored.content().contains("meanwhile"));

    docker(&["stop", "-t", "120", &graph.name]);
    let stopped = captured(&*adapter).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!((stopped.report.mode.as_str(), stopped.report.interruption_ms), ("stop-copy", 0));
    assert!(!graph.is_running(), "what did not run stays so");
}

/// What Neo4j cannot open, and what it opens and finds inconsistent.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn a_copy_that_does_not_pass_is_no_backup() {
    let graph = Graph::start();
    graph.seed("page", 200);
    // What is in a checkpoint is not recovered from the logs.
    graph.restart();
    let adapter = graph.adapter(ONLINE);
    for (spoilt, says) in [
        ("transactions/neo4j/neostore.transaction.db.0", "does not open the captured data"),
        ("data/databases/neo4j/neostore.relationshipstore.db", "finds database `neo4j` inconsistent"),
    ] {
        let bench = bench();
        let mut cx = with_secrets(bench.cx());
        let file = cx.spool.join("copy").join(spoilt);
        cx.events = Phases::new(PROVING, move |_| {
            let len = file.metadata().unwrap().len();
            std::fs::write(&file, vec![0; usize::try_from(len).unwrap().min(1 << 20)]).unwrap();
        });
        let e = capture(&*adapter, &cx).await.unwrap_err();
        let text = chain(&e);
        assert!(e.kind() == AdapterErrorKind::Corrupt && text.contains(says), "{text}");
        assert_nothing_is_left(&cx);
        assert!(graph.is_running());
    }
}
