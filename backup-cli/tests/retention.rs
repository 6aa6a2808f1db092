//! `prune`, `hold`, and what a run deletes by itself.

use super::support::{CONFIG, FIRST, SECOND, World};

const THIRD: &str = "20260309_043822";

/// Three hourly backups, of which the policy keeps two.
fn three() -> World {
    let world = World::configured();
    world.write("backup.toml", &CONFIG.replace("keep = 2", ""));
    for _ in 0..3 {
        world.ok(&["run"]);
    }
    world.write("backup.toml", CONFIG);
    assert_eq!(world.good().len(), 3);
    world
}

#[test]
fn a_dry_run_tells_and_deletes_nothing() {
    let world = three();
    let plan = world.ok(&["prune", "--dry-run"]);
    let verdict = |id: &str| plan.out.lines().find(|l| l.contains(id)).unwrap_or_default().to_owned();
    assert!(verdict(FIRST).starts_with("delete") && verdict(THIRD).starts_with("keep"), "{plan:#?}");
    assert_eq!(world.good().len(), 3);
}

#[test]
fn without_yes_nobody_is_asked_and_nothing_deleted() {
    let world = three();
    world.run(&["prune"]).fails(2, "confirmation").hints("--yes");
    assert_eq!(world.good().len(), 3);
}

#[test]
fn with_yes_what_was_planned_goes() {
    let world = three();
    let pruned = world.ok(&["prune", "--yes"]);
    assert!(pruned.err.contains(&format!("deleted data/hourly/{FIRST}")), "{pruned:#?}");
    assert_eq!(world.good(), [format!("data/hourly/{THIRD}"), format!("data/hourly/{SECOND}")]);
    let again = world.ok(&["prune", "--yes"]);
    assert!(again.err.contains("nothing to delete"), "{again:#?}");
}

#[test]
fn what_is_held_stays_until_it_is_not() {
    let world = three();
    let first = format!("data/hourly/{FIRST}");
    world.ok(&["hold", &first, "--note", "before the migration"]);
    assert!(world.ok(&["list"]).out.contains("held"));
    assert!(world.ok(&["show", &first]).out.contains("before the migration"));
    world.ok(&["prune", "--yes"]);
    assert!(world.good().contains(&first));
    // Facts of one second step aside: this one is later.
    let unheld = world.run_at("2026-03-09T04:40:00Z", &["unhold", &first]);
    assert_eq!(unheld.code, 0, "{unheld:#?}");
    world.ok(&["prune", "--yes"]);
    assert!(!world.good().contains(&first));
}

#[test]
fn a_run_applies_the_retention_of_its_interval() {
    let world = World::configured();
    for _ in 0..4 {
        world.ok(&["run"]);
    }
    assert_eq!(world.good().len(), 2);
    world.run(&["accept", &world.good()[0]]).fails(1, "suspect");
    world.run(&["hold", "data/hourly/20200101_000000"]).fails(1, "there is no backup");
}
