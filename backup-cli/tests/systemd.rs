//! A host with systemd, in a container: runs and their units die in the middle of an interruption, and the host restarts.
//!
//! The units are those of docs/watchdog.md.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const IMAGE: &str = "backup-test/systemd:12";

/// The longest wait for something that should come at once.
const SOON: Duration = Duration::from_secs(60);

/// A Redis that, while `/hold/stop` or `/hold/start` is there, is slow to do so.
const REDIS: &str = r#"
[Service]
ExecStartPre=/bin/sh -c 'while [ -e /hold/start ]; do sleep 0.05; done'
ExecStart=/usr/bin/redis-server --dir /var/lib/redis --appendonly yes --save 3600 1
ExecStop=/bin/sh -c 'while [ -e /hold/stop ]; do sleep 0.05; done'
TimeoutStartSec=300
TimeoutStopSec=300
"#;

const CONFIG: &str = r#"
state_dir = "/var/lib/backup"
[store]
url = "/srv/backups"
[services.redis]
kind = "redis"
host = "127.0.0.1"
unit = "cache.service"
restore = "file"
"#;

struct Host(String);

impl Drop for Host {
    fn drop(&mut self) {
        Command::new("docker").args(["rm", "-fv", &self.0]).output().unwrap();
    }
}

impl Host {
    /// One on which `old` was backed up, and `new` is what Redis holds.
    fn new(name: &str) -> Self {
        let host = Self(format!("backup-test-{}-{name}", std::process::id()));
        let label = format!("backup-test={}", std::process::id());
        let program = assert_cmd::cargo::cargo_bin!("backup");
        let bin = format!("{}:/opt/backup:ro", program.parent().unwrap().display());
        // What systemd needs where a container may not have every right: its own control groups to write to.
        let options = [
            "--cap-add=SYS_ADMIN",
            "--security-opt=seccomp=unconfined",
            "--security-opt=apparmor=unconfined",
            "--cgroupns=host",
            "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw",
            "--tmpfs=/run",
            "--tmpfs=/tmp",
        ];
        let own = ["run", "-d", "--name", &host.0, "--label", &label, "-v", &bin];
        let started = docker(&[&own[..], &options, &[IMAGE]].concat());
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        host.booted();
        host.sh("ln -s /opt/backup/backup /usr/local/bin/backup && mkdir -p /etc/backup /srv/backups /hold");
        host.write("/etc/backup/backup.toml", CONFIG);
        host.write("/etc/systemd/system/cache.service", REDIS);
        for unit in ["backup@.service", "backup-resume.service"] {
            host.write(&format!("/etc/systemd/system/{unit}"), &documented(unit));
        }
        host.sh("systemctl daemon-reload && systemctl start cache && systemctl enable --quiet backup-resume");
        host.until("redis answers", "redis-cli PING | grep -q PONG");
        host.sh("redis-cli EVAL \"for i = 1, 20000 do redis.call('SET', 'old:' .. i, i) end\" 0 && backup init && systemctl start backup@manual");
        host.sh("redis-cli FLUSHALL && redis-cli EVAL \"for i = 1, 15000 do redis.call('SET', 'new:' .. i, i) end\" 0");
        host
    }

    fn booted(&self) {
        self.until("the host has started", "systemctl is-system-running | grep -Eq 'running|degraded'");
    }

    fn exec(&self, script: &str) -> Output {
        docker(&["exec", &self.0, "bash", "-c", script])
    }

    #[track_caller]
    fn sh(&self, script: &str) -> String {
        let done = self.exec(script);
        let [out, err] = [&done.stdout, &done.stderr].map(|s| String::from_utf8_lossy(s).into_owned());
        assert!(done.status.success(), "{script}: {out}{err}\n{}", self.journal());
        out.trim().to_owned()
    }

