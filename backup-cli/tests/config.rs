//! Configurations, good and bad, and `init`.

use super::support::{CONFIG, World};

fn with(config: &str) -> World {
    let world = World::configured();
    world.write("backup.toml", config);
    world
}

#[test]
fn an_unknown_key_names_the_closest_one() {
    let world = with(&CONFIG.replace("keep = 2", "keeep = 2"));
    world.run(&["status"]).fails(2, "`keeep`").hints("`keep`");
    let world = with(&CONFIG.replace("paths =", "path ="));
    world.run(&["run"]).fails(2, "`path`").hints("paths");
}

#[test]
fn every_bad_configuration_is_one_line_and_exit_code_2() {
    for (from, to, error) in [
        ("kind = \"files\"", "kind = \"fils\"", "fils"),
        ("services = [\"data\"]", "services = [\"dat\"]", "dat"),
        ("keep = 2", "keep = 0", "keep"),
        ("max_age = \"2h\"", "max_age = 2", "max_age"),
        ("url = \"store\"", "url = \"stor://x\"", "stor"),
        ("[store]", "[[[", "backup.toml"),
        ("paths = [\"data\"]", "", "paths"),
    ] {
        let world = with(&CONFIG.replace(from, to));
        world.run(&["run"]).fails(2, error);
    }
}

#[test]
fn the_named_configuration_counts_and_must_be_there() {
    let world = World::configured();
    std::fs::rename(world.path("backup.toml"), world.path("other.toml")).unwrap();
    world.run(&["list"]).fails(2, "no configuration");
    world.run(&["list", "--config", "missing.toml"]).fails(2, "missing.toml");
    world.ok(&["--config", "other.toml", "run"]);
    let from_variable = super::support::ran(world.command(&["list"]).env("BACKUP_CONFIG", "other.toml"));
    assert_eq!(from_variable.code, 0, "{from_variable:#?}");
    assert!(from_variable.out.contains("data/hourly/"));
    std::fs::rename(world.path("other.toml"), world.path("backup.toml")).unwrap();
    let empty = super::support::ran(world.command(&["list"]).env("BACKUP_CONFIG", ""));
    assert_eq!(empty.code, 0, "{empty:#?}");
}

#[test]
fn relative_paths_are_relative_to_the_configuration() {
    let world = World::configured();
    std::fs::create_dir(world.path("elsewhere")).unwrap();
    let mut command = world.command(&["run", "--config", "../backup.toml"]);
    let ran = super::support::ran(command.current_dir(world.path("elsewhere")));
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(world.path("store/data/hourly").is_dir());
}

#[test]
fn an_interval_must_be_named_when_there_are_several() {
    let world = with(&format!("{CONFIG}\n[intervals.daily]\nservices = [\"data\"]\n"));
    world.run(&["run"]).fails(2, "daily, hourly").hints("backup run daily");
    world.run(&["run", "hurly"]).fails(2, "hurly").hints("hourly");
    world.ok(&["run", "daily"]);
    world.ok(&["run", "manual"]);
}

#[test]
fn unknown_services_name_the_closest_one() {
    let world = World::configured();
    let verbs: [&[&str]; 7] = [
        &["run", "--service", "dat"],
        &["list", "dat"],
        &["show", "dat"],
        &["status", "dat"],
        &["verify", "dat"],
        &["restore", "dat"],
        &["undo", "dat"],
    ];
    for args in verbs {
        world.run(args).fails(2, "`dat`").hints("`data`");
    }
}

#[test]
fn init_writes_once_and_never_changes_a_configuration() {
    let world = World::new();
    world.fill();
    world.write(".env", "A=1\n");
    let first = world.ok(&["init", "--store", "vault"]);
    let text = world.read("backup.toml");
    assert!(text.contains("[services.files]") && text.contains("[services.env]"), "{text}");
    assert!(world.path("vault/store.json").is_file(), "{first:#?}");
    world.ok(&["init"]);
    world.ok(&["init", "--store", "vault"]);
    assert_eq!(world.read("backup.toml"), text);
    world.run(&["init", "--store", "other"]).fails(2, "vault").hints("[store]");
}

#[test]
fn what_init_wrote_works() {
    let world = World::new();
    world.fill();
    world.ok(&["init"]);
    // The default state directory of whoever runs the tests must stay out of this.
    world.write("backup.toml", &format!("state_dir = \"state\"\n{}", world.read("backup.toml")));
    world.ok(&["run"]);
    let kept = world.good().iter().map(|id| id.split('/').next().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(kept, ["configuration", "files"]);
}

#[test]
fn init_in_an_empty_directory_shows_how_to_go_on() {
    let world = World::new();
    world.ok(&["init"]);
    assert!(world.read("backup.toml").contains("# [services.data]"));
}
