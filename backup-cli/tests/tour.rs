//! The first minute, without any configuration.

use super::support::{FIRST, SECOND, World, find, tree};

fn project() -> World {
    let world = World::new();
    world.fill();
    world.write(".env", "TOKEN=1\n");
    world
}

#[test]
fn run_list_verify_restore() {
    let world = project();
    let run = world.ok(&["run"]);
    assert!(
        run.err.contains("no configuration") && run.err.contains("backup restore files --to"),
        "{run:#?}"
    );
    let list = world.ok(&["list"]);
    for service in ["files", "env"] {
        assert!(list.out.contains(&format!("{service}/manual/{FIRST}")), "{list:#?}");
    }
    world.ok(&["status"]);
    world.ok(&["verify"]);
    let show = world.ok(&["show", "files"]);
    assert!(show.out.contains("verified at level content"), "{show:#?}");
    world.ok(&["restore", "files", "--to", "./restored"]);
    assert_eq!(tree(&find(&world.path("restored"), "data")), tree(&world.path("data")));
}

#[test]
fn a_second_run_does_not_contain_the_first() {
    let world = project();
    world.ok(&["run"]);
    world.write("data/new.txt", "new\n");
    world.ok(&["run"]);
    world.ok(&["restore", "files", "--at", &format!("files/manual/{SECOND}"), "--to", "out"]);
    let restored = tree(&world.path("out"));
    assert!(restored.iter().any(|(path, _)| path.ends_with("data/new.txt")), "{restored:?}");
    assert!(restored.iter().all(|(path, _)| !path.contains("backups")), "{restored:?}");
}

#[test]
fn what_was_deleted_after_the_run_comes_back() {
    let world = project();
    world.ok(&["run"]);
    let before = tree(&world.path("data"));
    std::fs::remove_dir_all(world.path("data")).unwrap();
    world.ok(&["restore", "files", "--yes"]);
    assert_eq!(tree(&world.path("data")), before);
}

#[test]
fn a_service_that_is_gone_is_told_and_stays_restorable() {
    let world = project();
    world.ok(&["run"]);
    std::fs::remove_file(world.path(".env")).unwrap();
    let second = world.ok(&["run"]);
    assert!(second.err.contains("warning: env: was backed up before"), "{second:#?}");
    world.ok(&["restore", "env", "--to", "out"]);
}

#[test]
fn an_empty_directory_is_nothing_selected() {
    let world = World::new();
    world.run(&["run"]).fails(4, "nothing was found").hints("backup init");
    assert!(!world.path("backups").exists());
}

#[test]
fn a_folder_named_backups_that_is_not_a_store_is_left_alone() {
    let world = project();
    world.write("backups/mine.txt", "precious\n");
    world.run(&["run"]).fails(2, "it is not a backup store").hints("--store");
    assert_eq!(tree(&world.path("backups")).len(), 1);
}

#[test]
fn a_store_in_a_git_work_tree_ignores_itself() {
    let world = project();
    std::fs::create_dir(world.path(".git")).unwrap();
    world.ok(&["run"]);
    assert_eq!(world.read("backups/.gitignore"), "*\n");
    let plain = project();
    plain.ok(&["run"]);
    assert!(!plain.path("backups/.gitignore").exists());
}

#[test]
fn verbs_without_configuration_and_backups_say_what_to_do() {
    for verb in ["list", "status", "verify", "prune", "logs"] {
        World::new().run(&[verb]).fails(2, "no configuration").hints("`backup run`");
    }
}

#[test]
fn init_takes_over_what_runs_without_configuration_made() {
    let world = project();
    world.ok(&["run"]);
    world.write("data/a.txt", "changed\n");
    world.ok(&["restore", "files", "--yes"]);
    world.ok(&["init"]);
    assert!(world.read("backup.toml").contains("[services.files]"));
    // The journal of the restore is still known: it can be undone.
    world.ok(&["undo", "files", "--yes"]);
    assert_eq!(world.read("data/a.txt"), "changed\n");
}
