//! Bodies and writers that tell what happened to them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use backup_core::pipeline::{Encoded, Expected, OneFile, PipelineSettings, PumpError, pump, unpump};
use backup_core::{AdapterError, ByteStream, ObjectInfo, StoreError, StoreKey, StoreWriter, StoredFile};
use bytes::Bytes;
use futures::{StreamExt, stream};

pub(crate) const MIB: usize = 1 << 20;

/// What became of a [`TestWriter`].
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) bytes: Mutex<Vec<u8>>,
    pub(crate) writes: AtomicUsize,
    pub(crate) finished: AtomicBool,
    pub(crate) aborted: AtomicBool,
}

/// Keeps everything in memory; fails its n-th write if told so.
#[derive(Debug, Default)]
pub(crate) struct TestWriter {
    pub(crate) written: Arc<Written>,
    pub(crate) fail_at: Option<usize>,
    pub(crate) stall_at: Option<usize>,
    pub(crate) lies_about_length: bool,
}

pub(crate) fn key() -> StoreKey {
    StoreKey::new("redis/hourly/20260101_000000/redis.rdb.zst").unwrap()
}

#[async_trait]
impl StoreWriter for TestWriter {
    async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        let n = self.written.writes.fetch_add(1, Ordering::SeqCst);
        if self.stall_at == Some(n) {
            std::future::pending::<()>().await;
        }
        if self.fail_at == Some(n) {
            return Err(StoreError::io("write", &key(), std::io::ErrorKind::StorageFull.into()));
        }
        self.written.bytes.lock().unwrap().extend_from_slice(&chunk);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<ObjectInfo, StoreError> {
        self.written.finished.store(true, Ordering::SeqCst);
        let bytes = self.written.bytes.lock().unwrap().len() as u64 - u64::from(self.lies_about_length);
        Ok(ObjectInfo { key: key(), bytes, modified: None, version: None })
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        self.written.aborted.store(true, Ordering::SeqCst);
        Ok(())
    }
}

impl Written {
    pub(crate) fn finished(&self) -> bool {
        self.finished.load(Ordering::SeqCst)
    }

    pub(crate) fn aborted(&self) -> bool {
        self.aborted.load(Ordering::SeqCst)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }
}

/// `data` in chunks of the given sizes, repeated.
pub(crate) fn chunks<E: Send + 'static>(data: &[u8], sizes: &[usize]) -> ByteStream<E> {
    let data = Bytes::copy_from_slice(data);
    let mut at = 0;
    let mut out = Vec::new();
    for size in sizes.iter().cycle() {
        if at >= data.len() {
            break;
        }
        let end = data.len().min(at + size.max(&1));
        out.push(Ok(data.slice(at..end)));
        at = end;
    }
    stream::iter(out).boxed()
}

/// Data that compresses somewhat and never repeats exactly.
pub(crate) fn sample(bytes: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&(state >> 40).to_le_bytes());
    }
    out.truncate(bytes);
    out
}

pub(crate) async fn encode(data: &[u8], sizes: &[usize], threads: usize) -> (Encoded, Vec<u8>) {
    let (encoded, written) = try_encode(chunks(data, sizes), &PipelineSettings::new(threads)).await;
    (encoded.unwrap(), written.bytes())
}

pub(crate) async fn try_encode(
    body: ByteStream<AdapterError>,
    settings: &PipelineSettings,
) -> (Result<Encoded, PumpError>, Arc<Written>) {
    let writer = TestWriter::default();
    let written = Arc::clone(&writer.written);
    (pump(body, None, &mut OneFile::new(Box::new(writer)), settings).await, written)
}

pub(crate) fn stored_file(stored: &[u8]) -> StoredFile {
    use sha2::{Digest, Sha256};
    StoredFile {
        path: "redis.rdb.zst".into(),
        stored_bytes: stored.len() as u64,
        stored_sha256: hex::encode(Sha256::digest(stored)),
    }
}

pub(crate) fn expected(plain: &[u8], stored: &[u8]) -> Expected {
    Expected {
        encodings: vec!["zstd".into()],
        files: vec![stored_file(stored)],
        plain_bytes: plain.len() as u64,
        plain_blake3: blake3::hash(plain).to_hex().to_string(),
    }
}

/// Everything that came out, and the error, if there was one.
pub(crate) async fn decode(
    stored: &[u8],
    sizes: &[usize],
    expected: Expected,
    threads: usize,
) -> (Vec<u8>, Option<AdapterError>) {
    let mut plain = unpump(chunks(stored, sizes), expected, PipelineSettings::new(threads));
    let mut out = Vec::new();
    while let Some(item) = plain.next().await {
        match item {
            Ok(bytes) => out.extend_from_slice(&bytes),
            Err(e) => {
                assert!(plain.next().await.is_none(), "nothing may follow an error");
                return (out, Some(e));
            }
        }
    }
    (out, None)
}
