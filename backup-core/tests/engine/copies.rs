//! Copies to other stores: what travels, what does not, and what is kept where.

use std::collections::BTreeMap;

use backup_core::engine::{CopyAction, CopyRequest};
use backup_core::{Reservation, StoreName, StoreRegistry};
use futures::TryStreamExt;

use super::*;

pub(super) const THREE: &str = "
store.url = 'memory://first'
copies = ['second', 'third']
intervals.hourly = { services = ['a'] }
services.a = { kind = 'fake' }
stores.second = { url = 'memory://second' }
stores.third = { url = 'memory://third', keep = 1 }
";

type Stores = BTreeMap<String, FaultyStore<MemoryStore>>;

/// A host with three stores.
pub(super) struct Tiers {
    pub(super) w: World,
    pub(super) others: Stores,
}

fn registry(stores: Stores) -> StoreRegistry {
    StoreRegistry::new().with_scheme("memory", move |url, _| {
        let found = stores.get(url.host_str().unwrap_or_default()).cloned();
        async move {
            let store = found.ok_or_else(|| ConfigError::new("no such store"))?;
            Ok(Arc::new(store) as Arc<dyn Store>)
        }
    })
}

impl Tiers {
    pub(super) async fn new(config: &str, fake: FakeAdapter) -> Self {
        let w = World::with_config(config, &[("a", fake)]).await;
        let mut others = Stores::new();
        for name in ["second", "third"] {
            let store = FaultyStore::new(MemoryStore::new());
            Catalog::init(Arc::new(store.clone()), Arc::new(w.clock.clone())).await.unwrap();
            others.insert(name.to_owned(), store);
        }
        let tiers = Self { w, others };
        let engine = tiers.another_host(tiers.w.engine.state().clone(), "h1");
        Self { w: World { engine, ..tiers.w }, ..tiers }
    }

    /// An engine over the same stores.
    pub(super) fn another_host(&self, state: StateDir, host: &str) -> Engine {
        self.another_host_with(self.w.engine.plan().clone(), state, host)
    }

    /// One that has other plans for them.
    pub(super) fn another_host_with(
        &self,
        plan: backup_core::plan::BackupPlan,
        state: StateDir,
        host: &str,
    ) -> Engine {
        let w = &self.w;
        let mut all = self.others.clone();
        all.insert("first".to_owned(), w.store.clone());
        Engine::builder(plan, w.engine.catalog().clone(), state)
            .clock(Arc::new(w.clock.clone()))
            .events(Arc::new(w.events.clone()))
            .host(host)
            .lock_patience(Duration::ZERO)
            .stores(registry(all))
            .build()
    }

    /// An engine over one of the stores, as `--store NAME` makes it.
    pub(super) async fn over(&self, name: &str) -> Engine {
        let w = &self.w;
        let store: Arc<dyn Store> = Arc::new(self.others[name].clone());
        let catalog = Catalog::open(store, Arc::new(w.clock.clone())).await.unwrap();
        Engine::builder(w.engine.plan().for_store(name).unwrap(), catalog, w.engine.state().clone())
            .clock(Arc::new(w.clock.clone()))
            .lock_patience(Duration::ZERO)
            .build()
    }

    pub(super) async fn copy(&self) -> RunReport {
        self.w.clock.advance_secs(1);
        let report = self.w.engine.copy(&to("second")).await.unwrap();
        self.w.engine.shutdown().await;
        report
    }

    /// The states in a store, newest first.
    pub(super) async fn states_in(&self, name: &str) -> Vec<&'static str> {
        let listing = self.over(name).await.catalog().list(&Filter::default()).await.unwrap();
        listing.entries.iter().map(|e| e.state.word()).collect()
    }
}

pub(super) fn to(name: &str) -> CopyRequest {
    CopyRequest { to: vec![StoreName::new(name).unwrap()], ..CopyRequest::default() }
}

/// Drives a slow copy until it writes to `there`.
pub(super) async fn until_it_writes(
    copy: &mut (impl Future<Output: Sized> + Unpin),
    there: &FaultyStore<MemoryStore>,
) {
    let writing = async {
        while there.calls_of(Call::Write) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        _ = copy => panic!("at one byte a second"),
        () = writing => {}
    }
}

