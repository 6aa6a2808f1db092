//! RDB files of ours: staged ones and copies kept aside. Each is walked while it is written, and carries its name only
//! once it is whole and durable.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use backup_core::{AdapterError, AdapterErrorKind, keep_aside};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use super::rdb::{Summary, Walker};
use crate::on_disk::{blocking, failed};

const READ_BYTES: usize = 1 << 20;

/// A file that is being written.
#[derive(Debug)]
pub(super) struct Writer {
    sender: mpsc::Sender<Bytes>,
    task: JoinHandle<Result<Summary, AdapterError>>,
}

impl Writer {
    /// Begins the file `path`, whose folder is made if need be. Nothing has that name before [`Self::finish`].
    pub(super) fn create(path: PathBuf) -> Self {
        let (sender, receiver) = mpsc::channel(4);
        let task = spawn_blocking(move || {
            let part = part(&path);
            write(&path, &part, receiver).inspect_err(|_| {
                // The first error tells more.
                let _second = fs::remove_file(&part);
            })
        });
        Self { sender, task }
    }

    /// Adds bytes. `false` if the writer has given up: [`Self::finish`] tells why.
    pub(super) async fn write(&self, bytes: Bytes) -> bool {
        // An empty piece would be the end.
        bytes.is_empty() || self.sender.send(bytes).await.is_ok()
    }

    /// Says that all bytes were added, and waits until they are durable under the file's name.
    ///
    /// # Errors
    /// `Corrupt` if they are not one whole RDB file; I/O errors. There is no file then.
    pub(super) async fn finish(self) -> Result<Summary, AdapterError> {
        // A writer that is gone says why below.
        let _gone = self.sender.send(Bytes::new()).await;
        self.task.await.unwrap_or_else(|e| {
            Err(AdapterError::new(AdapterErrorKind::Other, "writing an RDB file broke off").with_source(e))
        })
    }

    /// Removes what was written.
    pub(super) async fn abandon(self) {
        let Self { sender, task } = self;
        drop(sender);
        // It ends with the error that its bytes ended too early.
        let _expected = task.await;
    }
}

/// Where a file is while it is written.
pub(super) fn part(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".part");
    path.with_file_name(name)
}

fn write(path: &Path, part: &Path, mut pieces: mpsc::Receiver<Bytes>) -> Result<Summary, AdapterError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    make_dir(folder)?;
    // Left by an earlier attempt.
    keep_aside::remove(part).map_err(failed("replace", part))?;
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(part)
        .map_err(failed("create", part))?;
    let mut walker = Walker::new();
    loop {
        match pieces.blocking_recv() {
            Some(bytes) if bytes.is_empty() => break,
            Some(bytes) => {
                walker.update(&bytes)?;
                file.write_all(&bytes).map_err(failed("write", part))?;
            }
            None => return Err(AdapterError::cancelled()),
        }
    }
    let summary = walker.finish()?;
    file.sync_all().map_err(failed("write", part))?;
    fs::rename(part, path).map_err(failed("name", path))?;
    keep_aside::sync_dir(folder).map_err(failed("write", folder))?;
    Ok(summary)
}

/// Makes a private folder.
pub(super) fn make_dir(dir: &Path) -> Result<(), AdapterError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("create", dir))
}

/// Reads a file to its end and checks it.
///
/// # Errors
/// `Corrupt`, `NotFound`, other I/O errors.
pub(super) async fn check(path: PathBuf) -> Result<Summary, AdapterError> {
    blocking(move || {
        let unreadable = failed("read", &path);
        let mut file = File::open(&path).map_err(&unreadable)?;
        let (mut walker, mut buffer) = (Walker::new(), vec![0; READ_BYTES]);
        loop {
            match file.read(&mut buffer).map_err(&unreadable)? {
                0 => return walker.finish(),
                n => walker.update(buffer.get(..n).unwrap_or_default())?,
            }
        }
    })
    .await
}

/// Writes `value` as JSON, durably and in one step.
pub(super) async fn write_record<T: Serialize + Sync>(path: PathBuf, value: &T) -> Result<(), AdapterError> {
    let text = serde_json::to_vec_pretty(value).map_err(|e| {
        AdapterError::new(AdapterErrorKind::Other, "cannot record the restore").with_source(e)
    })?;
    blocking(move || {
        let (part, folder) = (part(&path), path.parent().unwrap_or(Path::new(".")).to_owned());
        make_dir(&folder)?;
        let written = || {
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
            file.write_all(&text)?;
            file.sync_all()
        };
        written()
            .and_then(|()| fs::rename(&part, &path))
            .and_then(|()| keep_aside::sync_dir(&folder))
            .map_err(failed("write", &path))
    })
    .await
}

/// Reads it back; `None` if it was never written.
pub(super) async fn read_record<T: DeserializeOwned + Send + 'static>(
    path: PathBuf,
) -> Result<Option<T>, AdapterError> {
    blocking(move || match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| {
            AdapterError::corrupt(format!("`{}` is no record of a restore", path.display())).with_source(e)
        }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("read", &path)(e)),
    })
    .await
}

/// Whether there is something at `path`.
pub(super) async fn exists(path: PathBuf) -> Result<bool, AdapterError> {
    blocking(move || path.try_exists().map_err(failed("look at", &path))).await
}

/// Those of `paths` that are there, with their sizes.
pub(super) async fn sizes(paths: Vec<PathBuf>) -> Result<Vec<(PathBuf, u64)>, AdapterError> {
    blocking(move || {
        let mut found = Vec::new();
        for path in paths {
            match fs::symlink_metadata(&path) {
                Ok(meta) => found.push((path, meta.len())),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(failed("look at", &path)(e)),
            }
        }
        Ok(found)
    })
    .await
}

/// Removes those of `paths` that are there.
pub(super) async fn remove(paths: Vec<PathBuf>) -> Result<(), AdapterError> {
    blocking(move || paths.iter().try_for_each(|p| keep_aside::remove(p).map_err(failed("remove", p)))).await
}

/// Renames, durably.
pub(super) async fn rename(from: PathBuf, to: PathBuf) -> Result<(), AdapterError> {
    blocking(move || {
        fs::rename(&from, &to).map_err(failed("rename", &from))?;
        keep_aside::sync_dir(to.parent().unwrap_or(Path::new("."))).map_err(failed("write", &to))
    })
    .await
}
