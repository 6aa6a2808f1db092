//! What is not allowed, or wrongly set up: the error says which, and what to do.

use std::sync::Arc;

use backup_core::{Catalog, Store as _, StoreError, StoreKey, SystemClock, WriteOptions, advice, chain};
use bytes::Bytes;

use crate::proxy::{Fate, Proxy};
use crate::server::{self, ID, SECRET};

const DENIED: &str = "<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>";

fn key(text: &str) -> StoreKey {
    StoreKey::new(text).unwrap()
}

#[tokio::test]
#[ignore = "live: MinIO in a container"]
async fn each_missing_permission_is_named_with_the_statement_that_gives_it() {
    let bucket = server::minio().bucket().await;
    let place = format!("{}/some/where", bucket.name);
    bucket.store().create(&key("a"), Bytes::from_static(b"x")).await.unwrap();
    let proxy = Proxy::start(bucket.address, |_| Fate::Say("403 Forbidden", DENIED.to_owned())).await;
    let store = bucket.by(proxy.address).store();
    let large = || async {
        let mut writer = store.writer(&key("b"), WriteOptions::default()).await?;
        writer.write(Bytes::from(vec![1; 20 << 20])).await?;
        writer.finish().await
    };
    let objects = format!("arn:aws:s3:::{place}/*");
    let bucket_itself = format!("arn:aws:s3:::{}", place.split('/').next().unwrap());
    for (e, permission, resource) in [
        (store.create(&key("b"), Bytes::new()).await.unwrap_err(), "s3:PutObject", &objects),
        (large().await.unwrap_err(), "s3:PutObject", &objects),
        (store.head(&key("a")).await.unwrap_err(), "s3:GetObject", &objects),
        (store.read(&key("a")).await.err().unwrap(), "s3:GetObject", &objects),
        (store.delete(&key("a")).await.unwrap_err(), "s3:DeleteObject", &objects),
        (store.list_dirs(None).await.unwrap_err(), "s3:ListBucket", &bucket_itself),
        (store.list_dirs(Some(&key("a"))).await.unwrap_err(), "s3:ListBucket", &bucket_itself),
        (store.delete_prefix(&key("a")).await.unwrap_err(), "s3:ListBucket", &bucket_itself),
    ] {
        assert!(matches!(e, StoreError::PermissionDenied { .. }), "{permission}: {e:?}");
        assert!(chain(&e).contains(&format!("`{permission}` is missing")), "{}", chain(&e));
        let (_, statement) = advice(&e).unwrap().split_once(": ").unwrap();
        let statement: serde_json::Value = serde_json::from_str(statement).unwrap();
        assert_eq!(
            statement,
            serde_json::json!({"Effect": "Allow", "Action": permission, "Resource": resource.as_str()})
        );
    }
    assert_eq!(proxy.seen(|_| true), 8, "what is forbidden is not asked for again");
}

#[tokio::test]
#[ignore = "live: MinIO in a container"]
async fn an_upload_that_may_not_be_aborted_says_so() {
    let bucket = server::minio().bucket().await;
    let proxy = Proxy::start(bucket.address, |asked| match asked.step() {
        Some("abort") => Fate::Say("403 Forbidden", DENIED.to_owned()),
        _ => Fate::Pass,
    })
    .await;
    let mut writer =
        bucket.by(proxy.address).store().writer(&key("b"), WriteOptions::default()).await.unwrap();
    writer.write(Bytes::from(vec![1; 20 << 20])).await.unwrap();
    let e = writer.abort().await.unwrap_err();
    assert!(chain(&e).contains("`s3:AbortMultipartUpload` is missing"), "{}", chain(&e));
}

