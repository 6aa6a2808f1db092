//! Google's buckets. No server that can be had here speaks all of it:
//!
//! * What is asked, and what answers mean, is written down, as Google documents it.
//! * The whole contract, by Google's client, is seen over MinIO. S3's protocol differs from Google's XML API in the words of the
//!   condition, which a proxy translates, and in how requests are signed, which these are not.
//!
//! fake-gcs-server 1.56 takes no object from this client: it answers 400 to a put that is no signed URL, tells no ETag of one
//! that is, ignores conditions (its issue 994), and knows no uploads in parts (852).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use std::sync::atomic::{AtomicU32, Ordering};

use backup_adapters::stores::ObjectStore;
use backup_core::{Store as _, StoreError, StoreKey, advice, chain, store_conformance_tests};
use bytes::Bytes;
use tokio::sync::OnceCell;

use crate::proxy::{Fate, Proxy};
use crate::server::{Bucket, boto, minio};

const TOKEN: &str = "canary-token-77aa";

fn key(text: &str) -> StoreKey {
    StoreKey::new(text).unwrap()
}

fn store(place: &str, address: SocketAddr) -> ObjectStore {
    let endpoint = format!("http://{address}");
    // The client asks for credentials to write even where `skip_signature` says that none are needed.
    let usual = [("endpoint", endpoint.as_str()), ("allow_http", "true"), ("bearer_token", TOKEN)];
    let options = usual.map(|(key, value)| (key.to_owned(), value.to_owned()));
    ObjectStore::from_url(&format!("gs://{place}"), &options.into()).unwrap()
}

fn number() -> u32 {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

/// What S3 says in other words, and what MinIO does not understand.
const TRANSLATED: &[(&str, &str)] =
    &[("x-goog-if-generation-match", "if-none-match: *"), ("authorization", "")];

/// A bucket of MinIO in which everybody may do everything.
async fn open_bucket() -> &'static Bucket {
    static BUCKET: OnceCell<Bucket> = OnceCell::const_new();
    let open = "import json\n\
                a = ['arn:aws:s3:::' + b, 'arn:aws:s3:::' + b + '/*']\n\
                s = {'Effect': 'Allow', 'Principal': '*', 'Action': 's3:*', 'Resource': a}\n\
                s3.put_bucket_policy(Bucket=b, Policy=json.dumps({'Version': '2012-10-17', 'Statement': [s]}))";
    let make = || async {
        // The client would write a hyphen as %2D, by which MinIO does not know the bucket.
        let name = format!("test{}google", std::process::id());
        let bucket = Bucket { name, address: minio().address }.made().await;
        boto(&bucket, open);
        bucket
    };
    BUCKET.get_or_init(make).await
}

store_conformance_tests!(
    #[ignore = "live: MinIO in a container"]
    by_the_protocol_of_s3,
    || async {
        let bucket = open_bucket().await;
        let proxy = Proxy::start(bucket.address, |_| Fate::Swap(TRANSLATED)).await;
        (store(&format!("{}/some/where-{}", bucket.name, number()), proxy.address), proxy)
    }
);

/// A store whose every request gets this answer; and what was asked.
async fn answering(status: &'static str, body: &str) -> (ObjectStore, Proxy, Arc<Mutex<Vec<String>>>) {
    let nobody: SocketAddr = ([127, 0, 0, 1], 1).into();
    let (body, heads) = (body.to_owned(), Arc::new(Mutex::new(Vec::new())));
    let seen = Arc::clone(&heads);
    let proxy = Proxy::start(nobody, move |asked| {
        seen.lock().unwrap().push(asked.head.to_ascii_lowercase());
        Fate::Say(status, body.clone())
    })
    .await;
    let endpoint = format!("http://{}", proxy.address);
    let options: BTreeMap<String, String> = [
        ("endpoint", endpoint.as_str()),
        ("bearer_token", TOKEN),
        ("allow_http", "true"),
        ("retry_for", "1s"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    (ObjectStore::from_url("gs://ours/some/where", &options).unwrap(), proxy, heads)
}

#[tokio::test]
async fn what_is_created_is_created_under_the_condition_that_nothing_is_there() {
    let (store, _proxy, heads) = answering("403 Forbidden", "").await;
    store.create(&key("a"), Bytes::from_static(b"x")).await.unwrap_err();
    let heads = heads.lock().unwrap();
    let [put] = heads.as_slice() else { panic!("{heads:?}") };
    assert!(put.starts_with("put /ours/some%2fwhere%2fa "), "{put}");
    assert!(put.contains("x-goog-if-generation-match: 0"), "{put}");
}

#[tokio::test]
async fn a_missing_permission_is_named_with_the_role_that_gives_it() {
    let body = "<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access denied.</Message><Details>b@ours.iam does \
                not have storage.objects.create access to the Google Cloud Storage object.</Details></Error>";
    let (store, _proxy, _) = answering("403 Forbidden", body).await;
    let e = store.create(&key("a"), Bytes::new()).await.unwrap_err();
    assert!(matches!(e, StoreError::PermissionDenied { .. }), "{e:?}");
    assert!(chain(&e).contains("`storage.objects.create` is missing"), "{}", chain(&e));
    let help = advice(&e).unwrap();
    assert!(help.contains("roles/storage.objectAdmin") && help.contains("gs://ours"), "{help}");

    let (store, _proxy, _) = answering("403 Forbidden", "").await;
    for (e, permission) in [
        (store.read(&key("a")).await.err().unwrap(), "storage.objects.get"),
        (store.delete(&key("a")).await.unwrap_err(), "storage.objects.delete"),
        (store.list_dirs(None).await.unwrap_err(), "storage.objects.list"),
    ] {
        assert!(chain(&e).contains(&format!("`{permission}` is missing")), "{}", chain(&e));
    }
}

#[tokio::test]
async fn a_bucket_that_is_not_there_and_credentials_that_count_nothing_are_the_errors() {
    let body =
        "<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist.</Message></Error>";
    let (store, _proxy, _) = answering("404 Not Found", body).await;
    for e in [
        store.create(&key("a"), Bytes::new()).await.unwrap_err(),
        store.read(&key("a")).await.err().unwrap(),
        store.list_dirs(None).await.unwrap_err(),
    ] {
        let told = matches!(&e, StoreError::NotAStore { message } if message.contains("make the bucket"));
        assert!(told, "{e:?}");
    }
    let body =
        "<Error><Code>AuthenticationRequired</Code><Message>Authentication required.</Message></Error>";
    let (store, _proxy, _) = answering("401 Unauthorized", body).await;
    for e in
        [store.create(&key("a"), Bytes::new()).await.unwrap_err(), store.list_dirs(None).await.unwrap_err()]
    {
        assert!(chain(&e).contains("does not accept the credentials"), "{}", chain(&e));
        assert!(!format!("{e:?} {store:?}").contains(TOKEN), "{e:?}");
        assert!(advice(&e).is_some_and(|help| help.contains("service_account")));
    }
}
