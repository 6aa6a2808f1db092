//! Deletion: resumable after any crash, possible on a full disk, careful with what lies elsewhere.

use super::*;

fn with_snapshot(mut metadata: Metadata) -> Metadata {
    let artifact = serde_json::json!({"name": "vol", "external": {"kind": "ebs-snapshot", "id": "snap-1"}});
    metadata.artifacts = vec![serde_json::from_value(artifact).unwrap()];
    metadata
}

#[tokio::test]
async fn a_deletion_that_fails_at_any_call_is_resumed() {
    for from in [false, true] {
        for n in 1.. {
            let w = World::new().await;
            let id = w.commit().await;
            w.store.set_fault(Some(if from { Fault::from(n) } else { Fault::once(n) }));
            let _told = w.catalog.delete(&id, &Purged::default()).await;
            let injected = w.store.injected();
            w.store.set_fault(None);
            let states = w.states().await;
            assert!(
                states.is_empty() || states == ["good"] || states == ["deleting"],
                "call {n}: {states:?}"
            );
            if states == ["good"] {
                assert!(
                    w.store.head(&id.file("redis.rdb.zst").unwrap()).await.is_ok(),
                    "call {n}: good without data"
                );
            }
            w.catalog.delete(&id, &Purged::default()).await.unwrap();
            assert!(w.entries().await.is_empty(), "call {n}");
            if injected == 0 {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_full_store_can_still_delete() {
    let w = World::new().await;
    let id = w.commit().await;
    use backup_core::testkit::Call;
    w.store.set_fault(Some(
        Fault::from(1).only(&[Call::Create, Call::Writer, Call::Write, Call::Finish]).no_space(),
    ));
    w.catalog.delete(&id, &Purged::default()).await.unwrap();
    w.store.set_fault(None);
    assert!(w.entries().await.is_empty());
}

#[tokio::test]
async fn external_data_goes_only_with_its_store_of_origin() {
    let w = World::new().await;
    let purged = Purged::default();
    let mut draft = w.draft().await;
    draft.commit(&with_snapshot(w.metadata(draft.id(), draft.reservation()))).await.unwrap();
    let report = w.catalog.delete(draft.id(), &purged).await.unwrap();
    assert!(report.kept_external.is_empty());
    assert_eq!(*purged.0.lock().unwrap(), ["fake:snap-1"]);

    let mut draft = w.draft().await;
    let mut copied = with_snapshot(w.metadata(draft.id(), draft.reservation()));
    copied.store_id = "another-store".into();
    draft.commit(&copied).await.unwrap();
    let report = w.catalog.delete(draft.id(), &purged).await.unwrap();
    assert_eq!(report.kept_external.len(), 1);
    assert_eq!(purged.0.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_purge_that_fails_leaves_a_deletion_to_resume() {
    #[derive(Debug)]
    struct Refuses;
    #[async_trait]
    impl PurgeExternal for Refuses {
        async fn purge(&self, _: &BackupId, _: &str, _: &[ExternalRef]) -> Result<(), AdapterError> {
            Err(AdapterError::unsupported("no right to delete snapshots"))
        }
    }
    let w = World::new().await;
    let mut draft = w.draft().await;
    draft.commit(&with_snapshot(w.metadata(draft.id(), draft.reservation()))).await.unwrap();
    w.catalog.delete(draft.id(), &Refuses).await.unwrap_err();
    assert_eq!(w.states().await, ["deleting"]);
    let purged = Purged::default();
    w.catalog.delete(draft.id(), &purged).await.unwrap();
    assert_eq!(purged.0.lock().unwrap().len(), 1, "the snapshot is not forgotten");
    assert!(w.entries().await.is_empty());
}
