//! Every exit code.

use super::support::{CONFIG, FIRST, World, find};

const TWO: &str = r#"
[services.gone]
kind = "files"
paths = ["gone"]
"#;

#[test]
fn code_0_everything_was_done() {
    World::configured().ok(&["run"]);
}

#[test]
fn code_1_it_failed() {
    let world = World::configured();
    std::fs::remove_dir_all(world.path("data")).unwrap();
    let ran = world.run(&["run"]);
    ran.fails(1, "data: ");
    assert!(world.good().is_empty());
}

#[test]
fn code_2_wrong_usage() {
    for args in
        [&["nonsense"][..], &[], &["run", "--nonsense"], &["verify", "--level", "deep"], &["hold", "x"]]
    {
        assert_eq!(World::configured().run(args).code, 2, "{args:?}");
    }
}

#[test]
fn code_3_some_services_failed() {
    let world = World::configured();
    world.write("backup.toml", &format!("{CONFIG}{TWO}"));
    let ran = world.run(&["run", "manual"]);
    assert_eq!(ran.code, 3, "{ran:#?}");
    assert_eq!(world.good(), [format!("data/manual/{FIRST}")]);
}

#[test]
fn code_4_nothing_selected() {
    let world = World::configured();
    assert_eq!(world.run(&["verify"]).code, 4);
    assert_eq!(world.run(&["undo", "data"]).code, 4);
    assert_eq!(world.run(&["show", "data"]).code, 4);
    world.write("backup.toml", &CONFIG.replace("kind =", "enabled = false\nkind ="));
    assert_eq!(world.run(&["run"]).code, 4);
}

#[test]
fn code_5_damage() {
    let world = World::configured();
    world.ok(&["run"]);
    world.damage(&find(&world.path("store"), &format!("data_{FIRST}.tar.zst")));
    for level in ["stored", "content"] {
        let ran = world.run(&["verify", "--level", level]);
        assert_eq!(ran.code, 5, "{ran:#?}");
    }
    assert!(world.good().is_empty());
    let list = world.ok(&["list"]);
    assert!(list.out.contains("damaged") && list.out.contains("content bad"), "{list:#?}");
}

#[test]
fn status_suits_a_monitoring_check() {
    let world = World::configured();
    let none = world.run(&["status"]);
    assert_eq!(none.code, 1, "{none:#?}");
    assert!(none.out.contains("CRITICAL") && none.out.contains("next:"), "{none:#?}");
    world.ok(&["run"]);
    world.ok(&["status"]);
    let late = world.run_at("2026-03-09T07:00:00Z", &["status"]);
    assert_eq!(late.code, 1, "{late:#?}");
    assert!(late.out.contains("2 h"), "{late:#?}");
}

#[test]
fn a_warning_fails_only_a_strict_status() {
    let world = World::configured();
    world.write("data/big.txt", &"0123456789\n".repeat(10_000));
    world.ok(&["run"]);
    std::fs::remove_file(world.path("data/big.txt")).unwrap();
    let suspect = world.run(&["run"]);
    assert_eq!(suspect.code, 1, "{suspect:#?}");
    world.ok(&["status"]);
    assert_eq!(world.run(&["status", "--strict"]).code, 1);
    let id = format!("data/hourly/{}", super::support::SECOND);
    world.ok(&["accept", &id, "--note", "the old file was purged"]);
    world.ok(&["status", "--strict"]);
    assert!(world.ok(&["show", &id]).out.contains("the old file was purged"));
}

#[test]
fn what_cannot_be_listed_is_not_verified() {
    let world = World::configured();
    world.ok(&["run"]);
    std::fs::rename(world.path("store/data"), world.path("moved")).unwrap();
    std::os::unix::fs::symlink(world.path("moved"), world.path("store/data")).unwrap();
    let ran = world.run(&["verify"]);
    ran.fails(1, "symbolic link");
    assert_eq!(world.run(&["status"]).code, 1);
}
