//! Servers in containers, and questions to them. A container goes with the process that made it, however that ends.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use backup_core::ServiceAdapter;

use crate::support::{CANARY, NUMBER, adapter, docker, image, wait_for};

/// Removes a container once its input ends: when it is dropped, and when this process is gone.
struct Guard(Child);

impl Guard {
    fn new(container: &str) -> Self {
        let script = "cat >/dev/null; docker unpause \"$0\"; docker rm -fv \"$0\"";
        let mut command = Command::new("sh");
        command
            .args(["-c", script, container])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // What ends the tests by their group shall not end this.
        Self(command.process_group(0).spawn().unwrap())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _gone = self.0.wait();
    }
}

/// Servers with a volume of their own that no test uses at the moment: a start takes its time.
static IDLE: Mutex<Vec<(String, Guard)>> = Mutex::new(Vec::new());

/// Which tests use servers at the moment, by number: not more than there are processors, which each of them keeps busy. A
/// test has a thread, and its turn until that ends.
struct Turn;

static TURNS: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

thread_local! {
    static TURN: Turn = Turn::take();
}

impl Turn {
    fn take() -> Self {
        let all = std::thread::available_parallelism().map_or(2, usize::from).max(2);
        let taken = TURNS.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = TURNS.1.wait_while(taken, |taken| *taken >= all);
        *taken.unwrap_or_else(PoisonError::into_inner) += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TURNS.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        TURNS.1.notify_one();
    }
}

/// A version, and the settings that make it small, and quick to end: else it waits 10 s for clients that there are none of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Release {
    Five,
    /// The older one with long-term support, 4.4.
    Four,
}

impl Release {
    fn image(self) -> String {
        match self {
            Self::Five => image(),
            Self::Four => "backup-test/neo4j:4.4".to_owned(),
        }
    }

    fn settings(self) -> &'static [&'static str] {
        match self {
            Self::Five => &[
                "NEO4J_server_memory_heap_max__size=256m",
                "NEO4J_server_memory_pagecache_size=64m",
                "NEO4J_db_tx__log_preallocate=false",
                "NEO4J_server_config_strict__validation_enabled=false",
                "NEO4J_internal_server_bolt_thread__pool__shutdown__wait__time=100ms",
            ],
            Self::Four => &[
                "NEO4J_dbms_memory_heap_max__size=256m",
                "NEO4J_dbms_memory_pagecache_size=64m",
                "NEO4J_dbms_tx__log_preallocate=false",
                "NEO4J_dbms_connector_bolt_unsupported__thread__pool__shutdown__wait__time=100ms",
            ],
        }
    }
}

/// A server that one test uses.
pub(crate) struct Graph {
    pub(crate) name: String,
    password: Option<&'static str>,
    guard: Option<Guard>,
    /// Whether another test may have it afterwards.
    shared: bool,
    pub(crate) release: Release,
}

impl Graph {
    /// A server with a volume of its own, empty. Its settings must not be changed: another test may get it next.
    pub(crate) fn start() -> Self {
        TURN.with(|_| ());
        let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let Some((name, guard)) = idle else {
            let mut this = Self::with(&[]);
            this.shared = true;
            return this;
        };
        let (password, guard, release) = (Some(CANARY), Some(guard), Release::Five);
        let this = Self { name, password, guard, shared: true, release };
        this.tidy();
        this
    }

    /// Makes it what it was at first.
    fn tidy(&self) {
        let _runs = Command::new("docker").args(["unpause", &self.name]).output();
        docker(&["start", &self.name]);
        self.wait_until_up();
        self.forget_kept();
        self.cypher("MATCH (n) DETACH DELETE n");
        for row in self.cypher("SHOW INDEXES YIELD name, type WHERE type <> 'LOOKUP' RETURN name") {
            let [name]: [String; 1] = serde_json::from_str(&row).unwrap();
            self.cypher(&format!("DROP INDEX {name}"));
        }
    }

    /// Removes what restores have kept aside.
    pub(crate) fn forget_kept(&self) {
        let kept = "rm -rf /data/*.backup.* /data/.*.restore-* /data/.backup-clone-*";
        docker(&["exec", "-u", "0", &self.name, "sh", "-c", kept]);
    }

    /// A server over a folder of this host.
    pub(crate) fn over(dir: &Path) -> Self {
        Self::over_of(Release::Five, dir)
    }

    pub(crate) fn over_of(release: Release, dir: &Path) -> Self {
        let (auth, volume) = (format!("NEO4J_AUTH=neo4j/{CANARY}"), format!("{}:/data", dir.display()));
        Self::run(release, &["-e", &auth, "-v", &volume], &[], Some(CANARY))
    }

    pub(crate) fn with(options: &[&str]) -> Self {
        Self::running(options, &[])
    }

    /// One that asks for no password.
    pub(crate) fn open_over(release: Release, dir: &Path) -> Self {
        Self::run(release, &["-e", "NEO4J_AUTH=none", "-v", &format!("{}:/data", dir.display())], &[], None)
    }

