//! [`ServiceRuntime`]: how a service is run (a container, a process, a systemd unit), and [`Interruption`], the only way
//! to stop or pause one.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::error::AdapterError;
use crate::metadata::Image;
use crate::secret::Secret;
use crate::source::ByteStream;

mod interruption;
mod patience;

pub use interruption::{
    Announced, Interruption, InterruptionContext, InterruptionEntry, InterruptionJournal, InterruptionKind,
    NoWatchdog, Place, Replay, Watchdog,
};
pub use patience::Patience;

/// How one service is run on this host.
///
/// # Contract
/// Implemented for Docker, for plain processes and for systemd units; called by adapters and by [`Interruption`].
///
/// * `stop`, `pause`, `start` and `unpause` are for [`Interruption`] alone: nobody else may leave a service down.
/// * All four are **idempotent**: what is already as asked is success. They return once the state is reached.
/// * Every call ends: within its own timeout where it takes one, else within a limit of the implementation's, with
///   `Timeout`. A dropped call may or may not take effect.
/// * Errors: `NotFound` (no such service), `Unavailable` (the engine does not answer), `PermissionDenied`, `Conflict`
///   (the state does not allow it), `Unsupported`.
/// * Secrets appear in no argument list, error or `Debug`.
#[async_trait]
pub trait ServiceRuntime: fmt::Debug + Send + Sync + 'static {
    /// What the service is and does at this moment. Changes nothing.
    async fn inspect(&self) -> Result<Inspection, AdapterError>;

    /// Starts the service. Does not wait until it answers.
    async fn start(&self) -> Result<(), AdapterError>;

    /// Asks the service to end, and kills it once `grace` has passed (whole seconds, rounded up).
    ///
    /// The exit status is that of this stop, or of the last run if it was stopped already. [`ExitStatus::killed`] says
    /// that the data on disk is what a crash leaves.
    async fn stop(&self, grace: Duration) -> Result<ExitStatus, AdapterError>;

    /// Freezes every process of the service.
    async fn pause(&self) -> Result<(), AdapterError>;

    /// Lets a frozen service go on.
    async fn unpause(&self) -> Result<(), AdapterError>;

    /// Runs a program beside the service, in its name spaces.
    ///
    /// The output **cannot be lost**: however slowly it is read, each byte arrives or the stream yields an error (Docker's
    /// exec drops what is not read within 2 s of the program's end, and reports success; an implementation has to keep
    /// the program alive until everything is read). Standard output is never mixed with standard error.
    ///
    /// # Errors
    /// `Conflict` while the service is paused or stopped, if programs need it to run (in a container they do; on the host
    /// they do not). What goes wrong later arrives in the stream.
    async fn exec(&self, command: ExecCommand) -> Result<Execution, AdapterError>;

    /// Where a path of the service lies on this host; `None` if it cannot be reached from here. See
    /// [`Inspection::host_path`].
    async fn volume_path(&self, inside: &Path) -> Result<Option<PathBuf>, AdapterError>;

    /// What shows from outside that the service is alive, for [`Patience`]. Changes nothing.
    async fn signs(&self) -> Result<Signs, AdapterError> {
        Ok(Signs { state: self.inspect().await?.state, started: None, last_lines: Vec::new() })
    }
}

/// What shows from outside whether a service is alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signs {
    /// Whether it runs.
    pub state: RunState,
    /// When it was started last, in the engine's words; `None` where the engine does not tell. Another one each time that it
    /// is started.
    pub started: Option<String>,
    /// The last lines that it has written, the newest last; empty if they are not to be had.
    pub last_lines: Vec<String>,
}

/// Whether a service runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RunState {
    /// It runs.
    Running,
    /// It is frozen.
    Paused,
    /// It was told to end and has not done so yet. Not every engine tells it apart from `Running`.
    Stopping,
    /// It does not run.
    Stopped,
}

/// What a service is and does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// The one incarnation that was looked at, e.g. the full container id: changes when the service is made anew, not
    /// when it is restarted.
    pub instance: String,
    /// Whether it runs.
    pub state: RunState,
    /// Its container image with the digest.
    pub image: Option<Image>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What is mounted into it.
    pub mounts: Vec<Mount>,
}

