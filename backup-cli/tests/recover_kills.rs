//! SIGKILL of a recovery in each of its steps: the next one completes it, and an undo leaves what was there before, whole.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use serde_json::Value;

use super::killed::{Run, json_files};
use super::support::{World, tree};

/// One service after the other: the events come in one order.
const CONFIG: &str = "\
state_dir = 'state'
backup_configuration = false
store.url = 'store'
limits.parallel = 1
[intervals.hourly]
services = ['data', 'db', 'env']
keep = 9
[services.data]
kind = 'files'
paths = ['data']
[services.db]
kind = 'sqlite'
path = 'db/app.sqlite'
[services.env]
kind = 'env'
paths = ['.env']
";

const SERVICES: [&str; 3] = ["data", "db", "env"];

/// `db` is lost; the others hold something else than their backups.
const RECOVER: [&str; 6] = ["recover", "--yes", "--overwrite", "data", "--overwrite", "env"];

/// How long a program may take to come to its next event.
const PATIENCE: Duration = Duration::from_secs(60);

struct Host {
    world: World,
    /// What each service held when it was backed up, and what it held when the recovery began.
    backup: [String; 3],
    before: [String; 3],
    stored: Vec<(String, Option<Vec<u8>>)>,
}

impl Host {
    fn new() -> Self {
        let world = World::new();
        world.write("backup.toml", CONFIG);
        world.write(".env", "A=1\n");
        world.fill();
        fs::create_dir(world.path("db")).unwrap();
        let db = rusqlite::Connection::open(world.path("db/app.sqlite")).unwrap();
        db.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1), (2), (3)").unwrap();
        drop(db);
        world.ok(&["init"]);
        // Two of each: an older one, that nobody is to touch.
        world.run_at("2026-03-09T03:38:20Z", &["run", "hourly"]);
        world.write(".env", "A=2\n");
        world.write("data/c.txt", "gamma\n");
        world.ok(&["run", "hourly"]);
        let backup = SERVICES.map(|s| live(&world, s));
        world.write(".env", "A=3\nB=3\n");
        fs::remove_file(world.path("data/sub/b.txt")).unwrap();
        world.write("data/new/d.txt", "delta\n");
        fs::remove_file(world.path("db/app.sqlite")).unwrap();
        let before = SERVICES.map(|s| live(&world, s));
        // What the first one fills, all find: listings are kept.
        world.ok(&["recover", "--dry-run"]);
        copy(&world, "work", "pristine");
        let stored = stored(&world);
        Self { world, backup, before, stored }
    }

    /// The host as it was.
    fn reset(&self) {
        fs::remove_dir_all(self.world.path("")).unwrap();
        copy(&self.world, "pristine", "work");
    }

    fn live(&self) -> [String; 3] {
        SERVICES.map(|s| live(&self.world, s))
    }

    /// Kills a recovery that stands where it tells of what follows its first `seen` events. `false`: it ended before.
    ///
    /// Its standard output holds one line, and whoever writes the next one waits until that is read: it dies at that
    /// very place, however busy this machine is.
    fn kill_after(&self, seen: usize) -> bool {
        let (read, write) = pipe_with(PipeFlags::DIRECT | PipeFlags::CLOEXEC).unwrap();
        fcntl_setpipe_size(&write, 4096).unwrap();
        let mut command = self.world.command(&RECOVER);
        command.args(["--json"]).stdout(Stdio::from(write)).stderr(Stdio::null());
        let mut run = Run(command.spawn().unwrap());
        drop(command);
        let said = BufReader::new(File::from(read)).lines().map(|line| line.unwrap());
        // How often progress is told depends on the clock.
        let mut events = said.filter(|line| event(line) != "progress");
        for _ in 0..seen {
            if events.next().is_none() {
                return false;
            }
        }
        let start = Instant::now();
        let stands = loop {
            if run.0.try_wait().unwrap().is_some() {
                break false;
            }
            if waits_for_a_reader(run.0.id()) {
                break true;
            }
            assert!(start.elapsed() < PATIENCE, "it neither tells anything nor ends");
            std::thread::sleep(Duration::from_millis(1));
        };
        run.kill(super::killed::End::Process);
        stands
    }

    /// How far the restores got of which there are notes.
    fn phases(&self) -> Vec<String> {
        let notes = json_files(&self.world.path("state/restores"));
        let phase = |note: &std::path::PathBuf| {
            let note: Value = serde_json::from_slice(&fs::read(note).unwrap()).unwrap();
            note["phase"].as_str().unwrap().to_owned()
        };
        notes.iter().map(phase).collect()
    }

    /// Everything came back; nothing is half done, stands in the way of a backup, or stays once it is cleaned up.
    #[track_caller]
    fn is_whole(&self, at: usize) {
        assert_eq!(self.live(), self.backup, "kill {at}");
        assert!(
            self.phases().iter().all(|p| p == "switched" || p == "undone"),
            "kill {at}: {:?}",
            self.phases()
        );
        assert_eq!(stored(&self.world), self.stored, "kill {at}: a recovery changes no backup");
        let later = "2026-03-10T00:00:00Z";
        // What a restore left belongs to its notes, and goes after them.
        for verb in [&["cleanup", "--yes"][..], &["run", "hourly"]] {
            let ran = self.world.run_at(later, verb);
            assert_eq!(ran.code, 0, "kill {at}: {ran:#?}");
        }
        let names = tree(&self.world.path("")).into_iter().map(|(path, _)| path);
        let names: Vec<String> =
            names.filter(|p| !p.starts_with("store") && !p.starts_with("state")).collect();
        let wanted = [
            ".env",
            "backup.toml",
            "data",
            "data/a.txt",
            "data/c.txt",
            "data/sub",
            "data/sub/b.txt",
            "db",
            "db/app.sqlite",
        ];
        assert_eq!(names, wanted, "kill {at}");
        assert_eq!(self.phases(), [""; 0], "kill {at}");
        let runs: Vec<_> = tree(&self.world.path("state/runs"));
        assert!(runs.is_empty(), "kill {at}: {runs:?}");
    }
}

