use std::io::Write;
use std::process::{Command, Stdio};

use backup_core::encryption::{Identities, Recipients, generate};
use backup_core::pipeline::{Expected, OneFile, PipelineSettings, PumpError, pump, unpump};
use backup_core::{AdapterError, AdapterErrorKind, Secret};
use futures::{StreamExt, stream};

use crate::support::{MIB, chunks, expected, sample, try_encode};

pub(crate) fn key() -> (Secret, Identities, Recipients) {
    let (secret, public) = generate(chrono::DateTime::UNIX_EPOCH).unwrap();
    let mut identities = Identities::default();
    identities.add(&secret, "the test").unwrap();
    (secret, identities, Recipients::parse(&[public]).unwrap())
}

async fn sealed(data: &[u8], recipients: &Recipients) -> (Vec<u8>, Expected) {
    let settings = PipelineSettings::new(3).with_recipients(Some(recipients.clone()));
    let (encoded, written) = try_encode(chunks(data, &[700_000]), &settings).await;
    let (encoded, stored) = (encoded.unwrap(), written.bytes());
    assert_eq!(encoded.encodings, ["zstd", "age"]);
    let expected = Expected { encodings: encoded.encodings, ..expected(data, &stored) };
    let [file] = encoded.files.as_slice() else { panic!("{:?}", encoded.files) };
    assert_eq!((file.bytes, &file.sha256), (stored.len() as u64, &expected.files[0].stored_sha256));
    assert_eq!((encoded.plain_bytes, &encoded.plain_blake3), (data.len() as u64, &expected.plain_blake3));
    (stored, expected)
}

pub(crate) async fn opened(
    stored: &[u8],
    sizes: &[usize],
    expected: Expected,
    identities: &Identities,
) -> Result<Vec<u8>, AdapterError> {
    let settings = PipelineSettings::new(3).with_identities(identities.clone());
    let mut plain = unpump(chunks(stored, sizes), expected, settings);
    let mut out = Vec::new();
    while let Some(item) = plain.next().await {
        out.extend_from_slice(&item?);
    }
    Ok(out)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sealed_opens_with_the_key_only() {
    let ((_, identities, recipients), (_, others, _)) = (key(), key());
    for bytes in [0, 1, 65_535, 65_536, 65_537, MIB, 3 * MIB + 12_345] {
        let data = sample(bytes);
        let (stored, expected) = sealed(&data, &recipients).await;
        for sizes in [[8 * MIB], [10_007]] {
            let plain = opened(&stored, &sizes, expected.clone(), &identities).await.unwrap();
            assert!(plain == data, "{bytes} bytes");
        }
        for wrong in [&others, &Identities::default()] {
            let e = opened(&stored, &[MIB], expected.clone(), wrong).await.unwrap_err();
            // Nothing is wrong with the backup.
            assert_eq!(e.kind(), AdapterErrorKind::PermissionDenied, "{e}");
            assert_eq!(e.to_string(), "no key at hand decrypts `redis.rdb.zst`");
        }
    }
}

/// Promise 3: without this program, `age` and `zstd` are enough. Needs the programs.
#[tokio::test(flavor = "multi_thread")]
async fn the_age_program_reads_it() {
    let (secret, _, recipients) = key();
    let data = sample(2 * MIB + 1);
    let (stored, _) = sealed(&data, &recipients).await;
    let dir = tempfile::tempdir().unwrap();
    let (file, identity) = (dir.path().join("x.zst.age"), dir.path().join("key"));
    std::fs::write(&file, stored).unwrap();
    std::fs::write(&identity, secret.expose()).unwrap();
    let zstd = Command::new("age").arg("-d").arg("-i").arg(&identity).arg(&file).output().unwrap();
    assert!(zstd.status.success(), "{zstd:?}");
    let mut decode =
        Command::new("zstd").arg("-dcq").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = decode.stdin.take().unwrap();
    let feeding = std::thread::spawn(move || input.write_all(&zstd.stdout).unwrap());
    let plain = decode.wait_with_output().unwrap();
    feeding.join().unwrap();
    assert!(plain.status.success() && plain.stdout == data);
}

/// Nothing comes out that was not authentic, and the end only if all of it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_or_a_cut_is_damage_and_never_an_end() {
    let (_, identities, recipients) = key();
    let data = sample(MIB + 5);
    let (stored, expected) = sealed(&data, &recipients).await;
    let steps: Vec<usize> = (0..stored.len()).step_by(stored.len() / 40).chain([stored.len() - 1]).collect();
    for at in steps {
        let mut other = stored.clone();
        other[at] ^= 1;
        // Also where somebody has changed the recorded sums to match.
        for files in [expected.files.clone(), vec![crate::support::stored_file(&other)]] {
            let expected = Expected { files, ..expected.clone() };
            let settings = PipelineSettings::new(2).with_identities(identities.clone());
            let mut plain = unpump(chunks(&other, &[100_000]), expected, settings);
            let (mut came, mut error) = (0, None);
            while let Some(item) = plain.next().await {
                match item {
                    Ok(bytes) => {
                        assert!(data[came..].starts_with(&bytes), "byte {at}");
                        came += bytes.len();
                    }
                    Err(e) => error = Some(e),
                }
            }
            let error = error.unwrap_or_else(|| panic!("byte {at} was flipped unnoticed"));
            // In the header, a flipped bit may look like another recipient.
            let kinds = [AdapterErrorKind::Corrupt, AdapterErrorKind::PermissionDenied];
            assert!(kinds.contains(&error.kind()), "byte {at}: {error}");
        }
        let cut = &stored[..at];
        for files in [expected.files.clone(), vec![crate::support::stored_file(cut)]] {
            let expected = Expected { files, ..expected.clone() };
            assert!(opened(cut, &[100_000], expected, &identities).await.is_err(), "cut at {at}");
        }
    }
    // Encrypted for the same key, decrypting to something else: the recorded hash is of the plain bytes, and is not shown.
    let (other, of_other) = sealed(&sample(MIB + 4), &recipients).await;
    let expected = Expected { files: of_other.files, ..expected };
    let e = opened(&other, &[MIB], expected.clone(), &identities).await.unwrap_err().to_string();
    assert!(!e.contains(&expected.plain_blake3), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_source_or_store_ends_it_and_nothing_is_finished() {
    let (_, _, recipients) = key();
    let settings = PipelineSettings::new(2).with_recipients(Some(recipients));
    let broken = || AdapterError::new(AdapterErrorKind::Other, "broken");
    let body = stream::iter(vec![Ok(sample(MIB).into()), Ok(sample(MIB).into()), Err(broken())]).boxed();
    let (result, written) = try_encode(body, &settings).await;
    assert!(matches!(result, Err(PumpError::Source(_))), "{result:?}");
    assert!(written.aborted() && !written.finished());

    let writer = crate::support::TestWriter { fail_at: Some(1), ..Default::default() };
    let written = std::sync::Arc::clone(&writer.written);
    let body = chunks(&sample(8 * MIB), &[MIB]);
    let result = pump(body, None, &mut OneFile::new(Box::new(writer)), &settings).await;
    assert!(matches!(result, Err(PumpError::Store(_))), "{result:?}");
    assert!(written.aborted() && !written.finished());
}
