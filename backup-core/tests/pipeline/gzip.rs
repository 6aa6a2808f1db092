//! gzip, as the scripts before this program wrote it, and files of which nothing was recorded.

use std::io::Write;

use backup_core::pipeline::{GZIP, Measured, PipelineSettings, measure};
use backup_core::{AdapterError, AdapterErrorKind};
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio_util::sync::CancellationToken;

use crate::support::{MIB, chunks, decode, expected, sample};

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

async fn measured(stored: &[u8], sizes: &[usize], encodings: &[&str]) -> Result<Measured, AdapterError> {
    let encodings: Vec<String> = encodings.iter().map(|&e| e.to_owned()).collect();
    measure(chunks(stored, sizes), "x.gz", &encodings, None, &PipelineSettings::new(2)).await
}

/// Once to find out, and once more with what was found out.
async fn twice(stored: &[u8], sizes: &[usize], data: &[u8]) {
    let measured = measured(stored, sizes, &[GZIP]).await.unwrap();
    let mut expected = expected(data, stored);
    expected.encodings = vec![GZIP.to_owned()];
    assert_eq!(measured.stored_bytes, stored.len() as u64);
    assert_eq!(measured.stored_sha256, expected.files[0].stored_sha256);
    assert_eq!(measured.plain_bytes, data.len() as u64);
    assert_eq!(measured.plain_blake3, expected.plain_blake3);
    let (plain, error) = decode(stored, sizes, expected, 2).await;
    assert!(error.is_none() && plain == data, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn gzip_is_read_whatever_its_pieces() {
    for bytes in [0, 1, 1_000, MIB, 3 * MIB + 1] {
        let data = sample(bytes);
        for sizes in [[200_000], [4_099]] {
            twice(&gzip(&data), &sizes, &data).await;
        }
    }
    let zeros = vec![0; 5 * MIB];
    twice(&gzip(&zeros), &[1], &zeros).await;
    // `cat a.gz b.gz` is a gzip file, too.
    let (a, b) = (sample(70_000), sample(3));
    twice(&[gzip(&a), gzip(&b)].concat(), &[777], &[a, b].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_or_changed_gzip_is_an_error_wherever() {
    let data = sample(40_000);
    let whole = gzip(&data);
    for end in (0..whole.len()).step_by(97).chain((1..=20).map(|n| whole.len() - n)) {
        let e = measured(&whole[..end], &[4_099], &[GZIP]).await.unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::Corrupt, "{end}: {e}");
        assert!(e.to_string().contains("`x.gz` is damaged"), "{e}");
        let mut recorded = expected(&data, &whole[..end]);
        recorded.encodings = vec![GZIP.to_owned()];
        let (_, error) = decode(&whole[..end], &[4_099], recorded, 2).await;
        assert_eq!(error.unwrap().kind(), AdapterErrorKind::Corrupt, "{end}");
    }
    // Ten bytes of header hold flags and a time, which change nothing of the data.
    for at in (10..whole.len()).step_by(331).chain(whole.len() - 8..whole.len()) {
        let mut changed = whole.clone();
        changed[at] ^= 0x40;
        let e = measured(&changed, &[4_099], &[GZIP]).await.unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::Corrupt, "{at}: {e}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_gzip_stream_is_an_error() {
    let data = sample(10_000);
    for garbage in [&b"x"[..], &[0], &[0x1f, 0x8b], &[0; 5000], b"not a gzip stream at all"] {
        for sizes in [[1], [1_000_000]] {
            let stored = [&gzip(&data), garbage].concat();
            let e = measured(&stored, &sizes, &[GZIP]).await.unwrap_err();
            assert_eq!(e.kind(), AdapterErrorKind::Corrupt, "{garbage:?}: {e}");
        }
    }
    let e = measured(b"plain text", &[3], &[GZIP]).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Corrupt, "{e}");
}

/// A second reading that finds other bytes than the first is damage, not news.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changed_since_it_was_measured_is_refused() {
    let data = sample(10_000);
    let mut recorded = expected(&data, &gzip(&data));
    recorded.encodings = vec![GZIP.to_owned()];
    let other = gzip(&sample(10_001));
    let (_, error) = decode(&other, &[512], recorded, 2).await;
    assert_eq!(error.unwrap().kind(), AdapterErrorKind::Corrupt);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_file_is_measured_and_others_are_not() {
    let data = sample(100_000);
    let found = measured(&data, &[777], &[]).await.unwrap();
    let recorded = expected(&data, &data);
    assert_eq!((found.plain_bytes, found.stored_bytes), (100_000, 100_000));
    assert_eq!(found.stored_sha256, recorded.files[0].stored_sha256);
    assert_eq!(found.plain_blake3, recorded.plain_blake3);
    let e = measured(&data, &[777], &["zstd"]).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Unsupported);
    let cancel = CancellationToken::new();
    cancel.cancel();
    let settings = PipelineSettings::new(1).with_cancel(cancel);
    let e = measure(chunks(&data, &[777]), "x", &[], None, &settings).await.unwrap_err();
    assert_eq!(e.kind(), AdapterErrorKind::Cancelled);
}
