//! What happens to the host and to the engine while a server is captured: full disks, containers that go, an engine that
//! does not answer; and servers that did not run, or that something else watches.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use backup_core::testkit::adapter_suite::{Bench, Damage, capture};
use backup_core::{AdapterErrorKind, Event, EventSink, OpContext, RestoreTarget, chain};

use crate::faults::bring_back;
use crate::graph::Graph;
use crate::support::{Disk, adapter, bench, captured, docker, run, with_secrets};

/// Does something when a phase begins, and goes on.
struct Then<F>(&'static str, F);

impl<F> std::fmt::Debug for Then<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl<F: Fn() + Send + Sync + 'static> EventSink for Then<F> {
    fn emit(&self, event: Event) {
        if let Event::Phase { phase, .. } = event
            && phase == self.0
        {
            (self.1)();
        }
    }
}

/// A disk of 64 KiB.
struct Tiny(tempfile::TempDir);

impl Tiny {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        run("mount", &["-t", "tmpfs", "-o", "size=64k", "tmpfs", dir.path().to_str().unwrap()]);
        Self(dir)
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let _gone = Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

fn helpers(cx: &OpContext) -> String {
    docker(&["ps", "-aq", "--filter", &format!("label=backup.run-id={}", cx.run_id)])
}

fn started(graph: &Graph) -> String {
    docker(&["inspect", "-f", "{{.State.StartedAt}}", &graph.name])
}

fn context(bench: &Bench) -> OpContext {
    with_secrets(bench.cx())
}

/// The spool is full: said before anything is done; with `--force` the capture fails, and the server runs.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker and root"]
async fn a_full_spool_is_told_and_the_server_runs() {
    let graph = Graph::start();
    graph.seed("page", 2000);
    let before = graph.content();
    for mode in ["stop-dump", "pause-copy", "online"] {
        let adapter = graph.adapter(&format!("capture = '{mode}'"));
        let (bench, disk, since) = (bench(), Tiny::new(), started(&graph));
        let mut cx = context(&bench);
        cx.spool = disk.0.path().to_owned();
        let e = capture(&*adapter, &cx).await.unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::NoSpace, "{mode}: {}", chain(&e));
        assert_eq!(started(&graph), since, "{mode}: it was restarted");
        cx.force = true;
        let e = capture(&*adapter, &cx).await.unwrap_err();
        let text = chain(&e);
        assert!(e.kind() == AdapterErrorKind::NoSpace || text.contains("No space left"), "{mode}: {text}");
        assert!(graph.is_running(), "{mode}");
        assert_eq!(helpers(&cx), "", "{mode}");
        assert!(cx.journal.entries().await.unwrap().is_empty(), "{mode}");
        graph.wait_until_up();
        assert_eq!(graph.content(), before, "{mode}");
    }
}

/// The disk of the server itself is full.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker and root"]
async fn a_clone_on_a_full_disk_fails_and_the_server_runs() {
    let xfs = Disk::xfs();
    let data = xfs.folder("data");
    let graph = Graph::over(&data);
    graph.seed("page", 50);
    let before = graph.content();
    let ballast = xfs.path().join("ballast");
    // Down to the last block.
    let fill = "dd if=/dev/zero of=\"$0\" bs=1M; dd if=/dev/zero of=\"$0.2\" bs=4k; true";
    run("sh", &["-c", fill, ballast.to_str().unwrap()]);
    let bench = bench();
    let cx = context(&bench);
    let adapter = graph.adapter("capture = 'clone'");
    let e = capture(&*adapter, &cx).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::NoSpace, "{}", chain(&e));
    assert!(graph.is_running());
    assert!(cx.journal.entries().await.unwrap().is_empty());
    let names = std::fs::read_dir(&data).unwrap().map(|e| e.unwrap().file_name());
    assert!(!names.into_iter().any(|n| n.to_string_lossy().contains("clone")));
    for file in [ballast.clone(), ballast.with_extension("2"), xfs.path().join("ballast.2")] {
        let _gone = std::fs::remove_file(file);
    }
    captured(&*adapter).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(graph.content(), before);
}

/// What does not run is captured, and does not run afterwards; what was killed needs to recover first.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn what_was_stopped_stays_stopped_and_unclean_stores_are_told() {
    let graph = Graph::start();
    graph.seed("page", 50);
    let adapter = graph.adapter("capture = 'stop-dump'");
    docker(&["stop", "-t", "120", &graph.name]);
    let stopped = captured(&*adapter).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    let names: Vec<&str> = stopped.metadata.artifacts.iter().map(|a| a.name.as_str()).collect();
    assert_eq!(names, ["neo4j", "system"]);
    assert_eq!(stopped.report.interruption_ms, 0);
    assert!(!graph.is_running(), "what did not run stays so");
    docker(&["start", &graph.name]);
    graph.wait_until_up();
    graph.seed("later", 50);
    docker(&["kill", &graph.name]);
    let e = captured(&*adapter).await.unwrap_err();
    let text = chain(&e);
    assert!(e.kind() == AdapterErrorKind::Conflict && text.contains("to recover"), "{text}");
    assert!(!graph.is_running());
    docker(&["start", &graph.name]);
    graph.wait_until_up();
    captured(&*adapter).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
}

