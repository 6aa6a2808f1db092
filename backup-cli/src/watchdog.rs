//! [`OwnWatchdog`]: this program once more, as a process that outlives the one that interrupts a service.
//!
//! What has to be survived: SIGKILL of the run; the end of its terminal; and, under systemd, the end of its unit, with
//! which every process of the unit's control group is killed. So the watchdog gets a session of its own, and under systemd
//! a scope of its own. A scope, not a transient service: its process is our child, and gets our environment and with it the
//! secrets; what is set for a service can be read by every user of the host.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backup_core::runtime::{InterruptionEntry, Watchdog};
use backup_core::state::{FileJournal, StateDir};
use backup_core::{AdapterError, AdapterErrorKind};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::args::Global;
use crate::ui::Ui;

/// How long a watchdog may take to say that it runs.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often that is looked for.
const POLL: Duration = Duration::from_millis(5);

/// There is such a folder if and only if systemd is the system's manager: sd_booted(3).
const SYSTEMD: &str = "/run/systemd/system";

/// Watches by another process of this program.
#[derive(Debug)]
pub(crate) struct OwnWatchdog {
    config: PathBuf,
    journal: FileJournal,
    log: PathBuf,
    wait: Duration,
    ui: Arc<Ui>,
    /// Whether systemd runs.
    systemd: bool,
    /// This program, if it is not this process's.
    program: Option<PathBuf>,
    systemd_run: PathBuf,
}

impl OwnWatchdog {
    /// For runs over `config`, an absolute path.
    pub(crate) fn new(config: PathBuf, state: &StateDir, global: &Global, ui: Arc<Ui>) -> Self {
        Self {
            config,
            journal: state.interruptions(),
            log: state.root().join("watchdog.log"),
            wait: global.wait,
            ui,
            systemd: Path::new(SYSTEMD).is_dir(),
            program: None,
            systemd_run: "systemd-run".into(),
        }
    }

    /// What is to be run.
    fn argv(&self, entry: &InterruptionEntry, after: Duration) -> Result<Vec<OsString>, AdapterError> {
        let program = match &self.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().map_err(|e| AdapterError::io("cannot find this program", e))?,
        };
        // Whole milliseconds: what is shorter is not worth its words.
        let after = Duration::from_millis(u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
        let time = |t: Duration| humantime::format_duration(t).to_string().into();
        Ok(vec![
            program.into(),
            "watchdog".into(),
            "--entry".into(),
            entry.id.clone().into(),
            "--after".into(),
            time(after),
            "--wait".into(),
            time(self.wait),
            "--config".into(),
            self.config.clone().into(),
        ])
    }

    fn log(&self) -> Stdio {
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.log);
        log.map_or_else(|_| Stdio::null(), Stdio::from)
    }

    async fn start(&self, argv: &[OsString], entry: &InterruptionEntry) -> Result<(), AdapterError> {
        let (program, args) = argv.split_first().ok_or_else(|| failed("it has no name"))?;
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.log())
            .spawn()
            .map_err(|e| failed(format!("`{}` cannot be run", program.display())).with_source(e))?;
        let until = Instant::now() + PATIENCE;
        let armed = self.journal.armed(&entry.id);
        while !armed.exists() {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(failed(format!("it ended with {status}; see `{}`", self.log.display())));
            }
            if Instant::now() >= until {
                end(&mut child).await;
                return Err(failed(format!("it did not answer within {} s", PATIENCE.as_secs())));
            }
            sleep(POLL).await;
        }
        Ok(())
    }
}

/// A watchdog that nobody waits for any more must not wake up later.
async fn end(child: &mut Child) {
    if let Err(error) = child.kill().await {
        tracing::debug!(%error, "A watchdog could not be ended.");
    }
}

fn failed(why: impl std::fmt::Display) -> AdapterError {
    AdapterError::new(
        AdapterErrorKind::Unavailable,
        format!("no watchdog for the service can be started: {why}"),
    )
}

impl OwnWatchdog {
    /// `argv` in a scope of its own.
    fn in_scope(&self, argv: &[OsString], entry: &InterruptionEntry) -> Vec<OsString> {
        let unit = format!("--unit=backup-watchdog-{}", entry.id);
        let mut scope = vec![self.systemd_run.clone().into()];
        if !rustix::process::geteuid().is_root() {
            scope.push("--user".into());
        }
        scope.extend(["--scope", "--collect", "--quiet", &unit, "--"].map(OsString::from));
        scope.extend_from_slice(argv);
        scope
    }
}

