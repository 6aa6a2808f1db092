//! Data generators and harness shared by the benchmarks.

pub mod data;
pub mod measure;
