//! Servers in containers: reached by their address, with a password that only the container has.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use backup_core::{AdapterErrorKind, HandContext, ServiceAdapter, chain};

use crate::support::{CANARY, adapter, captured, counts, wait_for};

const IMAGE: &str = "backup-test/redis:7";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A container that is removed with its volumes when this is dropped.
pub(crate) struct Container {
    pub(crate) name: String,
}

pub(crate) fn docker(args: &[&str]) -> String {
    // By the environment: another test looks at the arguments of all processes.
    let secrets = ["REDIS_PASSWORD", "REDISCLI_AUTH"].map(|name| (name, CANARY));
    let done = Command::new("docker").args(args).envs(secrets).output().unwrap();
    assert!(done.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

impl Container {
    /// A server with a password that is in the container's environment, and three keys.
    pub(crate) fn start(options: &[&str], command: &[&str]) -> Self {
        let n = NUMBER.fetch_add(1, Ordering::Relaxed);
        let container = Self { name: format!("backup-test-{}-{n}-redis", std::process::id()) };
        let label = format!("backup-test={}", std::process::id());
        let mut args = vec!["run", "-d", "--name", &container.name, "--label", &label];
        args.extend(["-e", "REDIS_PASSWORD"]);
        args.extend_from_slice(options);
        args.push(IMAGE);
        args.extend(["--repl-diskless-sync-delay", "0"]);
        args.extend_from_slice(command);
        docker(&args);
        container.wait_until_up();
        for key in ["a", "b", "c"] {
            container.cli(&["SET", key, "1"]);
        }
        let locked = "printf %s \"$REDIS_PASSWORD\" | redis-cli -x CONFIG SET requirepass";
        assert_eq!(docker(&["exec", &container.name, "sh", "-c", locked]), "OK");
        container
    }

    pub(crate) fn wait_until_up(&self) {
        wait_for("the server", || {
            let ping = ["exec", &self.name, "redis-cli", "PING"];
            let output = Command::new("docker").args(ping).output().unwrap();
            String::from_utf8_lossy(&output.stdout).contains("PONG")
        });
    }

    pub(crate) fn cli(&self, args: &[&str]) -> String {
        let mut all = vec!["exec", "-e", "REDISCLI_AUTH", &self.name, "redis-cli"];
        all.extend_from_slice(args);
        docker(&all)
    }

    pub(crate) fn adapter(&self, keys: &str) -> Arc<dyn ServiceAdapter> {
        let name = &self.name;
        adapter(&format!("container = '{name}'\npassword = {{ container_env = 'REDIS_PASSWORD' }}\n{keys}"))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _gone = Command::new("docker").args(["rm", "-fv", &self.name]).output();
    }
}

pub(crate) async fn three_keys_come(container: &Container, mode: &str) {
    let taken = captured(&*container.adapter(&format!("capture = '{mode}'"))).await.unwrap();
    assert_eq!(counts(&taken)["keys"], 3, "{mode}");
    assert_eq!(taken.report.image.as_ref().map(|i| i.name.as_str()), Some(IMAGE));
    assert!(!format!("{:?}", taken.report).contains(CANARY));
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_container_is_captured_in_every_mode() {
    let container = Container::start(&[], &[]);
    for mode in ["stream", "bgsave", "auto"] {
        three_keys_come(&container, mode).await;
    }
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_file_that_no_path_of_the_host_leads_to_is_read_in_the_container() {
    // Outside of every volume, in a folder with a space.
    let container = Container::start(&["--tmpfs", "/odd dir:mode=777"], &["--dir", "/odd dir"]);
    three_keys_come(&container, "bgsave").await;
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_missing_variable_and_a_missing_container_are_told() {
    let container = Container::start(&[], &[]);
    let name = &container.name;
    let keys = format!("container = '{name}'\npassword = {{ container_env = 'OTHER' }}\n");
    let error = captured(&*adapter(&keys)).await.unwrap_err();
    assert_eq!(error.kind(), AdapterErrorKind::InvalidConfig);
    assert!(error.to_string().contains("no variable `OTHER`"), "{error}");
    let error = captured(&*adapter("container = 'backup-test-no-such-one'\n")).await.unwrap_err();
    assert_eq!(error.kind(), AdapterErrorKind::NotFound, "{}", chain(&error));
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_paused_container_ends_with_the_budget() {
    let container = Container::start(&[], &[]);
    docker(&["pause", &container.name]);
    let bench = crate::support::bench();
    let mut cx = bench.cx();
    cx.deadline = Some(tokio::time::Instant::now() + std::time::Duration::from_secs(2));
    let error = container.adapter("").open(&cx).await.unwrap_err();
    docker(&["unpause", &container.name]);
    assert!(
        matches!(error.kind(), AdapterErrorKind::Timeout | AdapterErrorKind::Conflict),
        "{}",
        chain(&error)
    );
    three_keys_come(&container, "auto").await;
}

/// Runs what RESTORE.md says, word by word, as far as it is a command.
#[tokio::test]
#[ignore = "needs Docker"]
async fn the_steps_by_hand_bring_the_data_back() {
    let volume = format!("backup-test-{}-by-hand", std::process::id());
    let mounted = format!("{volume}:/data");
    let container = Container::start(&["-v", &mounted], &[]);
    let backed_up = container.adapter("");
    let taken = captured(&*backed_up).await.unwrap();
    container.cli(&["FLUSHALL"]);
    container.cli(&["SET", "new", "1"]);

    let dir = tempfile::tempdir().unwrap();
    let artifact = &taken.metadata.artifacts[0];
    std::fs::write(dir.path().join(&artifact.files[0].path), taken.bodies[0].1.concat()).unwrap();
    let steps = backed_up.by_hand(&HandContext { metadata: &taken.metadata });
    // Without `--rm`, so that it stays when it is stopped.
    docker(&["rm", "-f", &container.name]);
    let label = format!("backup-test={}", std::process::id());
    let run = ["run", "-d", "--name", &container.name, "--label", &label, "-v", &mounted, IMAGE];
    docker(&run);
    container.wait_until_up();
    container.cli(&["SET", "new", "1"]);
    for step in &steps[..4] {
        let ran = Command::new("bash").args(["-c", &step.command]).current_dir(dir.path()).output().unwrap();
        let text = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(ran.status.success(), "{}\n{text}", step.command);
    }
    docker(&["start", &container.name]);
    container.wait_until_up();
    let keys = container.cli(&["DBSIZE"]);
    let new = container.cli(&["EXISTS", "new"]);
    let owner = docker(&["exec", &container.name, "stat", "-c", "%U", "/data/dump.rdb"]);
    drop(container);
    docker(&["volume", "rm", "-f", &volume]);
    assert_eq!((keys.as_str(), new.as_str(), owner.as_str()), ("3", "0", "redis"));
}
