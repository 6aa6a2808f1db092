//! The same in containers: PostgreSQL, and the stand-in for YugabyteDB.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use backup_core::testkit::adapter_suite::{Damage, capture};
use backup_core::{AdapterErrorKind, ArtifactBody, RestoreTarget, ServiceAdapter, chain};
use futures::StreamExt as _;

use crate::restore::restore_live;
use crate::support::{CANARY, SAMPLE, adapter, bench};

/// A container of its own, removed when it is dropped.
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) user: &'static str,
    psql: &'static str,
}

/// The server's image.
#[expect(clippy::disallowed_methods, reason = "that is how images are chosen for tests")]
pub(crate) fn image() -> String {
    std::env::var("BACKUP_TEST_POSTGRES_IMAGE").unwrap_or_else(|_| "backup-test/postgres:15".to_owned())
}

#[expect(clippy::disallowed_methods, reason = "that is how images are chosen for tests")]
pub(crate) fn yugabyte_image() -> String {
    std::env::var("BACKUP_TEST_YUGABYTE_IMAGE").unwrap_or_else(|_| "backup-test/yugabyte-standin".to_owned())
}

pub(crate) fn docker(args: &[&str]) -> (bool, String) {
    // By the environment: an argument would be seen.
    let secrets = ["POSTGRES_PASSWORD", "AWS_SECRET_ACCESS_KEY"].map(|name| (name, CANARY));
    let out = Command::new("docker").args(args).envs(secrets).output().expect("docker");
    let text = if out.status.success() { out.stdout } else { out.stderr };
    (out.status.success(), String::from_utf8_lossy(&text).trim_end().to_owned())
}

impl Container {
    /// Goes with the container's end.
    pub(crate) fn start(image: &str, options: &[&str]) -> Self {
        let with: Vec<&str> = ["--rm"].iter().chain(options).copied().collect();
        Self::start_kept(image, &with)
    }

