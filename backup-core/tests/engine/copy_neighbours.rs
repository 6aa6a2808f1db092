//! Copies beside others: who wrote there, who reads here, who died midway.

use std::time::Instant;

use backup_core::engine::CopyRequest;
use backup_core::{Process, Reservation, RunId, StoreName};

use super::copies::{THREE, Tiers, contents, copied, to, until_it_writes, without_own};
use super::*;

fn name(name: &str) -> StoreName {
    StoreName::new(name).unwrap()
}

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

/// Whoever hangs is waited for; the others have long been served then.
#[tokio::test]
async fn a_store_that_hangs_holds_no_other_up() {
    let t = Tiers::new(&THREE.replace("copies = ['second', 'third']", ""), adapter()).await;
    t.w.back_up().await;
    // The first by the alphabet, at which the other would have to wait.
    t.others["second"].set_delay(Call::Writer, Duration::from_secs(24 * 3600));
    let request = CopyRequest { to: vec![name("second"), name("third")], ..CopyRequest::default() };
    let mut copy = Box::pin(t.w.engine.copy(&request));
    let served = async {
        while t.states_in("third").await != ["good"] || t.others["second"].calls_of(Call::Writer) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = &mut copy => panic!("a day has passed"),
        served = tokio::time::timeout(Duration::from_secs(60), served) => served.unwrap(),
    }
    assert_eq!(t.states_in("second").await, ["incomplete"]);
}

/// The steps are in the order of the stores, whichever ends first.
#[tokio::test]
async fn the_report_of_stores_at_once_is_in_their_order() {
    let t = Tiers::new(THREE, adapter()).await;
    for slow in ["second", "third"] {
        t.others[slow].set_delay(Call::Finish, Duration::from_millis(200));
        t.w.clock.advance_secs(60);
        let report = t.w.back_up().await;
        assert_eq!(outcome(&report), (Outcome::Ok, String::new()));
        let stores: Vec<_> =
            report.steps.iter().filter_map(|s| s.copies.as_ref()).map(|c| c.to.as_str()).collect();
        assert_eq!(stores, ["second", "third"], "{slow} was slow");
        t.others[slow].set_delay(Call::Finish, Duration::ZERO);
    }
}

/// Two names for one place: there is one lease there, and nothing is written twice.
#[tokio::test]
async fn two_names_of_one_store_are_served_one_after_the_other() {
    let mut t = Tiers::new(&THREE.replace(", keep = 1", ""), adapter()).await;
    let second = t.others["second"].clone();
    t.others.insert("third".to_owned(), second.clone());
    let engine = t.another_host(t.w.engine.state().clone(), "h1");
    engine.back_up(&BackupRequest::new(Interval::new("hourly").unwrap())).await.unwrap();
    let report = engine.copy(&CopyRequest::default()).await.unwrap();
    assert_eq!((outcome(&report), copied(&report)), ((Outcome::Unchanged, String::new()), 0));

    second.inner().delete_prefix(&StoreKey::new("a").unwrap()).await.unwrap();
    let report = engine.copy(&CopyRequest::default()).await.unwrap();
    assert_eq!((outcome(&report), copied(&report)), ((Outcome::Ok, String::new()), 1));
    assert_eq!(without_own(contents(&second).await), without_own(contents(&t.w.store).await));
}

/// However many stores are written to at once: the limit is that of all of them together.
#[tokio::test]
async fn the_bandwidth_is_shared_by_all_stores() {
    let config = THREE.replace("copies = ['second', 'third']", "limits.bandwidth = '1KiB/s'");
    let noise = |seed: u64| -> Vec<u8> {
        (0..50).flat_map(|n| (seed + n).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()).collect()
    };
    let fake = FakeAdapter::new().artifact("one", [noise(1)]).artifact("two", [noise(100)]);
    let t = Tiers::new(&config, fake).await;
    t.w.back_up().await;
    let metadata = t.w.engine.catalog().metadata(&t.w.entries().await[0].id).await.unwrap();
    let files: Vec<u64> = metadata.stored_files().map(|f| f.stored_bytes).collect();
    let began = Instant::now();
    let request = CopyRequest { to: vec![name("second"), name("third")], ..CopyRequest::default() };
    let report = t.w.engine.copy(&request).await.unwrap();
    assert_eq!((outcome(&report).0, copied(&report)), (Outcome::Ok, 2));
    // Each file twice, but for the last, which is not waited for.
    let paid = 2 * files.iter().sum::<u64>() - files.iter().max().unwrap();
    let least = Duration::from_millis(paid * 1000 / 1024);
    assert!(files.len() == 2 && began.elapsed() >= least, "{:?} for {files:?}", began.elapsed());
}
