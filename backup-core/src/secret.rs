//! Secrets: values that never show, and references to where they are kept.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;

use crate::engine::Engine;
use crate::error::ConfigError;
use crate::id::Timestamp;

/// A value that is redacted in `Debug` and cannot be serialised. Read it with [`Secret::expose`].
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `value`.
    #[must_use]
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself: for the wire or a child's environment, never for argv, logs or errors.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Where a secret is kept, as the configuration says it: `{ env = "NAME" }`, `{ file = "path" }`,
/// `{ command = ["prog", "arg"] }` or `{ dotenv = ".env", key = "NAME" }`. Never the secret itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretRef {
    /// A variable of the process's environment.
    Env(String),
    /// A file; one trailing line break is dropped. Relative to the configuration file.
    File(PathBuf),
    /// A program that prints it; one trailing line break is dropped.
    Command(Vec<String>),
    /// One key of a dotenv file. Relative to the configuration file.
    Dotenv {
        /// The file.
        path: PathBuf,
        /// The key in it.
        key: String,
    },
}

impl<'de> Deserialize<'de> for SecretRef {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            env: Option<String>,
            file: Option<PathBuf>,
            command: Option<Vec<String>>,
            dotenv: Option<PathBuf>,
            key: Option<String>,
        }
        let raw = Raw::deserialize(d)?;
        match (raw.env, raw.file, raw.command, raw.dotenv, raw.key) {
            (Some(name), None, None, None, None) => Ok(Self::Env(name)),
            (None, Some(path), None, None, None) => Ok(Self::File(path)),
            (None, None, Some(argv), None, None) if !argv.is_empty() => Ok(Self::Command(argv)),
            (None, None, None, Some(path), Some(key)) => Ok(Self::Dotenv { path, key }),
            _ => Err(serde::de::Error::custom(
                "a secret is one of { env = … }, { file = … }, { command = [ … ] }, { dotenv = …, key = … }",
            )),
        }
    }
}

impl SecretRef {
    /// Makes relative paths relative to `base`, the folder of the configuration file.
    #[must_use]
    pub fn relative_to(self, base: &Path) -> Self {
        match self {
            Self::File(p) => Self::File(base.join(p)),
            Self::Dotenv { path, key } => Self::Dotenv { path: base.join(path), key },
            other => other,
        }
    }

    /// The references among a service's settings, by key; their paths relative to `base`.
    #[must_use]
    pub fn among(settings: &toml::Table, base: &Path) -> BTreeMap<String, Self> {
        let reference = |value: &toml::Value| Self::deserialize(value.clone()).ok();
        let found = settings.iter().filter_map(|(key, value)| Some((key.clone(), reference(value)?)));
        found.map(|(key, reference)| (key, reference.relative_to(base))).collect()
    }

    /// Why it cannot be had here; `None` if it can, or if nobody can tell yet: programs that print one are not called, and a
    /// dotenv file that is not there may be one that is restored first. Reads files.
    #[must_use]
    pub fn missing(&self, secrets: &dyn SecretResolver) -> Option<String> {
        match self {
            Self::Command(_) => None,
            Self::Dotenv { path, .. } if !path.exists() => None,
            other => secrets.resolve(other).err().map(|e| e.to_string()),
        }
    }
}

/// Resolves references. The library reads no environment: the binary passes a resolver that may.
pub trait SecretResolver: fmt::Debug + Send + Sync + 'static {
    /// The secret behind `reference`, read anew at each call, so that a rotation needs no restart.
    ///
    /// # Errors
    /// [`ConfigError`] that names the reference (the variable, the file), never a value.
    fn resolve(&self, reference: &SecretRef) -> Result<Secret, ConfigError>;
}

/// Knows secrets as they were: see [`OpContext::secrets_then`](crate::OpContext::secrets_then).
#[async_trait]
pub trait SecretHistory: fmt::Debug + Send + Sync + 'static {
    /// What was valid at `at`; `engine` reads backups. `None` if nobody knows, which must not keep a restore from going on.
    async fn at(&self, engine: &Engine, at: Timestamp) -> Option<Arc<dyn SecretResolver>>;
}

/// A resolver that knows no secrets: for callers without any.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSecrets;

impl SecretResolver for NoSecrets {
    fn resolve(&self, _: &SecretRef) -> Result<Secret, ConfigError> {
        Err(ConfigError::new("this program resolves no secrets"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "Secret(…)");
    }

    #[test]
    fn references_parse_and_mixtures_do_not() {
        let parse = |s: &str| toml::from_str::<std::collections::BTreeMap<String, SecretRef>>(s);
        assert_eq!(parse("p = { env = 'A' }").unwrap()["p"], SecretRef::Env("A".into()));
        assert!(parse("p = { env = 'A', file = 'b' }").is_err());
        assert!(parse("p = { dotenv = '.env' }").is_err());
        assert!(parse("p = 'plain text'").is_err());
    }
}
