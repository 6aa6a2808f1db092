//! Stores that lock what is committed: until when, what retention does then, and what a failure leaves.

use backup_core::testkit::Call;
use backup_core::{ObjectLock, SplitStore, StoreKey};
use chrono::{DateTime, TimeDelta, Utc};
use futures::TryStreamExt;

use super::*;

const DAY: i64 = 24 * 3600;

async fn locking() -> World {
    let store = MemoryStore::new().with_object_lock(ObjectLock::For(Duration::from_secs(10 * 24 * 3600)));
    World::with_store(CONFIG, &[("a", adapter())], store).await
}

/// Until when each file of a backup is locked, but for the facts.
async fn locks(w: &World, entry: &Entry) -> Vec<(String, Option<DateTime<Utc>>)> {
    let keys: Vec<StoreKey> = w.store.list_keys(Some(&entry.id.dir())).try_collect().await.unwrap();
    let mut locks = Vec::new();
    for key in keys.iter().filter(|k| !k.file_name().starts_with("retain-")) {
        locks.push((key.file_name().to_owned(), w.store.lock(key, None).await.unwrap()));
    }
    locks
}

#[tokio::test]
async fn what_is_committed_is_locked_and_stays_for_as_long() {
    let w = locking().await;
    for _ in 0..4 {
        assert_eq!(w.back_up().await.outcome(), Outcome::Ok);
    }
    let entries = w.entries().await;
    assert_eq!(entries.len(), 4, "two would be kept: the locks keep the others");
    for entry in &entries {
        let made = entry.summary.as_ref().unwrap().backed_up_at;
        assert_eq!(entry.retain_until(), Some(made + TimeDelta::days(10)), "{}", entry.id);
        let locks = locks(&w, entry).await;
        assert!(locks.iter().any(|(name, _)| name == "metadata.json") && locks.len() >= 5, "{locks:?}");
        assert!(locks.iter().all(|(_, until)| *until == entry.retain_until()), "{locks:?}");
    }
    let newest = entries[0].retain_until();
    assert_eq!(w.store.lock(&StoreKey::new("store.json").unwrap(), None).await.unwrap(), newest);
    let plans = w.engine.plan_prune(&PruneRequest::default()).await.unwrap();
    let reasons: Vec<String> = plans[0].plan.items().iter().map(|i| i.reason.clone()).collect();
    assert!(reasons[3].contains("locked by the store until 2026-03-19T"), "{reasons:?}");
    // No word of a person changes it.
    let report = w
        .engine
        .remove(&[entries[3].id.clone()], "asked for", tokio_util::sync::CancellationToken::new())
        .await
        .unwrap();
    assert!(outcome(&report).1.contains("the store has locked it"), "{report:?}");

    w.clock.advance_secs(11 * DAY);
    w.engine.prune(&PruneRequest::default()).await.unwrap();
    assert_eq!(w.entries().await.len(), 2, "their time is over");
}

#[tokio::test]
async fn a_lock_that_fails_is_told_and_made_up_for() {
    let w = locking().await;
    // The last file, which is metadata.json: the others are locked by then.
    for first in [1, 5] {
        w.store.set_fault(Some(Fault::from(first).only(&[Call::Lock])));
        let report = w.back_up().await;
        w.store.set_fault(None);
        assert_eq!(report.outcome(), Outcome::Ok, "the backup is safe all the same");
        assert!(report.steps[0].notes.iter().any(|n| n.contains("not locked")), "{report:?}");
        assert!(w.events.warnings().iter().any(|w| w.contains("not locked")));
    }
    assert!(w.entries().await.iter().all(|e| e.is_good() && e.retain_until().is_none()));
    let status = &w.engine.status(&[]).await.unwrap()[0];
    assert!(status.problems.iter().any(|p| p.contains("is not locked in the store")), "{status:?}");
    w.back_up().await;
    for entry in w.entries().await {
        assert!(entry.retain_until().is_some(), "{}", entry.id);
        assert!(locks(&w, &entry).await.iter().all(|(_, until)| *until == entry.retain_until()));
    }
}

