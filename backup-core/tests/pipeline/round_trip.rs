use std::process::Command;

use backup_core::pipeline::{Expected, check_stored};
use backup_core::{ArtifactMeta, ArtifactName};
use proptest::prelude::*;
use tokio::runtime::Runtime;

use crate::support::{MIB, chunks, decode, encode, expected, sample, stored_file};

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// The chunking of neither side shows in any byte or hash.
    #[test]
    fn any_chunking_round_trips(
        bytes in prop_oneof![Just(0), Just(1), Just(MIB), Just(2 * MIB), 1..3 * MIB],
        plain_sizes in prop::collection::vec(1_000..3 * MIB, 1..6),
        stored_sizes in prop::collection::vec(100..2 * MIB, 1..6),
        threads in 1..5_usize,
    ) {
        let data = sample(bytes);
        Runtime::new().unwrap().block_on(async {
            let (encoded, stored) = encode(&data, &plain_sizes, threads).await;
            let (whole, whole_stored) = encode(&data, &[MIB], 1).await;
            assert_eq!(encoded, whole);
            assert!(stored == whole_stored);

            let want = expected(&data, &stored);
            assert_eq!(encoded.plain_bytes, want.plain_bytes);
            assert_eq!(encoded.plain_blake3, want.plain_blake3);
            assert_eq!(encoded.files[0].bytes, want.files[0].stored_bytes);
            assert_eq!(encoded.files[0].sha256, want.files[0].stored_sha256);
            assert_eq!(encoded.encodings, want.encodings);

            let (plain, error) = decode(&stored, &stored_sizes, want, threads).await;
            assert!(error.is_none(), "{error:?}");
            assert!(plain == data);
        });
    }
}

/// Promise 3: without this program, `zstd` is enough. Needs the `zstd` program.
#[tokio::test(flavor = "multi_thread")]
async fn the_zstd_program_reads_it() {
    for bytes in [0, 1, MIB, 3 * MIB + 12_345] {
        let data = sample(bytes);
        let (_, stored) = encode(&data, &[700_000], 2).await;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.zst");
        std::fs::write(&file, stored).unwrap();

        let decoded = Command::new("zstd").arg("-dcq").arg(&file).output().unwrap();
        assert!(decoded.status.success(), "{decoded:?}");
        assert!(decoded.stdout == data, "{bytes} bytes");
        let tested = Command::new("zstd").arg("-tq").arg(&file).output().unwrap();
        assert!(tested.status.success(), "{tested:?}");

        let listed = Command::new("zstd").arg("-lv").arg(&file).output().unwrap();
        let text = String::from_utf8(listed.stdout).unwrap();
        assert!(listed.status.success(), "{text}");
        let frames = bytes.div_ceil(MIB).max(1);
        assert!(text.contains(&format!("# Zstandard Frames: {frames}\n")), "{text}");
        assert!(text.contains("# Skippable Frames: 1\n"), "{text}");
        assert!(text.contains(&format!("({bytes} B)")), "the decompressed size is known: {text}");
        assert!(text.contains("Check: XXH64"), "{text}");
    }
}

