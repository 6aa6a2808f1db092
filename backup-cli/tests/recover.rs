//! `recover`: the plan, the run, and plans for later.

use super::support::{FIRST, TWO, World, tree};

/// A host that has lost everything but the store and the configuration.
fn lost() -> World {
    let world = World::backed_up("A=1\n");
    std::fs::remove_dir_all(world.path("data")).unwrap();
    std::fs::remove_file(world.path(".env")).unwrap();
    world
}

#[test]
fn what_was_lost_comes_back() {
    let world = lost();
    let plan = world.ok(&["recover", "--dry-run"]);
    let of = |service: &str| plan.out.find(&format!("restore {service}/hourly/{FIRST}")).unwrap();
    assert!(of("env") < of("data"), "{plan:#?}");
    for part in ["recover 2 of 2 services", "its rto is 1 min", "never verified", "after env"] {
        assert!(plan.out.contains(part), "{part}: {plan:#?}");
    }
    let ran = world.run(&["recover"]);
    ran.fails(2, "confirmation").hints("--yes");
    assert!(!world.path("data").exists() && !world.path(".env").exists(), "{ran:#?}");

    let done = world.ok(&["recover", "--yes"]);
    assert!(done.out.contains("recovered") && done.err.contains("2 services recovered"), "{done:#?}");
    assert_eq!((world.read("data/a.txt"), world.read(".env")), ("alpha\n".to_owned(), "A=1\n".to_owned()));
    let again = world.run(&["recover", "--yes"]);
    assert_eq!(again.code, 4, "{again:#?}");
    assert!(again.out.contains("left alone"), "{again:#?}");
}

/// All of it, beside what the host may take for all of it.
#[test]
fn the_whole_is_compared_with_the_hosts_rto() {
    let world = lost();
    world.write("backup.toml", &format!("rto = '10min'\n{TWO}"));
    let done = world.ok(&["recover", "--yes"]);
    assert!(
        done.out.contains("all of it took ") && done.out.contains("; the host's rto is 10 min"),
        "{done:#?}"
    );
    // Measured by now, and more than somebody wants.
    world.write("backup.toml", &format!("rto = '1ms'\n{TWO}"));
    for name in ["data/a.txt", ".env"] {
        std::fs::remove_file(world.path(name)).unwrap();
    }
    let plan = world.ok(&["recover", "--dry-run"]);
    assert!(plan.out.lines().next().unwrap().contains("; MORE than the host's rto of "), "{plan:#?}");
    let plan = &world.ok(&["recover", "--dry-run", "--json"]).lines()[0];
    assert_eq!(plan["target_ms"].as_u64(), Some(1), "{plan}");
    let drill = world.ok(&["drill"]);
    assert!(drill.out.contains("; MORE than the host's rto of "), "{drill:#?}");
}

#[test]
fn a_dry_run_touches_nothing() {
    let world = lost();
    // The cache of listings and the folder for plans are there by now.
    world.ok(&["recover", "--dry-run"]);
    let before = tree(&world.path(""));
    world.ok(&["recover", "--dry-run", "--json"]);
    assert_eq!(tree(&world.path("")), before);
}

#[test]
fn a_plan_for_later() {
    let world = lost();
    world.ok(&["recover", "--dry-run", "--save", "plan.json"]);
    // The world changes, and is as it was again.
    world.write(".env", "A=2\n");
    world.run(&["recover", "--plan", "plan.json", "--yes"]).fails(1, "not as planned any more");
    assert_eq!(world.read(".env"), "A=2\n");
    std::fs::remove_file(world.path(".env")).unwrap();
    world.ok(&["recover", "--plan", "plan.json", "--yes"]);
    assert_eq!(world.read(".env"), "A=1\n");

    world.write("plan.json", "{}");
    world.run(&["recover", "--plan", "plan.json"]).fails(2, "is no plan");
    world.run(&["recover", "--plan", "none.json"]).fails(2, "is no plan");
    assert_eq!(world.run(&["recover", "--save", "x.json"]).code, 2, "a plan is saved instead of being done");
}