#[async_trait]
impl Watchdog for OwnWatchdog {
    async fn arm(&self, entry: &InterruptionEntry, after: Duration) -> Result<(), AdapterError> {
        let argv = self.argv(entry, after)?;
        if self.systemd {
            match self.start(&self.in_scope(&argv, entry), entry).await {
                Ok(()) => return Ok(()),
                Err(e) => self.ui.warn(&format!(
                    "{}: without a systemd scope the watchdog is one process of this unit, and ends with it",
                    backup_core::chain(&e)
                )),
            }
        }
        self.start(&argv, entry).await
    }

    /// It sees by itself that the entry is gone.
    async fn disarm(&self, _: &InterruptionEntry) -> Result<(), AdapterError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backup_core::runtime::{InterruptionJournal as _, InterruptionKind};

    /// A journal with one entry, and stand-ins for this program and for systemd-run.
    fn world(dir: &Path, systemd_run: &str) -> (OwnWatchdog, InterruptionEntry) {
        let state = StateDir::open(dir.join("state")).unwrap();
        let entry = InterruptionEntry {
            id: "e1".into(),
            service: "redis".parse().unwrap(),
            run_id: "20260101_000000-abcdef01".parse().unwrap(),
            kind: InterruptionKind::Pause,
            place: state.interruptions().place(),
            instance: "c1".into(),
            began_at: chrono::DateTime::UNIX_EPOCH,
            until: None,
        };
        // Links: a file that was just written may be busy when another test's child is made.
        let stand_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/watchdog/stand-in");
        for name in ["backup", "systemd-run", "broken"] {
            std::os::unix::fs::symlink(&stand_in, dir.join(name)).unwrap();
        }
        let watchdog = OwnWatchdog {
            config: "/etc/backup/backup.toml".into(),
            journal: state.interruptions(),
            log: dir.join("log"),
            wait: Duration::from_secs(300),
            ui: Arc::new(Ui::new(crate::ui::Wishes::default())),
            systemd: true,
            program: Some(dir.join("backup")),
            systemd_run: dir.join(systemd_run),
        };
        (watchdog, entry)
    }

    fn called(dir: &Path, name: &str) -> String {
        std::fs::read_to_string(dir.join(format!("{name}.args"))).unwrap_or_default()
    }

    #[tokio::test]
    async fn under_systemd_it_gets_a_scope_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (watchdog, entry) = world(dir.path(), "systemd-run");
        watchdog.journal.write(&entry).await.unwrap();
        watchdog.arm(&entry, Duration::from_millis(90_500)).await.unwrap();
        let user = if rustix::process::geteuid().is_root() { "" } else { "--user " };
        let argv = "watchdog --entry e1 --after 1m 30s 500ms --wait 5m --config /etc/backup/backup.toml\n";
        let program = dir.path().join("backup");
        let scope =
            format!("{user}--scope --collect --quiet --unit=backup-watchdog-e1 -- {} ", program.display());
        assert_eq!(called(dir.path(), "systemd-run"), scope + argv);
        assert_eq!(called(dir.path(), "backup"), argv);
    }

    #[tokio::test]
    async fn without_a_scope_it_starts_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (watchdog, entry) = world(dir.path(), "broken");
        watchdog.journal.write(&entry).await.unwrap();
        watchdog.arm(&entry, Duration::from_secs(60)).await.unwrap();
        assert!(
            called(dir.path(), "broken").contains("--scope") && called(dir.path(), "systemd-run").is_empty()
        );
        assert!(called(dir.path(), "backup").starts_with("watchdog --entry e1 --after 1m "));
    }

    #[tokio::test]
    async fn one_that_does_not_start_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (mut watchdog, entry) = world(dir.path(), "broken");
        watchdog.program = Some(dir.path().join("broken"));
        let error = watchdog.arm(&entry, Duration::from_secs(60)).await.unwrap_err();
        assert_eq!(error.kind(), AdapterErrorKind::Unavailable);
        assert!(error.to_string().contains("exit status: 7"), "{error}");
        watchdog.program = Some(dir.path().join("missing"));
        assert!(watchdog.arm(&entry, Duration::from_secs(60)).await.is_err());
    }
}
