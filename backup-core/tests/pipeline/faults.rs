use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use backup_core::pipeline::{OneFile, PipelineSettings, PumpError, drain, pump, unpump};
use backup_core::{AdapterError, AdapterErrorKind, ByteStream, ContentCheck, Evidence, StoreError, chain};
use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::support::{MIB, TestWriter, Written, chunks, encode, expected, key, sample, try_encode};

/// Tells that it was dropped.
struct Guard(Arc<AtomicBool>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// `body`, and whether it was dropped.
fn watched<E: Send + 'static>(body: ByteStream<E>) -> (ByteStream<E>, Arc<AtomicBool>) {
    let dropped = Arc::new(AtomicBool::new(false));
    let guard = Guard(Arc::clone(&dropped));
    let body = body.inspect(move |_| {
        let _held = &guard;
    });
    (body.boxed(), dropped)
}

/// 1 MiB chunks without end.
fn endless<E: Send + 'static>() -> ByteStream<E> {
    let chunk = Bytes::from(sample(MIB));
    stream::repeat_with(move || Ok(chunk.clone())).boxed()
}

fn assert_given_up(written: &Written, dropped: &AtomicBool) {
    assert!(written.aborted(), "the writer must be aborted");
    assert!(!written.finished(), "nothing may be finished");
    assert!(dropped.load(Ordering::SeqCst), "the body must be dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_error_is_never_an_end() {
    for good in [0, 1, MIB, 5 * MIB] {
        let error = AdapterError::corrupt("the dump has no trailer");
        let body = chunks(&sample(good), &[MIB]).chain(stream::iter([Err(error)])).boxed();
        let (body, dropped) = watched(body);
        let (result, written) = try_encode(body, &PipelineSettings::new(2)).await;
        let error = result.unwrap_err();
        assert!(matches!(error, PumpError::Source(_)), "{error:?}");
        assert_eq!(chain(&error), "the source failed: the dump has no trailer");
        assert_given_up(&written, &dropped);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_error_ends_an_endless_source() {
    for fail_at in 0..6 {
        let writer = TestWriter { fail_at: Some(fail_at), ..TestWriter::default() };
        let written = Arc::clone(&writer.written);
        let (body, dropped) = watched(endless());
        let error = pump(body, None, &mut OneFile::new(Box::new(writer)), &PipelineSettings::new(2))
            .await
            .unwrap_err();
        assert!(matches!(error, PumpError::Store(StoreError::NoSpace { .. })), "{error:?}");
        assert_given_up(&written, &dropped);
    }
}

#[tokio::test]
async fn a_store_that_kept_less_than_it_took_is_caught() {
    let writer = TestWriter { lies_about_length: true, ..TestWriter::default() };
    let error =
        pump(chunks(b"abc", &[3]), None, &mut OneFile::new(Box::new(writer)), &PipelineSettings::new(1))
            .await
            .unwrap_err();
    assert!(matches!(error, PumpError::Store(_)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_ends_a_source_that_never_yields() {
    let cancel = CancellationToken::new();
    let polled = Arc::new(Notify::new());
    let tell = Arc::clone(&polled);
    let stuck = stream::once(async move {
        tell.notify_one();
        pending::<Result<Bytes, AdapterError>>().await
    });
    let (body, dropped) = watched(chunks(&sample(2 * MIB), &[MIB]).chain(stuck).boxed());
    let settings = PipelineSettings::new(2).with_cancel(cancel.clone());
    let ((result, written), ()) = tokio::join!(try_encode(body, &settings), async {
        polled.notified().await;
        cancel.cancel();
    });
    assert!(matches!(result, Err(PumpError::Cancelled)), "{result:?}");
    assert_given_up(&written, &dropped);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_ends_a_store_that_never_accepts() {
    let cancel = CancellationToken::new();
    let writer = TestWriter { stall_at: Some(1), ..TestWriter::default() };
    let written = Arc::clone(&writer.written);
    let (body, dropped) = watched(endless());
    let on_progress = cancel.clone();
    let settings = PipelineSettings::new(2)
        .with_cancel(cancel)
        // The first frame is stored; the second will be stuck.
        .with_progress(move |_| on_progress.cancel());
    let error = pump(body, None, &mut OneFile::new(Box::new(writer)), &settings).await.unwrap_err();
    assert!(matches!(error, PumpError::Cancelled), "{error:?}");
    assert_given_up(&written, &dropped);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_early_it_drops_the_body() {
    let (body, dropped) = watched(endless());
    let (tell, hear) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (progress, count) = (Arc::clone(&tell), Arc::clone(&hear));
    let settings = PipelineSettings::new(2).with_progress(move |n| {
        count.store(n as usize, Ordering::SeqCst);
        progress.notify_one();
    });
    tokio::select! {
        _ = try_encode(body, &settings) => panic!("it cannot end"),
        () = tell.notified() => {}
    }
    assert!(dropped.load(Ordering::SeqCst));
    assert!(hear.load(Ordering::SeqCst) >= MIB);
}

/// Counts bytes; does what its name says when it sees the n-th mebibyte.
struct Check {
    seen: u64,
    refuse_at: u64,
    panic_at: u64,
    finished: Arc<AtomicBool>,
}

impl Check {
    fn boxed(refuse_at: u64, panic_at: u64) -> (Box<dyn ContentCheck>, Arc<AtomicBool>) {
        let finished = Arc::new(AtomicBool::new(false));
        (Box::new(Self { seen: 0, refuse_at, panic_at, finished: Arc::clone(&finished) }), finished)
    }
}

impl ContentCheck for Check {
    fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        self.seen += bytes.len() as u64;
        assert!(self.seen < self.panic_at, "as asked for");
        if self.seen >= self.refuse_at {
            return Err(AdapterError::corrupt("the dump is wrong"));
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Evidence, AdapterError> {
        self.finished.store(true, Ordering::SeqCst);
        if self.seen == 7 {
            return Err(AdapterError::corrupt("the dump has no trailer"));
        }
        Ok(Evidence::default().with_count("bytes", self.seen))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_content_check_sees_all_and_decides() {
    let run = |bytes: usize, refuse_at, panic_at| async move {
        let (check, finished) = Check::boxed(refuse_at, panic_at);
        let writer = TestWriter::default();
        let written = Arc::clone(&writer.written);
        let (body, dropped) = watched(chunks(&sample(bytes), &[100_000]));
        let result =
            pump(body, Some(check), &mut OneFile::new(Box::new(writer)), &PipelineSettings::new(2)).await;
        (result, written, dropped, finished)
    };
    let (result, written, ..) = run(3 * MIB, u64::MAX, u64::MAX).await;
    assert_eq!(result.unwrap().evidence.unwrap().counts["bytes"], 3 * MIB as u64);
    assert!(written.finished());

    let mib = MIB as u64;
    // Refused on the way, refused at the end, and broken: the check's own text is kept.
    for (bytes, refuse_at, panic_at, text) in [
        (9 * MIB, 2 * mib, u64::MAX, "the content check failed: the dump is wrong"),
        (7, u64::MAX, u64::MAX, "the content check failed: the dump has no trailer"),
        (9 * MIB, u64::MAX, 2 * mib, "the content check failed: the content check panicked"),
        (MIB, u64::MAX, mib, "the content check failed: the content check panicked"),
    ] {
        let (result, written, dropped, _) = run(bytes, refuse_at, panic_at).await;
        let error = result.unwrap_err();
        assert!(matches!(error, PumpError::Check(_)), "{error:?}");
        assert!(chain(&error).starts_with(text), "{}", chain(&error));
        assert_given_up(&written, &dropped);
    }
}

/// `finish` may be costly, and says "complete": never after an end that was none.
#[tokio::test(flavor = "multi_thread")]
async fn a_content_check_is_not_finished_after_an_error() {
    let (check, finished) = Check::boxed(u64::MAX, u64::MAX);
    let body = chunks(&sample(MIB), &[MIB]).chain(stream::iter([Err(AdapterError::corrupt("torn"))]));
    let error = pump(
        body.boxed(),
        Some(check),
        &mut OneFile::new(Box::new(TestWriter::default())),
        &PipelineSettings::new(1),
    )
    .await;
    assert!(matches!(error, Err(PumpError::Source(_))));
    // The observer lets go of the check when it has ended.
    while Arc::strong_count(&finished) > 1 {
        tokio::task::yield_now().await;
    }
    assert!(!finished.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_error_is_not_called_damage() {
    let data = sample(3 * MIB);
    let (_, stored) = encode(&data, &[MIB], 2).await;
    let broken = StoreError::io("read", &key(), std::io::Error::other("the disk is on fire"));
    let body = chunks(&stored[..MIB], &[MIB]).chain(stream::iter([Err(broken)]));
    let (body, dropped) = watched(body.boxed());
    let plain = unpump(body, expected(&data, &stored), PipelineSettings::new(2));
    let error = drain(plain, None).await.unwrap_err();
    assert_eq!(error.kind(), AdapterErrorKind::Other);
    assert!(chain(&error).ends_with("the disk is on fire"), "{}", chain(&error));
    assert!(dropped.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_ends_a_decoding() {
    let data = sample(3 * MIB);
    let (_, stored) = encode(&data, &[MIB], 2).await;
    let stuck = stream::once(pending::<Result<Bytes, StoreError>>());
    let cancel = CancellationToken::new();
    let (body, dropped) = watched(chunks(&stored[..stored.len() / 2], &[MIB]).chain(stuck).boxed());
    let settings = PipelineSettings::new(2).with_cancel(cancel.clone());
    let mut plain = unpump(body, expected(&data, &stored), settings);
    assert!(plain.next().await.unwrap().is_ok());
    cancel.cancel();
    let error = plain.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), AdapterErrorKind::Cancelled);
    assert!(plain.next().await.is_none());
    assert!(dropped.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decoding_that_is_dropped_stops_reading() {
    let data = sample(20 * MIB);
    let (_, stored) = encode(&data, &[MIB], 2).await;
    let (body, dropped) = watched(chunks(&stored, &[MIB / 2]));
    let mut plain = unpump(body, expected(&data, &stored), PipelineSettings::new(2));
    assert!(plain.next().await.unwrap().is_ok());
    drop(plain);
    while !dropped.load(Ordering::SeqCst) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn draining_shows_every_byte_to_the_check() {
    let data = sample(100_000);
    let (check, _) = Check::boxed(u64::MAX, u64::MAX);
    let seen = drain(chunks(&data, &[7_000]), Some(check)).await.unwrap();
    assert_eq!(seen.plain_bytes, 100_000);
    assert_eq!(seen.evidence.unwrap().counts["bytes"], 100_000);
}
