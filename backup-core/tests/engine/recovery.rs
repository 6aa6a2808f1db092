//! Recoveries: planned, executed as planned, and refused when that is not possible any more.

use backup_core::Clock as _;
use backup_core::engine::{RecoveryAction, RecoveryPlan, RecoveryRequest};
use backup_core::state::LockHolder;
use backup_core::testkit::fake_adapter::text_of;
use futures::TryStreamExt as _;
use tokio_util::sync::CancellationToken;

use super::*;

const TWO: &str = "
store.url = 'memory://'
intervals.hourly = { services = ['a', 'b'], keep = 5 }
services.a = { kind = 'fake', after = ['b'], rto = '1min' }
services.b = { kind = 'fake' }
";

fn empty(fake: &FakeAdapter) {
    fake.script(|s| {
        s.set_artifact("one", [""]);
        s.set_artifact("two", [""]);
    });
}

/// Two services that were backed up, and lost everything.
async fn lost() -> (World, FakeAdapter, FakeAdapter) {
    let (a, b) = (adapter(), adapter());
    let w = World::with_config(TWO, &[("a", a.clone()), ("b", b.clone())]).await;
    assert_eq!(w.back_up().await.outcome(), Outcome::Ok);
    empty(&a);
    empty(&b);
    w.clock.advance_secs(60);
    (w, a, b)
}

async fn plan(w: &World) -> RecoveryPlan {
    w.engine.plan_recovery(&RecoveryRequest::default()).await.unwrap()
}

async fn recover(w: &World, plan: &RecoveryPlan) -> RunReport {
    w.engine.recover(plan, CancellationToken::new()).await.unwrap()
}

/// Waits while others go on; what never comes is a failure, not a test that hangs.
async fn until(what: &str, done: impl Fn() -> bool + Send + Sync) {
    let came = async {
        while !done() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), came).await.expect(what);
}

fn actions(plan: &RecoveryPlan) -> Vec<(&str, &str)> {
    let word = |action: &RecoveryAction| match action {
        RecoveryAction::Restore(_) => "restore",
        RecoveryAction::Skip { .. } => "skip",
        RecoveryAction::Blocked { .. } => "blocked",
    };
    plan.services.iter().map(|s| (s.service.as_str(), word(&s.action))).collect()
}

#[tokio::test]
async fn a_plan_changes_nothing_and_is_what_is_done() {
    let (w, a, b) = lost().await;
    let (live, entries) = (text_of(&a.live()), w.entries().await);
    let plan = plan(&w).await;
    assert_eq!(actions(&plan), [("b", "restore"), ("a", "restore")], "along `after`");
    assert_eq!((plan.services[1].target_ms, plan.predicted_ms), (Some(60_000), None));
    assert_eq!((text_of(&a.live()), w.entries().await), (live, entries));
    assert!(!a.log().iter().any(|c| matches!(c, Asked::Stage | Asked::Switch)));

    let text = serde_json::to_string(&plan).unwrap();
    let report = recover(&w, &serde_json::from_str(&text).unwrap()).await;
    assert_eq!(outcome(&report), (Outcome::Ok, String::new()));
    let order: Vec<&str> = report.steps.iter().map(|s| s.service.as_str()).collect();
    assert_eq!(order, ["b", "a"]);
    for fake in [&a, &b] {
        assert!(text_of(&fake.live()).contains("hello world"));
    }
}

#[tokio::test]
async fn what_holds_data_is_left_alone_unless_it_is_named() {
    let (w, a, _) = lost().await;
    recover(&w, &plan(&w).await).await;
    let again = plan(&w).await;
    assert_eq!(actions(&again), [("b", "skip"), ("a", "skip")]);
    assert_eq!(again.predicted_ms, Some(0));
    assert_eq!(recover(&w, &again).await.outcome(), Outcome::Skipped);

    // Not nothing, but much less: left alone, and told.
    a.script(|s| s.set_artifact("two", ["few"]));
    let RecoveryAction::Skip { why } = &plan(&w).await.services[1].action else { panic!("it holds data") };
    assert!(why.contains("MUCH LESS than 3000011"), "{why}");

    a.script(|s| s.set_artifact("one", ["other"]));
    let request = RecoveryRequest { overwrite: vec![super::a()], ..RecoveryRequest::default() };
    let named = w.engine.plan_recovery(&request).await.unwrap();
    assert_eq!(actions(&named), [("b", "skip"), ("a", "restore")]);
    let RecoveryAction::Restore(restore) = &named.services[1].action else { panic!("{named:?}") };
    assert!(restore.predicted.is_some(), "it was measured by now");
    assert_eq!(recover(&w, &named).await.outcome(), Outcome::Ok);
    assert!(text_of(&a.live()).contains("hello world"));
}

