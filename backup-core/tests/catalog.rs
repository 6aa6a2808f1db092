//! The catalog's protocol: who wins, what is listed as what, and what survives a crash at any call.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use async_trait::async_trait;
use backup_core::catalog::{
    BackupState, Catalog, Draft, Entry, FactKind, Filter, PurgeExternal, VerifyLevel,
};
use backup_core::testkit::{Fault, FaultyStore, ManualClock};
use backup_core::{
    AdapterError, BackupError, BackupId, Capture, Clock, Consistency, Evidence, ExternalRef, FORMAT_VERSION,
    FactBody, Interval, MemoryStore, Metadata, Reservation, RunId, ServiceName, Settlement, Status, Store,
    StoreKey, Timestamp, WriteOptions,
};
use bytes::Bytes;
use chrono::TimeDelta;

#[path = "catalog/careless.rs"]
mod careless;
#[path = "catalog/deletion.rs"]
mod deletion;
#[path = "catalog/leases.rs"]
mod leases;
#[path = "catalog/races.rs"]
mod races;
#[path = "catalog/states.rs"]
mod states;
#[path = "catalog/sweeping.rs"]
mod sweeping;

struct World {
    store: FaultyStore<MemoryStore>,
    clock: ManualClock,
    catalog: Catalog,
}

fn redis() -> ServiceName {
    ServiceName::new("redis").unwrap()
}

fn hourly() -> Interval {
    Interval::new("hourly").unwrap()
}

fn key(text: &str) -> StoreKey {
    StoreKey::new(text).unwrap()
}

impl World {
    async fn new() -> Self {
        let store = FaultyStore::new(MemoryStore::new());
        let clock = ManualClock::at("20260309_043820");
        let (catalog, new) = Catalog::init(Arc::new(store.clone()), Arc::new(clock.clone())).await.unwrap();
        assert!(new);
        Self { store, clock, catalog }
    }

    /// A reservation of a process that lives: this one.
    fn reservation(&self) -> Reservation {
        let now = self.clock.now();
        Reservation {
            run_id: RunId::generate(now),
            host: "h1".into(),
            process: backup_core::Process::this(),
            started_at: now,
            commit_deadline: now + TimeDelta::seconds(600),
            tool: "test".into(),
            copied_from: None,
        }
    }

    async fn draft(&self) -> Draft {
        let draft = self.catalog.reserve(&redis(), &hourly(), self.reservation()).await.unwrap();
        let mut writer = draft.writer("redis.rdb.zst", WriteOptions::data(None)).await.unwrap();
        writer.write(Bytes::from_static(b"data")).await.unwrap();
        writer.finish().await.unwrap();
        draft
    }

    async fn commit(&self) -> BackupId {
        let mut draft = self.draft().await;
        draft.commit(&self.metadata(draft.id(), draft.reservation())).await.unwrap();
        draft.id().clone()
    }

    fn metadata(&self, id: &BackupId, reservation: &Reservation) -> Metadata {
        let now = self.clock.now();
        Metadata {
            service: id.service.clone(),
            interval: id.interval.clone(),
            timestamp: id.timestamp,
            size_bytes: 4,
            status: Status::Success,
            host: "h1".into(),
            backed_up_at: now,
            format_version: FORMAT_VERSION,
            features: Vec::new(),
            requires: Vec::new(),
            store_id: self.catalog.store_id().to_owned(),
            run_id: reservation.run_id.clone(),
            tool: "test".into(),
            adapter: "fake".into(),
            service_version: None,
            image: None,
            consistency: Consistency::Dump,
            consistent_from: now,
            consistent_to: now,
            capture: Capture::default(),
            artifacts: vec![
                serde_json::from_value(serde_json::json!({
                    "name": "redis",
                    "files": [{"path": "redis.rdb.zst", "stored_bytes": 4, "stored_sha256": ""}],
                }))
                .unwrap(),
            ],
            evidence: Evidence::default(),
            encryption: None,
            suspect_because: Vec::new(),
            unknown: std::collections::BTreeMap::new(),
        }
    }

