//! Test restores in a server of their own: what it is, that the live one has nothing to do with it, and that it goes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use backup_core::testkit::adapter_suite::{Captured, Damage, capture};
use backup_core::{
    AdapterError, AdapterErrorKind, Event, EventSink, Evidence, OpContext, RestoreTarget, ScratchHandle,
    ServiceAdapter, StepToken, chain,
};

use crate::containers::{Container, docker, image, yugabyte_image};
use crate::support::{CANARY, SAMPLE, bench};
use crate::watched::{Watch, assert_gone, assert_restrained, is_volume, left_of, volumes_of};

fn scratch(cx: &OpContext) -> RestoreTarget {
    RestoreTarget::Scratch(ScratchHandle { dir: cx.spool.join("scratch"), run_id: cx.run_id.clone() })
}

async fn staged(
    adapter: &dyn ServiceAdapter,
    cx: &OpContext,
    captured: &Captured,
    damage: Damage,
) -> Result<StepToken, AdapterError> {
    let plan = adapter.plan_restore(cx, &captured.metadata, &scratch(cx)).await?;
    assert!(plan.replaces.is_empty());
    let staged = adapter.stage(cx, &plan, &captured.source(damage)).await?;
    adapter.switch(cx, &plan, &staged).await
}

/// The databases of a server, looked at again and again.
struct Databases(Arc<AtomicBool>, JoinHandle<Vec<String>>);

impl Databases {
    fn of(server: &Arc<Container>) -> Self {
        let (server, over) = (Arc::clone(server), Arc::new(AtomicBool::new(false)));
        let ended = Arc::clone(&over);
        let looks = std::thread::spawn(move || {
            let mut seen = Vec::new();
            while !ended.load(Ordering::Relaxed) {
                seen.push(
                    server.sql(server.user, "SELECT string_agg(datname, ' ' ORDER BY 1) FROM pg_database"),
                );
                std::thread::sleep(Duration::from_millis(50));
            }
            seen
        });
        Self(over, looks)
    }

    /// Each state that there was.
    fn end(self) -> Vec<String> {
        self.0.store(true, Ordering::Relaxed);
        let mut all = self.1.join().unwrap();
        assert!(all.len() > 5, "it was hardly looked at");
        all.sort();
        all.dedup();
        all
    }
}

#[derive(Debug, Default)]
struct Told(Mutex<Vec<String>>);

