//! Decoding hostile bytes ends, within the length that the metadata names, and never well: the hash is another one.
#![no_main]

use backup_core::pipeline::{Expected, PipelineSettings, ZSTD, unpump};
use bytes::Bytes;
use futures::{StreamExt, stream};
use libfuzzer_sys::fuzz_target;

const PLAIN_BYTES: u64 = 1 << 16;

async fn decode(stored: Bytes) {
    let file =
        serde_json::json!({ "path": "a.zst", "stored_bytes": stored.len(), "stored_sha256": "0".repeat(64) });
    let expected = Expected {
        encodings: vec![ZSTD.to_owned()],
        files: vec![serde_json::from_value(file).expect("a stored file")],
        plain_bytes: PLAIN_BYTES,
        plain_blake3: "0".repeat(64),
    };
    let mut plain = unpump(stream::iter([Ok(stored)]).boxed(), expected, PipelineSettings::new(1));
    let (mut length, mut failed) = (0, false);
    while let Some(chunk) = plain.next().await {
        match chunk {
            Ok(chunk) => length += chunk.len() as u64,
            Err(_) => failed = true,
        }
    }
    assert!(failed && length <= PLAIN_BYTES, "{length} bytes came");
}

fuzz_target!(|stored: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(decode(Bytes::copy_from_slice(stored)));
});
