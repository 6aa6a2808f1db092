//! Drills: the whole host into scratch, measured, with nothing that is live touched.

use backup_core::engine::{DrillReport, DrillRequest};
use backup_core::testkit::fake_adapter::text_of;

use super::*;

const TWO: &str = "
store.url = 'memory://'
intervals.hourly = { services = ['a', 'b'], keep = 5 }
services.a = { kind = 'fake', after = ['b'], rto = '1min', max_age = '2min' }
services.b = { kind = 'fake' }
services.c = { kind = 'fake', enabled = false }
";

async fn world() -> (World, FakeAdapter, FakeAdapter) {
    let (a, b) = (adapter(), adapter());
    let w = World::with_config(TWO, &[("a", a.clone()), ("b", b.clone()), ("c", adapter())]).await;
    assert_eq!(w.back_up().await.outcome(), Outcome::Ok);
    w.clock.advance_secs(60);
    (w, a, b)
}

async fn drill(w: &World) -> (DrillReport, RunReport) {
    w.engine.drill(&DrillRequest::default()).await.unwrap()
}

#[tokio::test]
async fn every_service_comes_back_in_scratch_and_what_is_live_is_not_touched() {
    let (w, a, b) = world().await;
    a.script(|s| s.set_artifact("one", ["newer"]));
    let live = [&a, &b].map(|f| text_of(&f.live()));
    let (report, run) = drill(&w).await;
    assert!(report.passed(), "{report:?}");
    let order: Vec<&str> = report.services.iter().map(|s| s.service.as_str()).collect();
    assert_eq!(order, ["b", "a"], "along `after`, and none that is disabled");
    let a_report = &report.services[1];
    let phases: Vec<&str> = a_report.phases.iter().map(|p| p.phase.as_str()).collect();
    assert_eq!(phases, ["prepare", "restore", "verify", "clean-up"]);
    assert!(report.services.iter().all(|s| s.critical), "one after the other");
    let backup = a_report.backup.as_ref().unwrap();
    assert_eq!((backup.age_ms, backup.max_age_ms, a_report.target_ms), (60_000, Some(120_000), Some(60_000)));
    assert_eq!((report.missed().count(), a_report.before), (0, None));
    assert_eq!([&a, &b].map(|f| text_of(&f.live())), live);
    assert!(!a.log().contains(&Asked::Undo) && w.engine.state().restores(&super::a()).unwrap().is_empty());
    assert_eq!(run.verb, "drill");

    // It is the verification by restore, what later ones are compared with, and what predicts a recovery.
    let entry = w.entries().await.into_iter().find(|e| e.id == backup.id).unwrap();
    assert_eq!(
        entry.last_verification().map(|(level, ok, _)| (level, ok)),
        Some((VerifyLevel::Restore, true))
    );
    w.clock.advance_secs(100);
    let (report, _) = drill(&w).await;
    assert!(report.services[1].before.is_some() && report.services[1].is_old());
    let missed: Vec<&str> = report.missed().map(|s| s.service.as_str()).collect();
    assert_eq!(missed, ["a"]);
}

/// An adapter is told what the backup was made of; what it then says of that is part of the report.
#[tokio::test]
async fn what_was_another_image_then_is_told() {
    let (w, _, b) = world().await;
    b.script(|s| s.image = Some("db:15".to_owned()));
    w.back_up().await;
    assert_eq!(drill(&w).await.0.services[0].notes, [""; 0]);
    b.script(|s| s.image = Some("db:16".to_owned()));
    w.clock.advance_secs(60);
    let (report, run) = drill(&w).await;
    assert!(report.passed());
    let note = "`db:15`, which the backup was made of, is not there";
    assert_eq!(report.services[0].notes, [note]);
    assert!(run.steps.iter().any(|s| s.notes.iter().any(|n| n == note)), "{run:?}");
    assert_eq!(w.events.warnings(), [note]);
}

/// One that was disturbed must not make all others look fast or slow.
#[tokio::test]
async fn a_drill_is_compared_with_the_five_before_it() {
    let (w, _, b) = world().await;
    for drilled in 0..7 {
        w.clock.advance_secs(60);
        let (report, _) = drill(&w).await;
        let b_report = &report.services[0];
        assert_eq!(b_report.earlier.len(), drilled.min(5), "{report:?}");
        assert_eq!(b_report.before, b_report.earlier.first().copied());
        assert!(b_report.earlier.is_sorted_by(|newer, older| newer.at > older.at), "{report:?}");
        let mut took: Vec<u64> = b_report.earlier.iter().map(|e| e.ms).collect();
        took.sort_unstable();
        assert_eq!(b_report.usual_ms.is_some(), drilled > 0);
        if drilled >= 5 {
            assert_eq!(b_report.usual_ms, Some(took[2]));
        }
    }
    // One that failed tells nothing about how long it takes.
    b.script(|s| s.failing.insert(Step::Probe));
    w.clock.advance_secs(60);
    let newest = drill(&w).await.0.services[0].earlier[0];
    w.clock.advance_secs(60);
    assert_eq!(drill(&w).await.0.services[0].earlier[0], newest);
}

#[tokio::test]
async fn a_damaged_backup_fails_it_and_stops_no_other() {
    let (w, _, _) = world().await;
    let entry = w.entries().await.into_iter().find(|e| e.id.service.as_str() == "b").unwrap();
    let metadata = w.engine.catalog().metadata(&entry.id).await.unwrap();
    let key = entry.id.file(&metadata.artifacts[1].files[0].path).unwrap();
    w.damage(&key, |bytes| bytes[9] ^= 1).await;
    let (report, run) = drill(&w).await;
    assert!(!report.passed());
    let outcomes: Vec<(&str, Outcome)> =
        report.services.iter().map(|s| (s.service.as_str(), s.outcome)).collect();
    assert_eq!(outcomes, [("b", Outcome::Damaged), ("a", Outcome::Ok)]);
    assert_eq!(run.outcome(), Outcome::Damaged);
    // From now on it is known; the next drill has nothing to take, and says so.
    let (report, _) = drill(&w).await;
    let why = report.services[0].error.clone().unwrap();
    assert!(why.contains("no good backup") && why.contains("is damaged"), "{why}");
}

#[tokio::test]
async fn counts_that_differ_fail_it() {
    let (w, _, b) = world().await;
    b.script(|s| s.failing.insert(Step::Probe));
    let (report, _) = drill(&w).await;
    let b_report = &report.services[0];
    assert_eq!(b_report.outcome, Outcome::Failed, "{report:?}");
    assert_eq!(b_report.phases.last().unwrap().phase, "clean-up", "what was made is removed all the same");
}

/// What a test restore has made has to go: nobody else knows of it until a later run reclaims.
#[tokio::test]
async fn a_drill_that_is_cancelled_still_removes_what_it_made() {
    let (w, a, b) = world().await;
    b.script(|s| s.hanging.insert(Step::Probe));
    let request = DrillRequest::default();
    let probing = async {
        while !b.log().contains(&Asked::Probe) {
            tokio::task::yield_now().await;
        }
        request.cancel.cancel();
    };
    let (drilled, ()) = tokio::join!(w.engine.drill(&request), probing);
    let (report, run) = drilled.unwrap();
    assert!(!report.passed());
    assert_eq!(run.outcome(), Outcome::Cancelled, "{run:?}");
    assert_eq!(b.log().last(), Some(&Asked::Discard));
    assert!(!a.log().contains(&Asked::Stage), "it comes after what was cancelled");
    // A probe that was cancelled is no verdict on the backup.
    assert!(w.entries().await.iter().all(|e| e.last_verification().is_none()));
}