/// Every object of the service, but for what each store has of its own.
pub(super) async fn contents(store: &FaultyStore<MemoryStore>) -> BTreeMap<String, Bytes> {
    let a = StoreKey::new("a").unwrap();
    let keys: Vec<StoreKey> = store.inner().list_keys(Some(&a)).try_collect().await.unwrap();
    let mut found = BTreeMap::new();
    for key in keys {
        let bytes = store.inner().head(&key).await.unwrap().bytes;
        found.insert(key.to_string(), store.inner().read_range(&key, 0..bytes).await.unwrap());
    }
    found
}

pub(super) fn without_own(mut contents: BTreeMap<String, Bytes>) -> BTreeMap<String, Bytes> {
    contents.retain(|key, _| !key.ends_with("/run.json"));
    contents
}

pub(super) fn copied(report: &RunReport) -> usize {
    report.steps.iter().filter_map(|s| s.copies.as_ref()).map(|c| c.copied.len()).sum()
}

#[tokio::test]
async fn a_run_copies_what_it_made_byte_for_byte() {
    let t = Tiers::new(THREE, adapter()).await;
    let report = t.w.back_up().await;
    assert_eq!(outcome(&report), (Outcome::Ok, String::new()));
    let kinds: Vec<_> = report.steps.iter().map(|s| s.kind.as_str()).collect();
    assert_eq!(kinds, ["back-up", "copy", "copy"]);
    let here = contents(&t.w.store).await;
    assert_eq!(here.len(), 6);
    for name in ["second", "third"] {
        let there = contents(&t.others[name]).await;
        assert_eq!(without_own(there.clone()), without_own(here.clone()), "{name}");
        let run = there.iter().find(|(k, _)| k.ends_with("/run.json")).unwrap().1;
        let run: Reservation = serde_json::from_slice(run).unwrap();
        assert_eq!(run.copied_from.as_deref(), Some(t.w.engine.catalog().store_id()), "{name}");
        // It is a backup like any other, and the run is told there, too.
        let over = t.over(name).await;
        assert_eq!(over.catalog().reports().await.unwrap(), std::slice::from_ref(&report.run_id));
        let all = VerifyRequest { all: true, ..VerifyRequest::new(VerifyLevel::Content) };
        assert_eq!(outcome(&over.verify(&all).await.unwrap()), (Outcome::Ok, String::new()));
        let preview = over.plan_restore(&RestoreRequest::new(a())).await.unwrap();
        assert_eq!(over.restore(&preview).await.unwrap().outcome(), Outcome::Ok);
    }
    assert!(t.w.events.0.lock().unwrap().iter().any(|e| matches!(e, Event::CopyFinished { copied: 1, .. })));
}

#[tokio::test]
async fn what_is_there_is_not_copied_again_and_facts_stay_behind() {
    let t = Tiers::new(THREE, adapter()).await;
    t.w.back_up().await;
    t.w.verify(VerifyLevel::Content).await;
    let id = t.w.entries().await[0].id.clone();
    t.w.engine.mark(&id, backup_core::catalog::FactKind::Hold, None).await.unwrap();
    let before = contents(&t.others["second"]).await;
    t.others["second"].set_fault(None);
    let report = t.copy().await;
    assert_eq!((outcome(&report).0, copied(&report)), (Outcome::Unchanged, 0));
    let there = &t.others["second"];
    assert_eq!((there.calls_of(Call::Writer), there.calls_of(Call::Delete)), (0, 0));
    assert_eq!(contents(there).await, before);
}

