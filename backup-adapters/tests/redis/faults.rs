//! A server that is busy with something else, and one whose child process dies.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backup_core::testkit::adapter_suite::capture;
use backup_core::{AdapterErrorKind, chain};

use crate::support::{Server, adapter, bench, captured, checked_file, counts, free_port, wait_for};

/// Each key delays a save by 2 ms.
const SLOW: &str = "rdb-key-save-delay 2000\n";

/// A socket that leads to `server`, where something is done right before `command` arrives there for the first time.
fn before(server: &Server, command: &str, act: impl FnOnce() + Send + 'static) -> PathBuf {
    let path = server.file("between.sock");
    let (listener, target) = (UnixListener::bind(&path).unwrap(), server.socket());
    let command = format!("${}\r\n{command}\r\n", command.len());
    let act = Arc::new(Mutex::new(Some(act)));
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, mut server) = (client.unwrap(), UnixStream::connect(&target).unwrap());
            let (mut answers, mut back) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut answers, &mut back));
            let (act, command) = (Arc::clone(&act), command.clone());
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = client.read(&mut buffer) {
                    if String::from_utf8_lossy(&buffer[..read]).contains(&command)
                        && let Some(act) = act.lock().unwrap().take()
                    {
                        act();
                    }
                    server.write_all(&buffer[..read]).unwrap();
                }
                let _gone = server.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    path
}

/// Runs a command on the server at `socket` from another thread.
fn cli(socket: &Path, args: &[&str]) -> String {
    let output = Command::new("redis-cli").arg("-s").arg(socket).args(args).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server"]
async fn what_begins_between_our_look_and_our_save_is_waited_for() {
    for (child, running, settings) in [
        ("BGREWRITEAOF", "aof_rewrite_in_progress:1", "appendonly yes\naof-use-rdb-preamble yes\n"),
        ("BGSAVE", "rdb_bgsave_in_progress:1", ""),
    ] {
        let server = Server::start(&format!("{SLOW}{settings}"));
        server.cli(&["DEBUG", "POPULATE", "500"]);
        let socket = server.socket();
        let between = before(&server, "BGSAVE", move || {
            cli(&socket, &[child]);
            wait_for(running, || cli(&socket, &["INFO", "persistence"]).contains(running));
            cli(&socket, &["SET", "written-after-it-began", "1"]);
        });
        let keys = format!("socket = '{}'\ncapture = 'bgsave'", between.display());
        let taken = captured(&*adapter(&keys)).await.unwrap();
        assert_eq!(counts(&taken)["keys"], 501, "{child}");
        checked_file(&taken, server.dir.path());
        // Ours was refused, and asked for again: scheduled behind the rewrite, or once the other save was done.
        let stats = server.cli(&["INFO", "commandstats"]);
        let calls = stats.lines().find(|l| l.starts_with("cmdstat_bgsave:")).unwrap();
        let expected = if child == "BGSAVE" { 3 } else { 2 };
        assert!(calls.contains(&format!("calls={expected},")) && calls.contains("failed_calls=1"), "{calls}");
    }
}

/// The process that the server has made for its snapshot.
fn child_of(server: &Server) -> String {
    let pid = server.child.id();
    let children = format!("/proc/{pid}/task/{pid}/children");
    let mut found = String::new();
    wait_for("the server's child", || {
        found = std::fs::read_to_string(&children).unwrap().trim().to_owned();
        !found.is_empty()
    });
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server"]
async fn a_snapshot_whose_process_is_killed_is_an_error() {
    for (mode, settings, expected) in [
        ("bgsave", "", "failed to write its file"),
        ("stream", "repl-diskless-sync yes\n", "closed"),
        ("stream", "repl-diskless-sync no\n", "closed"),
    ] {
        let server = Server::start(&format!("{settings}save \"\"\n"));
        server.cli(&["DEBUG", "POPULATE", "500"]);
        // An older file, which must not be taken for the new one.
        server.cli(&["SAVE"]);
        server.cli(&["CONFIG", "SET", "rdb-key-save-delay", "100000"]);
        let adapter = server.adapter(&format!("capture = '{mode}'"));
        let mut capturing = tokio::task::JoinSet::new();
        capturing.spawn(async move { captured(&*adapter).await });
        let child = tokio::task::block_in_place(|| child_of(&server));
        assert!(Command::new("kill").args(["-9", &child]).status().unwrap().success());
        let error = capturing.join_next().await.unwrap().unwrap().unwrap_err();
        assert!(chain(&error).contains(expected), "{mode}: {}", chain(&error));
        server.cli(&["CONFIG", "SET", "rdb-key-save-delay", "0"]);
        let taken = captured(&*server.adapter(&format!("capture = '{mode}'"))).await.unwrap();
        assert_eq!(counts(&taken)["keys"], 500);
    }
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_node_of_a_cluster_is_told_to_be_one() {
    let server = Server::start(&format!("port {}\ncluster-enabled yes\n", free_port()));
    let taken = captured(&*server.adapter("")).await.unwrap();
    let warnings = taken.report.warnings.join("\n");
    assert!(warnings.contains("one node of a cluster"), "{warnings}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server"]
async fn a_server_that_still_loads_is_waited_for() {
    let mut server = Server::start("loading-process-events-interval-bytes 1024\nkey-load-delay 1000\n");
    server.cli(&["DEBUG", "POPULATE", "3000"]);
    server.cli(&["SAVE"]);
    for mode in ["stream", "bgsave", "auto"] {
        server.begin_restart();
        wait_for("a server that loads", || server.cli(&["PING"]).contains("LOADING"));
        let taken = captured(&*server.adapter(&format!("capture = '{mode}'"))).await.unwrap();
        assert_eq!(counts(&taken)["keys"], 3000, "{mode}");
    }
    // Within the budget; what it was waiting for is told.
    server.begin_restart();
    wait_for("a server that loads", || server.cli(&["PING"]).contains("LOADING"));
    let mut cx = bench().cx();
    std::fs::create_dir_all(&cx.spool).unwrap();
    cx.deadline = Some(tokio::time::Instant::now() + Duration::from_millis(1500));
    let error = capture(&*server.adapter("capture = 'stream'"), &cx).await.unwrap_err();
    assert_eq!(error.kind(), AdapterErrorKind::Unavailable, "{}", chain(&error));
    assert!(error.to_string().contains("still loads its data"), "{error}");
}