#[tokio::test]
#[ignore = "live: MinIO in a container"]
async fn what_the_server_names_itself_is_believed() {
    let bucket = server::minio().bucket().await;
    let body = "<Error><Code>AccessDenied</Code><Message>User: arn:aws:iam::1:user/b is not authorized to perform: \
                kms:GenerateDataKey on resource: arn:aws:kms:eu-west-1:1:key/2 because no policy allows it</Message></Error>";
    let proxy = Proxy::start(bucket.address, move |_| Fate::Say("403 Forbidden", body.to_owned())).await;
    let e = bucket.by(proxy.address).store().create(&key("a"), Bytes::new()).await.unwrap_err();
    assert!(chain(&e).contains("`kms:GenerateDataKey` is missing"), "{}", chain(&e));
    assert!(advice(&e).unwrap().contains("kms:GenerateDataKey"));
}

#[tokio::test]
#[ignore = "live: MinIO in a container"]
async fn wrong_keys_are_told_apart_and_never_shown() {
    let bucket = server::minio().bucket().await;
    for (option, says) in
        [("access_key_id", "does not know this access key"), ("secret_access_key", "does not belong to")]
    {
        let store = bucket.store_with(&[(option, "hunter2-hunter2")]);
        for e in [
            store.create(&key("a"), Bytes::new()).await.unwrap_err(),
            store.read(&key("a")).await.err().unwrap(),
            store.list_dirs(None).await.unwrap_err(),
        ] {
            let all = format!("{} {e:?} {store:?}", chain(&e));
            assert!(chain(&e).contains(says), "{option}: {all}");
            for secret in ["hunter2", ID, SECRET] {
                assert!(!all.contains(secret), "{option}: {all}");
            }
            assert!(advice(&e).is_some_and(|help| help.contains("access_key_id")));
        }
    }
}

#[tokio::test]
#[ignore = "live: MinIO in a container"]
async fn a_clock_that_is_wrong_is_the_error() {
    let bucket = server::minio().bucket().await;
    for (times, says) in [
        (
            "<RequestTime>20260309T043820Z</RequestTime><ServerTime>2026-03-09T03:58:20Z</ServerTime>",
            "40 minutes fast",
        ),
        (
            "<RequestTime>20260309T030000Z</RequestTime><ServerTime>2026-03-09T04:00:00Z</ServerTime>",
            "60 minutes slow",
        ),
        ("", "more than 15 minutes"),
    ] {
        let body =
            format!("<Error><Code>RequestTimeTooSkewed</Code><Message>Too far.</Message>{times}</Error>");
        let proxy = Proxy::start(bucket.address, move |_| Fate::Say("403 Forbidden", body.clone())).await;
        let by = server::Bucket { name: bucket.name.clone(), address: proxy.address };
        for e in [
            by.store().create(&key("a"), Bytes::new()).await.unwrap_err(),
            by.store().list_dirs(None).await.unwrap_err(),
        ] {
            assert!(chain(&e).contains(says), "{}", chain(&e));
            assert!(advice(&e).is_some_and(|help| help.contains("NTP")));
        }
    }
}

#[tokio::test]
#[ignore = "live: MinIO in a container"]
async fn a_bucket_that_is_not_there_is_the_error() {
    let bucket = server::minio().bucket().await;
    let nowhere = server::Bucket { name: "no-such-bucket".to_owned(), address: bucket.address };
    let store = Arc::new(nowhere.store());
    let mut writer = store.writer(&key("b"), WriteOptions::default()).await.unwrap();
    let written = writer.write(Bytes::from(vec![1; 20 << 20])).await.unwrap_err();
    for e in [
        written,
        store.create(&key("a"), Bytes::new()).await.unwrap_err(),
        store.read(&key("a")).await.err().unwrap(),
        store.list_dirs(None).await.unwrap_err(),
        store.delete_prefix(&key("a")).await.unwrap_err(),
    ] {
        assert!(
            matches!(&e, StoreError::NotAStore { message } if message.contains("make the bucket")),
            "{e:?}"
        );
    }
    for e in [
        Catalog::init(Arc::clone(&store) as _, Arc::new(SystemClock)).await.unwrap_err(),
        Catalog::open(store, Arc::new(SystemClock)).await.unwrap_err(),
    ] {
        assert!(chain(&e).contains("make the bucket"), "{}", chain(&e));
    }
}
