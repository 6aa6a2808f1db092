//! Traps that show only with a whole engine, a container, or time.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use backup_adapters::postgres::PostgresConfig;
use backup_core::catalog::VerifyLevel;
use backup_core::catalog::{Catalog, Filter};
use backup_core::config::Config;
use backup_core::engine::{BackupRequest, Engine, RestoreRequest, VerifyRequest};
use backup_core::state::StateDir;
use backup_core::testkit::adapter_suite::capture;
use backup_core::{
    AdapterErrorKind, AdapterRegistry, ArtifactBody, Event, EventSink, Interval, LocalStore, Outcome,
    ServiceAdapter, ServiceName, SystemClock, chain,
};
use futures::StreamExt as _;

use crate::capture::watch;
use crate::containers::{Container, docker, image};
use crate::support::{CANARY, Canary, Cluster, bench};

/// Keeps what people and programs are told.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<String>>);

impl EventSink for Told {
    fn emit(&self, event: Event) {
        self.0.lock().unwrap().push(format!("{event:?}"));
    }
}

/// An engine with one service `db`, a store and a state below `dir`.
async fn engine(keys: &str, dir: &Path, told: &Arc<Told>) -> Engine {
    let text = format!(
        "store.url = 'file://{}/store'\n[intervals.hourly]\nservices = ['db']\nkeep = 2\n[services.db]\nkind = 'postgres'\n{keys}\n",
        dir.display()
    );
    let registry = AdapterRegistry::new().with::<PostgresConfig>();
    let plan = Config::parse(&text, "t.toml").unwrap().resolve(&registry, dir).unwrap();
    std::fs::create_dir_all(dir.join("store")).unwrap();
    let store = Arc::new(LocalStore::new(dir.join("store")));
    let (catalog, _) = Catalog::init(store, Arc::new(SystemClock)).await.unwrap();
    Engine::builder(plan, catalog, StateDir::open(dir.join("state")).unwrap())
        .secrets(Arc::new(Canary))
        .events(Arc::clone(told) as Arc<dyn EventSink>)
        .build()
}

async fn back_up(engine: &Engine) -> String {
    let report = engine.back_up(&BackupRequest::new(Interval::new("hourly").unwrap())).await.unwrap();
    engine.shutdown().await;
    assert!(matches!(report.steps[0].outcome, Outcome::Ok | Outcome::Suspect), "{:?}", report.steps[0]);
    format!("{report:?}")
}

async fn states(engine: &Engine) -> Vec<&'static str> {
    let entries = engine.catalog().list(&Filter::default()).await.unwrap().entries;
    entries.iter().map(|e| e.state.word()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL on the host"]
async fn an_emptied_server_is_suspect_and_evicts_nothing() {
    for kind in [
        "format = 'custom'",
        "format = 'directory'\nscratch = '/var/tmp/backup-traps'",
        "capture = 'basebackup'",
    ] {
        let server = Cluster::start(&["wal_level=replica"]);
        server.sql("postgres", "CREATE DATABASE app");
        server.sql(
            "app",
            "CREATE TABLE t AS SELECT g, repeat('x', 50) FROM generate_series(1, 20000) g; ANALYZE",
        );
        let dir = tempfile::tempdir().unwrap();
        let told = Arc::default();
        let keys = format!("socket = '{}'\n{kind}", server.dir.display());
        let engine = engine(&keys, dir.path(), &told).await;
        back_up(&engine).await;
        back_up(&engine).await;
        assert_eq!(states(&engine).await, ["good", "good"], "{kind}");
        server.sql("app", "TRUNCATE t");
        for n in 1..=3 {
            back_up(&engine).await;
            let now = states(&engine).await;
            assert_eq!(
                now.iter().filter(|s| **s == "good").count(),
                2,
                "{kind}, empty for the {n}. time: {now:?}"
            );
            assert!(now.contains(&"suspect"), "{kind}: {now:?}");
        }
        // What is restored is a good one.
        if kind.starts_with("format") {
            let mut request = RestoreRequest::new(ServiceName::new("db").unwrap());
            request.force = false;
            let preview = engine.plan_restore(&request).await.unwrap();
            assert!(!preview.passed_over.is_empty(), "{kind}");
            let report = engine.restore(&preview).await.unwrap();
            engine.shutdown().await;
            assert!(matches!(report.steps[0].outcome, Outcome::Ok), "{kind}: {:?}", report.steps[0]);
            assert_eq!(server.sql("app", "SELECT count(*) FROM t"), "20000", "{kind}");
        }
        let all = VerifyRequest { all: true, ..VerifyRequest::new(VerifyLevel::Content) };
        for request in [all, VerifyRequest::new(VerifyLevel::Restore)] {
            let report = engine.verify(&request).await.unwrap();
            engine.shutdown().await;
            for step in &report.steps {
                assert!(matches!(step.outcome, Outcome::Ok), "{kind}: {step:?}");
            }
        }
    }
}

/// Everything that is traced in this process, of every level.
#[derive(Debug)]
struct Trace;

static TRACED: OnceLock<Mutex<Vec<String>>> = OnceLock::new();

struct Text(String);

impl tracing::field::Visit for Text {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0.push_str(&format!(" {field}={value:?}"));
    }
}