    /// With arguments for the image.
    pub(crate) fn running(options: &[&str], arguments: &[&str]) -> Self {
        let auth = format!("NEO4J_AUTH=neo4j/{CANARY}");
        let options: Vec<&str> = ["-e", &auth].into_iter().chain(options.iter().copied()).collect();
        Self::run(Release::Five, &options, arguments, Some(CANARY))
    }

    fn run(release: Release, options: &[&str], arguments: &[&str], password: Option<&'static str>) -> Self {
        TURN.with(|_| ());
        let n = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("backup-test-{}-{n}-neo4j", std::process::id());
        let guard = Some(Guard::new(&name));
        let this = Self { name, password, guard, shared: false, release };
        let label = format!("backup-test={}", std::process::id());
        let mut args = vec!["run", "-d", "--name", &this.name, "--label", &label];
        release.settings().iter().for_each(|setting| args.extend(["-e", setting]));
        args.extend_from_slice(options);
        let image = release.image();
        args.push(&image);
        args.extend_from_slice(arguments);
        docker(&args);
        this.wait_until_up();
        this
    }

    pub(crate) fn wait_until_up(&self) {
        wait_for("the server", || self.ask("RETURN 1").is_ok());
    }

    pub(crate) fn is_running(&self) -> bool {
        docker(&["inspect", "-f", "{{.State.Running}} {{.State.Paused}}", &self.name]) == "true false"
    }

    pub(crate) fn restart(&self) {
        docker(&["restart", "-t", "120", &self.name]);
        self.wait_until_up();
    }

    fn address(&self) -> String {
        docker(&["inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", &self.name])
    }

    /// The rows of a query's answer, or what went wrong.
    pub(crate) fn ask(&self, query: &str) -> Result<Vec<String>, String> {
        // Asked for each time: once it was stopped, its address may be another server's.
        self.client().ask("neo4j", query)
    }

    pub(crate) fn client(&self) -> Client {
        Client { address: self.address(), password: self.password }
    }

    pub(crate) fn cypher(&self, query: &str) -> Vec<String> {
        self.ask(query).unwrap_or_else(|e| panic!("{query}: {e}"))
    }

    pub(crate) fn seed(&self, word: &str, many: u32) {
        self.cypher(&format!("CREATE INDEX by_{word} IF NOT EXISTS FOR (p:Page) ON (p.{word})"));
        self.cypher(&format!(
            "UNWIND range(1, {many}) AS i CREATE (a:Page {{id: i, {word}: 'text ' + i}})-[:LINKS {{w: i}}]->(b:{word} {{at: i}})"
        ));
    }

    /// What it holds, without what writers wrote.
    pub(crate) fn content(&self) -> String {
        let mut rows = self.cypher(
            "MATCH (n) WHERE NOT n:Writer OPTIONAL MATCH (n)-[r]->(m) RETURN labels(n), properties(n), type(r), \
             properties(r), labels(m), properties(m)",
        );
        rows.extend(self.cypher("SHOW INDEXES YIELD name RETURN name"));
        rows.sort();
        rows.join("\n")
    }

    pub(crate) fn adapter(&self, keys: &str) -> Arc<dyn ServiceAdapter> {
        adapter(&format!("container = '{}'\npassword = {{ env = 'CANARY' }}\n{keys}", self.name))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // What a failed test leaves is nothing for others.
        if let (true, false, Some(guard)) = (self.shared, std::thread::panicking(), self.guard.take()) {
            let name = std::mem::take(&mut self.name);
            IDLE.lock().unwrap_or_else(PoisonError::into_inner).push((name, guard));
        }
    }
}

/// Asks over HTTP, which the adapter does not use.
pub(crate) struct Client {
    pub(crate) address: String,
    password: Option<&'static str>,
}

impl Client {
    pub(crate) fn ask(&self, database: &str, query: &str) -> Result<Vec<String>, String> {
        let text = |e: std::io::Error| e.to_string();
        let address = format!("{}:7474", self.address).parse().map_err(|_| "no address".to_owned())?;
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).map_err(text)?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).map_err(text)?;
        let body = serde_json::json!({"statements": [{"statement": query}]}).to_string();
        let mut request = format!(
            "POST /db/{database}/tx/commit HTTP/1.0\r\nHost: x\r\nContent-Type: application/json\r\n"
        );
        if let Some(password) = self.password {
            write!(request, "Authorization: Basic {}\r\n", base64(format!("neo4j:{password}").as_bytes()))
                .unwrap();
        }
        write!(request, "Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        stream.write_all(request.as_bytes()).map_err(text)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(text)?;
        let json = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let json: serde_json::Value = serde_json::from_str(json).map_err(|_| answer.clone())?;
        if json["errors"].as_array().is_none_or(|e| !e.is_empty()) {
            return Err(json["errors"].to_string());
        }
        let rows = json["results"][0]["data"].as_array().ok_or("no rows")?;
        Ok(rows.iter().map(|r| r["row"].to_string()).collect())
    }
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for part in bytes.chunks(3) {
        let n = part.iter().fold(0_u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - part.len()));
        for i in 0..4 {
            let letter = LETTERS[(n >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= part.len() { char::from(letter) } else { '=' });
        }
    }
    out
}
