//! Files that another program wrote.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::support::{MIB, decode, expected, sample};

/// What `zstd` makes of `data`.
fn zstd(data: &[u8], from_pipe: bool, args: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (plain, stored) = (dir.path().join("plain"), dir.path().join("stored"));
    std::fs::write(&plain, data).unwrap();
    let mut command = Command::new("zstd");
    command.args(args).arg("-q").arg("-o").arg(&stored);
    if from_pipe {
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(data).unwrap();
        assert!(child.wait().unwrap().success());
    } else {
        assert!(command.arg(&plain).status().unwrap().success());
    }
    std::fs::read(&stored).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_the_zstd_program_decodes() {
    for bytes in [0, 1, 1_000, MIB, 2 * MIB, 5 * MIB + 1] {
        let data = sample(bytes);
        for (from_pipe, args) in
            [(false, &["-1"][..]), (true, &["-3", "--no-check"]), (false, &["-19", "--long=24"])]
        {
            let stored = zstd(&data, from_pipe, args);
            for sizes in [[200_000], [4_099]] {
                let (plain, error) = decode(&stored, &sizes, expected(&data, &stored), 2).await;
                assert!(error.is_none() && plain == data, "{bytes} bytes, {args:?}: {error:?}");
            }
            if bytes > 0 {
                let cut = &stored[..stored.len() - 1];
                let (_, error) = decode(cut, &[4_099], expected(&data, cut), 2).await;
                assert!(error.unwrap().to_string().contains("at stored byte 0 (plain byte 0)"));
            }
        }
    }
}

/// `cat a.zst b.zst` is a file as good as any, with frames of either kind and skippable ones between them.
#[tokio::test(flavor = "multi_thread")]
async fn mixed_frames_decode_in_order() {
    let (small, large) = (sample(1_000), sample(3 * MIB));
    let skippable = [&0x184D_2A50_u32.to_le_bytes()[..], &70_000_u32.to_le_bytes(), &[7; 70_000]].concat();
    let parts = [
        zstd(&small, false, &["-1"]),
        zstd(&large, true, &["-1"]),
        skippable,
        zstd(&small, true, &["-1"]),
        zstd(&small, false, &["-1"]),
        zstd(&large, false, &["-1"]),
    ];
    let stored = parts.concat();
    let data = [&small[..], &large, &small, &small, &large].concat();
    for sizes in [[64], [10_007], [8 * MIB]] {
        let (plain, error) = decode(&stored, &sizes, expected(&data, &stored), 3).await;
        assert!(error.is_none() && plain == data, "chunks of {sizes:?}: {error:?}");
    }
}

/// 64 MiB of zeros in a few KiB, recorded as 2 MiB: refused without being unpacked.
#[tokio::test(flavor = "multi_thread")]
async fn a_bomb_is_refused() {
    let bomb = vec![0; 64 * MIB];
    let recorded = &bomb[..2 * MIB];
    for (from_pipe, at_most) in [(false, 0), (true, 2 * MIB)] {
        let stored = zstd(&bomb, from_pipe, &["-1"]);
        assert!(stored.len() < 20_000);
        let (plain, error) = decode(&stored, &[1_000], expected(recorded, &stored), 2).await;
        let text = error.unwrap().to_string();
        assert!(text.contains("more than the recorded 2097152 plain bytes"), "{text}");
        assert!(plain.len() <= at_most, "{} bytes came out", plain.len());
    }
    // The same as many small frames.
    let frame = zstd(&vec![0; MIB], false, &["-1"]);
    let stored = frame.repeat(64);
    let (plain, error) = decode(&stored, &[1_000], expected(recorded, &stored), 2).await;
    assert!(error.unwrap().to_string().contains("more than the recorded"));
    assert!(plain.len() <= 2 * MIB);
}

/// A frame that says it holds one byte and holds a thousand.
#[tokio::test]
async fn a_frame_that_lies_about_its_length_does_not_decode() {
    let data = vec![5; 1_000];
    let mut stored = zstd(&data, false, &["-1", "--no-check"]);
    // Single segment, content size in two bytes (offset by 256) behind the descriptor: RFC 8878, section 3.1.1.1.
    assert_eq!(stored[4] & 0xE0, 0x60);
    stored[5..7].copy_from_slice(&44_u16.to_le_bytes());
    let (plain, error) = decode(&stored, &[1_000], expected(&data, &stored), 1).await;
    assert!(plain.is_empty());
    assert!(error.unwrap().to_string().contains("at stored byte 0"));
}
