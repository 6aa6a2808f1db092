//! The configuration as a service of its own: part of every run, so that an empty machine can be given back what it needs
//! to be recovered (`backup bootstrap`).

use std::path::{Path, PathBuf};

use backup_core::config::{ComposeConfig, Config, ServiceConfig};
use backup_core::{ConfigError, ServiceName};

/// The name of the service. Who configures one of this name has it their way; `backup_configuration = false` means none.
pub(crate) const SERVICE: &str = "configuration";

/// Small files, and a new version only when they changed: what dotenv files have.
const KIND: &str = "env";

/// Adds the service to `config`, which was read from `file`, and to each of its intervals: the file itself, the Compose files
/// that it names, and their file of variables unless a service of the kind `env` is there for such files. `None` if there is one already, if it is not
/// wanted, or without an adapter for it.
pub(crate) fn add(
    config: &mut Config,
    file: &Path,
    kinds: impl IntoIterator<Item = &'static str>,
) -> Result<Option<ServiceName>, ConfigError> {
    let name = ServiceName::new(SERVICE)?;
    if !config.backup_configuration
        || config.services.contains_key(&name)
        || !kinds.into_iter().any(|kind| kind == KIND)
    {
        return Ok(None);
    }
    let base = file.parent().unwrap_or(Path::new("/"));
    let compose = config.compose.iter().flat_map(|c| &c.files).map(|f| base.join(f));
    let mut paths: Vec<PathBuf> = std::iter::once(file.to_owned()).chain(compose).collect();
    // Containers are made from it, too: whoever has no service for dotenv files would miss it.
    if !config.services.values().any(|service| service.enabled && service.kind == KIND) {
        paths.extend(config.compose.as_ref().and_then(|c| variables(c, base)));
    }
    // What is no UTF-8 could not be written into a configuration either.
    let Some(paths) = paths.iter().map(|p| p.to_str().map(str::to_owned)).collect::<Option<Vec<String>>>()
    else {
        return Ok(None);
    };
    let mut service = ServiceConfig::new(KIND, settings(paths));
    // A host that reads it has it. To replace it in the middle of a recovery would undo what somebody has just mended.
    service.recovers = false;
    config.add_service(name.clone(), service)?;
    for interval in config.intervals.values_mut() {
        interval.services.push(name.clone());
    }
    Ok(Some(name))
}

/// The file with values for the variables of a Compose project, if there is one.
fn variables(compose: &ComposeConfig, base: &Path) -> Option<PathBuf> {
    let beside = || compose.files.first().map(|f| f.with_file_name(".env"));
    compose.env_file.clone().or_else(beside).map(|file| base.join(file)).filter(|file| file.is_file())
}

/// The settings of the service for these paths.
pub(crate) fn settings(paths: Vec<String>) -> toml::Table {
    let mut settings = toml::Table::new();
    settings.insert("paths".to_owned(), paths.into());
    settings
}
