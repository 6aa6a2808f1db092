//! What is accepted as a name or key leads nowhere else, and is the same when it is read again.
#![no_main]

use backup_core::{ArtifactName, BackupId, RunId, ServiceName, StoreKey, Timestamp};
use libfuzzer_sys::fuzz_target;

fn again<T: std::str::FromStr + std::fmt::Display>(text: &str) {
    if let Ok(parsed) = text.parse::<T>() {
        assert_eq!(parsed.to_string(), text);
    }
}

fuzz_target!(|text: &str| {
    if let Ok(key) = StoreKey::new(text) {
        assert!(
            !key.as_str().starts_with('/')
                && key.as_str().split('/').all(|part| !matches!(part, "" | "." | ".."))
        );
    }
    if let Ok(below) = StoreKey::new("a/b").expect("a key").join(text) {
        assert_eq!(below.parent().expect("a parent").as_str(), "a/b");
    }
    again::<StoreKey>(text);
    again::<BackupId>(text);
    again::<Timestamp>(text);
    again::<RunId>(text);
    again::<ServiceName>(text);
    again::<ArtifactName>(ArtifactName::sanitized(text).as_str());
});
