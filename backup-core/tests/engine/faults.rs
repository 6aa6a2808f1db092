//! A store that fails its n-th call, for every n.

use super::*;

/// Afterwards every backup listed as good verifies, and the next run succeeds without help.
async fn at_every_call(make: impl Fn(u64) -> Fault, label: &str) {
    for n in 1.. {
        let fake = adapter();
        let w = World::new(fake.clone()).await;
        assert_eq!(w.back_up().await.outcome(), Outcome::Ok);
        w.store.set_fault(Some(make(n)));
        w.clock.advance_secs(60);
        let report = w.engine.back_up(&BackupRequest::new(Interval::new("hourly").unwrap())).await;
        w.engine.shutdown().await;
        let injected = w.store.injected();
        w.store.set_fault(None);
        let claimed = report.as_ref().is_ok_and(|r| r.outcome() == Outcome::Ok);
        let good = w.entries().await.iter().filter(|e| e.is_good()).count();
        assert!(good >= 1, "{label} {n}: the older backup is gone");
        assert!(!claimed || good >= 2, "{label} {n}: a success that is not listed");
        let verified = w.verify(VerifyLevel::Content).await;
        assert!(verified.is_ok(), "{label} {n}: {:?}", outcome(&verified));
        let next = w.back_up().await;
        assert_eq!(outcome(&next), (Outcome::Ok, String::new()), "{label} {n}: the next run");
        let captured = fake.log().iter().filter(|c| matches!(c, Asked::Release(_))).count();
        let settled =
            fake.log().iter().filter(|c| matches!(c, Asked::Settle { .. } | Asked::SettleUnknown)).count();
        assert_eq!(captured, settled, "{label} {n}: every capture is released and settled");
        if injected == 0 {
            assert!(n > 20, "{label}: only {n} calls");
            break;
        }
    }
}

#[tokio::test]
async fn one_failing_call() {
    at_every_call(Fault::once, "once").await;
}

#[tokio::test]
async fn a_store_that_dies() {
    at_every_call(Fault::from, "from").await;
}

#[tokio::test]
async fn lost_acknowledgements() {
    at_every_call(|n| Fault::once(n).done_anyway(), "lost").await;
}

#[tokio::test]
async fn a_store_that_fills_up() {
    at_every_call(|n| Fault::from(n).no_space(), "full").await;
}

#[tokio::test]
async fn a_commit_that_nobody_can_judge_is_neither_acknowledged_nor_deleted_but_left_to_reclaim() {
    let (mut listed, mut not_listed) = (0, 0);
    for n in 1.. {
        for arrives in [true, false] {
            let fake = adapter();
            let w = World::new(fake.clone()).await;
            // From some call on, nothing that is asked of the store has an answer.
            let fault = Fault::from(n).only(&[Call::Create, Call::Read]);
            w.store.set_fault(Some(if arrives { fault.done_anyway() } else { fault }));
            let report = w.back_up().await;
            let injected = w.store.injected();
            w.store.set_fault(None);
            let good = w.states().await == ["good"];
            let what = format!("call {n}, {arrives}");
            if fake.log().contains(&Asked::Settle { committed: true }) {
                assert!(good && report.is_ok(), "{what}: settled as committed");
            }
            if fake.log().contains(&Asked::Settle { committed: false }) {
                assert!(!good, "{what}: settled as abandoned, but listed");
            }
            if fake.log().contains(&Asked::SettleUnknown) {
                *(if good { &mut listed } else { &mut not_listed }) += 1;
                assert!(
                    !report.is_ok() && report.steps[0].notes[0].contains("may be committed"),
                    "{report:?}"
                );
                assert_eq!(w.back_up().await.outcome(), Outcome::Ok, "{what}");
                assert!(
                    fake.log().contains(&Asked::Reclaim(vec![report.run_id])),
                    "{what}: {:?}",
                    fake.log()
                );
                assert_eq!(std::fs::read_dir(w.dir.path().join("state/runs")).unwrap().count(), 0, "{what}");
            }
            if injected == 0 {
                assert!(listed > 0 && not_listed > 0, "{listed}, {not_listed}");
                return;
            }
        }
    }
}
