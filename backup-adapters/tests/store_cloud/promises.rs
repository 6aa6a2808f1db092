//! What a server must promise, tried before a store is marked.

use std::sync::{Arc, Mutex};

use backup_core::{
    BackupError, Catalog, Readiness, Role, Store, StoreKey, SystemClock, Thaw, ThawSpeed, WriteOptions,
    advice, chain,
};
use bytes::Bytes;
use futures::TryStreamExt as _;

use crate::proxy::{Fate, Proxy};
use crate::server;

/// moto does not look at signatures, so that a header can vanish on the way: as good as a server that ignores it.
async fn careless() -> (server::Bucket, Proxy) {
    let bucket = server::moto().bucket().await;
    let proxy = Proxy::start(bucket.address, |_| Fate::Strip("if-none-match")).await;
    (bucket.by(proxy.address), proxy)
}

#[tokio::test]
#[ignore = "live: moto in a container"]
async fn a_server_that_ignores_conditions_is_refused() {
    let (bucket, _proxy) = careless().await;
    let store: Arc<dyn Store> = Arc::new(bucket.store());
    assert!(store.capabilities().exclusive_create, "it is believed until it was tried");
    let e = Catalog::init(Arc::clone(&store), Arc::new(SystemClock)).await.unwrap_err();
    let BackupError::Refused(what) = &e else { panic!("{e:?}") };
    for says in [&bucket.url(), "If-None-Match", "overwrite each other", "single_writer"] {
        assert!(what.contains(says), "{what}");
    }
    let left: Vec<_> = store.list_keys(None).try_collect().await.unwrap();
    assert!(left.is_empty(), "neither a mark nor the attempt: {left:?}");
}

#[tokio::test]
#[ignore = "live: moto in a container"]
async fn a_single_writer_may_use_it() {
    let (bucket, _proxy) = careless().await;
    let store: Arc<dyn Store> = Arc::new(bucket.store_with(&[("single_writer", "true")]));
    assert!(!store.capabilities().exclusive_create);
    let (first, new) = Catalog::init(Arc::clone(&store), Arc::new(SystemClock)).await.unwrap();
    assert!(new);
    let (again, new) = Catalog::init(Arc::clone(&store), Arc::new(SystemClock)).await.unwrap();
    assert!(!new && again.store_id() == first.store_id(), "one after the other, nothing is replaced");
}

#[tokio::test]
#[ignore = "live: MinIO and moto in containers"]
async fn real_servers_are_marked() {
    for server in [server::minio(), server::moto()] {
        let store: Arc<dyn Store> = Arc::new(server.bucket().await.store());
        let (_, new) = Catalog::init(Arc::clone(&store), Arc::new(SystemClock)).await.unwrap();
        let keys: Vec<_> = store.list_keys(None).map_ok(|key| key.to_string()).try_collect().await.unwrap();
        assert_eq!((new, keys), (true, vec!["store.json".to_owned()]));
    }
}

#[tokio::test]
#[ignore = "live: MinIO in a container"]
async fn a_server_that_knows_no_conditions_is_refused_with_what_to_do() {
    let bucket = server::minio().bucket().await;
    let body = "<Error><Code>NotImplemented</Code><Message>A header implies functionality.</Message></Error>";
    let proxy = Proxy::start(bucket.address, move |asked| {
        let conditional = asked.head.to_ascii_lowercase().contains("if-none-match");
        if conditional { Fate::Say("501 Not Implemented", body.to_owned()) } else { Fate::Pass }
    })
    .await;
    let e =
        Catalog::init(Arc::new(bucket.by(proxy.address).store()), Arc::new(SystemClock)).await.unwrap_err();
    assert!(backup_core::advice(&e).is_some_and(|help| help.contains("single_writer")), "{e:?}");
    assert_eq!(proxy.seen(|line| line.starts_with("PUT")), 1, "it is not asked again and again");
}

#[tokio::test]
#[ignore = "live: moto in a container"]
async fn artifacts_have_their_storage_class_and_everything_is_encrypted() {
    let bucket = server::moto().bucket().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let heads = Arc::clone(&seen);
    let proxy = Proxy::start(bucket.address, move |asked| {
        if !asked.is_trial() && (asked.is("PUT") || asked.step() == Some("begin")) {
            heads.lock().unwrap().push(asked.head.to_ascii_lowercase());
        }
        Fate::Pass
    })
    .await;
    let options = [("storage_class", "STANDARD_IA"), ("server_side_encryption", "AES256")];
    let store = bucket.by(proxy.address).store_with(&options);
    let control = WriteOptions::data(None).with_role(Role::Control);
    // Small and large artifacts, and what is read often.
    for (bytes, options, class) in
        [(9, WriteOptions::data(None), true), (20 << 20, WriteOptions::data(None), true), (9, control, false)]
    {
        seen.lock().unwrap().clear();
        let key = StoreKey::new(format!("{bytes}-{class}")).unwrap();
        let mut writer = store.writer(&key, options).await.unwrap();
        writer.write(Bytes::from(vec![1; bytes])).await.unwrap();
        writer.finish().await.unwrap();
        let first = seen.lock().unwrap()[0].clone();
        assert_eq!(first.contains("x-amz-storage-class: standard_ia"), class, "{first}");
        assert!(first.contains("x-amz-server-side-encryption: aes256"), "{first}");
    }
    seen.lock().unwrap().clear();
    store.create(&StoreKey::new("mark").unwrap(), Bytes::new()).await.unwrap();
    let first = seen.lock().unwrap()[0].clone();
    assert!(!first.contains("storage-class") && first.contains("server-side-encryption"), "{first}");
}

