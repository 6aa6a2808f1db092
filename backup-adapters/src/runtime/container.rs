//! The keys by which configurations name a container: `container`, and `docker`, the engine that it is on.

use backup_core::ConfigError;
use serde::Deserialize;

use super::{DockerRuntime, ServiceSecret};

/// The address of a Docker engine: `unix:///path`, or `tcp://host:port` without encryption.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct EngineUrl(String);

impl TryFrom<String> for EngineUrl {
    type Error = &'static str;

    fn try_from(url: String) -> Result<Self, Self::Error> {
        let socket = url.strip_prefix("unix://").unwrap_or(&url).starts_with('/');
        let address = url.strip_prefix("tcp://").or_else(|| url.strip_prefix("http://"));
        if socket || address.is_some_and(|a| !a.is_empty() && !a.starts_with('/')) {
            Ok(Self(url))
        } else {
            Err("a Docker engine is `unix:///path` or `tcp://host:port`")
        }
    }
}

impl EngineUrl {
    /// `container` on this engine, or on the local one.
    #[must_use]
    pub fn container(engine: Option<&Self>, container: &str) -> DockerRuntime {
        let runtime = DockerRuntime::new(container);
        match engine {
            Some(Self(url)) => runtime.with_engine(url.as_str()),
            None => runtime,
        }
    }
}

/// The container that the keys `container` and `docker` of a service name; `None` if it runs in none.
///
/// # Errors
/// An empty `container`; `docker`, or a `password` that is kept in a container, without one.
pub fn container_of(
    container: Option<&str>,
    docker: Option<&EngineUrl>,
    password: Option<&ServiceSecret>,
) -> Result<Option<DockerRuntime>, ConfigError> {
    match container {
        Some("") => Err(ConfigError::new("`container` is empty").at("container")),
        Some(name) => Ok(Some(EngineUrl::container(docker, name))),
        None if docker.is_some() => Err(ConfigError::new("`docker` needs `container`").at("docker")),
        None if password.is_some_and(ServiceSecret::in_container) => {
            Err(ConfigError::new("a password in a container needs `container`").at("password"))
        }
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn addresses_of_engines() {
        for good in ["unix:///run/user/1000/docker.sock", "/var/run/docker.sock", "tcp://10.0.0.1:2375"] {
            assert_eq!(EngineUrl::try_from(good.to_owned()), Ok(EngineUrl(good.to_owned())));
        }
        for wrong in ["", "docker.sock", "unix://docker.sock", "tcp://", "tcp:///x", "ssh://root@host"] {
            assert!(EngineUrl::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_container_is_on_the_engine_that_is_named() {
        let url = EngineUrl("tcp://10.0.0.1:2375".to_owned());
        let docker = |engine| container_of(Some("c"), engine, None).unwrap().unwrap().program();
        assert_eq!(docker(None), "docker");
        assert_eq!(docker(Some(&url)), "docker -H tcp://10.0.0.1:2375");
    }

    #[test]
    fn what_needs_a_container() {
        let url = EngineUrl("tcp://10.0.0.1:2375".to_owned());
        let inside = ServiceSecret::ContainerFile(PathBuf::from("/run/secrets/p"));
        assert!(container_of(None, None, None).unwrap().is_none());
        assert!(container_of(Some("c"), Some(&url), Some(&inside)).unwrap().is_some());
        for (container, docker, password) in
            [(Some(""), None, None), (None, Some(&url), None), (None, None, Some(&inside))]
        {
            container_of(container, docker, password).unwrap_err();
        }
    }
}
