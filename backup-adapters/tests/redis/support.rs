//! Shared by the tests of the `redis` adapter: servers that end with their test.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use backup_adapters::redis::RedisConfig;
use backup_core::testkit::adapter_suite::{AdapterFixture, Bench, Captured, capture};
use backup_core::{
    AdapterConfig, AdapterError, BuildContext, ConfigError, OpContext, Secret, SecretRef, SecretResolver,
    ServiceAdapter,
};

/// A password that must never show.
pub(crate) const CANARY: &str = "canary-7f3a-hunter2";

/// How long a server may take for what a test waits for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A running `redis-server` with a folder of its own, at a Unix socket.
pub(crate) struct Server {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) child: Child,
    settings: String,
}

impl Server {
    /// A server with `settings` besides the usual ones of a test, one a line as in `redis.conf`.
    pub(crate) fn start(settings: &str) -> Self {
        Self::start_by(&["redis-server"], settings)
    }

    /// The same by another command.
    pub(crate) fn start_by(program: &[&str], settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = spawn(dir.path(), settings, program);
        let server = Self { dir, child, settings: settings.to_owned() };
        server.wait_until_up();
        server
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("redis.sock")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The configuration of an adapter, with further keys.
    pub(crate) fn config(&self, keys: &str) -> String {
        format!("socket = '{}'\n{keys}", self.socket().display())
    }

    pub(crate) fn adapter(&self, keys: &str) -> Arc<dyn ServiceAdapter> {
        adapter(&self.config(keys))
    }

    fn wait_until_up(&self) {
        wait_for("the server to answer", || self.cli(&["PING"]).contains("PONG"));
    }

    /// Kills it with its children, and starts it again over what lies in its folder.
    pub(crate) fn restart(&mut self) {
        self.begin_restart();
        self.wait_until_up();
    }

    /// The same, without waiting until it has loaded its data.
    pub(crate) fn begin_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = spawn(self.dir.path(), &self.settings, &["redis-server"]);
    }

    /// What `redis-cli` prints for a command.
    pub(crate) fn cli(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if text.is_empty() { String::from_utf8_lossy(&output.stderr).trim().to_owned() } else { text }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("redis-cli");
        command.arg("-s").arg(self.socket()).args(args).stdin(Stdio::null());
        if self.settings.contains(CANARY) {
            command.env("REDISCLI_AUTH", CANARY);
        }
        command
    }

    /// One field of `INFO`.
    pub(crate) fn info(&self, field: &str) -> String {
        let info = self.cli(&["INFO"]);
        let line = info.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("INFO has no `{field}`")).trim().to_owned()
    }

    /// Sends commands, one a line.
    pub(crate) fn pipe(&self, commands: &str) {
        let input = self.dir.path().join("commands");
        std::fs::write(&input, commands).unwrap();
        let output = self.command(&[]).stdin(File::open(&input).unwrap()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(!text.contains("ERR "), "{text}");
    }

    /// About `mib` MiB of keys `big:<n>` that do not compress, of 1 MiB each.
    pub(crate) fn fill(&self, mib: usize) {
        self.cli(&["CONFIG", "SET", "rdbcompression", "no"]);
        let script = "for n = 1, tonumber(ARGV[1]) do redis.call('SET', 'big:' .. n, string.rep(n .. ':', 1048576 / #(n .. ':'))) end";
        self.cli(&["EVAL", script, "0", &mib.to_string()]);
        assert!(self.info("used_memory").parse::<usize>().unwrap() > (mib << 19));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its children die with their pipes; what is left of the folder goes with it.
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

fn spawn(dir: &Path, settings: &str, program: &[&str]) -> Child {
    let mut config = String::new();
    let dir = dir.canonicalize().unwrap();
    writeln!(config, "dir {}\nunixsocket {}/redis.sock", dir.display(), dir.display()).unwrap();
    // Settings of the test come last, and win.
    config
        .push_str("port 0\nsave \"\"\nrepl-diskless-sync-delay 0\nenable-debug-command yes\nenable-protected-configs yes\ndaemonize no\n");
    config.push_str(settings);
    std::fs::write(dir.join("redis.conf"), config).unwrap();
    let log = File::create(dir.join("log")).unwrap();
    Command::new(program[0])
        .args(&program[1..])
        .arg(dir.join("redis.conf"))
        .stdin(Stdio::null())
        .stderr(log.try_clone().unwrap())
        .stdout(log)
        .spawn()
        .expect("redis-server is installed")
}

/// Waits until `done`.
pub(crate) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The adapter that `keys` configure.
pub(crate) fn adapter(keys: &str) -> Arc<dyn ServiceAdapter> {
    let config: RedisConfig = toml::from_str(keys).unwrap();
    config.build(&BuildContext::new("redis".parse().unwrap(), "/nonexistent")).unwrap()
}

/// Knows the canary, and a wrong password.
#[derive(Debug)]
struct Secrets;

impl SecretResolver for Secrets {
    fn resolve(&self, reference: &SecretRef) -> Result<Secret, ConfigError> {
        match reference {
            SecretRef::Env(name) if name == "CANARY" => Ok(Secret::new(CANARY)),
            SecretRef::Env(name) if name == "WRONG" => Ok(Secret::new("wrong-one")),
            _ => Err(ConfigError::new("there is no such secret")),
        }
    }
}

/// Only contexts are wanted of the bench.
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
    cx
}

/// Folders and contexts.
pub(crate) fn bench() -> Bench {
    Bench::new(Unused)
}

/// Captures with a fresh context.
pub(crate) async fn captured(adapter: &dyn ServiceAdapter) -> Result<Captured, AdapterError> {
    let bench = bench();
    capture(adapter, &bench.cx()).await
}

pub(crate) fn counts(captured: &Captured) -> &BTreeMap<String, u64> {
    &captured.metadata.evidence.counts
}

/// The captured bytes as a file, which Redis's own tool finds intact.
pub(crate) fn checked_file(captured: &Captured, dir: &Path) -> PathBuf {
    let path = dir.join("captured.rdb");
    std::fs::write(&path, captured.bodies[0].1.concat()).unwrap();
    let output = Command::new("redis-check-rdb").arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    path
}

/// An authority, and a certificate for `localhost`, made with OpenSSL.
pub(crate) fn certificates(dir: &Path) {
    let openssl = |args: &str| {
        let output = Command::new("openssl").args(args.split(' ')).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    std::fs::write(dir.join("ext"), "subjectAltName=DNS:localhost,IP:127.0.0.1").unwrap();
    openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=test-ca",
    );
    for name in ["server", "client"] {
        openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"
        ));
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out {name}.crt -days 2 -extfile ext"
        ));
    }
}
