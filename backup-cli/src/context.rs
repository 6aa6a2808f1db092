//! What a verb works with: the user's wishes, and (asked for) the engine over the configuration that was found.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backup_core::catalog::Catalog;
use backup_core::config::{Config, StoreConfig};
use backup_core::engine::Engine;
use backup_core::plan::BackupPlan;
use backup_core::runtime::{NoWatchdog, Watchdog};
use backup_core::state::StateDir;
use backup_core::{Clock, EventSink, Interval, LocalStore, MemoryStore, SecretRef, ServiceName, Store};
use serde_json::{Map, Value};

use crate::args::Global;
use crate::error::CliError;
use crate::render::{human::HumanEvents, json::JsonEvents};
use crate::signals::Interrupt;
use crate::ui::Ui;
use crate::watchdog::OwnWatchdog;
use crate::{Cli, configuration, environment, exit_code, secrets::Secrets, zero};

/// Where a configuration is looked for, after `--config` and `$BACKUP_CONFIG`.
pub(crate) const PLACES: [&str; 2] = ["backup.toml", "/etc/backup/backup.toml"];

/// How long the store is waited for by what can do without it.
const STORE_PATIENCE: Duration = Duration::from_secs(3);

/// How a verb ended, if nothing went wrong on the way.
#[derive(Debug)]
#[must_use]
pub(crate) struct Done {
    pub(crate) code: u8,
    /// What the last JSON line says beside the exit code.
    pub(crate) summary: Map<String, Value>,
}

impl Done {
    pub(crate) fn ok() -> Self {
        Self::code(exit_code::OK)
    }

    pub(crate) fn code(code: u8) -> Self {
        Self { code, summary: Map::new() }
    }

    /// Adds a field to the summary.
    pub(crate) fn with(mut self, name: &str, value: impl serde::Serialize) -> Self {
        self.summary.insert(name.to_owned(), serde_json::to_value(value).unwrap_or(Value::Null));
        self
    }
}

/// What every verb gets.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) cli: Cli,
    pub(crate) global: Global,
    pub(crate) ui: Arc<Ui>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) interrupt: Interrupt,
    /// The directory that the program was started in.
    pub(crate) dir: PathBuf,
    engines: Mutex<Vec<Engine>>,
}

/// An opened configuration.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) engine: Engine,
    /// The intervals that the configuration names (`manual` always exists besides).
    pub(crate) intervals: Vec<Interval>,
    /// Whether there is a configuration file.
    pub(crate) configured: bool,
    /// The service that has the configuration, if nobody configured one.
    pub(crate) configuration: Option<ServiceName>,
    pub(crate) written: Written,
}

/// What was configured, as it was written.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    pub(crate) config: Config,
    /// The folder that relative paths are meant from.
    pub(crate) base: PathBuf,
}

/// A configuration that was read and resolved.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    pub(crate) plan: BackupPlan,
    pub(crate) intervals: Vec<Interval>,
    /// The configuration file, absolute.
    pub(crate) file: Option<PathBuf>,
    /// The service that has it, if nobody configured one.
    pub(crate) configuration: Option<ServiceName>,
    pub(crate) state_dir: PathBuf,
    pub(crate) written: Written,
}

/// What to do about a store that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening {
    /// Refuse: an unmounted disk is not a store.
    Existing,
    /// Make it.
    Init,
}

impl Context {
    pub(crate) fn new(cli: Cli, mut global: Global, ui: Arc<Ui>) -> Result<Self, CliError> {
        global.config = global.config.or_else(|| environment::path("BACKUP_CONFIG"));
        let (clock, dir) = (environment::clock()?, environment::current_dir()?);
        Ok(Self { cli, global, ui, clock, interrupt: Interrupt::default(), dir, engines: Mutex::default() })
    }

    /// Does what a verb says, and waits for what it left to be tidied up.
    pub(crate) async fn perform(&self, verb: crate::args::Verb) -> Result<Done, CliError> {
        let ended = verb.run(self).await;
        let engines = self.engines().clone();
        for engine in engines {
            engine.shutdown().await;
        }
        if !self.interrupt.happened() {
            return ended;
        }
        // What was finished in spite of the signal is told; the code still says that there was one.
        ended.map(|done| Done { code: exit_code::INTERRUPTED, ..done })
    }

    fn engines(&self) -> MutexGuard<'_, Vec<Engine>> {
        self.engines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The configuration file that counts, if there is one.
    ///
    /// # Errors
    /// Usage, if the one that was named is not there.
    pub(crate) fn config_file(&self) -> Result<Option<PathBuf>, CliError> {
        if let Some(named) = &self.global.config {
            let path = self.dir.join(named);
            if path.is_file() {
                return Ok(Some(path));
            }
            return Err(CliError::usage(format!("there is no configuration `{}`", named.display()))
                .hint(format!("`backup init --config {}` writes one", named.display())));
        }
        Ok(PLACES.iter().map(|place| self.dir.join(place)).find(|path| path.is_file()))
    }