#[tokio::test]
async fn a_damaged_newest_backup_is_passed_over() {
    let (a, b) = (adapter(), adapter());
    let w = World::with_config(TWO, &[("a", a.clone()), ("b", b)]).await;
    w.back_up().await;
    w.back_up().await;
    let newest = w.entries().await.into_iter().find(|e| e.id.service == super::a()).unwrap();
    let metadata = w.engine.catalog().metadata(&newest.id).await.unwrap();
    let key = newest.id.file(&metadata.artifacts[0].files[0].path).unwrap();
    w.damage(&key, |bytes| bytes[9] ^= 1).await;
    w.verify(VerifyLevel::Stored).await;
    empty(&a);
    let plan = plan(&w).await;
    let (_, restore) = plan.restores().find(|(s, _)| s.service == super::a()).unwrap();
    assert!(restore.backup.timestamp < newest.id.timestamp);
    assert_eq!(restore.passed_over, [format!("{} is damaged", newest.id)]);
    assert_eq!(recover(&w, &plan).await.outcome(), Outcome::Ok);
    assert!(text_of(&a.live()).contains("hello world"));
}

#[tokio::test]
async fn one_that_fails_stops_no_other_and_keeps_what_it_had() {
    for step in [Step::Stage, Step::Switch] {
        let (w, a, b) = lost().await;
        let fails = b.failing(step);
        let had = text_of(&fails.live());
        let report = recover(&w, &plan(&w).await).await;
        let outcomes: Vec<(&str, Outcome)> =
            report.steps.iter().map(|s| (s.service.as_str(), s.outcome)).collect();
        assert_eq!(outcomes, [("b", Outcome::Failed), ("a", Outcome::Ok)], "{step:?}");
        assert_eq!(text_of(&fails.live()), had, "{step:?}");
        assert!(text_of(&a.live()).contains("hello world"), "{step:?}");
    }
}

#[tokio::test]
async fn one_without_a_backup_is_blocked_and_told() {
    let (a, b) = (adapter(), adapter());
    let w = World::with_config(TWO, &[("a", a.clone()), ("b", b.clone())]).await;
    empty(&a);
    empty(&b);
    let plan = plan(&w).await;
    assert_eq!(actions(&plan), [("b", "blocked"), ("a", "blocked")]);
    let (how, why) = outcome(&recover(&w, &plan).await);
    assert_eq!(how, Outcome::Failed);
    assert!(why.contains("no good backup"), "{why}");
}

#[tokio::test]
async fn a_plan_that_is_not_true_any_more_is_refused() {
    let (w, a, _) = lost().await;
    let old = plan(&w).await;
    a.script(|s| s.set_artifact("one", ["written since"]));
    let refused = w.engine.recover(&old, CancellationToken::new()).await.unwrap_err().to_string();
    assert!(refused.contains("a: then") && refused.contains("now it is left alone"), "{refused}");
    assert!(text_of(&a.live()).contains("written since"));

    empty(&a);
    let mut edited = old.clone();
    let RecoveryAction::Restore(restore) = &mut edited.services[1].action else { panic!("{edited:?}") };
    restore.backup = "a/hourly/20250101_000000".parse().unwrap();
    assert!(w.engine.recover(&edited, CancellationToken::new()).await.is_err());
    let other = RecoveryPlan { store_id: "other".to_owned(), ..old.clone() };
    assert!(w.engine.recover(&other, CancellationToken::new()).await.is_err());
    let newer = RecoveryPlan { format: 99, ..old.clone() };
    assert!(w.engine.recover(&newer, CancellationToken::new()).await.is_err());
    assert_eq!(recover(&w, &old).await.outcome(), Outcome::Ok);
}

