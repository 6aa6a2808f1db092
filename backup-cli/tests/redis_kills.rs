//! SIGKILL of the real binary in the middle of a restore over the wire: a writable primary with the old or the new data,
//! complete, and soon.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

use super::killed::never_begun;
use super::redis::{Host, until};

/// How long a server may take to be as it should, once the run is dead: the watchdog looks five times a second, and the
/// data is small.
const DEADLINE: Duration = Duration::from_secs(15);

/// What a restore says that it does, in order.
const PHASES: [&str; 8] = [
    "holding back writers",
    "keeping aside what is there",
    "making the server follow us",
    "sending the data",
    "waiting for the server to load it",
    "making the server a primary again",
    "saving on the server's disk",
    "letting writers go on",
];

const RESTORE: [&str; 4] = ["--json", "restore", "redis", "--yes"];

struct Scene {
    host: Host,
    restored: String,
    old: String,
    random: fastrand::Rng,
    slowest: Duration,
    /// How often the old and the new data was found.
    found: [u32; 2],
}

/// When a restore is killed.
#[derive(Debug, Clone, Copy)]
enum When {
    /// So long after it said that it begins this.
    Phase(&'static str, Duration),
    /// As soon as the server says this of itself.
    Server(&'static str, &'static str),
    /// After this time.
    Time(Duration),
}

/// A run that is dead at the latest when this is dropped.
struct Run(Child);

impl Run {
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

fn pid(text: &str) -> Option<Pid> {
    Pid::from_raw(text.trim().parse().ok()?)
}

impl Scene {
    #[expect(clippy::print_stdout, reason = "shown when the test fails")]
    fn new() -> Self {
        let seed = std::env::var_os("KILL_SEED").and_then(|s| s.to_str()?.parse().ok());
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        println!("KILL_SEED={seed}");
        // It answers often while it loads.
        let host = Host::new("appendonly yes\nloading-process-events-interval-bytes 1024\n", "");
        let restored = host.seed("backup", 10_000);
        host.ok(&["run", "often"]);
        let old = host.seed("old", 6000);
        assert_ne!(restored, old);
        let random = fastrand::Rng::with_seed(seed);
        Self { host, restored, old, random, slowest: Duration::ZERO, found: [0, 0] }
    }

    /// Whether it was killed before it had ended.
    fn killed(&self, when: When) -> bool {
        let mut command = self.host.command(&RESTORE);
        let mut run = Run(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
        match when {
            When::Phase(phase, later) => {
                let said = BufReader::new(run.0.stdout.take().unwrap());
                let mut events = said.lines().map(|l| serde_json::from_str::<Value>(&l.unwrap()).unwrap());
                let reached = events.any(|e| e["event"] == "phase" && e["phase"] == phase);
                assert!(reached, "`{phase}` never began");
                sleep_until(Instant::now() + later);
                let early = run.0.try_wait().unwrap().is_none();
                run.kill();
                early
            }
            When::Server(field, value) => {
                let begun = Instant::now();
                while self.host.info(field) != value {
                    if run.0.try_wait().unwrap().is_some() || begun.elapsed() > DEADLINE {
                        return false;
                    }
                }
                run.kill();
                true
            }
            When::Time(time) => {
                sleep_until(Instant::now() + time);
                let early = run.0.try_wait().unwrap().is_none();
                run.kill();
                early
            }
        }
    }

    fn journal(&self, extension: &str) -> Vec<std::path::PathBuf> {
        let files = std::fs::read_dir(self.host.path("state/interruptions")).into_iter().flatten();
        files.map(|f| f.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == extension)).collect()
    }

