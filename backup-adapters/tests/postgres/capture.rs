//! What a capture holds, and what it leaves behind.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use backup_core::testkit::adapter_suite::{Captured, capture};
use backup_core::{AdapterErrorKind, chain};

use crate::support::{CANARY, Cluster, SAMPLE, bench, shared, unique};

fn text(captured: &Captured, artifact: &str) -> String {
    let body = captured.bodies.iter().find(|(name, _)| name.as_str() == artifact);
    String::from_utf8_lossy(&body.unwrap_or_else(|| panic!("no artifact {artifact}")).1.concat()).into_owned()
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn evidence_is_what_the_tables_hold() {
    let server = shared();
    let name = unique("evidence");
    server.sql("postgres", &format!("CREATE DATABASE {name}"));
    server.sql(&name, SAMPLE);
    for (format, counts) in [
        ("custom", "exact"),
        ("plain", "exact"),
        ("directory", "exact"),
        ("custom", "off"),
        ("plain", "estimated"),
    ] {
        let adapter =
            server.adapter(&format!("databases = ['{name}']\nformat = '{format}'\ncounts = '{counts}'"));
        let captured = capture(&*adapter, &bench().cx()).await.unwrap();
        let count = |key: &str| captured.report.evidence.counts.get(key).copied();
        assert_eq!(count("databases"), Some(1), "{format} {counts}");
        assert_eq!(count(&format!("rows.{name}.public.people")), Some(500));
        assert_eq!(count(&format!("rows.{name}.public.empty")), Some(0));
        assert_eq!(
            count(&format!("rows.{name}.\"odd \\\"\"schema\".\"t.a;b\\\\c\"")),
            Some(4),
            "{:?}",
            captured.report.evidence.counts
        );
        // Partitions come and go: they count in the total only.
        assert_eq!(count(&format!("rows.{name}.public.log_1")), None);
        assert_eq!(count(&format!("rows.{name}")), Some(604));
        assert_eq!(count(&format!("large_objects.{name}")), Some(2));
        assert_eq!(captured.report.exit_codes["pg_dump"], 0);
        assert_eq!(captured.report.service_version.as_deref().map(|v| v.starts_with("15.")), Some(true));
        let artifact =
            captured.metadata.artifacts.iter().find(|a| a.attributes["content"] == "database").unwrap();
        assert_eq!(artifact.attributes["database"], name.as_str());
        assert_eq!(artifact.attributes["properties"]["encoding"], "UTF8");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn all_databases_with_any_names_are_backed_up() {
    let server = Cluster::start(&[]);
    let odd = [
        "sp ace",
        "quo\"te",
        "ap'os",
        "a=b",
        "postgres://x",
        "ünïcödé",
        "back\\slash",
        "globals",
        "UPPER",
        "x;y--z",
    ];
    let mut expected = BTreeSet::new();
    for n in 0..100 {
        let name = odd.get(n).map_or_else(|| format!("db{n}"), |n| (*n).to_owned());
        server.sql("postgres", &format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\"")));
        if n < odd.len() {
            server.sql(&name, &format!("CREATE TABLE t AS SELECT g FROM generate_series(1, {}) g", n + 1));
        }
        expected.insert(name);
    }
    server.sql("postgres", "CREATE DATABASE closed ALLOW_CONNECTIONS false");
    let adapter = server.adapter("");
    let started = std::time::Instant::now();
    let captured = capture(&*adapter, &bench().cx()).await.unwrap();
    println!("{} databases in {:?}", expected.len(), started.elapsed());
    let databases = captured.metadata.artifacts.iter().filter(|a| a.attributes["content"] == "database");
    let found: BTreeSet<String> =
        databases.map(|a| a.attributes["database"].as_str().unwrap().to_owned()).collect();
    assert_eq!(found, expected);
    assert!(captured.metadata.artifacts.iter().any(|a| a.name.as_str() == "server-globals"));
    assert!(captured.report.warnings.iter().any(|w| w.contains("closed")), "{:?}", captured.report.warnings);
    assert!(captured.report.warnings.iter().any(|w| w.contains("`postgres` is empty")));
    for (n, name) in odd.iter().enumerate() {
        let rows = captured.report.evidence.counts.iter().find(|(k, _)| {
            k.starts_with("rows.")
                && k.ends_with(".public.t")
                && (k.contains(name) || k.contains(&name.replace('"', "")) || name.contains(['"', '\\']))
        });
        assert!(rows.is_some(), "{n} {name}");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn the_snapshot_is_one_moment_under_a_writer() {
    let server = shared();
    let name = unique("moment");
    server.sql("postgres", &format!("CREATE DATABASE {name}"));
    server.sql(
        &name,
        "CREATE TABLE a (x int); CREATE TABLE b (x int); INSERT INTO a SELECT generate_series(1, 20000)",
    );
    let stop = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (stop, name) = (Arc::clone(&stop), name.clone());
        move || {
            while !stop.load(Ordering::Relaxed) {
                server.sql(&name, "BEGIN; INSERT INTO a VALUES (1); INSERT INTO b VALUES (1); COMMIT");
            }
        }
    });
    let adapter = server.adapter(&format!("databases = ['{name}']\ncounts = 'exact'"));
    for _ in 0..3 {
        let captured = capture(&*adapter, &bench().cx()).await.unwrap();
        let rows = |table: &str| captured.report.evidence.counts[&format!("rows.{name}.public.{table}")];
        assert_eq!(rows("a"), rows("b") + 20_000);
        assert!(captured.report.consistent_from <= captured.report.consistent_to);
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn other_encodings_arrive_byte_by_byte() {
    let server = shared();
    for (encoding, bytes) in [("LATIN1", "\\xe4"), ("SQL_ASCII", "\\xff\\xfe")] {
        let name = unique("encoding");
        server.sql(
            "postgres",
            &format!(
                "CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
            ),
        );
        server.sql(
            &name,
            &format!("SET client_encoding = '{encoding}'; CREATE TABLE t AS SELECT E'{bytes}'::text AS x"),
        );
        let before = server.sql(&name, "SET bytea_output = hex; SELECT convert_to(x, pg_client_encoding()) FROM (SELECT set_config('client_encoding', (SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database()), false)) s, t");
        let adapter = server.adapter(&format!("databases = ['{name}']\nformat = 'plain'"));
        let captured = capture(&*adapter, &bench().cx()).await.unwrap();
        assert_eq!(captured.report.evidence.counts[&format!("rows.{name}.public.t")], 1);
        let raw = captured.bodies.iter().find(|(n, _)| n.as_str() == name).unwrap().1.concat();
        let wanted: &[u8] = if encoding == "LATIN1" { b"\xe4\n\\." } else { b"\xff\xfe\n\\." };
        assert!(raw.windows(wanted.len()).any(|w| w == wanted), "{encoding}: {before}");
        server.sql(&name, "DELETE FROM t");
        crate::restore::restore_live(&adapter, &captured).await;
        assert_eq!(
            server.sql(
                &name,
                &format!("SET client_encoding = '{encoding}'; SELECT count(*) FROM t WHERE x = E'{bytes}'")
            ),
            "1"
        );
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn roles_and_properties_are_in_the_backup() {
    let server = shared();
    let (name, role) = (unique("props"), unique("owner role"));
    server.sql("postgres", &format!("CREATE ROLE \"{role}\" LOGIN PASSWORD 'x'; "));
    server.sql("postgres", &format!("CREATE DATABASE {name} OWNER \"{role}\""));
    server.sql("postgres", &format!("ALTER DATABASE {name} SET app.secret TO 'hush'"));
    let captured =
        capture(&*server.adapter(&format!("databases = ['{name}']")), &bench().cx()).await.unwrap();
    assert!(text(&captured, "globals").contains(&format!("CREATE ROLE \"{role}\"")));
    assert!(text(&captured, "properties").contains("hush"));
    // Settings may be secrets: not for metadata.json.
    assert!(!serde_json::to_string(&*captured.metadata).unwrap().contains("hush"));
    let without = server.adapter(&format!("databases = ['{name}']\nglobals = false"));
    let captured = capture(&*without, &bench().cx()).await.unwrap();
    assert!(captured.metadata.artifacts.iter().all(|a| a.name.as_str() != "globals"));
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn a_plain_role_backs_up_what_it_may_read() {
    let server = shared();
    let (name, role) = (unique("rights"), unique("reader"));
    server.sql("postgres", &format!("CREATE ROLE {role} LOGIN; "));
    server.sql("postgres", &format!("CREATE DATABASE {name}"));
    server.sql(&name, "CREATE TABLE hidden AS SELECT 1 AS x");
    let adapter = server.adapter(&format!("databases = ['{name}']\nuser = '{role}'"));
    let e = capture(&*adapter, &bench().cx()).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::PermissionDenied, "{}", chain(&e));
    assert!(chain(&e).contains("hidden") && chain(&e).contains("pg_read_all_data"), "{}", chain(&e));
    server.sql("postgres", &format!("GRANT pg_read_all_data TO {role}"));
    let captured = capture(&*adapter, &bench().cx()).await.unwrap();
    assert!(
        captured.report.warnings.iter().any(|w| w.contains("passwords")),
        "{:?}",
        captured.report.warnings
    );
    server.sql("postgres", &format!("REVOKE CONNECT ON DATABASE {name} FROM PUBLIC"));
    let e = capture(&*adapter, &bench().cx()).await.unwrap_err();
    assert!(e.kind() == AdapterErrorKind::PermissionDenied && chain(&e).contains("CONNECT"), "{}", chain(&e));
}

/// Every command line that names this server, while it works.
pub(crate) fn watch(marker: &str) -> (Arc<AtomicBool>, std::thread::JoinHandle<(usize, Vec<String>)>) {
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, marker) = (Arc::clone(&stop), marker.to_owned());
    let thread = std::thread::spawn(move || {
        let (mut seen, mut leaks) = (0, Vec::new());
        while !stopped.load(Ordering::Relaxed) {
            for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                seen += usize::from(line.contains(&marker));
                if line.contains(CANARY) || line.contains("SCRAM-SHA-256$") || line.contains("hush-setting") {
                    leaks.push(line);
                }
            }
        }
        (seen, leaks)
    });
    (stop, thread)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL on the host"]
async fn no_secret_is_in_a_command_line() {
    let server = shared();
    let (name, role) = (unique("canary"), unique("lost"));
    server.unseen("postgres", &format!("CREATE ROLE {role} LOGIN PASSWORD '{CANARY}'"));
    server.sql("postgres", &format!("CREATE DATABASE {name} OWNER {role}"));
    server.unseen("postgres", &format!("ALTER DATABASE {name} SET app.x TO 'hush-setting'"));
    server.sql(&name, "CREATE TABLE t AS SELECT g FROM generate_series(1, 1000) g");
    let adapter = server.adapter(&format!(
        "databases = ['{name}']\nuser = 'pw'\npassword = {{ env = 'P' }}\ncounts = 'exact'"
    ));
    let (stop, watcher) = watch(&name);
    let captured = capture(&*adapter, &bench().cx()).await.unwrap();
    server.sql("postgres", &format!("DROP DATABASE {name}"));
    server.sql("postgres", &format!("DROP ROLE {role}"));
    crate::restore::restore_live(&adapter, &captured).await;
    stop.store(true, Ordering::Relaxed);
    let (seen, leaks) = watcher.join().unwrap();
    assert!(seen > 0, "the watcher saw nothing");
    assert_eq!(leaks, Vec::<String>::new());
    assert!(!format!("{captured:?}").contains(CANARY));
    assert_eq!(
        server.sql(
            "postgres",
            &format!("SELECT rolpassword LIKE 'SCRAM%' FROM pg_authid WHERE rolname = '{role}'")
        ),
        "t"
    );
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn nothing_stays_behind() {
    let server = Cluster::start(&[]);
    server.sql("postgres", "CREATE DATABASE app");
    server.sql("app", "CREATE TABLE t AS SELECT g, repeat('x', 100) FROM generate_series(1, 200000) g");
    let adapter = server.adapter("counts = 'exact'");
    capture(&*adapter, &bench().cx()).await.unwrap();
    // Dropped half-way.
    let cx = bench().cx();
    let mut parts = adapter.open(&cx).await.unwrap().into_parts();
    use futures::StreamExt as _;
    while let Some(Ok(artifact)) = parts.artifacts.next().await {
        if artifact.attributes["content"] == "database" {
            if let backup_core::ArtifactBody::Stream(mut body) = artifact.body {
                body.next().await.unwrap().unwrap();
            }
            break;
        }
    }
    drop(parts.artifacts);
    (parts.release)(backup_core::ReadOutcome::Failed).await.unwrap();
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'backup %'";
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while server.sql("postgres", sessions) != "0" {
        assert!(std::time::Instant::now() < until, "sessions stay behind");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(server.sql("postgres", "SELECT count(*) FROM pg_replication_slots"), "0");
    assert_eq!(server.sql("postgres", "SELECT count(*) FROM pg_locks WHERE mode = 'AccessShareLock' AND database = (SELECT oid FROM pg_database WHERE datname = 'app')"), "0");
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn sessions_and_databases_of_dead_runs_are_reclaimed() {
    let server = Cluster::start(&[]);
    let (adapter, cx) = (server.adapter(""), bench().cx());
    let dead = bench().cx().run_id;
    let mut stale = std::process::Command::new("psql")
        .args(["-X", "-c", "SELECT pg_sleep(600)"])
        .envs([("PGHOST", server.dir.as_os_str()), ("PGUSER", "postgres".as_ref())])
        .env("PGAPPNAME", format!("backup {dead}"))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'";
    while server.sql("postgres", sleeping) != "1" {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    server.sql("postgres", &format!("CREATE DATABASE \"app_restore_{dead}\""));
    let removed = adapter.reclaim(&cx, std::slice::from_ref(&dead)).await.unwrap();
    assert_eq!(removed.len(), 2, "{removed:?}");
    stale.wait().unwrap();
    assert_eq!(server.databases(), ["postgres"]);
    assert!(adapter.reclaim(&cx, &[dead]).await.unwrap().is_empty());
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn an_emptied_server_shows() {
    let server = Cluster::start(&[]);
    server.sql("postgres", "CREATE DATABASE app");
    server.sql("app", "CREATE TABLE t AS SELECT g FROM generate_series(1, 1000) g");
    let adapter = server.adapter("");
    let before = capture(&*adapter, &bench().cx()).await.unwrap().report.evidence;
    server.sql("app", "TRUNCATE t");
    let emptied = capture(&*adapter, &bench().cx()).await.unwrap().report.evidence;
    assert_eq!((before.counts["rows.app"], emptied.counts["rows.app"]), (1000, 0));
    server.sql("postgres", "DROP DATABASE app");
    let gone = capture(&*adapter, &bench().cx()).await.unwrap().report.evidence;
    assert!(!gone.counts.contains_key("rows.app"), "{gone:?}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL on the host"]
async fn the_commands_by_hand_give_the_database() {
    let server = Cluster::start(&[]);
    for (format, name) in [("custom", "by 'hand"), ("plain", "by \"hand"), ("directory", "by =hand")] {
        server.sql("postgres", &format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\"")));
        server.sql(name, SAMPLE);
        let before = server.dump(name);
        let adapter = server.adapter(&format!("databases = ['''{name}''']\nformat = '{format}'"));
        let captured = capture(&*adapter, &bench().cx()).await.unwrap();
        server.sql(name, "DROP TABLE people CASCADE");
        let dir = tempfile::tempdir().unwrap();
        for artifact in &captured.metadata.artifacts {
            let body = captured.body(&artifact.name).concat();
            std::fs::write(dir.path().join(&artifact.files[0].path), body).unwrap();
        }
        let steps = adapter.by_hand(&backup_core::HandContext { metadata: &captured.metadata });
        let script: Vec<String> = steps.into_iter().map(|s| s.command).collect();
        let script = format!("set -euo pipefail\n{}", script.join("\n"));
        let out =
            std::process::Command::new("bash").args(["-c", &script]).current_dir(&dir).output().unwrap();
        assert!(out.status.success(), "{script}\n{}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(server.dump(name), before, "{format}");
    }
}
