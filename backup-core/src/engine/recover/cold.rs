//! A store on a disk that is slow today: for one, a volume made of a snapshot a while ago. Its blocks are fetched from the
//! snapshot when they are first read ([Initialize EBS volumes]), at a small part of what the disk gives later, and what
//! earlier restores took says nothing about that. So a little of what would be read is read.
//!
//! [Initialize EBS volumes]: https://docs.aws.amazon.com/ebs/latest/userguide/initalize-volume.html

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::Prediction;
use crate::catalog::Entry;
use crate::engine::Inner;
use crate::id::StoreKey;
use crate::metadata::Metadata;
use crate::store::Store;

/// What is smaller is read soon enough wherever it lies.
const LEAST: u64 = 64 << 20;

/// How much is read: so many pieces one after the other, as a restore does.
const PIECE: u64 = 1 << 20;
const PIECES: u64 = 16;

/// How long it is read. What a slow disk gave until then tells enough.
const LIMIT: Duration = Duration::from_secs(2);

impl Inner {
    /// What was concluded from earlier restores; or what the store's disk tells, if it is slower than all that now.
    pub(super) async fn at_todays_pace(
        &self,
        predicted: Prediction,
        entry: &Entry,
        metadata: &Metadata,
    ) -> Prediction {
        let Some(file) = metadata.stored_files().max_by_key(|f| f.stored_bytes) else { return predicted };
        let Ok(key) = entry.id.file(&file.path) else { return predicted };
        let store = self.catalog.store();
        // Of others, a request or two tells little, and each costs.
        if metadata.size_bytes < LEAST || store.local_path(&key).is_none() {
            return predicted;
        }
        // Another place each time: that of the last look is in memory.
        let seed = self.clock.now().timestamp_subsec_micros().into();
        match pace(&**store, &key, file.stored_bytes, seed).await {
            Some(pace) => slower(predicted, metadata.size_bytes, pace),
            None => predicted,
        }
    }
}

/// Bytes a second that the store gives of a file of `size` bytes; `None` if it cannot be read.
async fn pace(store: &dyn Store, key: &StoreKey, size: u64, seed: u64) -> Option<u64> {
    let (began, mut read) = (Instant::now(), 0_u64);
    let room = size.saturating_sub(PIECES * PIECE).max(1);
    let start = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) % room;
    for from in (0..PIECES).map(|n| start + n * PIECE).filter(|from| *from < size) {
        let left = LIMIT.saturating_sub(began.elapsed());
        match timeout(left, store.read_range(key, from..size.min(from + PIECE))).await {
            Ok(Ok(bytes)) => read += bytes.len() as u64,
            Ok(Err(_)) => return None,
            Err(_) => break,
        }
    }
    let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
    // Not one piece: then it gives less than one in that time.
    Some(read.max(PIECE).saturating_mul(1000) / ms)
}

/// The longer of both: what it took, and to read `bytes` at `pace` bytes a second.
fn slower(predicted: Prediction, bytes: u64, pace: u64) -> Prediction {
    let ms = bytes.saturating_mul(1000) / pace.max(1);
    if ms <= predicted.ms {
        return predicted;
    }
    let megabytes = pace / 1_000_000;
    Prediction { ms, from: format!("what the store's disk gives now, {megabytes} MB/s") }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::store::{MemoryStore, WriteOptions};
    use crate::testkit::{Call, FaultyStore};

    async fn paced(delay: Duration) -> Option<u64> {
        let store = FaultyStore::new(MemoryStore::new());
        let key: StoreKey = "a/manual/20260101_000000/a.zst".parse().unwrap();
        let size = 20 << 20;
        let mut writer = store.writer(&key, WriteOptions::default()).await.unwrap();
        writer.write(Bytes::from(vec![7; size])).await.unwrap();
        writer.finish().await.unwrap();
        store.set_delay(Call::ReadRange, delay);
        pace(&store, &key, size as u64, 12_345).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_is_tried_for_two_seconds_at_most() {
        // Of 16 MiB by one MiB: all of it, five, none; in KiB a second.
        for (delay, kibibytes) in [(100, 10_240), (390, 2560), (60_000, 512)] {
            let pace = paced(Duration::from_millis(delay)).await.unwrap();
            // Timers are by the millisecond.
            let exact = kibibytes << 10;
            assert!(pace <= exact && pace > exact - exact / 50, "{delay} ms: {pace}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_fails_tells_nothing() {
        let store = MemoryStore::new();
        let key: StoreKey = "a/manual/20260101_000000/a.zst".parse().unwrap();
        assert_eq!(pace(&store, &key, 1 << 30, 0).await, None);
    }

    #[test]
    fn what_it_took_is_corrected_only_by_what_is_slower() {
        let was = Prediction { ms: 60_000, from: "the restore of 20260101_000000".to_owned() };
        assert_eq!(slower(was.clone(), 27_000_000_000, 2_000_000_000), was);
        let now = slower(was, 27_000_000_000, 20_000_000);
        assert_eq!((now.ms, now.from.as_str()), (1_350_000, "what the store's disk gives now, 20 MB/s"));
    }
}
