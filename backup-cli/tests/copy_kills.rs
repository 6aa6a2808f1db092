//! SIGKILL of the real binary while it copies.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::s3::{KEYS, Storage};
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

/// An encrypted backup has two files: one of noise, and the private part of its metadata, which comes last.
fn two_files(world: &World, to: &str) -> String {
    let public = world.ok(&["keys", "new", "key"]).out.trim().to_owned();
    let config = format!(
        "state_dir = 'state'\nbackup_configuration = false\nencryption.recipients = ['{public}']\n\
         limits.bandwidth = '512KiB/s'\nstore.url = 'fast'\nstores.second = {to}\n\
         intervals.hourly.services = ['data']\nservices.data = {{ kind = 'files', paths = ['data'] }}\n"
    );
    world.write("backup.toml", &config);
    // What comes last is large enough to be waited for.
    let mut noise = vec![0; 3_900_000];
    fastrand::Rng::with_seed(4711).fill(&mut noise);
    std::fs::create_dir(world.path("data")).unwrap();
    std::fs::write(world.path("data").join("noise"), noise).unwrap();
    config
}

/// Waits until `is_so`, while the copier is at work.
fn while_it_copies(child: &mut std::process::Child, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert_eq!(child.try_wait().unwrap(), None, "it ended too early");
        assert!(Instant::now() < until, "it never came so far");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The directory of the one backup below `store`, and its file of noise.
fn noise_of(world: &World) -> (String, String) {
    let id = world.good().remove(0);
    let files = tree(&world.path("fast").join(&id)).into_iter();
    let noise = files.max_by_key(|(_, content)| content.as_ref().map(Vec::len)).unwrap().0;
    (id, noise)
}

#[test]
fn a_copy_that_is_killed_between_its_files_goes_on_with_the_second_one() {
    let world = World::new();
    let config = two_files(&world, "{ url = 'disk2' }");
    world.ok(&["init"]);
    world.ok(&["run"]);
    let (id, noise) = noise_of(&world);
    let place = world.path("disk2").join(&id);
    let mut command = world.command(&["copy", "--to", "second"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // The second file waits for what the first one has cost.
    while_it_copies(&mut child, || {
        place.join(&noise).exists() && tree(&place).iter().any(|(name, _)| name.contains(".tmp-"))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!place.join("metadata.json").exists(), "it came to its end");
    let stamp = |path: &Path| {
        let about = std::fs::metadata(path).unwrap();
        (std::os::unix::fs::MetadataExt::ino(&about), about.modified().unwrap())
    };
    let before = stamp(&place.join(&noise));
    world.write("backup.toml", &config.replace("limits.bandwidth = '512KiB/s'\n", ""));
    let told = world.ok(&["copy", "--to", "second", "--wait", "0s"]).err;
    assert_eq!(stamp(&place.join(&noise)), before, "it was sent again");
    assert_eq!(backups(&world.path("disk2")), backups(&world.path("fast")));
    assert!(
        tree(&world.path("disk2")).iter().all(|(name, _)| !name.contains(".tmp-")),
        "half a file is left"
    );
    assert!(told.contains("1 file (") && told.contains("not sent again"), "{told}");

    // A bit flips in what another one leaves: it is found before anything relies on it.
    std::fs::remove_dir_all(world.path("disk2").join("data")).unwrap();
    world.write("backup.toml", &config);
    let mut child = command.spawn().unwrap();
    while_it_copies(&mut child, || place.join(&noise).exists());
    child.kill().unwrap();
    child.wait().unwrap();
    world.damage(&place.join(&noise));
    world.write("backup.toml", &config.replace("limits.bandwidth = '512KiB/s'\n", ""));
    world.ok(&["copy", "--to", "second", "--wait", "0s"]);
    assert_eq!(backups(&world.path("disk2")), backups(&world.path("fast")));
}

#[test]
#[ignore = "live: MinIO in a container"]
fn a_copy_to_a_bucket_that_is_killed_between_its_files_goes_on_with_the_second_one() {
    let storage = Storage::start("resume");
    let world = World::new();
    let config = two_files(&world, "{ url = 's3://ours/host', options = { allow_http = true } }");
    storage.ok(&world, &["init"]);
    storage.ok(&world, &["run"]);
    let (id, noise) = noise_of(&world);
    let mut command = world.command(&["copy", "--to", "second"]);
    command.env("AWS_ENDPOINT_URL_S3", format!("http://{}", storage.address)).env("AWS_REGION", "us-east-1");
    command.envs(KEYS).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let object = format!("host/{id}/{noise}");
    while_it_copies(&mut child, || storage.stamp(&object).is_some());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(storage.stamp(&format!("host/{id}/metadata.json")), None, "it came to its end");
    let before = storage.stamp(&object);
    world.write("backup.toml", &config.replace("limits.bandwidth = '512KiB/s'\n", ""));
    let told = storage.ok(&world, &["copy", "--to", "second", "--wait", "0s"]).err;
    assert_eq!(storage.stamp(&object), before, "it was sent again");
    assert!(told.contains("1 file (") && told.contains("not sent again"), "{told}");
    storage.ok(&world, &["verify", "--store", "second", "--all", "--level", "stored"]);

    // Somebody writes over it: that is found, and the next copy makes it whole.
    storage.boto(&format!("s3.put_object(Bucket='ours', Key='{object}', Body=b'other')"));
    let later = |now, args: &[&str]| storage.run(&world, args, &[KEYS[0], KEYS[1], ("BACKUP_TEST_NOW", now)]);
    let found = later("2026-03-10T00:00:00Z", &["verify", "--store", "second", "--all", "--level", "stored"]);
    assert_eq!(found.code, 5, "{found:#?}");
    let healed = later("2026-03-10T00:01:00Z", &["copy", "--to", "second"]);
    assert!(healed.code == 0 && healed.err.contains("whole again"), "{healed:#?}");
    let found = later("2026-03-10T00:02:00Z", &["verify", "--store", "second", "--all", "--level", "stored"]);
    assert_eq!(found.code, 0, "{found:#?}");
}
