//! Restores of servers in containers, of every version that there is an image of: over the wire, which crosses the
//! bridge, and by their files.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use backup_core::{AdapterErrorKind, Event, EventSink, RestoreTarget, ServiceAdapter, chain};

use crate::common::{entries, killed_in, next_process, staged};
use crate::support::{CANARY, adapter, bench, captured, wait_for, with_secrets};

/// Image, its client, and what lets it tell a digest of its data.
const SERVERS: [(&str, &str, &[&str]); 4] = [
    ("backup-test/redis:6", "redis-cli", &[]),
    ("backup-test/redis:7", "redis-cli", &["--enable-debug-command", "yes"]),
    ("backup-test/redis:8", "redis-cli", &["--enable-debug-command", "yes"]),
    ("backup-test/valkey:8", "valkey-cli", &["--enable-debug-command", "yes"]),
];

/// Ways to keep data, each of which loses a restored file in a way of its own.
const PERSISTENCE: [&[&str]; 3] = [
    &["--appendonly", "yes"],
    &["--appendonly", "no", "--save", ""],
    &["--appendonly", "no", "--save", "1 1"],
];

static NUMBER: AtomicU32 = AtomicU32::new(0);

struct Container {
    name: String,
    client: &'static str,
}

fn docker(args: &[&str]) -> String {
    let done = Command::new("docker").args(args).output().unwrap();
    assert!(done.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

impl Container {
    fn start((image, client, debug): (&str, &'static str, &[&str]), settings: &[&str]) -> Self {
        let n = NUMBER.fetch_add(1, Ordering::Relaxed);
        let this = Self { name: format!("backup-test-{}-{n}-restore", std::process::id()), client };
        let label = format!("backup-test={}", std::process::id());
        let mut args = vec!["run", "-d", "--name", &this.name, "--label", &label, image];
        args.extend(["--repl-diskless-sync-delay", "0", "--requirepass", CANARY]);
        args.extend_from_slice(debug);
        args.extend_from_slice(settings);
        docker(&args);
        this.wait_until_up();
        this
    }

    fn wait_until_up(&self) {
        wait_for("the server", || {
            let mut command = Command::new("docker");
            command.args(["exec", "-e", &format!("REDISCLI_AUTH={CANARY}"), &self.name, self.client, "PING"]);
            String::from_utf8_lossy(&command.output().unwrap().stdout).contains("PONG")
        });
    }

    fn cli(&self, args: &[&str]) -> String {
        let secret = format!("REDISCLI_AUTH={CANARY}");
        let mut all = vec!["exec", "-e", &secret, &self.name, self.client];
        all.extend_from_slice(args);
        docker(&all)
    }

    fn seed(&self, word: &str, many: u32) -> String {
        let script = "for n = 1, tonumber(ARGV[1]) do redis.call('SET', ARGV[2] .. ':' .. n, 'value ' .. n) end \
                      redis.call('HSET', ARGV[2] .. ':h', 'a', '1') redis.call('RPUSH', ARGV[2] .. ':l', '1', '2') \
                      redis.call('SET', ARGV[2] .. ':ttl', 'x', 'EX', '90000') redis.call('SELECT', '7') \
                      redis.call('SET', ARGV[2] .. ':seven', '7')";
        self.cli(&["EVAL", script, "0", &many.to_string(), word]);
        self.digest()
    }

    fn digest(&self) -> String {
        let digest = self.cli(&["DEBUG", "DIGEST"]);
        assert_eq!(digest.len(), 40, "{digest}");
        digest
    }

    fn adapter(&self, keys: &str) -> Arc<dyn ServiceAdapter> {
        adapter(&format!("container = '{}'\npassword = {{ env = 'CANARY' }}\n{keys}", self.name))
    }

    fn restart(&self) {
        docker(&["restart", &self.name]);
        self.wait_until_up();
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _gone = Command::new("docker").args(["rm", "-fv", &self.name]).output();
    }
}

/// There, restarted, and back again.
async fn round_trip(server: (&str, &'static str, &[&str]), settings: &[&str], mode: &str) {
    let what = format!("{} {settings:?} {mode}", server.0);
    let container = Container::start(server, settings);
    let adapter = container.adapter(&format!("restore = '{mode}'"));
    let restored = container.seed("backup", 1000);
    let backup = captured(&*adapter).await.unwrap_or_else(|e| panic!("{what}: {}", chain(&e)));
    container.cli(&["FLUSHALL"]);
    let old = container.seed("old", 300);
    let cx = with_secrets(bench().cx());
    let (plan, token) =
        staged(&*adapter, &cx, &backup).await.unwrap_or_else(|e| panic!("{what}: {}", chain(&e)));
    assert_eq!(container.digest(), old, "{what}");
    let switched = adapter
        .switch(&cx, &plan, &token)
        .await
        .unwrap_or_else(|e| panic!("{what}: {}\n{}", chain(&e), docker(&["logs", &container.name])));
    assert_eq!(container.digest(), restored, "{what}");
    assert!(entries(&cx).await.is_empty());
    let probed = adapter.probe(&cx, &RestoreTarget::Live).await.unwrap();
    assert_eq!(backup.report.evidence.contradictions(&probed), Vec::<String>::new(), "{what}");
    assert_eq!(container.cli(&["SET", "probe", "1"]), "OK");
    assert_eq!(container.cli(&["DEL", "probe"]), "1");
    container.restart();
    assert_eq!(container.digest(), restored, "{what}, after a restart");
    assert_eq!(adapter.switch(&cx, &plan, &token).await.unwrap(), switched, "{what}");
    let mut later = with_secrets(next_process(&cx));
    later.timestamp = cx.timestamp.next();
    let undone = adapter.undo(&later, &switched).await.unwrap_or_else(|e| panic!("{what}: {}", chain(&e)));
    assert_eq!(container.digest(), old, "{what}, undone");
    assert_eq!(adapter.undo(&later, &switched).await.unwrap(), undone, "{what}");
    assert_eq!(container.digest(), old, "{what}, undone again");
    container.restart();
    assert_eq!(container.digest(), old, "{what}, undone and restarted");
    adapter.discard(&later, &undone).await.unwrap();
    assert!(adapter.leftovers(&later, &undone).await.unwrap().is_empty());
    assert_eq!(container.digest(), old, "{what}, cleaned up");
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn every_version_over_the_wire() {
    for server in SERVERS {
        for settings in PERSISTENCE {
            round_trip(server, settings, "wire").await;
        }
    }
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn every_version_by_its_files() {
    for server in SERVERS {
        for settings in PERSISTENCE {
            round_trip(server, settings, "file").await;
        }
    }
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_server_that_takes_long_to_save_is_not_cut_off() {
    let container = Container::start(SERVERS[1], PERSISTENCE[2]);
    let adapter = container.adapter("restore = 'file'");
    let restored = container.seed("backup", 100);
    let backup = captured(&*adapter).await.unwrap();
    container.cli(&["FLUSHALL"]);
    let old = container.seed("old", 1200);
    // Longer than the engine waits by itself when it stops a container, which is 10 s.
    container.cli(&["CONFIG", "SET", "rdb-key-save-delay", "10000"]);
    let (cx, begun) = (with_secrets(bench().cx()), Instant::now());
    let (plan, token) = staged(&*adapter, &cx, &backup).await.unwrap();
    let switched = adapter.switch(&cx, &plan, &token).await.unwrap();
    assert!(begun.elapsed() > Duration::from_secs(12), "{:?}", begun.elapsed());
    let ended = docker(&["logs", &container.name]);
    assert!(ended.contains("Redis is now ready to exit"), "{ended}");
    assert_eq!(container.digest(), restored);
    let mut later = with_secrets(next_process(&cx));
    later.timestamp = cx.timestamp.next();
    adapter.undo(&later, &switched).await.unwrap();
    assert_eq!(container.digest(), old);
}

/// Sets `w:<n>` one after the other, reconnecting as long as it takes; gives those that were acknowledged.
fn write_until(container: &str, stop: &AtomicBool) -> BTreeSet<u64> {
    let (mut acknowledged, mut n) = (BTreeSet::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        let ip = docker(&["inspect", "-f", "{{.NetworkSettings.IPAddress}}", container]);
        let Ok(mut stream) = TcpStream::connect((ip.as_str(), 6379)) else { continue };
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut answers = BufReader::new(stream.try_clone().unwrap());
        let mut ask = |command: &str| {
            let mut answer = String::new();
            let asked = stream.write_all(command.as_bytes()).and_then(|()| answers.read_line(&mut answer));
            asked.is_ok_and(|n| n > 0).then_some(answer)
        };
        if ask(&format!("AUTH {CANARY}\r\n")).is_none() {
            continue;
        }
        while !stop.load(Ordering::Relaxed) {
            n += 1;
            match ask(&format!("SET w:{n} {n}\r\n")) {
                Some(answer) if answer.starts_with("+OK") => drop(acknowledged.insert(n)),
                Some(_) => {}
                None => break,
            }
        }
    }
    acknowledged
}

impl Container {
    fn written(&self) -> BTreeSet<u64> {
        let keys = self.cli(&["--scan", "--pattern", "w:*"]);
        keys.lines().filter_map(|k| k.strip_prefix("w:")?.parse().ok()).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Docker"]
async fn by_its_files_under_a_writer_no_acknowledged_write_is_lost() {
    for server in [SERVERS[0], SERVERS[1]] {
        for settings in [PERSISTENCE[0], PERSISTENCE[1]] {
            let what = format!("{} {settings:?}", server.0);
            let container = Container::start(server, settings);
            let adapter = container.adapter("restore = 'file'");
            container.seed("backup", 500);
            let backup = captured(&*adapter).await.unwrap();
            container.cli(&["FLUSHALL"]);
            let stop = Arc::new(AtomicBool::new(false));
            let (name, stopped) = (container.name.clone(), Arc::clone(&stop));
            let writer = std::thread::spawn(move || write_until(&name, &stopped));
            let guard = Stop(stop);
            wait_for("the writer", || container.written().len() > 200);
            let cx = with_secrets(bench().cx());
            let (plan, token) = staged(&*adapter, &cx, &backup).await.unwrap();
            let switched = adapter.switch(&cx, &plan, &token).await;
            let switched = switched
                .unwrap_or_else(|e| panic!("{what}: {}\n{}", chain(&e), docker(&["logs", &container.name])));
            let so_far = container.written().len();
            wait_for("the writer to go on", || container.written().len() > so_far + 50);
            drop(guard);
            let acknowledged = tokio::task::block_in_place(|| writer.join().unwrap());
            assert_eq!(container.cli(&["GET", "backup:500"]), "value 500", "{what}");
            let after = container.written();
            let mut later = with_secrets(next_process(&cx));
            later.timestamp = cx.timestamp.next();
            adapter.undo(&later, &switched).await.unwrap();
            let before = container.written();
            let lost: Vec<_> =
                acknowledged.iter().filter(|n| !before.contains(n) && !after.contains(n)).collect();
            assert!(lost.is_empty(), "{what}: {} of {} are lost: {lost:?}", lost.len(), acknowledged.len());
            assert!(before.len() > 200 && before.is_disjoint(&after), "{what}");
        }
    }
}

/// Ends a writer, also if its test has failed.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn killed_while_files_are_replaced() {
    for settings in PERSISTENCE {
        for phase in [
            "stopping the server",
            "replacing its files",
            "starting the server",
            "waiting for the server to load its data",
        ] {
            let what = format!("{settings:?} in `{phase}`");
            let container = Container::start(SERVERS[1], settings);
            let adapter = container.adapter("restore = 'file'");
            let restored = container.seed("backup", 1000);
            let backup = captured(&*adapter).await.unwrap();
            container.cli(&["FLUSHALL"]);
            let old = container.seed("old", 300);
            let cx = with_secrets(bench().cx());
            let (plan, token) = staged(&*adapter, &cx, &backup).await.unwrap();
            assert!(killed_in(phase, &cx, async |cx| adapter.switch(&cx, &plan, &token).await).await);
            let next = with_secrets(next_process(&cx));
            for entry in entries(&cx).await {
                adapter.bring_back(&next, &entry).await.unwrap_or_else(|e| panic!("{what}: {}", chain(&e)));
            }
            container.wait_until_up();
            let found = container.digest();
            assert!(found == old || found == restored, "{what}");
            let switched =
                adapter.switch(&next, &plan, &token).await.unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(container.digest(), restored, "{what}");
            let mut later = with_secrets(next_process(&cx));
            later.timestamp = cx.timestamp.next();
            adapter.undo(&later, &switched).await.unwrap();
            assert_eq!(container.digest(), old, "{what}");
        }
    }
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn killed_on_the_way_over_the_bridge() {
    let container = Container::start(SERVERS[1], PERSISTENCE[0]);
    let adapter = container.adapter("");
    let restored = container.seed("backup", 1000);
    let backup = captured(&*adapter).await.unwrap();
    container.cli(&["FLUSHALL"]);
    let old = container.seed("old", 300);
    for phase in ["sending the data", "waiting for the server to load it"] {
        let cx = with_secrets(bench().cx());
        let (plan, token) = staged(&*adapter, &cx, &backup).await.unwrap();
        assert!(killed_in(phase, &cx, async |cx| adapter.switch(&cx, &plan, &token).await).await);
        let next = with_secrets(next_process(&cx));
        for entry in entries(&cx).await {
            adapter.bring_back(&next, &entry).await.unwrap();
        }
        let found = container.digest();
        assert!(found == old || found == restored, "{phase}");
        let switched = adapter.switch(&next, &plan, &token).await.unwrap();
        assert_eq!(container.digest(), restored, "{phase}");
        let mut later = with_secrets(next_process(&cx));
        later.timestamp = cx.timestamp.next();
        adapter.undo(&later, &switched).await.unwrap();
        assert_eq!(container.digest(), old, "{phase}");
    }
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_newer_format_is_refused_before_anything_is_done() {
    let [old, _, new, _] = SERVERS.map(|server| Container::start(server, &[]));
    new.seed("new", 10);
    let mut backup = captured(&*new.adapter("")).await.unwrap();
    let before = old.seed("old", 10);
    let of_old = captured(&*old.adapter("")).await.unwrap();
    let refused = "Redis 6.0.16 cannot load: use a newer server";
    for mode in ["wire", "file"] {
        let (cx, keys) = (with_secrets(bench().cx()), format!("restore = '{mode}'"));
        let adapter = old.adapter(&keys);
        let e = adapter.plan_restore(&cx, &backup.metadata, &RestoreTarget::Live).await.unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::Conflict, "{}", chain(&e));
        assert!(
            e.to_string().starts_with("the backup was made by Redis 8.") && e.to_string().contains(refused),
            "{e}"
        );
        for newer in [&*adapter, &*new.adapter(&keys)] {
            newer.plan_restore(&cx, &of_old.metadata, &RestoreTarget::Live).await.unwrap();
        }
    }
    // One that does not tell what made it is told by its file.
    Arc::make_mut(&mut backup.metadata).service_version = None;
    for mode in ["wire", "file"] {
        let cx = with_secrets(bench().cx());
        let adapter = old.adapter(&format!("restore = '{mode}'"));
        let e = staged(&*adapter, &cx, &backup).await.unwrap_err();
        assert!(e.to_string().contains(refused), "{}", chain(&e));
        assert_eq!(old.digest(), before);
    }
}

/// The host need not have a server: the service's image has one.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn scratch_is_loaded_by_a_container_of_the_services_image() {
    for server in [SERVERS[0], SERVERS[1], SERVERS[3]] {
        let container = Container::start(server, PERSISTENCE[0]);
        container.seed("x", 500);
        let adapter = container.adapter("");
        let backup = captured(&*adapter).await.unwrap();
        let (cx, dir) = (bench().cx(), tempfile::tempdir().unwrap());
        let handle = backup_core::ScratchHandle { dir: dir.path().to_owned(), run_id: cx.run_id.clone() };
        let target = RestoreTarget::Scratch(handle);
        let plan = adapter.plan_restore(&cx, &backup.metadata, &target).await.unwrap();
        let source = backup.source(backup_core::testkit::adapter_suite::Damage::None);
        let staged = adapter.stage(&cx, &plan, &source).await.unwrap();
        adapter.switch(&cx, &plan, &staged).await.unwrap();
        let questions = ["EXISTS x:1".to_owned(), "7: GET x:seven".to_owned(), "GET none".to_owned()];
        let (probed, answers) = adapter.probe_and_ask(&cx, &target, &questions).await.unwrap();
        assert_eq!(probed.notes["loaded_by"], "a container of the service's image", "{}", server.0);
        assert_eq!(backup.report.evidence.contradictions(&probed), Vec::<String>::new());
        let answers: Vec<Option<String>> = answers.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, [Some("1".to_owned()), Some("7".to_owned()), None]);
        // What a server cannot load is damage, whatever its checksum says; and nothing is left of any of them.
        std::fs::write(dir.path().join("dump.rdb"), b"REDIS0010\xff").unwrap();
        let e = adapter.probe(&cx, &target).await.unwrap_err();
        assert_eq!(e.kind(), backup_core::AdapterErrorKind::Corrupt, "{e}");
        let left = docker(&["ps", "-aq", "--filter", &format!("label=backup.run-id={}", cx.run_id)]);
        assert_eq!(left, "", "{}", server.0);
    }
}

/// Does something when a phase begins.
struct When<F>(&'static str, F);

impl<F> std::fmt::Debug for When<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl<F: Fn() + Send + Sync + 'static> EventSink for When<F> {
    fn emit(&self, event: Event) {
        if let Event::Phase { phase, .. } = event
            && phase == self.0
        {
            (self.1)();
        }
    }
}

/// Nobody waits for a server that has ended, and it does not stay down: it runs on its old data, and the error has its last
/// words.
#[tokio::test]
#[ignore = "needs Docker and root"]
async fn a_server_that_ends_with_the_restored_data_runs_on_the_old_one() {
    let container = Container::start(SERVERS[1], &["--appendonly", "no", "--save", "1 1"]);
    let adapter = container.adapter("restore = 'file'");
    container.seed("backup", 100);
    let backup = captured(&*adapter).await.unwrap();
    container.cli(&["FLUSHALL"]);
    let old = container.seed("old", 30);
    let data = docker(&["inspect", "-f", "{{range .Mounts}}{{.Source}}{{end}}", &container.name]);
    let mut cx = with_secrets(bench().cx());
    let (plan, token) = staged(&*adapter, &cx, &backup).await.unwrap();
    let file = std::path::Path::new(&data).join("dump.rdb");
    cx.events = Arc::new(When("starting the server", move || std::fs::write(&file, "REDIS9999").unwrap()));
    let e = adapter.switch(&cx, &plan, &token).await.unwrap_err();
    let text = chain(&e);
    // As early as that is seen.
    assert!(text.contains("ended") || text.contains("does not run again"), "{text}");
    container.wait_until_up();
    assert_eq!(container.digest(), old);
    assert!(entries(&cx).await.is_empty());
    adapter.discard(&cx, &token).await.unwrap();
    assert!(adapter.leftovers(&cx, &token).await.unwrap().is_empty());
}

/// A server of today's may be an older one, which cannot load what the backup's could.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn scratch_is_loaded_by_the_image_that_the_backup_was_made_of() {
    let [old, _, new, _] = SERVERS.map(|server| Container::start(server, &[]));
    new.seed("new", 10);
    let backup = captured(&*new.adapter("")).await.unwrap();
    assert_eq!(backup.report.image.as_ref().unwrap().name, SERVERS[2].0);
    let adapter = old.adapter("");
    for image in [backup.report.image.clone(), None] {
        let (mut cx, dir) = (bench().cx(), tempfile::tempdir().unwrap());
        let knows = image.is_some();
        cx.image_then = image;
        let handle = backup_core::ScratchHandle { dir: dir.path().to_owned(), run_id: cx.run_id.clone() };
        let target = RestoreTarget::Scratch(handle);
        let plan = adapter.plan_restore(&cx, &backup.metadata, &target).await.unwrap();
        let source = backup.source(backup_core::testkit::adapter_suite::Damage::None);
        let staged = adapter.stage(&cx, &plan, &source).await.unwrap();
        adapter.switch(&cx, &plan, &staged).await.unwrap();
        let probed = adapter.probe(&cx, &target).await;
        assert_eq!(probed.is_ok(), knows, "{probed:?}");
        if let Ok(probed) = probed {
            assert_eq!(probed.notes["loaded_by"], "a container of the image that the backup was made of");
            assert_eq!(backup.report.evidence.contradictions(&probed), Vec::<String>::new());
        }
    }
}
