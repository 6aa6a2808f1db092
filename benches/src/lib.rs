//! Data generators and harness shared by the benchmarks.
