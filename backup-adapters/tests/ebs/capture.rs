//! One set, once: tags, lost answers, and what becomes of it if there is no commit.

use std::collections::BTreeMap;

use backup_core::testkit::adapter_suite::capture;
use backup_core::{ExternalRef, ReadOutcome, ServiceAdapter as _, Settlement, chain};
use futures::StreamExt as _;

use crate::proxy::{Fate, Proxy};
use crate::support::{Account, context, moto};

fn tags(snapshot: &aws_sdk_ec2::types::Snapshot) -> BTreeMap<String, String> {
    let pair = |t: &aws_sdk_ec2::types::Tag| (t.key().unwrap().to_owned(), t.value().unwrap().to_owned());
    snapshot.tags().iter().map(pair).collect()
}

#[tokio::test]
#[ignore = "live: moto in a container"]
async fn every_volume_has_a_snapshot_with_the_tags_of_the_runbook() {
    let account = Account::new().await;
    let cx = context("spot");
    let captured = capture(&account.adapter(moto().address, ""), &cx).await.unwrap();
    let made = account.snapshots().await;
    assert_eq!(made.len(), 2);
    let data = made.iter().find(|s| s.volume_id() == Some(&account.data)).unwrap();
    let found = tags(data);
    let stamp = cx.timestamp.to_string();
    for (key, value) in [
        ("Name", format!("TruthSI-spot-warning-{stamp}")),
        ("Project", "truth-si".to_owned()),
        ("Instance", account.instance.clone()),
        ("Device", "/dev/sdf".to_owned()),
        ("Reason", "spot-warning".to_owned()),
        ("backup:owner", "ours".to_owned()),
        ("backup:run", cx.run_id.to_string()),
        ("backup:id", format!("ebs/spot/{stamp}")),
        ("backup:members", "2".to_owned()),
        ("backup:volume", format!("type=gp3 iops=4000 throughput=250 zone={}", account.zone)),
    ] {
        assert_eq!(found.get(key), Some(&value), "{key}: {found:#?}");
    }
    let artifact = captured
        .metadata
        .artifacts
        .iter()
        .find(|a| a.external.as_ref().is_some_and(|e| Some(e.id.as_str()) == data.snapshot_id()))
        .unwrap();
    assert_eq!(artifact.attributes["device"], "/dev/sdf");
    assert_eq!(artifact.attributes["size_gib"], 9);
    assert_eq!(artifact.external.as_ref().unwrap().location["region"], account.region);
    let by_hand = account.adapter(moto().address, "");
    let by_hand = by_hand.by_hand(&backup_core::HandContext { metadata: &captured.metadata });
    let all: String = by_hand.iter().map(|s| format!("{}\n{}\n", s.text, s.command)).collect();
    for says in
        [data.snapshot_id().unwrap(), "--volume-type gp3 --iops 4000 --throughput 250", "/dev/sdf", "nouuid"]
    {
        assert!(all.contains(says), "{says}: {all}");
    }
}

#[tokio::test]
#[ignore = "live: moto in a container"]
async fn volumes_that_are_not_wanted_are_left_out_of_the_call() {
    let account = Account::new().await;
    let other = account.new_volume("/dev/sdg").await;
    // moto knows no excluded data volumes: what counts is what it was asked for.
    let proxy = Proxy::start(moto().address, |_, _| Fate::Pass).await;
    let adapter = account.adapter(proxy.address, "volumes = ['/dev/sdf']\n");
    capture(&adapter, &context("manual")).await.unwrap();
    let asked = proxy.seen("CreateSnapshots");
    assert_eq!(asked.len(), 1);
    assert!(asked[0].contains("InstanceSpecification.ExcludeBootVolume=true"), "{asked:?}");
    assert!(asked[0].contains(&format!("ExcludeDataVolumeId.1={other}")), "{asked:?}");
    assert!(!asked[0].contains(&format!("ExcludeDataVolumeId.2={}", account.data)), "{asked:?}");
}

#[tokio::test]
#[ignore = "live: moto in a container"]
async fn a_lost_answer_makes_no_second_set() {
    let account = Account::new().await;
    let proxy = Proxy::start(moto().address, |action, _| match action {
        "CreateSnapshots" => Fate::LoseAnswer,
        _ => Fate::Pass,
    })
    .await;
    let captured = capture(&account.adapter(proxy.address, ""), &context("daily")).await.unwrap();
    assert_eq!(proxy.seen("CreateSnapshots").len(), 1, "it was found by its tag, not made anew");
    assert_eq!((account.snapshots().await.len(), captured.metadata.artifacts.len()), (2, 2));
}

#[tokio::test]
#[ignore = "live: moto in a container"]
async fn what_no_backup_refers_to_is_removed_and_what_one_may_refer_to_is_not() {
    let account = Account::new().await;
    let adapter = account.adapter(moto().address, "");
    let run = async |settlement: Option<Settlement>, last_chance: bool| {
        let mut cx = context("daily");
        cx.last_chance = last_chance;
        let mut parts = adapter.open(&cx).await.unwrap().into_parts();
        while let Some(artifact) = parts.artifacts.next().await {
            artifact.unwrap();
        }
        drop(parts.artifacts);
        (parts.release)(ReadOutcome::Complete).await.unwrap();
        if let Some(settlement) = settlement {
            parts.settle.unwrap()(settlement).await.unwrap();
        }
        cx
    };
    run(Some(Settlement::Abandoned), false).await;
    assert_eq!(account.snapshots().await.len(), 0);
    let id: backup_core::BackupId = "ebs/daily/20260309_043820".parse().unwrap();
    run(Some(Settlement::Unknown(id)), false).await;
    let killed = run(None, false).await;
    assert_eq!(account.snapshots().await.len(), 4, "somebody has to look first");
    let dead = std::slice::from_ref(&killed.run_id);
    assert_eq!(adapter.reclaim(&context("daily"), dead).await.unwrap(), Vec::<String>::new());
    let mut theirs = context("daily");
    "theirs".clone_into(&mut theirs.store_id);
    assert_eq!(adapter.reclaim_external(&theirs, dead).await.unwrap(), Vec::<String>::new());
    assert_eq!(adapter.reclaim_external(&context("daily"), dead).await.unwrap().len(), 2);
    assert_eq!(adapter.reclaim_external(&context("daily"), dead).await.unwrap().len(), 0);
    assert_eq!(account.snapshots().await.len(), 2);
    // The host goes away, and its store with it.
    run(Some(Settlement::Abandoned), true).await;
    assert_eq!(account.snapshots().await.len(), 4);
}

#[tokio::test]
#[ignore = "live: moto in a container"]
async fn only_our_own_are_purged_and_those_that_are_gone_are_fine() {
    let account = Account::new().await;
    let adapter = account.adapter(moto().address, "");
    let captured = capture(&adapter, &context("daily")).await.unwrap();
    let refs: Vec<ExternalRef> =
        captured.metadata.artifacts.iter().filter_map(|a| a.external.clone()).collect();
    let mut theirs = context("daily");
    "theirs".clone_into(&mut theirs.store_id);
    let e = adapter.purge_external(&theirs, &refs).await.unwrap_err();
    assert!(chain(&e).contains("does not name this store"), "{}", chain(&e));
    assert_eq!(account.snapshots().await.len(), 2);
    account.client.delete_snapshot().snapshot_id(&refs[0].id).send().await.unwrap();
    adapter.purge_external(&context("daily"), &refs).await.unwrap();
    adapter.purge_external(&context("daily"), &refs).await.unwrap();
    assert_eq!(account.snapshots().await.len(), 0);
}
