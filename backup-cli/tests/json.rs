//! `--json`: every line parses, the last one is the summary, also when it fails.

use super::support::{FIRST, World};

#[test]
fn every_verb_ends_with_a_summary() {
    let world = World::configured();
    let id = format!("data/hourly/{FIRST}");
    let verbs: [&[&str]; 17] = [
        &["init"],
        &["run"],
        &["list"],
        &["show", "data"],
        &["show", "data", "--by-hand"],
        &["status"],
        &["verify"],
        &["hold", &id],
        &["unhold", &id],
        &["thaw", &id],
        &["prune", "--dry-run"],
        &["restore", "data", "--yes"],
        &["undo", "data", "--yes"],
        &["cleanup", "--yes"],
        &["logs"],
        &["logs", "last"],
        &["adapters"],
    ];
    for args in verbs {
        let ran = world.run(&[args, &["--json"]].concat());
        assert_eq!(ran.summary()["exit_code"], 0, "{args:?}: {ran:#?}");
        assert!(ran.lines().iter().all(|l| l["event"].is_string()), "{args:?}: {ran:#?}");
    }
}

#[test]
fn failures_end_with_a_summary_that_tells_them() {
    let world = World::configured();
    let ran = world.run(&["restore", "dat", "--json"]);
    let summary = ran.summary();
    assert!(summary["error"].as_str().unwrap().contains("`dat`"), "{summary}");
    assert!(summary["hints"][0].as_str().unwrap().contains("`data`"), "{summary}");
    ran.fails(2, "`dat`");
}

#[test]
fn a_run_tells_its_events_and_its_steps() {
    let world = World::configured();
    let ran = world.ok(&["run", "--json"]);
    let lines = ran.lines();
    let events: Vec<&str> = lines.iter().map(|l| l["event"].as_str().unwrap()).collect();
    for event in ["run-started", "service-started", "progress", "service-finished", "run-finished"] {
        assert!(events.contains(&event), "{event}: {events:?}");
    }
    let summary = ran.summary();
    assert_eq!(summary["steps"][0]["id"], format!("data/hourly/{FIRST}"));
    assert_eq!(summary["outcome"], "ok");
}

#[test]
fn list_lines_have_what_scripts_need() {
    let world = World::configured();
    world.ok(&["run"]);
    world.ok(&["hold", &format!("data/hourly/{FIRST}")]);
    let ran = world.run_at("2026-03-09T05:38:20Z", &["list", "--json"]);
    let line = &ran.lines()[0];
    assert_eq!(line["state"], "good");
    assert_eq!(line["age_s"], 3600);
    assert_eq!(line["held"], true);
    assert!(line["size_bytes"].as_u64().unwrap() > 0);
}
