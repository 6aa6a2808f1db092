//! What a server must promise, tried before a store is marked.

use std::sync::{Arc, Mutex};

use backup_core::{BackupError, Catalog, Role, Store, StoreKey, SystemClock, WriteOptions};
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
        if asked.is("PUT") || asked.step() == Some("begin") {
            heads.lock().unwrap().push(asked.head.to_ascii_lowercase());
        }
        Fate::Pass
    })
    .await;
    let options = [("storage_class", "STANDARD_IA"), ("server_side_encryption", "AES256")];
    let store = bucket.by(proxy.address).store_with(&options);
    let mut control = WriteOptions::default();
    control.role = Role::Control;
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