#[tokio::test]
async fn what_is_too_old_to_be_locked_is_left_alone() {
    let plain = World::new(adapter()).await;
    plain.back_up().await;
    plain.clock.advance_secs(11 * DAY);
    let store = plain.store.inner().clone();
    let store = store.with_object_lock(ObjectLock::For(Duration::from_secs(10 * 24 * 3600)));
    let catalog = Catalog::open(Arc::new(store), Arc::new(plain.clock.clone())).await.unwrap();
    let w = plain.over(catalog);
    w.back_up().await;
    let locked: Vec<bool> = w.entries().await.iter().map(|e| e.retain_until().is_some()).collect();
    assert_eq!(locked, [true, false]);
}

#[tokio::test]
async fn a_store_that_locks_by_itself_is_asked_for_how_long() {
    let store = MemoryStore::new().with_object_lock(ObjectLock::OfTheStore);
    let w = World::with_store(CONFIG, &[("a", adapter())], store).await;
    let report = w.back_up().await;
    // This one locks nothing: that is told, not believed.
    assert!(report.steps[0].notes.iter().any(|n| n.contains("has the bucket a default")), "{report:?}");
    let entry = &w.entries().await[0];
    assert_eq!(entry.retain_until(), None);
    let until = w.clock.now() + TimeDelta::days(3);
    let keys: Vec<StoreKey> = w.store.list_keys(Some(&entry.id.dir())).try_collect().await.unwrap();
    for key in &keys {
        w.store.lock(key, Some(until)).await.unwrap();
    }
    // The newer one is not locked, the older one is.
    w.back_up().await;
    let found: Vec<_> = w.entries().await.iter().map(Entry::retain_until).collect();
    assert_eq!(found, [None, Some(until)]);
}

#[tokio::test]
async fn leases_can_be_outside_of_what_is_locked() {
    let (main, beside) = (MemoryStore::new(), MemoryStore::new());
    let split = SplitStore::with_leases_in(Arc::new(main.clone()), Arc::new(beside.clone()));
    let w = World::new(adapter()).await;
    let (catalog, _) = Catalog::init(Arc::new(split), Arc::new(w.clock.clone())).await.unwrap();
    let w = w.over(catalog);
    for _ in 0..3 {
        w.back_up().await;
    }
    assert_eq!(w.entries().await.len(), 2, "one went, under a lease");
    let leases = |keys: Vec<StoreKey>| keys.iter().filter(|k| k.as_str().starts_with(".leases/")).count();
    let all: Vec<StoreKey> = main.list_keys(None).try_collect().await.unwrap();
    assert_eq!(leases(all), 0);
    let all: Vec<StoreKey> = beside.list_keys(None).try_collect().await.unwrap();
    assert!(leases(all.clone()) >= 1 && leases(all.clone()) == all.len(), "{all:?}");
}

#[tokio::test]
async fn what_never_changes_stays_locked() {
    let store = MemoryStore::new().with_object_lock(ObjectLock::For(Duration::from_secs(10 * 24 * 3600)));
    let w = World::with_store(CONFIG, &[("a", adapter().only_if_changed())], store).await;
    let mut locks = std::collections::BTreeSet::new();
    for _ in 0..100 {
        w.back_up().await;
        let entries = w.entries().await;
        assert_eq!(entries.len(), 1, "nothing changed");
        let until = entries[0].retain_until().unwrap();
        assert!(until >= w.clock.now() + TimeDelta::days(10) - TimeDelta::minutes(1), "{until}");
        locks.insert(until);
        w.clock.advance_secs(6 * 3600);
    }
    // In 25 days about once a day, not at every run.
    assert!((20..=30).contains(&locks.len()), "{}", locks.len());
}
