//! The contract of stores, over every store of this crate.

#![expect(clippy::unwrap_used, reason = "assertions of tests")]

use backup_core::testkit::FaultyStore;
use backup_core::{LocalStore, MemoryStore, store_conformance_tests};

store_conformance_tests!(memory, || async { MemoryStore::new() });

store_conformance_tests!(local, || async {
    let dir = tempfile::tempdir().unwrap();
    (LocalStore::new(dir.path()), dir)
});

store_conformance_tests!(faulty_without_a_fault, || async { FaultyStore::new(MemoryStore::new()) });
