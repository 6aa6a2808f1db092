//! Writing: one conditional put for what is small, a multipart upload with a few parts in flight for the rest.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use backup_core::{ObjectInfo, Store as _, StoreError, StoreKey, StoreWriter, WriteOptions};
use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, PutMultipartOptions, PutPayload};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::marks::Marked;
use super::{ObjectStore, ahead, fault};

/// The least part size (16 MiB): large enough that the round trips do not show.
const PART_BYTES: usize = 16 << 20;
/// S3 takes at most 10,000 parts; the rest is for size hints that are too low.
const PARTS: u64 = 9_000;
/// How many parts are on their way at a time, at most; those of other bodies count as well (`ahead`).
const IN_FLIGHT: usize = 4;

/// The pause before an upload is begun anew.
const AGAIN: Duration = Duration::from_millis(500);

/// How long the server is asked to forget an upload. What failed because it does not answer shall not wait as long once more:
/// what is left is invisible, and found by later runs.
const ABORT_FOR: Duration = Duration::from_secs(30);

/// The size of part number `index` (from 0). All parts are equal, which some storages insist on, unless the body is so
/// much longer than the hint that the parts would run out: then they grow.
fn part_bytes(hint: Option<u64>, index: u64) -> usize {
    let even = usize::try_from(hint.unwrap_or(0).div_ceil(PARTS)).unwrap_or(usize::MAX).max(PART_BYTES);
    let doublings = index.checked_sub(PARTS).map_or(0, |beyond| 1 + beyond / 100);
    // S3 takes parts of up to 5 GiB.
    even.saturating_mul(1 << doublings.min(16)).min(5 << 30)
}

pub(super) struct ObjectWriter {
    store: ObjectStore,
    key: StoreKey,
    path: Path,
    hint: Option<u64>,
    marked: Marked,
    /// The part that is being filled.
    pending: Vec<Bytes>,
    pending_bytes: usize,
    bytes: u64,
    parts: u64,
    upload: Option<Box<dyn MultipartUpload>>,
    in_flight: JoinSet<object_store::Result<()>>,
    failed: bool,
}

impl ObjectWriter {
    pub(super) fn new(store: ObjectStore, key: StoreKey, options: WriteOptions) -> Result<Self, StoreError> {
        let path = store.path("write", &key)?;
        let marked = store.marks.of(&options);
        Ok(Self {
            store,
            key,
            path,
            hint: options.size_hint,
            marked,
            pending: Vec::new(),
            pending_bytes: 0,
            bytes: 0,
            parts: 0,
            upload: None,
            in_flight: JoinSet::new(),
            failed: false,
        })
    }

    fn error(&self, e: object_store::Error) -> StoreError {
        self.store.write_fault("write", &self.key, e)
    }

    /// An upload of its own for each attempt: one whose answer was lost is never used, and goes with the abandoned ones.
    async fn begin(&mut self) -> Result<Box<dyn MultipartUpload>, StoreError> {
        let until = Instant::now() + self.store.retry_for;
        let Marked { attributes, tags } = self.marked.clone();
        let options = PutMultipartOptions { attributes, tags, ..PutMultipartOptions::default() };
        let client = self.store.uploader(&self.key, &options).await?;
        loop {
            match client.put_multipart_opts(&self.path, options.clone()).await {
                // The client tries again by itself, but not if the answer ends early.
                Err(e) if Instant::now() < until && fault::may_pass(&e) => tokio::time::sleep(AGAIN).await,
                began => return began.map_err(|e| self.error(e)),
            }
        }
    }

    async fn send_part(&mut self) -> Result<(), StoreError> {
        let mut leave = None;
        while !self.in_flight.is_empty() {
            if self.in_flight.len() < IN_FLIGHT {
                leave = ahead::leave(self.pending_bytes);
            }
            if leave.is_some() {
                break;
            }
            self.one_arrived().await?;
        }
        if self.upload.is_none() {
            self.upload = Some(self.begin().await?);
        }
        let payload = PutPayload::from_iter(std::mem::take(&mut self.pending));
        self.pending_bytes = 0;
        self.parts += 1;
        if let Some(upload) = &mut self.upload {
            let part = upload.put_part(payload);
            self.in_flight.spawn(async move {
                let _leave = leave;
                part.await
            });
        }
        Ok(())
    }

    /// Waits for any part that is on its way.
    async fn one_arrived(&mut self) -> Result<(), StoreError> {
        match self.in_flight.join_next().await {
            Some(Ok(arrived)) => arrived.map_err(|e| self.error(e)),
            Some(Err(e)) => Err(StoreError::other("write", &self.key, e)),
            None => Ok(()),
        }
    }

