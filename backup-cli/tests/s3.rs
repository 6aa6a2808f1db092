//! Object storage from the command line: where keys come from, what is stored, and what goes wrong.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::support::{Ran, World, ran};

/// Its keys: must never show.
const ID: &str = "canary-id-51c2";
const SECRET: &str = "canary-secret-90d7";

pub(crate) const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", ID), ("AWS_SECRET_ACCESS_KEY", SECRET)];

/// A MinIO with the bucket `ours`. Its standard input is its life: however this process ends, the container goes.
pub(crate) struct Storage {
    pub(crate) address: String,
    name: String,
    life: Child,
}

#[expect(clippy::disallowed_methods, reason = "tests may be told of another image")]
fn image() -> String {
    std::env::var("BACKUP_TEST_MINIO_IMAGE").unwrap_or_else(|_| "backup-test/minio".to_owned())
}

impl Storage {
    pub(crate) fn start(which: &str) -> Self {
        let pid = std::process::id();
        let name = format!("backup-test-cli-minio-{which}-{pid}");
        let life = Command::new("docker")
            .args(["run", "--rm", "-i", "--name", &name, "--label", &format!("backup-test={pid}")])
            .args(["-e", &format!("MINIO_ROOT_USER={ID}"), "-e", &format!("MINIO_ROOT_PASSWORD={SECRET}")])
            // A folder in its data is a bucket.
            .args([
                "--entrypoint",
                "sh",
                &image(),
                "-c",
                "mkdir -p /data/ours; minio server /data & cat >/dev/null",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut storage = Self { address: String::new(), name: name.clone(), life: life.unwrap() };
        let until = Instant::now() + Duration::from_secs(90);
        loop {
            let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
            let out = Command::new("docker").args(["inspect", "-f", format, &name]).output().unwrap();
            storage.address = format!("{}:9000", String::from_utf8_lossy(&out.stdout).trim());
            if let Ok(socket) = storage.address.parse()
                && TcpStream::connect_timeout(&socket, Duration::from_secs(1)).is_ok()
            {
                return storage;
            }
            assert!(
                Instant::now() < until,
                "MinIO does not answer: is there its image? stack/build makes it"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Whether anything that is stored has this text in it, as the storage keeps it on its disk.
    pub(crate) fn has(&self, text: &str) -> bool {
        let found = Command::new("docker").args(["exec", &self.name, "grep", "-rqF", text, "/data"]).status();
        found.unwrap().success()
    }

    /// When an object of the bucket `ours` was written, as the storage keeps it on its disk; `None`: it is not there.
    pub(crate) fn stamp(&self, key: &str) -> Option<String> {
        let file = format!("/data/ours/{key}/xl.meta");
        let args = ["exec", &self.name, "stat", "--format", "%i %y", &file];
        let found = Command::new("docker").args(args).output().unwrap();
        found.status.success().then(|| String::from_utf8_lossy(&found.stdout).into_owned())
    }

    /// What AWS's own client does with all rights; its printed words.
    pub(crate) fn boto(&self, program: &str) -> String {
        let text = format!(
            "import boto3\ns3 = boto3.client('s3', endpoint_url='http://{}', region_name='us-east-1', \
             aws_access_key_id='{ID}', aws_secret_access_key='{SECRET}')\n{program}",
            self.address
        );
        let image = super::ebs::image();
        let run = ["run", "--rm", "--entrypoint", "python3", image.as_str(), "-c", text.as_str()];
        let out = Command::new("docker").args(run).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }

    pub(crate) fn ok(&self, world: &World, args: &[&str]) -> Ran {
        let ran = self.run(world, args, &KEYS);
        assert_eq!(ran.code, 0, "{args:?}: {ran:#?}");
        ran
    }

    pub(crate) fn run(&self, world: &World, args: &[&str], environment: &[(&str, &str)]) -> Ran {
        let endpoint = format!("http://{}", self.address);
        let mut command = world.command(args);
        command.env("AWS_ENDPOINT_URL_S3", endpoint).env("AWS_REGION", "us-east-1");
        let ran = ran(command.envs(environment.iter().copied()));
        for secret in [ID, SECRET] {
            assert!(!format!("{ran:?}").contains(secret), "{args:?} shows a key: {ran:#?}");
        }
        ran
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        drop(self.life.stdin.take());
        let _gone = self.life.wait();
    }
}

const CONFIG: &str = "\
state_dir = 'state'
[store]
url = 's3://ours/host'
[store.options]
allow_http = true
KEYS
[intervals.hourly]
services = ['data']
keep = 2
[services.data]
kind = 'files'
paths = ['data']
";

#[test]
#[ignore = "live: MinIO in a container"]
fn keys_come_from_references_the_environment_or_a_profile_and_stay_secret() {
    let storage = Storage::start("keys");
    let world = World::new();
    world.fill();
    let aws = world.path("../home/.aws");
    std::fs::create_dir_all(&aws).unwrap();
    let profile = format!("[default]\naws_access_key_id = {ID}\naws_secret_access_key = {SECRET}\n");
    let references = "access_key_id = { env = 'OUR_ID' }\nsecret_access_key = { file = 'secret' }";
    world.write("secret", &format!("{SECRET}\n"));
    let nothing: &[(&str, &str)] = &[];
    for (n, (keys, environment, credentials)) in [
        // What lies about elsewhere is of other users.
        (references, &[("OUR_ID", ID), ("AWS_SESSION_TOKEN", "of somebody else")][..], ""),
        ("", &[("AWS_ACCESS_KEY_ID", ID), ("AWS_SECRET_ACCESS_KEY", SECRET)], ""),
        ("", nothing, profile.as_str()),
    ]
    .into_iter()
    .enumerate()
    {
        world.write("backup.toml", &CONFIG.replace("KEYS", keys));
        std::fs::write(aws.join("credentials"), credentials).unwrap();
        let steps: &[&[&str]] = &[&["init"], &["run", "hourly"], &["verify", "data"], &["list"]];
        for args in steps {
            let ran = storage.run(&world, args, environment);
            assert_eq!(ran.code, 0, "{n} {args:?}: {ran:#?}");
        }
        let to = format!("back-{n}");
        let ran = storage.run(&world, &["restore", "data", "--to", &to, "--yes"], environment);
        assert_eq!(ran.code, 0, "{n}: {ran:#?}");
        let found =
            Command::new("grep").args(["-rl", "alpha", &to]).current_dir(world.path("")).output().unwrap();
        assert!(found.status.success(), "{n}: what was restored is not what was there");
    }
    // Nor did they reach the storage, or the state directory.
    let stored = Command::new("grep")
        .args(["-rlE", &format!("{ID}|{SECRET}"), "state"])
        .current_dir(world.path(""))
        .output();
    assert_eq!(String::from_utf8_lossy(&stored.unwrap().stdout), "");
}

#[test]
#[ignore = "live: MinIO in a container"]
fn what_is_wrong_is_told_in_one_line_with_what_to_do() {
    let storage = Storage::start("errors");
    let world = World::new();
    world.fill();
    for (url, id, says, hint) in [
        ("s3://ours/host", "nobody-knows-me", "does not know this access key", "access_key_id"),
        ("s3://theirs/host", ID, "make the bucket", ""),
    ] {
        world.write("backup.toml", &CONFIG.replace("KEYS", "").replace("s3://ours/host", url));
        let ran =
            storage.run(&world, &["init"], &[("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", SECRET)]);
        assert_eq!(ran.code, 1, "{ran:#?}");
        let error: Vec<&str> = ran.err.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(error.len() == 1 && error[0].contains(says) && ran.err.contains(hint), "{ran:#?}");
    }
    // Also of one step of a run.
    let config = CONFIG
        .replace("KEYS", "")
        .replace("[store]", "copies = ['cloud']\nstore.url = 'near'\n[stores.cloud]");
    world.write("backup.toml", &config.replace("[store.options]", "[stores.cloud.options]"));
    storage.ok(&world, &["init"]);
    let wrong = [("AWS_ACCESS_KEY_ID", "nobody-knows-me"), ("AWS_SECRET_ACCESS_KEY", SECRET)];
    let ran = storage.run(&world, &["run", "hourly"], &wrong);
    assert_eq!(ran.code, 3, "{ran:#?}");
    assert!(
        ran.err.contains("does not know this access key") && ran.err.contains("hint: correct"),
        "{ran:#?}"
    );
    let logs = storage.ok(&world, &["logs", "last"]);
    assert!(logs.out.contains("hint: correct `access_key_id`"), "{logs:#?}");
}

const SERVICES: &str = "\
[services.data]
kind = 'files'
paths = ['data']
after = ['env']
[services.env]
kind = 'env'
paths = ['.env']
[services.shop]
kind = 'sqlite'
path = 'shop.db'
smoke = ['SELECT count(*) FROM orders']
";

/// Three services with content; a key in `key`.
pub(crate) fn host(world: &World) -> String {
    world.fill();
    world.write(".env", "PASSWORD=plain-canary\n");
    sqlite(world, "CREATE TABLE orders(id); INSERT INTO orders VALUES (4711)");
    world.ok(&["keys", "new", "key"]).out.trim().to_owned()
}

fn sqlite(world: &World, script: &str) -> String {
    let ran = Command::new("sqlite3").arg(world.path("shop.db")).arg(script).output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    String::from_utf8(ran.stdout).unwrap()
}

/// Nothing is left but what `keep` names.
pub(crate) fn burn(world: &World, keep: &[&str]) {
    for entry in std::fs::read_dir(world.path("")).unwrap().map(Result::unwrap) {
        if keep.iter().any(|k| entry.file_name() == *k) {
            continue;
        }
        let path = entry.path();
        if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.unwrap();
    }
}

fn is_back(world: &World) {
    assert_eq!(world.read(".env"), "PASSWORD=plain-canary\n");
    assert_eq!((world.read("data/a.txt"), world.read("data/sub/b.txt")), ("alpha\n".into(), "beta\n".into()));
    assert_eq!(sqlite(world, "SELECT id FROM orders"), "4711\n");
}

/// Backed up straight to the bucket, encrypted; the host burns; the bucket, the key and the credentials are enough.
#[test]
#[ignore = "live: MinIO in a container"]
fn a_burnt_host_comes_back_from_the_bucket_and_the_key_alone() {
    let storage = Storage::start("burnt");
    let world = World::new();
    let public = host(&world);
    world.write(
        "backup.toml",
        &format!(
            "state_dir = 'state'\nencryption.recipients = ['{public}']\n\
             store = {{ url = 's3://ours/host', options = {{ allow_http = true }} }}\n\
             intervals.hourly = {{ services = ['data', 'env', 'shop'], keep = 3 }}\n{SERVICES}"
        ),
    );
    for args in
        [&["init"][..], &["run", "hourly"], &["run", "hourly"], &["verify", "--all", "--level", "stored"]]
    {
        storage.ok(&world, args);
    }
    for canary in ["plain-canary", "alpha", "AGE-SECRET-KEY"] {
        assert!(!storage.has(canary), "{canary} is in the bucket");
    }
    burn(&world, &["key"]);

    let bucket = ["bootstrap", "s3://ours/host", "--option", "allow_http=true", "--yes"];
    let locked = storage.run(&world, &bucket, &KEYS);
    locked.fails(1, "is encrypted for age1").hints("--identity");
    storage.ok(&world, &[&bucket[..], &["--identity", "key"]].concat());
    let plan = storage.ok(&world, &["recover", "--dry-run", "--identity", "key"]);
    assert!(!world.path(".env").exists(), "{plan:#?}");
    storage.ok(&world, &["recover", "--yes", "--identity", "key"]);
    is_back(&world);
    storage.ok(&world, &["drill", "--identity", "key"]);
    storage.ok(&world, &["keys", "check", "--identity", "key"]);
    storage.ok(&world, &["run", "hourly"]);
}

/// A fast disk, a second one and the cloud, with what each keeps; the cloud alone is enough.
#[test]
#[ignore = "live: MinIO in a container"]
fn three_tiers_keep_what_each_is_to_keep_and_the_cloud_alone_brings_the_host_back() {
    let storage = Storage::start("tiers");
    let world = World::new();
    let public = host(&world);
    let config = |encryption: &str| {
        format!(
            "state_dir = 'state'\n{encryption}copies = ['second', 'cloud']\nstore.url = 'fast'\n\
             stores.second = {{ url = 'slow', keep = 2 }}\n\
             stores.cloud = {{ url = 's3://ours/host', keep = 3, options = {{ allow_http = true }} }}\n\
             intervals.hourly = {{ services = ['data', 'env', 'shop'], keep = 1 }}\n{SERVICES}"
        )
    };
    // What holds secrets does not leave in clear; everything else does, and the backup itself is made.
    world.write("backup.toml", &config(""));
    storage.ok(&world, &["init"]);
    let clear = storage.run(&world, &["run", "hourly"], &KEYS);
    assert_eq!(clear.code, 3, "{clear:#?}");
    assert!(
        clear.err.contains("`env` holds secrets and is not encrypted") && !storage.has("plain-canary"),
        "{clear:#?}"
    );

    world.write("backup.toml", &config(&format!("encryption.recipients = ['{public}']\n")));
    for n in 1..=3 {
        world.write("data/n", &n.to_string());
        storage.ok(&world, &["run", "hourly"]);
    }
    let kept = |store: &str| {
        let listed = storage.ok(&world, &["list", "data", "--store", store, "--json"]).lines();
        listed.iter().filter(|l| l["event"] == "backup" && l["state"] == "good").count()
    };
    assert_eq!((kept("primary"), kept("second"), kept("cloud")), (1, 2, 3));
    storage.ok(&world, &["verify", "--store", "cloud", "--all", "--level", "content", "--identity", "key"]);
    assert!(!storage.has("plain-canary"));

    burn(&world, &["key", "backup.toml"]);
    storage.ok(&world, &["recover", "--store", "cloud", "--yes", "--identity", "key"]);
    is_back(&world);
    assert_eq!(world.read("data/n"), "3");
}

/// Somebody with every right of the host, and more, deletes all there is, version by version.
#[test]
#[ignore = "live: MinIO and moto's client in containers"]
fn what_is_locked_is_still_there_when_the_marks_of_its_deletion_are_removed() {
    let storage = Storage::start("locked");
    let world = World::new();
    world.fill();
    // The server has the real clock: a time that is not over by that.
    let options =
        "allow_http = true\nobject_lock = 'compliance'\nobject_lock_for = '3650d'\nleases_bucket = 'ours'";
    world.write(
        "backup.toml",
        &CONFIG.replace("allow_http = true\nKEYS", options).replace("s3://ours", "s3://firm"),
    );
    storage.boto("s3.create_bucket(Bucket='firm', ObjectLockEnabledForBucket=True)");
    storage.ok(&world, &["init"]);
    for n in 1..=3 {
        world.write("data/n", &n.to_string());
        storage.ok(&world, &["run", "hourly"]);
    }
    let listed = storage.ok(&world, &["list", "data"]);
    assert_eq!(listed.out.matches("locked for").count(), 3, "two would be kept: {listed:#?}");
    let lines = storage.ok(&world, &["list", "data", "--json"]).lines();
    assert!(
        lines.iter().filter(|l| l["event"] == "backup").all(|l| l["retain_until"].is_string()),
        "{lines:#?}"
    );
    let prune = storage.ok(&world, &["prune", "--dry-run"]);
    assert!(prune.out.contains("locked by the store until"), "{prune:#?}");
    let shown = storage.ok(&world, &["show", "data"]);
    assert!(shown.out.contains("locked by the store until"), "{shown:#?}");
    storage.ok(&world, &["status"]);

    storage.boto(
        "all = lambda: s3.list_object_versions(Bucket='firm').get('Versions', [])\nfor v in all():\n  try:\n    \
         s3.delete_object(Bucket='firm', Key=v['Key'], VersionId=v['VersionId'], BypassGovernanceRetention=True)\n  \
         except Exception: pass\nfor v in all():\n  s3.delete_object(Bucket='firm', Key=v['Key'])",
    );
    storage.run(&world, &["list", "data"], &KEYS).fails(1, "is not a backup store");
    // docs/object-lock.md
    storage.boto(
        "for m in s3.list_object_versions(Bucket='firm').get('DeleteMarkers', []):\n  \
         s3.delete_object(Bucket='firm', Key=m['Key'], VersionId=m['VersionId'])",
    );
    storage.ok(&world, &["verify", "data", "--all", "--level", "content"]);
    let lines = storage.ok(&world, &["list", "data", "--json"]).lines();
    assert_eq!(
        lines.iter().filter(|l| l["event"] == "backup" && l["state"] == "good").count(),
        3,
        "{lines:#?}"
    );
    storage.ok(&world, &["run", "hourly"]);
}
