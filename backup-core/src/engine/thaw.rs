//! Backups whose files a rule of the bucket has moved into an archive: how far they can be read, and asking for them.

use futures::{StreamExt as _, TryStreamExt as _};
use serde::Serialize;

use super::Engine;
use crate::error::{BackupError, StoreError};
use crate::id::BackupId;
use crate::store::{ObjectInfo, Readiness, Thaw};

/// How many files are asked for at a time.
const AT_A_TIME: usize = 8;

/// One file of a backup in its store.
#[derive(Debug, Clone, Serialize)]
pub struct ThawedFile {
    /// Its name within the backup.
    pub name: String,
    /// Its stored size.
    pub bytes: u64,
    /// Whether it can be read.
    pub state: Readiness,
}

impl Engine {
    /// Looks which files of a backup can be read at once, and with `ask` asks for those that cannot. Works without its
    /// metadata, which may lie in the archive, too.
    ///
    /// # Errors
    /// [`BackupError::Refused`] if there is no such backup; [`BackupError::Store`].
    pub async fn thaw(&self, id: &BackupId, ask: Option<Thaw>) -> Result<Vec<ThawedFile>, BackupError> {
        let store = self.inner.catalog.store();
        let failed = |e| BackupError::store(format!("bring back {id}"), e);
        let mut files: Vec<ObjectInfo> = store.list(Some(&id.dir())).try_collect().await.map_err(failed)?;
        if files.is_empty() {
            return Err(BackupError::Refused(format!("there is no backup {id}")));
        }
        files.sort_by(|a, b| a.key.cmp(&b.key));
        let one = |file: ObjectInfo| {
            let store = std::sync::Arc::clone(store);
            async move {
                let state = store.thaw(&file.key, ask).await?;
                let name = file.key.file_name().to_owned();
                Ok::<_, StoreError>(ThawedFile { name, bytes: file.bytes, state })
            }
        };
        let looked = futures::stream::iter(files.into_iter().map(one)).buffered(AT_A_TIME);
        looked.try_collect().await.map_err(failed)
    }
}
