//! What is said about containers by a run without configuration.

use std::process::Command;

use super::support::{FIRST, NO_ENGINE, World, ran};

#[test]
fn an_engine_that_does_not_answer_is_one_line() {
    let world = World::new();
    world.fill();
    let run = world.ok(&["run"]);
    let lines: Vec<&str> = run.err.lines().filter(|l| l.contains("containers: ")).collect();
    assert!(matches!(lines.as_slice(), [one] if one.contains(NO_ENGINE)), "{run:#?}");
}

struct Container(String);

fn docker(args: &[&str]) {
    let done = Command::new("docker").args(args).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

impl Drop for Container {
    fn drop(&mut self) {
        Command::new("docker").args(["rm", "-fv", &self.0]).output().unwrap();
    }
}

#[test]
#[ignore = "needs Docker"]
fn a_container_without_an_adapter_is_left_out_by_name() {
    let container = Container(format!("backup-test-{}-odd", std::process::id()));
    let label = format!("backup-test={}", std::process::id());
    let args = ["run", "-d", "--name", &container.0, "--label", &label, "--entrypoint", "sleep"];
    // An image that nothing knows, whatever it holds.
    let odd = format!("backup-test/odd-{}", std::process::id());
    docker(&["tag", "backup-test/redis:7", &odd]);
    let started = Command::new("docker").args(args).args([&odd, "infinity"]).output().unwrap();
    docker(&["rmi", &odd]);
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));

    let world = World::new();
    world.fill();
    // Looks, and writes down what it found, without touching any of it.
    let init = ran(world.command(&["init"]).env_remove("DOCKER_HOST"));
    assert_eq!(init.code, 0, "{init:#?}");
    let line = format!("container {} ({odd}): no adapter for it in this version", container.0);
    assert!(init.err.contains(&line), "{init:#?}");
}

#[test]
#[ignore = "needs Docker"]
fn the_engine_is_written_down_if_it_is_not_the_usual_one() {
    let world = World::new();
    // The same engine at another address.
    let socket = world.path("engine.sock");
    std::os::unix::fs::symlink("/var/run/docker.sock", &socket).unwrap();
    let url = format!("unix://{}", socket.display());
    let here = |args: &[&str]| ran(world.command(args).env("DOCKER_HOST", &url));

    let label = format!("backup-test={}", std::process::id());
    let start = |what: &str, image: &str| {
        let container = Container(format!("backup-test-{}-{what}", std::process::id()));
        let args = ["run", "-d", "--name", &container.0, "--label", &label];
        let trust = ["-e", "POSTGRES_HOST_AUTH_METHOD=trust", image];
        let started = Command::new("docker").args(args).args(trust).output().unwrap();
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        container
    };
    let redis = start("redis", "backup-test/redis:7");
    let postgres = start("postgres", "backup-test/postgres:15");
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    for (container, ready) in
        [(&redis, ["redis-cli", "PING"].as_slice()), (&postgres, &["pg_isready", "-h", "127.0.0.1"])]
    {
        let ask = || Command::new("docker").args(["exec", &container.0]).args(ready).output().unwrap();
        while !ask().status.success() {
            assert!(std::time::Instant::now() < until, "{} does not answer", container.0);
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    // An empty server's backup would be suspect.
    docker(&["exec", &redis.0, "redis-cli", "SET", "a", "1"]);
    docker(&["exec", &postgres.0, "psql", "-U", "postgres", "-c", "CREATE TABLE t AS SELECT 1 AS x"]);
    let init = here(&["init"]);
    assert_eq!(init.code, 0, "{init:#?}");
    // There are others' containers, too.
    let config: toml::Table = world.read("backup.toml").parse().unwrap();
    for container in [&redis, &postgres] {
        assert_eq!(config["services"][&container.0]["docker"].as_str(), Some(url.as_str()), "{config}");
        // Without the variable: what the configuration says counts.
        let run = world.run(&["run", "manual", "--service", &container.0]);
        assert_eq!(run.code, 0, "{run:#?}");
        let hand = world.read(&format!("backups/{}/manual/{FIRST}/RESTORE.md", container.0));
        assert!(hand.contains(&format!("docker -H {url} exec")), "{hand}");
    }
}
