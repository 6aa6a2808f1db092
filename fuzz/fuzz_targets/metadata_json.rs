//! Whatever a metadata.json holds: the listing survives it, and what it calls good can be read again.
#![no_main]

use std::sync::Arc;

use backup_core::catalog::{Catalog, Filter};
use backup_core::{MemoryStore, Store, StoreKey, SystemClock};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

const DIR: &str = "service/manual/20260309_043820";

async fn list(text: &[u8]) {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let (catalog, _) = Catalog::init(Arc::clone(&store), Arc::new(SystemClock)).await.expect("a new store");
    let key = StoreKey::new(format!("{DIR}/metadata.json")).expect("a key");
    if store.create(&key, Bytes::copy_from_slice(text)).await.is_err() {
        return; // Larger than a control file may be.
    }
    let listing = catalog.list(&Filter::default()).await.expect("a listing");
    for entry in listing.entries.iter().filter(|e| e.is_good()) {
        let metadata = catalog.metadata(&entry.id).await.expect("what is good is readable");
        assert_eq!(metadata.id(), entry.id);
    }
}

fuzz_target!(|text: &[u8]| {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(list(text));
});
