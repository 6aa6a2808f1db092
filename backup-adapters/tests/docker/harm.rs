//! What must not happen when programs are ended, and when we are.

use std::io::BufRead as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use backup_adapters::runtime::DockerRuntime;
use backup_core::runtime::{ExecCommand, ServiceRuntime as _};
use backup_core::{AdapterErrorKind, RunId};
use bytes::Bytes;
use futures::{StreamExt as _, stream};

use crate::support::{Container, POSTGRES, docker, failure, noise, sh, text, try_docker};

/// A server that is process 1 collects orphans. One that died by a signal is a crash to it: it ends all sessions.
#[tokio::test]
#[ignore = "needs Docker"]
async fn ending_a_program_does_not_crash_a_postgres_server() {
    let c = Container::of(POSTGRES, &["-e", "POSTGRES_HOST_AUTH_METHOD=trust", "-u", "postgres"], &[]);
    for _ in 0..300 {
        if try_docker(&["exec", &c.name, "pg_isready", "-q", "-h", "127.0.0.1"]).status.success() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let runtime = c.runtime();
    let sleeping = "psql -h 127.0.0.1 -qc 'select pg_sleep(1000)'";
    for script in [
        format!("exec {sleeping}"),
        format!("{sleeping} | cat; exit 5"),
        format!("({sleeping}; exit 5) & sleep 1000; exit 6"),
        format!("trap '' TERM; {sleeping}; sleep 1000; exit 5"),
    ] {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(2);
        let e = failure(&runtime, sh(&script).with_deadline(Some(deadline))).await;
        assert_eq!(e.kind(), AdapterErrorKind::Timeout, "{e}");
        let execution = runtime.exec(sh(&script)).await.unwrap();
        c.wait_for("pg_sleep").await;
        drop(execution);
        let busy = runtime.exec(sh(&script).with_stdin(noise(9 << 20, 1 << 20))).await.unwrap();
        c.wait_for("pg_sleep").await;
        drop(busy);
    }
    for _ in 0..150 {
        if !c.processes().iter().any(|p| p.contains("pg_sleep") || p.contains("bk_")) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let left: Vec<String> =
        c.processes().into_iter().filter(|p| p.contains("pg_sleep") || p.contains("bk_")).collect();
    assert_eq!(left, Vec::<String>::new());
    let log = try_docker(&["logs", &c.name]);
    let log = String::from_utf8_lossy(&log.stderr).into_owned();
    assert!(log.contains("ready to accept connections"), "{log}");
    for harm in ["was terminated by signal", "all server processes terminated", "not properly shut down"] {
        assert!(!log.contains(harm), "{log}");
    }
}

/// Not a test: the process that `a_killed_client_leaves_nothing` kills.
#[tokio::test]
#[ignore = "needs Docker"]
async fn child() {
    let Some(name) = std::env::var_os("BACKUP_TEST_CHILD_OF") else { return };
    let (name, run) = name.to_str().unwrap().split_once(' ').unwrap();
    let runtime = DockerRuntime::new(name);
    let reader = runtime.volume_reader(&run.parse::<RunId>().unwrap()).await.unwrap();
    let half = stream::iter([Ok(Bytes::from_static(b"half"))]).chain(stream::pending()).boxed();
    let taking = runtime.exec(sh("set -e; cat; touch /tmp/complete").with_stdin(half)).await.unwrap();
    let idle = runtime.exec(ExecCommand::new(["sleep", "1234"])).await.unwrap();
    let printing = runtime.exec(sh("cat /dev/zero | cat")).await.unwrap();
    eprintln!("ready");
    std::future::pending::<()>().await;
    drop((reader, taking, idle, printing));
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_killed_client_leaves_nothing() {
    let c = Container::with(&["--entrypoint", "sleep", "-v", "/data"], &["infinity"]);
    let run = format!("20260101_000000-{:08x}", std::process::id());
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "harm::child", "--ignored", "--nocapture"])
        .env("BACKUP_TEST_CHILD_OF", format!("{} {run}", c.name))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
    let ready = lines.map_while(Result::ok).any(|l| l.contains("ready"));
    assert!(ready);
    assert!(c.processes().len() > 4);
    child.kill().unwrap();
    child.wait().unwrap();
    c.wait_until_alone().await;
    assert!(text(&c.runtime(), sh("ls /tmp/complete 2>&1; true")).await.contains("No such file"));
    let label = format!("label=backup.run-id={run}");
    for _ in 0..150 {
        if docker(&["ps", "-aq", "--filter", &label]).is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the reader of volumes is left");
}
