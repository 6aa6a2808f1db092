//! Copies to other stores: three tiers by configuration.

use super::support::{FIRST, Ran, SECOND, World, find, tree};

/// A fast disk, a second disk, and a third store, which keeps least here so that it shows.
const THREE: &str = r#"
state_dir = "state"
backup_configuration = false
copies = ["second", "cloud"]
[store]
url = "fast"
[stores.second]
url = "disk2"
keep = 2
[stores.cloud]
url = "cloud"
[stores.cloud.intervals.hourly]
keep = 1
[intervals.hourly]
services = ["data"]
keep = 3
[services.data]
kind = "files"
paths = ["data"]
"#;

fn three() -> World {
    let world = World::new();
    world.write("backup.toml", THREE);
    world.fill();
    let init = world.ok(&["init"]);
    for store in ["fast", "disk2", "cloud"] {
        assert!(world.path(store).join("store.json").is_file(), "{store}: {init:#?}");
        assert!(init.err.contains(store), "{init:#?}");
    }
    world
}

/// The backups that are listed as good in a store.
fn good(world: &World, store: &str) -> Vec<String> {
    let lines = world.ok(&["list", "--json", "--store", store]).lines();
    let good = lines.iter().filter(|l| l["event"] == "backup" && l["state"] == "good");
    good.map(|l| l["id"].as_str().unwrap().to_owned()).collect()
}

/// Everything of a backup but what each store says for itself.
fn content(world: &World, store: &str, id: &str) -> Vec<(String, Option<Vec<u8>>)> {
    let mut files = tree(&world.path(store).join(id));
    files.retain(|(name, _)| name != "run.json");
    files
}

#[test]
fn a_run_fills_all_tiers_and_each_keeps_its_own() {
    let world = three();
    let ran = world.ok(&["run"]);
    let id = format!("data/hourly/{FIRST}");
    for store in ["primary", "second", "cloud"] {
        assert_eq!(good(&world, store), std::slice::from_ref(&id), "{store}");
    }
    assert!(ran.out.contains("to second") && ran.out.contains("to cloud"), "{ran:#?}");
    assert!(ran.err.contains("1 service backed up") && ran.err.contains("2 backups copied to second, cloud"));
    assert_eq!(content(&world, "disk2", &id), content(&world, "fast", &id));
    assert_eq!(content(&world, "cloud", &id), content(&world, "fast", &id));
    // Who restores by hand finds the same in each.
    let sums = std::process::Command::new("sha256sum")
        .args(["-c", "--quiet", "SHA256SUMS"])
        .current_dir(world.path("cloud").join(&id))
        .status();
    assert!(sums.unwrap().success());
    for _ in 0..3 {
        world.ok(&["run"]);
    }
    assert_eq!(good(&world, "primary").len(), 3);
    assert_eq!(good(&world, "second").len(), 2);
    assert_eq!(good(&world, "cloud").len(), 1);
    // Each tells by itself what happened to it.
    let told = world.ok(&["logs", "last", "--store", "cloud"]);
    assert!(told.out.contains("copy to cloud") && told.out.contains("copy to second"), "{told:#?}");
    // No store is ever part of a backup, wherever it lies.
    let names: Vec<String> = tree(&world.path("fast")).into_iter().map(|(name, _)| name).collect();
    assert!(names.iter().all(|n| !n.contains("disk2")), "{names:?}");
}

