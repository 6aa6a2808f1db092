//! The adapters `files` and `env`, driven as the engine drives them. Needs root, as their work does.
#![cfg(all(feature = "files", feature = "env"))]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod by_hand;
mod capture;
mod conformance;
mod env;
mod fill;
mod hostile;
mod live;
mod random;
mod round_trip;
mod support;
