//! SIGKILL of the real binary at random instants.
//!
//! Afterwards every backup listed as good verifies, the data that was there is whole, and the next run succeeds
//! without help. The seed is printed: set `KILL_SEED` to repeat a run.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const CONFIG: &str = r#"
state_dir = "state"
backup_configuration = false
[store]
url = "store"
[limits]
parallel = 2
[intervals.often]
services = ["data", "env", "db"]
keep = 3
[services.data]
kind = "files"
paths = ["data"]
[services.env]
kind = "env"
paths = ["conf/.env"]
[services.db]
kind = "sqlite"
path = "db/app.sqlite"
"#;

struct Host {
    dir: tempfile::TempDir,
    random: fastrand::Rng,
}

impl Host {
    #[expect(clippy::print_stdout, reason = "shown when the test fails")]
    fn new() -> Self {
        let seed = std::env::var_os("KILL_SEED").and_then(|s| s.to_str()?.parse().ok());
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        println!("KILL_SEED={seed}");
        let host = Self { dir: tempfile::tempdir().unwrap(), random: fastrand::Rng::with_seed(seed) };
        for sub in ["data/small", "conf", "db", "store"] {
            std::fs::create_dir_all(host.path(sub)).unwrap();
        }
        std::fs::write(host.path("backup.toml"), CONFIG).unwrap();
        std::fs::write(host.path("conf/.env"), "TOKEN=abc\n").unwrap();
        let create = "CREATE TABLE t(x); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<20000) INSERT INTO t SELECT i FROM n;";
        let made = Command::new("sqlite3").arg(host.path("db/app.sqlite")).arg(create).status();
        assert!(made.expect("the package sqlite3 is installed").success());
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes version `n` of the data: some noise, some text, many small files.
    fn fill(&mut self, n: u64) {
        let mut noise = vec![0; 3 << 20];
        self.random.fill(&mut noise);
        std::fs::write(self.path("data/noise"), noise).unwrap();
        std::fs::write(self.path("data/text"), format!("version {n} of the text\n").repeat(100_000)).unwrap();
        for i in 0..100 {
            std::fs::write(self.path(&format!("data/small/{i}")), format!("{n}:{i}")).unwrap();
        }
        std::fs::write(self.path("conf/.env"), format!("TOKEN={n}\n")).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("backup"));
        command.args(args).current_dir(self.dir.path()).env_clear().stdin(Stdio::null());
        command
    }

    fn ok(&self, args: &[&str]) -> String {
        let out = self.command(args).output().unwrap();
        let (stdout, stderr) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{args:?}: {:?}\n{stdout}\n{stderr}", out.status);
        stdout
    }

    /// Starts the binary and kills it after a random part of `usual`. Returns whether the kill came in time.
    fn kill(&mut self, args: &[&str], usual: Duration) -> bool {
        let wait = usual.mul_f64(self.random.f64() * 1.1);
        let mut child = self.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let until = Instant::now() + wait;
        // The instant itself is what is random here: there is no condition to wait for.
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        let early = child.try_wait().unwrap().is_none();
        child.kill().unwrap();
        child.wait().unwrap();
        early
    }

    fn good(&self) -> BTreeSet<String> {
        let listed = self.ok(&["list", "--all", "--json"]);
        let entries = listed.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        let good = entries.filter(|e| e["event"] == "backup" && e["state"] == "good");
        good.map(|e| e["id"].as_str().unwrap().to_owned()).collect()
    }

    fn timed(&self, args: &[&str]) -> Duration {
        let start = Instant::now();
        self.ok(args);
        start.elapsed()
    }
}

/// Contents of a tree, by path.
fn tree(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut out = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(at) = todo.pop() {
        for entry in std::fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else {
                let mut hash = std::collections::hash_map::DefaultHasher::new();
                std::hash::Hash::hash(&std::fs::read(&path).unwrap(), &mut hash);
                out.push((path.strip_prefix(dir).unwrap().to_owned(), std::hash::Hasher::finish(&hash)));
            }
        }
    }
    out.sort();
    out
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

