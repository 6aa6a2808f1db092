//! Shared by the tests that kill the real binary over a server in a container: its folder, its runs, and what is asked of
//! the engine.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

/// How long the container may not run once the run is dead. The watchdog looks five times a second; a stop that was
/// ordered is seen through first.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// How long the server may then take to answer, on a machine that is busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn docker(args: &[&str]) -> Output {
    Command::new("docker").args(args).stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
pub(crate) fn text(done: &Output) -> String {
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

#[track_caller]
pub(crate) fn until(what: &str, limit: Duration, mut reached: impl FnMut() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        // Each question starts a program, and there are few processors.
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub(crate) fn pid(text: &str) -> Pid {
    Pid::from_raw(text.parse().unwrap()).unwrap()
}

/// What a SIGKILL hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Process,
    Group,
    /// Run, watchdog and containers at once.
    Reboot,
}

/// A run that is dead at the latest when this is dropped.
pub(crate) struct Run(pub(crate) Child);

impl Run {
    pub(crate) fn kill(mut self, end: End) {
        if end == End::Process {
            self.0.kill().unwrap();
        } else {
            kill_process_group(pid(&self.0.id().to_string()), Signal::KILL).unwrap();
        }
        self.0.wait().unwrap();
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

/// A folder with a configuration, a state directory `state` and stores.
pub(crate) struct Folder {
    dir: tempfile::TempDir,
    /// The environment of the binary, besides PATH.
    env: &'static [(&'static str, &'static str)],
}

impl Folder {
    pub(crate) fn new(env: &'static [(&'static str, &'static str)]) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), env }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the configuration, and marks its store.
    #[track_caller]
    pub(crate) fn configure(&self, config: &str) {
        std::fs::write(
            self.path("backup.toml"),
            format!("state_dir = 'state'\nbackup_configuration = false\n{config}"),
        )
        .unwrap();
        self.ok(&["init"]);
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("backup"));
        command.args(args).current_dir(self.dir.path()).env_clear().stdin(Stdio::null());
        command.envs(self.env.iter().copied()).env("PATH", std::env::var_os("PATH").unwrap());
        command
    }

    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        text(&self.command(args).output().unwrap())
    }

    /// Starts it in a process group of its own, and waits until it says that it begins `phase`.
    #[track_caller]
    pub(crate) fn start_to(&self, phase: &str, args: &[&str]) -> Run {
        let mut command = self.command(args);
        command.arg("--json").stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let mut run = Run(command.spawn().unwrap());
        let mut said = BufReader::new(run.0.stdout.take().unwrap()).lines();
        let begins = |line: &str| {
            let event: Value = serde_json::from_str(line).unwrap();
            event["event"] == "phase" && event["phase"] == phase
        };
        assert!(said.any(|line| begins(&line.unwrap())), "`{phase}` never began");
        // Nobody reads the rest; it must not break off because of that.
        std::thread::spawn(move || said.for_each(drop));
        run
    }

    /// The names in the journal of interruptions.
    pub(crate) fn noted(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.path("state/interruptions")).into_iter().flatten();
        files.map(|f| f.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    pub(crate) fn journal(&self) -> usize {
        self.noted().iter().filter(|name| name.ends_with(".json")).count()
    }

    /// Whether a dead run's interruption is over.
    pub(crate) fn is_over(&self) -> bool {
        self.journal() == 0 || never_begun(&self.noted())
    }

    /// The good backups of an interval.
    #[track_caller]
    pub(crate) fn good(&self, interval: &str) -> usize {
        let listed = self.ok(&["list", "--all", "--json", "--interval", interval]);
        let lines = listed.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        lines.filter(|l| l["event"] == "backup" && l["state"] == "good").count()
    }
}

/// Whether a run died before it interrupted what it had noted: it had no watchdog yet, or the kill of its group met that, too.
/// Nothing is done to a server before its watchdog has said that it runs; the entry waits for the next run.
pub(crate) fn never_begun(noted: &[String]) -> bool {
    let begun = |name: &String| [".armed", ".taken.json", ".down"].iter().any(|end| name.ends_with(end));
    !noted.iter().any(begun)
}

/// The containers that have something mounted which `part` is in the name of, ended ones too: one line each.
pub(crate) fn mounting(part: &str) -> Vec<String> {
    let all = text(&docker(&["ps", "-a", "--no-trunc", "--format", "{{.Names}} {{.Mounts}}"]));
    all.lines().filter(|line| line.contains(part)).map(str::to_owned).collect()
}

pub(crate) fn json_files(dir: &Path) -> Vec<PathBuf> {
    let entries: Vec<_> = std::fs::read_dir(dir).into_iter().flatten().map(|e| e.unwrap().path()).collect();
    let (dirs, files): (Vec<_>, Vec<_>) = entries.into_iter().partition(|p| p.is_dir());
    let here = files.into_iter().filter(|f| f.extension().is_some_and(|e| e == "json"));
    here.chain(dirs.iter().flat_map(|d| json_files(d))).collect()
}