#[tokio::test]
async fn older_ones_that_are_missing_are_copied_as_far_as_they_would_be_kept() {
    let config = THREE.replace("copies = ['second', 'third']", "");
    let t = Tiers::new(&config, adapter()).await;
    for _ in 0..3 {
        t.w.back_up().await;
    }
    let mut request = to("second");
    request.to.push(StoreName::new("third").unwrap());
    let plan = t.w.engine.plan_copy(&request).await.unwrap();
    assert_eq!((plan.copies.len(), plan.missing().count(), plan.errors.len()), (6, 4, 0));
    let dropped = plan.copies.iter().filter(|c| matches!(c.action, CopyAction::NotKept(_)));
    assert!(dropped.clone().all(|c| c.to.as_str() == "third") && dropped.count() == 2);
    let report = t.w.engine.copy(&request).await.unwrap();
    assert_eq!((outcome(&report).0, copied(&report)), (Outcome::Ok, 4));
    assert_eq!(t.states_in("second").await, ["good"; 3]);
    assert_eq!(t.states_in("third").await, ["good"]);
    // Each store goes its own way from there.
    t.w.back_up().await;
    let report = t.w.engine.copy(&request).await.unwrap();
    assert_eq!(copied(&report), 2);
    assert_eq!((t.states_in("second").await.len(), t.states_in("third").await.len()), (4, 1));
    let newest = |entries: Vec<Entry>| entries[0].id.clone();
    let there = t.over("third").await.catalog().list(&Filter::default()).await.unwrap().entries;
    assert_eq!(newest(there), newest(t.w.entries().await));
}

#[tokio::test]
async fn a_deletion_does_not_travel() {
    let t = Tiers::new(&THREE.replace("services = ['a'] }", "services = ['a'], keep = 1 }"), adapter()).await;
    for _ in 0..3 {
        assert_eq!(t.w.back_up().await.outcome(), Outcome::Ok);
    }
    assert_eq!(t.w.states().await.len(), 1);
    assert_eq!(t.states_in("second").await, ["good"; 3]);
    assert_eq!(t.states_in("third").await, ["good"]);
    // Not even if everything is gone here.
    t.w.store.inner().delete_prefix(&StoreKey::new("a").unwrap()).await.unwrap();
    t.copy().await;
    assert_eq!(t.states_in("second").await, ["good"; 3]);
    // And what is gone here comes back from there.
    let back = CopyRequest { from: Some(StoreName::new("second").unwrap()), ..to("primary") };
    let report = t.w.engine.copy(&back).await.unwrap();
    assert_eq!((outcome(&report), copied(&report)), ((Outcome::Ok, String::new()), 1));
    assert_eq!(t.w.verify(VerifyLevel::Content).await.outcome(), Outcome::Ok);
}

#[tokio::test]
async fn damage_does_not_travel_and_is_known_from_then_on() {
    let t = Tiers::new(&THREE.replace("copies = ['second', 'third']", ""), adapter()).await;
    for _ in 0..2 {
        t.w.back_up().await;
    }
    let ids: Vec<_> = t.w.entries().await.into_iter().map(|e| e.id).collect();
    let stored = t.w.engine.catalog().metadata(&ids[0]).await.unwrap();
    let file = ids[0].file(&stored.artifacts[1].files[0].path).unwrap();
    t.w.damage(&file, |bytes| bytes[20] ^= 1).await;
    let report = t.copy().await;
    let (_, error) = outcome(&report);
    assert_eq!((report.outcome(), copied(&report)), (Outcome::Damaged, 1));
    assert!(error.contains(&ids[0].to_string()) && error.contains("SHA-256"), "{error}");
    assert_eq!(t.w.states().await, ["damaged", "good"]);
    assert_eq!(t.states_in("second").await, ["good"]);
    let dir = ids[0].to_string();
    let left = contents(&t.others["second"]).await;
    assert!(left.keys().all(|key| !key.starts_with(&dir)), "{:?}", left.keys());
    // From now on it is passed over.
    assert_eq!(t.copy().await.outcome(), Outcome::Unchanged);

    // A file that is gone, and checksums that say something else.
    t.w.back_up().await;
    let id = t.w.entries().await[0].id.clone();
    t.w.damage(&id.file("SHA256SUMS").unwrap(), |bytes| bytes[3] ^= 1).await;
    let (result, error) = outcome(&t.copy().await);
    assert!(result == Outcome::Failed && error.contains("SHA256SUMS"), "{error}");
    assert_eq!(t.states_in("second").await, ["good"]);
}

#[tokio::test]
async fn only_good_ones_travel() {
    let fake = adapter();
    let t = Tiers::new(THREE, fake.clone()).await;
    t.w.back_up().await;
    fake.script(|s| s.set_artifact("two", [vec![7_u8; 1_000_000]]));
    assert_eq!(t.w.back_up().await.outcome(), Outcome::Suspect);
    assert_eq!((t.w.states().await, t.states_in("second").await), (vec!["suspect", "good"], vec!["good"]));
    let suspect = t.w.entries().await[0].id.clone();
    t.w.engine.mark(&suspect, backup_core::catalog::FactKind::Accept, None).await.unwrap();
    assert_eq!(copied(&t.copy().await), 1);
    // What a person said here is not said there.
    assert_eq!(t.states_in("second").await, ["suspect", "good"]);
}

