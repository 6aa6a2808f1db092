//! Weaviate against the real server in containers.
#![cfg(feature = "weaviate")]

mod capture;
mod conformance;
mod faults;
mod killed;
mod proxy;
mod restore;
mod support;
