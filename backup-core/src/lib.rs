//! The engine of the backup system.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod adapter;
pub mod catalog;
mod clock;
pub mod config;
mod context;
pub mod engine;
mod error;
mod event;
mod id;
pub mod keep_aside;
mod metadata;
pub mod pipeline;
pub mod plan;
mod registry;
pub mod retention;
pub mod runtime;
mod secret;
mod source;
pub mod state;
mod store;
#[cfg(feature = "testkit")]
pub mod testkit;

pub use adapter::*;
pub use clock::{Clock, SystemClock};
pub use context::OpContext;
pub use error::{
    AdapterError, AdapterErrorKind, BackupError, BoxError, ConfigError, Stage, StoreError, chain,
};
pub use event::{Event, EventSink, NoEvents, Outcome};
pub use id::{ArtifactName, BackupId, Interval, InvalidId, RunId, ServiceName, StoreKey, Timestamp};
pub use metadata::*;
pub use registry::*;
pub use secret::{NoSecrets, Secret, SecretRef, SecretResolver};
pub use source::*;
pub use store::*;