    async fn entries(&self) -> Vec<Entry> {
        let listing = self.catalog.list(&Filter::default()).await.unwrap();
        assert!(listing.errors.is_empty(), "{:?}", listing.errors);
        listing.entries
    }

    async fn states(&self) -> Vec<&'static str> {
        self.entries().await.iter().map(|e| e.state.word()).collect()
    }

    async fn put(&self, name: &str, text: &[u8]) {
        self.store.inner().create(&key(name), Bytes::copy_from_slice(text)).await.unwrap();
    }

    async fn replace(&self, name: &str, text: &[u8]) {
        self.store.inner().delete(&key(name)).await.unwrap();
        self.put(name, text).await;
    }

    fn fact(&self) -> FactBody {
        let at = self.clock.now();
        let run_id = RunId::generate(at);
        FactBody { at, run_id, host: "h1".into(), note: None, findings: Vec::new(), duration_ms: 0, bytes: 0 }
    }
}

/// Records what it was asked to purge.
#[derive(Debug, Default)]
struct Purged(std::sync::Mutex<Vec<String>>);

#[async_trait]
impl PurgeExternal for Purged {
    async fn purge(&self, _: &BackupId, adapter: &str, refs: &[ExternalRef]) -> Result<(), AdapterError> {
        let mut seen = self.0.lock().unwrap();
        seen.extend(refs.iter().map(|r| format!("{adapter}:{}", r.id)));
        Ok(())
    }
}

#[tokio::test]
async fn a_root_without_its_mark_is_refused_and_marking_twice_changes_nothing() {
    let (store, clock) = (MemoryStore::new(), ManualClock::at("20260309_043820"));
    let store = || Arc::new(store.clone());
    let clock = || Arc::new(clock.clone());
    let error = Catalog::open(store(), clock()).await.unwrap_err();
    assert!(error.to_string().contains("backup init"), "{error}");
    let (first, _) = Catalog::init(store(), clock()).await.unwrap();
    let (second, new) = Catalog::init(store(), clock()).await.unwrap();
    assert!(!new);
    assert_eq!(first.store_id(), second.store_id());
}

#[tokio::test]
async fn names_move_forward_in_one_second_and_when_the_clock_goes_back() {
    let w = World::new().await;
    let (a, b) = (w.commit().await, w.commit().await);
    assert_eq!(
        (a.timestamp.to_string(), b.timestamp.to_string()),
        ("20260309_043820".into(), "20260309_043821".into())
    );
    w.clock.advance_secs(-3600);
    assert_eq!(w.commit().await.timestamp, b.timestamp.next());
}

#[tokio::test]
async fn of_many_racers_each_gets_a_directory_of_its_own() {
    let w = World::new().await;
    let (service, interval) = (redis(), hourly());
    let racers = (0..20).map(|_| w.catalog.reserve(&service, &interval, w.reservation()));
    let drafts: Vec<Draft> = futures::future::try_join_all(racers).await.unwrap();
    let ids: std::collections::BTreeSet<String> = drafts.iter().map(|d| d.id().to_string()).collect();
    assert_eq!(ids.len(), 20);
}

#[tokio::test]
async fn a_backup_is_listed_as_good_from_its_commit_on_and_not_before() {
    let w = World::new().await;
    let mut draft = w.draft().await;
    assert_eq!(w.states().await, ["incomplete"]);
    draft.commit(&w.metadata(draft.id(), draft.reservation())).await.unwrap();
    assert_eq!(w.states().await, ["good"]);
    let listing = w.catalog.list(&Filter::default()).await.unwrap();
    assert_eq!(listing.newest_good(&redis(), None).unwrap().id, *draft.id());
    let before = Timestamp::new(w.clock.now() - TimeDelta::seconds(1));
    assert!(listing.newest_good(&redis(), Some(before)).is_none());
}

