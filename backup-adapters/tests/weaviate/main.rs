//! Weaviate against the real server in containers.
#![cfg(feature = "weaviate")]
#![expect(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

mod apart;
mod ask;
mod capture;
mod conformance;
mod export;
mod faults;
mod fits;
mod killed;
mod proxy;
mod restore;
mod s3;
mod support;
#[path = "../common/scratch.rs"]
mod watched;
