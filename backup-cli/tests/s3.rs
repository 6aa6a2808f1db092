//! Object storage from the command line: where keys come from, what is stored, and what goes wrong.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::support::{Ran, World, ran};

/// Its keys: must never show.
const ID: &str = "canary-id-51c2";
const SECRET: &str = "canary-secret-90d7";

/// A MinIO with the bucket `ours`. Its standard input is its life: however this process ends, the container goes.
struct Storage {
    address: String,
    life: Child,
}

#[expect(clippy::disallowed_methods, reason = "tests may be told of another image")]
fn image() -> String {
    std::env::var("BACKUP_TEST_MINIO_IMAGE").unwrap_or_else(|_| "backup-test/minio".to_owned())
}

impl Storage {
    fn start(which: &str) -> Self {
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
        let mut storage = Self { address: String::new(), life: life.unwrap() };
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

    fn run(&self, world: &World, args: &[&str], environment: &[(&str, &str)]) -> Ran {
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
}
