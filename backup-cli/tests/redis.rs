//! A Redis server, backed up and restored by the binary.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A password that must show nowhere.
pub(crate) const CANARY: &str = "canary-51d0-hunter2";

/// How long anything may take that a test waits for.
const PATIENCE: Duration = Duration::from_secs(60);

#[track_caller]
pub(crate) fn until(what: &str, mut reached: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    start.elapsed()
}

/// A directory with a configuration and a `redis-server`.
pub(crate) struct Host {
    dir: tempfile::TempDir,
    server: Child,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _gone = self.server.kill();
        let _gone = self.server.wait();
    }
}

fn spawn(dir: &Path) -> Child {
    let mut command = Command::new("redis-server");
    command.arg(dir.join("redis.conf")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("redis-server is installed")
}

impl Host {
    /// A server with `settings`, and its service `redis` with further `keys`.
    pub(crate) fn new(settings: &str, keys: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().canonicalize().unwrap();
        let at = at.display();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let conf = format!(
            "dir {at}/data\nunixsocket {at}/redis.sock\nport 0\nsave \"\"\nrepl-diskless-sync-delay 0\n\
             enable-debug-command yes\nlogfile {at}/redis.log\n{settings}"
        );
        std::fs::write(dir.path().join("redis.conf"), conf).unwrap();
        let config = format!(
            "state_dir = 'state'\nbackup_configuration = false\nstore.url = 'store'\n[intervals.often]\nservices = ['redis']\nkeep = 2\n\
             [services.redis]\nkind = 'redis'\nsocket = 'redis.sock'\n{keys}"
        );
        std::fs::write(dir.path().join("backup.toml"), config).unwrap();
        let server = spawn(dir.path());
        let host = Self { dir, server };
        until("the server", || host.cli(&["PING"]) == "PONG");
        host.ok(&["init"]);
        host
    }

    /// Kills the server.
    pub(crate) fn stop_server(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }

    /// Kills it, and starts it over its files.
    pub(crate) fn restart_server(&mut self) {
        self.stop_server();
        self.server = spawn(self.dir.path());
        until("the server", || self.cli(&["PING"]) == "PONG");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the server answers.
    pub(crate) fn cli(&self, args: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.arg("-s").arg(self.path("redis.sock")).args(args).env("REDISCLI_AUTH", CANARY);
        let output = command.stdin(Stdio::null()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    pub(crate) fn info(&self, field: &str) -> String {
        let info = self.cli(&["INFO"]);
        let line = info.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    }

    /// Replaces what the server holds by `keys` keys and some of other types.
    pub(crate) fn seed(&self, word: &str, keys: u32) -> String {
        self.cli(&["FLUSHALL"]);
        let script = "for n = 1, tonumber(ARGV[1]) do redis.call('SET', ARGV[2] .. ':' .. n, 'value ' .. n) end \
                      redis.call('HSET', ARGV[2] .. ':h', 'a', '1') redis.call('ZADD', ARGV[2] .. ':z', '1', 'a') \
                      redis.call('SET', ARGV[2] .. ':ttl', 'x', 'EX', '900000') redis.call('SELECT', '7') \
                      redis.call('SET', ARGV[2] .. ':seven', '7')";
        self.cli(&["EVAL", script, "0", &keys.to_string(), word]);
        self.digest()
    }

    /// Tells two states of the server apart.
    pub(crate) fn digest(&self) -> String {
        let digest = self.cli(&["DEBUG", "DIGEST"]);
        assert_eq!(digest.len(), 40, "{digest}");
        digest
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("backup"));
        command.args(args).current_dir(self.dir.path()).env_clear().stdin(Stdio::null());
        command.env("CANARY", CANARY).env("PATH", std::env::var_os("PATH").unwrap());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let (stdout, stderr) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{args:?}: {:?}\n{stdout}\n{stderr}", out.status);
        stdout
    }

    /// The names of the backups in `state`.
    fn listed(&self, state: &str) -> Vec<String> {
        let listed = self.ok(&["list", "--all", "--json"]);
        let lines = listed.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        let wanted = lines.filter(|l| l["event"] == "backup" && l["state"] == state);
        wanted.map(|l| l["id"].as_str().unwrap().to_owned()).collect()
    }
}

#[test]
#[ignore = "needs redis-server"]
fn an_emptied_server_is_suspect_and_evicts_nothing() {
    for empty in
        [["FLUSHALL"].as_slice(), &["EVAL", "for n = 2, 1000 do redis.call('DEL', 'full:' .. n) end", "0"]]
    {
        let host = Host::new("", "");
        let full = host.seed("full", 1000);
        for _ in 0..3 {
            host.ok(&["run", "often"]);
        }
        let good = host.listed("good");
        assert_eq!(good.len(), 2, "`keep` evicts the oldest");
        host.cli(empty);
        for n in 1..=3 {
            let run = host.run(&["run", "often"]);
            let told = String::from_utf8_lossy(&run.stderr).into_owned();
            assert_eq!(run.status.code(), Some(1), "{told}");
            assert!(told.contains("suspect"), "{told}");
            assert_eq!((host.listed("good"), host.listed("suspect").len()), (good.clone(), n));
        }
        // What a restore takes is a good one.
        host.ok(&["restore", "redis", "--yes"]);
        assert_eq!(host.digest(), full);
    }
}

/// The command lines of all processes, collected until it is dropped.
struct Sampler {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<BTreeSet<String>>>,
}

impl Sampler {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut seen = BTreeSet::new();
            while !stopped.load(Ordering::Relaxed) {
                for process in std::fs::read_dir("/proc").unwrap().flatten() {
                    let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
                    seen.insert(String::from_utf8_lossy(&line).into_owned());
                }
            }
            seen
        });
        Self { stop, thread: Some(thread) }
    }

    fn seen(mut self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Everything once, with the whole log: no output, command line or file holds the canary.
fn nothing_shows(host: &Host, service: &str, expected: &[&str]) {
    let sampler = Sampler::start();
    let steps: [&[&str]; 8] = [
        &["-vv", "run", "manual", "--service", service],
        &["-vv", "--json", "run", "manual", "--service", service],
        &["-vv", "verify", service, "--level", "restore"],
        &["-vv", "show", service],
        &["-vv", "restore", service, "--yes"],
        &["-vv", "undo", service, "--yes"],
        &["-vv", "--json", "restore", service, "--yes"],
        &["-vv", "logs"],
    ];
    for args in steps {
        let out = host.run(args);
        let text =
            format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{args:?}: {text}");
        assert!(!text.contains(CANARY), "{args:?}: {text}");
    }
    // And what goes wrong.
    let wrong =
        host.command(&["-vv", "run", "manual", "--service", service]).env("CANARY", "wrong-51d0").output();
    let wrong = wrong.unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&wrong.stdout), String::from_utf8_lossy(&wrong.stderr));
    assert!(!text.contains(CANARY) && !text.contains("wrong-51d0"), "{text}");
    let seen = sampler.seen();
    for program in expected {
        assert!(seen.iter().any(|line| line.contains(program)), "`{program}` was not sampled");
    }
    let shown = seen.iter().find(|line| line.contains(CANARY) || line.contains("wrong-51d0"));
    assert_eq!(shown, None);
    let mut folders = vec![host.dir.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() && !path.ends_with("redis.conf") {
                let content = std::fs::read(&path).unwrap();
                let holds = content.windows(CANARY.len()).any(|w| w == CANARY.as_bytes());
                assert!(!holds, "`{}` holds the password", path.display());
            }
        }
    }
}

