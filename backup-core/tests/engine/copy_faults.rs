//! Copies that fail, are dropped, or meet another at any point.

use super::copies::{THREE, Tiers, contents, to};
use super::*;

/// Two backups here, nothing there.
async fn two() -> Tiers {
    let small = FakeAdapter::new().artifact("one", ["hello ", "world"]).artifact("two", ["!"]);
    let t = Tiers::new(&THREE.replace("copies = ['second', 'third']", ""), small).await;
    for _ in 0..2 {
        t.w.back_up().await;
    }
    t
}

/// What is there is whole, what is here is as it was, and the next copy completes without help.
async fn is_sound(t: &Tiers, before: &std::collections::BTreeMap<String, Bytes>, what: &str) {
    assert_eq!(contents(&t.w.store).await, *before, "{what}: what is here");
    let over = t.over("second").await;
    let all = VerifyRequest { all: true, ..VerifyRequest::new(VerifyLevel::Content) };
    let verified = over.verify(&all).await.unwrap();
    assert!(verified.is_ok(), "{what}: {:?}", outcome(&verified));
    // A lease that could not be given back runs out.
    t.w.clock.advance_secs(2 * 3600);
    let next = t.copy().await;
    assert!(next.is_ok(), "{what}: the next copy: {:?}", outcome(&next));
    assert_eq!(t.states_in("second").await, ["good"; 2], "{what}");
    let (mut here, mut there) = (before.clone(), contents(&t.others["second"]).await);
    here.retain(|key, _| !key.ends_with("/run.json"));
    there.retain(|key, _| !key.ends_with("/run.json") && !key.contains("/verify-"));
    assert_eq!(there, here, "{what}: the same bytes");
}

async fn at_every_call(at_source: bool, make: impl Fn(u64) -> Fault, label: &str) {
    for n in 1.. {
        let t = two().await;
        let before = contents(&t.w.store).await;
        let faulty = if at_source { t.w.store.clone() } else { t.others["second"].clone() };
        faulty.set_fault(Some(make(n)));
        let report = t.w.engine.copy(&to("second")).await;
        t.w.engine.shutdown().await;
        let injected = faulty.injected();
        faulty.set_fault(None);
        let what = format!("{label} {n}");
        if report.is_ok_and(|r| r.outcome() == Outcome::Ok) {
            assert_eq!(t.states_in("second").await, ["good"; 2], "{what}: a success that is not listed");
        }
        // Trouble on the way proves nothing about the bytes; only what the store says is lost for good does.
        let bad = contents(&t.w.store).await.into_keys().find(|key| key.contains("/verify-"));
        if bad.is_none() {
            is_sound(&t, &before, &what).await;
        } else {
            assert!(at_source, "{what}: {bad:?}");
        }
        if injected == 0 {
            assert!(n > 10, "{label}: only {n} calls");
            break;
        }
    }
}

#[tokio::test]
async fn one_failing_call_there() {
    at_every_call(false, Fault::once, "once").await;
}

#[tokio::test]
async fn a_store_that_dies_there() {
    at_every_call(false, Fault::from, "from").await;
}

#[tokio::test]
async fn lost_acknowledgements_there() {
    at_every_call(false, |n| Fault::once(n).done_anyway(), "lost").await;
}

#[tokio::test]
async fn a_store_that_fills_up_there() {
    at_every_call(false, |n| Fault::from(n).no_space(), "full").await;
}

#[tokio::test]
async fn one_failing_call_here() {
    at_every_call(true, Fault::once, "once, here").await;
}

#[tokio::test]
async fn a_store_that_dies_here() {
    at_every_call(true, Fault::from, "from, here").await;
}

#[tokio::test]
async fn a_copy_that_is_dropped_at_any_point_is_completed_by_the_next() {
    let mut dropped = 0;
    for polls in 0.. {
        let t = two().await;
        let before = contents(&t.w.store).await;
        let request = to("second");
        let mut copy = Box::pin(t.w.engine.copy(&request));
        let mut ended = false;
        for _ in 0..polls {
            if futures::poll!(&mut copy).is_ready() {
                ended = true;
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(copy);
        t.w.engine.shutdown().await;
        dropped += usize::from(!ended);
        is_sound(&t, &before, &format!("{polls} polls")).await;
        if ended {
            break;
        }
    }
    assert!(dropped > 10, "only {dropped} points");
}

#[tokio::test]
async fn of_two_copiers_at_once_one_copies_and_nothing_is_mixed() {
    for round in 0..10 {
        let t = two().await;
        let before = contents(&t.w.store).await;
        let state = StateDir::open(t.w.dir.path().join("state2")).unwrap();
        let second = t.another_host(state, "h2");
        let request = to("second");
        let (a, b) = tokio::join!(t.w.engine.copy(&request), second.copy(&request));
        let reports = [a.unwrap(), b.unwrap()];
        let copied = |r: &RunReport| r.steps[0].copies.as_ref().unwrap().copied.len();
        let counts = [copied(&reports[0]), copied(&reports[1])];
        assert!(counts == [2, 0] || counts == [0, 2], "round {round}: {counts:?}");
        let loser = &reports[usize::from(counts[0] == 2)];
        let (result, error) = outcome(loser);
        assert!(
            result == Outcome::Unchanged || error.contains("the lease `copy-a`"),
            "round {round}: {error}"
        );
        is_sound(&t, &before, &format!("round {round}")).await;
    }
}
