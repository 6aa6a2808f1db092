//! Tests of the `postgres` adapter against real servers: clusters of our own on the host, and containers.
#![cfg(feature = "postgres")]
#![expect(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

mod apart;
mod ask;
mod base;
mod capture;
mod conformance;
mod containers;
mod exchange;
mod faults;
mod fits;
mod holds;
mod legacy;
#[path = "../common/old.rs"]
mod old;
mod restore;
mod support;
mod traps;
#[path = "../common/scratch.rs"]
mod watched;
