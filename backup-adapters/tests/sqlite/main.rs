//! Tests of the `sqlite` adapter over real databases, with real writers.
#![cfg(feature = "sqlite")]
#![expect(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

mod ask;
mod capture;
mod conformance;
#[path = "../common/disk.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod disk;
mod restore;
mod support;
mod write;
