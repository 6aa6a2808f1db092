//! Several hosts in one place: a prefix for each, and what all of them have.

use std::process::Stdio;

use super::s3::{KEYS, Storage};
use super::support::{Ran, World};

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

/// One bucket, live: both hosts run, copy and prune at the same time, and neither touches what is the other's.
#[test]
#[ignore = "live: MinIO in a container"]
fn two_hosts_that_work_in_one_bucket_at_the_same_time_keep_what_is_theirs() {
    const NAMES: [&str; 2] = ["web-1", "web-2"];
    const ROUNDS: usize = 4;
    let storage = Storage::start("hosts");
    let world = World::new();
    for name in NAMES {
        world.write(
            &format!("{name}.toml"),
            &format!(
                "host = '{name}'\nstate_dir = 'state-{name}'\ncopies = ['second']\n\
                 store = {{ url = 's3://ours/{{host}}', options = {{ allow_http = true }} }}\n\
                 stores.second = {{ url = 's3://ours/second/{{host}}', keep = 3, options = {{ allow_http = true }} }}\n\
                 intervals.hourly = {{ services = ['data'], keep = 2 }}\n\
                 services.data = {{ kind = 'files', paths = ['{name}'] }}\n"
            ),
        );
    }
    // As each host starts it: without waiting for the other one.
    let begin = |name: &str, round: usize, args: &[&str]| {
        let config = format!("{name}.toml");
        let mut command = world.command(&[&["--config", config.as_str()], args].concat());
        command.envs(KEYS).env("AWS_ENDPOINT_URL_S3", format!("http://{}", storage.address));
        command
            .env("AWS_REGION", "us-east-1")
            .env("BACKUP_TEST_NOW", format!("2026-03-09T{round:02}:30:00Z"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let end = |child: std::process::Child| {
        let out = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: out.status.code().unwrap_or(-1), out: text(out.stdout), err: text(out.stderr) }
    };
    let ok = |name: &str, round: usize, args: &[&str]| {
        let ran = end(begin(name, round, args));
        assert_eq!(ran.code, 0, "{name} {args:?}: {ran:#?}");
        ran
    };
    let both = |round: usize, args: &[&[&str]]| {
        let children: Vec<_> =
            NAMES.iter().flat_map(|name| args.iter().map(|a| begin(name, round, a))).collect();
        for ran in children.into_iter().map(end) {
            assert_eq!(ran.code, 0, "{args:?}: {ran:#?}");
        }
    };
    both(0, &[&["init"]]);
    for round in 1..=ROUNDS {
        for name in NAMES {
            world.write(&format!("{name}/n"), &format!("{name} {round}\n"));
        }
        both(round, &[&["run", "hourly"]]);
        // Each with a process of its own that looks after what is kept, and one that copies.
        both(round, &[&["copy"], &["prune", "--yes"], &["list"]]);
    }
    for name in NAMES {
        let kept = |store: &str| {
            let listed = ok(name, ROUNDS, &["list", "data", "--store", store, "--json"]).lines();
            assert!(
                listed.iter().all(|l| l["event"] != "backup" || l["summary"]["host"] == name),
                "{listed:#?}"
            );
            let mut ids: Vec<String> = listed
                .iter()
                .filter(|l| l["event"] == "backup" && l["state"] == "good")
                .map(|l| l["id"].as_str().unwrap().to_owned())
                .collect();
            ids.sort_unstable();
            ids
        };
        let hours = |from: usize| {
            (from..=ROUNDS).map(|n| format!("data/hourly/20260309_{n:02}3000")).collect::<Vec<_>>()
        };
        assert_eq!((kept("primary"), kept("second")), (hours(ROUNDS - 1), hours(ROUNDS - 2)), "{name}");
        for store in ["primary", "second"] {
            ok(name, ROUNDS, &["verify", "--all", "--level", "content", "--store", store]);
            let to = format!("back-{name}-{store}");
            ok(name, ROUNDS, &["restore", "data", "--store", store, "--to", &to, "--yes"]);
            let found = super::support::tree(&world.path(&to));
            let n: Vec<_> = found.iter().filter(|(path, _)| path.ends_with("/n") || path == "n").collect();
            assert!(
                n.len() == 1 && n[0].1.as_deref() == Some(format!("{name} {ROUNDS}\n").as_bytes()),
                "{found:?}"
            );
        }
    }
    let listed = ok("web-1", ROUNDS, &["list", "--all-hosts", "--json"]).lines();
    for name in NAMES {
        let of = listed.iter().find(|l| l["host"] == name).unwrap_or_else(|| panic!("{listed:#?}"));
        let data = of["services"].as_array().unwrap().iter().find(|s| s["service"] == "data").unwrap();
        assert_eq!((data["good"].as_u64(), data["state"].as_str()), (Some(2), Some("good")), "{listed:#?}");
    }
}
