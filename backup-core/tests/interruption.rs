//! An interrupted service always comes back.

#![expect(clippy::unwrap_used, reason = "assertions of tests")]

use std::sync::Arc;
use std::time::Duration;

use backup_core::AdapterErrorKind as Kind;
use backup_core::StepToken;
use backup_core::runtime::{
    Announced, Interruption, InterruptionContext, InterruptionJournal as _, InterruptionKind, Place, Replay,
    RunState,
};
use backup_core::testkit::{FakeRuntime, ManualClock};
use tokio::time::{Instant, advance, sleep};

const STOP: InterruptionKind = InterruptionKind::Stop { grace: Duration::from_secs(60) };
const PAUSE: InterruptionKind = InterruptionKind::Pause;

fn context(fake: &FakeRuntime) -> InterruptionContext {
    InterruptionContext {
        service: "neo4j".parse().unwrap(),
        run_id: "20260101_000000-abcdef01".parse().unwrap(),
        journal: Arc::new(fake.clone()),
        watchdog: Arc::new(fake.clone()),
        clock: Arc::new(ManualClock::at("20260101_000000")),
    }
}

async fn begin(fake: &FakeRuntime, kind: InterruptionKind) -> Result<Interruption, Kind> {
    let deadline = Instant::now() + Duration::from_secs(100);
    let begun = Interruption::begin(Arc::new(fake.clone()), context(fake), kind, deadline).await;
    begun.map_err(|e| e.kind())
}

async fn replay(fake: &FakeRuntime) -> Vec<Replay> {
    let mut out = Vec::new();
    for entry in fake.entries().await.unwrap() {
        out.push(Interruption::replay(&context(fake), fake, &entry).await.unwrap());
    }
    out
}

