//! Whether a store keeps what it was told to create once, looked at before it is marked.

use bytes::Bytes;

use super::read_small;
use crate::error::{BackupError, StoreError};
use crate::id::StoreKey;
use crate::store::Store;

/// Creates one key twice with different bodies: the second must be refused, and the first be what is there. Everything that
/// decides between a writer and a sweeper, or between two runs, relies on it, and there are servers that take the condition
/// and do not look at it. A store that says itself that it cannot is not asked.
pub(super) async fn exclusive_create(store: &dyn Store) -> Result<(), BackupError> {
    if !store.capabilities().exclusive_create {
        return Ok(());
    }
    let token = uuid::Uuid::new_v4();
    let key = StoreKey::new(format!(".probe-{token}")).map_err(|e| BackupError::Refused(e.to_string()))?;
    let kept = created_once(store, &key, &token.to_string()).await;
    if let Err(e) = store.delete(&key).await {
        // Whoever may only add is as good a writer.
        tracing::debug!(error = %e, "The key that tried the store stays there.");
    }
    if kept.map_err(|e| BackupError::store(format!("mark {store} as a store"), e))? {
        return Ok(());
    }
    Err(BackupError::Refused(format!(
        "{store} cannot keep backups safely: a second `create` of the same key replaced the first (a server that ignores \
         `If-None-Match: *`?), so that two runs could overwrite each other: use another server, or a newer version of it; if \
         one process at a time writes to the store, its option `single_writer` allows this one"
    )))
}

async fn created_once(store: &dyn Store, key: &StoreKey, token: &str) -> Result<bool, StoreError> {
    let first = Bytes::from(format!("{token}\n1\n"));
    store.create(key, first.clone()).await?;
    match store.create(key, format!("{token}\n2\n").into()).await {
        Ok(()) => Ok(false),
        Err(e) if e.is_already_exists() => Ok(read_small(store, key).await? == first),
        Err(e) => Err(e),
    }
}
