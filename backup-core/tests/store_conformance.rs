//! The contract of stores, over every store of this crate.

#![expect(clippy::unwrap_used, reason = "assertions of tests")]

use std::sync::Arc;

use backup_core::testkit::FaultyStore;
use backup_core::{LocalStore, MemoryStore, SplitStore, StoreKey, store_conformance_tests};

store_conformance_tests!(memory, || async { MemoryStore::new() });

store_conformance_tests!(local, || async {
    let dir = tempfile::tempdir().unwrap();
    (LocalStore::new(dir.path()), dir)
});

store_conformance_tests!(faulty_without_a_fault, || async { FaultyStore::new(MemoryStore::new()) });

store_conformance_tests!(split, || async {
    // What the clauses write is on both sides of it.
    let prefix = StoreKey::new("a/b").unwrap();
    SplitStore::new(Arc::new(MemoryStore::new()), prefix, Arc::new(MemoryStore::new()))
});
