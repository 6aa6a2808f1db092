use std::sync::Arc;

use backup_core::{OpContext, RestoreTarget, chain};

use crate::common::{BOTH, Scene, Told, digest, entries, seed, staged};
use crate::support::{CANARY, Server, bench, captured, certificates, free_port, with_secrets};

#[tokio::test]
#[ignore = "needs redis-server"]
async fn the_backup_is_back_and_survives_a_restart() {
    for persistence in BOTH {
        let mut scene = Scene::new(persistence, 2000).await;
        let cx = bench().cx();
        scene.restore(&cx).await.unwrap();
        scene.assert_holds(&scene.restored);
        assert!(entries(&cx).await.is_empty());
        scene.server.restart();
        assert_eq!(digest(&scene.server), scene.restored, "{persistence}");
        // Another restart, by the polite way.
        scene.server.cli(&["SET", "later", "1"]);
        scene.server.cli(&["DEL", "later"]);
        scene.server.restart();
        assert_eq!(digest(&scene.server), scene.restored, "{persistence}");
    }
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn whatever_way_the_server_takes_the_snapshot() {
    for load in ["disabled", "swapdb", "on-empty-db"] {
        for save in ["yes", "no"] {
            let settings = format!("repl-diskless-load {load}\nrepl-diskless-sync {save}\nappendonly yes\n");
            let mut scene = Scene::new(&settings, 1000).await;
            scene.restore(&bench().cx()).await.unwrap();
            scene.assert_holds(&scene.restored);
            scene.server.restart();
            assert_eq!(digest(&scene.server), scene.restored, "{settings}");
        }
    }
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn settings_that_would_be_in_the_way() {
    for settings in [
        "replica-serve-stale-data no\n",
        "masterauth some-other\n",
        "masteruser someone\nmasterauth some-other\n",
        "replica-announce-ip 192.0.2.9\nreplica-announce-port 1\n",
        "protected-mode yes\nbind 127.0.0.1\nport 0\n",
        "maxmemory 300mb\nmaxmemory-policy allkeys-lru\n",
        "repl-timeout 5\nrepl-ping-replica-period 1\n",
        "repl-diskless-sync-delay 1\nrepl-diskless-sync yes\n",
    ] {
        let scene = Scene::new(settings, 500).await;
        scene.restore(&bench().cx()).await.unwrap_or_else(|e| panic!("{settings}: {}", chain(&e)));
        assert_eq!(digest(&scene.server), scene.restored, "{settings}");
        assert_eq!(scene.server.info("role"), "master");
    }
    // A replica that takes writes would lose them.
    let scene = Scene::new("replica-read-only no\n", 500).await;
    scene.restore(&bench().cx()).await.unwrap();
    assert_eq!(digest(&scene.server), scene.restored);
    assert!(scene.server.cli(&["CONFIG", "GET", "replica-read-only"]).ends_with("no"));
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn over_tcp_with_a_password_that_never_shows() {
    let port = free_port();
    let server = Server::start(&format!("port {port}\nrequirepass {CANARY}\nappendonly yes\n"));
    let keys = format!("host = '127.0.0.1'\nport = {port}\npassword = {{ env = 'CANARY' }}");
    let adapter = crate::support::adapter(&keys);
    seed(&server, "backup", 500);
    let restored = digest(&server);
    let backup = captured(&*adapter).await.unwrap();
    server.cli(&["FLUSHALL"]);
    let (mut cx, told) = (with_secrets(bench().cx()), Arc::new(Told::default()));
    cx.events = Arc::<Told>::clone(&told);
    let (plan, token) = staged(&*adapter, &cx, &backup).await.unwrap();
    let switched = adapter.switch(&cx, &plan, &token).await.unwrap();
    assert_eq!(digest(&server), restored);
    let shown = format!("{adapter:?} {plan:?} {token:?} {switched:?} {:?}", told.0.lock().unwrap());
    assert!(!shown.contains(CANARY), "{shown}");
    let log = std::fs::read_to_string(server.file("log")).unwrap();
    assert!(!log.contains(CANARY), "{log}");
}

#[tokio::test]
#[ignore = "needs redis-server and openssl"]
async fn a_server_that_speaks_tls_alone() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let path = |name: &str| dir.path().join(name).display().to_string();
    for replication in ["yes", "no"] {
        let port = free_port();
        let mut server = Server::start(&format!(
            "tls-port {port}\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\ntls-replication {replication}\n\
             requirepass {CANARY}\nappendonly yes\n",
            path("server.crt"),
            path("server.key"),
            path("ca.crt")
        ));
        let adapter = crate::support::adapter(&format!(
            "host = 'localhost'\nport = {port}\npassword = {{ env = 'CANARY' }}\nca = '{}'\ncert = '{}'\nkey = '{}'",
            path("ca.crt"),
            path("client.crt"),
            path("client.key")
        ));
        seed(&server, "backup", 1000);
        let restored = digest(&server);
        let backup = captured(&*adapter).await.unwrap();
        server.cli(&["FLUSHALL"]);
        seed(&server, "old", 300);
        let old = digest(&server);
        let cx = with_secrets(bench().cx());
        let (plan, token) = staged(&*adapter, &cx, &backup).await.unwrap();
        let switched = adapter.switch(&cx, &plan, &token).await.unwrap();
        assert_eq!(digest(&server), restored);
        let setting = || server.cli(&["CONFIG", "GET", "tls-replication"]);
        assert!(setting().ends_with(replication), "{}", setting());
        server.restart();
        assert_eq!(digest(&server), restored);
        adapter.undo(&with_secrets(later(&cx)), &switched).await.unwrap();
        assert_eq!(digest(&server), old);
    }
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn undo_and_undo_of_undo() {
    for persistence in BOTH {
        let mut scene = Scene::new(persistence, 1000).await;
        let cx = bench().cx();
        let switched = scene.restore(&cx).await.unwrap();
        let adapter = scene.server.adapter("");
        let later = later(&cx);
        let undone = adapter.undo(&later, &switched).await.unwrap();
        scene.assert_holds(&scene.old);
        assert_eq!(adapter.undo(&later, &switched).await.unwrap(), undone);
        scene.server.restart();
        assert_eq!(digest(&scene.server), scene.old, "{persistence}");
        let last = self::later(&later);
        let again = adapter.undo(&last, &undone).await.unwrap();
        scene.assert_holds(&scene.restored);
        adapter.discard(&last, &again).await.unwrap();
        assert!(adapter.leftovers(&last, &again).await.unwrap().is_empty());
        let left: Vec<_> = std::fs::read_dir(&cx.kept).unwrap().flatten().map(|e| e.file_name()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Another operation of the same service.
fn later(cx: &OpContext) -> OpContext {
    let mut next = crate::common::next_process(cx);
    next.timestamp = cx.timestamp.next();
    next
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn an_empty_server_and_an_empty_backup() {
    let server = Server::start("appendonly yes\n");
    let empty = captured(&*server.adapter("")).await.unwrap();
    let nothing = digest(&server);
    seed(&server, "x", 100);
    let full = captured(&*server.adapter("")).await.unwrap();
    let something = digest(&server);
    for (backup, expected) in
        [(&empty, &nothing), (&full, &something), (&full, &something), (&empty, &nothing)]
    {
        let (adapter, cx) = (server.adapter(""), bench().cx());
        let (plan, token) = staged(&*adapter, &cx, backup).await.unwrap();
        adapter.switch(&cx, &plan, &token).await.unwrap();
        assert_eq!(digest(&server), *expected);
        let probed = adapter.probe(&cx, &RestoreTarget::Live).await.unwrap();
        assert_eq!(backup.report.evidence.contradictions(&probed), Vec::<String>::new());
    }
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn functions_come_back() {
    let server = Server::start("");
    let code = "#!lua name=mylib\nredis.register_function('f', function() return 7 end)";
    server.cli(&["FUNCTION", "LOAD", code]);
    server.cli(&["SET", "a", "1"]);
    let backup = captured(&*server.adapter("")).await.unwrap();
    server.cli(&["FUNCTION", "FLUSH"]);
    let (adapter, cx) = (server.adapter(""), bench().cx());
    let (plan, token) = staged(&*adapter, &cx, &backup).await.unwrap();
    adapter.switch(&cx, &plan, &token).await.unwrap();
    assert_eq!(server.cli(&["FCALL", "f", "0"]), "7");
}
