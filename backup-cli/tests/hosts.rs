//! Several hosts in one place: a prefix for each, and what all of them have.

use super::support::World;

/// A host called `name` that backs up beside others.
fn host(world: &World, name: &str) {
    world.write(
        &format!("{name}.toml"),
        &format!(
            "host = '{name}'\nstate_dir = 'state-{name}'\nstore.url = 'all/{{host}}'\n\
             intervals.hourly = {{ services = ['data'], keep = 2 }}\n\
             services.data = {{ kind = 'files', paths = ['data'] }}\n"
        ),
    );
}

#[test]
fn each_host_has_its_own_and_every_one_is_listed() {
    let world = World::new();
    world.fill();
    for name in ["web-1", "web-2", "web-3"] {
        host(&world, name);
        world.ok(&["--config", &format!("{name}.toml"), "init"]);
    }
    for (name, runs) in [("web-1", 2), ("web-2", 1)] {
        for _ in 0..runs {
            world.ok(&["--config", &format!("{name}.toml"), "run", "hourly"]);
        }
    }
    assert!(world.path("all/web-1/store.json").is_file() && world.path("all/web-2/data/hourly").is_dir());
    // What is no store, and one that is broken.
    world.write("all/photos/cat.jpg", "x");
    world.write("all/-odd/x", "x");
    let listed = world.ok(&["--config", "web-3.toml", "list", "--all-hosts", "--json"]).lines();
    let of = |name: &str| listed.iter().find(|l| l["host"] == name).unwrap_or_else(|| panic!("{listed:#?}"));
    let data = |name: &str| {
        let services = of(name)["services"].as_array().unwrap();
        services.iter().find(|s| s["service"] == "data").unwrap().clone()
    };
    assert_eq!((data("web-1")["good"].as_u64(), data("web-2")["good"].as_u64()), (Some(2), Some(1)));
    assert!(data("web-1")["newest_good"].as_str().unwrap().starts_with("data/hourly/"));
    assert!(data("web-1")["age_s"].is_u64() && data("web-1")["state"] == "good");
    assert_eq!(of("web-3")["services"].as_array().unwrap().len(), 0);
    for odd in ["photos", "-odd"] {
        assert_eq!(of(odd)["state"], "foreign", "{listed:#?}");
    }

    world.write("all/web-2/store.json", "{");
    let ran = world.run(&["--config", "web-3.toml", "list", "--all-hosts"]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    let rows = |name: &str| ran.out.lines().filter(|l| l.starts_with(name)).collect::<Vec<_>>();
    assert_eq!((rows("web-1").len(), rows("web-2").len(), rows("web-3").len()), (2, 1, 1), "{ran:#?}");
    assert!(rows("web-2")[0].contains("broken") && rows("web-3")[0].contains("empty"), "{ran:#?}");
    assert!(rows("photos")[0].contains("foreign"), "{ran:#?}");
}

#[test]
fn names_that_lead_elsewhere_and_places_for_one_alone_are_refused() {
    let world = World::new();
    world.fill();
    host(&world, "web-1");
    world.write("backup.toml", &world.read("web-1.toml").replace("'web-1'", "'../web-2'"));
    world.run(&["init"]).fails(2, "cannot be a part of a path").hints("set `host`");
    world.write("backup.toml", &world.read("web-1.toml").replace("all/{host}", "s3://bucket"));
    world.run(&["list", "--all-hosts"]).fails(2, "no other host has a place").hints("{host}");
    world.write("backup.toml", &world.read("web-1.toml").replace("all/{host}", "s3://bucket-{host}"));
    world.run(&["list"]).fails(2, "whole part of the path");
    world
        .run(&["bootstrap", "s3://bucket/{host}"])
        .fails(2, "may be called otherwise")
        .hints("in place of {host}");
}

#[test]
fn another_machine_is_told_whose_name_it_needs() {
    let world = World::new();
    world.fill();
    host(&world, "web-1");
    let named = world.read("web-1.toml").replace("host = 'web-1'\n", "");
    world.write("backup.toml", &format!("host = 'web-1'\n{named}"));
    world.ok(&["init"]);
    // The configuration that is stored goes by the name of the system.
    world.write("backup.toml", &named);
    let system = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    world.ok(&["init"]);
    world.ok(&["run", "hourly"]);
    let theirs = world.path("all").join(system.trim());
    std::fs::rename(&theirs, world.path("all/web-9")).unwrap();
    std::fs::remove_file(world.path("backup.toml")).unwrap();
    let ran = world.run(&["bootstrap", "all/web-9", "--dry-run"]);
    assert!(ran.err.contains("set `host` in"), "{ran:#?}");
}