    async fn take(&mut self, mut chunk: Bytes) -> Result<(), StoreError> {
        while !chunk.is_empty() {
            let room = part_bytes(self.hint, self.parts) - self.pending_bytes;
            let piece = chunk.split_to(chunk.len().min(room));
            self.bytes += piece.len() as u64;
            self.pending_bytes += piece.len();
            self.pending.push(piece);
            if self.pending_bytes == part_bytes(self.hint, self.parts) {
                self.send_part().await?;
            }
        }
        Ok(())
    }

    async fn put(&mut self) -> Result<ObjectInfo, StoreError> {
        let payload = PutPayload::from_iter(std::mem::take(&mut self.pending));
        let version = self.store.put_new("write", &self.key, &payload, self.marked.clone()).await?;
        let version = version.map(super::unquoted);
        Ok(ObjectInfo { key: self.key.clone(), bytes: self.bytes, modified: None, version })
    }

    async fn complete(&mut self) -> Result<ObjectInfo, StoreError> {
        if self.pending_bytes > 0 {
            self.send_part().await?;
        }
        while !self.in_flight.is_empty() {
            self.one_arrived().await?;
        }
        // A multipart upload cannot be conditional; this tells at least what was there before.
        match self.store.head(&self.key).await {
            Ok(_) => return Err(StoreError::AlreadyExists { key: self.key.clone() }),
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
        let completed = match &mut self.upload {
            Some(upload) => upload.complete().await,
            None => return Err(StoreError::other("write", &self.key, "there is no upload to complete")),
        };
        if let Err(e) = completed {
            // Its acknowledgement may have been lost: the key was free a moment ago, and a catalog writes no key twice.
            let there = self.store.head(&self.key).await;
            return match there {
                Ok(info) if info.bytes == self.bytes => {
                    self.upload = None;
                    Ok(info)
                }
                _ => Err(self.error(e)),
            };
        }
        self.upload = None;
        let info = self.store.head(&self.key).await?;
        if info.bytes != self.bytes {
            let what = format!("{} bytes were written, but the object has {}", self.bytes, info.bytes);
            return Err(StoreError::other("write", &self.key, what));
        }
        Ok(info)
    }
}

#[async_trait]
impl StoreWriter for ObjectWriter {
    async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        if self.failed {
            return Err(StoreError::other("write", &self.key, "an earlier write failed"));
        }
        // Also when this call is dropped half-way.
        self.failed = true;
        self.take(chunk).await?;
        self.failed = false;
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<ObjectInfo, StoreError> {
        if self.failed {
            return Err(StoreError::other("write", &self.key, "an earlier write failed"));
        }
        // On an error the upload is aborted by `drop`.
        if self.upload.is_some() { self.complete().await } else { self.put().await }
    }

    async fn abort(mut self: Box<Self>) -> Result<(), StoreError> {
        self.in_flight.shutdown().await;
        match self.upload.take() {
            Some(mut upload) => match tokio::time::timeout(ABORT_FOR, upload.abort()).await {
                Ok(aborted) => aborted.map_err(|e| self.store.fault("abort the write of", &self.key, e)),
                Err(_) => Err(fault::retryable(
                    "abort the write of",
                    &self.key,
                    "the server does not answer in time: later runs find the upload, or a rule of the bucket"
                        .into(),
                )),
            },
            None => Ok(()),
        }
    }
}

impl Drop for ObjectWriter {
    fn drop(&mut self) {
        // Best effort: parts that nobody aborts are invisible, but cost money until a lifecycle rule removes them.
        if let (Some(mut upload), Ok(runtime)) = (self.upload.take(), tokio::runtime::Handle::try_current()) {
            let mut in_flight = std::mem::take(&mut self.in_flight);
            runtime.spawn(async move {
                in_flight.shutdown().await;
                let _left = upload.abort().await;
            });
        }
    }
}

impl fmt::Debug for ObjectWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectWriter")
            .field("key", &self.key)
            .field("bytes", &self.bytes)
            .field("parts", &self.parts)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a hint 10,000 parts hold over a TiB; a right hint is enough for all, with equal parts.
    #[test]
    fn parts_never_run_out() {
        for hint in [None, Some(0), Some(1 << 40), Some(5 << 40)] {
            let whole: u64 = (0..10_000).map(|i| part_bytes(hint, i) as u64).sum();
            assert!(whole >= hint.unwrap_or(0).max(1 << 40), "{hint:?}: {whole}");
            assert_eq!(part_bytes(hint, 0), part_bytes(hint, PARTS - 1));
            assert!(part_bytes(hint, 0) as u64 * PARTS >= hint.unwrap_or(0));
        }
        assert_eq!(part_bytes(Some(1 << 30), 0), PART_BYTES);
    }
}
