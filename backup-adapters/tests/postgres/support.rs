//! Servers of our own, and adapters over them.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use backup_adapters::postgres::PostgresConfig;
use backup_core::testkit::adapter_suite::{AdapterFixture, Bench};
use backup_core::{
    AdapterConfig, BuildContext, ConfigError, OpContext, Secret, SecretRef, SecretResolver, ServiceAdapter,
    ServiceName,
};

/// The password of role `pw`: must never show.
pub(crate) const CANARY: &str = "canary-Xq7-5e9f0c";

fn bin() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib/postgresql").expect("the servers of Debian's packages");
    folders.flatten().map(|e| e.path().join("bin")).find(|p| p.join("initdb").is_file()).expect("initdb")
}

/// A program of PostgreSQL, run as its own user where we are root.
fn program(name: &str) -> Command {
    let path = bin().join(name);
    if !rustix::process::geteuid().is_root() {
        return Command::new(path);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(path);
    command
}

/// A server in a folder of its own, reached by a socket in it. Both go when it is dropped, and when this process ends.
pub(crate) struct Cluster {
    pub(crate) dir: PathBuf,
    /// The server ends with it.
    alive: Option<ChildStdin>,
    keeper: Child,
}

impl Cluster {
    pub(crate) fn start(extra: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("pg").tempdir_in("/tmp").unwrap().keep();
        if rustix::process::geteuid().is_root() {
            assert!(Command::new("chown").arg("postgres").arg(&dir).status().unwrap().success());
        }
        let data = dir.join("data");
        let made = program("initdb")
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N", "-D"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        std::fs::write(
            data.join("pg_hba.conf"),
            "local all pw scram-sha-256\nlocal replication all trust\nlocal all all trust\n",
        )
        .unwrap();
        let cluster = Self::run(dir, &data, extra);
        cluster.unseen("postgres", &format!("CREATE ROLE pw SUPERUSER LOGIN PASSWORD '{CANARY}'"));
        cluster
    }

    /// A server on a data directory that is there already.
    pub(crate) fn start_on(data: PathBuf) -> Self {
        let dir = tempfile::Builder::new().prefix("pg").tempdir_in("/tmp").unwrap().keep();
        if rustix::process::geteuid().is_root() {
            let owned = Command::new("chown").args(["-R", "postgres"]).args([&dir, &data]).status();
            assert!(owned.unwrap().success());
        }
        Self::run(dir, &data, &[])
    }

    fn run(dir: PathBuf, data: &Path, extra: &[&str]) -> Self {
        // Ends the server and removes the folder when its input ends: when the cluster is dropped or this process dies.
        let script = r#"dir="$1"; shift; "$@" >"$dir/log" 2>&1 & read _; kill -QUIT $!; wait; rm -rf "$dir""#;
        let mut keeper = Command::new("sh");
        keeper.args(["-c", script, "sh"]).arg(&dir);
        let server = program("postgres");
        keeper.arg(server.get_program()).args(server.get_args()).arg("-D").arg(data).arg("-k").arg(&dir);
        keeper.args(["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=60"]);
        keeper.args(extra.iter().flat_map(|setting| ["-c", setting]));
        let mut keeper = keeper.stdin(Stdio::piped()).process_group(0).spawn().unwrap();
        let cluster = Self { dir, alive: keeper.stdin.take(), keeper };
        cluster.wait();
        cluster
    }

    fn wait(&self) {
        let until = Instant::now() + Duration::from_secs(60);
        while !self.try_sql("postgres", "SELECT 1").0 {
            assert!(Instant::now() < until, "the server does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn programs(&self, name: &str) -> PathBuf {
        bin().join(name)
    }

    pub(crate) fn client(&self, name: &str) -> Command {
        let mut command = Command::new(bin().join(name));
        command.env("PGHOST", &self.dir).env("PGUSER", "postgres").env("PGCONNECT_TIMEOUT", "10");
        command
    }

    fn try_sql(&self, database: &str, sql: &str) -> (bool, String) {
        let mut psql = self.client("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql]).env("PGDATABASE", database);
        let out = psql.output().unwrap();
        let text = if out.status.success() { out.stdout } else { out.stderr };
        (out.status.success(), String::from_utf8_lossy(&text).trim_end().to_owned())
    }

    pub(crate) fn sql(&self, database: &str, sql: &str) -> String {
        let (ok, text) = self.try_sql(database, sql);
        assert!(ok, "{sql}: {text}");
        text
    }

    /// As [`Self::sql`], but not as an argument: another test may be looking at all command lines for what is told here.
    pub(crate) fn unseen(&self, database: &str, sql: &str) {
        let mut psql = self.client("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1"]).env("PGDATABASE", database);
        let mut psql = psql.stdin(Stdio::piped()).spawn().unwrap();
        psql.stdin.take().unwrap().write_all(sql.as_bytes()).unwrap();
        assert!(psql.wait().unwrap().success(), "{sql}");
    }

    /// The whole content as text.
    pub(crate) fn dump(&self, database: &str) -> String {
        let out = self.client("pg_dump").env("PGDATABASE", database).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        text.lines().filter(|l| !l.contains("restrict ")).collect::<Vec<_>>().join("\n")
    }

    /// Loads a file that the adapter wrote into a database of its own; its content as text.
    pub(crate) fn dump_of_file(&self, file: &Path) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("loaded_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name} TEMPLATE template0"));
        let mut load = if file.extension().is_some_and(|e| e == "dump") {
            let mut load = self.client("pg_restore");
            load.args(["--exit-on-error", "-d", &name]);
            load
        } else if file.extension().is_some_and(|e| e == "tar") {
            let dir = file.with_extension("unpacked");
            std::fs::create_dir(&dir).unwrap();
            assert!(Command::new("tar").arg("-xf").arg(file).arg("-C").arg(&dir).status().unwrap().success());
            let mut load = self.client("pg_restore");
            load.args(["--exit-on-error", "-j", "2", "-d", &name]).arg(dir.join("dump"));
            load.args(["--format", "directory"]);
            let out = load.output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            std::fs::remove_dir_all(&dir).unwrap();
            Command::new("true")
        } else {
            let mut load = self.client("psql");
            load.args(["-Xq", "-v", "ON_ERROR_STOP=1", "-d", &name, "-f"]);
            load
        };
        let out = load.arg(file).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let text = self.dump(&name);
        self.sql("postgres", &format!("DROP DATABASE {name}"));
        text
    }

    /// An adapter over this server; `keys` are further lines of its configuration.
    pub(crate) fn adapter(&self, keys: &str) -> Arc<dyn ServiceAdapter> {
        let mut keys = keys.to_owned();
        if keys.contains("'directory'") && !keys.contains("scratch") {
            // All adapters here are of one service, whose lock nobody holds.
            let scratch = self.dir.join(unique("scratch"));
            keys.push_str(&format!("\nscratch = '{}'", scratch.display()));
        }
        adapter(&format!("socket = '{}'\n{keys}", self.dir.display()))
    }

    pub(crate) fn databases(&self) -> Vec<String> {
        let names =
            self.sql("postgres", "SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1");
        names.lines().map(str::to_owned).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.alive.take();
        let _ended = self.keeper.wait();
    }
}

