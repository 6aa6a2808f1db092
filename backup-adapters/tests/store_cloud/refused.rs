//! Keys that may do less than a host needs: MinIO itself refuses each call that is made, and what it answers in the middle of
//! an upload is the error, with nothing half-written.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backup_adapters::stores::ObjectStore;
use backup_core::{
    Clock as _, Store as _, StoreError, StoreKey, SystemClock, Thaw, ThawSpeed, WriteOptions, advice, chain,
};
use bytes::Bytes;
use futures::TryStreamExt as _;
use serde_json::{Value, json};

use crate::faults::{key, large, write};
use crate::proxy::{Fate, Proxy};
use crate::server::{self, Bucket, ID, SECRET};
use crate::tokens::assume_role;

const DENIED: &str = "<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>";

/// A store with keys that may do everything but `action`.
fn without(bucket: &Bucket, action: &str, more: &[(&str, &str)]) -> ObjectStore {
    let all = json!({ "Effect": "Allow", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::*"] });
    let none = json!({ "Effect": "Deny", "Action": [action], "Resource": ["arn:aws:s3:::*"] });
    let policy = json!({ "Version": "2012-10-17", "Statement": [all, none] });
    let keys: Value =
        serde_json::from_str(&assume_role(server::minio().address, &policy.to_string())).unwrap();
    let of = |name: &str| keys[name].as_str().unwrap().to_owned();
    let (id, secret, token) = (of("AccessKeyId"), of("SecretAccessKey"), of("Token"));
    let own = [("access_key_id", id.as_str()), ("secret_access_key", &secret), ("session_token", &token)];
    bucket.store_with(&[&own, more].concat())
}

#[track_caller]
fn names(e: &StoreError, permission: &str) {
    let said = chain(e);
    assert!(matches!(e, StoreError::PermissionDenied { .. }), "{permission}: {e:?}");
    assert!(said.contains(&format!("the permission `{permission}` is missing")), "{permission}: {said}");
    assert!(!said.contains('\n') && !said.contains("retries"), "{said}");
    assert!(advice(e).is_some_and(|help| help.contains(&format!("\"Action\":\"{permission}\""))), "{e:?}");
    for secret in [ID, SECRET] {
        assert!(!format!("{said} {e:?}").contains(secret), "{e:?}");
    }
}

async fn there(store: &ObjectStore) -> Vec<String> {
    let keys: Vec<StoreKey> = store.list_keys(None).try_collect().await.unwrap();
    keys.iter().map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: MinIO in a container"]
async fn each_right_that_a_server_withholds_is_named() {
    let bucket = server::minio().bucket().await;
    let direct = bucket.store();
    for name in ["a", "dir/1", "dir/2"] {
        direct.create(&key(name), Bytes::from_static(b"x")).await.unwrap();
    }
    let before = there(&direct).await;

    let store = without(&bucket, "s3:PutObject", &[]);
    names(&store.create(&key("b"), Bytes::new()).await.unwrap_err(), "s3:PutObject");
    names(&write(&store, &key("c"), Bytes::from_static(b"small")).await.unwrap_err(), "s3:PutObject");
    names(&write(&store, &key("d"), large()).await.unwrap_err(), "s3:PutObject");
    names(&store.rename(&key("a"), &key("e")).await.unwrap_err(), "s3:PutObject");

    let store = without(&bucket, "s3:GetObject", &[]);
    names(&store.read(&key("a")).await.err().unwrap(), "s3:GetObject");
    names(&store.read_range(&key("a"), 0..1).await.unwrap_err(), "s3:GetObject");
    names(&store.head(&key("a")).await.unwrap_err(), "s3:GetObject");
    names(&store.thaw(&key("a"), None).await.unwrap_err(), "s3:GetObject");
    // What is written in one piece needs no look; of more nobody could tell whether they are whole.
    write(&store, &key("f"), Bytes::from_static(b"small")).await.unwrap();
    names(&write(&store, &key("g"), large()).await.unwrap_err(), "s3:GetObject");

    let store = without(&bucket, "s3:ListBucket", &[]);
    names(&store.list_dirs(None).await.unwrap_err(), "s3:ListBucket");
    names(&store.list_keys(Some(&key("dir"))).try_collect::<Vec<_>>().await.unwrap_err(), "s3:ListBucket");
    names(&store.delete_prefix(&key("dir")).await.unwrap_err(), "s3:ListBucket");

    let store = without(&bucket, "s3:DeleteObject", &[]);
    names(&store.delete(&key("a")).await.unwrap_err(), "s3:DeleteObject");
    // In bulk the answer as a whole is a success.
    names(&store.delete_prefix(&key("dir")).await.unwrap_err(), "s3:DeleteObject");
    direct.delete(&key("f")).await.unwrap();
    assert_eq!(there(&direct).await, before, "nothing was written, and nothing is gone");

    let store = without(&bucket, "s3:AbortMultipartUpload", &[]);
    let mut writer = store.writer(&key("h"), WriteOptions::default()).await.unwrap();
    writer.write(Bytes::from(vec![1; 20 << 20])).await.unwrap();
    names(&writer.abort().await.unwrap_err(), "s3:AbortMultipartUpload");
    // Who may not list uploads leaves them to the bucket's rules.
    let store = without(&bucket, "s3:ListBucketMultipartUploads", &[]);
    store.delete_abandoned(&key("h"), Duration::ZERO).await.unwrap();
}

/// Each request of an upload, of a small object and of one with tags, is refused once it has been allowed until then.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: MinIO in a container"]
async fn an_upload_that_is_refused_anywhere_is_told_and_leaves_nothing() {
    for (step, which) in [
        ("begin", ""),
        ("part", "partNumber=1&"),
        ("part", "partNumber=2&"),
        ("part", "partNumber=3&"),
        ("complete", ""),
    ] {
        let bucket = server::minio().bucket().await;
        let direct = bucket.store();
        let proxy = Proxy::start(bucket.address, move |asked| {
            let is_it = asked.step() == Some(step) && asked.line.contains(which);
            if is_it { Fate::Say("403 Forbidden", DENIED.to_owned()) } else { Fate::Pass }
        })
        .await;
        let began = Instant::now();
        let e = write(&bucket.by(proxy.address).store(), &key("a"), large()).await.unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(20), "{step} {which}: {:?}", began.elapsed());
        names(&e, "s3:PutObject");
        assert!(direct.head(&key("a")).await.unwrap_err().is_not_found(), "{step} {which}");
        assert_eq!(there(&direct).await, [""; 0], "{step} {which}");
        let asked = proxy.seen(|line| {
            line.contains(which)
                && !line.contains(".try?")
                && match step {
                    "begin" => line.starts_with("POST") && line.contains("uploads"),
                    "complete" => line.starts_with("POST") && line.contains("uploadId="),
                    _ => line.starts_with("PUT"),
                }
        });
        assert_eq!(asked, 1, "{step} {which}: what is refused is not asked for again");
        if step != "begin" {
            // By a task of its own.
            let until = Instant::now() + Duration::from_secs(20);
            while proxy.seen(|line| line.starts_with("DELETE") && !line.contains(".try?")) == 0 {
                assert!(Instant::now() < until, "the upload was not aborted");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: MinIO in a container"]
async fn tags_that_may_not_be_set_are_the_error_and_control_files_have_none() {
    let bucket = server::minio().bucket().await;
    let direct = bucket.store();
    let tagged = Arc::new(Mutex::new(0));
    let count = Arc::clone(&tagged);
    // As AWS says it: it names what is missing, which is not what the call is called by.
    let body = "<Error><Code>AccessDenied</Code><Message>User: arn:aws:iam::1:user/b is not authorized to perform: \
                s3:PutObjectTagging on resource: \"arn:aws:s3:::b/x\" because no policy allows it</Message></Error>";
    let proxy = Proxy::start(bucket.address, move |asked| {
        match asked.head.to_lowercase().contains("\r\nx-amz-tagging:") {
            true => {
                *count.lock().unwrap() += 1;
                Fate::Say("403 Forbidden", body.to_owned())
            }
            false => Fate::Pass,
        }
    })
    .await;
    let store = bucket.by(proxy.address).store_with(&[("tags", "Project=x")]);
    names(&write(&store, &key("small"), Bytes::from_static(b"x")).await.unwrap_err(), "s3:PutObjectTagging");
    names(&write(&store, &key("large"), large()).await.unwrap_err(), "s3:PutObjectTagging");
    assert_eq!(*tagged.lock().unwrap(), 2, "each once");
    store.create(&key("control"), Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(there(&direct).await, ["control"]);
}

/// Calls that not every server knows: by the words of their errors alone.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: moto in a container"]
async fn archives_and_locks_that_may_not_be_touched_are_told() {
    let bucket = server::moto().bucket().await;
    let old = key("old");
    bucket.store().create(&old, Bytes::from_static(b"x")).await.unwrap();
    server::boto(
        &bucket,
        "s3.copy_object(Bucket=b, Key='some/where/old', CopySource=b + '/some/where/old', StorageClass='GLACIER')",
    );
    let proxy = Proxy::start(bucket.address, |asked| match asked.line.contains("?re") {
        true => Fate::Say("403 Forbidden", DENIED.to_owned()),
        false => Fate::Pass,
    })
    .await;
    let bucket = bucket.by(proxy.address);
    let ask = Thaw { days: 3, speed: ThawSpeed::Bulk };
    names(&bucket.store().thaw(&old, Some(ask)).await.unwrap_err(), "s3:RestoreObject");
    assert_eq!(proxy.seen(|line| line.contains("?restore")), 1);
    let store = bucket.store_with(&[("object_lock", "governance"), ("object_lock_for", "1d")]);
    let until = SystemClock.now() + chrono::TimeDelta::days(1);
    names(&store.lock(&old, Some(until)).await.unwrap_err(), "s3:PutObjectRetention");
    let store = bucket.store_with(&[("object_lock", "bucket")]);
    names(&store.lock(&old, None).await.unwrap_err(), "s3:GetObjectRetention");
}
