//! Roles instead of keys. Keys for a web identity come over HTTPS only, which no server of these tests speaks.

use backup_core::{Store as _, StoreKey, chain};

use crate::server;

#[tokio::test]
#[ignore = "live: moto in a container"]
async fn a_token_that_cannot_be_shown_is_told() {
    let bucket = server::moto().bucket().await;
    let mut options = bucket.options();
    options.retain(|key, _| !key.contains("key"));
    options.extend(
        [
            ("web_identity_token_file", "/no/such/token"),
            ("role_arn", "arn:aws:iam::123456789012:role/backup"),
            ("retry_for", "1s"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned())),
    );
    let store = backup_adapters::stores::ObjectStore::from_url(&bucket.url(), &options);
    let e = match store {
        Ok(store) => chain(&store.head(&StoreKey::new("a").unwrap()).await.unwrap_err()),
        Err(e) => chain(&e),
    };
    assert!(e.contains("/no/such/token") || e.contains("No such file"), "{e}");
}
