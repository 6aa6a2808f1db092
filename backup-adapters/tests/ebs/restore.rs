//! New volumes of snapshots, once each, where they are wanted.

use backup_adapters::ebs::{Host, RestoreOf};
use backup_core::testkit::adapter_suite::capture;
use backup_core::{AdapterErrorKind, advice, chain};

use crate::proxy::{Fate, Proxy};
use crate::support::{Account, context, moto};

fn onto(instance: &str) -> RestoreOf {
    RestoreOf { instance: Some(instance.to_owned()), ..RestoreOf::default() }
}

#[tokio::test]
#[ignore = "live: moto in a container"]
async fn a_new_instance_gets_the_volumes_of_one_that_is_gone() {
    let account = Account::new().await;
    let adapter = account.adapter(moto().address, "");
    capture(&adapter, &context("daily")).await.unwrap();
    let newest = context("daily");
    capture(&adapter, &newest).await.unwrap();
    // The host is terminated, and its volumes with it: the tags tell what they were.
    account.client.terminate_instances().instance_ids(&account.instance).send().await.unwrap();
    let detached = account.client.detach_volume().volume_id(&account.data).send().await;
    let _moto_may_have_done_it = detached;
    account.client.delete_volume().volume_id(&account.data).send().await.unwrap();
    let (instance, zone) = account.new_instance().await;

    let host = Host::at(tempfile::tempdir().unwrap().path());
    let plan = adapter.plan_restore_of(&context("manual"), &host, &onto(&instance)).await.unwrap();
    assert_eq!(account.restored().await.len(), 0, "a plan changes nothing");
    assert_eq!(plan.backup.as_ref().unwrap().timestamp, newest.timestamp);
    assert_eq!((plan.zone.as_str(), plan.volumes.len()), (zone.as_str(), 1), "{plan:#?}");
    let volume = &plan.volumes[0];
    assert_eq!((volume.source.as_str(), volume.device.as_deref()), (account.data.as_str(), Some("/dev/sdf")));
    assert_eq!(
        (volume.volume_type.as_deref(), volume.iops, volume.throughput),
        (Some("gp3"), Some(4000), Some(250))
    );
    assert!(plan.notes.iter().any(|n| n.contains("first read")), "{:?}", plan.notes);

    let restored = adapter.restore(&context("manual"), &host, &plan, &|_| ()).await.unwrap();
    let made = account.restored().await;
    assert_eq!((made.len(), restored.len()), (1, 1));
    let made = &made[0];
    assert_eq!(made.volume_id(), Some(restored[0].volume.as_str()));
    assert_eq!((made.availability_zone(), made.iops()), (Some(zone.as_str()), Some(4000)));
    assert_eq!(made.attachments()[0].instance_id(), Some(instance.as_str()));
    assert!(made.tags().iter().all(|t| t.key() != Some("backup:restoring")), "it is done");

    // The next restore makes its own, as another device.
    let plan = adapter.plan_restore_of(&context("manual"), &host, &onto(&instance)).await.unwrap();
    assert_eq!(
        (plan.volumes[0].existing.as_ref(), plan.volumes[0].device.as_deref()),
        (None, Some("/dev/sdg"))
    );
}

#[tokio::test]
#[ignore = "live: moto in a container"]
async fn a_restore_that_is_cut_off_goes_on_with_its_volume() {
    let account = Account::new().await;
    capture(&account.adapter(moto().address, ""), &context("daily")).await.unwrap();
    let (instance, _) = account.new_instance().await;
    let mut first = true;
    let proxy = Proxy::start(moto().address, move |action, _| match action {
        "AttachVolume" if std::mem::take(&mut first) => Fate::Refuse("VolumeInUse", "Not now."),
        _ => Fate::Pass,
    })
    .await;
    let adapter = account.adapter(proxy.address, "");
    let host = Host::at(tempfile::tempdir().unwrap().path());
    let plan = adapter.plan_restore_of(&context("manual"), &host, &onto(&instance)).await.unwrap();
    let e = adapter.restore(&context("manual"), &host, &plan, &|_| ()).await.unwrap_err();
    assert!(advice(&e).is_some_and(|a| a.contains("--device")), "{}", chain(&e));
    let begun = account.restored().await;
    assert_eq!(begun.len(), 1);

    let plan = adapter.plan_restore_of(&context("manual"), &host, &onto(&instance)).await.unwrap();
    assert_eq!(plan.volumes[0].existing.as_deref(), begun[0].volume_id());
    adapter.restore(&context("manual"), &host, &plan, &|_| ()).await.unwrap();
    assert_eq!(account.restored().await.len(), 1, "no second volume was made");
    assert_eq!(proxy.seen("CreateVolume").len(), 1);
}

#[tokio::test]
#[ignore = "live: moto in a container"]
async fn what_cannot_be_is_refused_before_anything_is_made() {
    let account = Account::new().await;
    let second = account.new_volume("/dev/sdg").await;
    let adapter = account.adapter(moto().address, "");
    let host = Host::at(tempfile::tempdir().unwrap().path());
    let plan = async |what: RestoreOf| adapter.plan_restore_of(&context("manual"), &host, &what).await;
    let e = plan(onto(&account.instance)).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::NotFound, "{}", chain(&e));
    capture(&adapter, &context("daily")).await.unwrap();

    let other_zone = RestoreOf { zone: Some("mars-1a".into()), ..onto(&account.instance) };
    let e = plan(other_zone).await.unwrap_err();
    assert!(chain(&e).contains("not in mars-1a") && e.kind() == AdapterErrorKind::Conflict, "{}", chain(&e));
    let both = RestoreOf { device: Some("/dev/sdh".into()), ..onto(&account.instance) };
    let e = plan(both).await.unwrap_err();
    assert!(advice(&e).is_some_and(|a| a.contains("--snapshot")), "{}", chain(&e));
    let snapshots = account.snapshots().await;
    let one =
        snapshots.iter().find(|s| s.volume_id() == Some(&second)).unwrap().snapshot_id().map(str::to_owned);
    let taken =
        RestoreOf { snapshot: one.clone(), device: Some("/dev/xvdf".into()), ..onto(&account.instance) };
    let e = plan(taken).await.unwrap_err();
    assert!(chain(&e).contains("is taken"), "{}", chain(&e));
    let elsewhere =
        RestoreOf { snapshot: one.clone(), mount: Some("/mnt/x".into()), ..onto(&account.instance) };
    let e = plan(elsewhere).await.unwrap_err();
    assert!(chain(&e).contains("this very instance"), "{}", chain(&e));
    let nothing = RestoreOf { snapshot: Some("snap-0123456789abcdef0".into()), ..onto(&account.instance) };
    assert_eq!(plan(nothing).await.unwrap_err().kind(), AdapterErrorKind::NotFound);

    // Only made, in a zone: for whoever comes later.
    let made = plan(RestoreOf { snapshot: one, zone: Some(account.zone.clone()), ..RestoreOf::default() })
        .await
        .unwrap();
    assert_eq!((made.instance.as_ref(), made.volumes[0].device.as_ref()), (None, None));
    let restored = adapter.restore(&context("manual"), &host, &made, &|_| ()).await.unwrap();
    assert!(restored[0].device.is_none() && account.restored().await.len() == 1);
}
