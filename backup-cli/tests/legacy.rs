//! A store in which directories of the old scripts lie among our own.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::redis::Host;
use super::support::{FIRST, World, tree};

const CONFIG: &str = r#"
state_dir = "state"
backup_configuration = false
[store]
url = "store"
[intervals.hourly]
services = ["env", "data"]
keep = 2
[services.env]
kind = "env"
paths = [".env"]
[services.data]
kind = "files"
paths = ["data"]
"#;

const OLD: &str = "20250301_040000";
const OLD_ID: &str = "env/hourly/20250301_040000";

fn seven(service: &str, at: &str) -> String {
    format!(
        r#"{{"service": "{service}", "interval": "hourly", "timestamp": "{at}", "size_bytes": 8, "status": "success", "host": "ip-10-0-0-1", "backed_up_at": "2025-03-01T04:00:02Z"}}"#
    )
}

/// One backup of ours of each service, and three of the old scripts.
fn mixed() -> World {
    let world = World::new();
    world.write("backup.toml", CONFIG);
    world.write(".env", "NEW=2\n");
    world.fill();
    world.write(&format!("store/{OLD_ID}/.env"), "OLD=1\nX=2");
    world.write(&format!("store/{OLD_ID}/metadata.json"), &seven("env", OLD));
    world.write("store/env/15min/20250302_040000/.env", "EVEN=older\n");
    world.write(&format!("store/data/hourly/{OLD}/neo4j_data.tar.gz"), "foreign");
    // The tree was there before this program was.
    world.ok(&["init"]);
    world.ok(&["run", "hourly"]);
    world
}

/// The backups, less what runs report.
fn backups(world: &World) -> Vec<(String, Option<Vec<u8>>)> {
    let all = tree(&world.path("store"));
    all.into_iter().filter(|(path, _)| !path.starts_with('.') && path.contains(OLD)).collect()
}

#[test]
fn old_and_new_are_listed_and_shown() {
    let world = mixed();
    let lines = world.ok(&["list", "--json"]).lines();
    let mut states: Vec<String> = lines
        .iter()
        .filter(|l| l["event"] == "backup")
        .map(|l| format!("{} {}", l["id"].as_str().unwrap(), l["state"].as_str().unwrap()))
        .collect();
    states.sort();
    let expected = [
        format!("data/hourly/{OLD} legacy"),
        format!("data/hourly/{FIRST} good"),
        "env/15min/20250302_040000 legacy".to_owned(),
        format!("env/hourly/{OLD} legacy"),
        format!("env/hourly/{FIRST} good"),
    ];
    assert_eq!(states, expected);

    let shown = world.ok(&["show", OLD_ID]).out;
    for part in [
        "legacy\n",
        "the old scripts on ip-10-0-0-1",
        "status success, 8 B, as of 2025-03-01 04:00:02 UTC",
        ".env (9 B)",
        "legacy/unverified",
        "no checksum and no count",
        "backup restore env --at env/hourly/20250301_040000",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(world.ok(&["show", "env/15min/20250302_040000"]).out.contains("recorded      nothing"));
    let foreign = format!("data/hourly/{OLD}");
    let shown = world.ok(&["show", &foreign]).out;
    let why =
        "no file of the old scripts that a service of kind `files` restores; it holds `neo4j_data.tar.gz`";
    assert!(shown.contains("problem") && shown.contains(why), "{shown}");
    world.run(&["show", &foreign, "--by-hand"]).fails(1, why);
    world.run(&["verify", &foreign]).fails(1, why);
    world.run(&["restore", "data", "--at", &foreign, "--yes"]).fails(1, why);
    let line = world.ok(&["show", OLD_ID, "--json"]).lines().remove(0);
    assert_eq!(line["legacy"]["directory"]["files"][0]["name"], ".env", "{line}");
}

#[test]
fn an_old_one_is_verified_when_it_is_named_and_nothing_is_noted() {
    let world = mixed();
    let before = backups(&world);
    let verified = world.ok(&["verify", OLD_ID]);
    assert!(verified.err.contains("no checksum and no count"), "{verified:#?}");
    world.ok(&["verify", OLD_ID, "--level", "restore"]);
    world.run(&["verify", OLD_ID, "--level", "stored"]).fails(1, "--level content");
    assert_eq!(backups(&world), before);
    let all = world.ok(&["verify", "--all", "--json"]).summary();
    let ids: Vec<&str> = all["steps"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [format!("data/hourly/{FIRST}"), format!("env/hourly/{FIRST}")]);
}

#[test]
fn an_old_one_is_restored_when_it_is_named_and_can_be_undone() {
    let world = mixed();
    let before = backups(&world);
    std::fs::set_permissions(world.path(".env"), std::fs::Permissions::from_mode(0o640)).unwrap();
    let plan = world.ok(&["restore", "env", "--at", OLD_ID, "--dry-run"]).out;
    assert!(plan.contains("no evidence: legacy/unverified") && plan.contains("no checksum"), "{plan}");
    assert_eq!(world.read(".env"), "NEW=2\n");

    let restored = world.ok(&["restore", "env", "--at", OLD_ID, "--yes"]);
    assert!(restored.err.contains("no checksum and no count"), "{restored:#?}");
    assert_eq!(world.read(".env"), "OLD=1\nX=2");
    let mode = std::fs::metadata(world.path(".env")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o640, "as what it replaced");
    world.ok(&["undo", "env", "--yes"]);
    assert_eq!(world.read(".env"), "NEW=2\n");

    // Without a name it is the newest good one, and the moment of an old one chooses none.
    world.write(".env", "CHANGED=3\n");
    world.ok(&["restore", "env", "--yes"]);
    assert_eq!(world.read(".env"), "NEW=2\n");
    let ran = world.run(&["restore", "env", "--at", "2025-12-31", "--yes"]);
    ran.fails(1, "restored only if it is named");
    assert_eq!(world.read(".env"), "NEW=2\n");

    world.ok(&["restore", "env", "--at", OLD_ID, "--to", "out"]);
    let out: Vec<_> = tree(&world.path("out")).into_iter().filter_map(|(_, bytes)| bytes).collect();
    assert_eq!(out, [b"OLD=1\nX=2"]);
    std::fs::remove_file(world.path(".env")).unwrap();
    world.ok(&["restore", "env", "--at", "env/15min/20250302_040000", "--yes"]);
    let mode = std::fs::metadata(world.path(".env")).unwrap().permissions().mode();
    assert_eq!((world.read(".env").as_str(), mode & 0o7777), ("EVEN=older\n", 0o600));
    assert_eq!(backups(&world), before);
}

#[test]
fn by_hand_too() {
    let world = mixed();
    let text = world.ok(&["show", OLD_ID, "--by-hand"]).out;
    let blocks = text.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap());
    let script = blocks.collect::<Vec<_>>().join("\n");
    let dir = world.path(&format!("store/{OLD_ID}"));
    let output = Command::new("bash").args(["-c", &script]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{output:?}\n{script}");
    assert_eq!(world.read(".env"), "OLD=1\nX=2");
    assert_eq!(world.read(".env.old"), "NEW=2\n");
}

fn gzip(path: &Path) -> Vec<u8> {
    Command::new("gzip").arg("-c").arg(path).output().unwrap().stdout
}

/// The directory of an old backup of Redis, with one file.
fn old_redis(host: &Host, at: &str, file: &str, bytes: &[u8]) -> PathBuf {
    let dir = host.path(&format!("store/redis/hourly/{at}"));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(file), bytes).unwrap();
    dir
}

