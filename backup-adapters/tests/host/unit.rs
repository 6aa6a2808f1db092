//! systemd units, by a stand-in for `systemctl`: what is asked of systemd, and what is made of its answers.

use std::path::Path;
use std::time::Duration;

use backup_adapters::runtime::HostRuntime;
use backup_core::AdapterErrorKind as Kind;
use backup_core::runtime::{ExitStatus, RunState, ServiceRuntime as _};
use tempfile::TempDir;

const GRACE: Duration = Duration::from_secs(20);

const RUNNING: &str = "Id=demo.service\nLoadState=loaded\nActiveState=active\nSubState=running\nFreezerState=running\n\
    CanFreeze=yes\nResult=success\nExecMainCode=0\nExecMainStatus=0\n";

struct Systemd(TempDir);

impl Systemd {
    fn new() -> (Self, HostRuntime) {
        let dir = tempfile::tempdir().unwrap();
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host/systemctl");
        std::os::unix::fs::symlink(program, dir.path().join("systemctl")).unwrap();
        std::fs::write(dir.path().join("unit"), RUNNING).unwrap();
        let runtime = HostRuntime::unit("demo.service").with_program_path([dir.path()]);
        (Self(dir), runtime)
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.0.path().join(file), text).unwrap();
    }

    fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.0.path().join("calls")).unwrap_or_default();
        let verbs = text.lines().map(|l| {
            l.strip_prefix("--no-ask-password --no-pager ")
                .and_then(|l| l.strip_suffix(" -- demo.service"))
                .unwrap()
        });
        verbs.map(str::to_owned).collect()
    }
}

async fn state(runtime: &HostRuntime) -> RunState {
    runtime.inspect().await.unwrap().state
}

#[tokio::test]
async fn a_unit_is_stopped_and_started() {
    let (systemd, runtime) = Systemd::new();
    assert_eq!(runtime.inspect().await.unwrap().instance, "demo.service");
    let ended = ExitStatus { code: Some(0), killed: false };
    assert_eq!(runtime.stop(GRACE).await.unwrap(), ended);
    assert_eq!(state(&runtime).await, RunState::Stopped);
    assert_eq!(runtime.stop(GRACE).await.unwrap(), ended);
    runtime.start().await.unwrap();
    runtime.start().await.unwrap();
    assert_eq!(state(&runtime).await, RunState::Running);
    assert_eq!(systemd.calls(), ["stop --no-block", "start"]);
}

#[tokio::test]
async fn what_does_not_stop_is_killed_and_said_to_be() {
    let (systemd, runtime) = Systemd::new();
    systemd.write("stubborn", "");
    let ended = runtime.stop(Duration::from_millis(300)).await.unwrap();
    assert_eq!(ended, ExitStatus { code: Some(137), killed: true });
    assert_eq!(systemd.calls(), ["stop --no-block", "kill --signal=KILL"]);
}

#[tokio::test]
async fn a_unit_is_frozen_and_thawed() {
    let (systemd, runtime) = Systemd::new();
    runtime.pause().await.unwrap();
    runtime.pause().await.unwrap();
    assert_eq!(state(&runtime).await, RunState::Paused);
    assert_eq!(runtime.stop(GRACE).await.unwrap_err().kind(), Kind::Conflict);
    assert_eq!(runtime.start().await.unwrap_err().kind(), Kind::Conflict);
    runtime.unpause().await.unwrap();
    runtime.unpause().await.unwrap();
    assert_eq!(state(&runtime).await, RunState::Running);
    assert_eq!(systemd.calls(), ["freeze", "thaw"]);
    systemd.write("unit", &RUNNING.replace("CanFreeze=yes", "CanFreeze=no"));
    assert_eq!(runtime.pause().await.unwrap_err().kind(), Kind::Unsupported);
    systemd.write("unit", &RUNNING.replace("=active", "=inactive"));
    assert_eq!(runtime.pause().await.unwrap_err().kind(), Kind::Conflict);
    assert_eq!(runtime.unpause().await.unwrap_err().kind(), Kind::Conflict);
}

#[tokio::test]
async fn refusals_say_why() {
    let (systemd, runtime) = Systemd::new();
    systemd.write("fail-stop", "Failed to stop demo.service: Access denied\n");
    let error = runtime.stop(GRACE).await.unwrap_err();
    assert_eq!(error.kind(), Kind::PermissionDenied);
    assert_eq!(
        error.to_string(),
        "`systemctl stop demo.service` failed: Failed to stop demo.service: Access denied"
    );
    assert_eq!(state(&runtime).await, RunState::Running);
    let unknown = HostRuntime::unit("other.service").with_program_path([systemd.0.path()]);
    let error = unknown.inspect().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (Kind::NotFound, "systemd knows no unit `other.service`")
    );
    systemd.write("unit", &RUNNING.replace("LoadState=loaded", "LoadState=masked"));
    let error = runtime.start().await.unwrap_err();
    assert_eq!(error.to_string(), "cannot use unit `demo.service`: it is masked");
}

#[tokio::test]
async fn what_is_no_unit_is_left_alone() {
    let runtime = HostRuntime::new();
    for error in [
        runtime.inspect().await.unwrap_err(),
        runtime.start().await.unwrap_err(),
        runtime.stop(GRACE).await.unwrap_err(),
        runtime.pause().await.unwrap_err(),
        runtime.unpause().await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("name its systemd unit"), "{error}");
    }
}