    fn write(&self, path: &str, text: &str) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), text).unwrap();
        let from = dir.path().join("file").display().to_string();
        assert!(docker(&["cp", &from, &format!("{}:{path}", self.0)]).status.success());
    }

    #[track_caller]
    fn until(&self, what: &str, script: &str) {
        let start = Instant::now();
        while !self.exec(script).status.success() {
            assert!(start.elapsed() < SOON, "{what}: not within {SOON:?}\n{}", self.journal());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn journal(&self) -> String {
        let script = "journalctl --no-pager -o cat | tail -n 40; cat /var/lib/backup/watchdog.log";
        String::from_utf8_lossy(&self.exec(script).stdout).into_owned()
    }

    /// Starts a restore in a unit of its own and waits until it is held where `/hold/<what>` holds it.
    fn held_restore(&self, what: &str) {
        self.sh(&format!("touch /hold/{what}"));
        let restore = "backup restore redis --yes";
        self.sh(&format!("systemd-run --quiet --unit=restore /bin/sh -c 'exec {restore}'"));
        let state = if what == "stop" { "deactivating" } else { "activating" };
        self.until("redis is held", &format!("systemctl is-active cache | grep -qx {state}"));
        self.until("a watchdog", "systemctl is-active --quiet 'backup-watchdog-*.scope'");
    }

    /// Redis answers with all of the old or all of the new data, and nothing is left to do.
    fn well(&self) {
        self.until("redis is back", "redis-cli PING | grep -q PONG");
        self.until("the interruption is over", "! ls /var/lib/backup/interruptions/*.json");
        let keys = self.sh("redis-cli DBSIZE");
        assert!(["20000", "15000"].contains(&keys.as_str()), "{keys} keys\n{}", self.journal());
        // A write is taken; the next restore needs no help, and gives all of it, also after a restart.
        self.sh("redis-cli SET probe x | grep -q OK && backup restore redis --yes");
        for _ in 0..2 {
            assert_eq!(self.sh("redis-cli DBSIZE"), "20000");
            self.sh("systemctl restart cache");
            self.until("redis answers", "redis-cli PING | grep -q PONG");
        }
        self.until("no watchdog is left", "! systemctl is-active --quiet 'backup-watchdog-*.scope'");
    }
}

fn docker(args: &[&str]) -> Output {
    Command::new("timeout").args(["-k", "5", "120", "docker"]).args(args).output().unwrap()
}

/// A unit of docs/watchdog.md.
fn documented(unit: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/watchdog.md");
    let text = std::fs::read_to_string(file).unwrap();
    let (_, block) = text.split_once(&format!("```ini\n# /etc/systemd/system/{unit}\n")).unwrap();
    block.split_once("```").unwrap().0.to_owned()
}

#[test]
#[ignore = "needs Docker"]
fn a_restore_whose_unit_is_killed_is_made_good_by_its_watchdog() {
    for held in ["stop", "start"] {
        let host = Host::new(&format!("killed-{held}"));
        host.held_restore(held);
        host.sh("systemctl kill --signal=KILL --kill-who=all restore");
        host.until("the run is dead", "! systemctl is-active --quiet restore");
        host.until("the watchdog outlives it", "grep -q 'its run is dead' /var/lib/backup/watchdog.log");
        host.sh("rm /hold/*");
        host.well();
    }
}

#[test]
#[ignore = "needs Docker"]
fn a_restore_whose_unit_is_stopped_leaves_the_service_running() {
    let host = Host::new("stopped");
    host.held_restore("stop");
    host.sh("systemctl stop --no-block restore && sleep 0.2 && rm /hold/*");
    host.until("the run has ended", "! systemctl is-active --quiet restore");
    host.well();
}

#[test]
#[ignore = "needs Docker"]
fn what_dies_with_its_watchdog_comes_back_when_the_host_starts() {
    for held in ["stop", "start"] {
        let host = Host::new(&format!("restarted-{held}"));
        host.held_restore(held);
        host.sh("systemctl kill --signal=KILL --kill-who=all restore 'backup-watchdog-*.scope'; rm /hold/*");
        // Nothing starts it but the unit of the documentation.
        assert!(docker(&["restart", "-t", "20", &host.0]).status.success());
        host.booted();
        host.well();
        host.sh("systemctl show -P Result backup-resume | grep -qx success");
    }
}

#[test]
#[ignore = "needs Docker"]
fn the_documented_units_are_valid() {
    let host = Host::new("units");
    let said = host.sh(
        "cd /etc/systemd/system && systemd-analyze verify backup@manual.service backup-resume.service 2>&1",
    );
    assert_eq!(said, "");
    // The fallback where no scope can be made.
    host.sh("systemctl start backup@manual && systemctl show -P Result backup@manual | grep -qx success");
}
