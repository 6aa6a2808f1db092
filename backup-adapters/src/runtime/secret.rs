//! Secrets of services: kept where the configuration says, which may be the service's own container.

use std::path::{Path, PathBuf};

use backup_core::{AdapterError, AdapterErrorKind, OpContext, Secret, SecretRef};
use serde::Deserialize;
use tokio::task::spawn_blocking;

use super::DockerRuntime;

/// The longest file that is taken for a secret, in bytes.
const MAX_FILE: usize = 64 * 1024;

const FORMS: &str = "a secret is one of { env = … }, { file = … }, { command = [ … ] }, { dotenv = …, key = … }, \
                     { container_env = … }, { container_file = … }";

/// Where the secret of a service is kept: as [`SecretRef`], or in its container as `{ container_env = "NAME" }` or
/// `{ container_file = "/run/secrets/x" }`. Never the secret itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceSecret {
    /// On this host.
    Host(SecretRef),
    /// A variable of the environment of the service's container.
    ContainerEnv(String),
    /// A file in the service's container; one trailing line break is dropped.
    ContainerFile(PathBuf),
}

impl<'de> Deserialize<'de> for ServiceSecret {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Host(SecretRef),
            Env(Env),
            File(File),
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Env {
            container_env: String,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            container_file: PathBuf,
        }
        // Says what is allowed, and never shows the value, which may be a password in plain.
        Ok(match Raw::deserialize(d).map_err(|_| serde::de::Error::custom(FORMS))? {
            Raw::Host(reference) => Self::Host(reference),
            Raw::Env(Env { container_env }) => Self::ContainerEnv(container_env),
            Raw::File(File { container_file }) => Self::ContainerFile(container_file),
        })
    }
}

impl ServiceSecret {
    /// Makes relative paths of this host relative to `base`, the folder of the configuration file.
    #[must_use]
    pub fn relative_to(self, base: &Path) -> Self {
        match self {
            Self::Host(reference) => Self::Host(reference.relative_to(base)),
            other => other,
        }
    }

    /// Whether it is kept in the service's container.
    #[must_use]
    pub fn in_container(&self) -> bool {
        !matches!(self, Self::Host(_))
    }

    /// The secret as it was when the backup was made that is restored. `None` if nobody knows.
    pub async fn resolve_then(&self, cx: &OpContext) -> Option<Secret> {
        let reference = match self {
            Self::Host(reference) => reference.clone(),
            // Compose fills a container's environment from the `.env` that has the same names.
            Self::ContainerEnv(name) => SecretRef::Env(name.clone()),
            Self::ContainerFile(_) => return None,
        };
        let secrets = std::sync::Arc::clone(cx.secrets_then.as_ref()?);
        spawn_blocking(move || secrets.resolve(&reference)).await.ok()?.ok()
    }

    /// The secret, read anew at each call.
    ///
    /// # Errors
    /// `InvalidConfig` if there is none where the reference points to, or `container` is missing; errors of the runtime.
    pub async fn resolve(
        &self,
        cx: &OpContext,
        container: Option<&DockerRuntime>,
    ) -> Result<Secret, AdapterError> {
        let missing = |what: String| AdapterError::new(AdapterErrorKind::InvalidConfig, what);
        let of_container = |container: Option<&DockerRuntime>| {
            container.cloned().ok_or_else(|| missing("a secret in a container needs `container`".to_owned()))
        };
        match self {
            Self::Host(reference) => {
                let (secrets, reference) = (std::sync::Arc::clone(&cx.secrets), reference.clone());
                // May run a program.
                let resolved = spawn_blocking(move || secrets.resolve(&reference));
                let resolved = cx.within(resolved).await?.map_err(|e| {
                    AdapterError::new(AdapterErrorKind::Other, "cannot read the password").with_source(e)
                })?;
                resolved.map_err(|e| missing("cannot read the password".to_owned()).with_source(e))
            }
            Self::ContainerEnv(name) => {
                let container = of_container(container)?;
                let found = cx.within(container.env(name)).await??;
                found.ok_or_else(|| {
                    missing(format!("container `{}` has no variable `{name}`", container.container()))
                })
            }
            Self::ContainerFile(path) => {
                let container = of_container(container)?;
                let bytes = cx.within(container.read_file(path, MAX_FILE)).await??;
                let text = String::from_utf8(bytes)
                    .map_err(|_| missing(format!("`{}` in the container is not UTF-8", path.display())))?;
                let text = text.strip_suffix('\n').unwrap_or(&text);
                Ok(Secret::new(text.strip_suffix('\r').unwrap_or(text)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_parse_and_mixtures_do_not() {
        let parse = |s: &str| toml::from_str::<std::collections::BTreeMap<String, ServiceSecret>>(s);
        let (env, file) = (parse("p = { container_env = 'A' }"), parse("p = { container_file = '/a' }"));
        assert_eq!(env.unwrap()["p"], ServiceSecret::ContainerEnv("A".into()));
        assert_eq!(file.unwrap()["p"], ServiceSecret::ContainerFile("/a".into()));
        let host = parse("p = { env = 'A' }").unwrap().remove("p").unwrap();
        assert_eq!(host, ServiceSecret::Host(SecretRef::Env("A".into())));
        for wrong in [
            "{ env = 'A', container_env = 'B' }",
            "{ container_env = 'A', container_file = 'B' }",
            "{ dotenv = '.env' }",
            "{ container_env = 7 }",
            "{}",
            "'plain'",
        ] {
            let e = parse(&format!("p = {wrong}")).unwrap_err();
            assert_eq!(e.message(), FORMS);
        }
    }
}
