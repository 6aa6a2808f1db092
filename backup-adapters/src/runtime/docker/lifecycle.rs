//! Stopping, starting and freezing containers.

use std::time::Duration;

use backup_core::runtime::{ExitStatus, RunState};
use backup_core::{AdapterError, AdapterErrorKind};
use bollard::models::{ContainerInspectResponse, ContainerState};
use bollard::query_parameters::{StartContainerOptions, StopContainerOptions};
use tokio::time::Instant;

use super::engine::{Engine, REQUEST, one_line};
use super::{find, name_of, state_of};

/// How long a container gets to run after it was started.
const START: Duration = Duration::from_secs(120);

pub(super) async fn stop(
    engine: &Engine,
    container: ContainerInspectResponse,
    grace: Duration,
) -> Result<ExitStatus, AdapterError> {
    let (id, name) = (id_of(&container), name_of(&container).to_owned());
    let state = container.state.clone().unwrap_or_default();
    match state_of(&state) {
        RunState::Paused => return Err(conflict(&name, "is paused: it must go on before it can be stopped")),
        RunState::Stopped if state.restarting != Some(true) => return Ok(exit_of(&state)),
        _ => {}
    }
    if container.host_config.as_ref().and_then(|h| h.auto_remove) == Some(true) {
        return Err(conflict(
            &name,
            "was started with --rm: stopping it would delete it and its anonymous volumes",
        ));
    }
    let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
    // Above the range the engine reads a negative number, which means for ever.
    let seconds = i32::try_from(seconds).unwrap_or(i32::MAX);
    let limit = Duration::from_secs(seconds.unsigned_abs().into()) + REQUEST;
    let client = engine.client().await?.clone().with_timeout(limit);
    let options = StopContainerOptions { t: Some(seconds), ..Default::default() };
    let what = format!("stop container `{name}`");
    client.stop_container(&id, Some(options)).await.map_err(|e| engine.error(&what, e))?;
    let after = find::inspect_id(engine, &id).await?.state.unwrap_or_default();
    match state_of(&after) {
        RunState::Stopped => Ok(exit_of(&after)),
        _ => Err(conflict(&name, "was stopped, but runs again: something else starts it")),
    }
}

pub(super) async fn start(engine: &Engine, container: ContainerInspectResponse) -> Result<(), AdapterError> {
    let (id, name) = (id_of(&container), name_of(&container).to_owned());
    match container.state.as_ref().map_or(RunState::Stopped, state_of) {
        RunState::Paused => return Err(conflict(&name, "is paused, not stopped")),
        RunState::Running => return Ok(()),
        _ => {}
    }
    let request = engine.client().await?.start_container(&id, None::<StartContainerOptions>);
    engine.call(&format!("start container `{name}`"), request).await?;
    let until = Instant::now() + START;
    loop {
        let state = find::inspect_id(engine, &id).await?.state.unwrap_or_default();
        if state.running == Some(true) && state.restarting != Some(true) {
            return Ok(());
        }
        if state.restarting != Some(true) {
            let code = state.exit_code.unwrap_or(-1);
            let why = state.error.as_deref().map(one_line).filter(|e| !e.is_empty());
            let why = why.map(|e| format!(": {e}")).unwrap_or_default();
            let message = format!("container `{name}` ended at once with exit code {code}{why}; see its log");
            return Err(AdapterError::new(AdapterErrorKind::Unavailable, message));
        }
        if Instant::now() > until {
            let message = format!("container `{name}` does not come up: it ends and is started again");
            return Err(AdapterError::new(AdapterErrorKind::Timeout, message));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub(super) async fn pause(engine: &Engine, container: ContainerInspectResponse) -> Result<(), AdapterError> {
    let (id, name) = (id_of(&container), name_of(&container).to_owned());
    match container.state.as_ref().map_or(RunState::Stopped, state_of) {
        RunState::Paused => return Ok(()),
        RunState::Running => {}
        _ => return Err(conflict(&name, "does not run: it cannot be paused")),
    }
    let request = engine.client().await?.pause_container(&id);
    let done = engine.call(&format!("pause container `{name}`"), request).await;
    settled(engine, &id, done, RunState::Paused).await
}

pub(super) async fn unpause(
    engine: &Engine,
    container: ContainerInspectResponse,
) -> Result<(), AdapterError> {
    let (id, name) = (id_of(&container), name_of(&container).to_owned());
    if container.state.as_ref().map(state_of) != Some(RunState::Paused) {
        return Ok(());
    }
    let request = engine.client().await?.unpause_container(&id);
    let done = engine.call(&format!("unpause container `{name}`"), request).await;
    settled(engine, &id, done, RunState::Running).await
}

/// A refusal is none if somebody else did the same in the meantime.
async fn settled(
    engine: &Engine,
    id: &str,
    done: Result<(), AdapterError>,
    wanted: RunState,
) -> Result<(), AdapterError> {
    let Err(refusal) = done else { return Ok(()) };
    match find::inspect_id(engine, id).await {
        Ok(now) if now.state.as_ref().map(state_of) == Some(wanted) => Ok(()),
        _ => Err(refusal),
    }
}

fn id_of(container: &ContainerInspectResponse) -> String {
    container.id.clone().unwrap_or_default()
}

fn conflict(name: &str, what: &str) -> AdapterError {
    AdapterError::new(AdapterErrorKind::Conflict, format!("container `{name}` {what}"))
}

pub(super) fn exit_of(state: &ContainerState) -> ExitStatus {
    // 128 and the number of a signal that nobody outlives: KILL, and those of a crash.
    let fatal = |code: i64| matches!(code, 132 | 134 | 135 | 136 | 137 | 139);
    ExitStatus {
        code: state.exit_code,
        killed: state.oom_killed == Some(true) || state.exit_code.is_some_and(fatal),
    }
}
