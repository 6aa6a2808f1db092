//! What networks and servers do to a store, and what must come of it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backup_adapters::stores::ObjectStore;
use backup_core::{ObjectInfo, Store as _, StoreError, StoreKey, WriteOptions, chain};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};

use crate::proxy::{Asked, Fate, Proxy};
use crate::server::{self, Bucket};

/// What servers say that have too much to do, or trouble of their own: by status and by code.
const STORMS: [(&str, &str); 3] = [
    ("503 Slow Down", "SlowDown"),
    ("500 Internal Server Error", "InternalError"),
    ("429 Too Many Requests", "TooManyRequests"),
];
/// Three parts.
pub(crate) const LARGE: usize = 40 << 20;

pub(crate) fn key(text: &str) -> StoreKey {
    StoreKey::new(text).unwrap()
}

pub(crate) fn large() -> Bytes {
    (0..LARGE as u64 / 8).flat_map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()).collect()
}

pub(crate) async fn write(
    store: &ObjectStore,
    key: &StoreKey,
    mut body: Bytes,
) -> Result<ObjectInfo, StoreError> {
    let mut writer = store.writer(key, WriteOptions::data(Some(body.len() as u64))).await?;
    while !body.is_empty() {
        writer.write(body.split_to(body.len().min(1 << 20))).await?;
    }
    writer.finish().await
}

pub(crate) async fn body(store: &ObjectStore, key: &StoreKey) -> Result<Bytes, StoreError> {
    let chunks: Vec<Bytes> = store.read(key).await?.try_collect().await?;
    Ok(chunks.concat().into())
}

/// A bucket, as it is and by way of a proxy with `plan`.
async fn between(plan: impl FnMut(&Asked) -> Fate + Send + 'static) -> (ObjectStore, Bucket, Proxy) {
    let bucket = server::minio().bucket().await;
    let direct = bucket.store();
    let proxy = Proxy::start(bucket.address, plan).await;
    (direct, bucket.by(proxy.address), proxy)
}

/// Every request of an upload of [`large`]: its step, and what its line contains.
const REQUESTS: [(&str, &str); 5] = [
    ("begin", ""),
    ("part", "partNumber=1"),
    ("part", "partNumber=2"),
    ("part", "partNumber=3"),
    ("complete", ""),
];

fn storm(status: &'static str, code: &str) -> Fate {
    Fate::Say(status, format!("<Error><Code>{code}</Code><Message>Try again later.</Message></Error>"))
}

fn is_retryable(e: &StoreError) -> bool {
    matches!(e, StoreError::Other { retryable: true, .. })
}

#[tokio::test]
#[ignore = "live: MinIO in a container"]
async fn an_upload_that_is_cut_once_anywhere_arrives_whole() {
    let large = large();
    for (step, which) in REQUESTS {
        for fate in [Fate::CutRequest, Fate::LoseAnswer, Fate::CutAnswer] {
            let what = format!("{step} {which}, {fate:?}");
            let once = Arc::new(Mutex::new(Some(fate)));
            let left = Arc::clone(&once);
            let plan = move |asked: &Asked| match asked.step() == Some(step) && asked.line.contains(which) {
                true => left.lock().unwrap().take().unwrap_or(Fate::Pass),
                false => Fate::Pass,
            };
            let (direct, bucket, proxy) = between(plan).await;
            let store = bucket.store_with(&[("retry_for", "20s")]);
            let info = write(&store, &key("a"), large.clone()).await;
            let info = info.unwrap_or_else(|e| panic!("{what}: {}", chain(&e)));
            assert_eq!(info.bytes, LARGE as u64);
            assert!(once.lock().unwrap().is_none(), "{what}: nothing was cut");
            assert_eq!(proxy.seen(|line| line.contains("partNumber=4")), 0, "every part has its turn");
            assert!(body(&direct, &key("a")).await.unwrap() == large, "{what}: other bytes");
        }
    }
}