/// Nobody else may work on what is being recovered; nothing is begun if somebody does.
#[tokio::test]
async fn while_it_lasts_captures_and_other_recoveries_wait() {
    let (w, a, b) = lost().await;
    let hanging = b.hanging(Step::Stage);
    let plan = plan(&w).await;
    let cancel = CancellationToken::new();
    let meanwhile = async {
        while !hanging.log().iter().any(|c| matches!(c, Asked::Stage)) {
            tokio::task::yield_now().await;
        }
        let second = w.engine.recover(&plan, CancellationToken::new()).await.unwrap_err();
        assert!(backup_core::chain(&second).contains("recover"), "{}", backup_core::chain(&second));
        let request = BackupRequest::new(Interval::new("hourly").unwrap());
        let (how, why) = outcome(&w.engine.back_up(&request).await.unwrap());
        assert_eq!(how, Outcome::Failed, "{why}");
        cancel.cancel();
    };
    let (report, ()) = tokio::join!(w.engine.recover(&plan, cancel.clone()), meanwhile);
    assert_eq!(report.unwrap().outcome(), Outcome::Cancelled);
    assert!(!text_of(&a.live()).contains("hello world"), "`a` comes after what was cancelled");
}

/// Whoever waited for another recovery finds its work done, and leaves alone what was written since.
#[tokio::test]
async fn a_recovery_that_had_to_wait_restores_nothing_over_what_came_back() {
    let (w, a, b) = lost().await;
    let plan = plan(&w).await;
    let state = w.engine.state();
    let patient = Engine::builder(w.engine.plan().clone(), w.engine.catalog().clone(), state.clone())
        .clock(Arc::new(w.clock.clone()))
        .events(Arc::new(w.events.clone()))
        .lock_patience(Duration::from_secs(600))
        .build();
    let other = LockHolder {
        verb: "recover".to_owned(),
        run_id: backup_core::RunId::generate(w.clock.now()),
        pid: std::process::id(),
        boot_id: "boot".to_owned(),
        since: w.clock.now(),
    };
    let name = plan.services[0].service.clone();
    let never = CancellationToken::new();
    let lock = state.lock(&name, &other, Duration::ZERO, &never, &backup_core::NoEvents).await.unwrap();
    let meanwhile = async {
        let waits = |e: &Event| matches!(e, Event::Waiting { .. });
        until("it waits", || w.events.0.lock().unwrap().iter().any(waits)).await;
        for fake in [&a, &b] {
            fake.script(|s| s.set_artifact("one", ["came back, and was written to"]));
        }
        drop(lock);
    };
    let (second, ()) = tokio::join!(patient.recover(&plan, CancellationToken::new()), meanwhile);
    let refused = second.unwrap_err().to_string();
    assert!(refused.contains("not as planned any more"), "{refused}");
    assert!(text_of(&a.live()).contains("was written to") && text_of(&b.live()).contains("was written to"));
}

/// Also where nobody but the service itself could tell whether it runs.
#[tokio::test(start_paused = true)]
async fn one_that_does_not_answer_is_waited_for_and_not_restored_over() {
    let (w, a, b) = lost().await;
    a.script(|s| s.set_artifact("one", ["newer"]));
    a.script(|s| s.silent = true);
    let made = plan(&w).await;
    assert_eq!(actions(&made), [("b", "restore"), ("a", "restore")]);
    let of_a = recover(&w, &made).await.steps.into_iter().find(|s| s.service == super::a()).unwrap();
    let said = "what it holds is not known: ";
    assert!(of_a.error.as_ref().is_some_and(|e| e.contains(said) && e.contains("--overwrite a")), "{of_a:?}");
    assert!(text_of(&a.live()).contains("newer") && text_of(&b.live()).contains("hello world"));
    let later = async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        a.script(|s| s.silent = false);
    };
    let made = plan(&w).await;
    let (report, ()) = tokio::join!(recover(&w, &made), later);
    assert!(report.is_ok(), "{report:?}");
    assert!(text_of(&a.live()).contains("newer"), "it held data");
    // Who says so means it.
    a.script(|s| s.silent = true);
    let request = RecoveryRequest { overwrite: vec![super::a()], ..RecoveryRequest::default() };
    let made = w.engine.plan_recovery(&request).await.unwrap();
    a.script(|s| s.silent = false);
    assert!(recover(&w, &made).await.is_ok());
    assert!(text_of(&a.live()).contains("hello world"));
}