#[test]
fn the_stores_are_no_part_of_what_is_backed_up() {
    let world = three();
    world.write("backup.toml", &THREE.replace(r#"paths = ["data"]"#, r#"paths = ["."]"#));
    world.ok(&["run"]);
    world.ok(&["restore", "data", "--to", "out"]);
    let names: Vec<String> = tree(&world.path("out")).into_iter().map(|(name, _)| name).collect();
    assert!(names.iter().any(|n| n.ends_with("a.txt")), "{names:?}");
    for store in ["fast", "disk2", "cloud"] {
        assert!(names.iter().all(|n| !n.contains(store)), "{store}: {names:?}");
    }
}

#[test]
fn any_verb_works_on_any_store() {
    let world = three();
    world.ok(&["run"]);
    std::fs::remove_dir_all(world.path("fast")).unwrap();
    let id = format!("data/hourly/{FIRST}");
    let verified = world.ok(&["verify", "--store", "cloud", "--level", "restore"]);
    assert!(verified.out.contains(&id), "{verified:#?}");
    world.ok(&["status", "--store", "second"]);
    assert!(world.ok(&["show", "data", "--store", "second"]).out.contains("disk2"));
    world.ok(&["hold", &id, "--store", "second"]);
    let held = world.ok(&["list", "--store", "second", "--json"]).lines();
    assert!(held.iter().any(|l| l["held"] == true), "{held:?}");
    assert_eq!(good(&world, "cloud"), std::slice::from_ref(&id));
    world.ok(&["restore", "data", "--store", "second", "--to", "out"]);
    assert_eq!(std::fs::read_to_string(find(&world.path("out"), "a.txt")).unwrap(), "alpha\n");
    world.ok(&["drill", "--store", "cloud"]);
    std::fs::remove_dir_all(world.path("data")).unwrap();
    world.ok(&["recover", "--store", "cloud", "--yes"]);
    assert_eq!(world.read("data/a.txt"), "alpha\n");
    world.ok(&["prune", "--store", "cloud", "--dry-run"]);
    // A new disk gets its backups back, and the next run goes on from there.
    world.run(&["run"]).fails(1, "store");
    world.ok(&["init"]);
    let back = world.ok(&["copy", "--from", "cloud", "--to", "primary"]);
    assert!(back.out.contains("to primary"), "{back:#?}");
    assert_eq!(good(&world, "primary"), [id]);
    world.ok(&["run"]);
    assert_eq!(good(&world, "primary").len(), 2);
}

#[test]
fn a_copy_is_planned_done_and_done_only_once() {
    let world = three();
    world.write("backup.toml", &THREE.replace(r#"copies = ["second", "cloud"]"#, ""));
    world.ok(&["run"]);
    world.ok(&["run"]);
    world.run(&["copy"]).fails(2, "there is no store to copy to").hints("name one of cloud, second");
    let both = ["copy", "--to", "second", "--to", "cloud"];
    let dry = world.ok(&[&both[..], &["--dry-run"]].concat());
    assert!(dry.err.contains("would copy 3 backups"), "{dry:#?}");
    let row = |store: &str, id: &str| -> String {
        dry.out.lines().find(|l| l.starts_with(store) && l.contains(id)).unwrap_or_default().to_owned()
    };
    assert!(row("cloud", SECOND).contains("copy") && row("cloud", FIRST).contains("beyond the last 1"));
    assert!(good(&world, "second").is_empty() && good(&world, "cloud").is_empty());
    let plan = world.ok(&[&both[..], &["--dry-run", "--json"]].concat());
    assert_eq!(plan.summary()["to_copy"], 3);
    let actions: Vec<_> =
        plan.lines().iter().filter_map(|l| l["action"].as_str().map(str::to_owned)).collect();
    assert_eq!(actions, ["copy", "not-kept", "copy", "copy"], "{plan:#?}");

    let done = world.ok(&[&both[..], &["--json"]].concat());
    let lines = done.lines();
    let ended: Vec<_> = lines.iter().filter(|l| l["event"] == "copy-finished").collect();
    assert_eq!(ended.len(), 2, "{done:#?}");
    assert!(ended.iter().any(|l| l["store"] == "second" && l["copied"] == 2 && l["outcome"] == "ok"));
    let summary = done.summary();
    assert_eq!((&summary["verb"], &summary["outcome"]), (&"copy".into(), &"ok".into()));
    assert_eq!(summary["steps"][1]["copies"]["copied"].as_array().unwrap().len(), 2, "{summary}");

    let before = tree(&world.path("disk2/data"));
    let again = world.ok(&both);
    assert!(again.err.contains("nothing is missing in cloud, second"), "{again:#?}");
    assert_eq!(tree(&world.path("disk2/data")), before);
}

#[test]
fn a_store_that_cannot_be_used_is_named_and_costs_no_backup() {
    let world = three();
    std::fs::remove_file(world.path("disk2/store.json")).unwrap();
    let told = |ran: &Ran, what: &str| {
        let errors = ran.err.lines().filter(|l| l.starts_with("error: ")).count();
        assert!(errors == 1 && ran.err.contains("store `second`") && ran.err.contains(what), "{ran:#?}");
    };
    let ran = world.run(&["run"]);
    assert_eq!(ran.code, 3, "{ran:#?}");
    told(&ran, "backup init");
    assert!(ran.err.contains("1 service backed up"), "{ran:#?}");
    assert!(ran.err.contains("1 backup copied; not: data to second"), "{ran:#?}");
    assert_eq!((good(&world, "primary").len(), good(&world, "cloud").len()), (1, 1));
    for verb in [&["list"][..], &["verify"], &["status"], &["prune"]] {
        let ran = world.run(&[verb, &["--store", "second"]].concat());
        assert_eq!(ran.code, 1, "{ran:#?}");
        told(&ran, "backup init");
    }
    // The disk is not there at all.
    std::fs::remove_dir_all(world.path("disk2")).unwrap();
    let copied = world.run(&["copy", "--to", "second"]);
    assert_eq!(copied.code, 1, "{copied:#?}");
    told(&copied, "disk2");
    assert!(!world.path("disk2").exists(), "nobody makes it by the way");
    world.ok(&["init"]);
    world.ok(&["copy"]);
    assert_eq!(good(&world, "second").len(), 1);
}

#[test]
fn damage_goes_no_further_than_where_it_is() {
    let world = three();
    world.write("backup.toml", &THREE.replace(r#"copies = ["second", "cloud"]"#, ""));
    world.ok(&["run"]);
    world.damage(&find(&world.path("fast"), &format!("data_{FIRST}.tar.zst")));
    let ran = world.run(&["copy", "--to", "second"]);
    ran.fails(1, &format!("data/hourly/{FIRST}"));
    assert!(good(&world, "second").is_empty() && world.good().is_empty());
    assert!(world.ok(&["list"]).out.contains("damaged"));
    assert!(!world.path("disk2/data").join("hourly").join(FIRST).exists());
}

#[test]
fn a_damaged_copy_is_made_whole_by_the_next_copy() {
    let world = three();
    world.ok(&["run"]);
    world.damage(&find(&world.path("disk2"), &format!("data_{FIRST}.tar.zst")));
    let verify = ["verify", "data", "--store", "second", "--level", "content"];
    assert_eq!(world.run_at("2026-03-10T00:00:00Z", &verify).code, 5);
    assert!(good(&world, "second").is_empty());
    let plan = world.ok(&["copy", "--to", "second", "--dry-run"]);
    assert!(plan.out.contains("heal") && plan.out.contains("damaged there"), "{plan:#?}");
    let healed = world.run_at("2026-03-10T00:01:00Z", &["copy", "--to", "second"]);
    assert!(healed.code == 0 && healed.err.contains("whole again: 1 file sent"), "{healed:#?}");
    let id = format!("data/hourly/{FIRST}");
    assert_eq!(good(&world, "second"), std::slice::from_ref(&id));
    let mut there = content(&world, "disk2", &id);
    there.retain(|(name, _)| !name.starts_with("verify-"));
    assert_eq!(there, content(&world, "fast", &id));
}

#[test]
fn names_that_make_no_sense_are_refused_with_what_exists() {
    let world = three();
    world
        .run(&["list", "--store", "secnd"])
        .fails(2, "unknown store `secnd`")
        .hints("did you mean `second`?");
    world.run(&["copy", "--to", "clod"]).fails(2, "unknown store `clod`").hints("`cloud`");
    world.run(&["copy", "--from", "tape"]).fails(2, "unknown store `tape`").hints("cloud, primary, second");
    world.run(&["copy", "--to", "primary"]).fails(2, "where the copies come from");
    world.run(&["run", "--store", "cloud"]).fails(2, "a run backs up to [store]").hints("copies");
    world.run(&["copy", "--store", "cloud"]).fails(2, "two ends").hints("--from and --to");
    world.run(&["adapters", "--store", "cloud"]).fails(2, "works on no store");
    world.write("backup.toml", &THREE.replace(r#""second", "cloud""#, r#""secnd""#));
    world.run(&["list"]).fails(2, "copies: unknown store `secnd`").hints("did you mean `second`?");
    world.write("backup.toml", &THREE.replace("disk2", "fast"));
    world.run(&["list"]).fails(2, "stores.second.url: is where the store `primary` is");
}

#[test]
fn a_store_that_cannot_be_marked_keeps_no_other_from_it() {
    let world = World::new();
    // A file is where `cloud` should be: it comes before `second`.
    world.write("cloud", "in the way");
    world.write("backup.toml", THREE);
    world.run(&["init"]).fails(1, "store `cloud`").hints("can be repeated");
    assert!(world.path("fast/store.json").is_file() && world.path("disk2/store.json").is_file());
    std::fs::remove_file(world.path("cloud")).unwrap();
    world.ok(&["init"]);
    assert!(world.path("cloud/store.json").is_file());
}

#[test]
fn a_run_that_failed_is_not_half_right_because_older_copies_are_safe() {
    let world = three();
    world.ok(&["run"]);
    std::fs::remove_dir_all(world.path("data")).unwrap();
    assert_eq!(world.run(&["run"]).code, 1);
}

#[test]
fn an_empty_machine_is_prepared_from_a_copy() {
    let world = three();
    world.write("backup.toml", &THREE.replace("backup_configuration = false\n", ""));
    world.ok(&["run"]);
    for gone in ["data", "fast", "state"] {
        std::fs::remove_dir_all(world.path(gone)).unwrap();
    }
    std::fs::remove_file(world.path("backup.toml")).unwrap();
    let store = world.path("disk2").display().to_string();
    world.ok(&["bootstrap", &store, "--yes"]);
    assert!(world.read("backup.toml").contains("[stores.cloud]"));
    world.ok(&["recover", "--store", "second", "--yes"]);
    assert_eq!(world.read("data/a.txt"), "alpha\n");
}
