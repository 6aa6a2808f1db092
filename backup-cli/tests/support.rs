//! A directory of its own for each test, and the binary in it.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

/// The moment at which every test takes place.
pub(crate) const NOW: &str = "2026-03-09T04:38:20Z";
/// How it looks in a backup's name.
pub(crate) const FIRST: &str = "20260309_043820";
/// The next backup of the same series.
pub(crate) const SECOND: &str = "20260309_043821";

/// Where no Docker engine listens.
pub(crate) const NO_ENGINE: &str = "unix:///nonexistent/docker.sock";

/// A configuration of one service, `data`, and nothing else.
pub(crate) const CONFIG: &str = r#"
state_dir = "state"
backup_configuration = false
[store]
url = "store"
[intervals.hourly]
services = ["data"]
keep = 2
[services.data]
kind = "files"
paths = ["data"]
max_age = "2h"
"#;

/// A configuration of two services, of which `data` comes after `env`.
pub(crate) const TWO: &str = "\
state_dir = 'state'
store.url = 'store'
[intervals.hourly]
services = ['data', 'env']
keep = 5
[services.data]
kind = 'files'
paths = ['data']
after = ['env']
rto = '1min'
max_age = '2h'
[services.env]
kind = 'env'
paths = ['.env']
";

pub(crate) struct World {
    dir: TempDir,
}

/// What a call of the binary gave.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl World {
    /// An empty directory `work` beside an empty home.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["home", "work"] {
            std::fs::create_dir(dir.path().join(sub)).unwrap();
        }
        Self { dir }
    }

    /// With [`CONFIG`], `data/a.txt`, `data/sub/b.txt`, and a marked store.
    pub(crate) fn configured() -> Self {
        let world = Self::new();
        world.write("backup.toml", CONFIG);
        world.fill();
        world.ok(&["init"]);
        world
    }

    /// With [`TWO`], both backed up; `.env` says `dotenv`.
    pub(crate) fn backed_up(dotenv: &str) -> Self {
        let world = Self::new();
        world.write("backup.toml", TWO);
        world.write(".env", dotenv);
        world.fill();
        world.ok(&["init"]);
        world.ok(&["run", "hourly"]);
        world
    }

    pub(crate) fn fill(&self) {
        self.write("data/a.txt", "alpha\n");
        self.write("data/sub/b.txt", "beta\n");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("work").join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// The binary, without this process's environment.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("backup"));
        command
            .args(args)
            .env_clear()
            .env("HOME", self.dir.path().join("home"))
            .env("BACKUP_TEST_NOW", NOW)
            // What runs on this machine is not the test's business.
            .env("DOCKER_HOST", NO_ENGINE)
            .current_dir(self.path(""))
            .stdin(std::process::Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        ran(&mut self.command(args))
    }

    /// The same some time later, e.g. `2026-03-10T00:00:00Z`.
    pub(crate) fn run_at(&self, now: &str, args: &[&str]) -> Ran {
        ran(self.command(args).env("BACKUP_TEST_NOW", now))
    }

    /// Runs what must go well.
    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> Ran {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "{args:?}: {ran:#?}");
        ran
    }

    /// The names of the backups that are listed as good.
    pub(crate) fn good(&self) -> Vec<String> {
        let lines = self.ok(&["list", "--json"]).lines();
        let good = lines.iter().filter(|l| l["event"] == "backup" && l["state"] == "good");
        good.map(|l| l["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Flips one byte in the middle of a file.
    pub(crate) fn damage(&self, path: &Path) {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        std::fs::write(path, bytes).unwrap();
    }
}

pub(crate) fn ran(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Ran {
    /// Standard output as JSON lines.
    #[track_caller]
    pub(crate) fn lines(&self) -> Vec<Value> {
        let parse = |l: &str| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"));
        self.out.lines().map(parse).collect()
    }

    /// The last JSON line, which must be the summary.
    #[track_caller]
    pub(crate) fn summary(&self) -> Value {
        let last = self.lines().pop().unwrap_or_else(|| panic!("nothing on standard output: {self:#?}"));
        assert_eq!(last["event"], "summary", "{self:#?}");
        assert_eq!(last["exit_code"], self.code, "{self:#?}");
        last
    }

    /// A failure with `code`: one line that says `error: …`, and hints.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, error: &str) -> &Self {
        assert_eq!(self.code, code, "{self:#?}");
        let errors: Vec<&str> = self.err.lines().filter(|l| l.starts_with("error: ")).collect();
        assert!(matches!(errors.as_slice(), [one] if one.contains(error)), "{error}: {self:#?}");
        self
    }

    #[track_caller]
    pub(crate) fn hints(&self, hint: &str) -> &Self {
        assert!(self.err.lines().any(|l| l.starts_with("hint: ") && l.contains(hint)), "{hint}: {self:#?}");
        self
    }
}

/// Every path below `root` with its contents (`None` for a directory), sorted.
pub(crate) fn tree(root: &Path) -> Vec<(String, Option<Vec<u8>>)> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = entry.path().strip_prefix(root).unwrap().display().to_string();
            if entry.file_type().unwrap().is_dir() {
                found.push((name, None));
                todo.push(entry.path());
            } else {
                found.push((name, Some(std::fs::read(entry.path()).unwrap())));
            }
        }
    }
    found.sort();
    found
}

/// The directory below `root` that ends in `name`.
pub(crate) fn find(root: &Path, name: &str) -> PathBuf {
    let all: Vec<String> = tree(root).into_iter().map(|(path, _)| path).collect();
    let found = all.iter().map(|path| root.join(path)).find(|path| path.ends_with(name));
    found.unwrap_or_else(|| panic!("no `{name}` in {all:?}"))
}
