//! The sweeper and a late writer: one of them wins, never both, and never neither.

use super::*;

#[tokio::test]
async fn nobody_sweeps_a_living_writer_before_its_deadline() {
    let w = World::new().await;
    let _draft = w.draft().await;
    w.clock.advance_secs(600);
    assert!(!w.catalog.sweep(&w.entries().await[0]).await.unwrap());
    assert_eq!(w.states().await, ["incomplete"]);
}

#[tokio::test]
async fn a_writer_that_wakes_up_after_the_sweeper_loses() {
    let w = World::new().await;
    let mut draft = w.draft().await;
    let metadata = w.metadata(draft.id(), draft.reservation());
    w.clock.advance_secs(601);
    assert!(w.catalog.sweep(&w.entries().await[0]).await.unwrap());
    assert_eq!(w.states().await, ["aborted"]);
    let error = draft.commit(&metadata).await.unwrap_err();
    assert!(matches!(error, BackupError::Refused(_)), "{error}");
    draft.discard().await.1.unwrap();
    assert_eq!(w.states().await, ["aborted"]);
    assert!(
        w.store.head(&key("redis/hourly/20260309_043820/redis.rdb.zst")).await.is_err(),
        "its data is gone"
    );
}

#[tokio::test]
async fn a_sweeper_that_comes_after_the_commit_loses() {
    let w = World::new().await;
    let mut draft = w.draft().await;
    let stale = w.entries().await;
    w.clock.advance_secs(601);
    draft.commit(&w.metadata(draft.id(), draft.reservation())).await.unwrap();
    assert!(!w.catalog.sweep(&stale[0]).await.unwrap());
    assert_eq!(w.states().await, ["good"]);
    assert!(w.store.head(&key("redis/hourly/20260309_043820/redis.rdb.zst")).await.is_ok());
}

#[tokio::test]
async fn a_writer_that_sleeps_for_weeks_finds_its_reservation_gone() {
    let w = World::new().await;
    let mut draft = w.draft().await;
    let metadata = w.metadata(draft.id(), draft.reservation());
    w.clock.advance_secs(601);
    w.catalog.sweep(&w.entries().await[0]).await.unwrap();
    w.clock.advance(TimeDelta::days(8));
    w.catalog.sweep(&w.entries().await[0]).await.unwrap();
    assert!(w.entries().await.is_empty());
    assert!(draft.commit(&metadata).await.is_err());
    assert!(w.entries().await.is_empty());
}

#[tokio::test]
async fn what_a_dead_process_of_this_boot_left_is_swept_at_once() {
    let w = World::new().await;
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let pid = child.id();
    child.wait().unwrap();
    let process = backup_core::Process { pid, ..backup_core::Process::this() };
    let reservation = Reservation { process: process.clone(), ..w.reservation() };
    let _draft = w.catalog.reserve(&redis(), &hourly(), reservation.clone()).await.unwrap();
    // The same process id on another boot or host says nothing.
    let process = backup_core::Process { boot_id: "another".into(), ..process };
    let elsewhere = Reservation { process, ..reservation };
    let _other = w.catalog.reserve(&redis(), &hourly(), elsewhere).await.unwrap();
    let mut swept = Vec::new();
    for entry in w.entries().await {
        swept.push((entry.id.timestamp.to_string(), w.catalog.sweep(&entry).await.unwrap()));
    }
    swept.sort();
    assert_eq!(swept, [("20260309_043820".to_owned(), true), ("20260309_043821".to_owned(), false)]);
}

