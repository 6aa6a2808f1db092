//! Capture mode `stream`: the link of a replica, and what may happen to it.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backup_core::testkit::adapter_suite::capture;
use backup_core::{AdapterErrorKind, ArtifactBody, CheckPurpose, ReadOutcome, chain};
use futures::StreamExt;

use crate::support::{
    CANARY, Server, adapter, bench, captured, certificates, checked_file, counts, free_port, wait_for,
};

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_server_that_writes_a_file_first_is_told() {
    let server = Server::start("repl-diskless-sync no\n");
    server.cli(&["SET", "a", "1"]);
    let captured = captured(&*server.adapter("capture = 'stream'")).await.unwrap();
    assert_eq!(counts(&captured)["keys"], 1);
    checked_file(&captured, server.dir.path());
    let warnings = captured.report.warnings.join("\n");
    assert!(warnings.contains("temporary file") && warnings.contains("repl-diskless-sync yes"), "{warnings}");
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn nothing_is_left_in_the_server() {
    let server = Server::start("");
    server.fill(8);
    captured(&*server.adapter("")).await.unwrap();
    wait_for("the end of the link", || server.info("connected_slaves") == "0");
    wait_for("the end of its snapshot", || server.info("rdb_bgsave_in_progress") == "0");
    assert!(!server.file("dump.rdb").exists());
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_replica_and_its_primary_are_captured() {
    let primary = Server::start("");
    primary.cli(&["SET", "a", "1"]);
    let port = free_port();
    primary.cli(&["CONFIG", "SET", "port", &port.to_string()]);
    let replica = Server::start(&format!("replicaof 127.0.0.1 {port}\n"));
    wait_for("the replica", || replica.info("master_link_status") == "up");
    let taken = captured(&*replica.adapter("capture = 'stream'")).await.unwrap();
    assert_eq!((counts(&taken)["keys"], taken.metadata.evidence.notes["role"].as_str()), (1, "replica"));
    captured(&*primary.adapter("capture = 'stream'")).await.unwrap();
    wait_for("the replica to be undisturbed", || replica.info("master_link_status") == "up");
    // Without its primary it refuses, and says so in time.
    primary.cli(&["CONFIG", "SET", "port", "0"]);
    primary.cli(&["CLIENT", "KILL", "TYPE", "replica"]);
    wait_for("the broken link", || replica.info("master_link_status") == "down");
    let mut cx = bench().cx();
    cx.deadline = Some(tokio::time::Instant::now() + Duration::from_secs(2));
    std::fs::create_dir_all(&cx.spool).unwrap();
    let error = capture(&*replica.adapter("capture = 'stream'"), &cx).await.unwrap_err();
    assert!(
        matches!(error.kind(), AdapterErrorKind::Timeout | AdapterErrorKind::Unavailable),
        "{}",
        chain(&error)
    );
    let saved = captured(&*replica.adapter("capture = 'bgsave'")).await.unwrap();
    assert!(saved.report.warnings.join("\n").contains("without its primary"), "{:?}", saved.report.warnings);
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_server_that_dies_is_an_error_and_never_an_end() {
    // Each key delays the snapshot by 10 ms.
    let mut server = Server::start("rdb-key-save-delay 10000\n");
    server.fill(64);
    let bench = bench();
    let cx = bench.cx();
    let mut parts = server.adapter("capture = 'stream'").open(&cx).await.unwrap().into_parts();
    let artifact = parts.artifacts.next().await.unwrap().unwrap();
    let ArtifactBody::Stream(mut body) = artifact.body else { panic!("a stream") };
    body.next().await.unwrap().unwrap();
    // Its child holds the other end of the pipe, and dies of it.
    server.child.kill().unwrap();
    let error = loop {
        match body.next().await {
            Some(Ok(_)) => {}
            Some(Err(e)) => break e,
            None => panic!("a clean end"),
        }
    };
    assert_eq!(error.kind(), AdapterErrorKind::Unavailable, "{}", chain(&error));
    drop(body);
    drop(parts.artifacts);
    (parts.release)(ReadOutcome::Failed).await.unwrap();
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_dropped_body_ends_the_link() {
    let server = Server::start("rdb-key-save-delay 10000\n");
    server.fill(64);
    let bench = bench();
    let mut parts = server.adapter("capture = 'stream'").open(&bench.cx()).await.unwrap().into_parts();
    let artifact = parts.artifacts.next().await.unwrap().unwrap();
    drop(artifact);
    drop(parts.artifacts);
    (parts.release)(ReadOutcome::Cancelled).await.unwrap();
    wait_for("the end of the snapshot", || {
        server.info("connected_slaves") == "0" && server.info("rdb_bgsave_in_progress") == "0"
    });
}

/// Sets keys as fast as it can until it is stopped.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Writer {
    fn start(server: &Server) -> Self {
        let (stop, socket) = (Arc::new(AtomicBool::new(false)), server.socket());
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let mut benchmark = Command::new("redis-benchmark");
                    benchmark
                        .arg("-s")
                        .arg(&socket)
                        .args(["-t", "set", "-d", "1000", "-r", "50000", "-n", "20000", "-q"]);
                    assert!(benchmark.output().unwrap().status.success());
                }
            }
        });
        Self { stop, thread }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server"]
async fn a_slow_store_disturbs_neither_the_server_nor_the_backup() {
    // A small buffer: a replica that lags behind is cut off at once.
    let server = Server::start("client-output-buffer-limit replica 2mb 1mb 1\n");
    server.fill(300);
    let writer = Writer::start(&server);
    let bench = bench();
    let cx = bench.cx();
    let adapter = server.adapter("capture = 'stream'");
    let mut parts = adapter.open(&cx).await.unwrap().into_parts();
    let artifact = parts.artifacts.next().await.unwrap().unwrap();
    let ArtifactBody::Stream(mut body) = artifact.body else { panic!("a stream") };
    let meta = &captured_meta();
    let mut check = adapter.content_check(&CheckPurpose::Capture, meta).unwrap();
    check.update(&body.next().await.unwrap().unwrap()).unwrap();
    let begun = std::time::Instant::now();
    // The server gets rid of everything, though nobody takes it.
    wait_for("the end of the link", || {
        server.info("connected_slaves") == "0" && server.info("rdb_bgsave_in_progress") == "0"
    });
    // What Docker's exec loses is lost after two seconds.
    tokio::time::sleep(Duration::from_secs(5).saturating_sub(begun.elapsed())).await;
    while let Some(chunk) = body.next().await {
        check.update(&chunk.unwrap()).unwrap();
    }
    drop(body);
    drop(parts.artifacts);
    let report = (parts.release)(ReadOutcome::Complete).await.unwrap();
    writer.stop();
    let evidence = check.finish().unwrap();
    assert!(evidence.counts["keys"] >= 300);
    let spooled: u64 = report.evidence.notes["spooled_bytes"].parse().unwrap();
    assert!(spooled > 100 << 20, "{spooled}");
    assert_eq!(std::fs::read_dir(&cx.spool).unwrap().count(), 0);
}

fn captured_meta() -> backup_core::ArtifactMeta {
    serde_json::from_str(r#"{"name": "redis"}"#).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server"]
async fn a_fast_store_needs_no_spool() {
    let server = Server::start("");
    server.fill(200);
    let captured = captured(&*server.adapter("capture = 'stream'")).await.unwrap();
    assert_eq!(counts(&captured)["keys"], 200);
    let spooled = captured.report.evidence.notes.get("spooled_bytes");
    assert!(spooled.is_none_or(|n| n.parse::<u64>().unwrap() < 50 << 20), "{spooled:?}");
}

#[tokio::test]
#[ignore = "needs redis-server and openssl"]
async fn encrypted_links_are_checked_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let path = |name: &str| dir.path().join(name).display().to_string();
    let port = free_port();
    let server = Server::start(&format!(
        "tls-port {port}\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\ntls-replication yes\n\
         requirepass {CANARY}\n",
        path("server.crt"),
        path("server.key"),
        path("ca.crt")
    ));
    server.fill(20);
    let keys = |host: &str, more: &str| {
        format!("host = '{host}'\nport = {port}\npassword = {{ env = 'CANARY' }}\ncapture = 'stream'\n{more}")
    };
    let trusted = format!("ca = '{}'\n", path("ca.crt"));
    let own = format!("cert = '{}'\nkey = '{}'\n", path("client.crt"), path("client.key"));
    let taken = captured(&*adapter(&keys("localhost", &format!("{trusted}{own}")))).await.unwrap();
    assert_eq!(counts(&taken)["keys"], 20);
    checked_file(&taken, server.dir.path());
    // By address, with another name than that of the certificate, without our certificate, without trust.
    captured(&*adapter(&keys("127.0.0.1", &format!("{trusted}{own}")))).await.unwrap();
    for (more, what) in [
        (format!("{trusted}{own}server_name = 'other.example'\n"), "another name"),
        (trusted.clone(), "no certificate of ours"),
        (format!("tls = true\n{own}"), "no trust"),
    ] {
        let error = captured(&*adapter(&keys("localhost", &more))).await.expect_err(what);
        assert_eq!(error.kind(), AdapterErrorKind::Unavailable, "{what}: {}", chain(&error));
    }
    // Without TLS a server that expects it is no Redis.
    captured(&*adapter(&keys("localhost", ""))).await.unwrap_err();
}
