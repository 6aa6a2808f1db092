//! Snapshots of EBS volumes, against a simulated EC2 (moto) and what networks and EC2 do to calls.

#![cfg(feature = "ebs")]
#![expect(clippy::unwrap_used, reason = "assertions of tests")]

mod capture;
mod conformance;
#[path = "../common/disk.rs"]
mod disk;
mod faults;
mod freeze;
mod lifecycle;
mod proxy;
mod refused;
mod restore;
mod support;
