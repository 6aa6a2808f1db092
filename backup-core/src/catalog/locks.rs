//! Locks of the store on what was committed: nobody deletes it before their time, whoever has the keys.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures::{StreamExt as _, TryStreamExt as _};

use super::{Catalog, Fact, METADATA, mark_key};
use crate::error::BackupError;
use crate::id::{BackupId, StoreKey};

/// How many files are locked at a time.
const AT_A_TIME: usize = 8;

impl Catalog {
    /// Locks every file of a backup but its facts until `until`, or looks until when the store has locked them by itself. metadata.json
    /// goes last: where it is locked, everything is. The mark of the store is locked with them. Returns until when all of them are, to the second below.
    ///
    /// # Errors
    /// [`BackupError::Store`]; [`BackupError::Refused`] if a file is not locked although the store locks by itself.
    pub(crate) async fn lock(
        &self,
        id: &BackupId,
        until: Option<DateTime<Utc>>,
    ) -> Result<DateTime<Utc>, BackupError> {
        let failed = |e| BackupError::store(format!("lock {id}"), e);
        let keys: Vec<StoreKey> =
            self.store.list_keys(Some(&id.dir())).try_collect().await.map_err(failed)?;
        // Facts are many, and what matters about them is said again.
        let keys = keys.into_iter().filter(|k| Fact::parse(k.file_name()).is_none());
        let (metadata, others): (Vec<_>, Vec<_>) = keys.partition(|k| k.file_name() == METADATA);
        let mut all: Option<DateTime<Utc>> = None;
        for group in [others, metadata] {
            let lock_one = |key: StoreKey| {
                let store = Arc::clone(&self.store);
                async move { store.lock(&key, until).await.map(|until| (key, until)) }
            };
            let locked = futures::stream::iter(group.into_iter().map(lock_one)).buffer_unordered(AT_A_TIME);
            let locked: Vec<(StoreKey, Option<DateTime<Utc>>)> =
                locked.try_collect().await.map_err(failed)?;
            for (key, until) in locked {
                let until = until.ok_or_else(|| {
                    BackupError::Refused(format!(
                        "`{key}` is not locked: has the bucket a default retention?"
                    ))
                })?;
                all = Some(all.map_or(until, |all| all.min(until)));
            }
        }
        if let Some(until) = until {
            // Without its mark a store is none.
            self.store.lock(&mark_key(), Some(until)).await.map_err(failed)?;
        }
        all.ok_or_else(|| BackupError::Refused(format!("{id} is gone")))
    }
}