impl EventSink for Told {
    fn emit(&self, event: Event) {
        if let Event::Warning { message, .. } | Event::Phase { phase: message, .. } = event {
            self.0.lock().unwrap().push(message);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn the_live_server_has_nothing_to_do_with_a_test_restore() {
    let keys = "password = { container_env = 'POSTGRES_PASSWORD' }";
    let servers = [
        (image(), format!("{keys}\ncounts = 'exact'")),
        (image(), format!("{keys}\nformat = 'directory'\njobs = 2")),
        (yugabyte_image(), "flavor = 'yugabyte'".to_owned()),
    ];
    for (image, keys) in servers {
        let more = ["-p", "127.0.0.1::5432", "-e", "AWS_SECRET_ACCESS_KEY"];
        let server = Arc::new(Container::start(&image, &more));
        server.sql(server.user, "CREATE ROLE owner LOGIN PASSWORD 'x'");
        server.sql(server.user, "CREATE DATABASE app OWNER owner");
        server.sql("app", SAMPLE);
        server.sql("app", "ALTER TABLE people OWNER TO owner");
        server.sql("app", "CREATE TABLE big AS SELECT g, md5(g::text) FROM generate_series(1, 60000) g");
        let adapter = server.adapter(&keys);
        let captured = capture(&*adapter, &bench().cx()).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
        let bench = bench();
        let mut cx = bench.cx();
        let told = Arc::new(Told::default());
        cx.events = Arc::<Told>::clone(&told);
        let (watch, databases) = (Watch::of(&cx.run_id), Databases::of(&server));
        let token =
            staged(&*adapter, &cx, &captured, Damage::None).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
        let found = adapter.probe(&cx, &scratch(&cx)).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
        assert_eq!(captured.report.evidence.contradictions(&found), Vec::<String>::new());
        assert_eq!(found.counts["rows.app.public.big"], 60_000);
        // It is there until it is discarded: with the roles that the data needs, and with nothing to lose.
        let left = adapter.leftovers(&cx, &token).await.unwrap();
        let id = left[0].what.strip_prefix("container ").unwrap().to_owned();
        let psql = if server.user == "postgres" { "psql" } else { "ysqlsh" };
        let ask = |sql: &str| {
            docker(&["exec", &id, psql, "-XAtq", "-U", server.user, "-d", "postgres", "-c", sql]).1
        };
        assert_eq!(ask("SELECT rolcanlogin FROM pg_roles WHERE rolname = 'owner'"), "t");
        assert_eq!(ask("SHOW fsync"), "off");
        let app = format!("app_restore_{}", cx.run_id);
        assert!(ask("SELECT string_agg(datname, ' ') FROM pg_database").contains(&app));
        adapter.discard(&cx, &token).await.unwrap();
        let seen = watch.end();
        assert_eq!(seen.len(), 1, "{image}");
        assert_restrained(&seen[0], &[CANARY]);
        assert_eq!(seen[0]["HostConfig"]["NetworkMode"], "none");
        assert!(!volumes_of(&seen).is_empty());
        assert_gone(&cx.run_id, &seen);
        assert!(adapter.leftovers(&cx, &token).await.unwrap().is_empty());
        let ever = databases.end();
        assert_eq!(ever.len(), 1, "{image}: {ever:?}");
        assert!(!ever[0].contains("_restore_"));
        let told = told.0.lock().unwrap().join("\n");
        assert!(told.contains("a server of its own"), "{told}");
        assert!(!format!("{token:?} {told}").contains(CANARY));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn what_a_test_restore_finds_wrong_leaves_nothing() {
    let server = Container::start(&image(), &[]);
    server.sql("postgres", "CREATE DATABASE app");
    server.sql("app", SAMPLE);
    let adapter = server.adapter("");
    let mut captured = capture(&*adapter, &bench().cx()).await.unwrap();
    for damage in [Damage::Truncated, Damage::Flipped] {
        let bench = bench();
        let cx = bench.cx();
        let e = staged(&*adapter, &cx, &captured, damage).await.unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::Corrupt, "{damage:?}: {}", chain(&e));
        assert_eq!(left_of(&cx.run_id), "", "{damage:?}");
    }
    // A backup that says that it holds more than it does.
    let evidence = &mut Arc::make_mut(&mut captured.metadata).evidence;
    evidence.counts.insert("rows.app.public.people".to_owned(), 501);
    let bench = bench();
    let cx = bench.cx();
    let e = staged(&*adapter, &cx, &captured, Damage::None).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Corrupt, "{}", chain(&e));
    assert!(chain(&e).contains("people"), "{}", chain(&e));
    assert_eq!(left_of(&cx.run_id), "");
    // One that is cancelled while it loads.
    Arc::make_mut(&mut captured.metadata).evidence = Evidence::default();
    let cx = bench.cx();
    let (cancel, label) = (cx.cancel.clone(), format!("label=backup.run-id={}", cx.run_id));
    let watcher = std::thread::spawn(move || {
        while docker(&["ps", "-q", "--filter", &label]).1.is_empty() {
            std::thread::sleep(Duration::from_millis(50));
        }
        cancel.cancel();
    });
    let e = staged(&*adapter, &cx, &captured, Damage::None).await.unwrap_err();
    watcher.join().unwrap();
    assert_eq!(e.kind(), AdapterErrorKind::Cancelled, "{}", chain(&e));
    assert_eq!(left_of(&cx.run_id), "");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn a_test_restore_that_died_is_reclaimed_though_the_live_server_is_down() {
    let server = Container::start_kept(&image(), &[]);
    server.sql("postgres", "CREATE DATABASE app");
    server.sql("app", SAMPLE);
    let adapter = server.adapter("");
    let captured = capture(&*adapter, &bench().cx()).await.unwrap();
    // It need not run for a test restore, either.
    assert!(docker(&["stop", &server.name]).0);
    let bench = bench();
    let cx = bench.cx();
    let watch = Watch::of(&cx.run_id);
    staged(&*adapter, &cx, &captured, Damage::None).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    let volumes = volumes_of(&watch.end());
    assert!(!volumes.is_empty() && volumes.iter().all(|v| is_volume(v)));
    // That of sessions needs the server.
    let e = adapter.reclaim(&cx, std::slice::from_ref(&cx.run_id)).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Conflict, "{}", chain(&e));
    assert_eq!(left_of(&cx.run_id), "");
    assert!(volumes.iter().all(|v| !is_volume(v)));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn a_test_restore_is_refused_without_memory_and_stays_beside_where_the_image_is_unknown() {
    let server = Container::start(&image(), &["--memory", "8000g"]);
    server.sql("postgres", "CREATE DATABASE app");
    server.sql("app", SAMPLE);
    let adapter = server.adapter("");
    let captured = capture(&*adapter, &bench().cx()).await.unwrap();
    let cx = bench().cx();
    let e = staged(&*adapter, &cx, &captured, Damage::None).await.unwrap_err();
    assert!(e.kind() == AdapterErrorKind::NoSpace && e.to_string().contains("free some"), "{}", chain(&e));
    assert_eq!(left_of(&cx.run_id), "");
    // Somebody's own program starts the server: nobody knows how it makes a cluster.
    let own = ["--entrypoint", "/bin/bash"];
    let name = format!("backup-test-pg-{}-own-entry", std::process::id());
    let label = format!("backup-test={}", std::process::id());
    let args = ["run", "-d", "--rm", "--name", &name, "--label", &label, "-e", "POSTGRES_PASSWORD"];
    let image = image();
    let run = [&args[..], &own, &[&image, "-c", "exec docker-entrypoint.sh postgres"]].concat();
    let (ok, text) = docker(&run);
    assert!(ok, "{text}");
    let own = Container::named(name);
    own.wait("5432");
    own.sql("postgres", "CREATE DATABASE app");
    let adapter = own.adapter("");
    let bench = bench();
    let mut cx = bench.cx();
    let told = Arc::new(Told::default());
    cx.events = Arc::<Told>::clone(&told);
    let token =
        staged(&*adapter, &cx, &captured, Damage::None).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert!(told.0.lock().unwrap().iter().any(|t| t.contains("beside the live databases")));
    let count = "SELECT count(*) FROM pg_database WHERE datname LIKE '%\\_restore\\_%'";
    assert_ne!(own.sql("postgres", count), "0");
    let found = adapter.probe(&cx, &scratch(&cx)).await.unwrap();
    assert_eq!(captured.report.evidence.contradictions(&found), Vec::<String>::new());
    adapter.discard(&cx, &token).await.unwrap();
    assert_eq!(own.sql("postgres", count), "0");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker"]
async fn a_server_of_its_own_recovers_a_base_backup() {
    for counts in ["exact", "estimated"] {
        let server = Container::start(&image(), &[]);
        server.sql("postgres", "CREATE DATABASE app");
        server.sql("app", SAMPLE);
        server.sql("postgres", "ALTER SYSTEM SET shared_buffers = '64GB'");
        let adapter = server.adapter(&format!("capture = 'basebackup'\ncounts = '{counts}'"));
        let captured = capture(&*adapter, &bench().cx()).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
        let bench = bench();
        let cx = bench.cx();
        let watch = Watch::of(&cx.run_id);
        let token =
            staged(&*adapter, &cx, &captured, Damage::None).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
        let found = adapter.probe(&cx, &scratch(&cx)).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
        assert_eq!(captured.report.evidence.contradictions(&found), Vec::<String>::new());
        assert!(found.notes["server"].ends_with("2 databases"), "{:?}", found.notes);
        let seen = watch.end();
        assert_eq!(seen.len(), 1);
        assert_restrained(&seen[0], &[CANARY]);
        assert_gone(&cx.run_id, &seen);
        adapter.discard(&cx, &token).await.unwrap();
    }
    // One that no server starts on, though each file is what the manifest says.
    let server = Container::start(&image(), &[]);
    server.sql("postgres", "ALTER SYSTEM SET shared_preload_libraries = 'no_such_library'");
    let adapter = server.adapter("capture = 'basebackup'");
    let captured = capture(&*adapter, &bench().cx()).await.unwrap();
    let bench = bench();
    let cx = bench.cx();
    staged(&*adapter, &cx, &captured, Damage::None).await.unwrap();
    let e = adapter.probe(&cx, &scratch(&cx)).await.unwrap_err();
    assert!(
        chain(&e).contains("ended with exit code") && chain(&e).contains("no_such_library"),
        "{}",
        chain(&e)
    );
    assert_eq!(left_of(&cx.run_id), "");
}
