//! Writing objects: into a partial file beside the target, which gets its name once it is complete and durable.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{AtFlags, Mode, OFlags};
use tokio::task::JoinHandle;

use super::tree::{self, Call, TEMP_PREFIX};
use crate::error::StoreError;
use crate::store::{ObjectInfo, StoreWriter};

/// Small chunks are collected up to this many bytes before they go to a blocking thread.
const BATCH_BYTES: usize = 256 * 1024;
/// Nor are more chunks than this collected, however small they are.
const BATCH_CHUNKS: usize = 256;
/// After so many bytes write-back starts in the background, so that the final fsync finds little left to do and a
/// large backup does not fill the page cache with dirty pages.
const WRITE_BACK_BYTES: u64 = 64 << 20;

/// An invisible file beside its target; removed when dropped before [`publish`](Self::publish).
#[derive(Debug)]
pub(super) struct TempFile {
    dir: OwnedFd,
    name: String,
    file: Arc<File>,
    published: bool,
}

impl TempFile {
    pub(super) fn new(call: &Call) -> Result<Self, StoreError> {
        let name = format!("{TEMP_PREFIX}{}", uuid::Uuid::new_v4().simple());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (dir, file) = call
            .in_parent(|dir| Ok(rustix::fs::openat(dir, name.as_str(), flags, Mode::RUSR | Mode::WUSR)?))?;
        Ok(Self { dir, name, file: Arc::new(file.into()), published: false })
    }

    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<()> {
        (&*self.file).write_all(bytes)
    }

    /// Makes the file durable and gives it its name, which must be free. `bytes` were written.
    pub(super) fn publish(mut self, call: &Call, bytes: u64) -> Result<ObjectInfo, StoreError> {
        self.file.sync_all().map_err(|e| call.write_error(e))?;
        let stat = rustix::fs::fstat(&self.file).map_err(|e| call.write_error(e.into()))?;
        let info = tree::object_info(call.key.clone(), &stat);
        if info.bytes != bytes {
            let what = format!("{bytes} bytes were written, but the file holds {}", info.bytes);
            return Err(StoreError::other(call.verb, &call.key, what));
        }
        tree::move_new(&self.dir, &self.name, &self.dir, call.name()).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => StoreError::AlreadyExists { key: call.key.clone() },
            io::ErrorKind::NotFound => {
                StoreError::other(call.verb, &call.key, "its unfinished data was removed meanwhile")
            }
            _ => call.write_error(e),
        })?;
        self.published = true;
        tree::sync_dir(&self.dir).map_err(|e| {
            // A name that may be gone after a power cut must not be taken for a success by a reader of today.
            let _second = rustix::fs::unlinkat(&self.dir, call.name(), AtFlags::empty());
            call.write_error(e)
        })?;
        Ok(info)
    }

    /// Removes the file.
    fn remove(mut self) -> io::Result<()> {
        self.published = true;
        match rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        // Taking the name away is quick: the blocks are freed when the file is closed, which may take a while for a
        // large one and so happens elsewhere. What cannot be removed stays invisible.
        let _left = rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let file = Arc::clone(&self.file);
            runtime.spawn_blocking(move || drop(file));
        }
    }
}

type Job = Option<JoinHandle<io::Result<()>>>;

/// Writes on blocking threads: at most one batch and one write-back are under way, and the caller waits for the batch
/// before. An error of either is told by the next call, at the latest by `finish`.
#[derive(Debug)]
pub(super) struct LocalWriter {
    call: Call,
    temp: TempFile,
    batch: Vec<Bytes>,
    batch_bytes: usize,
    bytes: u64,
    not_written_back: u64,
    writing: Job,
    syncing: Job,
    failed: bool,
}