impl Inspection {
    /// Where `inside`, an absolute path of the service, lies on this host, by the innermost mount that holds it. `None` if
    /// none does, if that one cannot be reached, or if the path climbs (`..`).
    #[must_use]
    pub fn host_path(&self, inside: &Path) -> Option<PathBuf> {
        if inside.components().any(|c| c == Component::ParentDir) {
            return None;
        }
        let innermost = self
            .mounts
            .iter()
            .filter(|m| inside.starts_with(&m.inside))
            .max_by_key(|m| m.inside.components().count())?;
        let below = inside.strip_prefix(&innermost.inside).ok()?;
        // `join("")` would add a slash, which makes no sense for a mounted file.
        let host = innermost.host.as_ref()?;
        Some(if below.as_os_str().is_empty() { host.clone() } else { host.join(below) })
    }
}

/// Something mounted into a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its absolute path for the service.
    pub inside: PathBuf,
    /// Its path on this host, if it can be reached from here.
    pub host: Option<PathBuf>,
    /// Whether the service may not write to it.
    pub read_only: bool,
}

/// How a program or a service ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    /// Its exit code; 128 + n if signal n ended it; `None` if that is not known.
    pub code: Option<i64>,
    /// It had to be killed: what it wrote may be incomplete.
    pub killed: bool,
}

/// A program to run beside a service.
#[non_exhaustive]
pub struct ExecCommand {
    /// The program and its arguments, as they are: no shell.
    pub argv: Vec<String>,
    /// Variables added to its environment: the way for secrets.
    pub env: Vec<(String, Secret)>,
    /// Its standard input; empty if `None`.
    pub stdin: Option<ByteStream<AdapterError>>,
    /// The user to run as, if not that of the service.
    pub user: Option<String>,
    /// When it is killed, and its output ends in `Timeout`.
    pub deadline: Option<Instant>,
    /// Exit codes that are a success; `[0]` unless set.
    pub accept: Vec<i64>,
}

impl ExecCommand {
    /// Runs `argv`.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            stdin: None,
            user: None,
            deadline: None,
            accept: vec![0],
        }
    }

    /// Adds a variable.
    #[must_use]
    pub fn with_env(mut self, name: impl Into<String>, value: Secret) -> Self {
        self.env.push((name.into(), value));
        self
    }

    /// Sets the standard input.
    #[must_use]
    pub fn with_stdin(mut self, stdin: ByteStream<AdapterError>) -> Self {
        self.stdin = Some(stdin);
        self
    }

    /// Sets when the program is killed.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Option<Instant>) -> Self {
        self.deadline = deadline;
        self
    }
}

impl fmt::Debug for ExecCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecCommand").field("argv", &self.argv).finish_non_exhaustive()
    }
}

/// A program that runs. Dropped, it is killed.
pub struct Execution {
    /// Its standard output. **Ends with `None` only once the exit status is known and accepted** and every byte was
    /// delivered; otherwise with an error that holds the exit status and the last lines of standard error.
    pub stdout: ByteStream<AdapterError>,
    /// How it ended. Resolves once the program has ended, which it does only after `stdout` was read or dropped.
    pub outcome: BoxFuture<'static, Result<ExecOutcome, AdapterError>>,
}

impl fmt::Debug for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Execution").finish_non_exhaustive()
    }
}

/// How an [`Execution`] ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutcome {
    /// Its exit status, whether accepted or not.
    pub status: ExitStatus,
    /// The last 64 KiB of standard error.
    pub stderr_tail: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_decides() {
        let mount = |inside: &str, host: Option<&str>| Mount {
            inside: inside.into(),
            host: host.map(Into::into),
            read_only: false,
        };
        let service = Inspection {
            instance: "c1".into(),
            state: RunState::Running,
            image: None,
            labels: BTreeMap::new(),
            mounts: vec![
                mount("/data", Some("/volumes/d")),
                mount("/data/tx", None),
                mount("/etc/x.conf", Some("/h/x.conf")),
            ],
        };
        let host = |p: &str| service.host_path(Path::new(p)).map(|p| p.display().to_string());
        assert_eq!(host("/data/db/f").as_deref(), Some("/volumes/d/db/f"));
        assert_eq!(host("/etc/x.conf").as_deref(), Some("/h/x.conf"));
        for unreachable in ["/data/tx/log", "/database", "/", "/data/../etc/passwd"] {
            assert_eq!(host(unreachable), None, "{unreachable}");
        }
    }
}
