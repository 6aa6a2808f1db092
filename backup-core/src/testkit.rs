//! Conformance suites, fakes and fault injection, for authors of adapters and stores. Feature `testkit`; not covered by
//! semver.

pub mod adapter_suite;
pub mod fake_adapter;
pub mod fake_runtime;
pub mod faulty_store;
pub mod manual_clock;
pub mod store_suite;

pub use fake_runtime::FakeRuntime;
pub use faulty_store::{Call, Fault, FaultyStore};
pub use manual_clock::ManualClock;
