//! Encrypted artifacts in several files.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backup_core::encryption::{Identities, Recipients};
use backup_core::pipeline::{Encoded, Expected, OpenFile, PipelineSettings, PumpError, pump};
use backup_core::{
    AdapterError, AdapterErrorKind, ByteStream, ObjectInfo, StoreError, StoreWriter, StoredFile,
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio_util::sync::CancellationToken;

use crate::sealed::{key, opened};
use crate::support::{MIB, TestWriter, Written, chunks, expected, sample, stored_file};

/// Hands out writers, and remembers what became of them.
#[derive(Default)]
struct Shelf {
    files: Vec<Arc<Written>>,
    /// No more than these.
    most: Option<usize>,
    /// The file whose second write fails.
    fails: Option<usize>,
    /// Each write takes so long.
    slow: Option<Duration>,
    /// Whether one was begun while the one before it was still being written.
    at_once: bool,
}

#[derive(Debug)]
struct Slow(TestWriter, Duration);

#[async_trait]
impl StoreWriter for Slow {
    async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        tokio::time::sleep(self.1).await;
        self.0.write(chunk).await
    }
    async fn finish(self: Box<Self>) -> Result<ObjectInfo, StoreError> {
        Box::new(self.0).finish().await
    }
    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        Box::new(self.0).abort().await
    }
}

#[async_trait]
impl OpenFile for Shelf {
    async fn open(&mut self, number: usize) -> Result<Option<Box<dyn StoreWriter>>, StoreError> {
        if self.most == Some(number) {
            return Ok(None);
        }
        assert_eq!(number, self.files.len());
        self.at_once |= self.files.last().is_some_and(|before| !before.finished());
        let fail_at = (self.fails == Some(number)).then_some(1);
        let writer = TestWriter { fail_at, ..TestWriter::default() };
        self.files.push(Arc::clone(&writer.written));
        Ok(Some(match self.slow {
            None => Box::new(writer),
            Some(time) => Box::new(Slow(writer, time)),
        }))
    }
}

impl Shelf {
    fn stored(&self) -> Vec<Vec<u8>> {
        self.files.iter().map(|f| f.bytes()).collect()
    }

    /// Whatever was begun came to an end.
    fn assert_nothing_open(&self) {
        for (i, file) in self.files.iter().enumerate() {
            assert!(file.finished() != file.aborted(), "file {i}: {file:?}");
        }
    }
}

/// So that one core is sure to be the limit: no frame may wait.
fn settings(recipients: &Recipients) -> PipelineSettings {
    PipelineSettings::new(4).with_recipients(Some(recipients.clone())).with_files(3).with_backlog(1)
}

async fn write(
    body: ByteStream<AdapterError>,
    shelf: &mut Shelf,
    settings: &PipelineSettings,
) -> Result<Encoded, PumpError> {
    let result = pump(body, None, shelf, settings).await;
    shelf.assert_nothing_open();
    result
}

/// `data` in several files, and what is to be recorded of them.
async fn divided(data: &[u8], recipients: &Recipients) -> (Vec<Vec<u8>>, Expected) {
    let mut shelf = Shelf::default();
    let encoded = write(chunks(data, &[700_000]), &mut shelf, &settings(recipients)).await.unwrap();
    let stored = shelf.stored();
    assert!(stored.len() > 1 && shelf.at_once, "{} files", stored.len());
    let files: Vec<StoredFile> = stored.iter().enumerate().map(|(i, f)| named(i, f)).collect();
    for (file, recorded) in encoded.files.iter().zip(&files) {
        assert_eq!((file.bytes, &file.sha256), (recorded.stored_bytes, &recorded.stored_sha256));
    }
    assert_eq!((encoded.files.len(), encoded.plain_bytes), (files.len(), data.len() as u64));
    (stored, Expected { encodings: encoded.encodings, files, ..expected(data, &[]) })
}

fn named(number: usize, stored: &[u8]) -> StoredFile {
    StoredFile { path: format!("file-{number}"), ..stored_file(stored) }
}