/// Read back as the specification says: every frame is found through the table and decodes by itself.
#[tokio::test(flavor = "multi_thread")]
async fn the_seek_table_leads_to_every_frame() {
    let data = sample(2 * MIB + 77);
    let (_, stored) = encode(&data, &[MIB], 2).await;
    let int = |at: usize| u32::from_le_bytes(stored[at..at + 4].try_into().unwrap());
    let n = stored.len();
    assert_eq!(int(n - 4), 0x8F92_EAB1);
    assert_eq!(stored[n - 5], 0, "no checksums");
    let frames = int(n - 9) as usize;
    assert_eq!(frames, 3);
    let table = n - 9 - 8 * frames;
    assert_eq!(int(table - 8), 0x184D_2A5E);
    assert_eq!(int(table - 4) as usize, 8 * frames + 9);

    let (mut at, mut plain_at) = (0, 0);
    for i in 0..frames {
        let (stored_len, plain_len) = (int(table + 8 * i) as usize, int(table + 8 * i + 4) as usize);
        let mut plain = Vec::with_capacity(plain_len);
        zstd_safe::decompress(&mut plain, &stored[at..at + stored_len]).unwrap();
        assert!(plain == data[plain_at..plain_at + plain_len]);
        at += stored_len;
        plain_at += plain_len;
    }
    assert_eq!((at, plain_at), (table - 8, data.len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_stored_files_are_one_artifact() {
    let data = sample(3 * MIB);
    let (_, stored) = encode(&data, &[MIB], 2).await;
    let (first, second) = stored.split_at(stored.len() / 2 + 3);
    let mut files = vec![stored_file(first), stored_file(second)];
    files[1].path = "redis.rdb.zst.1".into();
    let want = Expected { files, ..expected(&data, &stored) };
    let (plain, error) = decode(&stored, &[300_000], want.clone(), 2).await;
    assert!(error.is_none() && plain == data, "{error:?}");

    let mut flipped = stored.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let (_, error) = decode(&flipped, &[300_000], want, 2).await;
    let text = error.unwrap().to_string();
    assert!(text.starts_with("`redis.rdb.zst.1` is damaged: its SHA-256 is"), "{text}");
}

#[tokio::test]
async fn a_file_stored_as_it_is_passes_through() {
    let data = sample(MIB + 5);
    let want = Expected { encodings: Vec::new(), ..expected(&data, &data) };
    let (plain, error) = decode(&data, &[1_000, 200_000], want.clone(), 1).await;
    assert!(error.is_none() && plain == data, "{error:?}");

    let (_, error) = decode(&data[..MIB], &[200_000], want, 1).await;
    assert!(error.unwrap().to_string().contains("is cut: 1048576 of 1048581 bytes are there"));
}

#[tokio::test]
async fn an_unknown_encoding_is_named() {
    let data = sample(10);
    let want = Expected { encodings: vec!["zstd".into(), "rot13".into()], ..expected(&data, &data) };
    let (plain, error) = decode(&data, &[10], want, 1).await;
    assert!(plain.is_empty());
    let error = error.unwrap();
    assert_eq!(error.kind(), backup_core::AdapterErrorKind::Unsupported);
    assert_eq!(error.to_string(), "cannot decode `redis.rdb.zst`: encoded as `zstd`, `rot13`");
}

#[tokio::test]
async fn the_stored_level_compares_length_and_hash() {
    let data = sample(300_000);
    let file = stored_file(&data);
    check_stored(chunks(&data, &[1_000]), &file).await.unwrap();

    let mut flipped = data.clone();
    flipped[123_456] ^= 4;
    for bad in [flipped, data[..299_999].to_vec(), [&data[..], b"x"].concat(), Vec::new()] {
        let fault = check_stored(chunks(&bad, &[1_000]), &file).await;
        assert!(fault.is_err(), "{} bytes", bad.len());
    }
    let none = stored_file(b"");
    check_stored(chunks(b"", &[1]), &none).await.unwrap();
}

/// A metadata.json that lost its hashes proves nothing.
#[tokio::test]
async fn missing_hashes_are_not_taken_for_equal() {
    let data = sample(1_000);
    let (_, stored) = encode(&data, &[1_000], 1).await;
    let want = expected(&data, &stored);
    let artifact = ArtifactMeta {
        name: ArtifactName::new("redis").unwrap(),
        attributes: Default::default(),
        plain_bytes: want.plain_bytes,
        plain_blake3: String::new(),
        encodings: want.encodings.clone(),
        files: want.files.clone(),
        external: None,
    };
    let (_, error) = decode(&stored, &[1_000], Expected::of(&artifact), 1).await;
    assert!(error.unwrap().to_string().contains("BLAKE3"));

    let mut want = want;
    want.files[0].stored_sha256.clear();
    let (_, error) = decode(&stored, &[1_000], want, 1).await;
    assert!(error.unwrap().to_string().contains("SHA-256"));
}
