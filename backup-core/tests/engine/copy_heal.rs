//! Copies that were found damaged in their store, and the good original.

use std::collections::BTreeMap;

use super::copies::{THREE, Tiers, contents, copied, to};
use super::*;

/// Two backups here and there; returns the newer one, and its large file.
async fn two() -> (Tiers, Entry, StoreKey) {
    let t = Tiers::new(&THREE.replace("copies = ['second', 'third']", ""), adapter()).await;
    for _ in 0..2 {
        t.w.back_up().await;
    }
    assert_eq!(copied(&t.copy().await), 2);
    let entry = t.w.entries().await.remove(0);
    let metadata = t.w.engine.catalog().metadata(&entry.id).await.unwrap();
    let file = entry.id.file(&metadata.artifacts[1].files[0].path).unwrap();
    (t, entry, file)
}

async fn damage(store: &FaultyStore<MemoryStore>, key: &StoreKey) {
    let bytes = store.inner().head(key).await.unwrap().bytes;
    let mut text = store.inner().read_range(key, 0..bytes).await.unwrap().to_vec();
    text[20] ^= 1;
    store.inner().delete(key).await.unwrap();
    store.inner().create(key, text.into()).await.unwrap();
}

/// A verification of everything in the second store.
async fn find(t: &Tiers, level: VerifyLevel) {
    t.w.clock.advance_secs(1);
    let all = VerifyRequest { all: true, ..VerifyRequest::new(level) };
    assert_eq!(t.over("second").await.verify(&all).await.unwrap().outcome(), Outcome::Damaged);
    assert_eq!(t.states_in("second").await, ["damaged", "good"]);
}

/// Without what each store knows for itself.
fn common(mut contents: BTreeMap<String, Bytes>) -> BTreeMap<String, Bytes> {
    contents.retain(|key, _| !["/run.json", "/verify-", "/hold-"].iter().any(|own| key.contains(own)));
    contents
}

#[tokio::test]
async fn a_damaged_copy_is_made_whole_by_the_next_one() {
    for level in [VerifyLevel::Stored, VerifyLevel::Content] {
        let (t, entry, file) = two().await;
        damage(&t.others["second"], &file).await;
        find(&t, level).await;
        t.others["second"].set_fault(None);
        let report = t.copy().await;
        assert_eq!((outcome(&report), copied(&report)), ((Outcome::Ok, String::new()), 1), "{level}");
        assert_eq!(t.others["second"].calls_of(Call::Writer), 1, "{level}: what is whole is not sent again");
        let told = format!("{} was damaged in `second` and is whole again: 1 file sent", entry.id);
        assert!(report.steps[0].notes.contains(&told), "{:?}", report.steps[0].notes);
        assert_eq!(t.states_in("second").await, ["good"; 2], "{level}");
        assert!(common(contents(&t.others["second"]).await) == common(contents(&t.w.store).await), "{level}");
        assert_eq!(t.copy().await.outcome(), Outcome::Unchanged, "{level}");
    }
}

#[tokio::test]
async fn what_is_missing_of_a_copy_comes_back() {
    let (t, entry, file) = two().await;
    let there = t.others["second"].inner();
    there.delete(&file).await.unwrap();
    there.delete(&entry.id.file("SHA256SUMS").unwrap()).await.unwrap();
    find(&t, VerifyLevel::Stored).await;
    assert_eq!(copied(&t.copy().await), 1);
    assert_eq!(t.states_in("second").await, ["good"; 2]);
    assert!(common(contents(&t.others["second"]).await) == common(contents(&t.w.store).await));
}

/// A damaged file is worth more than none.
#[tokio::test]
async fn nothing_is_removed_if_the_original_is_damaged_as_well() {
    let (t, _, file) = two().await;
    damage(&t.others["second"], &file).await;
    find(&t, VerifyLevel::Stored).await;
    damage(&t.w.store, &file).await;
    let before = contents(&t.others["second"]).await;
    let (result, error) = outcome(&t.copy().await);
    assert!(result == Outcome::Damaged && error.contains("here either"), "{error}");
    assert!(contents(&t.others["second"]).await == before);
    assert_eq!(t.w.states().await, ["damaged", "good"], "it is known here from now on");
    assert_eq!(t.copy().await.outcome(), Outcome::Unchanged);
    assert_eq!(t.states_in("second").await, ["damaged", "good"]);
}

#[tokio::test]
async fn a_damaged_copy_that_somebody_holds_is_left_alone() {
    let (t, entry, file) = two().await;
    damage(&t.others["second"], &file).await;
    find(&t, VerifyLevel::Stored).await;
    let over = t.over("second").await;
    over.mark(&entry.id, backup_core::catalog::FactKind::Hold, None).await.unwrap();
    let before = contents(&t.others["second"]).await;
    let (_, error) = outcome(&t.copy().await);
    assert!(error.contains("is damaged there: somebody holds it"), "{error}");
    assert!(contents(&t.others["second"]).await == before);
}

/// The store fails for good at any call: what is not whole is never listed as good, and the next copy heals.
#[tokio::test]
async fn a_healing_that_ends_anywhere_leaves_it_damaged_or_whole() {
    for n in 1.. {
        let (t, _, file) = two().await;
        damage(&t.others["second"], &file).await;
        find(&t, VerifyLevel::Stored).await;
        t.others["second"].set_fault(Some(Fault::from(n)));
        t.w.clock.advance_secs(1);
        let _failed = t.w.engine.copy(&to("second")).await;
        t.w.engine.shutdown().await;
        let injected = t.others["second"].injected();
        t.others["second"].set_fault(None);
        let state = t.states_in("second").await[0];
        let whole = common(contents(&t.others["second"]).await) == common(contents(&t.w.store).await);
        assert!(state == "damaged" || (state == "good" && whole), "call {n}: {state}");
        // Pins and leases that could not be given back run out.
        t.w.clock.advance_secs(3 * 24 * 3600);
        let next = t.copy().await;
        assert!(next.is_ok(), "call {n}: {:?}", outcome(&next));
        assert_eq!(t.states_in("second").await, ["good"; 2], "call {n}");
        assert!(
            common(contents(&t.others["second"]).await) == common(contents(&t.w.store).await),
            "call {n}"
        );
        if injected == 0 {
            assert!(n > 15, "only {n} calls");
            break;
        }
    }
}
