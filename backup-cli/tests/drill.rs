//! `drill`: what it prints, writes and leaves.

use super::support::{World, find, tree};

fn world() -> World {
    World::backed_up("A=canary-drill\n")
}

#[test]
fn a_drill_tells_its_five_phases_and_touches_nothing() {
    let world = world();
    let before = tree(&world.path("data"));
    let done = world.ok(&["drill", "--html", "drill.html"]);
    for part in [
        "passed",
        "1 select",
        "2 PREPARE",
        "3 RESTORE",
        "4 VERIFY",
        "5 CLEAN UP",
        "what decides: env, then data",
    ] {
        assert!(done.out.contains(part), "{part}: {done:#?}");
    }
    assert!(done.err.contains("2 services came back"), "{done:#?}");
    assert_eq!(tree(&world.path("data")), before);
    let page = world.read("drill.html");
    assert!(page.contains("passed") && !page.contains("canary-drill"), "{page}");
    assert!(world.ok(&["list"]).out.contains("restore"), "it counts as a verification by restore");
    assert!(world.ok(&["logs"]).out.contains("drill"));
    let scratch = tree(&world.path("state")).into_iter().any(|(path, _)| path.contains("scratch"));
    assert!(!scratch, "what it made is gone");

    let lines = world.ok(&["drill", "--service", "env", "--json"]).lines();
    let drill = lines.iter().find(|l| l["event"] == "drill").unwrap();
    assert_eq!((drill["passed"].as_bool(), drill["services"].as_array().unwrap().len()), (Some(true), 1));
    assert_eq!(drill["services"][0]["before"]["plain_bytes"], drill["services"][0]["plain_bytes"]);
}

#[test]
fn a_target_that_was_missed_is_told_and_fails_if_that_is_wanted() {
    let world = world();
    let late = "2026-03-09T08:00:00Z";
    let done = world.run_at(late, &["drill"]);
    assert!(done.code == 0 && done.err.contains("more than its max_age of 2 h"), "{done:#?}");
    assert_eq!(world.run_at(late, &["drill", "--strict"]).code, 1);
}

#[test]
fn a_damaged_backup_fails_it_loudly() {
    let world = world();
    world.damage(&find(&world.path("store/data"), "data_20260309_043820.tar.zst"));
    let done = world.run(&["drill"]);
    assert_eq!(done.code, 5, "{done:#?}");
    assert!(done.out.contains("FAILED") && done.err.contains("data"), "{done:#?}");
    world.run(&["drill", "--service", "nope"]).fails(2, "nope");
}