#[test]
#[ignore = "needs redis-server"]
fn both_forms_of_an_old_redis_are_restored() {
    for (at, file) in [("20250301_040000", "dump.rdb.gz"), ("20250302_040000", "redis_20250302_040000.rdb")] {
        let host = Host::new("appendonly yes\n", "");
        let restored = host.seed("backup", 1000);
        host.cli(&["SAVE"]);
        let dump = host.path("data/dump.rdb");
        let bytes = if file.ends_with(".gz") { gzip(&dump) } else { std::fs::read(&dump).unwrap() };
        let dir = old_redis(&host, at, file, &bytes);
        let before = tree(&dir);
        let old = host.seed("old", 300);
        let id = format!("redis/hourly/{at}");
        host.ok(&["verify", &id]);
        host.ok(&["verify", &id, "--level", "restore"]);
        assert_eq!(host.digest(), old);
        host.ok(&["restore", "redis", "--at", &id, "--yes"]);
        assert_eq!(host.digest(), restored, "{file}");
        host.ok(&["undo", "redis", "--yes"]);
        assert_eq!(host.digest(), old, "{file}, undone");
        host.ok(&["restore", "redis", "--at", &id, "--to", "out"]);
        let out = std::fs::read(host.path("out/dump.rdb")).unwrap();
        assert!(out == plain(&dir.join(file)), "{file}: other bytes");
        assert_eq!(tree(&dir), before);
    }
}

fn plain(path: &Path) -> Vec<u8> {
    if path.extension().is_some_and(|e| e == "gz") {
        return Command::new("gzip").arg("-dc").arg(path).output().unwrap().stdout;
    }
    std::fs::read(path).unwrap()
}

#[test]
#[ignore = "needs redis-server"]
fn a_damaged_old_redis_changes_nothing() {
    let host = Host::new("appendonly no\n", "");
    host.seed("backup", 1000);
    host.cli(&["SAVE"]);
    let dump = host.path("data/dump.rdb");
    let (packed, rdb) = (gzip(&dump), std::fs::read(&dump).unwrap());
    let mut flipped = rdb.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let cases: [(&str, &str, Vec<u8>); 4] = [
        ("20250301_000000", "dump.rdb.gz", packed[..packed.len() - 9].to_vec()),
        ("20250302_000000", "dump.rdb.gz", [packed.as_slice(), b"garbage"].concat()),
        ("20250303_000000", "redis_20250303_000000.rdb", rdb[..rdb.len() - 3].to_vec()),
        ("20250304_000000", "redis_20250304_000000.rdb", flipped),
    ];
    let live = host.digest();
    for (at, file, bytes) in cases {
        old_redis(&host, at, file, &bytes);
        let id = format!("redis/hourly/{at}");
        let verified = host.run(&["verify", &id]);
        assert_eq!(verified.status.code(), Some(5), "{id}: {verified:?}");
        let restored = host.run(&["restore", "redis", "--at", &id, "--yes", "--force"]);
        assert_eq!(restored.status.code(), Some(1), "{id}: {restored:?}");
        assert!(String::from_utf8_lossy(&restored.stderr).contains(file), "{id}: {restored:?}");
        assert_eq!(host.digest(), live);
    }
}
