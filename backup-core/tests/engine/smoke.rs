//! Smoke queries: what a user wants restored data to answer, and what becomes of answers.

use backup_core::engine::{DrillRequest, RecoveryRequest};
use backup_core::testkit::fake_adapter::text_of;
use tokio_util::sync::CancellationToken;

use super::*;

const ASKING: &str = "
store.url = 'memory://'
intervals.hourly = { services = ['a', 'b'], keep = 5 }
services.a = { kind = 'fake', smoke = ['one', 'two'] }
services.b = { kind = 'fake' }
";

/// Two services that were backed up; `a` has smoke queries.
async fn world() -> (World, FakeAdapter, FakeAdapter) {
    let (a, b) = (adapter(), adapter());
    let w = World::with_config(ASKING, &[("a", a.clone()), ("b", b.clone())]).await;
    assert_eq!(w.back_up().await.outcome(), Outcome::Ok);
    w.clock.advance_secs(60);
    (w, a, b)
}

fn empty(fake: &FakeAdapter) {
    fake.script(|s| {
        s.set_artifact("one", [""]);
        s.set_artifact("two", [""]);
    });
}

async fn recover(w: &World) -> RunReport {
    let plan = w.engine.plan_recovery(&RecoveryRequest::default()).await.unwrap();
    w.engine.recover(&plan, CancellationToken::new()).await.unwrap()
}

fn asked(fake: &FakeAdapter) -> Vec<String> {
    let question = |call| match call {
        Asked::Ask(question) => Some(question),
        _ => None,
    };
    fake.log().into_iter().filter_map(question).collect()
}

fn notes(report: &RunReport, service: &str) -> Vec<String> {
    report.steps.iter().filter(|s| s.service.as_str() == service).flat_map(|s| s.notes.clone()).collect()
}

#[tokio::test]
async fn a_recovered_service_is_asked_after_it_took_a_write() {
    let (w, a, b) = world().await;
    assert_eq!(asked(&a), Vec::<String>::new(), "captures ask nothing");
    empty(&a);
    empty(&b);
    let report = recover(&w).await;
    assert_eq!(outcome(&report), (Outcome::Ok, String::new()));
    assert_eq!((asked(&a), asked(&b)), (vec!["one".to_owned(), "two".to_owned()], Vec::new()));
    let log = a.log();
    let at = |call: &Asked| log.iter().position(|c| c == call).unwrap();
    assert!(at(&Asked::ProveWritable) < at(&Asked::Ask("one".into())));
    assert!(notes(&report, "a").contains(&"2 smoke queries passed".to_owned()), "{report:?}");
    assert!(!notes(&report, "b").iter().any(|n| n.contains("smoke")));
    // What is healthy is not asked.
    recover(&w).await;
    assert_eq!(asked(&a).len(), 2);
}

#[tokio::test]
async fn a_wrong_answer_fails_the_recovery_and_undoes_nothing() {
    let (w, a, b) = world().await;
    let long = "x".repeat(3000);
    for (answer, shown) in
        [(Some("0"), "gives `0`"), (None, "gives nothing"), (Some("False"), "gives `False`")]
    {
        empty(&a);
        empty(&b);
        a.script(|s| s.answers.insert("two".into(), answer.map(str::to_owned)));
        let report = recover(&w).await;
        let (how, why) = outcome(&report);
        assert_eq!(how, Outcome::Failed);
        assert!(why.contains(&format!("smoke query `two` {shown}")), "{why}");
        assert!(why.contains("as the backup says") && why.contains("`backup undo a`"), "{why}");
        assert!(text_of(&a.live()).contains("hello world"), "the restored data stays live");
        assert!(report.steps.iter().any(|s| s.service.as_str() == "b" && s.is_ok()), "it stops no other");
        assert!(!a.log().contains(&Asked::Undo));
    }
    a.script(|s| s.answers.insert("two".into(), Some(long)));
    empty(&a);
    assert_eq!(recover(&w).await.outcome(), Outcome::Ok);
}

#[tokio::test]
async fn a_question_that_fails_or_hangs_fails_the_recovery() {
    let (w, a, _) = world().await;
    empty(&a);
    a.script(|s| s.failing.insert(Step::Ask));
    let (how, why) = outcome(&recover(&w).await);
    assert_eq!(how, Outcome::Failed);
    assert!(why.contains("smoke query `one` fails: ask fails, as the script says"), "{why}");
    assert!(why.contains("1 more of 2"), "{why}");

    tokio::time::pause();
    a.script(|s| (s.failing.clear(), s.hanging.insert(Step::Ask)));
    empty(&a);
    let (how, why) = outcome(&recover(&w).await);
    assert_eq!(how, Outcome::Failed);
    assert!(why.contains("smoke query `one` is not answered within 30 s"), "{why}");
}

/// The very case that nothing else finds: the newest backup is whole, restores, and holds nothing.
#[tokio::test]
async fn a_drill_of_a_valid_but_empty_backup_fails_and_damages_nothing() {
    let config = format!("guard.enabled = false\n{ASKING}");
    let (a, b) = (adapter(), adapter());
    let w = World::with_config(&config, &[("a", a.clone()), ("b", b)]).await;
    w.back_up().await;
    empty(&a);
    assert_eq!(w.back_up().await.outcome(), Outcome::Ok);
    w.clock.advance_secs(60);
    let (drill, run) = w.engine.drill(&DrillRequest::default()).await.unwrap();
    assert!(!drill.passed());
    let (how, why) = outcome(&run);
    assert_eq!(how, Outcome::Failed);
    assert!(why.contains("restores as it says") && why.contains("smoke query `one` gives `0`"), "{why}");
    let a_report = drill.services.iter().find(|s| s.service.as_str() == "a").unwrap();
    assert_eq!(a_report.phases.last().unwrap().phase, "clean-up", "what was made is removed all the same");
    // It is what was there: listed as before, and neither proven nor damaged.
    let newest =
        w.entries().await.into_iter().find(|e| e.id == a_report.backup.as_ref().unwrap().id).unwrap();
    assert_eq!((newest.state.word(), newest.last_verification()), ("good", None));
    let verified = w.verify(VerifyLevel::Restore).await;
    let of_a: Vec<Outcome> =
        verified.steps.iter().filter(|s| s.service.as_str() == "a").map(|s| s.outcome).collect();
    assert_eq!(of_a, [Outcome::Failed, Outcome::Ok], "the older one answers");
    assert!(verified.steps.iter().any(|s| s.notes == ["2 smoke queries passed"]), "{verified:?}");
}

#[tokio::test]
async fn damage_comes_before_any_answer() {
    let (w, a, _) = world().await;
    a.script(|s| s.answers.insert("one".into(), None));
    let newest = w.entries().await.into_iter().find(|e| e.id.service == super::a()).unwrap();
    let metadata = w.engine.catalog().metadata(&newest.id).await.unwrap();
    let key = newest.id.file(&metadata.artifacts[0].files[0].path).unwrap();
    w.damage(&key, |bytes| bytes[9] ^= 1).await;
    let (drill, run) = w.engine.drill(&DrillRequest::default()).await.unwrap();
    assert!(!drill.passed());
    assert_eq!(run.outcome(), Outcome::Damaged);
}

#[tokio::test]
async fn where_scratch_cannot_be_asked_the_drill_says_so() {
    let (w, a, _) = world().await;
    a.script(|s| s.mute_scratch = true);
    let (drill, run) = w.engine.drill(&DrillRequest::default()).await.unwrap();
    assert!(drill.passed());
    assert_eq!(notes(&run, "a"), ["smoke queries were not asked: no fake runs in scratch"]);
}