#[tokio::test]
async fn a_discarded_draft_leaves_nothing() {
    let w = World::new().await;
    w.draft().await.discard().await.1.unwrap();
    assert!(w.entries().await.is_empty());
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_a_commit() {
    let w = World::new().await;
    let mut draft = w.draft().await;
    let metadata = w.metadata(draft.id(), draft.reservation());
    w.store.set_fault(Some(Fault::once(1).only(&[backup_core::testkit::Call::Create]).done_anyway()));
    draft.commit(&metadata).await.unwrap();
    assert_eq!(w.states().await, ["good"]);
}

/// Whatever call fails while a store is made, there is a whole mark or none, and it can be made again.
#[tokio::test]
async fn making_a_store_can_be_repeated_after_any_failing_call() {
    for make in [Fault::once, |n| Fault::from(n).no_space(), |n| Fault::once(n).done_anyway()] {
        for n in 1.. {
            let store = FaultyStore::with_fault(MemoryStore::new(), make(n));
            let clock: Arc<dyn Clock> = Arc::new(ManualClock::at("20260309_043820"));
            let init = || Catalog::init(Arc::new(store.clone()), Arc::clone(&clock));
            let first = init().await;
            let injected = store.injected();
            store.set_fault(None);
            let (again, new) = init().await.unwrap();
            assert_eq!(store.inner().list_dirs(None).await.unwrap(), [""; 0], "{n}");
            if let Ok((first, was_new)) = &first {
                assert!(*was_new && !new && first.store_id() == again.store_id(), "{n}");
            }
            if injected == 0 {
                assert!(n > 1 && first.is_ok());
                break;
            }
        }
    }
}

/// Whatever call fails during commit and discard, the directory is either good and whole, or not listed as good.
#[tokio::test]
async fn commit_and_discard_are_decided_at_every_failing_call() {
    for done_anyway in [false, true] {
        for n in 1.. {
            let w = World::new().await;
            let mut draft = w.draft().await;
            let (id, metadata) = (draft.id().clone(), w.metadata(draft.id(), draft.reservation()));
            let fault = Fault::once(n);
            w.store.set_fault(Some(if done_anyway { fault.done_anyway() } else { fault }));
            let committed = draft.commit(&metadata).await;
            let settled = match committed {
                Ok(()) => Settlement::Committed(id.clone()),
                // As after the engine's own failure; its error is only told.
                Err(_) => draft.discard().await.0,
            };
            let injected = w.store.injected();
            w.store.set_fault(None);
            let data = w.store.head(&id.file("redis.rdb.zst").unwrap()).await.is_ok();
            let good = w.states().await == ["good"];
            assert!(!good || data, "call {n}: listed as good without its data");
            assert!(committed.is_err() || good, "call {n}: committed but not listed");
            match settled {
                Settlement::Committed(_) => assert!(good, "call {n}: settled as committed, but not listed"),
                Settlement::Abandoned => assert!(!good, "call {n}: settled as abandoned, but listed"),
                // Never after a single fault: the store can be asked again.
                other => panic!("call {n}: {other:?}"),
            }
            if injected == 0 {
                break;
            }
        }
    }
}

#[tokio::test]
async fn the_listing_cache_is_only_a_shortcut() {
    let w = World::new().await;
    let dir = tempfile::tempdir().unwrap();
    let cached = w.catalog.clone().with_cache(dir.path().to_owned());
    let (first, second) = (w.commit().await, w.commit().await);
    let plain = w.catalog.list(&Filter::default()).await.unwrap();
    for _ in 0..2 {
        assert_eq!(cached.list(&Filter::default()).await.unwrap().entries, plain.entries);
    }
    let reads = |w: &World| w.store.calls_of(backup_core::testkit::Call::Read);
    let before = reads(&w);
    cached.list(&Filter::default()).await.unwrap();
    assert_eq!(reads(&w), before, "a warm listing reads no metadata.json");
    w.catalog.delete(&first, &Purged::default()).await.unwrap();
    let left = cached.list(&Filter::default()).await.unwrap();
    assert_eq!(left.entries.iter().map(|e| e.id.clone()).collect::<Vec<_>>(), [second]);
    for file in std::fs::read_dir(dir.path()).unwrap() {
        std::fs::write(file.unwrap().path(), b"rubbish").unwrap();
    }
    assert_eq!(cached.list(&Filter::default()).await.unwrap().entries.len(), 1);
}
