//! What a backup holds and says, in both capture modes.

use std::collections::BTreeSet;

use backup_core::{CheckPurpose, Consistency, HandContext};

use crate::support::{Server, captured, checked_file, counts};

/// Every type in every encoding that this server has.
const EVERY_TYPE: &str = r#"
SELECT 0
SET string:short value
SET string:int 12345
SET string:int8 7
SET string:int32 123456789
SETEX string:expires 100000 value
PEXPIREAT string:int8 99999999999999
RPUSH list:packed a b c 1 2 3
SADD set:int 1 2 3 400000
SADD set:packed a b c
SADD set:hashed a b c
HSET hash:packed f v g 2
HSET hash:large f v
ZADD zset:packed 1 a 2.5 b -inf c
ZADD zset:large 1 a +inf b 0.1 c
PFADD hll a b c
GEOADD geo 13.361389 38.115556 Palermo
SETBIT bits 1000 1
XADD stream * field value
XADD stream * other 1 third 2
XGROUP CREATE stream group 0
XREADGROUP GROUP group alice COUNT 1 STREAMS stream >
XREADGROUP GROUP group bob COUNT 1 STREAMS stream >
XGROUP CREATE stream empty $
XADD deleted 1-1 a b
XDEL deleted 1-1
SELECT 3
SET other:db 1
SELECT 15
SET expires:soon 1 EX 100000
SET lasts 1
"#;

fn with_every_type(settings: &str) -> Server {
    let server = Server::start(settings);
    server.pipe(EVERY_TYPE);
    let long = "x".repeat(5000);
    let mut more = String::from("SELECT 0\n");
    for n in 0..300 {
        more.push_str(&format!(
            "RPUSH list:large {n} {long}\nSADD set:hashed member-{n}\nHSET hash:large f{n} {long}\n"
        ));
        more.push_str(&format!("ZADD zset:large {n}.5 member-{n}\nXADD stream:large * f {n} g {long}\n"));
    }
    more.push_str(&format!("SET string:compresses {long}\n"));
    server.pipe(&more);
    server.cli(&[
        "FUNCTION",
        "LOAD",
        "#!lua name=lib\nredis.register_function('f', function() return 1 end)",
    ]);
    server
}

