//! What goes where.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use super::support::{FIRST, World, ran};

#[test]
fn standard_output_carries_the_product_alone() {
    let world = World::configured();
    let run = world.ok(&["run"]);
    assert_eq!(run.out.lines().count(), 1, "{run:#?}");
    assert!(run.out.starts_with("data  ok"), "{run:#?}");
    assert!(run.err.contains("1 service backed up"), "{run:#?}");
    let list = world.ok(&["list"]);
    assert!(list.err.is_empty() && list.out.lines().count() == 2, "{list:#?}");
}

#[test]
fn quiet_leaves_the_product_and_the_trouble() {
    let world = World::configured();
    let run = world.ok(&["run", "--quiet"]);
    assert_eq!((run.out.as_str(), run.err.as_str()), ("", ""));
    let list = world.ok(&["list", "-q"]);
    assert!(list.out.contains(FIRST) && list.err.is_empty(), "{list:#?}");
    std::fs::remove_dir_all(world.path("data")).unwrap();
    world.run(&["run", "-q"]).fails(1, "data: ");
}

#[test]
fn colours_only_where_they_are_wanted() {
    let world = World::configured();
    world.ok(&["run"]);
    let plain = world.ok(&["list"]);
    assert!(!plain.out.contains('\x1b'), "{plain:#?}");
    assert!(plain.out.lines().all(|l| l.trim_end() == l), "{plain:#?}");
    assert!(world.ok(&["list", "--color", "always"]).out.contains('\x1b'));
    let forced = ran(world.command(&["list", "--color", "never"]).env("CLICOLOR_FORCE", "1"));
    assert!(!forced.out.contains('\x1b'), "{forced:#?}");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let world = World::configured();
    world.ok(&["run"]);
    let mut child = world
        .command(&["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Closed before anything could be read.
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_reader_that_goes_away_does_not_stop_a_backup() {
    let world = World::configured();
    let mut child = world.command(&["run", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(world.good().len(), 1);
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let world = World::configured();
    world.ok(&["run"]);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = world.command(&["list"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("standard output"), "{output:?}");
}

#[test]
fn the_log_goes_to_standard_error() {
    let world = World::configured();
    let plain = world.ok(&["run"]);
    let verbose = world.ok(&["run", "-vv"]);
    assert_eq!(verbose.out.lines().count(), plain.out.lines().count());
}

/// What is in the backed-up files stays in the stored artifacts: no log, no metadata, no journal repeats it.
#[test]
fn contents_show_nowhere() {
    const CANARY: &str = "canary-5f1d";
    let world = World::configured();
    world.write("data/.env", &format!("PASSWORD={CANARY}\n"));
    let config = world.read("backup.toml").replace("kind = \"files\"", "kind = \"env\"");
    world.write("backup.toml", &config.replace("paths = [\"data\"]", "paths = [\"data/.env\"]"));
    let verbs: [&[&str]; 6] = [
        &["-vv", "run"],
        &["-vv", "--json", "verify", "--level", "restore"],
        &["-vv", "show", "data"],
        &["-vv", "restore", "data", "--yes"],
        &["-vv", "undo", "data", "--yes"],
        &["-vv", "--json", "logs", "last"],
    ];
    for args in verbs {
        let ran = world.ok(args);
        assert!(!ran.out.contains(CANARY) && !ran.err.contains(CANARY), "{args:?}: {ran:#?}");
    }
    for (path, contents) in super::support::tree(&world.path("")) {
        let shows = contents.is_some_and(|c| c.windows(CANARY.len()).any(|w| w == CANARY.as_bytes()));
        assert!(!shows || path.starts_with("data/"), "{path}");
    }
}
