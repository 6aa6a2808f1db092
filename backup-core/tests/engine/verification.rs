//! Damage of every kind is found at every level that can find it, and never counts as good again.

use super::*;

async fn damaged(
    level: VerifyLevel,
    change: impl FnOnce(&mut Vec<u8>),
) -> (Outcome, String, Vec<&'static str>) {
    let w = World::new(adapter()).await;
    w.back_up().await;
    let entry = &w.entries().await[0];
    let metadata = w.engine.catalog().metadata(&entry.id).await.unwrap();
    let file = &metadata.artifacts[1].files[0].path;
    w.damage(&entry.id.file(file).unwrap(), change).await;
    let (outcome, error) = outcome(&w.verify(level).await);
    (outcome, error, w.states().await)
}

#[tokio::test]
async fn a_sound_backup_passes_every_level_and_says_so_beside_itself() {
    let w = World::new(adapter()).await;
    w.back_up().await;
    for level in VerifyLevel::ALL {
        assert_eq!(outcome(&w.verify(level).await), (Outcome::Ok, String::new()), "{level}");
    }
    let entry = &w.entries().await[0];
    assert_eq!(entry.facts.len(), 3);
    assert!(entry.verified_by_restore());
}

#[tokio::test]
async fn a_flipped_bit_is_found_at_every_level() {
    for level in VerifyLevel::ALL {
        let (outcome, error, states) = damaged(level, |bytes| bytes[20] ^= 1).await;
        assert_eq!((outcome, states), (Outcome::Damaged, vec!["damaged"]), "{level}: {error}");
        if level == VerifyLevel::Content {
            assert!(
                error.ends_with(
                    "fake.zst` is damaged: at stored byte 0 (plain byte 0): Data corruption detected"
                ),
                "{error}"
            );
        }
    }
}

#[tokio::test]
async fn a_cut_file_is_found_at_every_level() {
    for level in VerifyLevel::ALL {
        let (outcome, error, states) = damaged(level, |bytes| bytes.truncate(bytes.len() - 5)).await;
        assert_eq!((outcome, states), (Outcome::Damaged, vec!["damaged"]), "{level}: {error}");
    }
}

#[tokio::test]
async fn a_missing_file_is_damage_and_an_unreachable_store_is_not() {
    let w = World::new(adapter()).await;
    w.back_up().await;
    let id = w.entries().await[0].id.clone();
    let file = w.engine.catalog().metadata(&id).await.unwrap().artifacts[0].files[0].path.clone();
    let read = backup_core::testkit::Call::Read;
    // The first read is metadata.json.
    w.store.set_fault(Some(Fault::from(2).only(&[read])));
    let report = w.verify(VerifyLevel::Stored).await;
    w.store.set_fault(None);
    assert_ne!(report.outcome(), Outcome::Ok);
    w.store.inner().delete(&id.file(&file).unwrap()).await.unwrap();
    let report = w.verify(VerifyLevel::Stored).await;
    assert_eq!(report.outcome(), Outcome::Damaged);
    assert_eq!(w.states().await, ["damaged"]);
}

#[tokio::test]
async fn evidence_that_the_contents_contradict_is_damage() {
    let fake = adapter();
    let lies = backup_core::Evidence::default().with_count("one", 999);
    let w = World::new(fake.evidence(lies)).await;
    w.back_up().await;
    let report = w.verify(VerifyLevel::Restore).await;
    let (outcome, error) = outcome(&report);
    if outcome == Outcome::Damaged {
        assert!(error.contains("expected 999"), "{error}");
    } else {
        // The fake counts under other names: then nothing contradicts.
        assert_eq!(outcome, Outcome::Ok, "{error}");
    }
}

#[tokio::test]
async fn a_rotten_description_is_damage_also_where_a_cache_still_knows_it_as_good() {
    let w = World::new(adapter()).await;
    // A disk: object stores tell in the listing that it is another version.
    let root = w.dir.path().join("disk");
    let disk = backup_core::LocalStore::new(&root);
    disk.create_root().await.unwrap();
    let (catalog, _) = Catalog::init(Arc::new(disk), Arc::new(w.clock.clone())).await.unwrap();
    let w = {
        let cache = w.dir.path().join("cache");
        std::fs::create_dir(&cache).unwrap();
        w.over(catalog.with_cache(cache))
    };
    w.back_up().await;
    assert_eq!(w.states().await, ["good"]);
    let file = root.join(w.entries().await[0].id.file("metadata.json").unwrap().as_str());
    let text = std::fs::read(&file).unwrap();
    std::fs::write(&file, &text[..100]).unwrap();
    assert_eq!(w.states().await, ["good"], "the cache is behind");
    assert_eq!(w.verify(VerifyLevel::Stored).await.outcome(), Outcome::Damaged);
    assert_eq!(w.states().await, ["damaged"]);
    // It does not keep new backups from being made.
    assert_eq!(outcome(&w.back_up().await), (Outcome::Ok, String::new()));
}

#[tokio::test]
async fn what_a_newer_version_made_is_not_called_damaged() {
    let w = World::new(adapter()).await;
    w.back_up().await;
    let id = w.entries().await[0].id.clone();
    w.damage(&id.file("metadata.json").unwrap(), |bytes| {
        let text = String::from_utf8(bytes.clone()).unwrap();
        *bytes = text.replace("\"features\": []", "\"features\": [\"packs\"]").into_bytes();
    })
    .await;
    let (outcome, error) = outcome(&w.verify(VerifyLevel::Stored).await);
    assert_eq!(outcome, Outcome::Failed, "{error}");
    assert!(error.contains("use a newer version"), "{error}");
    assert!(w.entries().await[0].facts.is_empty(), "what is not understood is not touched");
}

#[tokio::test]
async fn every_backup_of_a_service_can_be_restored_into_scratch_in_one_run() {
    let w = World::new(adapter()).await;
    w.back_up().await;
    w.back_up().await;
    let report = w.verify(VerifyLevel::Restore).await;
    assert_eq!(outcome(&report), (Outcome::Ok, String::new()));
    assert_eq!(report.steps.len(), 2);
}

/// The store failed while it was listed: that says nothing of the backup.
#[tokio::test]
async fn metadata_that_could_not_be_read_for_the_listing_is_no_damage() {
    let w = World::new(adapter()).await;
    w.back_up().await;
    w.store.set_fault(Some(Fault::once(1).only(&[Call::Read])));
    let report = w.verify(VerifyLevel::Stored).await;
    assert_eq!(w.store.injected(), 1, "{report:?}");
    w.store.set_fault(None);
    assert_eq!(w.states().await, ["good"], "{report:?}");
}
