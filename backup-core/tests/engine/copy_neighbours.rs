//! Copies beside others: who wrote there, who reads here, who died midway.

use backup_core::{Process, Reservation, RunId};

use super::copies::{THREE, Tiers, contents, copied, to, until_it_writes, without_own};
use super::*;

#[tokio::test]
async fn another_backup_of_the_same_name_is_left_alone_and_told() {
    let t = Tiers::new(&THREE.replace("copies = ['second', 'third']", ""), adapter()).await;
    t.w.back_up().await;
    // Another host of the same name wrote to that store in the same second.
    let other = Tiers::new(THREE, FakeAdapter::new().artifact("one", ["something else"])).await;
    other.w.back_up().await;
    let foreign = contents(&other.w.store).await;
    for (key, bytes) in &foreign {
        t.others["second"].create(&StoreKey::new(key.as_str()).unwrap(), bytes.clone()).await.unwrap();
    }
    let report = t.copy().await;
    let (result, error) = outcome(&report);
    assert!(result == Outcome::Failed && error.contains("another backup there"), "{error}");
    assert_eq!(contents(&t.others["second"]).await, foreign);
    // A directory that is not ours to judge is left alone as well.
    t.w.back_up().await;
    let id = t.w.entries().await[0].id.clone();
    let odd = id.file("dump.rdb").unwrap();
    t.others["second"].create(&odd, Bytes::from_static(b"old")).await.unwrap();
    assert_eq!(copied(&t.copy().await), 0);
    assert_eq!(t.others["second"].inner().head(&odd).await.unwrap().bytes, 3);
}

#[tokio::test]
async fn what_is_being_read_is_not_pruned() {
    let config = THREE.replace("copies = ['second', 'third']", "limits.bandwidth = '1B/s'");
    let t = Tiers::new(&config, adapter()).await;
    for _ in 0..3 {
        t.w.back_up().await;
    }
    let request = to("second");
    let mut copy = Box::pin(t.w.engine.copy(&request));
    until_it_writes(&mut copy, &t.others["second"]).await;
    // Another host's retention wants only one.
    let mut plan = t.w.engine.plan().clone();
    let hourly = plan.intervals.get_mut(&Interval::new("hourly").unwrap()).unwrap();
    let one = backup_core::retention::KeepLast::new(1).unwrap();
    hourly.policy = Some(backup_core::retention::Policy::keeping(one));
    let state = StateDir::open(t.w.dir.path().join("other")).unwrap();
    let other =
        Engine::builder(plan, t.w.engine.catalog().clone(), state).clock(Arc::new(t.w.clock.clone())).build();
    other.prune(&PruneRequest::default()).await.unwrap();
    assert_eq!(t.w.states().await.len(), 3, "all are being read");
    request.cancel.cancel();
    assert_eq!(copy.await.unwrap().outcome(), Outcome::Cancelled);
    assert!(contents(&t.others["second"]).await.is_empty(), "nothing half-made stays");
    other.prune(&PruneRequest::default()).await.unwrap();
    assert_eq!(t.w.states().await.len(), 1);
}