impl tracing::Subscriber for Trace {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        let mut text = Text(span.metadata().name().to_owned());
        span.record(&mut text);
        keep(text.0);
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        let mut text = Text(String::new());
        values.record(&mut text);
        keep(text.0);
    }
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = Text(format!("{} {}", event.metadata().level(), event.metadata().target()));
        event.record(&mut text);
        keep(text.0);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

fn keep(line: String) {
    let lines = TRACED.get_or_init(Mutex::default);
    lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
}

/// Every file below `dir`, unpacked where it is packed.
fn files(dir: &Path, out: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, out);
            continue;
        }
        let name = path.display().to_string();
        let content = match name.ends_with(".zst") {
            true => std::process::Command::new("zstd").args(["-dcq", &name]).output().unwrap().stdout,
            false => std::fs::read(&path).unwrap_or_default(),
        };
        out.push((name, content));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Docker"]
async fn a_password_shows_nowhere() {
    // Another test of this process may have been first, which is as good.
    let _first = tracing::subscriber::set_global_default(Trace);
    tracing::trace!(seen = "the recorder works", "start");
    let server = Container::start_kept(&image(), &["--hostname", "pgbox"]);
    // Version 13 has stored the password in a way that its rules for TCP do not take.
    let scram = "printf \"SET password_encryption = 'scram-sha-256'; ALTER ROLE postgres PASSWORD '%s';\" \"$POSTGRES_PASSWORD\" | \
                 psql -U postgres -X -v ON_ERROR_STOP=1";
    let (ok, text) = docker(&["exec", &server.name, "sh", "-c", scram]);
    assert!(ok, "{text}");
    server.sql("postgres", "CREATE DATABASE canary_app");
    server.sql("canary_app", "CREATE TABLE t AS SELECT g FROM generate_series(1, 1000) g");
    let (stop, watcher) = watch(&server.name);
    let (stop_inside, inside) = watch("canary_app");
    let told: Arc<Told> = Arc::default();
    let mut everything = String::new();
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for (kind, dir) in
        ["format = 'directory'", "format = 'plain'", "capture = 'basebackup'"].iter().zip(&dirs)
    {
        // Over TCP, where it is needed; and a wrong one, which is refused with an error.
        let keys =
            format!("container = '{}'\nhost = 'pgbox'\npassword = {{ env = 'P' }}\n{kind}", server.name);
        // Base backups want a rule of their own.
        let rule = "grep -q 'host replication all all' \"$PGDATA/pg_hba.conf\" || echo 'host replication all all scram-sha-256' \
                    >>\"$PGDATA/pg_hba.conf\"";
        assert!(docker(&["exec", &server.name, "sh", "-c", rule]).0);
        server.sql("postgres", "SELECT pg_reload_conf()");
        let engine = engine(&keys, dir.path(), &told).await;
        everything.push_str(&back_up(&engine).await);
        let preview =
            engine.plan_restore(&RestoreRequest::new(ServiceName::new("db").unwrap())).await.unwrap();
        let report = engine.restore(&preview).await.unwrap();
        engine.shutdown().await;
        assert!(matches!(report.steps[0].outcome, Outcome::Ok), "{kind}: {:?}", report.steps[0]);
        everything.push_str(&format!("{preview:?}{report:?}{engine:?}"));
        server.sql("postgres", "ALTER ROLE postgres VALID UNTIL '2001-01-01'");
        let failed = engine.back_up(&BackupRequest::new(Interval::new("hourly").unwrap())).await.unwrap();
        engine.shutdown().await;
        assert!(matches!(failed.steps[0].outcome, Outcome::Failed), "{kind}: {:?}", failed.steps[0]);
        everything.push_str(&format!("{failed:?}"));
        server.sql("postgres", "ALTER ROLE postgres VALID UNTIL 'infinity'");
    }
    let mut seen = 0;
    for (stop, watcher) in [(stop, watcher), (stop_inside, inside)] {
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let (lines, leaks) = watcher.join().unwrap();
        seen += lines;
        assert_eq!(leaks, Vec::<String>::new(), "in an argument list");
    }
    assert!(seen > 0, "the watcher saw nothing");
    everything.push_str(&told.0.lock().unwrap().join("\n"));
    assert!(!everything.contains(CANARY), "in a report, an error or an event");
    let traced = TRACED.get_or_init(Mutex::default).lock().unwrap().join("\n");
    assert!(traced.contains("the recorder works"));
    assert!(!traced.contains(CANARY), "in the log");
    let mut stored = Vec::new();
    dirs.iter().for_each(|dir| files(dir.path(), &mut stored));
    assert!(stored.len() > 20);
    for (name, content) in stored {
        let found = content.windows(CANARY.len()).any(|w| w == CANARY.as_bytes());
        assert!(!found, "in {name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Docker"]
async fn a_reader_that_stalls_loses_nothing() {
    let server = Container::start_kept(&image(), &[]);
    server.sql("postgres", "CREATE DATABASE app");
    // What the engine of Docker would hold back, and what is more than is read ahead.
    for rows in [10_300, 60_000] {
        server.sql(
            "app",
            &format!("DROP TABLE IF EXISTS t; CREATE TABLE t AS SELECT g, repeat(md5(g::text), 4) FROM generate_series(1, {rows}) g"),
        );
        for keys in ["format = 'plain'\ncounts = 'exact'", "format = 'directory'", "capture = 'basebackup'"] {
            let adapter = server.adapter(keys);
            let cx = bench().cx();
            let mut parts = adapter.open(&cx).await.unwrap().into_parts();
            while let Some(artifact) = parts.artifacts.next().await {
                let artifact = artifact.unwrap();
                let ArtifactBody::Stream(mut body) = artifact.body else { panic!() };
                let (mut bytes, mut stalled) = (0, false);
                while let Some(chunk) = body.next().await {
                    bytes += chunk.unwrap_or_else(|e| panic!("{keys}: {}", chain(&e))).len();
                    if !std::mem::replace(&mut stalled, true) {
                        tokio::time::sleep(Duration::from_secs(5)).await;
                    }
                }
                println!("{keys:?} {rows}: {} has {bytes} bytes", artifact.name);
            }
            let report = (parts.release)(backup_core::ReadOutcome::Complete).await.unwrap();
            if keys.starts_with("format") {
                assert_eq!(report.evidence.counts["rows.app.public.t"], rows, "{keys}");
            } else {
                assert!(report.evidence.counts["files"] > 500);
            }
        }
    }
}

/// What dumps have in the container's usual place.
async fn folders(server: &Container) -> Vec<String> {
    let name = server.name.clone();
    let script = "ls -d /var/tmp/backup-*/* 2>/dev/null; true";
    let listed = tokio::task::spawn_blocking(move || docker(&["exec", &name, "sh", "-c", script]));
    let (ok, text) = listed.await.unwrap();
    assert!(ok, "{text}");
    text.lines().map(str::to_owned).collect()
}

async fn a_dump_runs(server: &Container) {
    while folders(server).await.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Docker"]
async fn a_directory_in_a_container_goes_whatever_happens() {
    let server = Container::start_kept(&image(), &[]);
    server.sql("postgres", "CREATE DATABASE app");
    server
        .sql("app", "CREATE TABLE t AS SELECT g, repeat(md5(g::text), 20) FROM generate_series(1, 300000) g");
    let adapter = server.adapter("databases = ['app']\nformat = 'directory'\nglobals = false");
    let soon = || Instant::now() + Duration::from_secs(60);
    // The run dies while it dumps: nobody tidies up but the script itself.
    let cx = bench().cx();
    tokio::select! {
        done = capture(&*adapter, &cx) => panic!("it was too fast: {:?}", done.map(drop)),
        () = a_dump_runs(&server) => {}
    }
    let until = soon();
    while !folders(&server).await.is_empty() {
        assert!(Instant::now() < until, "a folder stays behind");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The container dies: what it left goes before the next capture. On a busy machine the dump may be over by then.
    let mut left = 0;
    for _ in 0..5 {
        let dies = async {
            a_dump_runs(&server).await;
            let name = server.name.clone();
            tokio::task::spawn_blocking(move || docker(&["kill", &name])).await.unwrap();
            std::future::pending::<()>().await;
        };
        let died = crate::exchange::next_process(&cx);
        tokio::select! {
            done = capture(&*adapter, &died) => println!("{:?}", done.map(drop).map_err(|e| chain(&e))),
            () = dies => unreachable!(),
        }
        docker(&["kill", &server.name]);
        assert!(docker(&["start", &server.name]).0);
        server.wait("5432");
        left = folders(&server).await.len();
        if left > 0 {
            break;
        }
    }
    assert_eq!(left, 1, "the test needs something that was left");
    let next = crate::exchange::next_process(&cx);
    let captured = capture(&*adapter, &next).await.unwrap();
    assert_eq!(captured.report.evidence.counts["rows.app.public.t"], 300_000);
    assert!(folders(&server).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Docker"]
async fn a_full_disk_in_the_container_is_told() {
    let server = Container::start_kept(&image(), &["--tmpfs", "/small:size=12m,mode=1777"]);
    server.sql("postgres", "CREATE DATABASE app");
    server
        .sql("app", "CREATE TABLE t AS SELECT g, repeat(md5(g::text), 8) FROM generate_series(1, 100000) g");
    let adapter: Arc<dyn ServiceAdapter> =
        server.adapter("format = 'directory'\nscratch = '/small'\nglobals = false");
    let e = capture(&*adapter, &bench().cx()).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::NoSpace, "{}", chain(&e));
    assert!(chain(&e).contains("/small") && chain(&e).contains("scratch"), "{}", chain(&e));
    // Insisted upon, it runs full, and says so.
    let mut cx = bench().cx();
    cx.force = true;
    let e = capture(&*adapter, &cx).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::NoSpace, "{}", chain(&e));
    let (_, left) = docker(&["exec", &server.name, "ls", "-A", "/small"]);
    assert_eq!(left, "");
    assert_eq!(server.sql("app", "SELECT count(*) FROM t"), "100000");
}
