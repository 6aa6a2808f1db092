//! Copies that go on where an interrupted one ended.

use backup_core::{LocalStore, Process, Reservation, RunId, StoreRegistry};

use super::copies::{THREE, Tiers, contents, copied, to, until_it_writes, without_own};
use super::*;

fn three_files() -> FakeAdapter {
    let noise = |seed| {
        let mut noise = vec![0; 200_000];
        fastrand::Rng::with_seed(seed).fill(&mut noise);
        noise
    };
    FakeAdapter::new().artifact("one", [noise(1)]).artifact("two", [noise(2)]).artifact("three", [noise(3)])
}

/// A backup of three files here, nothing there.
async fn one() -> (Tiers, Entry) {
    let t = Tiers::new(&THREE.replace("copies = ['second', 'third']", ""), three_files()).await;
    t.w.back_up().await;
    let entry = t.w.entries().await.remove(0);
    (t, entry)
}

fn dead() -> Process {
    Process { pid: 0x3fff_fff0, ..Process::this() }
}

/// Of which nobody here can tell whether it is dead.
fn elsewhere() -> Process {
    Process { boot_id: "another host".into(), ..Process::this() }
}

/// The keys of the stored files, in the order in which they are copied.
async fn files(t: &Tiers, entry: &Entry) -> Vec<StoreKey> {
    let metadata = t.w.engine.catalog().metadata(&entry.id).await.unwrap();
    metadata.stored_files().map(|f| entry.id.file(&f.path).unwrap()).collect()
}

/// What run.json of a copier says that began now.
fn reservation(t: &Tiers, process: Process, from: &str) -> Bytes {
    let now = t.w.clock.now();
    let reservation = Reservation {
        run_id: RunId::generate(now),
        host: "h2".into(),
        process,
        started_at: now,
        commit_deadline: now + chrono::TimeDelta::hours(24),
        tool: "test".into(),
        copied_from: Some(from.to_owned()),
    };
    (serde_json::to_string_pretty(&reservation).unwrap() + "\n").into()
}

/// As a copier left it that was killed amid the second of the three files.
async fn half(t: &Tiers, entry: &Entry, process: Process) {
    let there = t.others["second"].inner();
    let origin = t.w.engine.catalog().store_id().to_owned();
    there.create(&entry.id.file("run.json").unwrap(), reservation(t, process, &origin)).await.unwrap();
    put(t, &files(t, entry).await[0], |_| {}).await;
}

/// What is here, with a change, there.
async fn put(t: &Tiers, key: &StoreKey, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = contents(&t.w.store).await.remove(key.as_str()).unwrap().to_vec();
    change(&mut bytes);
    let mut writer = t.others["second"].inner().writer(key, Default::default()).await.unwrap();
    writer.write(bytes.into()).await.unwrap();
    writer.finish().await.unwrap();
}

/// What is there is what is here, byte for byte.
async fn is_the_same(t: &Tiers, what: &str) {
    let (here, there) = (contents(&t.w.store).await, contents(&t.others["second"]).await);
    let names = |all: &std::collections::BTreeMap<String, Bytes>| all.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&there), names(&here), "{what}");
    assert!(without_own(there) == without_own(here), "{what}: other bytes");
    assert_eq!(t.states_in("second").await, ["good"], "{what}");
    let pins = StoreKey::new(".leases/reading").unwrap();
    let keys = t.others["second"].inner().list_keys(Some(&pins));
    assert_eq!(futures::TryStreamExt::try_collect::<Vec<_>>(keys).await.unwrap(), [], "{what}: pins");
}

#[tokio::test]
async fn what_a_killed_copier_left_whole_is_not_sent_again() {
    for (process, who) in [(dead(), "dead"), (elsewhere(), "of another host, whose lease is over")] {
        let (t, entry) = one().await;
        half(&t, &entry, process).await;
        t.others["second"].set_fault(None);
        let report = t.copy().await;
        assert_eq!((outcome(&report), copied(&report)), ((Outcome::Ok, String::new()), 1), "{who}");
        assert_eq!(t.others["second"].calls_of(Call::Writer), 2, "{who}");
        is_the_same(&t, who).await;
        // Counted, and told.
        let metadata = t.w.engine.catalog().metadata(&entry.id).await.unwrap();
        let lengths: Vec<u64> = metadata.stored_files().map(|f| f.stored_bytes).collect();
        assert_eq!(report.steps[0].stored_bytes, lengths[1] + lengths[2], "{who}");
        let told = format!("1 file ({} bytes)", lengths[0]);
        assert!(report.steps[0].notes.iter().any(|n| n.contains(&told)), "{:?}", report.steps[0].notes);
    }
}

