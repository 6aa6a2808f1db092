//! A backup that is being written.

use bytes::Bytes;
use futures::TryStreamExt;

use super::{Catalog, METADATA, RUN, file, json, read_small};
use crate::error::{BackupError, StoreError};
use crate::id::{BackupId, StoreKey};
use crate::metadata::{Metadata, Reservation};
use crate::store::{StoreWriter, WriteOptions};

/// A reserved directory. Commit or discard it; dropped, it stays as `incomplete` until it is swept.
#[derive(Debug)]
#[must_use = "a draft that is neither committed nor discarded stays behind as incomplete"]
pub struct Draft {
    catalog: Catalog,
    id: BackupId,
    reservation: Reservation,
    /// A failed commit may still arrive: then the directory must be decided before anything is removed.
    commit_tried: bool,
}

impl Draft {
    pub(super) fn new(catalog: Catalog, id: BackupId, reservation: Reservation) -> Self {
        Self { catalog, id, reservation, commit_tried: false }
    }

    /// The backup's name.
    #[must_use]
    pub fn id(&self) -> &BackupId {
        &self.id
    }

    /// What reserved it.
    #[must_use]
    pub fn reservation(&self) -> &Reservation {
        &self.reservation
    }

    fn key(&self, name: &str) -> Result<StoreKey, BackupError> {
        self.id.file(name).map_err(|e| BackupError::Refused(e.to_string()))
    }

    /// Opens a large file of this backup.
    ///
    /// # Errors
    /// [`BackupError::Store`].
    pub async fn writer(
        &self,
        name: &str,
        options: WriteOptions,
    ) -> Result<Box<dyn StoreWriter>, BackupError> {
        let key = self.key(name)?;
        self.catalog
            .store
            .writer(&key, options)
            .await
            .map_err(|e| BackupError::store(format!("write {}", self.id), e))
    }

    /// Writes a small file of this backup.
    ///
    /// # Errors
    /// [`BackupError::Store`].
    pub async fn create(&self, name: &str, text: impl Into<Bytes>) -> Result<(), BackupError> {
        let key = self.key(name)?;
        let (store, text) = (&self.catalog.store, text.into());
        create_or_same(store.as_ref(), &key, text)
            .await
            .map_err(|e| BackupError::store(format!("write {}", self.id), e))
    }

    /// Publishes the backup: from here on it is listed.
    ///
    /// # Errors
    /// [`BackupError::Refused`] if a sweeper gave the backup up meanwhile; [`BackupError::Store`], after which nobody
    /// can know whether it was published: the next listing tells.
    pub async fn commit(&mut self, metadata: &Metadata) -> Result<(), BackupError> {
        let store = &self.catalog.store;
        let what = || format!("commit {}", self.id);
        // A sweeper that won long ago may have removed everything, its own mark included: then our reservation is gone.
        let lost = || {
            BackupError::Refused(format!("{} was given up as stalled before it could be committed", self.id))
        };
        match read_small(store.as_ref(), &file(&self.id, RUN)).await {
            Ok(text) if text == json(&self.reservation)? => {}
            Ok(_) | Err(StoreError::NotFound { .. }) => return Err(lost()),
            Err(e) => return Err(BackupError::store(what(), e)),
        }
        self.commit_tried = true;
        match create_or_same(store.as_ref(), &file(&self.id, METADATA), json(metadata)?).await {
            Ok(()) => Ok(()),
            Err(e) if e.is_already_exists() => Err(lost()),
            Err(e) => Err(BackupError::store(what(), e)),
        }
    }

    /// Removes what was written. The reservation goes last, so that an interrupted removal is still swept.
    ///
    /// # Errors
    /// [`BackupError::Store`]; the sweeper will finish the work.
    pub async fn discard(self) -> Result<(), BackupError> {
        let what = || format!("remove the unfinished {}", self.id);
        let store = &self.catalog.store;
        let run = file(&self.id, RUN);
        if self.commit_tried {
            // Our own commit may have arrived, or may still be on its way: whoever creates the file decides.
            let mark = super::delete::aborted_mark(
                &self.id,
                &self.reservation,
                self.catalog.store_id(),
                self.reservation.started_at,
            );
            return match store.create(&file(&self.id, METADATA), json(&mark)?).await {
                Ok(()) => self.catalog.remove_data(&self.id).await,
                Err(e) if e.is_already_exists() => Ok(()),
                Err(e) => Err(BackupError::store(what(), e)),
            };
        }
        // Who has lost against the sweeper owns nothing here any more; who cannot tell leaves it to the sweeper.
        match store.head(&file(&self.id, METADATA)).await {
            Err(StoreError::NotFound { .. }) => {}
            Ok(_) => return Ok(()),
            Err(e) => return Err(BackupError::store(what(), e)),
        }
        let keys: Vec<StoreKey> = store
            .list_keys(Some(&self.id.dir()))
            .try_collect()
            .await
            .map_err(|e| BackupError::store(what(), e))?;
        for key in keys.iter().filter(|k| **k != run) {
            store.delete(key).await.map_err(|e| BackupError::store(what(), e))?;
        }
        store.delete_prefix(&self.id.dir()).await.map_err(|e| BackupError::store(what(), e))
    }
}

/// Creates an object, taking "it exists, with this very content" for success: a lost acknowledgement of our own call.
pub(super) async fn create_or_same(
    store: &dyn crate::store::Store,
    key: &StoreKey,
    text: Bytes,
) -> Result<(), StoreError> {
    match store.create(key, text.clone()).await {
        Ok(()) => Ok(()),
        Err(e) if e.is_already_exists() => match read_small(store, key).await {
            Ok(there) if there == text => Ok(()),
            _ => Err(e),
        },
        // The answer may have been lost on the way: look.
        Err(e) => match read_small(store, key).await {
            Ok(there) if there == text => Ok(()),
            _ => Err(e),
        },
    }
}