#[tokio::test]
#[ignore = "live: moto in a container"]
async fn artifacts_have_the_class_of_their_interval_and_tags() {
    let bucket = server::moto().bucket().await;
    let options =
        [("storage_class", "STANDARD_IA, monthly=GLACIER_IR"), ("tags", "Project=x, Kind = a backup")];
    let store = bucket.store_with(&options);
    for (name, interval, bytes, class) in [
        ("a", "hourly", 9, "STANDARD_IA"),
        ("b", "monthly", 9, "GLACIER_IR"),
        ("c", "monthly", 20 << 20, "GLACIER_IR"),
    ] {
        let options = WriteOptions::data(None).of_interval(&interval.parse().unwrap());
        let mut writer = store.writer(&StoreKey::new(name).unwrap(), options).await.unwrap();
        writer.write(Bytes::from(vec![1; bytes])).await.unwrap();
        writer.finish().await.unwrap();
        let found = server::boto(
            &bucket,
            &format!(
                "k = 'some/where/{name}'\nt = s3.get_object_tagging(Bucket=b, Key=k)['TagSet']\n\
                 print(s3.head_object(Bucket=b, Key=k).get('StorageClass'), sorted((x['Key'], x['Value']) for x in t))"
            ),
        );
        assert_eq!(found, format!("{class} [('Kind', 'a backup'), ('Project', 'x')]"), "{name}");
    }
}

#[tokio::test]
#[ignore = "live: MinIO and moto's client in containers"]
async fn objects_are_encrypted_with_a_key_of_the_server() {
    let bucket = server::minio().bucket().await;
    let options = [("server_side_encryption", "aws:kms"), ("sse_kms_key_id", "ours")];
    let store = bucket.store_with(&options);
    store.create(&StoreKey::new("a").unwrap(), Bytes::from_static(b"x")).await.unwrap();
    let mut writer = store.writer(&StoreKey::new("b").unwrap(), WriteOptions::data(None)).await.unwrap();
    writer.write(Bytes::from(vec![1; 20 << 20])).await.unwrap();
    writer.finish().await.unwrap();
    for name in ["a", "b"] {
        let look = format!(
            "h = s3.head_object(Bucket=b, Key='some/where/{name}')\nprint(h['ServerSideEncryption'], h['SSEKMSKeyId'])"
        );
        let found = server::boto(&bucket, &look);
        assert!(found.starts_with("aws:kms ") && found.ends_with("ours"), "{name}: {found}");
    }
    assert_eq!(store.read_range(&StoreKey::new("a").unwrap(), 0..1).await.unwrap(), "x");
    assert_eq!(store.head(&StoreKey::new("b").unwrap()).await.unwrap().bytes, 20 << 20);
}

#[tokio::test]
#[ignore = "live: moto in a container"]
async fn what_a_rule_has_archived_is_told_and_brought_back() {
    let bucket = server::moto().bucket().await;
    let store = bucket.store();
    let key = StoreKey::new("svc/old").unwrap();
    store.create(&key, Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(store.thaw(&key, None).await.unwrap(), Readiness::Now);
    // As a rule does it.
    server::boto(
        &bucket,
        "s3.copy_object(Bucket=b, Key='some/where/svc/old', CopySource=b + '/some/where/svc/old', StorageClass='GLACIER')",
    );
    let e = store.read(&key).await.err().unwrap();
    assert!(chain(&e).contains("it lies in an archive"), "{}", chain(&e));
    assert!(advice(&e).unwrap().contains("backup thaw"), "{e:?}");
    assert_eq!(store.thaw(&key, None).await.unwrap(), Readiness::Archived);
    let ask = Thaw { days: 3, speed: ThawSpeed::Bulk };
    assert_eq!(store.thaw(&key, Some(ask)).await.unwrap(), Readiness::Underway);
    // moto is done at once.
    assert_eq!(store.thaw(&key, Some(ask)).await.unwrap(), Readiness::Now);
    assert_eq!(store.read_range(&key, 0..1).await.unwrap(), "x");
    let missing = store.thaw(&StoreKey::new("svc/none").unwrap(), None).await.unwrap_err();
    assert!(missing.is_not_found(), "{missing:?}");
}

#[tokio::test]
#[ignore = "live: moto in a container"]
async fn what_is_on_its_way_from_an_archive_is_not_asked_for_again() {
    let bucket = server::moto().bucket().await;
    let key = StoreKey::new("old").unwrap();
    bucket.store().create(&key, Bytes::from_static(b"x")).await.unwrap();
    server::boto(
        &bucket,
        "s3.copy_object(Bucket=b, Key='some/where/old', CopySource=b + '/some/where/old', StorageClass='DEEP_ARCHIVE')",
    );
    let body = "<Error><Code>RestoreAlreadyInProgress</Code><Message>Object restore is already in progress</Message></Error>";
    let proxy = Proxy::start(bucket.address, move |asked| match asked.line.contains("restore") {
        true => Fate::Say("409 Conflict", body.to_owned()),
        false => Fate::Pass,
    })
    .await;
    let store = bucket.by(proxy.address).store();
    let ask = Thaw { days: 3, speed: ThawSpeed::Standard };
    assert_eq!(store.thaw(&key, Some(ask)).await.unwrap(), Readiness::Underway);
}
