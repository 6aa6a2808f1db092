//! The example keeps the contract of stores.

#[path = "../examples/custom_store.rs"]
mod custom_store;

use custom_store::Shelf;

backup_core::store_conformance_tests!(shelf, || async { Shelf::default() });

#[test]
fn the_example_runs() {
    custom_store::main().unwrap();
}
