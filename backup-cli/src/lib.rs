//! The command line of the backup system, as a library: a program of your own adds its adapters and stores to the
//! built-in ones, or starts without them, and has every verb.
//!
//! ```no_run
//! # #[derive(Debug, serde::Deserialize)]
//! # struct LedgerConfig {}
//! # impl backup_core::AdapterConfig for LedgerConfig {
//! #     const KIND: &'static str = "ledger";
//! #     const SUMMARY: &'static str = "our ledger";
//! #     const PROVEN: &'static str = "in its own tests";
//! #     fn build(
//! #         self,
//! #         _: &backup_core::BuildContext,
//! #     ) -> Result<std::sync::Arc<dyn backup_core::ServiceAdapter>, backup_core::ConfigError> {
//! #         Err(backup_core::ConfigError::new("an example"))
//! #     }
//! # }
//! fn main() -> std::process::ExitCode {
//!     backup_cli::Cli::new()
//!         .named("ledger-backup", "1.2.0")
//!         .with_builtins()
//!         .with_adapter::<LedgerConfig>()
//!         .run()
//! }
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use backup_core::runtime::Watchdog;
use backup_core::{AdapterConfig, AdapterRegistry, ConfigError, Store, StoreRegistry};
use clap::{CommandFactory as _, FromArgMatches as _};

mod args;
mod commands;
mod configuration;
mod containers;
mod context;
mod environment;
mod error;
pub mod exit_code;
mod format;
mod moment;
mod program;
mod render;
mod scaffold;
mod secrets;
mod signals;
mod ui;
mod watchdog;
mod write;
mod zero;

/// A program with the verbs of `backup`: what it can back up, and where to.
#[derive(Debug, Clone)]
#[must_use]
pub struct Cli {
    name: &'static str,
    version: &'static str,
    adapters: AdapterRegistry,
    stores: StoreRegistry,
    watchdog: Option<Arc<dyn Watchdog>>,
}

impl Default for Cli {
    fn default() -> Self {
        Self::new()
    }
}

impl Cli {
    /// A program that knows no adapters and no stores yet.
    pub fn new() -> Self {
        Self {
            name: "backup",
            version: env!("CARGO_PKG_VERSION"),
            adapters: AdapterRegistry::new(),
            stores: StoreRegistry::new(),
            watchdog: None,
        }
    }

    /// The name and version that help texts and backups show; `backup` and this crate's version by default.
    pub fn named(mut self, name: &'static str, version: &'static str) -> Self {
        (self.name, self.version) = (name, version);
        self
    }

    /// Adds the built-in adapters and stores; those that were added before stay and are asked first.
    ///
    /// # Panics
    /// If one of the same name was added before: a mistake in the program, found at its start.
    pub fn with_builtins(mut self) -> Self {
        self.adapters = self.adapters.merged(backup_adapters::builtin_adapters());
        self.stores = self.stores.merged(backup_adapters::builtin_stores_in(environment::var));
        self
    }

    /// Adds an adapter by its configuration.
    ///
    /// # Panics
    /// If one of the same kind was added before.
    pub fn with_adapter<C: AdapterConfig>(mut self) -> Self {
        self.adapters = self.adapters.with::<C>();
        self
    }

    /// Adds a kind of store by the scheme of its URLs. See [`StoreRegistry::with_scheme`] for what is asked of the factory.
    ///
    /// # Panics
    /// If one of the same scheme was added before.
    pub fn with_store<F, Fut>(mut self, scheme: &'static str, factory: F) -> Self
    where
        F: Fn(url::Url, BTreeMap<String, String>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Arc<dyn Store>, ConfigError>> + Send + 'static,
    {
        self.stores = self.stores.with_scheme(scheme, factory);
        self
    }

    /// What brings an interrupted service back if this program cannot. By default it starts itself once more, as
    /// `<program> watchdog …`: a program whose own arguments do not go to [`run`](Self::run) as they are needs another one.
    pub fn with_watchdog(mut self, watchdog: Arc<dyn Watchdog>) -> Self {
        self.watchdog = Some(watchdog);
        self
    }

    /// Does what the process's arguments say. See [`exit_code`] for the result.
    #[must_use]
    pub fn run(self) -> ExitCode {
        self.run_from(std::env::args_os())
    }

    /// Does what `args` say; the first one is the program's name.
    #[must_use]
    pub fn run_from(self, args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> ExitCode {
        let parsed = self
            .command()
            .try_get_matches_from(args)
            .and_then(|matches| args::Root::from_arg_matches(&matches));
        match parsed {
            Ok(root) => ExitCode::from(program::run(self, root)),
            Err(e) => {
                // Help and versions are no failures and go to standard output; clap knows. Whoever closed it, wanted no more.
                let _gone = e.print();
                ExitCode::from(if e.use_stderr() { exit_code::USAGE } else { exit_code::OK })
            }
        }
    }

    /// The description of the command line, e.g. for man pages.
    #[must_use]
    pub fn command(&self) -> clap::Command {
        args::Root::command().name(self.name).version(self.version)
    }
}
