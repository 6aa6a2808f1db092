//! What goes wrong around the program.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal, kill_process};

use super::support::{CONFIG, World, ran};

#[test]
fn an_unmounted_store_is_refused() {
    let world = World::configured();
    world.ok(&["run"]);
    std::fs::rename(world.path("store"), world.path("unmounted")).unwrap();
    for verb in ["run", "list", "status", "verify", "prune"] {
        let ran = world.run(&[verb]);
        ran.fails(1, "store");
        assert!(!world.path("store").exists(), "{verb}: {ran:#?}");
    }
    // The mount point is there, the disk is not.
    std::fs::create_dir(world.path("store")).unwrap();
    world.run(&["run"]).fails(1, "not a backup store");
    assert_eq!(std::fs::read_dir(world.path("store")).unwrap().count(), 0);
}

#[test]
fn what_lies_behind_a_link_in_the_store_is_told_not_passed_over() {
    let world = World::configured();
    world.ok(&["run"]);
    for (place, away) in [("store/data", "away"), ("store/data/hourly", "deeper")] {
        std::fs::rename(world.path(place), world.path(away)).unwrap();
        std::os::unix::fs::symlink(world.path(away), world.path(place)).unwrap();
        // Others that mean nothing, or lead nowhere, are nobody's business.
        let _there = std::os::unix::fs::symlink("nowhere", world.path("store/dangling"));
        let listed = world.ok(&["list"]);
        let warnings: Vec<&str> = listed.err.lines().filter(|l| l.contains("symbolic link")).collect();
        assert!(
            matches!(warnings.as_slice(), [one] if one.contains(&format!("/{place}` is"))),
            "{listed:#?}"
        );
        assert_eq!(world.ok(&["list", "--json"]).summary()["warnings"].as_array().unwrap().len(), 1);
        if place == "store/data" {
            assert!(world.run(&["list", "data"]).err.contains("symbolic link"));
        }
        std::fs::remove_file(world.path(place)).unwrap();
        std::fs::rename(world.path(away), world.path(place)).unwrap();
    }
    assert!(!world.ok(&["list"]).err.contains("symbolic link"));
    assert_eq!(world.good().len(), 1);
}

/// Takes the service's lock as another process would.
fn hold_lock(world: &World) -> std::fs::File {
    world.ok(&["run"]);
    let lock = std::fs::OpenOptions::new().write(true).open(world.path("state/locks/data.lock")).unwrap();
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
    lock
}

#[test]
fn a_busy_service_names_its_holder() {
    let world = World::configured();
    let _lock = hold_lock(&world);
    let ran = world.run(&["run", "--wait", "0s"]);
    // The lock's text is that of the last process that held it.
    ran.fails(1, "`backup run` (process ");
    assert_eq!(world.good().len(), 1);
    assert_eq!(world.run(&["run", "--wait", "soon"]).code, 2);
}

#[test]
fn a_second_run_waits_for_the_first() {
    let world = World::configured();
    let lock = hold_lock(&world);
    let mut child = world.command(&["run"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut err = BufReader::new(child.stderr.take().unwrap()).lines();
    let waiting = err.next().unwrap().unwrap();
    assert!(waiting.starts_with("data: waiting: "), "{waiting}");
    drop(lock);
    // Read on, so that the pipe stays open.
    let rest: Vec<String> = err.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{rest:?}");
    assert_eq!(world.good().len(), 2);
}

/// Enough data that a run is still at work when its first progress is seen.
fn slow() -> World {
    let world = World::configured();
    world.ok(&["run"]);
    let block: Vec<u8> = (0..1_u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(world.path("data/large"), block.repeat(200)).unwrap();
    world.write("backup.toml", &format!("{CONFIG}\n[limits]\nthreads = 1\n"));
    world
}

/// Starts a run and sends `signal` as often as told when it is in the midst of its work; returns its exit code.
fn interrupted(world: &World, signal: Signal, times: usize) -> Option<i32> {
    let mut child =
        world.command(&["run", "--json"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let pid = Pid::from_child(&child);
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let progress = out.find(|line| line.contains("\"progress\""));
    assert!(progress.is_some());
    for _ in 0..times {
        kill_process(pid, signal).unwrap();
    }
    out.for_each(drop);
    child.wait().unwrap().code()
}

#[test]
fn a_signal_ends_a_run_in_order() {
    let world = slow();
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        assert_eq!(interrupted(&world, signal, 1), Some(130));
        // Nothing of the interrupted run is left, and what is listed as good is.
        assert!(world.good().len() <= 2, "{:?}", world.good());
        world.ok(&["verify", "--all", "--level", "stored"]);
    }
    let list = world.ok(&["list", "--all"]);
    assert!(!list.out.contains("incomplete"), "{list:#?}");
    world.ok(&["run"]);
}

#[test]
fn a_second_signal_quits_at_once_and_the_next_run_tidies_up() {
    let world = slow();
    assert_eq!(interrupted(&world, Signal::INT, 2), Some(130));
    world.ok(&["verify", "--all", "--level", "stored"]);
    world.ok(&["run"]);
    world.ok(&["verify"]);
}

#[test]
fn a_killed_run_leaves_nothing_that_looks_good() {
    let world = slow();
    assert_eq!(interrupted(&world, Signal::KILL, 1), None);
    world.ok(&["verify", "--all", "--level", "stored"]);
    world.ok(&["run"]);
    world.ok(&["verify"]);
}

#[test]
fn an_unwritable_store_fails_clearly() {
    let world = World::configured();
    // As root, permissions mean nothing: a file in the place of the service's directory does for anyone.
    std::fs::write(world.path("store/data"), "in the way").unwrap();
    let ran = world.run(&["run"]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.err.lines().any(|l| l.starts_with("error: ")), "{ran:#?}");
}

#[test]
fn a_clock_that_goes_backwards_still_makes_the_newest() {
    let world = World::configured();
    world.ok(&["run"]);
    world.write("data/a.txt", "later\n");
    let back = world.run_at("2020-01-01T00:00:00Z", &["run"]);
    assert_eq!(back.code, 0, "{back:#?}");
    world.ok(&["restore", "data", "--yes"]);
    assert_eq!(world.read("data/a.txt"), "later\n");
}

#[test]
fn the_reports_of_failed_runs_are_kept() {
    let world = World::configured();
    std::fs::remove_dir_all(world.path("data")).unwrap();
    world.run(&["run"]);
    let last = world.ok(&["logs", "last"]);
    assert!(last.out.contains("failed") && last.out.contains("data: "), "{last:#?}");
    let runs = world.ok(&["logs"]);
    assert_eq!(runs.out.lines().count(), 2, "{runs:#?}");
    world.run(&["logs", "2019"]).fails(4, "no run");
    let bad = ran(world.command(&["logs", "2026"]).env("BACKUP_TEST_NOW", "not a time"));
    bad.fails(2, "BACKUP_TEST_NOW");
}
