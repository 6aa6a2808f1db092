//! The journal of interruptions: one small file for each service that is stopped, paused or fenced by us at this moment.
//!
//! ```text
//! <id>.json         the interruption must be undone, by the run that made it
//! <id>.taken.json   somebody else is about to undo it; the same content
//! <id>.armed        its watchdog runs
//! <id>.down         the service is stopped or paused, not only told to
//! ```

use std::fs;
use std::io;
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

/// What a [`FileJournal`] holds.
#[derive(Debug, Clone, Default)]
pub struct JournalContent {
    /// The entries, the oldest first.
    pub entries: Vec<InterruptionEntry>,
    /// Files that are no entries, one line each: they must not hide the others.
    pub unreadable: Vec<String>,
}

impl FileJournal {
    /// A journal in `dir`, which is created with the first entry.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Where an entry is as long as its run is to undo it.
    #[must_use]
    pub fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    fn taken(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.taken.json"))
    }

    /// Where an entry is now.
    #[must_use]
    pub fn file(&self, id: &str) -> PathBuf {
        let taken = self.taken(id);
        if taken.exists() { taken } else { self.path(id) }
    }

    /// A file by which the watchdog of an entry says that it runs. Goes with the entry.
    #[must_use]
    pub fn armed(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.armed"))
    }

    fn down(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.down"))
    }

    /// Whether an entry must still be undone. Errs on the side of "yes".
    #[must_use]
    pub fn holds(&self, id: &str) -> bool {
        // In this order: that is how it is renamed.
        [self.path(id), self.taken(id)].iter().any(|p| p.try_exists().unwrap_or(true))
    }

    /// All that is there.
    ///
    /// # Errors
    /// Those of the file system.
    pub async fn read(&self) -> Result<JournalContent, AdapterError> {
        let this = self.clone();
        blocking(move || this.read_all()).await
    }

    fn read_all(&self) -> Result<JournalContent, AdapterError> {
        let failed = |path: &Path| {
            let what = format!("cannot read `{}`", path.display());
            move |e| AdapterError::io(what, e)
        };
        let mut content = JournalContent::default();
        let files = match fs::read_dir(&self.dir) {
            Ok(files) => files,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(content),
            Err(e) => return Err(failed(&self.dir)(e)),
        };
        for file in files {
            let path = file.map_err(failed(&self.dir))?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let Some(text) = read_or_renamed(&path).map_err(failed(&path))? else { continue };
            match serde_json::from_slice::<InterruptionEntry>(&text) {
                Ok(entry) => content.entries.push(entry),
                Err(e) => content.unreadable.push(format!(
                    "`{}` is no entry of the interruption journal ({e}): look whether a service is stopped or paused, then remove it",
                    path.display()
                )),
            }
        }
        content.entries.sort_by(|a, b| (a.began_at, &a.id).cmp(&(b.began_at, &b.id)));
        // One that is renamed meanwhile may be seen twice.
        content.entries.dedup_by(|a, b| a.id == b.id);
        Ok(content)
    }

    fn take(&self, id: &str) -> io::Result<bool> {
        match fs::rename(self.path(id), self.taken(id)) {
            Ok(()) => crate::keep_aside::sync_dir(&self.dir).map(|()| true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.taken(id).try_exists(),
            Err(e) => Err(e),
        }
    }
}

/// The content of an entry's file, also if it is taken over at this very moment. `None` if it was cleared.
fn read_or_renamed(path: &Path) -> io::Result<Option<Vec<u8>>> {
    for path in [path, &path.with_extension("taken.json")] {
        match fs::read(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other.map(Some),
        }
    }
    Ok(None)
}

/// Removes a file; whether it was there.
fn remove(path: &Path) -> Result<bool, AdapterError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(AdapterError::io(format!("cannot remove `{}`", path.display()), e)),
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

    async fn take_over(&self, entry: &InterruptionEntry) -> Result<bool, AdapterError> {
        let (this, id) = (self.clone(), entry.id.clone());
        blocking(move || {
            let what = || format!("cannot take `{}` over", this.path(&id).display());
            this.take(&id).map_err(|e| AdapterError::io(what(), e))
        })
        .await
    }

    async fn clear(&self, entry: &InterruptionEntry) -> Result<bool, AdapterError> {
        let (this, id) = (self.clone(), entry.id.clone());
        blocking(move || {
            let ours = remove(&this.path(&id))?;
            remove(&this.taken(&id))?;
            remove(&this.armed(&id))?;
            remove(&this.down(&id))?;
            Ok(ours)
        })
        .await
    }

    async fn note_down(&self, entry: &InterruptionEntry) {
        let down = self.down(&entry.id);
        let noted =
            blocking(move || fs::write(down, "").map_err(|e| AdapterError::io("cannot note it", e))).await;
        if let Err(error) = noted {
            tracing::debug!(%error, "It is not noted that a service is down.");
        }
    }

    async fn was_down(&self, entry: &InterruptionEntry) -> bool {
        let down = self.down(&entry.id);
        blocking(move || Ok(down.exists())).await.unwrap_or(false)
    }

    /// What cannot be read is left out: see [`FileJournal::read`].
    async fn entries(&self) -> Result<Vec<InterruptionEntry>, AdapterError> {
        self.read().await.map(|content| content.entries)
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
