//! Keys that must be free: one request, tried again where that is safe.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use backup_core::{StoreError, StoreKey};
use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use tokio::time::Instant;

use super::marks::Marked;
use super::{ObjectStore, fault};

/// The first pause between two attempts, and the longest; each is twice as long as the one before, give or take.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl ObjectStore {
    /// Puts `payload` under a key that must be free, and tries again where that is safe. Returns the etag, if known.
    pub(super) async fn put_new(
        &self,
        verb: &'static str,
        key: &StoreKey,
        payload: &PutPayload,
        marked: Marked,
    ) -> Result<Option<String>, StoreError> {
        let path = self.path(verb, key)?;
        let until = Instant::now() + self.retry_for;
        let mut pause = FIRST_PAUSE;
        // Whether an attempt may have succeeded without our knowing.
        let mut doubt = false;
        loop {
            let last = Instant::now() >= until;
            match self.put_once(&path, payload, marked.clone()).await {
                Ok(put) => return Ok(put.e_tag),
                Err(object_store::Error::AlreadyExists { source, .. }) => {
                    match self.holds(&path, payload, doubt).await {
                        Ok(true) => return Ok(None),
                        Ok(false) => return Err(StoreError::AlreadyExists { key: key.clone() }),
                        // S3 answers "conflict" also while the key is being deleted: it is free.
                        Err(object_store::Error::NotFound { .. }) if !last => {}
                        Err(object_store::Error::NotFound { .. }) => {
                            return Err(fault::retryable(verb, key, source));
                        }
                        Err(e) => return Err(self.fault("read", key, e)),
                    }
                }
                Err(e) if !last && fault::may_pass(&e) => doubt = true,
                Err(e) => return Err(self.write_fault(verb, key, e)),
            }
            // Many hosts that met the same trouble shall not come back at the same moment.
            let spread = RandomState::new().hash_one(()) % 1000;
            tokio::time::sleep(pause.mul_f64(0.5 + spread as f64 / 1000.0)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn put_once(
        &self,
        path: &Path,
        payload: &PutPayload,
        Marked { attributes, tags }: Marked,
    ) -> object_store::Result<object_store::PutResult> {
        let exclusive = self.capabilities.exclusive_create;
        if !exclusive {
            match self.once.head(path).await {
                Ok(there) => {
                    let source = "it is there".into();
                    return Err(object_store::Error::AlreadyExists {
                        path: there.location.to_string(),
                        source,
                    });
                }
                Err(object_store::Error::NotFound { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        let mode = if exclusive { PutMode::Create } else { PutMode::Overwrite };
        self.once
            .put_opts(path, payload.clone(), PutOptions { mode, attributes, tags, ..PutOptions::default() })
            .await
    }

    /// Whether what is under `path` is ours: looked at only if there is a doubt.
    ///
    /// # Errors
    /// `NotFound` if nothing is there.
    async fn holds(&self, path: &Path, payload: &PutPayload, doubt: bool) -> object_store::Result<bool> {
        if !doubt {
            return self.inner.head(path).await.map(|_meta| false);
        }
        let there = self.inner.get(path).await?;
        if there.meta.size != payload.content_length() as u64 {
            return Ok(false);
        }
        let there = there.bytes().await?;
        Ok(payload.iter().flatten().eq(there.iter()))
    }
}
