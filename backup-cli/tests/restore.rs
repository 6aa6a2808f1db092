//! Restores, undone and cleaned up, and by hand.

use std::process::Command;

use super::support::{FIRST, World, find, tree};

/// One backup, then a change.
fn changed() -> World {
    let world = World::configured();
    world.ok(&["run"]);
    world.write("data/a.txt", "changed\n");
    world
}

#[test]
fn restore_undo_cleanup() {
    let world = changed();
    let restored = world.ok(&["restore", "data", "--yes"]);
    assert!(restored.err.contains("backup undo data"), "{restored:#?}");
    assert_eq!(world.read("data/a.txt"), "alpha\n");
    assert_eq!(world.read("data/sub/b.txt"), "beta\n");

    let ends_undo = "`backup undo data` is impossible afterwards";
    assert!(world.ok(&["cleanup", "--dry-run"]).out.contains(ends_undo));

    world.ok(&["undo", "data", "--yes"]);
    assert_eq!(world.read("data/a.txt"), "changed\n");
    // It is impossible already.
    let cleanup = world.ok(&["cleanup", "--dry-run"]);
    assert!(!cleanup.out.contains("impossible"), "{cleanup:#?}");
    assert_eq!(world.run(&["undo", "data", "--yes"]).code, 4);

    let beside = || tree(&world.path("")).into_iter().filter(|(path, _)| path.contains(".backup.")).count();
    assert!(beside() > 0);
    let dry = world.ok(&["cleanup", "--dry-run"]);
    assert!(dry.out.contains(".backup.") && beside() > 0, "{dry:#?}");
    world.run(&["cleanup"]).fails(2, "confirmation");
    world.ok(&["cleanup", "--yes"]);
    assert_eq!(beside(), 0);
    assert_eq!(world.read("data/a.txt"), "changed\n");
    assert!(world.ok(&["cleanup", "--yes"]).err.contains("nothing to remove"));
}

#[test]
fn without_yes_nobody_is_asked_and_nothing_changed() {
    let world = changed();
    let before = tree(&world.path("data"));
    let ran = world.run(&["restore", "data"]);
    ran.fails(2, "confirmation").hints("--yes");
    assert!(ran.out.contains(&format!("restore data/hourly/{FIRST}")), "{ran:#?}");
    world.run(&["restore", "data", "--dry-run"]);
    assert_eq!(tree(&world.path("data")), before);
}

#[test]
fn the_plan_says_what_would_be_lost() {
    // The files are written now, long after the moment of the backup.
    let world = changed();
    let plan = world.ok(&["restore", "data", "--dry-run"]);
    assert!(
        plan.out.contains("kept as") && plan.out.contains("discards writes since 04:38 UTC"),
        "{plan:#?}"
    );
}

#[test]
fn a_second_restore_gives_the_same() {
    let world = changed();
    world.ok(&["restore", "data", "--yes"]);
    let once = tree(&world.path("data"));
    world.ok(&["restore", "data", "--yes"]);
    assert_eq!(tree(&world.path("data")), once);
}

#[test]
fn elsewhere_needs_no_question_but_an_empty_place() {
    let world = changed();
    world.ok(&["restore", "data", "--to", "out"]);
    assert_eq!(std::fs::read(find(&world.path("out"), "a.txt")).unwrap(), b"alpha\n");
    assert_eq!(world.read("data/a.txt"), "changed\n");
    assert_eq!(world.run(&["restore", "data", "--to", "out"]).code, 1);
}

#[test]
fn a_place_that_will_not_do_is_refused_before_anything_is_written() {
    let world = changed();
    world.write("file", "x");
    std::os::unix::fs::symlink("work/store/data", world.path("../link")).unwrap();
    let before = tree(&world.path(""));
    let left = |before: &[(String, Option<Vec<u8>>)]| {
        let after = tree(&world.path(""));
        let ours = |p: &str| p.starts_with("store/.runs") || p.starts_with("state");
        after.into_iter().filter(|e| !ours(&e.0) && !before.contains(e)).map(|e| e.0).collect::<Vec<_>>()
    };
    for (to, why) in [
        ("store", "own"),
        ("store/new", "own"),
        ("./data/../store/new/deep", "own"),
        ("state/x", "own"),
        ("missing/../store/new", "own"),
        ("missing/deep/../../state/./x", "own"),
        ("../link/../new", "own"),
        ("file", "not a directory"),
        ("data", "not empty"),
    ] {
        world.run(&["restore", "data", "--to", to]).fails(1, why);
        assert_eq!(left(&before), [""; 0], "{to}");
    }
    // Inside the source is a place like any other.
    world.ok(&["restore", "data", "--to", "data/again"]);
    assert_eq!(std::fs::read(find(&world.path("data/again"), "a.txt")).unwrap(), b"alpha\n");
}

#[test]
fn every_backup_of_a_service_passes_a_test_restore_that_leaves_nothing() {
    let world = changed();
    world.ok(&["run"]);
    let before = tree(&world.path("data"));
    let verified = world.ok(&["verify", "--all", "--level", "restore", "--json"]);
    let passed = |l: &&serde_json::Value| l["event"] == "service-finished" && l["outcome"] == "ok";
    assert_eq!(verified.lines().iter().filter(passed).count(), 2, "{verified:#?}");
    assert_eq!(std::fs::read_dir(world.path("state/runs")).unwrap().count(), 0);
    assert_eq!(tree(&world.path("data")), before);
}

