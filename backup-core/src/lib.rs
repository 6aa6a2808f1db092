//! Backs up and recovers the stateful services of a host, and proves that it did.
//!
//! # The problem
//! A dump that ended early, a disk that was not mounted, a table that was emptied before the nightly run: most backups that
//! fail on the worst day had looked good on every day before. This crate is the engine for programs that must not look
//! better than they are: [`Engine`] runs verbs over a validated [plan](plan::BackupPlan), a [`ServiceAdapter`] knows one
//! kind of service, a [`Store`] keeps bytes, and the [`Catalog`] is the protocol that makes backups of them.
//!
//! ```text
//! Config ─resolve→ BackupPlan ─→ Engine ─→ adapter.open → artifacts → blake3, check, zstd, sha256 → StoreWriter
//!                                   │           └ release: the service is undisturbed again
//!                                   ├─→ Catalog: run.json first … metadata.json last, create-only: the commit
//!                                   ├─→ retention, with floors that no policy can break
//!                                   └─→ restore: plan → stage (all bytes proven) → switch → probe → (undo)
//! ```
//!
//! # Example
//! ```
//! # #[cfg(feature = "testkit")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//!
//! use backup_core::catalog::{Catalog, VerifyLevel};
//! use backup_core::config::Config;
//! use backup_core::engine::{BackupRequest, Engine, VerifyRequest};
//! use backup_core::state::StateDir;
//! use backup_core::testkit::fake_adapter::FakeConfig;
//! use backup_core::{AdapterRegistry, MemoryStore, Outcome, SystemClock};
//!
//! let text = "store.url = 'memory://'\n[services.db]\nkind = 'fake'\nartifacts = { dump = ['one', 'two'] }";
//! let adapters = AdapterRegistry::new().with::<FakeConfig>(); // yours: whatever implements `AdapterConfig`
//! let dir = tempfile::tempdir()?;
//! let plan = Config::parse(text, "backup.toml")?.resolve(&adapters, dir.path())?;
//! let (catalog, _new) = Catalog::init(Arc::new(MemoryStore::new()), Arc::new(SystemClock)).await?;
//! let engine = Engine::builder(plan, catalog, StateDir::open(dir.path().join("state"))?).build();
//!
//! let report = engine.back_up(&BackupRequest::new("manual".parse()?)).await?;
//! assert_eq!(report.outcome(), Outcome::Ok);
//! let report = engine.verify(&VerifyRequest::new(VerifyLevel::Content)).await?;
//! assert_eq!(report.outcome(), Outcome::Ok);
//! engine.shutdown().await;
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "testkit"))]
//! # fn main() {}
//! ```
//!
//! # Guarantees
//! * What is listed as good was read to a proven end and written durably, as far as its adapter and its store keep their
//!   contracts. The [testkit](self#features) tests both.
//! * A verb that fails, is cancelled or dropped leaves the service as it was and the older backups alone;
//!   [`Engine::shutdown`] waits until that is done. After a hard kill the next run does it.
//! * A restore deletes nothing, and nothing goes live before every byte was verified.
//! * Backups need no program to be read: each carries its sums and its instructions.
//! * Memory does not grow with the data.
//!
//! # Non-goals
//! No deduplication and no repository format; no scheduler; no Docker, HTTP, cloud or command line in this crate (those are
//! adapters, stores and `backup-cli`); nothing is printed, and nothing is read from the environment.
//!
//! # Features
//! | Feature | What it adds |
//! |---|---|
//! | `age` | encryption of backups, for keys of age and SSH |
//! | `testkit` | `testkit`: conformance suites for adapters and stores, fakes, a store that fails at will, a clock to set. Not covered by semver |
#![cfg_attr(docsrs, feature(doc_cfg))]

mod adapter;
pub mod catalog;
mod clock;
pub mod config;
mod context;
pub mod encryption;
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
mod stack;
pub mod state;
mod store;
#[cfg(feature = "testkit")]
pub mod testkit;

pub use adapter::*;
pub use catalog::Catalog;
pub use clock::{Clock, SystemClock};
pub use context::OpContext;
pub use engine::Engine;
pub use error::{
    AdapterError, AdapterErrorKind, Advice, BackupError, BoxError, ConfigError, Stage, StoreError, advice,
    chain,
};
pub use event::{Event, EventSink, NoEvents, Outcome};
pub use id::{
    ArtifactName, BackupId, Interval, InvalidId, RunId, ServiceName, StoreKey, StoreName, Timestamp,
};
pub use metadata::*;
pub use registry::*;
pub use secret::{NoSecrets, Secret, SecretHistory, SecretRef, SecretResolver};
pub use source::*;
pub use stack::{Part, PartState, Stack};
pub use store::*;
