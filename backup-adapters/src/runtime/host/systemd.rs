//! Services that systemd runs, by way of `systemctl`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use backup_core::runtime::{ExecCommand, ExecOutcome, ExitStatus, Inspection, RunState};
use backup_core::{AdapterError, AdapterErrorKind, Secret};
use futures::TryStreamExt as _;
use tokio::time::{Instant, sleep};

use super::exec;

/// How long `systemctl` may take to answer a question.
const ANSWER: Duration = Duration::from_secs(20);

/// How long a change of state may take: less than what an interruption gives to bringing a service back.
const CHANGE: Duration = Duration::from_secs(240);

/// How long a killed unit may take to be gone.
const BURIAL: Duration = Duration::from_secs(30);

/// How often the state is asked for while a unit stops.
const POLL: Duration = Duration::from_millis(200);

const PROPERTIES: &str =
    "Id,LoadState,ActiveState,SubState,FreezerState,CanFreeze,Result,ExecMainCode,ExecMainStatus";

/// A systemd unit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unit<'a> {
    pub(super) name: &'a str,
    /// Where `systemctl` is looked for before the environment's folders.
    pub(super) path: &'a [PathBuf],
}

impl Unit<'_> {
    pub(super) async fn inspect(&self) -> Result<Inspection, AdapterError> {
        let shown = self.show().await?;
        Ok(Inspection {
            instance: shown.get("Id").to_owned(),
            state: shown.state(),
            image: None,
            labels: BTreeMap::new(),
            mounts: Vec::new(),
        })
    }

    pub(super) async fn start(&self) -> Result<(), AdapterError> {
        match self.show().await?.state() {
            RunState::Running => return Ok(()),
            RunState::Paused => return Err(self.conflict("start", "frozen")),
            // Of one that is about to end, systemd first sees the end.
            _ => {}
        }
        match self.ask(&["start"], CHANGE).await {
            // It is there, and not ready yet: a database that replays its log.
            Err(e)
                if e.kind() == AdapterErrorKind::Timeout
                    && self.show().await?.state() == RunState::Running =>
            {
                Ok(())
            }
            answer => answer.map(drop),
        }
    }

    pub(super) async fn stop(&self, grace: Duration) -> Result<ExitStatus, AdapterError> {
        let shown = self.show().await?;
        match shown.state() {
            RunState::Stopped => return Ok(shown.exit_status()),
            RunState::Paused => return Err(self.conflict("stop", "frozen")),
            _ => {}
        }
        self.ask(&["stop", "--no-block"], ANSWER).await?;
        if let Some(ended) = self.stopped_within(grace).await? {
            return Ok(ended);
        }
        self.ask(&["kill", "--signal=KILL"], ANSWER).await?;
        match self.stopped_within(BURIAL).await? {
            Some(ended) => Ok(ExitStatus { killed: true, ..ended }),
            None => {
                let what = format!("unit `{}` still runs after it was killed", self.name);
                Err(AdapterError::new(AdapterErrorKind::Timeout, what))
            }
        }
    }

    async fn stopped_within(&self, patience: Duration) -> Result<Option<ExitStatus>, AdapterError> {
        let until = Instant::now() + patience;
        loop {
            let shown = self.show().await?;
            if shown.state() == RunState::Stopped {
                return Ok(Some(shown.exit_status()));
            }
            if Instant::now() >= until {
                return Ok(None);
            }
            sleep(POLL.min(until - Instant::now())).await;
        }
    }

    pub(super) async fn pause(&self) -> Result<(), AdapterError> {
        let shown = self.show().await?;
        match shown.state() {
            RunState::Paused => return Ok(()),
            RunState::Stopping | RunState::Stopped => return Err(self.conflict("freeze", "stopped")),
            _ => {}
        }
        if shown.get("CanFreeze") == "no" {
            let what = format!("unit `{}` cannot be frozen: its control group has no freezer", self.name);
            return Err(AdapterError::unsupported(what));
        }
        self.ask(&["freeze"], CHANGE).await?;
        match self.show().await?.state() {
            RunState::Paused => Ok(()),
            _ => Err(self.conflict("freeze", "not frozen")),
        }
    }

    pub(super) async fn unpause(&self) -> Result<(), AdapterError> {
        match self.show().await?.state() {
            RunState::Running => Ok(()),
            RunState::Paused => self.ask(&["thaw"], CHANGE).await.map(drop),
            _ => Err(self.conflict("thaw", "stopped")),
        }
    }

    fn conflict(&self, verb: &str, state: &str) -> AdapterError {
        let what = format!("cannot {verb} unit `{}`: it is {state}", self.name);
        AdapterError::new(AdapterErrorKind::Conflict, what)
    }

    async fn show(&self) -> Result<Shown, AdapterError> {
        let text = self.ask(&["show", &format!("--property={PROPERTIES}")], ANSWER).await?;
        let shown = Shown(
            text.lines()
                .filter_map(|line| line.split_once('='))
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        );
        match shown.get("LoadState") {
            "not-found" => {
                let what = format!("systemd knows no unit `{}`", self.name);
                Err(AdapterError::new(AdapterErrorKind::NotFound, what))
            }
            "loaded" => Ok(shown),
            other => Err(self.conflict("use", if other.is_empty() { "in no known state" } else { other })),
        }
    }

    /// Asks `systemctl`; its answer.
    async fn ask(&self, verb: &[&str], limit: Duration) -> Result<String, AdapterError> {
        let argv = ["systemctl", "--no-ask-password", "--no-pager"].into_iter().chain(verb.iter().copied());
        let mut command = ExecCommand::new(argv.chain(["--", self.name]))
            // Its errors are told apart by their words.
            .with_env("LC_ALL", Secret::new("C"))
            .with_deadline(Some(Instant::now() + limit));
        command.accept = (0..=255).collect();
        let run = exec::run(command, self.path).await?;
        let answer = run.stdout.try_collect::<Vec<_>>().await?.concat();
        let ExecOutcome { status, stderr_tail } = run.outcome.await?;
        if status.code == Some(0) {
            return Ok(String::from_utf8_lossy(&answer).into_owned());
        }
        let verb = verb.first().copied().unwrap_or_default();
        let said = super::tail::last_lines(&stderr_tail);
        let what = format!("`systemctl {verb} {}` failed: {said}", self.name);
        Err(AdapterError::new(kind_of(&said), what))
    }
}