/// What a service holds, all of it.
fn live(world: &World, service: &str) -> String {
    match service {
        "data" => format!("{:?}", tree(&world.path("data"))),
        "env" => world.read(".env"),
        _ => {
            let path = world.path("db/app.sqlite");
            if !path.exists() {
                return "gone".to_owned();
            }
            let db = rusqlite::Connection::open(path).unwrap();
            let ask = |question: &str| db.query_row(question, [], |row| row.get::<_, String>(0)).unwrap();
            format!("{} {}", ask("PRAGMA integrity_check"), ask("SELECT group_concat(x) FROM t"))
        }
    }
}

/// Every byte of the backups.
fn stored(world: &World) -> Vec<(String, Option<Vec<u8>>)> {
    let mut stored = tree(&world.path("store"));
    stored.retain(|(path, _)| !path.starts_with('.'));
    stored
}

fn copy(world: &World, from: &str, to: &str) {
    let work = world.path("");
    let root = work.parent().unwrap();
    let done = Command::new("cp").arg("-a").arg(root.join(from)).arg(root.join(to)).status();
    assert!(done.unwrap().success());
}

fn event(line: &str) -> String {
    let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    line["event"].as_str().unwrap().to_owned()
}

/// Whether one of its threads waits until somebody reads what it writes.
fn waits_for_a_reader(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut calls = threads.map(|thread| fs::read_to_string(thread.path().join("wchan")));
    calls.any(|call| call.is_ok_and(|call| call.contains("pipe_write")))
}

#[test]
#[ignore = "long: 50 kills of the real binary"]
fn a_recovery_killed_in_any_step_is_completed_or_undone() {
    let host = Host::new();
    let whole = host.world.ok(&[&RECOVER[..], &["--json"]].concat());
    let events = whole.out.lines().filter(|line| event(line) != "progress").count();
    assert!(events > 20, "{whole:#?}");
    let mut phases = BTreeSet::new();
    let mut stood = 0;
    for at in 0..events {
        for undo in [false, true] {
            host.reset();
            let stands = host.kill_after(at);
            stood += usize::from(stands);
            phases.extend(host.phases());
            for (at_service, now) in host.live().into_iter().enumerate() {
                assert!(
                    now == host.backup[at_service] || now == host.before[at_service],
                    "kill {at}: `{}` is neither as before nor as backed up: {now}",
                    SERVICES[at_service]
                );
            }
            if undo {
                for service in SERVICES {
                    let undone = host.world.run_at("2026-03-09T05:00:00Z", &["undo", service, "--yes"]);
                    // 4: it was not restored yet.
                    assert!(matches!(undone.code, 0 | 4), "kill {at}: {undone:#?}");
                }
                assert_eq!(host.live(), host.before, "kill {at}");
            }
            let again = host.world.run_at("2026-03-09T06:00:00Z", &RECOVER);
            assert_eq!(again.code, 0, "kill {at}, undone: {undo}: {again:#?}");
            host.is_whole(at);
        }
    }
    assert!(stood > events, "only {stood} of {} kills came before the end", 2 * events);
    let wanted = ["staging", "switched", "switching"].map(str::to_owned);
    assert_eq!(phases, BTreeSet::from(wanted), "it was killed in each phase of a restore");
}
