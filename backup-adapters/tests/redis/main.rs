//! Tests of the `redis` adapter over real servers.
#![cfg(feature = "redis")]
#![expect(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

mod accidents;
mod ask;
mod bgsave;
mod conformance;
mod container;
mod faults;
mod link;
mod rights;
mod snapshot;
mod support;
mod write;
