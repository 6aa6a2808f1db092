//! Object Lock, and uploads that nobody finished: calls that are made beside `object_store`.

use std::time::Duration;

use backup_core::{
    Clock as _, ObjectLock, Store as _, StoreError, StoreKey, SystemClock, WriteOptions, advice, chain,
};
use bytes::Bytes;
use chrono::{SubsecRound as _, TimeDelta};
use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectStore as _, PutPayload};

use crate::proxy::{Fate, Proxy};
use crate::server::{self, Bucket, boto};

const LOCKED: [(&str, &str); 2] = [("object_lock", "compliance"), ("object_lock_for", "1h")];

fn key(text: &str) -> StoreKey {
    StoreKey::new(text).unwrap()
}

/// A bucket that knows locks.
fn lockable() -> Bucket {
    let bucket = server::minio().unmade();
    boto(&bucket, "s3.create_bucket(Bucket=b, ObjectLockEnabledForBucket=True)");
    bucket
}

#[tokio::test]
#[ignore = "live: MinIO and moto's client in containers"]
async fn what_is_locked_comes_back_after_somebody_with_all_rights_deleted_it() {
    let bucket = lockable();
    let store = bucket.store_with(&LOCKED);
    assert_eq!(store.object_lock(), Some(ObjectLock::For(Duration::from_secs(3600))));
    store.create(&key("svc/small"), Bytes::from_static(b"small")).await.unwrap();
    let mut writer = store.writer(&key("svc/large"), WriteOptions::default()).await.unwrap();
    writer.write(Bytes::from(vec![7; 20 << 20])).await.unwrap();
    writer.finish().await.unwrap();
    let until = SystemClock.now().trunc_subsecs(0) + TimeDelta::hours(1);
    for name in ["svc/small", "svc/large"] {
        assert_eq!(store.lock(&key(name), None).await.unwrap(), None, "not yet");
        assert_eq!(store.lock(&key(name), Some(until)).await.unwrap(), Some(until));
        assert_eq!(store.lock(&key(name), None).await.unwrap(), Some(until));
        // Never shorter.
        let sooner = store.lock(&key(name), Some(until - TimeDelta::minutes(30))).await.unwrap();
        assert_eq!(sooner, Some(until));
    }
    // Leases and the like are deleted as ever.
    store.create(&key(".leases/a/1"), Bytes::new()).await.unwrap();
    store.delete(&key(".leases/a/1")).await.unwrap();

    // All that our own key can do, and then what another client can.
    store.delete_prefix(&key("svc")).await.unwrap();
    assert!(store.list_keys(None).try_collect::<Vec<_>>().await.unwrap().is_empty());
    let refused = boto(
        &bucket,
        "n = 0\nfor v in s3.list_object_versions(Bucket=b).get('Versions', []):\n  if v['Key'].endswith(('small', 'large')):\n    \
         try:\n      s3.delete_object(Bucket=b, Key=v['Key'], VersionId=v['VersionId'], BypassGovernanceRetention=True)\n    \
         except Exception as e:\n      n += 1\nprint(n)",
    );
    assert_eq!(refused, "2", "the versions stay");
    // As docs/object-lock.md says it: without the marks of deletion, everything is there again.
    boto(
        &bucket,
        "for m in s3.list_object_versions(Bucket=b).get('DeleteMarkers', []):\n  if m['IsLatest'] and '/.leases/' not in m['Key']:\n    \
         s3.delete_object(Bucket=b, Key=m['Key'], VersionId=m['VersionId'])",
    );
    assert_eq!(store.head(&key("svc/large")).await.unwrap().bytes, 20 << 20);
    assert_eq!(store.read_range(&key("svc/small"), 0..5).await.unwrap(), "small");
}

