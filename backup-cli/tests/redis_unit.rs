//! A Redis that systemd runs on this host, restored by its files; systemd is a stand-in.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use super::redis::{Host, until};

/// A host whose server is a unit's.
struct Unit(Host);

impl Unit {
    fn new(settings: &str) -> Self {
        let mut host = Host::new(settings, "unit = 'redis-test.service'\nrestore = 'file'\n");
        host.stop_server();
        let stand_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/redis_unit/systemctl");
        std::os::unix::fs::symlink(stand_in, host.path("systemctl")).unwrap();
        let unit = Self(host);
        unit.systemctl("start");
        until("the unit", || unit.0.cli(&["PING"]) == "PONG");
        unit
    }

    fn systemctl(&self, verb: &str) {
        let mut command = Command::new(self.0.path("systemctl"));
        assert!(command.args([verb, "--", "redis-test.service"]).status().unwrap().success());
    }

    /// The binary, for which the stand-in is systemd.
    fn backup(&self, args: &[&str]) -> Command {
        let mut command = self.0.command(args);
        let mut path = self.0.path("").into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap());
        command.env("PATH", path);
        command
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) {
        let out = self.backup(args).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    }

    fn calls(&self) -> String {
        std::fs::read_to_string(self.0.path("calls")).unwrap_or_default().replace('\n', " ")
    }

    fn restart(&self) {
        self.systemctl("stop");
        until("its end", || self.0.cli(&["PING"]) != "PONG");
        until("the unit", || {
            self.systemctl("start");
            self.0.cli(&["PING"]) == "PONG"
        });
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        self.systemctl("kill");
    }
}

const BOTH: [&str; 2] = ["appendonly yes\n", "save 3600 1\n"];

#[test]
#[ignore = "needs redis-server"]
fn a_unit_is_restored_by_its_files() {
    for persistence in BOTH {
        let unit = Unit::new(persistence);
        let restored = unit.0.seed("backup", 1000);
        unit.ok(&["run", "often"]);
        let old = unit.0.seed("old", 300);
        unit.ok(&["restore", "redis", "--yes"]);
        assert_eq!(unit.0.digest(), restored, "{persistence}");
        assert_eq!(unit.calls(), "start stop start ");
        unit.restart();
        assert_eq!(unit.0.digest(), restored, "{persistence}, restarted");
        unit.ok(&["undo", "redis", "--yes"]);
        assert_eq!(unit.0.digest(), old, "{persistence}, undone");
        unit.restart();
        assert_eq!(unit.0.digest(), old, "{persistence}, undone and restarted");
    }
}

#[test]
#[ignore = "needs redis-server"]
fn a_unit_that_a_killed_restore_has_stopped_is_started_again() {
    for persistence in BOTH {
        for phase in ["stopping the server", "replacing its files", "starting the server"] {
            let what = format!("{persistence} in `{phase}`");
            let unit = Unit::new(persistence);
            let restored = unit.0.seed("backup", 1000);
            unit.ok(&["run", "often"]);
            let old = unit.0.seed("old", 300);
            let mut command = unit.backup(&["--json", "restore", "redis", "--yes"]);
            let mut run = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            let mut said = BufReader::new(run.stdout.take().unwrap()).lines();
            let reached = said.any(|l| l.unwrap().contains(&format!("\"phase\":\"{phase}\"")));
            run.kill().unwrap();
            run.wait().unwrap();
            assert!(reached, "{what}");
            let journal =
                || std::fs::read_dir(unit.0.path("state/interruptions")).into_iter().flatten().count();
            until("the watchdog to be done", || journal() == 0);
            until("the unit", || unit.0.cli(&["PING"]) == "PONG" && unit.0.info("loading") == "0");
            let found = unit.0.digest();
            assert!(found == old || found == restored, "{what}: {} keys", unit.0.cli(&["DBSIZE"]));
            // The next one ends what was begun.
            unit.ok(&["restore", "redis", "--yes"]);
            assert_eq!(unit.0.digest(), restored, "{what}");
        }
    }
}