/// What it needs is not pruned meanwhile, by whichever host, also of services whose turn has not come: all who prune look there.
#[tokio::test]
async fn what_a_recovery_needs_is_kept_while_it_lasts() {
    let (w, _, b) = lost().await;
    let (plan, hanging) = (plan(&w).await, b.hanging(Step::Stage));
    let reading = || async {
        let keys = w.store.inner().list_keys(None).try_collect::<Vec<_>>().await.unwrap();
        keys.iter().filter(|key| key.to_string().starts_with(".leases/reading/")).count()
    };
    let cancel = CancellationToken::new();
    let meanwhile = async {
        until("it restores", || hanging.log().iter().any(|c| matches!(c, Asked::Stage))).await;
        assert_eq!(reading().await, 2);
        cancel.cancel();
    };
    let (report, ()) = tokio::join!(w.engine.recover(&plan, cancel.clone()), meanwhile);
    assert_eq!(report.unwrap().outcome(), Outcome::Cancelled);
    assert_eq!(reading().await, 0);
}

const APART: &str = "
store.url = 'memory://'
intervals.hourly = { services = ['a', 'b'], keep = 5 }
services.a = { kind = 'fake' }
services.b = { kind = 'fake' }
";

/// Whether both restores were under way at the same time, if none of them ends by itself.
async fn overlap(config: &str) -> bool {
    let fakes = [adapter(), adapter()];
    let w = World::with_config(config, &[("a", fakes[0].clone()), ("b", fakes[1].clone())]).await;
    assert_eq!(w.back_up().await.outcome(), Outcome::Ok);
    for fake in &fakes {
        empty(fake);
        fake.script(|s| s.hanging.insert(Step::Stage));
    }
    w.clock.advance_secs(60);
    let plan = plan(&w).await;
    let begun = || fakes.iter().filter(|f| f.log().contains(&Asked::Hangs(Step::Stage))).count();
    let watch = async {
        until("one begins", || begun() > 0).await;
        // The clock stands still as long as anybody has something to do.
        tokio::time::sleep(Duration::from_secs(10)).await;
        let both = begun() == 2;
        for fake in &fakes {
            fake.script(|s| s.hanging.clear());
        }
        both
    };
    let (report, both) = tokio::join!(recover(&w, &plan), watch);
    assert!(report.is_ok(), "{report:?}");
    assert!(fakes.iter().all(|f| text_of(&f.live()).contains("hello world")));
    both
}

#[tokio::test(start_paused = true)]
async fn restores_go_on_at_the_same_time_unless_they_may_not() {
    assert!(overlap(APART).await);
    assert!(!overlap(&format!("limits.parallel = 1\n{APART}")).await, "one at a time");
    assert!(!overlap(TWO).await, "`a` comes after `b`");
}

#[tokio::test]
async fn what_it_was_like_then() {
    let (w, a, _) = lost().await;
    let then = Timestamp::new(w.clock.now());
    a.script(|s| s.set_artifact("one", ["later"]));
    w.back_up().await;
    empty(&a);
    let request = RecoveryRequest { at: Some(then), ..RecoveryRequest::default() };
    let plan = w.engine.plan_recovery(&request).await.unwrap();
    recover(&w, &plan).await;
    assert!(text_of(&a.live()).contains("hello world"));
    let never =
        RecoveryRequest { at: Some("20200101_000000".parse().unwrap()), ..RecoveryRequest::default() };
    let plan = w.engine.plan_recovery(&never).await.unwrap();
    assert!(actions(&plan).iter().all(|(_, action)| *action != "restore"));
}