#[tokio::test]
#[ignore = "live: MinIO and moto's client in containers"]
async fn what_a_bucket_locks_by_itself_is_looked_up() {
    let bucket = lockable();
    boto(
        &bucket,
        "s3.put_object_lock_configuration(Bucket=b, ObjectLockConfiguration={'ObjectLockEnabled': 'Enabled', \
         'Rule': {'DefaultRetention': {'Mode': 'GOVERNANCE', 'Days': 2}}})",
    );
    let store = bucket.store_with(&[("object_lock", "bucket")]);
    assert_eq!(store.object_lock(), Some(ObjectLock::OfTheStore));
    store.create(&key("a"), Bytes::new()).await.unwrap();
    // A part of an upload is checked for its sum there: it arrives all the same.
    let mut writer = store.writer(&key("b"), WriteOptions::default()).await.unwrap();
    writer.write(Bytes::from(vec![7; 20 << 20])).await.unwrap();
    writer.finish().await.unwrap();
    for name in ["a", "b"] {
        let until = store.lock(&key(name), None).await.unwrap().unwrap();
        let days = (until - SystemClock.now()).num_hours();
        assert!((47..=48).contains(&days), "{name}: {until}");
    }
}

/// What AWS says, and MinIO does not.
const WITHOUT_SUM: &str = "<Error><Code>InvalidRequest</Code><Message>Content-MD5 OR x-amz-checksum- HTTP header is required \
                           for Put Object requests with Object Lock parameters</Message></Error>";

#[tokio::test]
#[ignore = "live: MinIO in a container"]
async fn a_bucket_that_insists_on_checksums_gets_them() {
    let bucket = server::minio().bucket().await;
    let proxy = Proxy::start(bucket.address, |asked| {
        match asked.is("PUT") && !asked.head.contains("x-amz-checksum-") {
            true => Fate::Say("400 Bad Request", WITHOUT_SUM.to_owned()),
            false => Fate::Pass,
        }
    })
    .await;
    let bucket = bucket.by(proxy.address);
    for more in [
        [("object_lock", "bucket"), ("checksum", "sha256")],
        [("object_lock", "bucket"), ("checksum", "auto")],
    ] {
        let store = bucket.store_with(&more);
        let name = |what| key(&format!("{}/{what}", more[1].1));
        store.create(&name("empty"), Bytes::new()).await.unwrap();
        store.create(&name("small"), Bytes::from_static(b"small")).await.unwrap();
        for size in [100, 40 << 20] {
            let large = key(&format!("{}/of-{size}", more[1].1));
            let mut writer = store.writer(&large, WriteOptions::default()).await.unwrap();
            writer.write(Bytes::from(vec![7; size])).await.unwrap();
            writer.finish().await.unwrap();
            assert_eq!(store.head(&large).await.unwrap().bytes, size as u64);
        }
        store.rename(&name("small"), &name("other")).await.unwrap();
        store.delete_prefix(&key(more[1].1)).await.unwrap();
    }
    // Others may know no checksums: they are asked for none, unless it is said that the bucket locks.
    let e = bucket.store_with(&[]).create(&key("a"), Bytes::new()).await.unwrap_err();
    assert!(chain(&e).contains("the bucket locks what is written to it"), "{}", chain(&e));
    assert_eq!(advice(&e).unwrap(), "put `object_lock = \"bucket\"` into the options of the store");
}

