//! Throughput of the pipeline in memory, in plain bytes per second.
#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::num::NonZero;
use std::thread::available_parallelism;

use async_trait::async_trait;
use backup_benches::data::record_store;
use backup_core::pipeline::{Encoded, Expected, OneFile, PipelineSettings, drain, pump, unpump};
use backup_core::{ByteStream, CHUNK_BYTES, ObjectInfo, StoreError, StoreKey, StoreWriter, StoredFile};
use bytes::{Bytes, BytesMut};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures::{StreamExt, stream};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

const PLAIN_BYTES: usize = 128 << 20;

/// Counts, and gives back what was written if somebody asked for it.
#[derive(Debug, Default)]
struct Sink {
    bytes: u64,
    kept: Option<(BytesMut, oneshot::Sender<Bytes>)>,
}

#[async_trait]
impl StoreWriter for Sink {
    async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        self.bytes += chunk.len() as u64;
        if let Some((kept, _)) = &mut self.kept {
            kept.extend_from_slice(&chunk);
        }
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<ObjectInfo, StoreError> {
        if let Some((kept, to)) = self.kept {
            to.send(kept.freeze()).unwrap();
        }
        let key = StoreKey::new("a/b/c").unwrap();
        Ok(ObjectInfo { key, bytes: self.bytes, modified: None, version: None })
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }
}

/// `data` in chunks of the best size, without a copy.
fn body<E: Send + 'static>(data: &Bytes) -> ByteStream<E> {
    let data = data.clone();
    let starts = (0..data.len()).step_by(CHUNK_BYTES);
    stream::iter(starts.map(move |at| Ok(data.slice(at..data.len().min(at + CHUNK_BYTES))))).boxed()
}

async fn stored(plain: &Bytes, settings: &PipelineSettings) -> (Bytes, Encoded) {
    let (to, kept) = oneshot::channel();
    let sink = Sink { bytes: 0, kept: Some((BytesMut::new(), to)) };
    let encoded = pump(body(plain), None, &mut OneFile::new(Box::new(sink)), settings).await.unwrap();
    (kept.await.unwrap(), encoded)
}

fn pipeline(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let plain = Bytes::from(record_store(PLAIN_BYTES, 1));
    let (stored, encoded) = runtime.block_on(stored(&plain, &PipelineSettings::new(2)));
    let expected = Expected {
        encodings: encoded.encodings,
        files: vec![StoredFile {
            path: "x.zst".into(),
            stored_bytes: encoded.files[0].bytes,
            stored_sha256: encoded.files[0].sha256.clone(),
        }],
        plain_bytes: encoded.plain_bytes,
        plain_blake3: encoded.plain_blake3,
    };
    let cores = available_parallelism().map_or(1, NonZero::get);
    let mut group = c.benchmark_group("pipeline");
    group.throughput(Throughput::Bytes(plain.len() as u64)).sample_size(10);
    for threads in if cores == 1 { vec![1] } else { vec![1, cores] } {
        let settings = PipelineSettings::new(threads);
        group.bench_function(BenchmarkId::new("pump", threads), |b| {
            b.iter(|| {
                runtime
                    .block_on(pump(
                        body(&plain),
                        None,
                        &mut OneFile::new(Box::new(Sink::default())),
                        &settings,
                    ))
                    .unwrap()
            });
        });
        group.bench_function(BenchmarkId::new("unpump", threads), |b| {
            b.iter(|| {
                let out = unpump(body(&stored), expected.clone(), settings.clone());
                runtime.block_on(drain(out, None)).unwrap()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, pipeline);
criterion_main!(benches);
