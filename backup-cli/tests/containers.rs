//! What is said about containers by a run without configuration.

use std::process::Command;

use super::support::{NO_ENGINE, World, ran};

#[test]
fn an_engine_that_does_not_answer_is_one_line() {
    let world = World::new();
    world.fill();
    let run = world.ok(&["run"]);
    let lines: Vec<&str> = run.err.lines().filter(|l| l.contains("containers: ")).collect();
    assert!(matches!(lines.as_slice(), [one] if one.contains(NO_ENGINE)), "{run:#?}");
}

struct Container(String);

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
    let docker = |args: &[&str]| {
        let done = Command::new("docker").args(args).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
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
