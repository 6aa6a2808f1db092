//! What happens to a container while it is captured, and what its server lacks.

use std::process::Command;
use std::time::Duration;

use backup_core::testkit::adapter_suite::{Captured, capture};
use backup_core::{AdapterError, AdapterErrorKind, ArtifactBody, CheckPurpose, ReadOutcome, chain};
use futures::StreamExt;
use tokio::task::{JoinSet, block_in_place};
use tokio::time::Instant;

use crate::container::{Container, docker, three_keys_come};
use crate::support::{bench, captured, counts, wait_for};

/// A minute for a snapshot.
fn slow() -> Container {
    let container = Container::start(&[], &["--enable-debug-command", "yes"]);
    container.cli(&["DEBUG", "POPULATE", "600"]);
    container.cli(&["CONFIG", "SET", "rdb-key-save-delay", "100000"]);
    container
}

/// Begins a capture, and does something to the container once its server is at it.
async fn meanwhile(
    container: &Container,
    mode: &str,
    accident: &[&str],
    budget: Duration,
) -> Result<Captured, AdapterError> {
    let adapter = container.adapter(&format!("capture = '{mode}'"));
    let mut capturing = JoinSet::new();
    capturing.spawn(async move {
        let mut cx = bench().cx();
        cx.deadline = Some(Instant::now() + budget);
        std::fs::create_dir_all(&cx.spool).unwrap();
        capture(&*adapter, &cx).await
    });
    block_in_place(|| {
        let at_it = || container.cli(&["INFO", "persistence"]).contains("rdb_bgsave_in_progress:1");
        wait_for("the server to make its snapshot", at_it);
        let mut command = accident.to_vec();
        command.push(&container.name);
        docker(&command);
    });
    capturing.join_next().await.unwrap().unwrap()
}