#[tokio::test]
async fn what_is_not_the_file_is_removed_and_sent() {
    type Change = fn(&mut Vec<u8>);
    let changes: [(&str, Change); 3] = [
        ("a flipped bit", |bytes| bytes[100_000] ^= 1),
        ("cut short", |bytes| bytes.truncate(1000)),
        ("another content", |bytes| bytes.fill(7)),
    ];
    for (what, change) in changes {
        let (t, entry) = one().await;
        half(&t, &entry, dead()).await;
        put(&t, &files(&t, &entry).await[1], change).await;
        t.others["second"].set_fault(None);
        assert_eq!(copied(&t.copy().await), 1, "{what}");
        assert_eq!(t.others["second"].calls_of(Call::Writer), 2, "{what}");
        is_the_same(&t, what).await;
    }
    // What does not belong there, and papers that say something else.
    let (t, entry) = one().await;
    half(&t, &entry, dead()).await;
    for name in ["SHA256SUMS", "RESTORE.md", "stranger"] {
        let key = entry.id.file(name).unwrap();
        t.others["second"].inner().create(&key, Bytes::from_static(b"other")).await.unwrap();
    }
    assert_eq!(copied(&t.copy().await), 1);
    is_the_same(&t, "papers").await;
    // Half a copy from another store says nothing of this one.
    let (t, entry) = one().await;
    let there = t.others["second"].inner();
    let run = entry.id.file("run.json").unwrap();
    there.create(&run, reservation(&t, dead(), "another store")).await.unwrap();
    put(&t, &files(&t, &entry).await[0], |_| {}).await;
    t.others["second"].set_fault(None);
    assert_eq!(copied(&t.copy().await), 1);
    assert_eq!(t.others["second"].calls_of(Call::Writer), 3);
    is_the_same(&t, "from another store").await;
}

/// A copier that sleeps may be about to commit what it has verified.
#[tokio::test]
async fn nothing_is_removed_from_under_a_copier_that_may_only_sleep() {
    let (t, entry) = one().await;
    half(&t, &entry, elsewhere()).await;
    put(&t, &files(&t, &entry).await[1], |bytes| bytes[7] ^= 1).await;
    let before = contents(&t.others["second"]).await;
    let (result, error) = outcome(&t.copy().await);
    assert!(result == Outcome::Failed && error.contains("copy again later"), "{error}");
    assert!(contents(&t.others["second"]).await == before, "nothing is touched");
    t.w.clock.advance_secs(25 * 3600);
    assert_eq!(copied(&t.copy().await), 1, "its time is over");
    is_the_same(&t, "after its time").await;
}

#[tokio::test]
async fn whoever_took_over_counts_like_the_first_one() {
    let (t, entry) = one().await;
    half(&t, &entry, dead()).await;
    put(&t, &files(&t, &entry).await[1], |bytes| bytes[7] ^= 1).await;
    // Another host took it over, and may only sleep.
    let run = RunId::generate(t.w.clock.now());
    let text = serde_json::json!({
        "run_id": run,
        "host": "h3",
        "process": elsewhere(),
        "expires_at": t.w.clock.now() + chrono::TimeDelta::hours(30),
        "service": "a",
        "ids": [entry.id],
    });
    let pin = StoreKey::new(format!(".leases/reading/{run}-x.a.json")).unwrap();
    let there = t.others["second"].inner();
    there.create(&pin, serde_json::to_vec(&text).unwrap().into()).await.unwrap();
    let before = contents(&t.others["second"]).await;
    let (_, error) = outcome(&t.copy().await);
    assert!(error.contains("copy again later"), "{error}");
    // Nor does a sweeper remove it, although the time of the first one is over.
    t.w.clock.advance_secs(25 * 3600);
    t.over("second").await.prune(&PruneRequest::default()).await.unwrap();
    assert!(contents(&t.others["second"]).await == before, "nothing is touched");
    t.w.clock.advance_secs(6 * 3600);
    assert_eq!(copied(&t.copy().await), 1, "its time is over");
    is_the_same(&t, "after its time").await;
}

/// As the machine wakes up that copied until its lease was over.
#[tokio::test]
async fn a_copier_that_wakes_up_finds_its_work_done_and_changes_nothing() {
    let config = THREE.replace("copies = ['second', 'third']", "limits.bandwidth = '1B/s'");
    let t = Tiers::new(&config, three_files()).await;
    t.w.back_up().await;
    let there = &t.others["second"];
    let request = to("second");
    let mut slow = Box::pin(t.w.engine.copy(&request));
    until_it_writes(&mut slow, there).await;
    t.w.clock.advance_secs(2 * 3600);
    let mut plan = t.w.engine.plan().clone();
    plan.limits.bandwidth = None;
    let state = StateDir::open(t.w.dir.path().join("state2")).unwrap();
    let report = t.another_host_with(plan, state, "h2").copy(&request).await.unwrap();
    assert_eq!((outcome(&report), copied(&report)), ((Outcome::Ok, String::new()), 1));
    is_the_same(&t, "taken over").await;
    let before = contents(there).await;
    request.cancel.cancel();
    assert_eq!(slow.await.unwrap().outcome(), Outcome::Cancelled);
    assert!(contents(there).await == before, "it removed something");
}

