//! Who may do what; and secrets that never show.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use backup_core::{AdapterError, AdapterErrorKind, chain};

use crate::support::{CANARY, Server, bench, captured, counts};

const LOGIN: &str = "username = 'backup'\npassword = { env = 'CANARY' }\n";

/// A server with a user `backup` of the given rights, and a key.
fn with_user(rights: &str) -> Server {
    let server =
        Server::start(&format!("user default on >{CANARY} ~* &* +@all\nuser backup on >{CANARY} {rights}\n"));
    server.cli(&["SET", "a", "1"]);
    server
}

async fn error_of(server: &Server, keys: &str) -> AdapterError {
    let adapter = server.adapter(keys);
    assert!(!format!("{adapter:?}").contains(CANARY));
    let error = captured(&*adapter).await.unwrap_err();
    let text = format!("{error:?} {}", chain(&error));
    assert!(!text.contains(CANARY) && !text.contains("wrong-one"), "{text}");
    error
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_user_with_the_documented_rights_streams() {
    let server = with_user("+psync +replconf +sync +ping");
    let captured = captured(&*server.adapter(LOGIN)).await.unwrap();
    assert_eq!((captured.report.mode.as_str(), counts(&captured)["keys"]), ("stream", 1));
    let warnings = captured.report.warnings.join("\n");
    assert!(warnings.contains("+info"), "{warnings}");
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn auto_falls_back_to_a_save_and_names_the_right() {
    let server = with_user("+ping +bgsave +info +config|get +time");
    let captured = captured(&*server.adapter(LOGIN)).await.unwrap();
    assert_eq!((captured.report.mode.as_str(), counts(&captured)["keys"]), ("bgsave", 1));
    let warnings = captured.report.warnings.join("\n");
    assert!(warnings.contains("ACL SETUSER backup +psync +replconf +sync +ping"), "{warnings}");
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn missing_rights_are_named() {
    for (rights, keys, right) in [
        ("+ping", "", "+psync +replconf +sync +ping"),
        ("+ping +info", "capture = 'stream'", "+psync"),
        ("+ping +info", "capture = 'bgsave'", "+config|get"),
        ("+ping +info +config|get", "capture = 'bgsave'", "+bgsave"),
        ("+ping +config|get +bgsave", "capture = 'bgsave'", "+info"),
    ] {
        let error = error_of(&with_user(rights), &format!("{LOGIN}{keys}")).await;
        assert_eq!(error.kind(), AdapterErrorKind::PermissionDenied, "{rights}");
        assert!(chain(&error).contains(right), "{rights}: {}", chain(&error));
    }
    // The check tells it beforehand where it may ask.
    let server = with_user("+ping +acl|dryrun");
    let adapter = server.adapter(&format!("{LOGIN}capture = 'stream'"));
    let error = adapter.check(&bench().cx()).await.unwrap_err();
    assert!(error.to_string().contains("+psync"), "{error}");
    server.cli(&["ACL", "SETUSER", "backup", "+sync"]);
    adapter.check(&bench().cx()).await.unwrap();
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_wrong_password_is_told() {
    let server = Server::start(&format!("requirepass {CANARY}\n"));
    for (keys, expected) in [
        ("password = { env = 'WRONG' }", "refuses the password of user `default`"),
        ("username = 'nobody'\npassword = { env = 'CANARY' }", "refuses the password of user `nobody`"),
        ("", "set `password`"),
    ] {
        let error = error_of(&server, keys).await;
        assert_eq!(error.kind(), AdapterErrorKind::PermissionDenied);
        assert!(error.to_string().contains(expected), "{error}");
    }
    let error = error_of(&server, "password = { env = 'MISSING' }").await;
    assert_eq!(error.kind(), AdapterErrorKind::InvalidConfig);
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn renamed_commands_are_told() {
    let server = Server::start("rename-command PSYNC \"\"\nrename-command SYNC \"\"\n");
    server.cli(&["SET", "a", "1"]);
    let taken = captured(&*server.adapter("")).await.unwrap();
    assert_eq!(taken.report.mode, "bgsave");
    let error = error_of(&server, "capture = 'stream'").await;
    assert!(error.to_string().contains("does not know SYNC"), "{error}");

    let server = Server::start("rename-command BGSAVE b\nrename-command CONFIG c\n");
    let error = error_of(&server, "capture = 'bgsave'").await;
    assert!(chain(&error).contains("CONFIG"), "{}", chain(&error));
    // A server may repeat the arguments of a command that it does not know.
    let server = Server::start("rename-command AUTH a\n");
    let error = error_of(&server, "password = { env = 'CANARY' }").await;
    assert!(error.to_string().contains("does not know AUTH"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server"]
async fn the_password_is_in_no_command_line_and_no_text() {
    let server = with_user("~* +@all");
    let stop = Arc::new(AtomicBool::new(false));
    let sampled = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let mut seen = BTreeSet::new();
            while !stop.load(Ordering::Relaxed) {
                for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                    let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                    seen.insert(String::from_utf8_lossy(&line).into_owned());
                }
            }
            seen
        }
    });
    for mode in ["stream", "bgsave"] {
        let adapter = server.adapter(&format!("{LOGIN}capture = '{mode}'"));
        let captured = captured(&*adapter).await.unwrap();
        let written = serde_json::to_string(&*captured.metadata).unwrap();
        assert!(!format!("{written} {:?}", captured.report).contains(CANARY));
    }
    stop.store(true, Ordering::Relaxed);
    let seen = sampled.join().unwrap();
    assert!(seen.iter().any(|line| line.contains("redis-server")), "nothing was sampled");
    assert!(!seen.iter().any(|line| line.contains(CANARY)));
    let log = std::fs::read_to_string(server.file("log")).unwrap();
    assert!(!log.contains(CANARY));
}