    /// One that can be stopped and started.
    pub(crate) fn start_kept(image: &str, options: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let pid = std::process::id();
        let name = format!("backup-test-pg-{pid}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let label = format!("backup-test={pid}");
        let mut args = vec!["run", "-d", "--name", &name, "--label", &label, "-e", "POSTGRES_PASSWORD"];
        args.extend(options);
        args.push(image);
        let (user, psql, port) = if image.contains("yugabyte") {
            ("yugabyte", "ysqlsh", "5433")
        } else {
            ("postgres", "psql", "5432")
        };
        let container = Self { name: name.clone(), user, psql };
        let (ok, text) = docker(&args);
        assert!(ok, "{text}");
        container.wait(port);
        container
    }

    /// One of PostgreSQL that runs already.
    pub(crate) fn named(name: String) -> Self {
        Self { name, user: "postgres", psql: "psql" }
    }

    pub(crate) fn wait(&self, port: &str) {
        let until = Instant::now() + Duration::from_secs(90);
        while !docker(&["exec", &self.name, "pg_isready", "-h", "127.0.0.1", "-p", port]).0 {
            assert!(Instant::now() < until, "{}", docker(&["logs", &self.name]).1);
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    pub(crate) fn sql(&self, database: &str, sql: &str) -> String {
        let args = [
            "exec",
            &self.name,
            self.psql,
            "-XAtq",
            "-h",
            "127.0.0.1",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            self.user,
            "-d",
            database,
            "-c",
            sql,
        ];
        let (ok, text) = docker(&args);
        assert!(ok, "{sql}: {text}");
        text
    }

    pub(crate) fn dump(&self, database: &str) -> String {
        let port = if self.psql == "psql" { "5432" } else { "5433" };
        let (ok, text) = docker(&[
            "exec",
            &self.name,
            "pg_dump",
            "-h",
            "127.0.0.1",
            "-p",
            port,
            "-U",
            self.user,
            "-d",
            database,
        ]);
        assert!(ok, "{text}");
        text.lines().filter(|l| !l.contains("restrict ")).collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn adapter(&self, keys: &str) -> Arc<dyn ServiceAdapter> {
        adapter(&format!("container = '{}'\n{keys}", self.name))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        docker(&["rm", "-fv", &self.name]);
    }
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_container_is_backed_up_restored_and_drilled() {
    let keys = "password = { container_env = 'POSTGRES_PASSWORD' }";
    let servers = [
        (image(), keys.to_owned()),
        (image(), format!("{keys}\nformat = 'plain'\ncounts = 'exact'")),
        (image(), format!("{keys}\nformat = 'directory'\njobs = 3\ncounts = 'exact'")),
        (yugabyte_image(), "flavor = 'yugabyte'\ncounts = 'exact'".to_owned()),
    ];
    for (image, keys) in servers {
        let server = Container::start(&image, &[]);
        server.sql(server.user, "CREATE DATABASE app");
        server.sql("app", SAMPLE);
        server.sql("app", "CREATE TABLE big AS SELECT g, md5(g::text) FROM generate_series(1, 60000) g");
        let before = server.dump("app");
        let adapter = server.adapter(&keys);
        adapter.check(&bench().cx()).await.unwrap();
        let captured = capture(&*adapter, &bench().cx()).await.unwrap();
        assert_eq!(captured.report.evidence.counts["rows.app.public.big"], 60_000);
        assert!(captured.report.image.is_some());
        assert!(!format!("{captured:?}").contains(CANARY));
        // A test restore beside the live databases.
        let cx = bench().cx();
        let dir = tempfile::tempdir().unwrap();
        let target = RestoreTarget::Scratch(backup_core::ScratchHandle {
            dir: dir.path().to_owned(),
            run_id: cx.run_id.clone(),
        });
        let plan = adapter.plan_restore(&cx, &captured.metadata, &target).await.unwrap();
        let staged = adapter.stage(&cx, &plan, &captured.source(Damage::None)).await.unwrap();
        let found = adapter.probe(&cx, &target).await.unwrap();
        assert_eq!(captured.report.evidence.contradictions(&found), Vec::<String>::new());
        adapter.discard(&cx, &staged).await.unwrap();
        server.sql(server.user, "DROP DATABASE app");
        restore_live(&adapter, &captured).await;
        assert!(adapter.prove_writable(&bench().cx()).await.unwrap());
        assert_eq!(server.dump("app"), before, "{image}");
        let left =
            server.sql(server.user, "SELECT count(*) FROM pg_database WHERE datname LIKE '%\\_restore\\_%'");
        assert_eq!(left, "0");
    }
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_container_that_goes_or_freezes_ends_the_capture() {
    breaks_off("globals = false").await;
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_container_that_goes_or_freezes_ends_a_dump_as_a_directory() {
    breaks_off("globals = false\nformat = 'directory'").await;
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_container_that_goes_or_freezes_ends_a_base_backup() {
    breaks_off("capture = 'basebackup'").await;
}

async fn breaks_off(keys: &str) {
    for fault in ["kill", "rm", "pause", "restart", "stop"] {
        let server = Container::start(&image(), &[]);
        server.sql("postgres", "CREATE DATABASE app");
        server.sql(
            "app",
            "CREATE TABLE t AS SELECT g, repeat(md5(g::text), 8) AS x FROM generate_series(1, 250000) g",
        );
        let adapter = server.adapter(keys);
        let mut cx = bench().cx();
        cx.deadline = Some(tokio::time::Instant::now() + Duration::from_secs(60));
        let mut parts = adapter.open(&cx).await.unwrap().into_parts();
        let error = loop {
            let artifact = match parts.artifacts.next().await.expect("an error comes") {
                Ok(artifact) => artifact,
                Err(e) => break e,
            };
            let ArtifactBody::Stream(mut body) = artifact.body else { continue };
            if artifact.attributes["content"] != "properties" {
                body.next().await.unwrap().unwrap();
                let args: &[&str] = match fault {
                    "rm" => &["rm", "-f", &server.name],
                    "restart" => &["restart", "-t", "1", &server.name],
                    "stop" => &["stop", "-t", "5", &server.name],
                    other => &[other, &server.name],
                };
                docker(args);
                if fault == "pause" {
                    // Whoever waits for a frozen server waits until the budget ends.
                    cx.cancel.cancel();
                }
            }
            let mut error = None;
            while let Some(chunk) = body.next().await {
                if let Err(e) = chunk {
                    error = Some(e);
                    break;
                }
            }
            if let Some(error) = error {
                break error;
            }
            assert_eq!(artifact.attributes["content"], "properties", "{fault}: the dump looks whole");
        };
        assert!(!chain(&error).contains('\n'), "{fault}: {}", chain(&error));
        drop(parts.artifacts);
        (parts.release)(backup_core::ReadOutcome::Failed).await.unwrap();
        if fault == "pause" {
            docker(&["unpause", &server.name]);
        }
    }
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_restore_that_would_fill_the_disk_of_the_container_is_refused() {
    let server = Container::start(
        &image(),
        &["--tmpfs", "/var/lib/postgresql/data:size=175m,uid=999,gid=999,mode=0700"],
    );
    server.sql("postgres", "CREATE DATABASE app");
    server.sql(
        "app",
        "CREATE TABLE t AS SELECT g, repeat(md5(g::text), 8) AS x FROM generate_series(1, 150000) g",
    );
    let adapter = server.adapter("");
    let captured = capture(&*adapter, &bench().cx()).await.unwrap();
    // A server whose disk runs full stops: the restore must not even begin.
    let e = adapter.plan_restore(&bench().cx(), &captured.metadata, &RestoreTarget::Live).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::NoSpace, "{}", chain(&e));
    assert_eq!(server.sql("app", "SELECT count(*) FROM t"), "150000");
    // A dump needs no room: the full server can still be backed up.
    capture(&*adapter, &bench().cx()).await.unwrap();
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_container_that_is_not_there_is_reported() {
    let e = adapter("container = 'backup-test-no-such'").check(&bench().cx()).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::NotFound, "{}", chain(&e));
    let e = adapter("container = 'backup-test-no-such'").open(&bench().cx()).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::NotFound, "{}", chain(&e));
}

/// As while the image sets a new cluster up: what answers is about to end.
#[tokio::test]
#[ignore = "needs Docker"]
async fn a_server_that_is_being_set_up_is_not_there_yet() {
    let name = format!("backup-test-pg-{}-set-up", std::process::id());
    let label = format!("backup-test={}", std::process::id());
    let args = ["run", "-d", "--rm", "--name", &name, "--label", &label, "-e", "POSTGRES_PASSWORD"];
    let (ok, text) = docker(&[&args[..], &[&image(), "-c", "listen_addresses="]].concat());
    assert!(ok, "{text}");
    let container = Container::named(name);
    let until = Instant::now() + Duration::from_secs(90);
    while !docker(&["exec", &container.name, "pg_isready"]).0 {
        assert!(Instant::now() < until, "{}", docker(&["logs", &container.name]).1);
        std::thread::sleep(Duration::from_millis(200));
    }
    let keys = format!("container = '{}'", container.name);
    let error = adapter(&keys).probe(&bench().cx(), &RestoreTarget::Live).await.unwrap_err();
    assert_eq!(error.kind(), AdapterErrorKind::Unavailable, "{}", chain(&error));
}
