//! Deletions, facts and verifications that meet.

use super::*;

#[tokio::test]
async fn a_hold_that_comes_after_the_plan_keeps_the_backup() {
    let w = World::new().await;
    let id = w.commit().await;
    w.catalog.add_fact(&id, FactKind::Hold, &w.fact()).await.unwrap();
    let error = w.catalog.delete(&id, &Purged::default()).await.unwrap_err();
    assert!(error.to_string().contains("is held"), "{error}");
    assert_eq!(w.states().await, ["good"]);
    assert!(w.store.head(&id.file("redis.rdb.zst").unwrap()).await.is_ok());
    w.catalog.add_fact(&id, FactKind::Unhold, &w.fact()).await.unwrap();
    w.catalog.delete(&id, &Purged::default()).await.unwrap();
    assert!(w.entries().await.is_empty());
}

#[tokio::test]
async fn a_fact_about_a_deleted_backup_is_refused_and_leaves_no_directory() {
    let w = World::new().await;
    let id = w.commit().await;
    w.catalog.delete(&id, &Purged::default()).await.unwrap();
    for kind in [FactKind::Hold, FactKind::Verify { level: VerifyLevel::Stored, ok: true }] {
        let error = w.catalog.add_fact(&id, kind, &w.fact()).await.unwrap_err();
        assert!(error.to_string().contains("was deleted"), "{error}");
    }
    assert!(w.entries().await.is_empty());
    // While it is being deleted, too.
    let id = w.commit().await;
    w.store.rename(&id.file("metadata.json").unwrap(), &id.file("tombstone.json").unwrap()).await.unwrap();
    w.catalog.add_fact(&id, FactKind::Hold, &w.fact()).await.unwrap_err();
    assert_eq!(w.states().await, ["deleting"]);
}

#[tokio::test]
async fn a_stray_fact_is_what_a_deletion_left_and_not_a_legacy_backup() {
    let w = World::new().await;
    w.put("redis/hourly/20250101_000000/verify-20250101_000001-stored-ok.json", b"{}").await;
    assert_eq!(w.states().await, ["deleting"]);
    w.catalog.delete(&w.entries().await[0].id, &Purged::default()).await.unwrap();
    assert!(w.entries().await.is_empty());
}

#[tokio::test]
async fn contents_without_a_file_are_unreadable() {
    let w = World::new().await;
    for artifacts in [vec![], vec![serde_json::from_value(serde_json::json!({"name": "x"})).unwrap()]] {
        let mut draft = w.draft().await;
        let metadata = Metadata { artifacts, ..w.metadata(draft.id(), draft.reservation()) };
        draft.commit(&metadata).await.unwrap();
    }
    assert_eq!(w.states().await, ["unreadable", "unreadable"]);
}

#[tokio::test]
async fn no_cache_sways_a_decision_to_delete_and_the_truth_mends_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let mut w = World::new().await;
    w.catalog = w.catalog.with_cache(dir.path().to_owned());
    let id = w.commit().await;
    assert_eq!(w.states().await, ["good"]);
    let key = id.file("metadata.json").unwrap();
    w.store.inner().delete(&key).await.unwrap();
    w.store.inner().create(&key, Bytes::from_static(b"{\"service\":")).await.unwrap();
    let listing = w.catalog.list_uncached(&Filter::default()).await.unwrap();
    assert_eq!(listing.entries[0].state.word(), "unreadable");
    assert_eq!(w.states().await, ["unreadable"]);
}

#[tokio::test]
async fn a_copy_in_the_place_of_a_given_up_one_is_not_taken_for_that() {
    let dir = tempfile::tempdir().unwrap();
    let mut w = World::new().await;
    w.catalog = w.catalog.with_cache(dir.path().to_owned());
    let draft = w.draft().await;
    let id = draft.id().clone();
    let good = serde_json::to_vec(&w.metadata(&id, draft.reservation())).unwrap();
    w.clock.advance_secs(100_000);
    w.catalog.sweep(&w.entries().await[0]).await.unwrap();
    assert_eq!(w.states().await, ["aborted"], "and that is in the cache");
    // As a copier does, once the time of the dead writer is over.
    let key = id.file("metadata.json").unwrap();
    w.store.inner().delete(&key).await.unwrap();
    w.put(id.file("redis.rdb.zst").unwrap().as_str(), b"data").await;
    w.store.inner().create(&key, good.into()).await.unwrap();
    assert_eq!(w.states().await, ["good"]);
    w.catalog.sweep(&w.entries().await[0]).await.unwrap();
    assert!(w.store.head(&id.file("redis.rdb.zst").unwrap()).await.is_ok(), "it was swept");
}

#[tokio::test]
async fn a_warm_listing_reads_nothing_that_it_knows_and_trusts_no_cache_for_what_is_gone() {
    const MANY: usize = 2000;
    let dir = tempfile::tempdir().unwrap();
    let mut w = World::new().await;
    w.catalog = w.catalog.with_cache(dir.path().to_owned());
    let first = w.commit().await;
    let text: serde_json::Value = serde_json::to_value(w.catalog.metadata(&first).await.unwrap()).unwrap();
    for n in 1..MANY {
        let at = (w.clock.now() - chrono::TimeDelta::hours(n.try_into().unwrap())).format("%Y%m%d_%H%M%S");
        let mut text = text.clone();
        text["timestamp"] = at.to_string().into();
        let key = format!("{}/{at}/metadata.json", first.dir().parent().unwrap());
        w.put(&key, &serde_json::to_vec(&text).unwrap()).await;
    }
    let requests = async |w: &World| {
        let before = w.store.calls();
        let states = w.states().await;
        (states.iter().filter(|s| **s == "good").count(), w.store.calls() - before)
    };
    let (good, cold) = requests(&w).await;
    assert!(good == MANY && cold >= MANY as u64, "{good} {cold}");
    let (good, warm) = requests(&w).await;
    assert!(good == MANY && warm < 10, "{good} {warm}");
    // What is not listed any more is not, whatever the cache knows.
    w.store.inner().delete_prefix(&first.dir()).await.unwrap();
    assert_eq!(requests(&w).await.0, MANY - 1);
    // A damaged cache costs time, and is written anew.
    let file = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    for damage in ["", "{", "{\"redis/hourly\":[[1,2]]}", "\0\0"] {
        std::fs::write(&file, damage).unwrap();
        let (good, cold) = requests(&w).await;
        assert!(good == MANY - 1 && cold >= MANY as u64 - 1, "{damage:?}: {good} {cold}");
        let (good, warm) = requests(&w).await;
        assert!(good == MANY - 1 && warm < 10, "{damage:?}: {good} {warm}");
    }
}
