//! SIGKILL of the real binary while it copies.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::support::{World, find, tree};

const CONFIG: &str = r#"
state_dir = "state"
backup_configuration = false
[store]
url = "fast"
[stores.second]
url = "disk2"
[intervals.hourly]
services = ["data", "more"]
[services.data]
kind = "files"
paths = ["data"]
[services.more]
kind = "files"
paths = ["more"]
"#;

/// Every file of the backups in a store, by a hash of its content, but for what is each store's own. Partial writes are
/// no files of theirs: they go when they are a week old.
fn backups(root: &Path) -> Vec<(String, u64)> {
    let of_backup = |name: &str| {
        (name.starts_with("data/") || name.starts_with("more/"))
            && !name.ends_with("/run.json")
            && !name.contains("/verify-")
            && !name.contains(".tmp-")
    };
    let hash = |bytes: Vec<u8>| {
        let mut hash = std::collections::hash_map::DefaultHasher::new();
        std::hash::Hash::hash(&bytes, &mut hash);
        std::hash::Hasher::finish(&hash)
    };
    let found = tree(root).into_iter().filter(|(name, _)| of_backup(name));
    found.filter_map(|(name, content)| Some((name, hash(content?)))).collect()
}

#[test]
fn copies_killed_at_any_instant_leave_nothing_that_lies_and_the_next_completes() {
    let seed = std::env::var_os("KILL_SEED").and_then(|s| s.to_str()?.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("KILL_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let world = World::new();
    world.write("backup.toml", CONFIG);
    for place in ["data", "more"] {
        let mut noise = vec![0; 3 << 20];
        random.fill(&mut noise);
        std::fs::create_dir(world.path(place)).unwrap();
        std::fs::write(world.path(place).join("noise"), noise).unwrap();
    }
    world.ok(&["init"]);
    for _ in 0..3 {
        world.ok(&["run"]);
    }
    let copy = ["copy", "--to", "second"];
    // The first one takes longer: it fills caches.
    let times = [(); 3].map(|()| {
        for place in ["data", "more"] {
            let _there = std::fs::remove_dir_all(world.path("disk2").join(place));
        }
        let began = Instant::now();
        world.ok(&copy);
        began.elapsed()
    });
    let usual = times.into_iter().min().unwrap();
    let wanted = backups(&world.path("fast"));
    assert_eq!(backups(&world.path("disk2")), wanted);
    let (mut early, mut half) = (0, 0);
    for n in 0..25 {
        for place in ["data", "more"] {
            let _there = std::fs::remove_dir_all(world.path("disk2").join(place));
        }
        let wait = usual.mul_f64(random.f64() * 1.1);
        let mut command = world.command(&copy);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let until = Instant::now() + wait;
        // The instant itself is what is random here: there is no condition to wait for.
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        early += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        // What is listed as good is good; what is not is not listed.
        let there = backups(&world.path("disk2"));
        half += usize::from(!there.is_empty() && there.len() < wanted.len());
        let verified = world.run(&["verify", "--store", "second", "--all", "--level", "content"]);
        assert!(matches!(verified.code, 0 | 4), "kill {n}: {verified:#?}");
        // The next one needs no help and no waiting: the dead hold nothing.
        let next = world.run(&[&copy[..], &["--wait", "0s"]].concat());
        assert_eq!(next.code, 0, "kill {n}: {next:#?}");
        assert_eq!(backups(&world.path("disk2")), wanted, "kill {n}");
    }
    assert!(early >= 8, "only {early} of 25 kills came before the end");
    assert!(half >= 1, "no kill came in the midst of it");
    assert_eq!(backups(&world.path("fast")), wanted, "the source is as it was");
    // What a kill amid a reservation left goes when it is a week old.
    let mut age = std::process::Command::new("find");
    age.arg(world.path("disk2")).args(["-exec", "touch", "-d", "8 days ago", "{}", "+"]);
    assert!(age.status().unwrap().success());
    let gone = wanted.iter().find(|(name, _)| name.ends_with("metadata.json")).unwrap();
    for service in ["data", "more"] {
        let any = find(&world.path("disk2").join(service), "metadata.json");
        std::fs::remove_dir_all(any.parent().unwrap()).unwrap();
    }
    world.ok(&copy);
    assert!(backups(&world.path("disk2")).contains(gone));
    let partial = tree(&world.path("disk2")).into_iter().find(|(name, _)| name.contains(".tmp-"));
    assert_eq!(partial.map(|(name, _)| name), None);
}