#[test]
fn one_service_one_that_is_not_there_and_what_holds_data() {
    let world = lost();
    world.ok(&["recover", "--service", "env", "--yes"]);
    assert!(world.path(".env").exists() && !world.path("data").exists());
    world.run(&["recover", "--service", "nev"]).fails(2, "nev");
    world.write(".env", "A=3\n");
    let lines = world.ok(&["recover", "--overwrite", "env", "--yes", "--json"]).lines();
    assert_eq!((lines[0]["event"].as_str(), lines[0]["verb"].as_str()), (Some("plan"), Some("recover")));
    assert_eq!(lines[0]["services"][0]["action"]["action"], "restore");
    assert_eq!(lines.last().unwrap()["steps"].as_array().unwrap().len(), 2);
    assert_eq!(world.read(".env"), "A=1\n");
    let kept = tree(&world.path("")).into_iter().any(|(path, _)| path.contains(".env.backup."));
    assert!(kept, "what was there is kept aside");
}

#[test]
fn one_that_cannot_come_back_stops_no_other() {
    let world = lost();
    let stored = format!("store/data/hourly/{FIRST}/data_{FIRST}.tar.zst");
    world.damage(&world.path(&stored));
    let done = world.run(&["recover", "--yes"]);
    assert_eq!(done.code, 3, "{done:#?}");
    assert!(done.out.contains("FAILED") && done.err.contains("1 of 2 recovered"), "{done:#?}");
    assert!(world.path(".env").exists() && !world.path("data").exists(), "{done:#?}");
}

/// Somebody emptied the host, and its timer went on: that is valid, and not what anybody wants back.
#[test]
fn what_an_emptied_host_backed_up_is_not_what_comes_back() {
    let world = World::backed_up("A=1\nB=2\nC=3\n");
    for file in ["data/a.txt", "data/sub/b.txt"] {
        std::fs::remove_file(world.path(file)).unwrap();
    }
    world.write(".env", "");
    for now in ["2026-03-10T00:00:00Z", "2026-03-10T01:00:00Z"] {
        assert_ne!(world.run_at(now, &["run", "hourly"]).code, 0, "a collapse is told");
    }
    std::fs::remove_dir_all(world.path("data")).unwrap();
    std::fs::remove_file(world.path(".env")).unwrap();
    let done = world.run_at("2026-03-10T02:00:00Z", &["recover", "--yes"]);
    assert_eq!(done.code, 0, "{done:#?}");
    assert!(done.out.contains("not taken:") && done.out.contains("is suspect"), "{done:#?}");
    assert!(done.out.contains("data lost: at most the last 21 h"), "{done:#?}");
    assert_eq!((world.read("data/a.txt"), world.read(".env")), ("alpha\n".into(), "A=1\nB=2\nC=3\n".into()));
}

/// What the counts of the backup cannot tell, its owner's question can.
#[test]
fn a_smoke_query_decides_whether_it_is_back() {
    let world = World::new();
    let config = |query: &str| {
        format!(
            "state_dir = 'state'\nstore.url = 'store'\nbackup_configuration = false\n\
             [services.db]\nkind = 'sqlite'\npath = 'app.db'\nsmoke = ['{query}']\n"
        )
    };
    let (good, bad) =
        ("SELECT count(*) FROM orders WHERE paid", "SELECT count(*) FROM orders WHERE NOT paid");
    world.write("backup.toml", &config(good));
    let db = rusqlite::Connection::open(world.path("app.db")).unwrap();
    db.execute_batch("CREATE TABLE orders (paid); INSERT INTO orders VALUES (1), (1), (1)").unwrap();
    drop(db);
    world.ok(&["init"]);
    world.ok(&["run"]);
    let drilled = world.ok(&["drill"]);
    assert!(format!("{drilled:?}").contains("1 smoke query passed"), "{drilled:#?}");
    std::fs::remove_file(world.path("app.db")).unwrap();
    let done = world.ok(&["recover", "--yes"]);
    assert!(done.err.contains("1 smoke query passed"), "{done:#?}");

    world.write("backup.toml", &config(bad));
    let drilled = world.run(&["drill"]);
    assert_eq!(drilled.code, 1, "{drilled:#?}");
    assert!(drilled.out.contains(bad) && drilled.out.contains("gives `0`"), "{drilled:#?}");
    std::fs::remove_file(world.path("app.db")).unwrap();
    let done = world.run(&["recover", "--yes"]);
    assert_eq!(done.code, 1, "{done:#?}");
    assert!(
        done.out.contains("FAILED") && world.path("app.db").exists(),
        "its data is back all the same: {done:#?}"
    );
}