/// The adapter that a configuration makes.
pub(crate) fn adapter(keys: &str) -> Arc<dyn ServiceAdapter> {
    let config: PostgresConfig = toml::from_str(keys).unwrap();
    config.build(&BuildContext::new(ServiceName::new("db").unwrap(), "/")).unwrap()
}

/// One server for all tests that do not mind each other's databases.
pub(crate) fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| Cluster::start(&["max_prepared_transactions=4"]))
}

/// A name for a database that no other test uses.
pub(crate) fn unique(stem: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{stem}_{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Knows every secret: the canary.
#[derive(Debug)]
pub(crate) struct Canary;

impl SecretResolver for Canary {
    fn resolve(&self, _: &SecretRef) -> Result<Secret, ConfigError> {
        Ok(Secret::new(CANARY))
    }
}

/// Only contexts are wanted of it.
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
    fn context(&self, mut cx: OpContext) -> OpContext {
        cx.secrets = Arc::new(Canary);
        // Contexts of several benches must not share their runs: they name databases of one server.
        cx.run_id = backup_core::RunId::generate(cx.clock.now());
        cx
    }
}

pub(crate) fn bench() -> Bench {
    Bench::new(Unused)
}

/// What a table of every kind of content looks like.
pub(crate) const SAMPLE: &str = r#"
CREATE SCHEMA "odd ""schema";
CREATE TABLE people (id int PRIMARY KEY, name text, born date);
INSERT INTO people SELECT g, 'person ' || g, date '2000-01-01' + g FROM generate_series(1, 500) g;
CREATE TABLE "odd ""schema"."t.a;b\c" ("c ol" text, "se;mi" bytea);
INSERT INTO "odd ""schema"."t.a;b\c" VALUES (E'line\nbreak \\. \t', '\x00ff5c2e0a'), ('\.', NULL), ('', ''), ('ünïcödé 🦀', NULL);
CREATE TABLE empty (x int);
CREATE TABLE log (at date, t text) PARTITION BY RANGE (at);
CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
INSERT INTO log SELECT date '2020-01-01' + g, 'x' FROM generate_series(1, 100) g;
CREATE FUNCTION tricky() RETURNS text LANGUAGE sql AS $f$ SELECT '
COPY public.people (id) FROM stdin;
1
'' "' $f$;
COMMENT ON FUNCTION tricky() IS 'it''s $$ -- /*
COPY public.people FROM stdin;';
CREATE VIEW adults AS SELECT id, name || E'\\' AS n FROM people WHERE id > 18;
CREATE MATERIALIZED VIEW counted AS SELECT count(*) AS n FROM people;
CREATE SEQUENCE ticket START 42;
SELECT lo_from_bytea(0, decode(repeat('00ff', 5000), 'hex'));
SELECT lo_from_bytea(0, '\x');
"#;
