use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use backup_core::testkit::adapter_suite::Captured;
use backup_core::{AdapterErrorKind, Event, EventSink, RestoreTarget, chain};
use std::sync::{Arc, Mutex};

use crate::common::{Scene, digest, entries, staged};
use crate::support::{Server, bench, captured, free_port, wait_for};

async fn refused(server: &Server, keys: &str, backup: &Server, kind: AdapterErrorKind, names: &str) {
    let backup = captured(&*backup.adapter("")).await.unwrap();
    let (adapter, cx, before) = (server.adapter(keys), bench().cx(), server.info("role"));
    let tried = async {
        let (plan, token) = staged(&*adapter, &cx, &backup).await?;
        adapter.switch(&cx, &plan, &token).await
    };
    let e = tried.await.expect_err(names);
    assert_eq!(e.kind(), kind, "{}", chain(&e));
    assert!(chain(&e).contains(names), "{}", chain(&e));
    assert_eq!(server.info("role"), before);
    assert!(entries(&cx).await.is_empty());
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn primaries_of_others_and_replicas() {
    let (ours, theirs) = (free_port(), free_port());
    let primary = Server::start(&format!("port {ours}\n"));
    primary.cli(&["SET", "a", "1"]);
    let replica = Server::start(&format!("port {theirs}\nreplicaof 127.0.0.1 {ours}\n"));
    wait_for("the replica", || replica.info("master_link_status") == "up");
    refused(&primary, "", &primary, AdapterErrorKind::Conflict, "has replicas").await;
    refused(&replica, "", &primary, AdapterErrorKind::Conflict, "is a replica of 127.0.0.1").await;
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn nodes_of_clusters() {
    let plain = Server::start("");
    let node = Server::start(&format!("port {}\ncluster-enabled yes\n", free_port()));
    refused(&node, "", &plain, AdapterErrorKind::Conflict, "node of a cluster").await;
}

struct Sentinel(Child, #[expect(dead_code, reason = "removed with it")] tempfile::TempDir);

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn what_a_sentinel_watches() {
    let port = free_port();
    let server = Server::start(&format!("port {port}\n"));
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("sentinel.conf");
    let text = format!("port {}\nsentinel monitor it 127.0.0.1 {port} 1\n", free_port());
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new("redis-server");
    command.arg(&config).arg("--sentinel").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _sentinel = Sentinel(command.current_dir(dir.path()).spawn().unwrap(), dir);
    wait_for("the sentinel", || server.cli(&["PUBSUB", "NUMSUB", "__sentinel__:hello"]).ends_with('1'));
    refused(&server, "", &server, AdapterErrorKind::Conflict, "watched by a Sentinel").await;
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn users_without_the_rights() {
    let scene = Scene::new("appendonly yes\n", 100).await;
    let server = &scene.server;
    let user = |rights: &str| {
        let mut args = vec!["ACL", "SETUSER", "b", "reset", "on", "nopass", "~*", "&*"];
        args.extend(rights.split(' '));
        assert_eq!(server.cli(&args), "OK");
    };
    let all = "+info +ping +psync +replconf +replicaof +config|get +config|set +client +bgsave +bgrewriteaof";
    let keys = "username = 'b'\npassword = { env = 'WRONG' }";
    // The server tells beforehand, if it may be asked.
    user(&format!("{} +acl|whoami +acl|dryrun", all.replace(" +replicaof", "")));
    refused(server, keys, server, AdapterErrorKind::PermissionDenied, "+replicaof").await;
    // Otherwise it shows when it is done, and everything is as it was.
    user(&all.replace(" +replicaof", ""));
    refused(server, keys, server, AdapterErrorKind::PermissionDenied, "+replicaof").await;
    scene.assert_holds(&scene.old);
    for right in ["psync", "config|set", "info"] {
        user(&all.replace(&format!(" +{right}"), "").replace(&format!("+{right} "), ""));
        refused(server, keys, server, AdapterErrorKind::PermissionDenied, right).await;
        scene.assert_holds(&scene.old);
    }
    // Without the right to pause, writers get errors instead: that is enough.
    user(&all.replace(" +client", ""));
    let (adapter, cx) = (server.adapter(keys), bench().cx());
    let (plan, token) = staged(&*adapter, &cx, &scene.backup).await.unwrap();
    adapter.switch(&cx, &plan, &token).await.unwrap();
    scene.assert_holds(&scene.restored);
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn servers_without_the_command_and_never_another_way_unasked() {
    let server = Server::start("rename-command REPLICAOF \"\"\n");
    server.cli(&["SET", "a", "1"]);
    let before = digest(&server);
    refused(&server, "", &server, AdapterErrorKind::Unsupported, "does not know REPLICAOF").await;
    // The other way is named where there is one, and not taken.
    refused(&server, "unit = 'r'", &server, AdapterErrorKind::Unsupported, "restore = \"file\"").await;
    assert_eq!(digest(&server), before);
}

#[tokio::test]
#[ignore = "needs redis-server and the right to make name spaces"]
async fn servers_that_find_no_way_to_us() {
    // Its socket is all that leads into its network.
    let server = Server::start_by(&["unshare", "--net", "redis-server"], "appendonly yes\n");
    crate::common::seed(&server, "old", 100);
    let before = digest(&server);
    refused(&server, "unit = 'r'", &server, AdapterErrorKind::Unavailable, "needs a way from the server")
        .await;
    assert_eq!(digest(&server), before);
    assert_eq!(server.cli(&["SET", "probe", "1"]), "OK");
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn files_that_the_server_cannot_load() {
    let newer = Server::start("rdbchecksum no\n");
    newer.cli(&["SET", "a", "1"]);
    let server = Server::start("databases 4\nmaxmemory 900kb\n");
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    server.cli(&["SET", "old", "1"]);
    let before = digest(&server);
    let refuse = async |backup: Captured, what: &str| {
        let (adapter, cx) = (server.adapter(""), bench().cx());
        let e = staged(&*adapter, &cx, &backup).await.expect_err(what);
        assert_eq!(e.kind(), AdapterErrorKind::Conflict, "{}", chain(&e));
        assert!(e.to_string().contains(what), "{e}");
        let left = std::fs::read_dir(&cx.kept).map(|d| d.flatten().count()).unwrap_or(0);
        assert_eq!(left, 0, "something is left of {what}");
        assert_eq!(digest(&server), before);
    };
    let mut backup = captured(&*newer.adapter("")).await.unwrap();
    let mut body = backup.bodies[0].1.concat();
    assert_eq!(&body[..9], b"REDIS0010");
    body[..9].copy_from_slice(b"REDIS0012");
    backup.bodies[0].1 = vec![body.clone().into()];
    refuse(backup.clone(), "Redis 7.0.15 cannot load").await;
    body[..9].copy_from_slice(b"VALKEY080");
    backup.bodies[0].1 = vec![body.into()];
    refuse(backup.clone(), "Redis 7.0.15 cannot load").await;
    newer.pipe("SELECT 9\nSET nine 9\n");
    refuse(captured(&*newer.adapter("")).await.unwrap(), "has a database 9").await;
    newer.cli(&["FLUSHALL"]);
    newer.cli(&["SET", "a", "1"]);
    server.cli(&["CONFIG", "SET", "maxmemory", "100kb"]);
    refuse(captured(&*newer.adapter("")).await.unwrap(), "`maxmemory`").await;
}

/// Tries to get the data, beginning when the port is there.
#[derive(Debug, Default)]
struct Intruder(Mutex<Vec<std::thread::JoinHandle<Vec<u8>>>>, Mutex<std::path::PathBuf>);

impl EventSink for Intruder {
    fn emit(&self, event: Event) {
        let Event::Phase { phase, .. } = event else { return };
        if phase != "making the server follow us" {
            return;
        }
        let journal = self.1.lock().unwrap().join("interruptions");
        let entry = std::fs::read_dir(journal).unwrap().flatten().next().unwrap();
        let entry: serde_json::Value = serde_json::from_slice(&std::fs::read(entry.path()).unwrap()).unwrap();
        let port = entry.pointer("/kind/other/token/port").unwrap().as_str().unwrap().to_owned();
        for words in ["", "PSYNC", "AUTH guess|PSYNC", "AUTH|PSYNC", "REPLCONF capa eof|PSYNC", "SYNC"] {
            let mut stream = TcpStream::connect(&port).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            self.0.lock().unwrap().push(std::thread::spawn(move || {
                for command in words.split('|').filter(|w| !w.is_empty()) {
                    let args: Vec<&str> = command.split(' ').collect();
                    let mut text = format!("*{}\r\n", args.len());
                    args.iter().for_each(|a| text.push_str(&format!("${}\r\n{a}\r\n", a.len())));
                    let _closed = stream.write_all(text.as_bytes());
                }
                let mut got = Vec::new();
                let _timeout = stream.read_to_end(&mut got);
                got
            }));
        }
    }
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn intruders_get_nothing() {
    let scene = Scene::new("appendonly yes\n", 1000).await;
    let (mut cx, intruder) = (bench().cx(), Arc::new(Intruder::default()));
    (*intruder.1.lock().unwrap()).clone_from(&cx.spool);
    cx.events = Arc::<Intruder>::clone(&intruder);
    scene.restore(&cx).await.unwrap();
    scene.assert_holds(&scene.restored);
    let met: Vec<_> = std::mem::take(&mut *intruder.0.lock().unwrap());
    assert_eq!(met.len(), 6);
    for thread in met {
        let got = String::from_utf8_lossy(&thread.join().unwrap()).into_owned();
        assert!(got.chars().count() < 40 && !got.contains("FULLRESYNC") && !got.contains("REDIS"), "{got}");
    }
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_plan_changes_nothing() {
    let scene = Scene::new("", 10).await;
    let cx = bench().cx();
    let adapter = scene.server.adapter("");
    let plan = adapter.plan_restore(&cx, &scene.backup.metadata, &RestoreTarget::Live).await.unwrap();
    assert!(plan.replaces[0].kept_as.ends_with(&format!("dump.rdb.backup.{}", cx.timestamp)));
    assert!(!cx.kept.exists());
    scene.assert_holds(&scene.old);
}
