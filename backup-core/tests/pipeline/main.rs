//! The pipeline, from outside: round trips, the `zstd` program, damage, faults, limits.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod damage;
mod faults;
mod foreign;
mod gzip;
mod limits;
mod round_trip;
mod sealed;
mod several;
mod support;
