//! The check of an archive survives every archive, and says the same however the bytes are cut.
#![no_main]

use backup_adapters::files::FilesConfig;
use backup_core::{AdapterConfig, AdapterError, ArtifactMeta, BuildContext, CheckPurpose, Evidence};
use libfuzzer_sys::fuzz_target;

fn check(archive: &[u8], step: usize) -> Result<Evidence, AdapterError> {
    let config: FilesConfig = toml::from_str("paths = ['/x']").expect("a configuration");
    let adapter = config.build(&BuildContext::new("x".parse().expect("a name"), "/")).expect("an adapter");
    let artifact: ArtifactMeta = serde_json::from_str(r#"{"name": "x"}"#).expect("an artifact");
    let mut check = adapter.content_check(&CheckPurpose::Capture, &artifact).expect("a check");
    for chunk in archive.chunks(step) {
        check.update(chunk)?;
    }
    check.finish()
}

fuzz_target!(|archive: &[u8]| {
    let (whole, cut) = (check(archive, usize::MAX), check(archive, 7));
    assert_eq!(whole.ok(), cut.ok());
});
