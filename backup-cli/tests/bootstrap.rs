//! The configuration as a part of every run, and `bootstrap`, which gives it to an empty machine.

use super::support::{FIRST, TWO, World, find, tree};

/// Nothing is left of the host but its store.
fn burnt() -> World {
    let world = World::backed_up("SECRET=1\n");
    for path in ["data", "state"] {
        std::fs::remove_dir_all(world.path(path)).unwrap();
    }
    for path in [".env", "backup.toml"] {
        std::fs::remove_file(world.path(path)).unwrap();
    }
    world
}

fn versions(world: &World) -> usize {
    let lines = world.ok(&["list", "configuration", "--json"]).lines();
    lines.iter().filter(|l| l["event"] == "backup" && l["state"] == "good").count()
}

#[test]
fn two_commands_bring_an_empty_machine_back() {
    let world = burnt();
    let before = tree(&world.path("store"));
    let plan = world.ok(&["bootstrap", "store", "--dry-run"]);
    for part in ["write", "backup.toml", &format!("data/hourly/{FIRST}"), &format!("env/hourly/{FIRST}")] {
        assert!(plan.out.contains(part), "{part}: {plan:#?}");
    }
    assert_eq!(tree(&world.path("store")), before);
    assert!(
        !world.path("backup.toml").exists() && !world.path("state").exists(),
        "a dry run changes nothing"
    );
    world.run(&["bootstrap", "store"]).fails(2, "confirmation").hints("--yes");

    let done = world.ok(&["bootstrap", "store", "--yes"]);
    assert!(done.err.contains("backup recover"), "{done:#?}");
    assert_eq!(world.read("backup.toml"), TWO);
    world.ok(&["recover", "--yes"]);
    assert_eq!(world.read(".env"), "SECRET=1\n");
    assert_eq!(
        (world.read("data/a.txt").as_str(), world.read("data/sub/b.txt").as_str()),
        ("alpha\n", "beta\n")
    );
    // And once more: there is nothing left to do.
    let again = world.ok(&["bootstrap", "store", "--yes"]);
    assert!(again.err.contains("in its place already"), "{again:#?}");
}

#[test]
fn what_is_there_and_differs_is_kept_aside() {
    let world = burnt();
    world.write("backup.toml", "# mine\n");
    let plan = world.ok(&["bootstrap", "store", "-n"]);
    assert!(plan.out.contains("REPLACE"), "{plan:#?}");
    world.ok(&["bootstrap", "store", "--yes"]);
    assert_eq!(world.read("backup.toml"), TWO);
    let kept: Vec<_> =
        tree(&world.path("")).into_iter().filter(|(p, _)| p.starts_with("backup.toml.backup.")).collect();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].1.as_deref(), Some(b"# mine\n".as_slice()));
}

#[test]
fn a_store_without_a_configuration_is_told_in_one_line() {
    let world = World::new();
    world.fill();
    world.ok(&["run"]);
    world.run(&["bootstrap", "backups"]).fails(4, "no backup of a configuration").hints("backup init");
    world.run(&["bootstrap", "nowhere"]).fails(1, "nowhere");
    world.run(&["bootstrap", "backups", "--option", "x"]).fails(2, "KEY=VALUE");
}

#[test]
fn the_next_older_one_is_taken_if_the_newest_is_damaged() {
    let world = World::backed_up("A=1\n");
    world.write("backup.toml", &format!("{TWO}# newer\n"));
    world.run_at("2026-03-10T00:00:00Z", &["run", "hourly"]);
    assert_eq!(versions(&world), 2);
    world.damage(&find(&world.path("store"), "configuration_20260310_000000.tar.zst"));
    std::fs::remove_file(world.path("backup.toml")).unwrap();
    let done = world.ok(&["bootstrap", "store", "--yes"]);
    assert!(done.err.contains("configuration/hourly/20260310_000000 is not taken"), "{done:#?}");
    assert_eq!(world.read("backup.toml"), TWO);

    std::fs::remove_file(world.path("backup.toml")).unwrap();
    world.damage(&find(&world.path("store"), &format!("configuration_{FIRST}.tar.zst")));
    world.run(&["bootstrap", "store", "--yes"]).fails(1, "cannot be read");
    assert!(!world.path("backup.toml").exists());
}

