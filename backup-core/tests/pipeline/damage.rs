use backup_core::AdapterErrorKind;
use backup_core::pipeline::Expected;
use proptest::prelude::*;
use tokio::runtime::Runtime;

use crate::support::{MIB, decode, encode, expected, sample};

/// Where the frames begin; the last entry is where the seek table begins.
fn frame_starts(stored: &[u8]) -> Vec<usize> {
    let mut at = 0;
    let mut starts = vec![0];
    while stored[at..].starts_with(&[0x28, 0xB5, 0x2F, 0xFD]) {
        at += zstd_safe::find_frame_compressed_size(&stored[at..]).unwrap();
        starts.push(at);
    }
    starts
}

async fn damaged(data: &[u8], bad: &[u8], want: Expected) -> String {
    let (plain, error) = decode(bad, &[100_000], want, 2).await;
    let error = error.unwrap_or_else(|| panic!("not found; {} plain bytes came out", plain.len()));
    assert_eq!(error.kind(), AdapterErrorKind::Corrupt, "{error}");
    assert!(error.to_string().starts_with("`redis.rdb.zst` is "), "{error}");
    assert!(plain.len() <= data.len());
    error.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_found_wherever_it_is_and_its_frame_is_named() {
    let data = sample(2 * MIB + 500_000);
    let (_, stored) = encode(&data, &[MIB], 2).await;
    let starts = frame_starts(&stored);
    assert_eq!(starts.len(), 4);
    for frame in 0..3 {
        let (start, end) = (starts[frame], starts[frame + 1]);
        // Within a block, and in the checksum: certain to fail in this frame and no other.
        for at in [start + 40, start + (end - start) / 2, end - 20, end - 4, end - 1] {
            let mut bad = stored.clone();
            bad[at] ^= 0x10;
            let text = damaged(&data, &bad, expected(&data, &stored)).await;
            let place = format!("at stored byte {start} (plain byte {})", frame * MIB);
            assert!(text.contains(&place), "byte {at}: {text}; expected {place}");
        }
        // Every bit of the frame's header and of its first block's: found, and not blamed on an earlier frame.
        for bit in 0..12 * 8 {
            let mut bad = stored.clone();
            bad[start + bit / 8] ^= 1 << (bit % 8);
            let text = damaged(&data, &bad, expected(&data, &stored)).await;
            if bit < 32 {
                assert!(text.contains(&format!("at stored byte {start} ")), "bit {bit}: {text}");
            }
        }
    }
    // The seek table is not decoded: the hash finds it.
    let table = starts[3];
    for at in [table, table + 5, table + 9, stored.len() - 9, stored.len() - 1] {
        let mut bad = stored.clone();
        bad[at] ^= 0x01;
        damaged(&data, &bad, expected(&data, &stored)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_cut_anywhere_is_found_also_between_frames() {
    let data = sample(2 * MIB + 500_000);
    let (_, stored) = encode(&data, &[MIB], 2).await;
    let mut cuts = frame_starts(&stored);
    cuts.extend([1, 3, 5, 17, MIB / 3, stored.len() / 2, stored.len() - 10, stored.len() - 1]);
    for cut in cuts {
        let text = damaged(&data, &stored[..cut], expected(&data, &stored)).await;
        assert!(text.contains(&format!("{cut} of {} ", stored.len())), "cut at {cut}: {text}");
    }
}

/// Sizes and hashes of a file that was cut before they were taken: only what is known of the plain bytes tells.
#[tokio::test(flavor = "multi_thread")]
async fn missing_frames_are_found_by_the_plain_length_alone() {
    let data = sample(2 * MIB + 500_000);
    let (_, stored) = encode(&data, &[MIB], 2).await;
    for cut in frame_starts(&stored).into_iter().take(3) {
        let text = damaged(&data, &stored[..cut], expected(&data, &stored[..cut])).await;
        assert!(text.contains("were recorded"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_in_another_order_are_found() {
    let data = sample(2 * MIB);
    let (_, stored) = encode(&data, &[MIB], 2).await;
    let starts = frame_starts(&stored);
    let (a, b) = (&stored[..starts[1]], &stored[starts[1]..starts[2]]);
    let swapped = [b, a, &stored[starts[2]..]].concat();
    // As if the stored hash were right: the plain one is the last line.
    let text = damaged(&data, &swapped, expected(&data, &swapped)).await;
    assert!(text.contains("BLAKE3"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_behind_the_end_are_found() {
    let data = sample(1_000);
    let (_, stored) = encode(&data, &[MIB], 1).await;
    let longer = [&stored[..], &[0; 100_000]].concat();
    let text = damaged(&data, &longer, expected(&data, &stored)).await;
    assert!(text.contains("longer than the recorded"), "{text}");
    let text = damaged(&data, &longer, expected(&data, &longer)).await;
    assert!(text.contains(&format!("at stored byte {} ", stored.len())), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever the bytes are: an error, no panic, and no more plain bytes than recorded.
    #[test]
    fn hostile_bytes_are_refused(
        noise in prop::collection::vec(any::<u8>(), 0..400),
        keep in 0..2_000_usize,
    ) {
        let data = sample(200_000);
        Runtime::new().unwrap().block_on(async {
            let (_, stored) = encode(&data, &[MIB], 1).await;
            let bad = [&stored[..keep], &noise].concat();
            damaged(&data, &bad, expected(&data, &bad)).await;
        });
    }
}