/// What the words of `systemctl` mean.
fn kind_of(said: &str) -> AdapterErrorKind {
    let said = said.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|w| said.contains(w));
    if says(&["access denied", "permission denied", "authentication required", "not permitted"]) {
        AdapterErrorKind::PermissionDenied
    } else if says(&["not found", "not loaded", "no such unit"]) {
        AdapterErrorKind::NotFound
    } else if says(&["not been booted with systemd", "connect to bus", "connection refused"]) {
        AdapterErrorKind::Unavailable
    } else if says(&["not support", "unknown command", "unknown operation"]) {
        AdapterErrorKind::Unsupported
    } else {
        AdapterErrorKind::Other
    }
}

/// The properties of a unit.
struct Shown(BTreeMap<String, String>);

impl Shown {
    fn get(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    fn state(&self) -> RunState {
        if self.get("FreezerState").starts_with("frozen") {
            return RunState::Paused;
        }
        match (self.get("ActiveState"), self.get("SubState")) {
            // It ended, and systemd waits before it starts it anew.
            ("inactive" | "failed", _) | ("activating", "auto-restart" | "auto-restart-queued") => {
                RunState::Stopped
            }
            ("deactivating", _) => RunState::Stopping,
            // Also while it starts: there may be processes.
            _ => RunState::Running,
        }
    }

    /// How the main process of the last run ended. `ExecMainCode` is a `CLD_…` of `waitid`.
    fn exit_status(&self) -> ExitStatus {
        let status = self.get("ExecMainStatus").parse::<i64>().ok();
        let (code, signal) = match self.get("ExecMainCode") {
            "1" | "exited" => (status, None),
            "2" | "3" | "killed" | "dumped" => (status.map(|n| 128 + n), status),
            _ => (None, None),
        };
        let by_force = matches!(self.get("Result"), "timeout" | "watchdog" | "oom-kill" | "core-dump");
        ExitStatus { code, killed: by_force || signal == Some(9) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Shown {
        let pairs = text.split(' ').filter_map(|p| p.split_once('='));
        Shown(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
    }

    #[test]
    fn states() {
        for (text, state) in [
            ("ActiveState=active SubState=running FreezerState=running", RunState::Running),
            ("ActiveState=activating SubState=start", RunState::Running),
            ("ActiveState=activating SubState=auto-restart", RunState::Stopped),
            ("ActiveState=deactivating SubState=stop-sigterm", RunState::Stopping),
            ("ActiveState=active SubState=running FreezerState=frozen", RunState::Paused),
            ("ActiveState=active FreezerState=frozen-by-parent", RunState::Paused),
            ("ActiveState=inactive SubState=dead", RunState::Stopped),
            ("ActiveState=failed SubState=failed", RunState::Stopped),
        ] {
            assert_eq!(shown(text).state(), state, "{text}");
        }
    }

    #[test]
    fn exit_states() {
        for (text, code, killed) in [
            ("ExecMainCode=1 ExecMainStatus=0 Result=success", Some(0), false),
            ("ExecMainCode=1 ExecMainStatus=143 Result=exit-code", Some(143), false),
            ("ExecMainCode=2 ExecMainStatus=15 Result=success", Some(143), false),
            ("ExecMainCode=2 ExecMainStatus=9 Result=timeout", Some(137), true),
            ("ExecMainCode=2 ExecMainStatus=9 Result=signal", Some(137), true),
            ("ExecMainCode=1 ExecMainStatus=0 Result=timeout", Some(0), true),
            ("ExecMainCode=0 ExecMainStatus=0 Result=success", None, false),
        ] {
            assert_eq!(shown(text).exit_status(), ExitStatus { code, killed }, "{text}");
        }
    }

    #[test]
    fn words() {
        for (said, kind) in [
            ("Failed to stop x.service: Access denied", AdapterErrorKind::PermissionDenied),
            (
                "Failed to start x.service: Interactive authentication required.",
                AdapterErrorKind::PermissionDenied,
            ),
            (
                "System has not been booted with systemd as init system (PID 1).",
                AdapterErrorKind::Unavailable,
            ),
            ("Failed to connect to bus: Host is down", AdapterErrorKind::Unavailable),
            ("Failed to stop x.service: Unit x.service not loaded.", AdapterErrorKind::NotFound),
            ("Unknown command verb freeze.", AdapterErrorKind::Unsupported),
            ("Job for x.service failed", AdapterErrorKind::Other),
        ] {
            assert_eq!(kind_of(said), kind, "{said}");
        }
    }
}
