//! Tests of the `neo4j` adapter over real servers in containers.
#![cfg(feature = "neo4j")]
#![expect(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

mod accidents;
mod apart;
mod ask;
mod capture;
mod conformance;
mod faults;
mod fits;
mod four;
mod graph;
mod legacy;
#[path = "../common/old.rs"]
mod old;
mod online;
mod restore;
mod support;
#[path = "../common/scratch.rs"]
mod watched;
