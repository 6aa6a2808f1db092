//! The Docker runtime against a real engine, and, for what a real one cannot be made to do, a false one.
#![cfg(feature = "_runtime")]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod exec;
mod false_engine;
mod harm;
mod lifecycle;
mod place;
mod scratch;
mod support;
mod volumes;
#[path = "../common/scratch.rs"]
mod watched;