impl LocalWriter {
    pub(super) fn new(call: Call, temp: TempFile) -> Self {
        Self {
            call,
            temp,
            batch: Vec::new(),
            batch_bytes: 0,
            bytes: 0,
            not_written_back: 0,
            writing: None,
            syncing: None,
            failed: false,
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        settle(&mut self.writing).await?;
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        self.not_written_back += self.batch_bytes as u64;
        self.batch_bytes = 0;
        let file = Arc::clone(&self.temp.file);
        self.writing = Some(tokio::task::spawn_blocking(move || {
            // Large chunks pass through uncopied.
            let mut out = BufWriter::with_capacity(BATCH_BYTES, &*file);
            batch.iter().try_for_each(|chunk| out.write_all(chunk))?;
            out.flush()
        }));
        if self.not_written_back >= WRITE_BACK_BYTES {
            settle(&mut self.syncing).await?;
            self.not_written_back = 0;
            let file = Arc::clone(&self.temp.file);
            self.syncing = Some(tokio::task::spawn_blocking(move || file.sync_data()));
        }
        Ok(())
    }

    async fn complete(&mut self) -> io::Result<()> {
        self.flush().await?;
        settle(&mut self.writing).await?;
        // The kernel tells a write-back error once only: here, not again in the final fsync.
        settle(&mut self.syncing).await
    }
}

/// Waits for a job. May be dropped and called again.
async fn settle(job: &mut Job) -> io::Result<()> {
    let Some(running) = job.as_mut() else { return Ok(()) };
    let done = running.await;
    *job = None;
    done.unwrap_or_else(|e| Err(io::Error::other(e)))
}

#[async_trait]
impl StoreWriter for LocalWriter {
    async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        if self.failed {
            return Err(StoreError::other(self.call.verb, &self.call.key, "an earlier write failed"));
        }
        if chunk.is_empty() {
            return Ok(());
        }
        self.bytes += chunk.len() as u64;
        self.batch_bytes += chunk.len();
        self.batch.push(chunk);
        if self.batch_bytes < BATCH_BYTES && self.batch.len() < BATCH_CHUNKS {
            return Ok(());
        }
        // Also when this call is dropped half-way.
        self.failed = true;
        self.flush().await.map_err(|e| self.call.write_error(e))?;
        self.failed = false;
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<ObjectInfo, StoreError> {
        if self.failed {
            return Err(StoreError::other(self.call.verb, &self.call.key, "an earlier write failed"));
        }
        self.complete().await.map_err(|e| self.call.write_error(e))?;
        let Self { call, temp, bytes, .. } = *self;
        super::blocking(call, move |call| temp.publish(call, bytes)).await
    }

    async fn abort(mut self: Box<Self>) -> Result<(), StoreError> {
        // What the write came to no longer matters.
        let _unused = settle(&mut self.writing).await;
        let Self { call, temp, .. } = *self;
        super::blocking(call, move |call| temp.remove().map_err(|e| call.write_error(e))).await
    }
}

/// Moves an object to a key that must be free. See [`Store::rename`](crate::Store::rename).
pub(super) fn rename(from: &Call, to: &Call) -> Result<(), StoreError> {
    let to_exists = || match to.open_parent() {
        Ok(dir) => tree::stat_object(&dir, to.name()).map(|_stat| dir).map_err(|e| to.error(e)),
        Err(e) => Err(e),
    };
    let done_already = |missing: StoreError| match to_exists() {
        // Whoever moved it may have died before this.
        Ok(dir) => tree::sync_dir(&dir).map_err(|e| to.write_error(e)),
        Err(StoreError::NotFound { .. }) => Err(missing),
        Err(e) => Err(e),
    };
    let missing = || StoreError::NotFound { key: from.key.clone() };

    let Some(chain) = from.open_chain_if_there(from.parents())? else { return done_already(missing()) };
    let source = chain.last();
    match tree::stat_object(source, from.name()) {
        Ok(_) if from.key == to.key => return Ok(()),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return done_already(missing()),
        Err(e) => return Err(from.error(e)),
    }
    let moved = to.in_parent(|target| match tree::move_new(source, from.name(), target, to.name()) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(Moved::Taken),
        // Either the source is gone, or the target's directory: only the latter is worth another attempt.
        Err(e) if e.kind() == io::ErrorKind::NotFound => match tree::stat_object(source, from.name()) {
            Ok(_) => Err(e),
            Err(_) => Ok(Moved::SourceGone),
        },
        other => other.map(|()| Moved::Yes),
    })?;
    let target = match moved {
        (target, Moved::Yes) => target,
        (_, Moved::SourceGone) => return done_already(missing()),
        (target, Moved::Taken) => {
            // A move by hard link that was cut short leaves both names.
            if !same_body(source, from, &target, to)? {
                return Err(StoreError::AlreadyExists { key: to.key.clone() });
            }
            rustix::fs::unlinkat(source, from.name(), AtFlags::empty())
                .map_err(|e| from.write_error(e.into()))?;
            target
        }
    };
    tree::sync_dir(&target).map_err(|e| to.write_error(e))?;
    tree::sync_dir(source).map_err(|e| from.write_error(e))?;
    chain.prune(from.parents());
    Ok(())
}

enum Moved {
    Yes,
    Taken,
    SourceGone,
}

fn same_body(a_dir: &OwnedFd, a: &Call, b_dir: &OwnedFd, b: &Call) -> Result<bool, StoreError> {
    let (a_file, a_stat) = tree::open_object(a_dir, a.name()).map_err(|e| a.error(e))?;
    let (b_file, b_stat) = tree::open_object(b_dir, b.name()).map_err(|e| b.error(e))?;
    if a_stat.st_size != b_stat.st_size {
        return Ok(false);
    }
    if (a_stat.st_dev, a_stat.st_ino) == (b_stat.st_dev, b_stat.st_ino) {
        return Ok(true);
    }
    let hash = |file: File, call: &Call| {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file).map_err(|e| call.error(e))?;
        Ok::<_, StoreError>(hasher.finalize())
    };
    Ok(hash(a_file, a)? == hash(b_file, b)?)
}
