//! Whether a server takes writes: what is found out leaves no trace.

use backup_core::{AdapterErrorKind, chain};

use crate::support::{CANARY, Server, bench, captured, free_port, wait_for};

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_write_is_made_and_nothing_stays() {
    let server = Server::start(&format!("appendonly yes\nrequirepass {CANARY}\n"));
    server.pipe("SET a 1\nSET b 2 EX 90000\nSELECT 3\nHSET c d e\n");
    let look = || (server.cli(&["DEBUG", "DIGEST"]), server.cli(&["INFO", "keyspace"]));
    let before = look();
    let adapter = server.adapter("password = { env = 'CANARY' }");
    assert!(adapter.prove_writable(&bench().cx()).await.unwrap());
    let (keys, _) = before.1.split_once("avg_ttl").unwrap();
    assert_eq!((look().0, look().1.starts_with(keys)), (before.0, true));
    assert_eq!(server.cli(&["DBSIZE"]), "2");
    wait_for("the write in the append-only file", || {
        let log = std::fs::read_dir(server.file("appendonlydir")).unwrap().flatten();
        let log = log.map(|f| std::fs::read(f.path()).unwrap()).collect::<Vec<_>>().concat();
        String::from_utf8_lossy(&log).contains("backup:proof:")
    });
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn servers_that_take_no_writes_are_found() {
    let port = free_port();
    let server = Server::start(&format!("port {port}\nsave 3600 1\n"));
    server.cli(&["SET", "a", "1"]);
    let replica = Server::start(&format!("replicaof 127.0.0.1 {port}\n"));
    wait_for("the replica", || replica.info("master_link_status") == "up");
    let refused = async |server: &Server, keys: &str, kind: AdapterErrorKind, says: &str| {
        let before = (server.cli(&["DEBUG", "DIGEST"]), server.cli(&["DBSIZE"]));
        let e = server.adapter(keys).prove_writable(&bench().cx()).await.expect_err(says);
        assert_eq!(e.kind(), kind, "{}", chain(&e));
        assert!(e.to_string().contains(says) && !e.to_string().contains('\n'), "{}", chain(&e));
        assert_eq!((server.cli(&["DEBUG", "DIGEST"]), server.cli(&["DBSIZE"])), before);
    };
    refused(&replica, "", AdapterErrorKind::Other, "READONLY").await;
    let set =
        |name: &str, value: &str| assert_eq!(server.cli(&["CONFIG", "SET", name, value]), "OK", "{name}");
    let works = async || server.adapter("").prove_writable(&bench().cx()).await.unwrap();
    for (name, value, usual, says) in
        [("min-replicas-to-write", "3", "0", "NOREPLICAS"), ("maxmemory", "1kb", "0", "OOM")]
    {
        set(name, value);
        refused(&server, "", AdapterErrorKind::Other, says).await;
        set(name, usual);
        assert!(works().await, "{name}");
    }
    // A save that failed: by default nothing is written that could not be saved.
    let dir = server.cli(&["CONFIG", "GET", "dir"]).lines().nth(1).unwrap().to_owned();
    set("dir", "/proc");
    server.cli(&["BGSAVE"]);
    wait_for("the failed save", || server.info("rdb_last_bgsave_status") == "err");
    refused(&server, "", AdapterErrorKind::Conflict, "its last save to disk failed").await;
    set("dir", &dir);
    server.cli(&["BGSAVE"]);
    wait_for("a save", || server.info("rdb_last_bgsave_status") == "ok");
    assert!(works().await);
    // Whoever may not write says nothing about those who may.
    server.cli(&["ACL", "SETUSER", "r", "on", "nopass", "~*", "+@read", "+@connection", "+@transaction"]);
    let keys = "username = 'r'\npassword = { env = 'WRONG' }";
    refused(&server, keys, AdapterErrorKind::PermissionDenied, "+set").await;
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_backup_has_no_parts() {
    let server = Server::start("");
    server.cli(&["SET", "a", "1"]);
    let adapter = server.adapter("");
    let backup = captured(&*adapter).await.unwrap();
    let e = adapter.part(&backup.metadata, &[backup.metadata.artifacts[0].name.clone()]).unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Unsupported);
    assert_eq!(e.to_string(), "backups of `redis` are restored as a whole");
}
