//! Containers stopped, started and frozen.

use std::time::{Duration, Instant};

use backup_core::AdapterErrorKind;
use backup_core::runtime::{
    ExitStatus, Interruption, InterruptionContext, InterruptionEntry, InterruptionJournal as _,
    InterruptionKind, NoWatchdog, Replay, RunState, ServiceRuntime as _,
};
use backup_core::state::StateDir;

use crate::support::{Container, docker};

fn of(script: &str) -> Container {
    Container::with(&["--entrypoint", "sh"], &["-c", script])
}

const OBEDIENT: &str = "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done";
const STUBBORN: &str = "trap '' TERM; echo up; while :; do sleep 0.1; done";

async fn up(c: &Container) {
    while docker(&["logs", &c.name]).is_empty() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn stopping_says_how_it_ended() {
    let (good, bad) = (of(OBEDIENT), of(STUBBORN));
    up(&good).await;
    up(&bad).await;
    let ended = ExitStatus { code: Some(0), killed: false };
    assert_eq!(good.runtime().stop(Duration::from_secs(60)).await.unwrap(), ended);
    // Again: it is stopped already.
    assert_eq!(good.runtime().stop(Duration::ZERO).await.unwrap(), ended);
    let wait = Instant::now();
    let killed = bad.runtime().stop(Duration::from_millis(1500)).await.unwrap();
    assert_eq!(killed, ExitStatus { code: Some(137), killed: true });
    assert!((2..10).contains(&wait.elapsed().as_secs()), "rounded up to 2 s: {:?}", wait.elapsed());
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn starting_waits_until_it_runs() {
    let c = of(OBEDIENT);
    up(&c).await;
    let runtime = c.runtime();
    runtime.start().await.unwrap();
    runtime.stop(Duration::from_secs(60)).await.unwrap();
    let before = runtime.inspect().await.unwrap();
    assert_eq!(before.state, RunState::Stopped);
    runtime.start().await.unwrap();
    let after = runtime.inspect().await.unwrap();
    assert_eq!((after.state, after.instance), (RunState::Running, before.instance));
    let broken = Container::with(&["--entrypoint", "sh"], &["-c", "sleep 1; exit 3"]);
    docker(&["wait", &broken.name]);
    docker(&["rm", "-f", &broken.name]);
    assert_eq!(broken.runtime().start().await.unwrap_err().kind(), AdapterErrorKind::NotFound);
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn freezing_is_idempotent() {
    let c = of(OBEDIENT);
    let runtime = c.runtime();
    runtime.unpause().await.unwrap();
    for _ in 0..2 {
        runtime.pause().await.unwrap();
        assert_eq!(runtime.inspect().await.unwrap().state, RunState::Paused);
    }
    let e = runtime.stop(Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Conflict, "the engine would kill it: {e}");
    assert_eq!(runtime.start().await.unwrap_err().kind(), AdapterErrorKind::Conflict);
    for _ in 0..2 {
        runtime.unpause().await.unwrap();
        assert_eq!(runtime.inspect().await.unwrap().state, RunState::Running);
    }
    up(&c).await;
    runtime.stop(Duration::from_secs(60)).await.unwrap();
    assert_eq!(runtime.pause().await.unwrap_err().kind(), AdapterErrorKind::Conflict);
    runtime.unpause().await.unwrap();
}

#[tokio::test]
#[ignore = "needs Docker"]
async fn a_container_that_stopping_deletes_is_not_stopped() {
    let c = Container::with(&["--rm", "--entrypoint", "sleep"], &["infinity"]);
    let e = c.runtime().stop(Duration::ZERO).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Conflict);
    assert!(e.to_string().contains("--rm"), "{e}");
    assert_eq!(c.runtime().inspect().await.unwrap().state, RunState::Running);
}

/// The engine goes on stopping what a dead client has told it to stop.
#[tokio::test]
#[ignore = "needs Docker"]
async fn a_stop_that_outlives_its_run_is_seen_through_and_undone() {
    let c = of(STUBBORN);
    up(&c).await;
    let runtime = c.runtime();
    let dir = tempfile::tempdir().unwrap();
    let journal = StateDir::open(dir.path()).unwrap().interruptions();
    let (service, run_id) = ("app".parse().unwrap(), "20260101_000000-abcdef01".parse().unwrap());
    let entry = InterruptionEntry {
        id: "e1".into(),
        service,
        run_id,
        kind: InterruptionKind::Stop { grace: Duration::from_secs(4) },
        place: journal.place(),
        instance: runtime.inspect().await.unwrap().instance,
        began_at: backup_core::Clock::now(&backup_core::SystemClock),
        until: None,
    };
    journal.write(&entry).await.unwrap();
    let mut client = std::process::Command::new("docker").args(["stop", "-t", "4", &c.name]).spawn().unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    client.kill().unwrap();
    client.wait().unwrap();
    assert_eq!(runtime.inspect().await.unwrap().state, RunState::Running);
    let cx = InterruptionContext {
        service: entry.service.clone(),
        run_id: entry.run_id.clone(),
        journal: std::sync::Arc::new(journal.clone()),
        watchdog: std::sync::Arc::new(NoWatchdog),
        clock: std::sync::Arc::new(backup_core::SystemClock),
    };
    assert_eq!(Interruption::replay(&cx, &runtime, &entry).await.unwrap(), Replay::Undone);
    assert_eq!(runtime.inspect().await.unwrap().state, RunState::Running);
    assert!(journal.entries().await.unwrap().is_empty());
}