#[tokio::test]
async fn a_store_that_is_not_there_costs_no_backup_and_no_other_copy() {
    let config = THREE.replace("memory://second", "memory://nowhere");
    let t = Tiers::new(&config, adapter()).await;
    let report = t.w.back_up().await;
    let (result, error) = outcome(&report);
    assert!(result == Outcome::Failed && error.contains("store `second`"), "{error}");
    assert_eq!(report.steps.iter().filter(|s| s.is_ok()).count(), 2, "the backup, and the third store");
    assert_eq!((t.w.states().await, t.states_in("third").await), (vec!["good"], vec!["good"]));

    let t = Tiers::new(THREE, adapter()).await;
    t.others["second"].inner().delete(&StoreKey::new("store.json").unwrap()).await.unwrap();
    let (_, error) = outcome(&t.w.back_up().await);
    assert!(error.contains("store `second`") && error.contains("backup init"), "{error}");
    assert!(contents(&t.others["second"]).await.is_empty());
}

#[tokio::test]
async fn there_must_be_somewhere_to_copy_to() {
    let t = Tiers::new(&THREE.replace("copies = ['second', 'third']", ""), adapter()).await;
    let none = t.w.engine.copy(&CopyRequest::default()).await.unwrap_err();
    assert!(none.to_string().contains("no store to copy to"), "{none}");
    let unknown = t.w.engine.copy(&to("secnd")).await.unwrap_err();
    assert!(unknown.to_string().contains("unknown store `secnd`"), "{unknown}");
    let itself = t.w.engine.copy(&to("primary")).await.unwrap_err();
    assert!(itself.to_string().contains("where the copies come from"), "{itself}");
}

/// What holds secrets leaves the host only encrypted, unless somebody insists; the others are copied all the same.
#[tokio::test]
async fn secrets_in_clear_stay_here() {
    let fake = || adapter().with_capabilities(backup_core::Capabilities::full().with_secrets(true));
    let tiers = Tiers::new(THREE, fake()).await;
    assert_eq!(tiers.w.back_up().await.steps[0].outcome, Outcome::Ok);
    let report = tiers.copy().await;
    let (found, error) = outcome(&report);
    assert_eq!(found, Outcome::Failed, "{error}");
    assert!(error.contains("holds secrets") && error.contains("[stores.second]"), "{error}");
    assert!(tiers.over("second").await.catalog().list(&Filter::default()).await.unwrap().entries.is_empty());

    // Encrypted since: the new one goes, the old one stays.
    let (_, public) = backup_core::encryption::generate(chrono::DateTime::UNIX_EPOCH).unwrap();
    let sealed = format!("encryption.recipients = '{public}'\n{THREE}");
    let other = Tiers::new(&sealed, fake()).await;
    let engine = Engine::builder(
        other.w.engine.plan().clone(),
        tiers.w.engine.catalog().clone(),
        tiers.w.engine.state().clone(),
    )
    .clock(Arc::new(tiers.w.clock.clone()))
    .stores(registry(tiers.others.clone()))
    .build();
    let tiers = Tiers { w: World { engine, ..tiers.w }, ..tiers };
    assert_eq!(outcome(&tiers.w.back_up().await), (Outcome::Ok, String::new()));
    let there = tiers.over("second").await.catalog().list(&Filter::default()).await.unwrap().entries;
    assert_eq!(there.len(), 1);
    let metadata = tiers.over("second").await.catalog().metadata(&there[0].id).await.unwrap();
    assert!(metadata.encryption.is_some());

    let insists = THREE.replace("'memory://second' }", "'memory://second', secrets_in_clear = true }");
    let tiers = Tiers::new(&insists, fake()).await;
    tiers.w.back_up().await;
    assert_eq!(tiers.over("second").await.catalog().list(&Filter::default()).await.unwrap().entries.len(), 1);
}
