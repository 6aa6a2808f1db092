//! Shared by the tests of the `neo4j` adapter: file systems and writers that end with their test, and contexts.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use backup_adapters::neo4j::Neo4jConfig;
use backup_core::testkit::adapter_suite::{AdapterFixture, Bench, Captured, capture};
use backup_core::{
    AdapterConfig, AdapterError, BuildContext, ConfigError, OpContext, Secret, SecretRef, SecretResolver,
    ServiceAdapter,
};

use crate::graph::Graph;

/// A password that must never show.
pub(crate) const CANARY: &str = "canary-7f3a-hunter2";

/// How long a server may take for what a test waits for: many start at once, on few processors.
const PATIENCE: Duration = Duration::from_secs(240);

pub(crate) static NUMBER: AtomicU32 = AtomicU32::new(0);

#[expect(clippy::disallowed_methods, reason = "tests may be pointed to another image")]
pub(crate) fn image() -> String {
    std::env::var("BACKUP_TEST_NEO4J_IMAGE").unwrap_or_else(|_| "backup-test/neo4j:5".to_owned())
}

pub(crate) fn docker(args: &[&str]) -> String {
    let done = Command::new("docker").args(args).output().unwrap();
    assert!(done.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

pub(crate) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "waited in vain for {what}");
        // Each question may start a program, and there are few processors.
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Commits numbered nodes one after the other, as fast as it can, whatever becomes of the server.
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU32>,
    thread: Option<JoinHandle<Duration>>,
}

impl Writer {
    pub(crate) fn start(graph: &Graph) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (ended, count, mut client) = (Arc::clone(&stop), Arc::clone(&acknowledged), graph.client());
        let name = graph.name.clone();
        let thread = std::thread::spawn(move || {
            let (mut n, mut last, mut gap) = (0, Instant::now(), Duration::ZERO);
            while !ended.load(Ordering::Relaxed) {
                // Merged, as an answer may get lost.
                match client.ask("neo4j", &format!("MERGE (w:Writer {{n: {n}}}) RETURN 1")) {
                    Ok(_) => {
                        n += 1;
                        count.store(n, Ordering::SeqCst);
                        gap = gap.max(last.elapsed());
                        last = Instant::now();
                        // Without a rest it takes a processor for itself, and what it has written grows with that.
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    Err(_) => {
                        // It may have got another address.
                        std::thread::sleep(Duration::from_millis(100));
                        let found = Command::new("docker")
                            .args([
                                "inspect",
                                "-f",
                                "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
                                &name,
                            ])
                            .output()
                            .unwrap();
                        client.address = String::from_utf8_lossy(&found.stdout).trim().to_owned();
                    }
                }
            }
            gap
        });
        let this = Self { stop, acknowledged, thread: Some(thread) };
        wait_for("the first commits", || this.acknowledged() > 20);
        this
    }

    /// How many commits were acknowledged: those with a number below.
    pub(crate) fn acknowledged(&self) -> u32 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// Ends it; the longest time between two acknowledged commits.
    pub(crate) fn end(mut self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// The numbers that a writer left, which have no hole.
pub(crate) fn written(graph: &Graph) -> u32 {
    let rows = graph.cypher("MATCH (w:Writer) RETURN count(w), count(DISTINCT w.n), max(w.n)");
    let numbers: Vec<u32> = serde_json::from_str(&rows[0]).unwrap();
    assert_eq!(numbers[0], numbers[1], "a number twice");
    assert_eq!(numbers[0], numbers[2] + 1, "a hole in what was written");
    numbers[0]
}

/// A file system of its own, that can clone files.
pub(crate) struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    pub(crate) fn xfs() -> Self {
        Self::new("mkfs.xfs", &["-q", "-m", "reflink=1"])
    }

    pub(crate) fn btrfs() -> Self {
        Self::new("mkfs.btrfs", &["-q"])
    }

    fn new(program: &str, options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(2 << 30).unwrap();
        let this = Self { dir };
        std::fs::create_dir(this.path()).unwrap();
        run(program, &[options, &[image.to_str().unwrap()]].concat());
        run("mount", &["-o", "loop", image.to_str().unwrap(), this.path().to_str().unwrap()]);
        this
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    /// A folder for a server.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(7474), Some(7474)).unwrap();
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A container that is just going may still use it.
        for lazy in [&["-q"][..], &["-q"], &["-l"]] {
            let path = self.path();
            let done = Command::new("umount").args(lazy).arg(&path).output();
            if done.is_ok_and(|d| d.status.success()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

pub(crate) fn run(program: &str, args: &[&str]) {
    let done = Command::new(program).args(args).output();
    let done = done.unwrap_or_else(|e| panic!("{program} (scripts/test installs it): {e}"));
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// The adapter that `keys` configure.
pub(crate) fn adapter(keys: &str) -> Arc<dyn ServiceAdapter> {
    let config: Neo4jConfig = toml::from_str(keys).unwrap();
    config.build(&BuildContext::new("neo4j".parse().unwrap(), "/nonexistent")).unwrap()
}

/// Knows the canary, and a wrong password.
#[derive(Debug)]
pub(crate) struct Secrets;

impl SecretResolver for Secrets {
    fn resolve(&self, reference: &SecretRef) -> Result<Secret, ConfigError> {
        match reference {
            SecretRef::Env(name) if name == "CANARY" => Ok(Secret::new(CANARY)),
            SecretRef::Env(name) if name == "WRONG" => Ok(Secret::new("wrong-one")),
            _ => Err(ConfigError::new("there is no such secret")),
        }
    }
}

struct Unused;

#[async_trait]
impl AdapterFixture for Unused {
    fn adapter(&self) -> Arc<dyn ServiceAdapter> {
        unreachable!()
    }
    async fn mutate(&self) {}
    async fn live(&self) -> String {
        String::new()
    }
    fn context(&self, cx: OpContext) -> OpContext {
        with_secrets(cx)
    }
}

pub(crate) fn with_secrets(mut cx: OpContext) -> OpContext {
    cx.secrets = Arc::new(Secrets);
    // The tests share an engine, where containers are found by the run's id.
    let n = NUMBER.fetch_add(1, Ordering::Relaxed) + (std::process::id() << 12);
    cx.run_id = format!("{}-{n:08x}", cx.timestamp).parse().unwrap();
    cx.at_work = cx.run_id.clone();
    cx
}

/// Folders and contexts.
pub(crate) fn bench() -> Bench {
    Bench::new(Unused)
}

pub(crate) async fn captured(adapter: &dyn ServiceAdapter) -> Result<Captured, AdapterError> {
    let bench = bench();
    capture(adapter, &bench.cx()).await
}
