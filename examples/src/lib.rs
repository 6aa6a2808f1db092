//! What the examples share, and the proof that the Rust in the README compiles. The examples themselves are in `examples/`
//! beside this package's `src/`.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use backup_core::catalog::Catalog;
use backup_core::config::Config;
use backup_core::engine::{BackupRequest, Engine, RestoreRequest, RunReport};
use backup_core::state::StateDir;
use backup_core::{AdapterConfig, AdapterRegistry, MemoryStore, Outcome, Store, SystemClock};

/// Runs the README's snippets as doc tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// An engine over `store` for the services that `config` (TOML) describes. Everything else that it keeps, and what relative
/// paths are relative to, is in `dir`.
///
/// # Errors
/// Those of the configuration, and of making the state directory and the store.
pub async fn engine(
    config: &str,
    adapters: &AdapterRegistry,
    store: Arc<dyn Store>,
    dir: &Path,
) -> Result<Engine, Box<dyn Error>> {
    let plan = Config::parse(config, "backup.toml")?.resolve(adapters, dir)?;
    let (catalog, _new) = Catalog::init(store, Arc::new(SystemClock)).await?;
    Ok(Engine::builder(plan, catalog, StateDir::open(dir.join("state"))?).build())
}

/// Backs up one service of kind `C` into memory, restores it into a fresh directory, and compares `file` there with
/// `expected`. `keys` are the service's own keys, in TOML.
///
/// # Errors
/// Whatever went wrong on the way, and if the file is another.
pub async fn round_trip<C: AdapterConfig>(
    keys: &str,
    file: &str,
    expected: &str,
) -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let adapters = AdapterRegistry::new().with::<C>();
    let config = format!("store.url = 'memory://'\n[services.example]\nkind = '{}'\n{keys}\n", C::KIND);
    let engine = engine(&config, &adapters, Arc::new(MemoryStore::new()), dir.path()).await?;
    let restored = dir.path().join("restored");

    done(&engine.back_up(&BackupRequest::new("manual".parse()?)).await?)?;
    let mut request = RestoreRequest::new("example".parse()?);
    request.to = Some(restored.clone());
    let preview = engine.plan_restore(&request).await?;
    done(&engine.restore(&preview).await?)?;

    engine.shutdown().await;
    let found = fs::read_to_string(restored.join(file))?;
    if found == expected { Ok(()) } else { Err(format!("restored `{found}` instead of `{expected}`").into()) }
}

fn done(report: &RunReport) -> Result<(), String> {
    let error = report.steps.iter().find(|step| step.outcome != Outcome::Ok);
    error
        .map_or(Ok(()), |step| Err(format!("{}: {}", step.kind, step.error.as_deref().unwrap_or("not done"))))
}