    /// For verbs that cannot be told by `--store` what to work on.
    ///
    /// # Errors
    /// Usage, if they are.
    pub(crate) fn refuse_store(&self, why: &str, hint: &str) -> Result<(), CliError> {
        match &self.global.store {
            Some(_) => Err(CliError::usage(format!("--store: {why}")).hint(hint)),
            None => Ok(()),
        }
    }

    /// Opens the configuration, its store (or the one of `--store`) and the engine. Without a configuration file: what an earlier `backup run`
    /// without one has left in `./backups`.
    pub(crate) async fn session(&self) -> Result<Session, CliError> {
        let prepared = self.prepared()?;
        let Some(name) = &self.global.store else { return self.open(prepared, Opening::Existing).await };
        let opened = self.open(prepared, Opening::Existing).await;
        opened.map_err(|e| e.about(&format!("store `{name}`")))
    }

    /// The same without opening anything.
    pub(crate) fn prepared(&self) -> Result<Prepared, CliError> {
        let mut prepared = match self.config_file()? {
            Some(file) => self.prepare_file(&file)?,
            None => self.prepare(zero::remembered(self)?, &self.dir, None)?,
        };
        if let Some(name) = &self.global.store {
            prepared.plan = prepared.plan.for_store(name)?;
        }
        Ok(prepared)
    }

    /// Opens a configuration file.
    pub(crate) async fn open_file(&self, file: &Path, opening: Opening) -> Result<Session, CliError> {
        self.open(self.prepare_file(file)?, opening).await
    }

    /// Reads a configuration file. Touches no store.
    pub(crate) fn prepare_file(&self, file: &Path) -> Result<Prepared, CliError> {
        let shown = file.strip_prefix(&self.dir).unwrap_or(file).display().to_string();
        let text = std::fs::read_to_string(file)
            .map_err(|e| CliError::usage(format!("cannot read the configuration `{shown}`")).because(&e))?;
        let config = Config::parse(&text, &shown)?;
        // Where the file really is: relative paths in it must not depend on how it was named.
        let file = file.canonicalize().unwrap_or_else(|_| file.to_owned());
        let base = file.parent().unwrap_or(&self.dir).to_owned();
        self.prepare(config, &base, Some(file))
    }

    /// Resolves a configuration; `file` is where it comes from, if it is one.
    pub(crate) fn prepare(
        &self,
        mut config: Config,
        base: &Path,
        file: Option<PathBuf>,
    ) -> Result<Prepared, CliError> {
        let intervals = config.intervals.keys().cloned().collect();
        let configuration = match &file {
            Some(file) => configuration::add(&mut config, file, self.cli.adapters.kinds())?,
            None => None,
        };
        let written = Written { config: config.clone(), base: base.to_owned() };
        let mut plan = config.resolve(&self.cli.adapters, base)?;
        let given = self.global.identity.iter().map(|file| SecretRef::File(self.dir.join(file)));
        plan.keys.identities.extend(given);
        let state_dir = match &plan.state_dir {
            Some(dir) => dir.clone(),
            None => environment::default_state_dir()?,
        };
        Ok(Prepared { plan, intervals, file, configuration, state_dir, written })
    }

    /// Opens a configuration.
    pub(crate) async fn open(&self, prepared: Prepared, opening: Opening) -> Result<Session, CliError> {
        let catalog = self.catalog(&prepared.plan.store, opening).await?;
        self.assemble(prepared, catalog)
    }

    /// Opens the store.
    pub(crate) async fn catalog(&self, store: &StoreConfig, opening: Opening) -> Result<Catalog, CliError> {
        let store = self.open_store(store, opening).await?;
        match opening {
            Opening::Existing => Ok(Catalog::open(store, Arc::clone(&self.clock)).await?),
            Opening::Init => {
                let (catalog, new) = Catalog::init(store, Arc::clone(&self.clock)).await?;
                let what = if new { "made a new store" } else { "found the store" };
                self.ui.note(&format!("{what} at {}", catalog.store()));
                Ok(catalog)
            }
        }
    }

    /// Opens a configuration, if need be without its store: for what must be done also while that cannot be reached.
    pub(crate) async fn open_at_any_rate(&self, prepared: Prepared) -> Result<Session, CliError> {
        let opening = self.catalog(&prepared.plan.store, Opening::Existing);
        let why = match tokio::time::timeout(STORE_PATIENCE, opening).await {
            Ok(Ok(catalog)) => return self.assemble(prepared, catalog),
            Ok(Err(e)) => e.message,
            Err(_) => "the store does not answer".to_owned(),
        };
        self.ui.warn(&format!("no report of this will be kept: {why}"));
        let nowhere = Arc::new(MemoryStore::new());
        let (catalog, _) = Catalog::init(nowhere, Arc::clone(&self.clock)).await?;
        self.assemble(prepared, catalog)
    }

