//! Retention after runs and on request.

use super::*;

#[tokio::test]
async fn a_run_keeps_what_the_policy_says_and_never_lets_failures_push_good_ones_out() {
    let fake = adapter();
    let w = World::new(fake.clone()).await;
    for _ in 0..4 {
        w.back_up().await;
    }
    assert_eq!(w.states().await, ["good", "good"]);
    let kept = w.entries().await;
    // Seven bad days: an emptied service, then one that fails.
    for _ in 0..4 {
        fake.script(|s| s.set_artifact("two", [vec![1_u8]]));
        assert_eq!(w.back_up().await.outcome(), Outcome::Suspect);
        fake.script(|s| s.failing.insert(Step::Open));
        assert_eq!(w.back_up().await.outcome(), Outcome::Failed);
        fake.script(|s| s.failing.clear());
    }
    w.engine.prune(&PruneRequest::default()).await.unwrap();
    let entries = w.entries().await;
    for entry in &kept {
        assert!(entries.iter().any(|e| e.id == entry.id && e.is_good()), "{} is gone", entry.id);
    }
}

#[tokio::test]
async fn a_plan_changes_nothing_and_what_is_held_stays() {
    let w = World::new(adapter()).await;
    w.back_up().await;
    let first = w.entries().await[0].id.clone();
    w.engine.mark(&first, backup_core::catalog::FactKind::Hold, None).await.unwrap();
    for _ in 0..4 {
        w.back_up().await;
    }
    let before = w.entries().await;
    assert!(before.iter().any(|e| e.id == first));
    w.engine.plan_prune(&PruneRequest::default()).await.unwrap();
    assert_eq!(w.entries().await, before);
}

#[tokio::test]
async fn pruning_works_on_a_full_store() {
    use backup_core::testkit::Call;
    let w = World::new(adapter()).await;
    for _ in 0..2 {
        w.back_up().await;
    }
    // A third one that was made elsewhere, so that there is something to prune.
    w.store.set_fault(None);
    w.clock.advance_secs(60);
    let hold = backup_core::catalog::FactKind::Hold;
    let oldest = w.entries().await[1].id.clone();
    w.engine.mark(&oldest, hold, None).await.unwrap();
    w.back_up().await;
    w.engine.mark(&oldest, backup_core::catalog::FactKind::Unhold, None).await.unwrap();
    assert_eq!(w.entries().await.len(), 3);
    w.store.set_fault(Some(
        Fault::from(1).only(&[Call::Create, Call::Writer, Call::Write, Call::Finish]).no_space(),
    ));
    let report = w.engine.prune(&PruneRequest::default()).await.unwrap();
    w.store.set_fault(None);
    assert_eq!(outcome(&report), (Outcome::Ok, String::new()));
    assert_eq!(w.entries().await.len(), 2);
    assert!(!w.events.warnings().is_empty(), "the report could not be written, and that is said");
}