#[test]
fn a_moment_chooses_the_backup() {
    let world = changed();
    world.ok(&["run"]);
    world.run(&["restore", "data", "--at", "2026-03-08", "--yes"]).fails(1, "no good backup");
    assert_eq!(world.run(&["restore", "data", "--at", "yesterday"]).code, 2);
    world.ok(&["restore", "data", "--at", FIRST, "--yes"]);
    assert_eq!(world.read("data/a.txt"), "alpha\n");
    world.ok(&["restore", "data", "--yes"]);
    assert_eq!(world.read("data/a.txt"), "changed\n");
}

#[test]
fn a_damaged_newest_backup_is_passed_over_and_told() {
    let world = changed();
    world.ok(&["run"]);
    world.damage(&find(&world.path("store"), "data_20260309_043821.tar.zst"));
    assert_eq!(world.run(&["verify"]).code, 5);
    let plan = world.ok(&["restore", "data", "--dry-run"]);
    assert!(plan.out.contains(&format!("restore data/hourly/{FIRST}")), "{plan:#?}");
    assert!(plan.out.contains("not taken: data/hourly/20260309_043821 is damaged"), "{plan:#?}");
}

#[test]
fn damage_that_nobody_knew_of_changes_nothing() {
    let world = changed();
    world.damage(&find(&world.path("store"), &format!("data_{FIRST}.tar.zst")));
    let before = tree(&world.path("data"));
    let ran = world.run(&["restore", "data", "--yes"]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(!ran.err.contains("warning"), "{ran:#?}");
    assert_eq!(tree(&world.path("data")), before);
    assert!(world.ok(&["cleanup"]).err.contains("nothing to remove"));
}

/// The store lies below the root: entries change places one by one.
#[test]
fn what_is_shown_names_the_real_places() {
    let world = World::new();
    world.fill();
    world.ok(&["run"]);
    world.write("data/a.txt", "changed\n");
    let aside = |out: &str| {
        let words = out.split(['`', ' ', '\n', ',']);
        let mut found: Vec<String> = words.filter(|w| w.contains(".backup.")).map(str::to_owned).collect();
        found.sort();
        found.dedup();
        found
    };
    let there = || {
        let all = tree(&world.path("")).into_iter().map(|(name, _)| world.path(&name));
        let all = all.filter(|p| p.file_name().unwrap().to_str().unwrap().contains(".backup."));
        all.map(|p| p.canonicalize().unwrap().display().to_string()).collect::<Vec<_>>()
    };
    let restored = world.ok(&["restore", "files", "--yes"]);
    assert_eq!(there().len(), 1);
    assert_eq!(aside(&restored.out), there(), "{restored:#?}");
    assert_eq!(aside(&restored.err), there(), "{restored:#?}");
    let cleanup = world.ok(&["cleanup", "--dry-run"]);
    assert_eq!(aside(&cleanup.out), there(), "{cleanup:#?}");
    let before = there();
    let undone = world.ok(&["undo", "files", "--yes"]);
    assert_eq!(aside(&undone.out), before, "{undone:#?}");
    let cleanup = world.ok(&["cleanup", "--dry-run"]);
    assert_eq!(aside(&cleanup.out), there(), "{cleanup:#?}");
}

/// Runs the commands of RESTORE.md, by `bash`, in the backup's directory.
fn by_hand(text: &str, dir: &std::path::Path) {
    let headings: Vec<&str> = text.lines().filter(|l| l.starts_with("## ")).collect();
    assert!(headings.len() > 2 && headings.iter().all(|h| h.len() < 100), "{headings:#?}");
    let blocks = text.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap());
    let script = blocks.collect::<Vec<_>>().join("\n");
    let output = Command::new("bash").args(["-c", &script]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{output:?}\n{script}");
}

#[test]
fn by_hand_gives_the_same_tree() {
    let world = World::configured();
    world.ok(&["run"]);
    let text = world.ok(&["show", "data", "--by-hand"]).out;
    let before = tree(&world.path("data"));
    std::fs::remove_dir_all(world.path("data")).unwrap();
    by_hand(&text, &world.path(&format!("store/data/hourly/{FIRST}")));
    assert_eq!(tree(&world.path("data")), before);
}

/// The backup lies in the very folder that is replaced.
#[test]
fn by_hand_leaves_the_store_where_it_was() {
    let world = World::new();
    world.fill();
    world.ok(&["run"]);
    world.write("data/a.txt", "changed\n");
    let text = world.ok(&["show", "files", "--by-hand"]).out;
    assert!(text.contains("leaves out `") && text.contains("/backups`"), "{text}");
    by_hand(&text, &world.path(&format!("backups/files/manual/{FIRST}")));
    assert_eq!(world.read("data/a.txt"), "alpha\n");
    assert_eq!(std::fs::read(world.path("../work.old/data/a.txt")).unwrap(), b"changed\n");
    assert_eq!(world.good(), [format!("files/manual/{FIRST}")]);
    world.ok(&["verify"]);
}

#[test]
fn a_part_of_what_is_one_whole_is_refused() {
    let world = World::configured();
    world.ok(&["run"]);
    let before = tree(&world.path("data"));
    world.run(&["restore", "data", "--only", "data", "--yes"]).fails(1, "restored as a whole");
    world.run(&["restore", "data", "--only", "../x"]).fails(2, "../x");
    assert_eq!(tree(&world.path("data")), before);
}