#[tokio::test]
#[ignore = "live: MinIO in a container"]
async fn an_upload_that_is_always_cut_fails_in_time_and_shows_nothing() {
    for step in ["begin", "part", "complete"] {
        let plan =
            move |asked: &Asked| if asked.step() == Some(step) { Fate::CutRequest } else { Fate::Pass };
        let (direct, bucket, proxy) = between(plan).await;
        let store = bucket.store_with(&[("retry_for", "1s")]);
        let began = Instant::now();
        let e = write(&store, &key("a"), large()).await.unwrap_err();
        assert!(is_retryable(&e), "{step}: {e:?}");
        assert!(began.elapsed() < Duration::from_secs(20), "{step}: {:?}", began.elapsed());
        assert!(direct.head(&key("a")).await.unwrap_err().is_not_found());
        let listed: Vec<_> = direct.list_keys(None).try_collect().await.unwrap();
        assert!(listed.is_empty(), "{step}: {listed:?}");
        if step != "begin" {
            // By a task of its own.
            let until = Instant::now() + Duration::from_secs(20);
            while proxy.seen(|line| line.starts_with("DELETE")) == 0 {
                assert!(Instant::now() < until, "the upload was not aborted");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        // And the next attempt over a network that works is none the worse.
        assert_eq!(write(&direct, &key("a"), large()).await.unwrap().bytes, LARGE as u64);
    }
}

#[tokio::test]
#[ignore = "live: MinIO in a container"]
async fn an_upload_that_somebody_aborted_fails_and_says_so() {
    let bucket = server::minio().bucket().await;
    let address = bucket.address;
    let body = "<Error><Code>NoSuchUpload</Code><Message>It may have been aborted.</Message></Error>";
    let proxy = Proxy::start(address, move |asked| match asked.step() {
        Some("complete") => Fate::Say("404 Not Found", body.to_owned()),
        _ => Fate::Pass,
    })
    .await;
    let e = write(&bucket.by(proxy.address).store(), &key("a"), large()).await.unwrap_err();
    assert!(chain(&e).contains("aborted by somebody else"), "{}", chain(&e));
}

#[tokio::test]
#[ignore = "live: MinIO in a container"]
async fn a_download_that_is_cut_goes_on_or_ends_with_an_error() {
    let large = large();
    // The fourth request is within the object: the first piece has one of its own.
    for (cuts, whole) in [(1, true), (usize::MAX, false)] {
        let mut left = cuts;
        let plan = move |asked: &Asked| {
            if !asked.is("GET") || left == 0 {
                return Fate::Pass;
            }
            left -= 1;
            Fate::CutAnswer
        };
        let (direct, bucket, _proxy) = between(plan).await;
        write(&direct, &key("a"), large.clone()).await.unwrap();
        let began = Instant::now();
        match body(&bucket.store_with(&[("retry_for", "2s")]), &key("a")).await {
            Ok(read) => assert!(whole && read == large),
            Err(e) => assert!(!whole && is_retryable(&e), "{}", chain(&e)),
        }
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}

#[tokio::test]
#[ignore = "live: MinIO in a container"]
async fn a_lost_acknowledgement_of_our_own_create_is_recognised() {
    let mut once = Some(Fate::LoseAnswer);
    let plan = move |asked: &Asked| match asked.is("PUT") {
        true => once.take().unwrap_or(Fate::Pass),
        false => Fate::Pass,
    };
    let (direct, bucket, proxy) = between(plan).await;
    let store = bucket.store();
    store.create(&key("a"), Bytes::from_static(b"run 1")).await.unwrap();
    assert_eq!(proxy.seen(|line| line.starts_with("PUT")), 2);
    for store in [&store, &direct] {
        assert!(store.create(&key("a"), Bytes::from_static(b"run 1")).await.unwrap_err().is_already_exists());
    }
    assert_eq!(body(&direct, &key("a")).await.unwrap(), "run 1");
}

#[tokio::test]
#[ignore = "live: MinIO in a container"]
async fn a_storm_is_survived_without_hammering() {
    for (status, code) in STORMS {
        survive(status, code).await;
    }
}

async fn survive(status: &'static str, code: &'static str) {
    let begin = Instant::now();
    let plan = move |_: &Asked| match begin.elapsed() < Duration::from_secs(4) {
        true => storm(status, code),
        false => Fate::Pass,
    };
    let (direct, bucket, proxy) = between(plan).await;
    direct.create(&key("there"), Bytes::from_static(b"x")).await.unwrap();
    let store = bucket.store();
    let (large, a, b, there) = (large(), key("a"), key("b"), key("there"));
    let (created, written, read, listed) = tokio::join!(
        store.create(&a, Bytes::from_static(b"x")),
        write(&store, &b, large.clone()),
        body(&store, &there),
        store.list_dirs(None)
    );
    let failed = [created.err(), written.err(), read.err(), listed.err()];
    let failed: Vec<String> = failed.iter().flatten().map(|e| chain(e)).collect();
    assert!(failed.is_empty(), "{status}: {failed:#?}");
    assert!(body(&direct, &key("b")).await.unwrap() == large);
    let asked = proxy.seen(|_| true);
    assert!(asked < 80, "{status}: {asked} requests");
}

#[tokio::test]
#[ignore = "live: MinIO in a container"]
async fn an_endless_storm_ends_with_an_error_in_time() {
    for (status, code) in STORMS {
        endure(status, code).await;
    }
}

async fn endure(status: &'static str, code: &'static str) {
    let number = status.split(' ').next().unwrap();
    let plan = move |_: &Asked| storm(status, code);
    let (_, bucket, _proxy) = between(plan).await;
    let store = bucket.store_with(&[("retry_for", "1s")]);
    let a = key("a");
    let began = Instant::now();
    let (created, written, read, looked, listed, deleted) = tokio::join!(
        store.create(&a, Bytes::from_static(b"x")),
        write(&store, &a, large()),
        body(&store, &a),
        store.head(&a),
        store.list_dirs(None),
        store.delete(&a),
    );
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    for e in [
        created.unwrap_err(),
        written.unwrap_err(),
        read.unwrap_err(),
        looked.unwrap_err(),
        listed.unwrap_err(),
        deleted.unwrap_err(),
    ] {
        assert!(is_retryable(&e) && chain(&e).contains(number), "{status}: {e:?}");
    }
}

#[tokio::test]
#[ignore = "live: MinIO in a container"]
async fn listings_and_deletions_of_thousands_are_whole() {
    let store = server::minio().bucket().await.store();
    futures::stream::iter(0..1203)
        .map(|n| {
            let store = store.clone();
            async move { store.create(&key(&format!("s/{n}/x")), Bytes::from_static(b"x")).await.unwrap() }
        })
        .buffer_unordered(16)
        .collect::<Vec<_>>()
        .await;
    assert_eq!(store.list_keys(Some(&key("s"))).try_collect::<Vec<_>>().await.unwrap().len(), 1203);
    assert_eq!(store.list_dirs(Some(&key("s"))).await.unwrap().len(), 1203);
    store.delete_prefix(&key("s")).await.unwrap();
    assert_eq!(store.list_keys(None).try_collect::<Vec<_>>().await.unwrap(), []);
}

#[tokio::test]
#[ignore = "live: MinIO in a container"]
async fn a_listing_that_is_cut_begins_anew_and_is_never_short() {
    for (cuts, whole) in [(2, true), (usize::MAX, false)] {
        let mut left = cuts;
        let plan = move |asked: &Asked| {
            if !asked.line.contains("list-type=2") || left == 0 {
                return Fate::Pass;
            }
            left -= 1;
            Fate::CutAnswer
        };
        let (direct, bucket, _proxy) = between(plan).await;
        direct.create(&key("a/x"), Bytes::new()).await.unwrap();
        let store = bucket.store_with(&[("retry_for", "2s")]);
        let began = Instant::now();
        let keys: Result<Vec<_>, _> = store.list_keys(None).try_collect().await;
        let dirs = store.list_dirs(None).await;
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        match whole {
            true => assert_eq!((keys.unwrap(), dirs.unwrap()), (vec![key("a/x")], vec!["a".to_owned()])),
            false => assert!(is_retryable(&keys.unwrap_err()) && is_retryable(&dirs.unwrap_err())),
        }
    }
}