    /// The engine over a configuration and a catalog.
    pub(crate) fn assemble(&self, prepared: Prepared, catalog: Catalog) -> Result<Session, CliError> {
        let Prepared { plan, intervals, file, configuration, state_dir, written } = prepared;
        let state = StateDir::open(state_dir)?;
        let catalog = match state.cache(catalog.store_id()) {
            // It has an id only once it was reached.
            _ if catalog.store_id().is_empty() => catalog,
            Ok(cache) => catalog.with_cache(cache),
            Err(e) => {
                tracing::debug!(error = %e, "There is no cache.");
                catalog
            }
        };
        let configured = file.is_some();
        let watchdog: Arc<dyn Watchdog> = match (&self.cli.watchdog, file) {
            (Some(watchdog), _) => Arc::clone(watchdog),
            (None, Some(file)) => {
                Arc::new(OwnWatchdog::new(file, &state, &self.global, Arc::clone(&self.ui)))
            }
            // What nobody configured is never stopped.
            (None, None) => Arc::new(NoWatchdog),
        };
        let stack = crate::containers::stack(&plan);
        let mut engine = Engine::builder(plan, catalog, state)
            .clock(Arc::clone(&self.clock))
            .events(self.events())
            .secrets(Arc::new(Secrets))
            .watchdog(watchdog)
            .stores(self.cli.stores.clone())
            .tool(format!("{} {}", self.cli.name, self.cli.version))
            .lock_patience(self.global.wait);
        #[cfg(feature = "full")]
        {
            engine = engine.secret_history(Arc::new(crate::secrets::then::Past));
        }
        if let Some(stack) = stack {
            engine = engine.stack(stack);
        }
        let mut engines = self.engines();
        if let Some(first) = engines.first() {
            engine = engine.in_emergencies_with(first);
        }
        let engine = engine.build();
        engines.push(engine.clone());
        drop(engines);
        Ok(Session { engine, intervals, configured, configuration, written })
    }

    async fn open_store(&self, store: &StoreConfig, opening: Opening) -> Result<Arc<dyn Store>, CliError> {
        if opening == Opening::Init
            && let Some(root) = store.local_path()
        {
            let made = LocalStore::new(&root).create_root().await;
            made.map_err(|e| {
                CliError::failed(format!("cannot make the store `{}`", root.display())).because(&e)
            })?;
            keep_out_of_git(&root)?;
        }
        Ok(self.cli.stores.open(&self.with_secrets(store).await?).await?)
    }

    /// A store with the secrets among its options.
    pub(crate) async fn with_secrets(&self, store: &StoreConfig) -> Result<StoreConfig, CliError> {
        // A secret may be the output of a program.
        let named = store.clone();
        let resolved = tokio::task::spawn_blocking(move || named.resolved(&Secrets)).await;
        Ok(resolved
            .map_err(|e| CliError::failed("cannot look up the secrets of the store").because(&e))??)
    }

    fn events(&self) -> Arc<dyn EventSink> {
        if self.ui.is_json() {
            Arc::new(JsonEvents::new(Arc::clone(&self.ui)))
        } else {
            Arc::new(HumanEvents::new(Arc::clone(&self.ui)))
        }
    }

    /// Asks, unless `--yes` answered already.
    pub(crate) async fn confirm(&self, question: &str) -> Result<bool, CliError> {
        if self.global.yes {
            return Ok(true);
        }
        let question = question.to_owned();
        let answer = self.asking(move |ui| ui.confirm(&question)).await?;
        if !answer {
            self.ui.note("nothing was changed");
        }
        Ok(answer)
    }

    /// Lets a person choose one of `lines`.
    pub(crate) async fn choose(&self, question: &str, lines: Vec<String>) -> Result<Option<usize>, CliError> {
        let question = question.to_owned();
        self.asking(move |ui| ui.choose(&question, lines)).await
    }

    /// Asks for a text.
    pub(crate) async fn ask(&self, question: &str) -> Result<Option<String>, CliError> {
        let question = question.to_owned();
        self.asking(move |ui| ui.ask(&question)).await
    }

    /// People take their time: that must not hold up anything else.
    async fn asking<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Ui) -> Result<T, CliError> + Send + 'static,
    ) -> Result<T, CliError> {
        let ui = Arc::clone(&self.ui);
        let answer = tokio::task::spawn_blocking(move || ask(&ui)).await;
        answer.map_err(|e| CliError::failed("the question could not be asked").because(&e))?
    }
}

impl Session {
    /// The plan.
    pub(crate) fn plan(&self) -> &BackupPlan {
        self.engine.plan()
    }

    /// Makes sure that services are configured.
    ///
    /// # Errors
    /// Usage; names what was probably meant.
    pub(crate) fn check_services<'a>(
        &self,
        names: impl IntoIterator<Item = &'a ServiceName>,
    ) -> Result<(), CliError> {
        for name in names {
            self.plan().service(name.as_str())?;
        }
        Ok(())
    }
}

/// Backups do not belong into a Git repository: a store within a work tree ignores itself.
fn keep_out_of_git(root: &Path) -> Result<(), CliError> {
    let ignore = root.join(".gitignore");
    if !root.ancestors().any(|dir| dir.join(".git").exists()) || ignore.exists() {
        return Ok(());
    }
    crate::write::create(&ignore, "*\n")
        .map_err(|e| CliError::failed(format!("cannot write `{}`", ignore.display())).because(&e))
}