#[test]
#[ignore = "needs redis-server"]
fn a_password_shows_nowhere() {
    for user in ["", "username = 'default'\n"] {
        for persistence in ["appendonly yes\n", ""] {
            let keys = format!("password = {{ env = 'CANARY' }}\n{user}");
            let host = Host::new(&format!("requirepass {CANARY}\n{persistence}"), &keys);
            host.seed("x", 500);
            // The watchdog is a process of its own.
            nothing_shows(&host, "redis", &["redis-server", "backup\0-vv", "watchdog\0--entry"]);
        }
    }
}

struct Container(String);

impl Drop for Container {
    fn drop(&mut self) {
        let _gone = Command::new("docker").args(["rm", "-fv", &self.0]).output();
    }
}

#[test]
#[ignore = "needs Docker"]
fn a_password_of_a_container_shows_nowhere() {
    for mode in ["wire", "file"] {
        let name = format!("backup-test-{}-{mode}-canary", std::process::id());
        let more = format!(
            "[services.boxed]\nkind = 'redis'\ncontainer = '{name}'\nrestore = '{mode}'\n\
             password = {{ container_env = 'REDIS_PASSWORD' }}\n"
        );
        let host = Host::new("", &more);
        let conf = host.path("conf");
        std::fs::create_dir(&conf).unwrap();
        std::fs::write(
            conf.join("redis.conf"),
            format!("requirepass {CANARY}\ndir /data\nrepl-diskless-sync-delay 0\n"),
        )
        .unwrap();
        let variables = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(variables.path(), format!("REDIS_PASSWORD={CANARY}\n")).unwrap();
        let container = Container(name);
        let label = format!("backup-test={}", std::process::id());
        let mounted = format!("{}:/conf:ro", conf.display());
        let mut start = Command::new("docker");
        start.args(["run", "-d", "--name", &container.0, "--label", &label, "-v", &mounted, "--env-file"]);
        start.arg(variables.path()).args(["backup-test/redis:7", "redis-server", "/conf/redis.conf"]);
        let started = start.output().unwrap();
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        let cli = |args: &[&str]| {
            let mut command = Command::new("docker");
            command.args(["exec", "-e", "REDISCLI_AUTH", &container.0, "redis-cli"]).args(args);
            let output = command.env("REDISCLI_AUTH", CANARY).output().unwrap();
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        };
        until("the container's server", || cli(&["PING"]) == "PONG");
        assert_eq!(cli(&["SET", "a", "1"]), "OK");
        nothing_shows(&host, "boxed", &["redis-server", "backup\0-vv", "watchdog\0--entry"]);
        assert_eq!(cli(&["GET", "a"]), "1");
    }
}
