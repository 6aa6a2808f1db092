//! A backup that is being written.

use bytes::Bytes;
use futures::TryStreamExt;

use super::{Catalog, Lease, METADATA, RUN, file, json, read_small};
use crate::error::{BackupError, StoreError};
use crate::id::{BackupId, StoreKey};
use crate::metadata::{Metadata, Reservation};
use crate::source::Settlement;
use crate::store::{StoreWriter, WriteOptions};

/// A reserved directory. Commit or discard it; dropped, it stays as `incomplete` until it is swept.
#[derive(Debug)]
#[must_use = "a draft that is neither committed nor discarded stays behind as incomplete"]
pub struct Draft {
    catalog: Catalog,
    id: BackupId,
    reservation: Reservation,
    /// What a failed commit wrote, which may still arrive: then the directory must be decided before anything is
    /// removed.
    commit_tried: Option<Bytes>,
}

impl Draft {
    pub(super) fn new(catalog: Catalog, id: BackupId, reservation: Reservation) -> Self {
        Self { catalog, id, reservation, commit_tried: None }
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
        self.key(name)?;
        self.open(name, options).await.map_err(|e| BackupError::store(format!("write {}", self.id), e))
    }

    /// As [`writer`](Self::writer), with the error as the store told it.
    pub(crate) async fn open(
        &self,
        name: &str,
        options: WriteOptions,
    ) -> Result<Box<dyn StoreWriter>, StoreError> {
        let store = &self.catalog.store;
        let key = self.id.file(name).map_err(|e| StoreError::other("write", &self.id.dir(), e))?;
        store.writer(&key, options.of_interval(&self.id.interval)).await
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
    /// [`BackupError::Refused`] if a sweeper gave the backup up meanwhile; [`BackupError::Store`]. After either,
    /// [`discard`](Self::discard) finds out whether it was published all the same.
    pub async fn commit(&mut self, metadata: &Metadata) -> Result<(), BackupError> {
        self.commit_text(json(metadata)?).await
    }

    /// The same with the very bytes of metadata.json: those of a copy are not ours to write anew.
    pub(crate) async fn commit_text(&mut self, text: Bytes) -> Result<(), BackupError> {
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
        self.commit_tried = Some(text.clone());
        match create_or_same(store.as_ref(), &file(&self.id, METADATA), text).await {
            Ok(()) => Ok(()),
            Err(e) if e.is_already_exists() => Err(lost()),
            Err(e) => Err(BackupError::store(what(), e)),
        }
    }

    /// Removes what was written, unless a failed [`commit`](Self::commit) has arrived: tells what became of the backup,
    /// and what went wrong while it was removed (the sweeper will finish that). The reservation goes last, so that an
    /// interrupted removal is still swept.
    pub async fn discard(self) -> (Settlement, Result<(), BackupError>) {
        match &self.commit_tried {
            Some(tried) => self.decide(tried).await,
            None => (Settlement::Abandoned, self.remove().await),
        }
    }

    /// As [`discard`](Self::discard), of a copy that was to be committed as `text`. Somebody else may have taken it over
    /// since the lease was looked at: so the name of metadata.json is taken before anything is removed, and that one's commit
    /// fails.
    pub(crate) async fn discard_copy(
        self,
        text: &Bytes,
        lease: &Lease,
    ) -> (Settlement, Result<(), BackupError>) {
        match self.decide(text).await {
            (Settlement::Abandoned, Ok(())) => {
                (Settlement::Abandoned, self.catalog.remove_mark(&self.id, lease).await)
            }
            other => other,
        }
    }

    /// Our own commit may have arrived, or may still be on its way: whoever creates the file decides.
    async fn decide(&self, tried: &Bytes) -> (Settlement, Result<(), BackupError>) {
        let (store, key) = (self.catalog.store.as_ref(), file(&self.id, METADATA));
        let unknown = |e| (Settlement::Unknown(self.id.clone()), Err(e));
        let reservation = &self.reservation;
        let mark = super::delete::aborted_mark(
            &self.id,
            reservation,
            self.catalog.store_id(),
            reservation.started_at,
        );
        let mark = match json(&mark) {
            Ok(mark) => mark,
            Err(e) => return unknown(e),
        };
        let Err(error) = create_or_same(store, &key, mark).await else {
            return (Settlement::Abandoned, self.catalog.remove_data(&self.id).await);
        };
        match read_small(store, &key).await {
            Ok(there) if there == *tried => (Settlement::Committed(self.id.clone()), Ok(())),
            // The sweeper's mark.
            Ok(_) => (Settlement::Abandoned, Ok(())),
            Err(_) => {
                unknown(BackupError::store(format!("find out whether {} is committed", self.id), error))
            }
        }
    }

    async fn remove(&self) -> Result<(), BackupError> {
        let what = || format!("remove the unfinished {}", self.id);
        let store = &self.catalog.store;
        let run = file(&self.id, RUN);
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