#[test]
#[ignore = "long: 200 kills of the real binary"]
fn runs_killed_at_any_instant_leave_nothing_that_lies() {
    let mut host = Host::new();
    host.fill(0);
    host.ok(&["init"]);
    let usual = host.timed(&["run", "often"]);
    let mut early = 0;
    for n in 1..=200 {
        host.fill(n);
        early += usize::from(host.kill(&["run", "often"], usual));
        let good = host.good();
        for service in ["data", "env", "db"] {
            assert!(
                good.iter().any(|id| id.starts_with(&format!("{service}/"))),
                "kill {n}: no good {service}"
            );
        }
        if n % 10 == 0 {
            // The next run needs no help, and what is listed as good is good.
            host.ok(&["run", "often"]);
            host.ok(&["verify", "--all", "--level", "content"]);
        }
    }
    assert!(early > 120, "only {early} of 200 kills came before the end");
    host.ok(&["run", "often"]);
    host.ok(&["verify", "--all", "--level", "restore"]);
    let swept = host.ok(&["list", "--all", "--json"]);
    assert!(!swept.contains("\"incomplete\""), "{swept}");
    // A kill during a reservation leaves what no backup owns: it goes when it is a week old.
    let mut age = Command::new("find");
    age.arg(host.path("store")).args(["-exec", "touch", "-d", "8 days ago", "{}", "+"]);
    assert!(age.status().unwrap().success());
    host.ok(&["run", "often"]);
    for service in ["data", "env", "db"] {
        let root = host.path(&format!("store/{service}"));
        let partial = tree(&root).into_iter().map(|(p, _)| p).find(|p| p.to_string_lossy().contains(".tmp-"));
        assert_eq!(partial, None, "partial writes are swept");
    }
    let runs: Vec<_> =
        std::fs::read_dir(host.path("state/runs")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(runs.is_empty(), "what dead runs left is reclaimed: {runs:?}");
}

#[test]
#[ignore = "long: 60 kills of the real binary"]
fn restores_killed_at_any_instant_leave_the_old_or_the_new_data() {
    let mut host = Host::new();
    host.fill(0);
    host.ok(&["init"]);
    host.ok(&["run", "often"]);
    let old = tree(&host.path("data"));
    host.fill(1);
    let new = tree(&host.path("data"));
    let pristine = host.path("pristine");
    copy(&host.path("data"), &pristine);
    let restore = ["restore", "data", "--yes", "--force"];
    let usual = host.timed(&restore);
    host.ok(&["undo", "data", "--yes"]);
    let mut seen = [0, 0];
    for n in 0..60 {
        host.kill(&restore, usual);
        let live = tree(&host.path("data"));
        assert!(live == old || live == new, "kill {n}: neither the old nor the new data is live");
        seen[usize::from(live == old)] += 1;
        match n % 3 {
            0 => drop(host.ok(&restore)),
            1 => drop(host.ok(&["cleanup", "--yes"])),
            _ => {
                // A capture is refused while it is not certain which data is live, and only then.
                let run = host.command(&["run", "often"]).output().unwrap();
                let told = String::from_utf8_lossy(&run.stderr);
                assert!(run.status.success() || told.contains("interrupted while it went live"), "{told}");
            }
        }
        host.ok(&["cleanup", "--yes"]);
        std::fs::remove_dir_all(host.path("data")).unwrap();
        copy(&pristine, &host.path("data"));
    }
    assert!(seen[0] > 0, "no kill came before the switch: {seen:?}");
    host.ok(&["cleanup", "--yes"]);
    let left: Vec<_> = std::fs::read_dir(host.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    let odd = left
        .iter()
        .find(|n| n.to_string_lossy().contains(".restore-") || n.to_string_lossy().contains(".backup."));
    assert_eq!(odd, None, "nothing is left beside the target");
}

#[test]
#[ignore = "long: 40 kills of the real binary"]
fn recoveries_killed_at_any_instant_are_completed_by_the_next() {
    let mut host = Host::new();
    host.fill(0);
    host.ok(&["init"]);
    host.ok(&["run", "often"]);
    let (wanted, env) = (tree(&host.path("data")), tree(&host.path("conf")));
    let lose = |host: &Host| {
        std::fs::remove_dir_all(host.path("data")).unwrap();
        std::fs::remove_file(host.path("conf/.env")).unwrap();
        std::fs::remove_file(host.path("db/app.sqlite")).unwrap();
    };
    let recover = ["recover", "--yes"];
    // The first one takes longer: it fills caches.
    let times = [(); 3].map(|()| {
        lose(&host);
        host.timed(&recover)
    });
    let usual = times.into_iter().min().unwrap();
    let mut early = 0;
    for n in 1..=40 {
        lose(&host);
        early += usize::from(host.kill(&recover, usual));
        let next = host.command(&recover).output().unwrap();
        let told = String::from_utf8_lossy(&next.stderr).into_owned();
        // 4: it was killed when all was done.
        assert!(matches!(next.status.code(), Some(0 | 4)), "kill {n}: {told}");
        assert_eq!(tree(&host.path("data")), wanted, "kill {n}");
        assert_eq!(tree(&host.path("conf")), env, "kill {n}");
        let rows =
            Command::new("sqlite3").arg(host.path("db/app.sqlite")).arg("SELECT count(*) FROM t").output();
        assert_eq!(String::from_utf8_lossy(&rows.unwrap().stdout).trim(), "20000", "kill {n}");
        if n % 10 == 0 {
            host.ok(&["run", "often"]);
        }
        host.ok(&["cleanup", "--yes"]);
    }
    assert!(early > 10, "only {early} of 40 kills came before the end");
}