const PLENTY: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Docker"]
async fn a_container_that_ends_is_an_error_and_never_an_end() {
    for mode in ["stream", "bgsave"] {
        for accident in [["stop", "-t", "1"].as_slice(), &["restart", "-t", "1"], &["kill"], &["rm", "-f"]] {
            let (container, begun) = (slow(), Instant::now());
            let error = meanwhile(&container, mode, accident, PLENTY).await.unwrap_err();
            let told = chain(&error);
            assert_eq!(error.kind(), AdapterErrorKind::Unavailable, "{mode}, {accident:?}: {told}");
            assert!(begun.elapsed() < PLENTY, "{mode}, {accident:?}: it was noticed late");
            if accident[0] == "restart" {
                container.wait_until_up();
            }
            let after = captured(&*container.adapter(&format!("capture = '{mode}'"))).await;
            match accident[0] {
                "rm" => assert_eq!(after.unwrap_err().kind(), AdapterErrorKind::NotFound),
                "restart" => drop(after.unwrap_or_else(|e| panic!("{mode}: {}", chain(&e)))),
                _ => {
                    let told = chain(&after.unwrap_err());
                    assert!(told.contains("not running") || told.contains("does not run"), "{told}");
                    docker(&["start", &container.name]);
                    container.wait_until_up();
                    captured(&*container.adapter(&format!("capture = '{mode}'"))).await.unwrap();
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Docker"]
async fn a_container_that_is_paused_meanwhile_ends_with_the_budget() {
    for mode in ["stream", "bgsave"] {
        let container = slow();
        let error = meanwhile(&container, mode, &["pause"], Duration::from_secs(8)).await.unwrap_err();
        docker(&["unpause", &container.name]);
        assert_eq!(error.kind(), AdapterErrorKind::Timeout, "{mode}: {}", chain(&error));
        // It goes on as if nothing had been.
        container.cli(&["CONFIG", "SET", "rdb-key-save-delay", "0"]);
        if mode == "bgsave" {
            // The save that nobody waits for any more has not ended.
            docker(&["restart", "-t", "0", &container.name]);
            container.wait_until_up();
        }
        captured(&*container.adapter(&format!("capture = '{mode}'"))).await.unwrap();
        assert_eq!(container.cli(&["SET", "probe", "1"]), "OK");
    }
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_server_that_cannot_fork_says_so() {
    let container = Container::start(&[], &[]);
    docker(&["update", "--pids-limit", "1", &container.name]);
    for mode in ["stream", "bgsave"] {
        let error = captured(&*container.adapter(&format!("capture = '{mode}'"))).await.unwrap_err();
        let told = chain(&error);
        assert!(told.contains("could not make a child process") && told.contains("memory"), "{mode}: {told}");
        assert_eq!(told.contains("may refuse writes"), mode == "bgsave", "{told}");
    }
    docker(&["update", "--pids-limit", "-1", &container.name]);
    // The next save brings its writers back.
    three_keys_come(&container, "bgsave").await;
    assert_eq!(container.cli(&["SET", "probe", "1"]), "OK");
}

/// Some MiB that do not compress, 100 kB a key.
fn fill(container: &Container, keys: u32) {
    container.cli(&["CONFIG", "SET", "rdbcompression", "no"]);
    let script =
        "for n = 1, tonumber(ARGV[1]) do redis.call('SET', 'big:' .. n, string.rep('x', 100000)) end";
    container.cli(&["EVAL", script, "0", &keys.to_string()]);
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_full_disk_is_told_and_streaming_needs_none() {
    let settings = ["--save", "3600 1", "--enable-protected-configs", "yes"];
    let container = Container::start(&["--tmpfs", "/data:size=2m,mode=777"], &settings);
    container.cli(&["SAVE"]);
    fill(&container, 40);
    let error = captured(&*container.adapter("capture = 'bgsave'")).await.unwrap_err();
    let told = chain(&error);
    for part in ["failed to write its file", "`/data`", "stop-writes-on-bgsave-error"] {
        assert!(told.contains(part), "{told}");
    }
    assert_eq!(container.cli(&["SET", "probe", "1"]).split(' ').next(), Some("MISCONF"));
    let taken = captured(&*container.adapter("capture = 'stream'")).await.unwrap();
    assert_eq!(counts(&taken)["keys"], 43);
    // With room again, all is well.
    container.cli(&["CONFIG", "SET", "dir", "/tmp"]);
    assert_eq!(counts(&captured(&*container.adapter("capture = 'bgsave'")).await.unwrap())["keys"], 43);
    assert_eq!(container.cli(&["SET", "probe", "1"]), "OK");
}

/// A volume that is gone with this.
struct Volume(String);

impl Drop for Volume {
    fn drop(&mut self) {
        let _gone = Command::new("docker").args(["volume", "rm", "-f", &self.0]).output();
    }
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_save_without_room_is_not_even_begun() {
    let volume = Volume(format!("backup-test-{}-small", std::process::id()));
    let options = ["-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=5m,mode=777"];
    docker(&[["volume", "create"].as_slice(), &options, &[&volume.0]].concat());
    let mounted = format!("{}:/data", volume.0);
    let container = Container::start(&["-v", &mounted], &["--save", "3600 1"]);
    fill(&container, 30);
    container.cli(&["SAVE"]);
    let saves = |container: &Container| {
        let info = container.cli(&["INFO", "persistence"]);
        info.lines().find(|l| l.starts_with("rdb_saves:")).unwrap().to_owned()
    };
    let before = saves(&container);
    let error = captured(&*container.adapter("capture = 'bgsave'")).await.unwrap_err();
    assert_eq!(error.kind(), AdapterErrorKind::NoSpace, "{}", chain(&error));
    assert_eq!(saves(&container), before);
    assert_eq!(container.cli(&["SET", "probe", "1"]), "OK");
    drop(container);
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_reader_that_stalls_loses_nothing() {
    // No path of the host leads there: the file comes through a program in the container.
    let container = Container::start(&["--tmpfs", "/data:mode=777"], &[]);
    fill(&container, 13);
    let adapter = container.adapter("capture = 'bgsave'");
    let cx = bench().cx();
    let mut parts = adapter.open(&cx).await.unwrap().into_parts();
    let artifact = parts.artifacts.next().await.unwrap().unwrap();
    let ArtifactBody::Stream(mut body) = artifact.body else { panic!("a stream") };
    let first = body.next().await.unwrap().unwrap();
    // What an engine's exec has not delivered two seconds after the program's end is lost.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let meta = serde_json::from_str(r#"{"name": "redis"}"#).unwrap();
    let mut check = adapter.content_check(&CheckPurpose::Capture, &meta).unwrap();
    check.update(&first).unwrap();
    let mut bytes = first.len();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.unwrap();
        check.update(&chunk).unwrap();
        bytes += chunk.len();
    }
    drop((body, parts.artifacts));
    (parts.release)(ReadOutcome::Complete).await.unwrap();
    assert_eq!(check.finish().unwrap().counts["keys"], 16);
    let size = docker(&["exec", &container.name, "stat", "-c", "%s", "/data/dump.rdb"]);
    assert_eq!(size, bytes.to_string());
    assert!(bytes > 1_290_000, "{bytes}");
}
