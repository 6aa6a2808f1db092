//! Azure's blobs from the command line.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::support::{Ran, World, ran};

const ACCOUNT: &str = "canaryaccount";
/// Must never show.
const KEY: &str = "Y2FuYXJ5LXNlY3JldC05MGQ3";
const MAKE_CONTAINER: &str = include_str!("../../stack/images/azurite/make-container.js");

/// An Azurite with the container `ours`. Its standard input is its life: however this process ends, it goes.
struct Storage {
    address: String,
    life: Child,
}

#[expect(clippy::disallowed_methods, reason = "tests may be told of another image")]
fn image() -> String {
    std::env::var("BACKUP_TEST_AZURITE_IMAGE").unwrap_or_else(|_| "backup-test/azurite:3".to_owned())
}

impl Storage {
    fn start() -> Self {
        let pid = std::process::id();
        let name = format!("backup-test-cli-azurite-{pid}");
        let program = "{ node /usr/local/lib/azurite/node_modules/azurite/dist/src/blob/main.js --blobHost 0.0.0.0 \
                       --inMemoryPersistence --disableTelemetry || azurite-blob --blobHost 0.0.0.0; } & cat >/dev/null";
        let life = Command::new("docker")
            .args(["run", "--rm", "-i", "--name", &name, "--label", &format!("backup-test={pid}")])
            .args(["-e", &format!("AZURITE_ACCOUNTS={ACCOUNT}:{KEY}"), "--entrypoint", "sh", &image()])
            .args(["-c", program])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut storage = Self { address: String::new(), life: life.unwrap() };
        let until = Instant::now() + Duration::from_secs(90);
        let node = ["exec", &name, "node", "-e", MAKE_CONTAINER, ACCOUNT, KEY, "ours"];
        while !Command::new("docker").args(node).output().unwrap().status.success() {
            assert!(
                Instant::now() < until,
                "Azurite does not answer: is there its image? stack/build makes it"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let out = Command::new("docker").args(["inspect", "-f", format, &name]).output().unwrap();
        storage.address = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        storage
    }

    fn run(&self, world: &World, args: &[&str]) -> Ran {
        let mut command = world.command(args);
        let ran = ran(command.env("AZURE_STORAGE_ACCOUNT", ACCOUNT).env("AZURE_STORAGE_KEY", KEY));
        assert!(!format!("{ran:?}").contains(KEY), "{args:?} shows a key: {ran:#?}");
        ran
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        drop(self.life.stdin.take());
        let _gone = self.life.wait();
    }
}

#[test]
#[ignore = "live: Azurite in a container"]
fn what_is_backed_up_to_azure_comes_back() {
    let storage = Storage::start();
    let world = World::new();
    world.fill();
    let endpoint = format!("http://{}:10000/{ACCOUNT}", storage.address);
    let config = |container: &str| {
        format!(
            "state_dir = 'state'\n\
             store = {{ url = 'az://{container}/host', options = {{ endpoint = '{endpoint}', allow_http = true }} }}\n\
             intervals.hourly = {{ services = ['data'], keep = 1 }}\n\
             services.data = {{ kind = 'files', paths = ['data'] }}\n"
        )
    };
    world.write("backup.toml", &config("ours"));
    for args in [&["init"][..], &["run", "hourly"], &["run", "hourly"], &["verify", "data"]] {
        let ran = storage.run(&world, args);
        assert_eq!(ran.code, 0, "{args:?}: {ran:#?}");
    }
    let listed = storage.run(&world, &["list", "data", "--json"]).lines();
    let good = listed.iter().filter(|l| l["event"] == "backup" && l["state"] == "good").count();
    assert_eq!(good, 1, "the second run pruned the first one: {listed:#?}");
    let restored = storage.run(&world, &["restore", "data", "--to", "back", "--yes"]);
    assert_eq!(restored.code, 0, "{restored:#?}");
    let found =
        Command::new("grep").args(["-rl", "alpha", "back"]).current_dir(world.path("")).output().unwrap();
    assert!(found.status.success(), "what was restored is not what was there");

    world.write("backup.toml", &config("theirs"));
    let ran = storage.run(&world, &["init"]);
    ran.fails(1, "make the container");
}
