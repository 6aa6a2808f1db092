//! Secrets as they were when a backup was made, from the backups of dotenv files. A server that keeps its passwords with
//! its data has them again after a restore.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use backup_adapters::env::{self, DotenvFile};
use backup_core::engine::Selector;
use backup_core::{
    AdapterConfig, AdapterError, ConfigError, Engine, Secret, SecretHistory, SecretRef, SecretResolver,
    Timestamp,
};

use super::dotenv;

/// Reads them when a restore asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Past;

#[async_trait]
impl SecretHistory for Past {
    async fn at(&self, engine: &Engine, at: Timestamp) -> Option<Arc<dyn SecretResolver>> {
        secrets(engine, at).await
    }
}

/// Knows the files of one moment.
#[derive(Debug)]
struct Then(Vec<DotenvFile>);

/// What dotenv files said at `at`, as far as services of the kind `env` have them. `None` if there are none: nobody has to
/// back them up, and a restore must not fail because of that.
async fn secrets(engine: &Engine, at: Timestamp) -> Option<Arc<dyn SecretResolver>> {
    let mut files = Vec::new();
    for service in engine.plan().services.values().filter(|s| s.adapter.kind() == env::EnvConfig::KIND) {
        let read = async {
            let source = engine.source(&service.name, &Selector::At(at)).await;
            let source = source.map_err(|e| {
                AdapterError::new(backup_core::AdapterErrorKind::NotFound, "no dotenv files").with_source(e)
            })?;
            env::read(&source).await
        };
        match read.await {
            Ok(found) => files.extend(found.into_iter().filter(|f| is_dotenv(&f.path))),
            Err(error) => {
                tracing::debug!(error = backup_core::chain(&error), service = %service.name, "No secrets of then.");
            }
        }
    }
    (!files.is_empty()).then(|| Arc::new(Then(files)) as Arc<dyn SecretResolver>)
}

impl SecretResolver for Then {
    fn resolve(&self, reference: &SecretRef) -> Result<Secret, ConfigError> {
        let (path, key) = match reference {
            SecretRef::Env(name) => (None, name),
            SecretRef::Dotenv { path, key } => (Some(path.as_path()), key),
            SecretRef::File(_) | SecretRef::Command(_) => {
                return Err(ConfigError::new("only values of dotenv files are known as they were"));
            }
        };
        // The file that is named comes first; who names none means the variable, wherever it came from.
        let named = |file: &&DotenvFile| path.is_some_and(|path| same(path, &file.path));
        let (first, others): (Vec<_>, Vec<_>) = self.0.iter().partition(named);
        let mut values = first.into_iter().chain(others).filter_map(|f| dotenv::value(f.text.expose(), key));
        match values.find(|value| !value.is_empty()) {
            Some(value) => Ok(Secret::new(value)),
            None => Err(ConfigError::new(format!("no dotenv file had `{key}`"))),
        }
    }
}

/// Whether it may be one: the service that has the configuration has other files, too.
fn is_dotenv(path: &Path) -> bool {
    !path.extension().is_some_and(|e| e == "toml" || e == "yaml" || e == "yml")
}

fn same(path: &Path, other: &Path) -> bool {
    path == other || path.canonicalize().is_ok_and(|real| real == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_file_comes_first() {
        let file = |path: &str, text: &str| DotenvFile { path: path.into(), text: Secret::new(text) };
        let then = Then(vec![file("/a/.env", "P=of-a\nONLY_A=x\n"), file("/b/.env", "P=of-b\nE=\n")]);
        let dotenv = |path: &str, key: &str| {
            let reference = SecretRef::Dotenv { path: path.into(), key: key.to_owned() };
            then.resolve(&reference).ok().map(|s| s.expose().to_owned())
        };
        assert_eq!(dotenv("/b/.env", "P").as_deref(), Some("of-b"));
        assert_eq!(dotenv("/b/.env", "ONLY_A").as_deref(), Some("x"));
        assert_eq!(dotenv("/b/.env", "E"), None);
        assert_eq!(then.resolve(&SecretRef::Env("P".into())).unwrap().expose(), "of-a");
        let unknown = then.resolve(&SecretRef::File("/b/.env".into())).unwrap_err().to_string();
        assert!(!unknown.contains("of-b") && !format!("{then:?}").contains("of-b"));
    }
}
