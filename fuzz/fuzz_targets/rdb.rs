//! The walk through an RDB survives every file, and says the same however the bytes are cut.
#![no_main]

use backup_adapters::redis::RedisConfig;
use backup_core::{AdapterConfig, AdapterError, ArtifactMeta, BuildContext, CheckPurpose, Evidence};
use libfuzzer_sys::fuzz_target;

fn check(file: &[u8], step: usize) -> Result<Evidence, AdapterError> {
    let config: RedisConfig = toml::from_str("host = 'localhost'").expect("a configuration");
    let adapter = config.build(&BuildContext::new("x".parse().expect("a name"), "/")).expect("an adapter");
    let artifact: ArtifactMeta = serde_json::from_str(r#"{"name": "x"}"#).expect("an artifact");
    let mut check = adapter.content_check(&CheckPurpose::Capture, &artifact).expect("a check");
    for chunk in file.chunks(step) {
        check.update(chunk)?;
    }
    check.finish()
}

fuzz_target!(|body: &[u8]| {
    // Without a checksum, so that what is walked to its end is accepted.
    let file = [b"REDIS0012".as_slice(), body, &[255, 0, 0, 0, 0, 0, 0, 0, 0]].concat();
    let (whole, cut) = (check(&file, usize::MAX), check(&file, 3));
    assert_eq!(whole.ok(), cut.ok());
    let (whole, cut) = (check(body, usize::MAX), check(body, 7));
    assert_eq!(whole.ok(), cut.ok());
});