/// An engine that starts it again, and one that asks after its health.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn restart_policies_and_health_checks_are_no_obstacle() {
    let graph = Graph::with(&[
        "--restart=unless-stopped",
        "--health-cmd=bash -c 'echo >/dev/tcp/127.0.0.1/7687'",
        "--health-interval=1s",
        "--health-retries=1",
    ]);
    graph.seed("page", 50);
    let before = graph.content();
    for mode in ["stop-dump", "pause-copy"] {
        let adapter = graph.adapter(&format!("capture = '{mode}'"));
        captured(&*adapter).await.unwrap_or_else(|e| panic!("{mode}: {}", chain(&e)));
        assert!(graph.is_running(), "{mode}");
        assert_eq!(graph.content(), before, "{mode}");
        crate::support::wait_for("its health", || {
            docker(&["inspect", "-f", "{{.State.Health.Status}}", &graph.name]) == "healthy"
        });
    }
    assert_eq!(docker(&["inspect", "-f", "{{.RestartCount}}", &graph.name]), "0");
    let policy = "{{.HostConfig.RestartPolicy.Name}}";
    assert_eq!(docker(&["inspect", "-f", policy, &graph.name]), "unless-stopped");
}

/// Somebody removes the container while it is dumped: an error, and nothing of ours is left.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn a_container_that_is_removed_meanwhile_is_an_error() {
    let graph = Graph::with(&[]);
    graph.seed("page", 50);
    let name = graph.name.clone();
    let bench = bench();
    let mut cx = context(&bench);
    let remove = move || drop(docker(&["rm", "-f", &name]));
    cx.events = Arc::new(Then("dumping its databases", remove));
    let e = capture(&*graph.adapter("capture = 'stop-dump'"), &cx).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::NotFound, "{}", chain(&e));
    assert_eq!(helpers(&cx), "");
}

/// The engine's socket at another place, where it can be cut off.
struct Socket {
    dir: tempfile::TempDir,
    open: Arc<Mutex<Vec<UnixStream>>>,
}

impl Socket {
    fn new() -> Self {
        let this = Self { dir: tempfile::tempdir().unwrap(), open: Arc::default() };
        this.listen();
        this
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    fn url(&self) -> String {
        format!("unix://{}", self.path().display())
    }

    fn listen(&self) {
        let (listener, open) = (UnixListener::bind(self.path()).unwrap(), Arc::clone(&self.open));
        // Both sides end when the test's process does; each connection when it is cut off or closed.
        std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let server = UnixStream::connect("/var/run/docker.sock").unwrap();
                open.lock().unwrap().extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
                for (mut from, mut to) in [
                    (client.try_clone().unwrap(), server.try_clone().unwrap()),
                    (server.try_clone().unwrap(), client.try_clone().unwrap()),
                ] {
                    std::thread::spawn(move || {
                        let _cut = std::io::copy(&mut from, &mut to);
                        let _cut = to.shutdown(std::net::Shutdown::Write);
                    });
                }
            }
        });
    }

    /// Nobody is reached there any more.
    fn cut(path: &Path, open: &Mutex<Vec<UnixStream>>) {
        let _gone = std::fs::remove_file(path);
        for stream in open.lock().unwrap().drain(..) {
            let _gone = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// The engine is gone while the server is paused: nobody can bring it back but who comes later, and that is written down.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn an_engine_that_goes_leaves_a_journal_to_go_by() {
    let graph = Graph::start();
    graph.seed("page", 50);
    let before = graph.content();
    let socket = Socket::new();
    let keys = format!(
        "container = '{}'\ndocker = '{}'\npassword = {{ env = 'CANARY' }}\ncapture = 'pause-copy'",
        graph.name,
        socket.url()
    );
    let bench = bench();
    let mut cx = context(&bench);
    let (path, open) = (socket.path(), Arc::clone(&socket.open));
    cx.events = Arc::new(Then("copying its files", move || Socket::cut(&path, &open)));
    let e = capture(&*adapter(&keys), &cx).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Unavailable, "{}", chain(&e));
    assert!(!graph.is_running(), "it is paused");
    assert_eq!(cx.journal.entries().await.unwrap().len(), 1);
    socket.listen();
    bring_back(&graph, &cx).await;
    assert_eq!(graph.content(), before);
}

/// Nobody waits for a server that has given a database up; it runs on its old data.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker and root"]
async fn a_server_that_cannot_open_the_restored_data_runs_on_the_old_one() {
    let graph = Graph::with(&[]);
    graph.seed("backup", 50);
    let adapter = graph.adapter("capture = 'stop-dump'");
    let backup = captured(&*adapter).await.unwrap();
    graph.wait_until_up();
    graph.seed("old", 20);
    let old = graph.content();
    let bench = bench();
    let mut cx = context(&bench);
    let plan = adapter.plan_restore(&cx, &backup.metadata, &RestoreTarget::Live).await.unwrap();
    let token = adapter.stage(&cx, &plan, &backup.source(Damage::None)).await.unwrap();
    let name = graph.name.clone();
    cx.events = Arc::new(Then("starting the server", move || spoil(&name, "neo4j")));
    let e = adapter.switch(&cx, &plan, &token).await.unwrap_err();
    let text = chain(&e);
    assert!(text.contains("the old data is live again"), "{text}");
    assert!(text.contains("database `neo4j` did not come up"), "{text}");
    graph.wait_until_up();
    assert_eq!(graph.content(), old);
    assert!(cx.journal.entries().await.unwrap().is_empty());
}

/// Makes every file of a database rubbish, in the volume of a container that does not run.
fn spoil(container: &str, database: &str) {
    let of_data = "{{range .Mounts}}{{if eq .Destination \"/data\"}}{{.Source}}{{end}}{{end}}";
    let data = Path::new(&docker(&["inspect", "-f", of_data, container])).join("databases").join(database);
    let files = std::fs::read_dir(data).unwrap().map(|entry| entry.unwrap().path());
    for file in files.filter(|path| path.is_file()) {
        let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
        std::fs::write(file, vec![0x5a; length]).unwrap();
    }
}
