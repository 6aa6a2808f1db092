//! Bytes that are altered on their way, and servers that do not look.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backup_core::{Store as _, advice, chain};
use futures::TryStreamExt as _;

use crate::faults::{LARGE, body, key, large, write};
use crate::proxy::{Asked, Fate, Proxy};
use crate::server::{self, Bucket, Server};

/// A bucket of `server` by way of a proxy with `plan`, and the heads of all parts of real uploads.
async fn watched(
    server: &Server,
    mut plan: impl FnMut(&Asked) -> Fate + Send + 'static,
) -> (Bucket, Proxy, Arc<Mutex<Vec<String>>>) {
    let bucket = server.bucket().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let parts = Arc::clone(&seen);
    let proxy = Proxy::start(bucket.address, move |asked| {
        if asked.step() == Some("part") {
            parts.lock().unwrap().push(asked.head.to_ascii_lowercase());
        }
        plan(asked)
    })
    .await;
    (bucket.by(proxy.address), proxy, seen)
}

fn has_crc(head: &String) -> bool {
    let unsigned = head.contains("x-amz-content-sha256: unsigned-payload");
    assert_eq!(unsigned, head.contains("x-amz-checksum-crc64nvme: "), "never without either: {head}");
    unsigned
}

#[tokio::test]
#[ignore = "live: MinIO and moto's client in containers"]
async fn a_server_that_compares_gets_a_crc_and_is_tried_once() {
    let (bucket, proxy, parts) = watched(server::minio(), |_| Fate::Pass).await;
    let (auto, required) = (bucket.store(), bucket.store_with(&[("checksum", "crc64nvme")]));
    for (store, name) in [(&auto, "a"), (&auto, "b"), (&required, "c")] {
        write(store, &key(name), large()).await.unwrap();
        assert!(body(store, &key(name)).await.unwrap() == large(), "{name}");
    }
    let parts = parts.lock().unwrap().clone();
    assert!(parts.len() == 9 && parts.iter().all(has_crc), "{parts:?}");
    // Each store: begun, a wrong part, a right one, aborted. And nothing of it stays.
    assert_eq!(proxy.seen(|line| line.contains(".try?")), 8);
    assert_eq!(auto.list_keys(None).try_collect::<Vec<_>>().await.unwrap().len(), 3);
    let bucket = bucket.by(server::minio().address);
    let look =
        "print(len(s3.list_multipart_uploads(Bucket=b, Prefix='some/where/a.try').get('Uploads', [])))";
    assert_eq!(server::boto(&bucket, look), "0");
    // The server knows the sum of the whole.
    let look = "print(s3.head_object(Bucket=b, Key='some/where/a', ChecksumMode='ENABLED').get('ChecksumCRC64NVME'))";
    assert_ne!(server::boto(&bucket, look), "None");
}

#[tokio::test]
#[ignore = "live: MinIO in a container"]
async fn payloads_are_signed_if_that_is_asked_for() {
    let (bucket, proxy, parts) = watched(server::minio(), |_| Fate::Pass).await;
    write(&bucket.store_with(&[("checksum", "sha256")]), &key("a"), large()).await.unwrap();
    let parts = parts.lock().unwrap().clone();
    assert!(parts.len() == 3 && !parts.iter().any(has_crc), "{parts:?}");
    assert_eq!(proxy.seen(|line| line.contains(".try?")), 0);
}

/// moto takes any sum, and knows no signatures.
#[tokio::test]
#[ignore = "live: moto in a container"]
async fn a_server_that_ignores_the_crc_is_found_out_and_gets_signed_payloads() {
    let (bucket, _proxy, parts) = watched(server::moto(), |_| Fate::Pass).await;
    let store = bucket.store();
    write(&store, &key("a"), large()).await.unwrap();
    assert!(body(&store, &key("a")).await.unwrap() == large());
    let parts = parts.lock().unwrap().clone();
    assert!(parts.len() == 3 && !parts.iter().any(has_crc), "{parts:?}");
    let required = bucket.store_with(&[("checksum", "crc64nvme")]);
    let e = write(&required, &key("b"), large()).await.unwrap_err();
    assert!(chain(&e).contains("does not compare the checksum"), "{}", chain(&e));
    assert!(advice(&e).unwrap().contains("`checksum`"), "{e:?}");
    let listed: Vec<_> = store.list_keys(None).try_collect().await.unwrap();
    assert_eq!(listed, [key("a")], "nothing that tried the server stays");
}

#[tokio::test]
#[ignore = "live: MinIO in a container"]
async fn a_server_that_knows_no_crc_gets_signed_payloads() {
    let body = "<Error><Code>InvalidRequest</Code><Message>Checksum algorithm is unknown.</Message></Error>";
    let (bucket, _proxy, parts) = watched(server::minio(), move |asked| {
        let knows_not = asked.head.to_ascii_lowercase().contains("crc64nvme");
        if knows_not { Fate::Say("400 Bad Request", body.to_owned()) } else { Fate::Pass }
    })
    .await;
    write(&bucket.store(), &key("a"), large()).await.unwrap();
    assert!(!parts.lock().unwrap().iter().any(has_crc));
    let e = write(&bucket.store_with(&[("checksum", "crc64nvme")]), &key("b"), large()).await.unwrap_err();
    assert!(chain(&e).contains("InvalidRequest"), "{}", chain(&e));
}

#[tokio::test]
#[ignore = "live: MinIO in a container"]
async fn bytes_that_are_altered_on_their_way_are_refused_and_sent_again() {
    for checksum in ["auto", "sha256"] {
        let mut left = 2;
        let (bucket, _proxy, parts) = watched(server::minio(), move |asked| {
            if asked.step() != Some("part") || left == 0 {
                return Fate::Pass;
            }
            left -= 1;
            Fate::Alter
        })
        .await;
        let store = bucket.store_with(&[("checksum", checksum)]);
        write(&store, &key("a"), large()).await.unwrap_or_else(|e| panic!("{checksum}: {}", chain(&e)));
        assert!(body(&store, &key("a")).await.unwrap() == large(), "{checksum}");
        let parts = parts.lock().unwrap().clone();
        assert_eq!((parts.len(), parts.iter().all(has_crc)), (5, checksum == "auto"));
    }
}

#[tokio::test]
#[ignore = "live: MinIO in a container"]
async fn bytes_that_are_always_altered_are_an_error_in_time_and_show_nothing() {
    for checksum in ["auto", "sha256"] {
        let altered = |asked: &Asked| match asked.step() {
            Some("part") => Fate::Alter,
            None if asked.is("PUT") && !asked.is_trial() => Fate::Alter,
            _ => Fate::Pass,
        };
        let (bucket, _proxy, _parts) = watched(server::minio(), altered).await;
        let store = bucket.store_with(&[("checksum", checksum)]);
        let began = Instant::now();
        for bytes in [LARGE, 9] {
            let e = write(&store, &key("a"), large().slice(..bytes)).await.unwrap_err();
            assert!(chain(&e).contains("do not arrive as they are sent"), "{checksum}: {}", chain(&e));
            assert!(advice(&e).unwrap().contains("a proxy"), "{e:?}");
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
        assert!(store.list_keys(None).try_collect::<Vec<_>>().await.unwrap().is_empty());
    }
}
