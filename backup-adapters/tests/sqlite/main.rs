//! Tests of the `sqlite` adapter over real databases, with real writers.
#![cfg(feature = "sqlite")]
#![expect(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

mod ask;
mod capture;
mod conformance;
mod restore;
mod support;
