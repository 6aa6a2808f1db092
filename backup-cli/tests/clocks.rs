//! Ages: of a clock that was wrong, of disabled services.

use super::support::{CONFIG, World};

#[test]
fn a_backup_from_the_future_is_not_fresh_for_ever() {
    let world = World::configured();
    let wrong = world.run_at("2030-01-01T00:00:00Z", &["run"]);
    assert_eq!(wrong.code, 0, "{wrong:#?}");
    // The clock is right again.
    let status = world.run(&["status", "--json"]);
    assert_eq!(status.code, 1, "{status:#?}");
    assert!(status.out.contains("dated in the future"), "{status:#?}");
    world.ok(&["run"]);
    world.ok(&["status"]);
    // Nobody backs up any more.
    let late = world.run_at("2026-03-09T09:00:00Z", &["status"]);
    assert_eq!(late.code, 1, "{late:#?}");
    assert!(late.out.contains("allowed are 2h"), "{late:#?}");
}

#[test]
fn a_disabled_service_is_not_critical() {
    let world = World::configured();
    world.write("backup.toml", &CONFIG.replace("max_age", "enabled = false\nmax_age"));
    world.ok(&["status"]);
    world.write("backup.toml", CONFIG);
    world.ok(&["run"]);
    let late = "2027-01-01T00:00:00Z";
    assert_eq!(world.run_at(late, &["status"]).code, 1);
    world.write("backup.toml", &CONFIG.replace("max_age", "enabled = false\nmax_age"));
    assert_eq!(world.run_at(late, &["status"]).code, 0);
}

#[test]
fn an_unchanged_check_is_fresh_unless_what_it_saw_is_damaged() {
    let world = World::configured();
    world.write(
        "backup.toml",
        &CONFIG
            .replace("kind = \"files\"", "kind = \"env\"")
            .replace("[\"data\"]\nmax", "[\"data/a.txt\"]\nmax"),
    );
    world.ok(&["run"]);
    let seen = world.run_at("2026-03-09T08:00:00Z", &["run"]);
    assert!(seen.code == 0 && world.good().len() == 1, "{seen:#?}");
    assert_eq!(world.run_at("2026-03-09T09:00:00Z", &["status"]).code, 0);
    let stored =
        super::support::tree(&world.path("store")).into_iter().find(|(p, _)| p.ends_with(".zst")).unwrap().0;
    world.damage(&world.path("store").join(stored));
    assert_eq!(world.run_at("2026-03-09T09:00:00Z", &["verify"]).code, 5);
    assert_eq!(world.run_at("2026-03-09T09:00:00Z", &["status"]).code, 1);
}