async fn every_type_is_counted(settings: &str, mode: &str) {
    let server = with_every_type(settings);
    let captured = captured(&*server.adapter(&format!("capture = '{mode}'"))).await.unwrap();
    let found = counts(&captured);
    let mut all = 0;
    for db in [0, 3, 15] {
        let size: u64 = server.cli(&["-n", &db.to_string(), "DBSIZE"]).parse().unwrap();
        assert_eq!(found[&format!("db{db}.keys")], size, "database {db}");
        all += size;
    }
    assert_eq!(found["keys"], all);
    assert_eq!(found["keys_without_ttl"], all - 3);
    assert_eq!(found["db15.keys_without_ttl"], 1);
    assert_eq!(captured.metadata.evidence.counts_after["keys"], all - 3);
    assert_eq!(found["functions"], 1);
    checked_file(&captured, server.dir.path());

    let report = &captured.report;
    assert_eq!(report.mode, mode);
    assert_eq!(report.consistency, Consistency::Dump);
    assert_eq!(report.service_version, Some(server.info("redis_version")));
    assert!(report.consistent_from <= report.consistent_to);
    assert_eq!(report.lock_ms, server.info("latest_fork_usec").parse::<u64>().unwrap().div_ceil(1000));
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    let notes = &captured.metadata.evidence.notes;
    let aof = if settings.contains("appendonly yes") { "on" } else { "off" };
    assert_eq!((notes["role"].as_str(), notes["append_only_file"].as_str()), ("primary", aof));
    assert_eq!((notes["rdb_version"].as_str(), notes["rdb_checksum"].as_str()), ("REDIS 10", "right"));
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_stream_holds_every_type() {
    every_type_is_counted("", "stream").await;
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_save_holds_every_type() {
    every_type_is_counted(
        "rdbcompression no\nhash-max-listpack-entries 0\nset-max-intset-entries 0\n",
        "bgsave",
    )
    .await;
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn the_append_only_file_changes_nothing() {
    every_type_is_counted("appendonly yes\n", "stream").await;
    every_type_is_counted("appendonly yes\n", "bgsave").await;
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_captured_file_loads_to_the_same_data() {
    let server = with_every_type("");
    let digest = server.cli(&["DEBUG", "DIGEST"]);
    let taken = captured(&*server.adapter("")).await.unwrap();
    let other = Server::start("");
    std::fs::copy(checked_file(&taken, server.dir.path()), other.file("dump.rdb")).unwrap();
    let mut other = other;
    other.restart();
    assert_eq!(other.cli(&["DEBUG", "DIGEST"]), digest);
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn an_empty_server_is_a_backup_of_nothing() {
    let server = Server::start("");
    for mode in ["stream", "bgsave"] {
        let captured = captured(&*server.adapter(&format!("capture = '{mode}'"))).await.unwrap();
        assert_eq!(counts(&captured)["keys"], 0);
        checked_file(&captured, server.dir.path());
    }
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn keys_that_are_expired_already_are_told() {
    let server = Server::start("");
    server.cli(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    server.cli(&["SET", "gone", "1", "PX", "1"]);
    server.cli(&["SET", "here", "1"]);
    // Expiry is compared with the second in which the file was made.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let captured = captured(&*server.adapter("")).await.unwrap();
    let notes = &captured.metadata.evidence.notes;
    assert_eq!((counts(&captured)["keys"], notes["keys_expired_already"].as_str()), (2, "1"));
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_server_without_checksums_is_told() {
    let server = Server::start("rdbchecksum no\n");
    server.cli(&["SET", "a", "1"]);
    let captured = captured(&*server.adapter("")).await.unwrap();
    assert_eq!(captured.metadata.evidence.notes["rdb_checksum"], "none");
    assert!(
        captured.report.warnings.iter().any(|w| w.contains("rdbchecksum")),
        "{:?}",
        captured.report.warnings
    );
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn damage_is_found_and_placed() {
    let server = with_every_type("rdbcompression no\n");
    let adapter = server.adapter("");
    let captured = captured(&*adapter).await.unwrap();
    let whole = captured.bodies[0].1.concat();
    let artifact = &captured.metadata.artifacts[0];
    let check = |bytes: &[u8]| {
        let mut check = adapter.content_check(&CheckPurpose::Capture, artifact).unwrap();
        bytes.chunks(1000).try_for_each(|c| check.update(c)).and_then(|()| check.finish().map(drop))
    };
    check(&whole).unwrap();
    for cut in [10, whole.len() / 2, whole.len() - 9, whole.len() - 1] {
        let error = check(&whole[..cut]).unwrap_err().to_string();
        assert!(error.contains(&format!("byte {cut}")), "{error}");
    }
    for at in (0..whole.len()).step_by(whole.len() / 200) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        assert!(check(&flipped).is_err(), "byte {at}");
    }
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn steps_by_hand_name_the_servers_own_files() {
    let server = Server::start(
        "dbfilename x y.rdb\nappendonly yes\nappenddirname logs\n".replace("x y", "xy").as_str(),
    );
    server.cli(&["SET", "a", "1"]);
    let adapter = server.adapter("");
    let captured = captured(&*adapter).await.unwrap();
    let attributes = &captured.metadata.artifacts[0].attributes;
    let known: BTreeSet<&str> = attributes.keys().map(String::as_str).collect();
    assert_eq!(known, BTreeSet::from(["appenddirname", "appendfilename", "appendonly", "dbfilename", "dir"]));
    let steps = adapter.by_hand(&HandContext { metadata: &captured.metadata });
    let all: String = steps.iter().map(|s| format!("{}\n{}\n", s.text, s.command)).collect();
    for part in ["SHUTDOWN", "/xy.rdb", "/logs", "--appendonly no", "aof_last_bgrewrite_status"] {
        assert!(all.contains(part), "no `{part}` in:\n{all}");
    }
}
