//! The journal of interruptions: one small file for each service that is stopped, paused or fenced by us at this moment.

use std::fs;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::{StateDir, boot_id, make_dir, write_atomically};
use crate::error::{AdapterError, AdapterErrorKind, BackupError};
use crate::runtime::{InterruptionEntry, InterruptionJournal, Place};

/// An [`InterruptionJournal`] in a folder.
#[derive(Debug, Clone)]
pub struct FileJournal {
    dir: PathBuf,
}

impl FileJournal {
    /// A journal in `dir`, which is created with the first entry.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Where an entry is: the file exists as long as the interruption must still be undone.
    #[must_use]
    pub fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    fn read_all(&self) -> Result<Vec<InterruptionEntry>, AdapterError> {
        let failed = |path: &Path| {
            let what = format!("cannot read `{}`", path.display());
            move |e| AdapterError::io(what, e)
        };
        let files = match fs::read_dir(&self.dir) {
            Ok(files) => files,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(&self.dir)(e)),
        };
        let mut entries = Vec::new();
        for file in files {
            let path = file.map_err(failed(&self.dir))?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let text = match fs::read(&path) {
                Ok(text) => text,
                // It was just cleared.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(failed(&path)(e)),
            };
            entries.push(serde_json::from_slice::<InterruptionEntry>(&text).map_err(|e| {
                let what = format!("`{}` is no entry of the interruption journal", path.display());
                AdapterError::corrupt(what).with_source(e)
            })?);
        }
        entries.sort_by(|a, b| (a.began_at, &a.id).cmp(&(b.began_at, &b.id)));
        Ok(entries)
    }
}

fn state(e: BackupError) -> AdapterError {
    AdapterError::new(AdapterErrorKind::Other, "the interruption cannot be written down").with_source(e)
}

#[async_trait]
impl InterruptionJournal for FileJournal {
    fn place(&self) -> Place {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Place { host, boot_id: boot_id() }
    }

    async fn write(&self, entry: &InterruptionEntry) -> Result<(), AdapterError> {
        let (this, entry) = (self.clone(), entry.clone());
        blocking(move || {
            make_dir(&this.dir).map_err(state)?;
            let text = serde_json::to_vec_pretty(&entry).map_err(|e| {
                AdapterError::new(AdapterErrorKind::Other, "cannot describe the interruption").with_source(e)
            })?;
            write_atomically(&this.path(&entry.id), &text).map_err(state)
        })
        .await
    }

    async fn clear(&self, entry: &InterruptionEntry) -> Result<(), AdapterError> {
        let path = self.path(&entry.id);
        blocking(move || match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(AdapterError::io(format!("cannot remove `{}`", path.display()), e))
            }
            _ => Ok(()),
        })
        .await
    }

    async fn entries(&self) -> Result<Vec<InterruptionEntry>, AdapterError> {
        let this = self.clone();
        blocking(move || this.read_all()).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AdapterError> + Send + 'static,
) -> Result<T, AdapterError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
        Err(AdapterError::new(AdapterErrorKind::Other, "the interruption journal stopped unexpectedly")
            .with_source(e))
    })
}

impl StateDir {
    /// The journal of interruptions of this host.
    #[must_use]
    pub fn interruptions(&self) -> FileJournal {
        FileJournal::new(self.root.join("interruptions"))
    }

    /// A folder for what restores of `service` keep aside when the service has no place of its own; may not exist yet.
    #[must_use]
    pub fn kept(&self, service: &crate::id::ServiceName) -> PathBuf {
        self.root.join("kept").join(service.as_str())
    }
}