/// It may be completed: whoever copies decides about it until its time is over.
#[tokio::test]
async fn half_a_copy_of_the_dead_stays_until_its_time_is_over() {
    let w = World::new().await;
    let process = backup_core::Process { pid: 0x3fff_fff0, ..backup_core::Process::this() };
    let copied_from = Some("elsewhere".to_owned());
    let reservation = Reservation { process, copied_from, ..w.reservation() };
    let draft = w.catalog.reserve(&redis(), &hourly(), reservation).await.unwrap();
    draft.create("redis.rdb.zst", Bytes::from_static(b"data")).await.unwrap();
    w.clock.advance_secs(600);
    assert!(!w.catalog.sweep(&w.entries().await[0]).await.unwrap());
    assert_eq!(w.states().await, ["incomplete"]);
    w.clock.advance_secs(1);
    assert!(w.catalog.sweep(&w.entries().await[0]).await.unwrap());
    assert_eq!(w.states().await, ["aborted"]);
    assert!(w.store.head(&draft.id().file("redis.rdb.zst").unwrap()).await.is_err());
    // A sweeper that is late does not empty what was made in the place of it.
    let stale = w.entries().await;
    w.store.inner().delete_prefix(&draft.id().dir()).await.unwrap();
    let anew = Reservation { copied_from: Some("elsewhere".into()), ..w.reservation() };
    let text = serde_json::to_vec(&anew).unwrap();
    w.store.create(&draft.id().file("run.json").unwrap(), text.into()).await.unwrap();
    draft.create("redis.rdb.zst", Bytes::from_static(b"data")).await.unwrap();
    assert!(!w.catalog.sweep(&stale[0]).await.unwrap());
    assert!(w.store.head(&draft.id().file("redis.rdb.zst").unwrap()).await.is_ok());
}

#[tokio::test]
async fn a_directory_that_we_did_not_make_is_never_swept() {
    let w = World::new().await;
    w.put("redis/hourly/20250101_000000/dump.rdb.gz", b"old").await;
    w.clock.advance(TimeDelta::days(1000));
    assert!(!w.catalog.sweep(&w.entries().await[0]).await.unwrap());
    assert_eq!(w.states().await, ["legacy"]);
}

#[tokio::test]
async fn a_sweep_that_fails_at_any_call_is_finished_by_the_next_one() {
    for n in 1.. {
        let w = World::new().await;
        let _draft = w.draft().await;
        w.clock.advance_secs(601);
        let stale = w.entries().await;
        w.store.set_fault(Some(Fault::once(n)));
        let _told = w.catalog.sweep(&stale[0]).await;
        let injected = w.store.injected();
        w.store.set_fault(None);
        w.catalog.sweep(&w.entries().await[0]).await.unwrap();
        assert_eq!(w.states().await, ["aborted"], "call {n}");
        assert!(w.store.head(&key("redis/hourly/20260309_043820/redis.rdb.zst")).await.is_err(), "call {n}");
        if injected == 0 {
            break;
        }
    }
}

#[tokio::test]
async fn what_no_backup_owns_goes_when_it_is_old() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(backup_core::LocalStore::new(dir.path()));
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at("20260309_043820"));
    let (catalog, _) = Catalog::init(store, clock).await.unwrap();
    let write = |name: &str, age: u64| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = std::fs::File::create(path).unwrap();
        let at = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
        file.set_modified(at).unwrap();
    };
    let day = 24 * 3600;
    let (small, unowned) = (
        [".runs/.tmp-old", ".leases/retention-a/.tmp-old"],
        ["redis/daily/20260301_000000/.tmp-old", "redis/daily/20260301_000001/a/.tmp-old"],
    );
    let stay = [
        ".runs/.tmp-new",
        ".leases/retention-a/.tmp-new",
        "redis/daily/20260308_000000/.tmp-new",
        ".runs/20200101_000000-aaaaaaaa.json",
        "other/daily/20260301_000000/.tmp-old",
    ];
    small.iter().for_each(|name| write(name, day + 60));
    unowned.iter().for_each(|name| write(name, 7 * day + 60));
    stay[..2].iter().for_each(|name| write(name, day - 600));
    write(stay[2], 7 * day - 600);
    stay[3..].iter().for_each(|name| write(name, 1000 * day));
    // A directory is as old as the last change in it.
    for name in ["20260301_000000", "20260301_000001/a", "20260301_000001"] {
        let dir = std::fs::File::open(dir.path().join("redis/daily").join(name)).unwrap();
        dir.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(8 * day)).unwrap();
    }
    for _ in 0..2 {
        catalog.sweep_abandoned(&["redis".parse().unwrap()]).await.unwrap();
        assert!(small.iter().chain(&unowned).all(|name| !dir.path().join(name).exists()));
        assert!(stay.iter().all(|name| dir.path().join(name).exists()));
        assert!(!dir.path().join("redis/daily/20260301_000000").exists(), "nor is its directory left");
        assert!(!dir.path().join("redis/daily/20260301_000001").exists());
    }
}