    fn noted(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.host.path("state/interruptions")).into_iter().flatten();
        files.map(|f| f.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    /// Kills the watchdogs, too. Whether there was one.
    fn kill_watchdogs(&self) -> bool {
        let armed = self.journal("armed");
        let pids: Vec<Pid> = armed.iter().filter_map(|p| pid(&std::fs::read_to_string(p).ok()?)).collect();
        for pid in &pids {
            let _gone = kill_process(*pid, Signal::KILL);
            // Its parent is dead: whoever adopts it buries it.
            until("the watchdog's end", || test_kill_process(*pid).is_err() || is_dead(*pid));
        }
        !pids.is_empty()
    }

    /// It is a primary that takes writes, and holds the one or the other.
    fn assert_whole(&mut self, what: &str) -> String {
        let host = &self.host;
        assert_eq!(host.info("role"), "master", "{what}");
        assert_eq!(host.cli(&["SET", "probe", "1"]), "OK", "{what}");
        assert_eq!(host.cli(&["DEL", "probe"]), "1", "{what}");
        for (setting, value) in
            [("masterauth", ""), ("min-replicas-to-write", "0"), ("replica-read-only", "yes")]
        {
            let answer = host.cli(&["CONFIG", "GET", setting]);
            assert_eq!(
                answer.lines().nth(1).unwrap_or_default(),
                value,
                "{what}: {setting} was not put back"
            );
        }
        let digest = host.digest();
        assert!(digest == self.old || digest == self.restored, "{what}: {} keys", host.cli(&["DBSIZE"]));
        digest
    }

    /// One kill, and all that must hold afterwards. Whether the kill came in time.
    fn round(&mut self, when: When, watchdog: bool) -> bool {
        let what = format!("{when:?}, {}", if watchdog { "with its watchdog" } else { "without" });
        let early = self.killed(when);
        let began = Instant::now();
        let dead = !watchdog && self.kill_watchdogs();
        if dead {
            // Nobody is left who would.
            self.host.ok(&["resume"]);
        }
        until(&what, || self.journal("json").is_empty() || never_begun(&self.noted()));
        // A pause of the run's own may still hold back writers for a moment.
        self.assert_whole(&what);
        let took = began.elapsed();
        assert!(took < DEADLINE, "{what}: it took {took:?}");
        self.slowest = self.slowest.max(took);
        // It has nothing to do any more, and does nothing.
        self.host.ok(&["resume"]);
        assert_eq!(self.journal("json").len(), 0, "{what}");
        let digest = self.assert_whole(&what);
        self.found[usize::from(digest == self.restored)] += 1;
        until("the append-only file", || self.host.info("aof_buffer_length") == "0");
        self.host.restart_server();
        assert_eq!(self.host.digest(), digest, "{what}: a restart changed it");
        // The next restore ends what was begun, and what it replaced can be put back.
        self.host.ok(&RESTORE);
        assert_eq!(self.host.digest(), self.restored, "{what}");
        self.host.ok(&["cleanup", "--yes"]);
        assert_eq!(self.host.seed("old", 6000), self.old);
        early
    }
}

fn sleep_until(instant: Instant) {
    // The instant itself is what is wanted here: there is no condition to wait for.
    std::thread::sleep(instant.saturating_duration_since(Instant::now()));
}

fn is_dead(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

#[test]
#[ignore = "needs redis-server"]
fn a_wire_restore_killed_at_any_instant_leaves_a_writable_primary_with_all_of_its_data() {
    let mut scene = Scene::new();
    let mut early = 0;
    let mut rounds = 0;
    let usual = {
        let begun = Instant::now();
        scene.host.ok(&RESTORE);
        begun.elapsed()
    };
    scene.host.ok(&["cleanup", "--yes"]);
    scene.host.seed("old", 6000);
    for watchdog in [true, false] {
        for phase in PHASES {
            let later = Duration::from_micros(scene.random.u64(..60_000));
            for later in [Duration::ZERO, later] {
                early += u32::from(scene.round(When::Phase(phase, later), watchdog));
                rounds += 1;
            }
        }
        for (field, value) in [
            ("role", "slave"),
            ("master_sync_in_progress", "1"),
            ("loading", "1"),
            ("aof_rewrite_in_progress", "1"),
        ] {
            early += u32::from(scene.round(When::Server(field, value), watchdog));
            rounds += 1;
        }
        for _ in 0..10 {
            let time = usual.mul_f64(scene.random.f64() * 1.1);
            early += u32::from(scene.round(When::Time(time), watchdog));
            rounds += 1;
        }
    }
    let (slowest, [old, new]) = (scene.slowest, scene.found);
    println!(
        "{rounds} kills, {early} before the end; old data {old} times, new {new}; back after {slowest:?} at most"
    );
    assert!(early * 2 > rounds, "only {early} of {rounds} kills came before the end");
    assert!(old > 0 && new > 0, "{old} {new}");
}
