//! A store whose disk is full: told at once, and nothing is lost or half there.

use std::time::{Duration, Instant};

use backup_core::{Store as _, StoreError, chain};
use bytes::Bytes;
use futures::TryStreamExt as _;

use crate::faults::{body, key, write};
use crate::server;

#[tokio::test]
#[ignore = "live: MinIO and moto's client in containers"]
async fn a_full_store_is_told_at_once_and_keeps_what_it_has() {
    let server = server::small_minio(128 << 20);
    let bucket = server.bucket().await;
    // As patient as ever: it must not be asked for minutes whether it still is full.
    let store = bucket.store();
    let old: Bytes = vec![7; 20 << 20].into();
    write(&store, &key("svc/old"), old.clone()).await.unwrap();
    let began = Instant::now();
    let e = write(&store, &key("svc/new"), vec![8; 200 << 20].into()).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert!(matches!(e, StoreError::NoSpace { .. }), "{e:?}");
    assert!(chain(&e).contains("507, XMinioStorageFull"), "{}", chain(&e));
    let listed: Vec<_> = store.list_keys(None).try_collect().await.unwrap();
    assert_eq!(listed, [key("svc/old")]);
    assert!(body(&store, &key("svc/old")).await.unwrap() == old);
    // The upload is aborted by a task of its own; the server makes room of it in its own time.
    let look =
        "print(len(s3.list_multipart_uploads(Bucket=b, Prefix='some/where/svc/new').get('Uploads', [])))";
    let until = Instant::now() + Duration::from_secs(30);
    while server::boto(&bucket, look) != "0" {
        assert!(Instant::now() < until, "the upload was not aborted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
