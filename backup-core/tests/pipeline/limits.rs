//! Memory, counted in live chunks, and concurrency.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use backup_core::pipeline::{OneFile, PipelineSettings, pump, unpump};
use backup_core::{ByteStream, ObjectInfo, StoreError, StoreWriter};
use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::sync::Semaphore;

use crate::support::{MIB, decode, encode, expected, key, sample};

/// How many chunks are alive, and the most that ever were.
#[derive(Debug, Default)]
struct Live {
    now: AtomicUsize,
    most: AtomicUsize,
    made: AtomicUsize,
}

struct Chunk {
    data: Arc<Vec<u8>>,
    live: Arc<Live>,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.live.now.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Live {
    fn chunk(self: &Arc<Self>, data: &Arc<Vec<u8>>) -> Bytes {
        self.made.fetch_add(1, Ordering::SeqCst);
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        Bytes::from_owner(Chunk { data: Arc::clone(data), live: Arc::clone(self) })
    }

    fn body<E: Send + 'static>(self: &Arc<Self>, data: Vec<u8>, count: usize) -> ByteStream<E> {
        let (live, data) = (Arc::clone(self), Arc::new(data));
        stream::iter(0..count).map(move |_| Ok(live.chunk(&data))).boxed()
    }
}

/// Takes a write only when allowed to.
#[derive(Debug)]
struct GatedWriter {
    gate: Arc<Semaphore>,
    bytes: u64,
}

#[async_trait]
impl StoreWriter for GatedWriter {
    async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        self.gate.acquire().await.unwrap().forget();
        self.bytes += chunk.len() as u64;
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<ObjectInfo, StoreError> {
        Ok(ObjectInfo { key: key(), bytes: self.bytes, modified: None, version: None })
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Waits until `live` has not moved for a while: everything that can be read ahead has been.
async fn settled(live: &Live) {
    let mut before = usize::MAX;
    let mut quiet = 0;
    while quiet < 10 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let now = live.made.load(Ordering::SeqCst);
        quiet = if now == before { quiet + 1 } else { 0 };
        before = now;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_store_holds_the_source_back() {
    for threads in [1, 3] {
        let live = Arc::new(Live::default());
        let body = live.body(sample(MIB), 60);
        let gate = Arc::new(Semaphore::new(0));
        let writer = GatedWriter { gate: Arc::clone(&gate), bytes: 0 };
        let settings = PipelineSettings::new(threads);
        let mut file = OneFile::new(Box::new(writer));
        let (result, ()) = tokio::join!(pump(body, None, &mut file, &settings), async {
            settled(&live).await;
            // Running, waiting in the queue, one in either side's hands.
            let read = live.made.load(Ordering::SeqCst);
            assert!(read <= threads + 2 + 3, "{read} chunks were read ahead with {threads} threads");
            gate.add_permits(1_000);
        });
        assert_eq!(result.unwrap().plain_bytes, 60 * MIB as u64);
        // Running, in the observer (its queue of two and one in work), and in hand.
        let most = live.most.load(Ordering::SeqCst);
        assert!(most <= threads + 3 + 2, "{most} chunks were alive with {threads} threads");
        assert_eq!(live.now.load(Ordering::SeqCst), 0, "every chunk was let go");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_the_decoding_back() {
    let data = sample(MIB);
    let (_, frame) = encode(&data, &[MIB], 1).await;
    let count = 60;
    let (stored, plain) = (frame.repeat(count), data.repeat(count));
    for threads in [1, 3] {
        let live = Arc::new(Live::default());
        let mut reader = unpump(
            live.body(frame.clone(), count),
            expected(&plain, &stored),
            PipelineSettings::new(threads),
        );
        assert!(reader.next().await.unwrap().is_ok());
        settled(&live).await;
        let read = live.made.load(Ordering::SeqCst);
        // Two frames wait for the reader, the rest as above.
        assert!(read <= threads + 2 + 2 + 4, "{read} frames were read ahead with {threads} threads");
        let mut bytes = MIB;
        while let Some(chunk) = reader.next().await {
            bytes += chunk.unwrap().len();
        }
        assert_eq!(bytes, plain.len());
        let most = live.most.load(Ordering::SeqCst);
        assert!(most <= 5, "{most} stored chunks were alive");
    }
}

/// Frames of very different cost, more threads than cores: the order stays.
#[tokio::test(flavor = "multi_thread")]
async fn the_order_does_not_depend_on_who_is_done_first() {
    let mut data = Vec::new();
    for i in 0..24_u8 {
        if i % 3 == 0 { data.extend(sample(MIB)) } else { data.extend(vec![i; MIB]) }
    }
    let (one, stored) = encode(&data, &[MIB], 1).await;
    let (eight, same) = encode(&data, &[MIB], 8).await;
    assert_eq!(one, eight);
    assert!(stored == same);
    let (plain, error) = decode(&stored, &[MIB], expected(&data, &stored), 8).await;
    assert!(error.is_none() && plain == data, "{error:?}");
}

/// Nothing waits for a thread that it keeps from running.
#[test]
fn many_at_once_work_on_a_small_blocking_pool() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(9)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let data = sample(3 * MIB);
        let all = (0..4).map(|_| encode(&data, &[MIB], 4));
        for (encoded, _) in futures::future::join_all(all).await {
            assert_eq!(encoded.plain_bytes, data.len() as u64);
        }
    });
}