#[test]
fn what_the_machine_lacks_is_told_before() {
    let world = World::new();
    let config = format!(
        "{TWO}[services.cache]\nkind = 'redis'\nhost = '127.0.0.1'\nenabled = true\npassword = {{ file = 'key' }}\n\
         [compose]\nfile = 'compose.yaml'\ndocker = 'unix:///nonexistent/docker.sock'\n"
    );
    world.write("backup.toml", &config);
    world.write("compose.yaml", "services: {}\n");
    world.write(".env", "A=1\n");
    world.fill();
    world.ok(&["init"]);
    world.ok(&["run", "hourly"]);
    std::fs::remove_file(world.path("backup.toml")).unwrap();
    std::fs::remove_file(world.path("compose.yaml")).unwrap();
    std::fs::rename(world.path("store"), world.path("elsewhere")).unwrap();
    let done = world.ok(&["bootstrap", "elsewhere", "--yes"]);
    for part in
        ["cache: password: no secret from the file", "no containers can be made here", "another store"]
    {
        assert!(done.err.contains(part), "{part}: {done:#?}");
    }
    assert!(done.out.contains("cache") && done.out.contains("no good backup"), "{done:#?}");
    assert_eq!((world.read("backup.toml"), world.read("compose.yaml").as_str()), (config, "services: {}\n"));
}

#[test]
fn every_run_keeps_the_configuration_and_a_new_version_only_when_it_changed() {
    let world = World::backed_up("A=1\n");
    assert_eq!(versions(&world), 1);
    let again = world.run_at("2026-03-10T00:00:00Z", &["run", "hourly", "--json"]);
    assert_eq!((again.code, versions(&world)), (0, 1));
    world.write("backup.toml", &format!("{TWO}# changed\n"));
    assert_eq!((world.run_at("2026-03-11T00:00:00Z", &["run", "hourly"]).code, versions(&world)), (0, 2));
    assert!(!world.ok(&["recover", "--dry-run"]).out.contains("configuration"));

    // A Compose file that is configured and not there would be missed on the worst day.
    world.write("backup.toml", &format!("{TWO}[compose]\nfile = 'gone.yaml'\n"));
    let done = world.run_at("2026-03-12T00:00:00Z", &["run", "hourly"]);
    assert!(done.code == 3 && done.err.contains("gone.yaml"), "{done:#?}");

    let off =
        format!("{TWO}[services.configuration]\nkind = 'env'\npaths = ['backup.toml']\nenabled = false\n");
    world.write("backup.toml", &off);
    assert_eq!((world.run_at("2026-03-13T00:00:00Z", &["run", "hourly"]).code, versions(&world)), (0, 2));
}

/// Containers are made from the file with their variables, which nobody may have a service for.
#[test]
fn the_variables_of_compose_come_along_unless_a_service_has_them() {
    for (service, files) in [
        ("[services.data]\nkind = 'files'\npaths = ['data']\n", 3),
        ("[services.env]\nkind = 'env'\npaths = ['.env']\n", 2),
    ] {
        let world = World::new();
        world.fill();
        world.write(".env", "SECRET=canary-7731\n");
        world.write("compose.yaml", "services: {}\n");
        world.write(
            "backup.toml",
            &format!("state_dir = 'state'\nstore.url = 'store'\n[compose]\nfile = 'compose.yaml'\n{service}"),
        );
        world.ok(&["init"]);
        world.ok(&["run"]);
        for file in [".env", "backup.toml"] {
            std::fs::remove_file(world.path(file)).unwrap();
        }
        let done = world.ok(&["bootstrap", "store", "--yes", "--json"]);
        assert!(!done.out.contains("canary") && !done.err.contains("canary"), "{done:#?}");
        assert_eq!(done.summary()["files"].as_array().unwrap().len(), files, "{service}");
        assert_eq!(world.path(".env").exists(), files == 3, "{service}");
        let kept =
            tree(&world.path("")).into_iter().filter(|(path, _)| path.contains("compose.yaml.backup."));
        assert_eq!(kept.count(), 0, "it was there already");
    }
}
