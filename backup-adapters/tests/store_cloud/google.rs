//! Google's buckets: what is asked, and what answers mean. No server that can be had here knows its conditional puts, so that
//! the answers are written down, as Google documents them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use backup_adapters::stores::ObjectStore;
use backup_core::{Store as _, StoreError, StoreKey, advice, chain};
use bytes::Bytes;

use crate::proxy::{Fate, Proxy};

const TOKEN: &str = "canary-token-77aa";

fn key(text: &str) -> StoreKey {
    StoreKey::new(text).unwrap()
}

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
