//! Containers that hold nothing but memory are stopped in the end; and what is told at the start of what no notice can save.

use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use super::super::killed::{self, text};
use super::super::support::ran;
use super::{Host, end, signal, step, until};

fn docker(args: &[&str]) -> String {
    text(&killed::docker(args))
}

/// A container that is removed when this is dropped.
struct Model(String);

impl Model {
    fn start(which: &str, script: &str) -> Self {
        let pid = std::process::id();
        let model = Self(format!("backup-test-spot-{which}-{pid}"));
        let label = format!("backup-test={pid}");
        let started = Command::new("docker")
            .args(["run", "-d", "--init", "--name", &model.0, "--label", &label])
            .args(["--entrypoint", "sh", "backup-test/redis:7", "-c", script])
            .output();
        assert!(started.as_ref().unwrap().status.success(), "{started:?}");
        until("the model", || docker(&["logs", &model.0]).contains("up"));
        model
    }

    fn runs(&self) -> bool {
        docker(&["inspect", "-f", "{{.State.Running}}", &self.0]) == "true"
    }

    fn exit_code(&self) -> String {
        docker(&["inspect", "-f", "{{.State.ExitCode}}", &self.0])
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        let _gone = Command::new("docker").args(["rm", "-f", &self.0]).output();
    }
}

#[test]
#[ignore = "live: containers"]
fn models_are_stopped_within_their_budget_and_one_that_is_missing_costs_no_other() {
    const OBEDIENT: &str = "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.1; done";
    const STUBBORN: &str = "trap '' TERM; echo up; while :; do sleep 0.1; done";
    let (good, bad) = (Model::start("good", OBEDIENT), Model::start("bad", STUBBORN));
    let missing = format!("backup-test-spot-none-{}", std::process::id());
    let host = Host::new(&format!(
        "stop = ['{}', '{missing}', '{}']\nsteps = [{{ do = 'back-up', services = ['env'] }}, {{ do = 'stop', budget = '6s', after = ['back-up'] }}]\n",
        good.0, bad.0
    ));
    let simulate = |args: &[&str]| {
        let mut command =
            host.world.command(&[&["spot", "simulate", "--notice", "60s", "--json"], args].concat());
        ran(command.env_remove("DOCKER_HOST"))
    };
    // An exercise looks whether it could.
    let exercise = simulate(&[]);
    let stopped = step(&exercise, "stop");
    assert_eq!(stopped["outcome"], "failed", "{exercise:#?}");
    assert!(stopped["error"].as_str().unwrap().contains(&missing), "{stopped}");
    assert!(good.runs() && bad.runs(), "nothing is stopped");

    let ran = simulate(&["--in-earnest", "--yes"]);
    let stopped = step(&ran, "stop");
    assert_eq!((ran.code, stopped["outcome"].as_str()), (3, Some("failed")), "{ran:#?}");
    let told = stopped["error"].as_str().unwrap();
    assert!(told.starts_with(&format!("{missing}: there is no container")), "{told}");
    let failed = |model: &Model| told.contains(&format!("{}: ", model.0));
    assert!(!failed(&good) && !failed(&bad), "{told}");
    assert!(!told.contains('\n') && !told.contains("in time"), "{told}");
    // In order, and at the end of its time by force: both before the budget is over.
    assert!(!good.runs() && !bad.runs(), "{told}");
    assert_eq!((good.exit_code().as_str(), bad.exit_code().as_str()), ("7", "137"));
    assert!(docker(&["logs", &good.0]).contains("bye"));
    let took = Duration::from_millis(stopped["ms"].as_u64().unwrap());
    assert!((Duration::from_secs(2)..Duration::from_secs(6)).contains(&took), "{took:?}");
    assert_eq!(step(&ran, "back-up")["outcome"], "ok");
    assert_eq!(host.world.good(), ["env/spot/20260309_043820"]);
}

/// The kernel's folder of block devices, seen as on an instance with disks of its own.
#[test]
#[ignore = "live: root, a mount namespace of its own"]
fn what_lies_on_the_instances_own_disks_is_told_at_the_start() {
    let host = Host::new("repositories = ['app']\n");
    host.world.write("app/main.rs", "unfinished\n");
    super::git::git(&host.world.path("app"), &["init", "-q"]);
    let device = host.world.path("store").metadata().unwrap().dev();
    let disk = host.world.path("nvme1n1");
    std::fs::create_dir_all(disk.join("device")).unwrap();
    let blocks = host.world.path("blocks");
    std::fs::create_dir(&blocks).unwrap();
    let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    std::os::unix::fs::symlink(&disk, blocks.join(number)).unwrap();
    for (model, warned) in [("Amazon EC2 NVMe Instance Storage", true), ("Amazon Elastic Block Store", false)]
    {
        host.world.write("nvme1n1/device/model", &format!("{model}          \n"));
        host.server.says(|s| s.asked.clear());
        let inner = host.world.command(&["spot", "watch"]);
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", "mount --bind \"$0\" /sys/dev/block && exec \"$@\""])
            .arg(&blocks)
            .arg(inner.get_program())
            .args(inner.get_args())
            .env_clear()
            .envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .current_dir(host.world.path(""))
            .stdin(Stdio::null());
        let watch = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let look = "GET /latest/meta-data/events/recommendations/rebalance 404";
        until("a look", || host.server.asked(look) > 0);
        signal(&watch, Signal::TERM);
        let ran = end(watch);
        let told: Vec<&str> =
            ran.err.lines().filter(|line| line.contains("on a disk of the instance's own")).collect();
        for what in ["store", "far", "state", "app", "data", ".env"] {
            let place = format!("`{}`", host.world.path(what).display());
            let lines = told.iter().filter(|line| line.contains(&place)).count();
            assert_eq!(lines, usize::from(warned), "{what}, {model}: {ran:#?}");
        }
        assert_eq!(told.len(), if warned { 6 } else { 0 }, "{told:#?}");
        assert_eq!(
            told.iter().filter(|line| line.contains("the data of `env`,")).count(),
            usize::from(warned)
        );
    }
}