#[tokio::test]
async fn half_a_copy_from_elsewhere_goes_with_its_copier_and_is_left_alone_before() {
    let t = Tiers::new(&THREE.replace("copies = ['second', 'third']", ""), adapter()).await;
    t.w.back_up().await;
    let (id, now) = (t.w.entries().await[0].id.clone(), t.w.clock.now());
    let metadata = t.w.engine.catalog().metadata(&id).await.unwrap();
    let there = &t.others["second"];
    let half = async |process: Process| {
        let reservation = Reservation {
            run_id: RunId::generate(now),
            host: "h2".into(),
            process,
            started_at: now,
            commit_deadline: now + chrono::TimeDelta::hours(24),
            tool: "test".into(),
            copied_from: Some("elsewhere".into()),
        };
        let json = serde_json::to_vec(&reservation).unwrap();
        there.create(&id.file("run.json").unwrap(), json.into()).await.unwrap();
        let file = id.file(&metadata.artifacts[0].files[0].path).unwrap();
        there.create(&file, Bytes::from_static(b"half of it")).await.unwrap();
    };
    let living = Process { boot_id: "another host".into(), ..Process::this() };
    half(living).await;
    let before = contents(there).await;
    let (_, error) = outcome(&t.copy().await);
    assert!(error.contains("being written there by somebody else"), "{error}");
    assert_eq!(contents(there).await, before);
    t.w.clock.advance_secs(25 * 3600);
    assert_eq!(copied(&t.copy().await), 1, "its time is over");
    assert_eq!(without_own(contents(there).await), without_own(contents(&t.w.store).await));

    there.inner().delete_prefix(&StoreKey::new("a").unwrap()).await.unwrap();
    half(Process { pid: 0x3fff_fff0, ..Process::this() }).await;
    assert_eq!(copied(&t.copy().await), 1, "its process is gone");
    assert_eq!(without_own(contents(there).await), without_own(contents(&t.w.store).await));
}

#[tokio::test]
async fn a_copier_that_lost_its_lease_commits_nothing_and_removes_nothing() {
    let config = THREE.replace("copies = ['second', 'third']", "limits.bandwidth = '1B/s'");
    let t = Tiers::new(&config, adapter()).await;
    t.w.back_up().await;
    let there = &t.others["second"];
    let request = to("second");
    let mut slow = Box::pin(t.w.engine.copy(&request));
    until_it_writes(&mut slow, there).await;
    t.w.clock.advance_secs(2 * 3600);
    let before = contents(there).await;
    assert!(before.len() == 1 && !before.keys().any(|k| k.ends_with("metadata.json")), "{:?}", before.keys());
    request.cancel.cancel();
    assert_eq!(slow.await.unwrap().outcome(), Outcome::Cancelled);
    assert_eq!(contents(there).await, before, "what it wrote is the next one's to remove");
}

#[tokio::test]
async fn the_dead_and_the_late_keep_nothing_from_being_pruned() {
    let t = Tiers::new(&THREE.replace("copies = ['second', 'third']", ""), adapter()).await;
    for _ in 0..2 {
        t.w.back_up().await;
    }
    let ids: Vec<_> = t.w.entries().await.into_iter().map(|e| e.id).collect();
    let reading = async |process: Process| {
        let run = RunId::generate(t.w.clock.now());
        let text = serde_json::json!({
            "run_id": run,
            "host": "h2",
            "process": process,
            "expires_at": t.w.clock.now() + chrono::TimeDelta::hours(1),
            "service": "a",
            "ids": [ids[1]],
        });
        let key = StoreKey::new(format!(".leases/reading/{run}-x.a.json")).unwrap();
        t.w.store.create(&key, serde_json::to_vec(&text).unwrap().into()).await.unwrap();
        key
    };
    let mut plan = t.w.engine.plan().clone();
    let hourly = plan.intervals.get_mut(&Interval::new("hourly").unwrap()).unwrap();
    let one = backup_core::retention::KeepLast::new(1).unwrap();
    hourly.policy = Some(backup_core::retention::Policy::keeping(one));
    let pruner = Engine::builder(plan, t.w.engine.catalog().clone(), t.w.engine.state().clone())
        .clock(Arc::new(t.w.clock.clone()))
        .build();
    let would_go = async || -> usize {
        let plans = pruner.plan_prune(&PruneRequest::default()).await.unwrap();
        plans.iter().map(|p| p.plan.deletions().count()).sum()
    };
    let living = reading(Process { boot_id: "another host".into(), ..Process::this() }).await;
    assert_eq!(would_go().await, 0, "it is being read");
    t.w.clock.advance_secs(3601);
    assert_eq!(would_go().await, 1, "nobody reads for so long");
    let dead = reading(Process { pid: 0x3fff_fff0, ..Process::this() }).await;
    assert_eq!(would_go().await, 1, "its reader is gone");
    for key in [living, dead] {
        assert!(t.w.store.inner().head(&key).await.unwrap_err().is_not_found(), "{key} is removed");
    }
}