#[tokio::test]
#[ignore = "live: MinIO in a container"]
async fn a_bucket_without_locks_and_a_key_without_the_right_are_told() {
    let bucket = server::minio().bucket().await;
    let store = bucket.store_with(&LOCKED);
    let until = Some(SystemClock.now() + TimeDelta::hours(1));
    store.create(&key("a"), Bytes::new()).await.unwrap();
    let e = store.lock(&key("a"), until).await.unwrap_err();
    assert!(chain(&e).contains("the bucket has no Object Lock"), "{}", chain(&e));
    assert!(advice(&e).unwrap().contains("put-object-lock-configuration"), "{e:?}");

    let denied = "<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>";
    let proxy = Proxy::start(bucket.address, move |asked| match asked.line.contains("retention") {
        true => Fate::Say("403 Forbidden", denied.to_owned()),
        false => Fate::Pass,
    })
    .await;
    let store = bucket.by(proxy.address).store_with(&LOCKED);
    let e = store.lock(&key("a"), until).await.unwrap_err();
    assert!(matches!(e, StoreError::PermissionDenied { .. }), "{e:?}");
    assert!(chain(&e).contains("`s3:PutObjectRetention` is missing"), "{}", chain(&e));
    assert!(advice(&e).unwrap().contains(r#""Action":"s3:PutObjectRetention""#), "{e:?}");
    let e = store.lock(&key("a"), None).await.unwrap_err();
    assert!(chain(&e).contains("`s3:GetObjectRetention` is missing"), "{}", chain(&e));
}

#[tokio::test]
#[ignore = "live: MinIO and moto's client in containers"]
async fn a_lock_is_tried_again_while_the_server_is_busy() {
    let bucket = lockable();
    let mut times = 0;
    let proxy = Proxy::start(bucket.address, move |asked| {
        if !asked.line.contains("retention") {
            return Fate::Pass;
        }
        times += 1;
        match times {
            1 => Fate::Say("503 Slow Down", "<Error><Code>SlowDown</Code></Error>".to_owned()),
            2 => Fate::CutRequest,
            3 => Fate::LoseAnswer,
            _ => Fate::Pass,
        }
    })
    .await;
    let store = bucket.by(proxy.address).store_with(&LOCKED);
    store.create(&key("a"), Bytes::new()).await.unwrap();
    let until = SystemClock.now().trunc_subsecs(0) + TimeDelta::hours(1);
    assert_eq!(store.lock(&key("a"), Some(until)).await.unwrap(), Some(until));
    assert_eq!(proxy.seen(|line| line.contains("retention")), 4);
}

/// An upload as a killed process leaves it.
async fn begun(bucket: &Bucket, key: &str) -> Box<dyn object_store::MultipartUpload> {
    let path = Path::parse(format!("some/where/{key}")).unwrap();
    let mut upload = bucket.client().put_multipart_opts(&path, Default::default()).await.unwrap();
    upload.put_part(PutPayload::from(vec![1; 5 << 20])).await.unwrap();
    upload
}

async fn abandoned_uploads_are_aborted(bucket: Bucket, dated: bool) {
    let store = bucket.store();
    let (mut dead, mut other) = (begun(&bucket, "svc/a b+c").await, begun(&bucket, "svc2/d").await);
    if dated {
        store.delete_abandoned(&key("svc"), Duration::from_secs(3600)).await.unwrap();
        dead.put_part(PutPayload::from(vec![1; 5 << 20])).await.expect("it is young");
    }
    store.delete_abandoned(&key("svc"), Duration::ZERO).await.unwrap();
    store.delete_abandoned(&key("svc"), Duration::ZERO).await.unwrap();
    dead.complete().await.expect_err("it was aborted");
    other.complete().await.expect("it is not below the prefix");
}

#[tokio::test]
#[ignore = "live: MinIO in a container"]
async fn abandoned_uploads_to_minio_are_aborted() {
    abandoned_uploads_are_aborted(server::minio().bucket().await, true).await;
}

#[tokio::test]
#[ignore = "live: moto in a container"]
async fn abandoned_uploads_to_moto_are_aborted() {
    // To moto, all of them are of the year 2010.
    abandoned_uploads_are_aborted(server::moto().bucket().await, false).await;
}

#[tokio::test]
#[ignore = "live: MinIO in a container"]
async fn who_may_not_list_uploads_leaves_them() {
    let bucket = server::minio().bucket().await;
    let denied = "<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>";
    let proxy = Proxy::start(bucket.address, move |asked| match asked.is("GET") {
        true => Fate::Say("403 Forbidden", denied.to_owned()),
        false => Fate::Pass,
    })
    .await;
    let store = bucket.by(proxy.address).store();
    store.delete_abandoned(&key("svc"), Duration::ZERO).await.unwrap();
    assert_eq!(proxy.seen(|line| line.contains("uploads")), 1, "it is not asked again");
}
