//! Restores of Redis, against real servers: each test starts its own.
#![cfg(feature = "redis")]
#![expect(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

mod common;
mod container;
mod elsewhere;
mod killed;
mod refused;
mod round_trip;
#[path = "../redis/support.rs"]
#[expect(dead_code, reason = "the captures' tests use the rest")]
mod support;
mod writers;