#[tokio::test]
async fn two_that_find_the_same_half_complete_it_once() {
    for round in 0..10 {
        let (t, entry) = one().await;
        half(&t, &entry, elsewhere()).await;
        let state = StateDir::open(t.w.dir.path().join("state2")).unwrap();
        let second = t.another_host(state, "h2");
        let request = to("second");
        t.others["second"].set_fault(None);
        let (a, b) = tokio::join!(t.w.engine.copy(&request), second.copy(&request));
        let counts = [copied(&a.unwrap()), copied(&b.unwrap())];
        assert!(counts == [1, 0] || counts == [0, 1], "round {round}: {counts:?}");
        assert_eq!(t.others["second"].calls_of(Call::Writer), 2, "round {round}");
        is_the_same(&t, &format!("round {round}")).await;
    }
}

/// The store fails for good at any call of a take-over; the next copy completes.
#[tokio::test]
async fn a_take_over_that_ends_anywhere_is_taken_over() {
    for n in 1.. {
        let (t, entry) = one().await;
        half(&t, &entry, dead()).await;
        put(&t, &files(&t, &entry).await[1], |bytes| bytes[7] ^= 1).await;
        t.others["second"].set_fault(Some(Fault::from(n)));
        let _failed = t.w.engine.copy(&to("second")).await;
        t.w.engine.shutdown().await;
        let injected = t.others["second"].injected();
        t.others["second"].set_fault(None);
        let verified = t.over("second").await;
        let all = VerifyRequest { all: true, ..VerifyRequest::new(VerifyLevel::Content) };
        assert!(verified.verify(&all).await.unwrap().is_ok(), "call {n}");
        // Pins and leases that could not be given back run out.
        t.w.clock.advance_secs(3 * 24 * 3600);
        assert!(t.copy().await.is_ok(), "call {n}");
        let (here, mut there) = (contents(&t.w.store).await, contents(&t.others["second"]).await);
        there.retain(|key, _| !key.contains("/verify-"));
        assert!(without_own(there) == without_own(here), "call {n}: other bytes");
        if injected == 0 {
            assert!(n > 20, "only {n} calls");
            break;
        }
    }
}

#[tokio::test]
async fn what_was_sent_before_a_cancellation_is_not_sent_again() {
    let (t, _) = one().await;
    let request = to("second");
    let there = &t.others["second"];
    let cancel = request.cancel.clone();
    let mut copy = Box::pin(t.w.engine.copy(&request));
    let second_file = async {
        while there.calls_of(Call::Writer) < 2 {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    };
    tokio::select! {
        biased;
        () = second_file => {}
        report = &mut copy => panic!("it ended first: {report:?}"),
    }
    assert_eq!(copy.await.unwrap().outcome(), Outcome::Cancelled);
    assert_eq!(t.states_in("second").await, ["incomplete"]);
    there.set_fault(None);
    assert_eq!(copied(&t.copy().await), 1);
    assert_eq!(there.calls_of(Call::Writer), 2);
    is_the_same(&t, "after a cancellation").await;
}

/// On a disk, partial files lie beside whole ones.
#[tokio::test]
async fn on_a_disk_partial_files_go_and_whole_ones_stay() {
    let (t, entry) = one().await;
    let disk = tempfile::tempdir().unwrap();
    let store = LocalStore::new(disk.path());
    Catalog::init(Arc::new(store.clone()), Arc::new(t.w.clock.clone())).await.unwrap();
    let registry = StoreRegistry::new().with_scheme("memory", move |_, _| {
        let store: Arc<dyn Store> = Arc::new(store.clone());
        async move { Ok(store) }
    });
    let w = &t.w;
    let engine =
        Engine::builder(w.engine.plan().clone(), w.engine.catalog().clone(), w.engine.state().clone())
            .clock(Arc::new(w.clock.clone()))
            .lock_patience(Duration::ZERO)
            .stores(registry)
            .build();
    let files = files(&t, &entry).await;
    let here = contents(&w.store).await;
    let place = disk.path().join(entry.id.to_string());
    std::fs::create_dir_all(&place).unwrap();
    let origin = w.engine.catalog().store_id();
    std::fs::write(place.join("run.json"), reservation(&t, dead(), origin)).unwrap();
    let first = place.join(files[0].file_name());
    std::fs::write(&first, &here[files[0].as_str()]).unwrap();
    std::fs::write(place.join(".tmp-0123456789abcdef0123456789abcdef"), "half").unwrap();
    let inode =
        |path: &std::path::Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    let before = inode(&first);
    let report = engine.copy(&to("second")).await.unwrap();
    assert_eq!((outcome(&report), copied(&report)), ((Outcome::Ok, String::new()), 1));
    assert_eq!(inode(&first), before, "it was written again");
    let names = std::fs::read_dir(&place).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
    let names: std::collections::BTreeSet<String> = names.collect();
    let expected = here.keys().map(|key| key.rsplit('/').next().unwrap().to_owned());
    assert_eq!(names, expected.collect());
    for (key, bytes) in without_own(here) {
        assert!(std::fs::read(disk.path().join(&key)).unwrap() == bytes, "{key}");
    }
}
