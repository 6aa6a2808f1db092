//! A host with two services, and the processes on it.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// In the environment of the program under test.
pub(crate) const AS_PROGRAM: &str = "SWITCH_BACKUP";

/// A variable of its environment that nobody else may see.
pub(crate) const CANARY: &str = "canary-77af01";

/// The longest wait for something that should come at once.
const SOON: Duration = Duration::from_secs(30);

pub(crate) struct Host {
    dir: tempfile::TempDir,
    limit_ms: u64,
}

/// A run of the program that is at work.
pub(crate) struct Run(pub(crate) Child);

impl Run {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Standard error and the exit code.
    pub(crate) fn finish(mut self) -> (String, Option<i32>) {
        let mut stderr = self.0.stderr.take().unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut stderr, &mut text).unwrap();
        (text, self.0.wait().unwrap().code())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            self.kill();
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Watchdogs of a test that failed.
        self.watchdogs().into_iter().for_each(|pid| signal(pid, Signal::KILL));
    }
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    // It may have ended by itself.
    let _gone = kill_process(pid, signal);
}

#[track_caller]
pub(crate) fn until(what: &str, mut reached: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < SOON, "{what}: not within {SOON:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    start.elapsed()
}

/// Field 3 and on of `/proc/<pid>/stat`; `None` if there is no such process, or only what is left of one.
pub(crate) fn stat(pid: u32) -> Option<Vec<String>> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<String> = line.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect();
    (fields[0] != "Z").then_some(fields)
}

impl Host {
    /// Services `a` and `b`, running; an interruption lasts `limit` at most.
    pub(crate) fn new(limit: Duration) -> Self {
        let limit_ms = u64::try_from(limit.as_millis()).unwrap();
        let host = Self { dir: tempfile::tempdir().unwrap(), limit_ms };
        for service in ["a", "b"] {
            fs::create_dir(host.path(service)).unwrap();
            host.write(&format!("{service}/state"), "running");
            host.write(&format!("{service}/data"), "precious");
        }
        host.configure(&[("a", false), ("b", true)]);
        host.ok(&["init"]);
        host
    }

    /// Which services there are, and whether they are fenced instead of paused.
    pub(crate) fn configure(&self, services: &[(&str, bool)]) {
        let mut text = "state_dir = 'state'\nbackup_configuration = false\nstore.url = 'store'\n".to_owned();
        for (name, fence) in services {
            let limit = self.limit_ms;
            text.push_str(&format!(
                "[services.{name}]\nkind = 'switch'\ndir = '{name}'\nfence = {fence}\nlimit_ms = {limit}\n"
            ));
        }
        self.write("backup.toml", &text);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    pub(crate) fn state(&self, service: &str) -> String {
        fs::read_to_string(self.path(&format!("{service}/state"))).unwrap()
    }

    /// What was done to a service, in order.
    pub(crate) fn log(&self, service: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path(&format!("{service}/log"))).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(args)
            .current_dir(self.dir.path())
            .env_clear()
            .env(AS_PROGRAM, "1")
            .env("SECRET", CANARY)
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let (stdout, stderr) =
            (String::from_utf8_lossy(&out.stdout).into_owned(), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{args:?}: {stdout}\n{stderr}");
        stdout
    }

    /// Starts a backup and waits until `services` are interrupted and it is held there.
    pub(crate) fn interrupted(&self, services: &[&str]) -> Run {
        let mut args = vec!["run", "manual"];
        for service in services {
            self.write(&format!("{service}/hold"), "");
            args.extend(["--service", service]);
        }
        let child = self.command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let run = Run(child);
        until("the service is interrupted", || services.iter().all(|s| self.state(s) != "running"));
        run
    }

    pub(crate) fn entries(&self) -> Vec<PathBuf> {
        self.journal("json")
    }

    fn journal(&self, extension: &str) -> Vec<PathBuf> {
        let files = fs::read_dir(self.path("state/interruptions")).into_iter().flatten();
        files.map(|f| f.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == extension)).collect()
    }

    /// The living watchdogs.
    pub(crate) fn watchdogs(&self) -> Vec<u32> {
        let armed = self.journal("armed");
        let pids = armed.iter().filter_map(|p| fs::read_to_string(p).ok()?.trim().parse().ok());
        pids.filter(|pid| stat(*pid).is_some()).collect()
    }

    /// Kills the watchdogs, then the run.
    pub(crate) fn kill_all(&self, mut run: Run) {
        let watchdogs = self.watchdogs();
        assert!(!watchdogs.is_empty());
        for pid in watchdogs {
            signal(pid, Signal::KILL);
            until("the watchdog is dead", || stat(pid).is_none());
        }
        run.kill();
    }

    pub(crate) fn good(&self) -> usize {
        let listed = self.ok(&["list", "--all", "--json"]);
        let lines = listed.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        lines.filter(|l| l["event"] == "backup" && l["state"] == "good").count()
    }
}
