//! Interrupted services come back: by the run itself, by the next one, and by `resume`.

use backup_core::ReadOutcome;
use backup_core::StepToken;
use backup_core::engine::{ResumeRequest, StatusLevel};
use backup_core::runtime::{
    Interruption, InterruptionContext, InterruptionEntry, InterruptionJournal as _, InterruptionKind,
    NoWatchdog, RunState,
};
use backup_core::state::{LockHolder, boot_id};
use backup_core::testkit::FakeRuntime;
use backup_core::testkit::fake_adapter::Interrupts;
use chrono::DateTime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::*;

const DEAD: &str = "20260101_000000-abcdef01";

fn pausing(runtime: &FakeRuntime) -> FakeAdapter {
    adapter().interrupting(Interrupts::Runtime(runtime.clone(), InterruptionKind::Pause))
}

/// Leaves the service as a run that was killed would.
async fn interrupt(w: &World, service: &str, run: &str, runtime: &FakeRuntime) -> InterruptionEntry {
    let journal = w.engine.state().interruptions();
    let cx = InterruptionContext {
        service: service.parse().unwrap(),
        run_id: run.parse().unwrap(),
        journal: Arc::new(journal.clone()),
        watchdog: Arc::new(NoWatchdog),
        clock: Arc::new(w.clock.clone()),
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    let runtime = Arc::new(runtime.clone());
    drop(Interruption::begin(runtime, cx, InterruptionKind::Pause, deadline).await.unwrap());
    let entries = journal.entries().await.unwrap();
    entries.into_iter().find(|e| e.run_id.as_str() == run && e.service.as_str() == service).unwrap()
}

async fn open(w: &World) -> usize {
    w.engine.state().interruptions().entries().await.unwrap().len()
}

async fn resume(w: &World, request: ResumeRequest) -> RunReport {
    w.engine.resume(&request).await.unwrap()
}

#[tokio::test]
async fn a_capture_interrupts_and_ends_it_before_the_commit() {
    let runtime = FakeRuntime::new(RunState::Running);
    let w = World::new(pausing(&runtime)).await;
    assert_eq!(outcome(&w.back_up().await), (Outcome::Ok, String::new()));
    assert_eq!(runtime.take_log(), ["pause", "unpause"]);
    assert_eq!(open(&w).await, 0);
    assert!(w.events.warnings().is_empty());
}

#[tokio::test]
async fn the_next_run_brings_back_what_a_dead_one_left_before_it_captures() {
    for own in [false, true] {
        let runtime = FakeRuntime::new(RunState::Running);
        let fake = match own {
            false => pausing(&runtime),
            true => adapter().interrupting(Interrupts::Own(runtime.clone())),
        };
        let w = World::new(fake.clone()).await;
        let mut entry = interrupt(&w, "a", DEAD, &runtime).await;
        if own {
            let token = StepToken::new(&"unpause").unwrap();
            entry.kind = InterruptionKind::Other { what: "fence".into(), token };
            w.engine.state().interruptions().write(&entry).await.unwrap();
        }
        assert_eq!(outcome(&w.back_up().await), (Outcome::Ok, String::new()), "{own}");
        assert_eq!(runtime.take_log(), ["pause", "unpause", "pause", "unpause"], "{own}");
        assert_eq!(fake.log()[..2], [Asked::BringBack(entry.id), Asked::Open]);
        assert_eq!(open(&w).await, 0);
        assert!(w.events.warnings()[0].contains("brought the service back"), "{:?}", w.events.warnings());
    }
}

#[tokio::test]
async fn a_capture_whose_interruption_others_ended_is_not_good() {
    let runtime = FakeRuntime::new(RunState::Running);
    let fake = pausing(&runtime).hanging_at("two", 0);
    let w = World::new(fake.clone()).await;
    let (report, ()) = tokio::join!(w.back_up(), async {
        while runtime.state() != RunState::Paused || fake.log().len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let entry = w.engine.state().interruptions().entries().await.unwrap().remove(0);
        // The watchdog, in its own process: the run's lock is held, so it insists.
        let request = ResumeRequest { entry: Some(entry.id), insist: true, ..Default::default() };
        let report = resume(&w, request).await;
        assert!(
            report.is_ok() && report.steps[0].notes[0].contains("brought the service back"),
            "{report:?}"
        );
        assert_eq!(runtime.state(), RunState::Running);
        fake.script(|s| s.hang_at.clear());
    });
    let (result, error) = outcome(&report);
    assert_eq!(result, Outcome::Failed);
    assert!(error.contains("brought back by the watchdog"), "{error}");
    assert!(w.entries().await.is_empty());
    assert_eq!(open(&w).await, 0);
}

#[tokio::test]
async fn what_a_capture_leaves_interrupted_is_ended_by_its_own_run() {
    let runtime = FakeRuntime::new(RunState::Running);
    let fake = pausing(&runtime).failing(Step::Release);
    let w = World::new(fake.clone()).await;
    let (result, _) = outcome(&w.back_up().await);
    assert_eq!((result, runtime.state()), (Outcome::Failed, RunState::Running));
    assert_eq!(open(&w).await, 0);
    assert!(matches!(&fake.log()[..], [.., Asked::Release(ReadOutcome::Complete), Asked::BringBack(_), _]));
}

#[tokio::test]
async fn resume_ends_them_all_and_says_so() {
    let (one, two) = (FakeRuntime::new(RunState::Running), FakeRuntime::new(RunState::Running));
    let config = "store.url = 'memory://'\nservices.a = { kind = 'fake' }\nservices.b = { kind = 'fake' }";
    let w = World::with_config(config, &[("a", pausing(&one)), ("b", pausing(&two))]).await;
    let first = interrupt(&w, "a", DEAD, &one).await;
    interrupt(&w, "b", DEAD, &two).await;
    let report = resume(&w, ResumeRequest { entry: Some(first.id), ..Default::default() }).await;
    assert_eq!((report.verb.as_str(), report.steps.len()), ("resume", 1));
    assert_eq!((one.state(), two.state()), (RunState::Running, RunState::Paused));
    let report = resume(&w, ResumeRequest::default()).await;
    assert_eq!((report.steps.len(), two.state()), (1, RunState::Running));
    assert_eq!(w.engine.catalog().reports().await.unwrap().len(), 2);
    assert!(resume(&w, ResumeRequest::default()).await.steps.is_empty());
}

#[tokio::test]
async fn a_living_run_is_waited_for_unless_one_insists() {
    let runtime = FakeRuntime::new(RunState::Running);
    let w = World::new(pausing(&runtime)).await;
    let entry = interrupt(&w, "a", DEAD, &runtime).await;
    let me = LockHolder {
        verb: "run".into(),
        run_id: entry.run_id.clone(),
        pid: 1,
        boot_id: boot_id(),
        since: DateTime::UNIX_EPOCH,
    };
    let state = w.engine.state();
    let cancel = CancellationToken::new();
    let lock = state.lock(&a(), &me, Duration::ZERO, &cancel, &backup_core::NoEvents).await.unwrap();
    let (result, error) = outcome(&resume(&w, ResumeRequest::default()).await);
    assert!(result == Outcome::Failed && error.contains("busy"), "{error}");
    assert_eq!((runtime.state(), open(&w).await), (RunState::Paused, 1));
    let insisted = resume(&w, ResumeRequest { insist: true, ..Default::default() }).await;
    assert!(insisted.is_ok());
    assert_eq!((runtime.state(), open(&w).await), (RunState::Running, 0));
    drop(lock);
}

#[tokio::test]
async fn what_cannot_be_brought_back_stays_and_the_others_come_back() {
    let (one, two) = (FakeRuntime::new(RunState::Running), FakeRuntime::new(RunState::Running));
    let config = "store.url = 'memory://'\nservices.a = { kind = 'fake' }\nservices.b = { kind = 'fake' }";
    let w = World::with_config(config, &[("a", pausing(&one)), ("b", pausing(&two))]).await;
    interrupt(&w, "a", DEAD, &one).await;
    interrupt(&w, "gone", DEAD, &FakeRuntime::new(RunState::Running)).await;
    interrupt(&w, "b", DEAD, &two).await;
    one.fail_next("unpause", backup_core::AdapterErrorKind::Unavailable, false);
    let report = resume(&w, ResumeRequest::default()).await;
    let errors: Vec<_> = report.steps.iter().map(|s| s.error.clone().unwrap_or_default()).collect();
    assert!(errors.iter().any(|e| e.contains("failed to bring the service back")), "{errors:?}");
    assert!(errors.iter().any(|e| e.contains("`gone` is not in the configuration any more")), "{errors:?}");
    assert_eq!((one.state(), two.state(), open(&w).await), (RunState::Paused, RunState::Running, 2));
    resume(&w, ResumeRequest::default()).await;
    assert_eq!((one.state(), open(&w).await), (RunState::Running, 1));
}

#[tokio::test]
async fn entries_of_other_hosts_and_other_incarnations_are_left_alone() {
    let runtime = FakeRuntime::new(RunState::Running);
    let w = World::new(pausing(&runtime)).await;
    let mut entry = interrupt(&w, "a", DEAD, &runtime).await;
    let journal = w.engine.state().interruptions();
    entry.place.host = "another".into();
    journal.write(&entry).await.unwrap();
    let (result, error) = outcome(&resume(&w, ResumeRequest::default()).await);
    assert!(result == Outcome::Failed && error.contains("host `another`"), "{error}");
    assert!(journal.path(&entry.id).exists(), "and not taken over: its run may be alive there");
    entry.place = journal.place();
    journal.write(&entry).await.unwrap();
    runtime.set_instance("c2");
    let (_, error) = outcome(&resume(&w, ResumeRequest::default()).await);
    assert!(error.contains("made anew") && error.contains("then remove"), "{error}");
    assert_eq!((runtime.state(), open(&w).await), (RunState::Paused, 1));
    // A backup says so, too, and goes on if it can.
    runtime.set_state(RunState::Running);
    assert_eq!(w.back_up().await.outcome(), Outcome::Ok);
    assert!(w.events.warnings().iter().any(|l| l.contains("left alone")), "{:?}", w.events.warnings());
}

#[tokio::test]
async fn a_cancelled_run_brings_back_all_the_same() {
    let runtime = FakeRuntime::new(RunState::Running);
    let w = World::new(pausing(&runtime).failing(Step::Release).hanging_at("one", 0)).await;
    let request = BackupRequest::new(Interval::new("hourly").unwrap());
    let cancel = request.cancel.clone();
    let (report, ()) = tokio::join!(w.engine.back_up(&request), async {
        while runtime.state() != RunState::Paused {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cancel.cancel();
    });
    assert_eq!(report.unwrap().outcome(), Outcome::Cancelled);
    assert_eq!((runtime.state(), open(&w).await), (RunState::Running, 0));
}

#[tokio::test]
async fn status_tells_of_them() {
    let runtime = FakeRuntime::new(RunState::Running);
    let w = World::new(pausing(&runtime)).await;
    w.back_up().await;
    let level = async || w.engine.status(&[]).await.unwrap().remove(0);
    assert_eq!(level().await.level, StatusLevel::Ok);
    let run = "20260309_050000-abcdef01".parse().unwrap();
    let guard = w.engine.state().begin_run(&run).unwrap();
    interrupt(&w, "a", run.as_str(), &runtime).await;
    let status = level().await;
    assert_eq!((status.level, status.next_step), (StatusLevel::Warning, None));
    assert!(w.engine.open_interruptions().await.unwrap()[0].expected);
    // It is late, or dead.
    w.clock.advance_secs(61);
    assert_eq!(level().await.level, StatusLevel::Critical);
    w.clock.advance_secs(-61);
    drop(guard);
    let status = level().await;
    assert_eq!(status.level, StatusLevel::Critical);
    assert_eq!(status.next_step.as_deref(), Some("backup resume"));
    assert!(status.problems[0].contains("paused"), "{:?}", status.problems);
    std::fs::write(w.engine.state().interruptions().path("x"), "?").unwrap();
    assert!(level().await.problems.iter().any(|p| p.contains("x.json")));
}