/// Docker may call a container paused for a moment that it has just let go on.
#[tokio::test(start_paused = true)]
async fn an_engine_that_learns_late_that_a_pause_is_over_is_believed_later() {
    let fake = FakeRuntime::new(RunState::Running);
    let mut interruption = begin(&fake, PAUSE).await.unwrap();
    fake.tell_late(20);
    interruption.end().await.unwrap();
    assert!(fake.entries().await.unwrap().is_empty());
    let mut interruption = begin(&fake, PAUSE).await.unwrap();
    fake.tell_late(u32::MAX);
    assert_eq!(interruption.end().await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(fake.entries().await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_journal_is_written_before_and_cleared_after() {
    for (kind, down, up) in [(STOP, "stop", "start"), (PAUSE, "pause", "unpause")] {
        let fake = FakeRuntime::new(RunState::Running);
        let mut interruption = begin(&fake, kind.clone()).await.unwrap();
        assert_eq!(fake.take_log(), ["journal", "arm", down]);
        assert!(interruption.interrupts() && fake.state() != RunState::Running);
        assert_eq!(interruption.exit_status().is_some(), kind == STOP);
        advance(Duration::from_secs(7)).await;
        assert_eq!(interruption.remaining(), Duration::from_secs(93));
        assert_eq!(interruption.end().await.unwrap(), Duration::from_secs(7));
        assert_eq!(fake.take_log(), [up, "disarm", "clear"]);
        assert_eq!(fake.state(), RunState::Running);
        assert!(fake.entries().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn what_was_down_stays_down() {
    for (state, kind) in [(RunState::Stopped, STOP), (RunState::Stopped, PAUSE), (RunState::Paused, PAUSE)] {
        let fake = FakeRuntime::new(state);
        let mut interruption = begin(&fake, kind.clone()).await.unwrap();
        assert!(!interruption.interrupts());
        assert_eq!(interruption.end().await.unwrap(), Duration::ZERO);
        assert_eq!((fake.state(), fake.take_log()), (state, vec![]));
    }
    // Stopping what somebody paused would kill it.
    let fake = FakeRuntime::new(RunState::Paused);
    assert_eq!(begin(&fake, STOP).await.unwrap_err(), Kind::Conflict);
    assert_eq!((fake.state(), fake.take_log()), (RunState::Paused, vec![]));
}

#[tokio::test]
async fn without_a_journal_or_a_watchdog_nothing_is_touched() {
    for step in ["journal", "arm"] {
        let fake = FakeRuntime::new(RunState::Running);
        fake.fail_next(step, Kind::NoSpace, false);
        assert_eq!(begin(&fake, STOP).await.unwrap_err(), Kind::NoSpace);
        assert_eq!(fake.state(), RunState::Running);
        assert!(!fake.take_log().contains(&"stop"), "failed at {step}");
        assert!(fake.entries().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn too_little_time_for_a_clean_stop_is_refused() {
    let fake = FakeRuntime::new(RunState::Running);
    let deadline = Instant::now() + Duration::from_secs(59);
    let e = Interruption::begin(Arc::new(fake.clone()), context(&fake), STOP, deadline).await.unwrap_err();
    assert_eq!((e.kind(), fake.take_log()), (Kind::Timeout, vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_failed_stop_leaves_the_service_running() {
    // Refused, done but not heard of, and never answered.
    for (kind, effect) in
        [(Some(Kind::PermissionDenied), false), (Some(Kind::Unavailable), true), (None, false)]
    {
        let fake = FakeRuntime::new(RunState::Running);
        match kind {
            Some(kind) => fake.fail_next("stop", kind, effect),
            None => fake.hang_next("stop"),
        }
        assert_eq!(begin(&fake, STOP).await.unwrap_err(), kind.unwrap_or(Kind::Timeout));
        assert_eq!(fake.state(), RunState::Running);
        assert!(fake.entries().await.unwrap().is_empty(), "{kind:?}");
        // What may still take effect is seen through before the service is started again.
        let stops = fake.take_log().iter().filter(|c| **c == "stop").count();
        assert_eq!(stops, if kind == Some(Kind::PermissionDenied) { 1 } else { 2 }, "{kind:?}");
    }
}

#[tokio::test]
async fn a_failed_start_is_remembered_and_can_be_repeated() {
    let fake = FakeRuntime::new(RunState::Running);
    let mut interruption = begin(&fake, STOP).await.unwrap();
    fake.fail_next("start", Kind::Unavailable, false);
    assert_eq!(interruption.end().await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(fake.entries().await.unwrap().len(), 1);
    assert!(!fake.take_log().contains(&"disarm"), "the watchdog was called off too early");
    interruption.end().await.unwrap();
    assert_eq!(fake.state(), RunState::Running);
    assert!(fake.entries().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_dropped_interruption_is_replayed_once() {
    for kind in [STOP, PAUSE] {
        let fake = FakeRuntime::new(RunState::Running);
        drop(begin(&fake, kind).await.unwrap());
        assert_ne!(fake.state(), RunState::Running, "a drop cannot wait for an undo");
        assert_eq!(replay(&fake).await, [Replay::Undone]);
        assert_eq!(fake.state(), RunState::Running);
        assert_eq!(replay(&fake).await, []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_before_the_act_or_after_the_undo_replays_to_nothing() {
    let fake = FakeRuntime::new(RunState::Running);
    drop(begin(&fake, PAUSE).await.unwrap());
    // Somebody was quicker: running again, or stopped for a reason of their own.
    for state in [RunState::Running, RunState::Stopped] {
        let entry = fake.entries().await.unwrap().first().cloned();
        fake.set_state(state);
        assert_eq!(replay(&fake).await, [Replay::NothingToDo]);
        assert_eq!(fake.state(), state);
        fake.write(&entry.unwrap()).await.unwrap();
    }
}

#[tokio::test]
async fn foreign_entries_are_never_replayed() {
    let place = |host: &str, boot: &str| Place { host: host.into(), boot_id: boot.into() };
    for (what, host, boot, instance) in [("host", "other", "boot", "c1"), ("made anew", "host", "boot", "c2")]
    {
        let fake = FakeRuntime::new(RunState::Running);
        drop(begin(&fake, STOP).await.unwrap());
        fake.set_place(place(host, boot));
        fake.set_instance(instance);
        let replayed = replay(&fake).await;
        assert!(matches!(&replayed[..], [Replay::Foreign(why)] if why.contains(what)), "{replayed:?}");
        assert_eq!(fake.state(), RunState::Stopped);
        assert_eq!(fake.entries().await.unwrap().len(), 1, "it stays for a person to look at");
    }
}

#[tokio::test]
async fn entries_survive_serialisation() {
    let fake = FakeRuntime::new(RunState::Running);
    drop(begin(&fake, STOP).await.unwrap());
    let entry = fake.entries().await.unwrap().remove(0);
    let text = serde_json::to_string(&entry).unwrap();
    assert_eq!(serde_json::from_str::<backup_core::runtime::InterruptionEntry>(&text).unwrap(), entry);
}

#[tokio::test(start_paused = true)]
async fn what_was_stopped_runs_again_after_a_restart_of_the_host() {
    let fake = FakeRuntime::new(RunState::Running);
    drop(begin(&fake, STOP).await.unwrap());
    let entry = fake.entries().await.unwrap().remove(0);
    fake.set_place(Place { host: entry.place.host.clone(), boot_id: "another".into() });
    assert_eq!(Interruption::replay(&context(&fake), &fake, &entry).await.unwrap(), Replay::Undone);
    assert_eq!(fake.state(), RunState::Running);
    assert!(fake.entries().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_others_have_ended_is_no_success_and_what_we_ended_stays_one() {
    let fake = FakeRuntime::new(RunState::Running);
    let mut interruption = begin(&fake, PAUSE).await.unwrap();
    let entry = fake.entries().await.unwrap().remove(0);
    assert_eq!(entry.until.unwrap() - entry.began_at, chrono::TimeDelta::seconds(100));
    // As a watchdog does: it says so, then acts. We come back in between.
    assert!(fake.take_over(&entry).await.unwrap());
    for _ in 0..2 {
        assert_eq!(interruption.end().await.unwrap_err().kind(), Kind::Conflict);
    }
    assert_eq!(fake.state(), RunState::Running);
    assert!(!fake.take_over(&entry).await.unwrap(), "there is nothing left to take over");

    // And when the watchdog is done already.
    let mut interruption = begin(&fake, PAUSE).await.unwrap();
    let entry = fake.entries().await.unwrap().remove(0);
    fake.take_over(&entry).await.unwrap();
    assert_eq!(Interruption::replay(&context(&fake), &fake, &entry).await.unwrap(), Replay::Undone);
    assert_eq!(interruption.end().await.unwrap_err().kind(), Kind::Conflict);

    // An error of the watchdog alone comes once; the interruption was ours to the end.
    let mut interruption = begin(&fake, PAUSE).await.unwrap();
    fake.fail_next("disarm", Kind::Other, false);
    assert_eq!(interruption.end().await.unwrap_err().kind(), Kind::Other);
    assert_eq!(interruption.end().await.unwrap(), Duration::ZERO);
    assert_eq!(interruption.end().await.unwrap(), Duration::ZERO);
}

async fn announce(fake: &FakeRuntime) -> Result<Announced, Kind> {
    let deadline = Instant::now() + Duration::from_secs(100);
    let token = StepToken::new(&"demote").unwrap();
    let announced = Interruption::announce(context(fake), "fence writes of", "c1", token, deadline).await;
    announced.map_err(|e| e.kind())
}

#[tokio::test]
async fn what_an_adapter_does_itself_is_announced_before_and_forgotten_after() {
    let fake = FakeRuntime::new(RunState::Running);
    let announced = announce(&fake).await.unwrap();
    assert_eq!(fake.take_log(), ["journal", "arm"]);
    let entry = fake.entries().await.unwrap().remove(0);
    assert_eq!(&entry, announced.entry());
    let InterruptionKind::Other { what, token } = &entry.kind else { panic!("{entry:?}") };
    assert_eq!((what.as_str(), token.get::<String>().unwrap().as_str()), ("fence writes of", "demote"));
    announced.undone().await.unwrap();
    announced.undone().await.unwrap();
    assert_eq!(fake.take_log(), ["disarm", "clear"]);

    let announced = announce(&fake).await.unwrap();
    fake.take_over(announced.entry()).await.unwrap();
    for _ in 0..2 {
        assert_eq!(announced.undone().await.unwrap_err().kind(), Kind::Conflict);
    }
    assert!(fake.entries().await.unwrap().is_empty());
}

#[tokio::test]
async fn without_a_journal_or_a_watchdog_nothing_is_announced() {
    for step in ["journal", "arm"] {
        let fake = FakeRuntime::new(RunState::Running);
        fake.fail_next(step, Kind::NoSpace, false);
        assert_eq!(announce(&fake).await.unwrap_err(), Kind::NoSpace, "{step}");
        assert!(fake.entries().await.unwrap().is_empty(), "{step}");
    }
}

#[tokio::test]
async fn a_runtime_cannot_undo_what_an_adapter_did() {
    let fake = FakeRuntime::new(RunState::Running);
    drop(announce(&fake).await.unwrap());
    let _log = fake.take_log();
    // Whether it still lasts is not known to a runtime: it must neither act nor forget it.
    let entry = fake.entries().await.unwrap().remove(0);
    let replayed = Interruption::replay(&context(&fake), &fake, &entry).await;
    assert_eq!(replayed.unwrap_err().kind(), Kind::Unsupported);
    assert_eq!((fake.take_log(), fake.entries().await.unwrap().len()), (vec![], 1));

    let fake = FakeRuntime::new(RunState::Running);
    let kind = InterruptionKind::Other { what: "fence".into(), token: StepToken::new(&1).unwrap() };
    assert_eq!(begin(&fake, kind).await.unwrap_err(), Kind::Unsupported);
    assert_eq!((fake.take_log(), fake.entries().await.unwrap().len()), (vec![], 0));
}

#[tokio::test(start_paused = true)]
async fn an_order_that_outlives_its_giver_is_seen_through() {
    for (kind, down, within) in [(STOP, RunState::Stopped, 60), (PAUSE, RunState::Paused, 12)] {
        for stopping in [false, true] {
            let fake = FakeRuntime::new(RunState::Running);
            drop(begin(&fake, kind.clone()).await.unwrap());
            // The run died when it had asked; the engine has not done it yet.
            fake.set_state(if stopping { RunState::Stopping } else { RunState::Running });
            let late = async {
                sleep(Duration::from_secs(if stopping { 500 } else { within })).await;
                fake.set_state(down);
                fake.take_log()
            };
            let (replayed, before) = tokio::join!(replay(&fake), late);
            assert_eq!(replayed, [Replay::Undone]);
            assert!(!before.contains(&"start") && !before.contains(&"unpause"), "{before:?}");
            assert_eq!(fake.state(), RunState::Running);
        }
    }
    // Nothing comes of it: it is not waited for longer than it can take.
    let fake = FakeRuntime::new(RunState::Running);
    drop(begin(&fake, PAUSE).await.unwrap());
    fake.set_state(RunState::Running);
    let started = Instant::now();
    assert_eq!(replay(&fake).await, [Replay::NothingToDo]);
    assert!(started.elapsed() < Duration::from_secs(20));
}