async fn read(stored: &[Vec<u8>], expected: &Expected, keys: &Identities) -> Result<Vec<u8>, AdapterError> {
    // Chunks that end where no file does.
    opened(&stored.concat(), &[1_000_003], expected.clone(), keys).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_core_holds_up_goes_into_several_files() {
    let (_, identities, recipients) = key();
    let data = sample(60 * MIB + 17);
    let (stored, expected) = divided(&data, &recipients).await;
    assert!(read(&stored, &expected, &identities).await.unwrap() == data);
    // Each is a file of age by itself, and together they are one of zstd, with its seek table: so it is done by hand.
    let mut frames = Vec::new();
    for file in &stored {
        std::io::Read::read_to_end(&mut identities.open(file.as_slice()).unwrap(), &mut frames).unwrap();
    }
    assert!(decoded(&frames) == data);
    assert_eq!(frames[frames.len() - 4..], 0x8F92_EAB1_u32.to_le_bytes());
    let wrong = read(&stored, &expected, &key().1).await.unwrap_err();
    assert_eq!(wrong.kind(), AdapterErrorKind::PermissionDenied, "{wrong}");
}

fn decoded(frames: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut zstd = std::process::Command::new("zstd")
        .arg("-dcq")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = zstd.stdin.take().unwrap();
    let out = std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(frames).unwrap());
        zstd.wait_with_output().unwrap()
    });
    assert!(out.status.success());
    out.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_missing_cut_moved_or_altered_is_named() {
    let (_, identities, recipients) = key();
    let data = sample(40 * MIB);
    let (stored, expected) = divided(&data, &recipients).await;
    type Damage = fn(&mut Vec<Vec<u8>>);
    let damages: [(&str, Damage); 5] = [
        ("file-1", |files| files[1][70_000] ^= 1),
        ("file-1", |files| files[1].truncate(70_000)),
        ("file-1", |files| drop(files.remove(1))),
        ("file-0", |files| files.swap(0, 1)),
        ("file-1", |files| files[0].extend_from_slice(b"more")),
    ];
    for (i, (name, damage)) in damages.into_iter().enumerate() {
        let mut files = stored.clone();
        damage(&mut files);
        let e = read(&files, &expected, &identities).await.unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::Corrupt, "{i}: {e}");
        assert!(e.to_string().contains(name), "{i}: {e}");
        // Also where somebody has changed the recorded sums to match.
        let recorded = files.iter().enumerate().map(|(i, f)| named(i, f)).collect();
        let matching = Expected { files: recorded, ..expected.clone() };
        let e = read(&files, &matching, &identities).await.unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::Corrupt, "{i}: {e}");
    }
    let e = read(&[stored.concat(), b"x".to_vec()], &expected, &identities).await.unwrap_err();
    assert!(e.to_string().contains("longer than the recorded"), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_holds_up_is_not_divided() {
    let (_, _, recipients) = key();
    let mut shelf = Shelf { slow: Some(Duration::from_millis(250)), ..Shelf::default() };
    let settings = settings(&recipients);
    write(chunks(&sample(24 * MIB), &[MIB]), &mut shelf, &settings).await.unwrap();
    assert_eq!(shelf.files.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_file_takes_what_is_left() {
    let (_, identities, recipients) = key();
    let data = sample(40 * MIB);
    let mut shelf = Shelf { most: Some(2), ..Shelf::default() };
    write(chunks(&data, &[MIB]), &mut shelf, &settings(&recipients)).await.unwrap();
    let stored = shelf.stored();
    assert_eq!(stored.len(), 2);
    let files = stored.iter().enumerate().map(|(i, f)| named(i, f)).collect();
    let encodings = vec!["zstd".to_owned(), "age".to_owned()];
    let expected = Expected { files, encodings, ..expected(&data, &[]) };
    assert!(read(&stored, &expected, &identities).await.unwrap() == data);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_store_source_or_a_cancelled_run_leaves_no_file_open() {
    let (_, _, recipients) = key();
    for fails in [0, 1, 2] {
        let mut shelf = Shelf { fails: Some(fails), ..Shelf::default() };
        let result = write(chunks(&sample(80 * MIB), &[MIB]), &mut shelf, &settings(&recipients)).await;
        assert!(matches!(result, Err(PumpError::Store(_))), "{fails}: {result:?}");
        assert!(shelf.files[fails].aborted());
    }
    let broken = || Err(AdapterError::new(AdapterErrorKind::Other, "broken"));
    let mut shelf = Shelf::default();
    let body = chunks(&sample(40 * MIB), &[MIB]).chain(stream::iter([broken()])).boxed();
    let result = write(body, &mut shelf, &settings(&recipients)).await;
    assert!(matches!(result, Err(PumpError::Source(_))), "{result:?}");
    assert!(shelf.files.last().unwrap().aborted(), "the end was not proven");

    let cancel = CancellationToken::new();
    let settings = settings(&recipients).with_cancel(cancel.clone());
    let stuck = stream::once(async move {
        cancel.cancel();
        std::future::pending().await
    });
    let mut shelf = Shelf::default();
    let body = chunks(&sample(40 * MIB), &[MIB]).chain(stuck).boxed();
    let result = write(body, &mut shelf, &settings).await;
    assert!(matches!(result, Err(PumpError::Cancelled)), "{result:?}");
    assert!(shelf.files.last().unwrap().aborted());
}
