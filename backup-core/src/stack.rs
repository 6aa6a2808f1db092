//! [`Stack`]: what services run in, where something can make that anew: the containers of a Compose project. Recoveries use
//! it on a host that has lost more than data.

use std::fmt;
use std::path::PathBuf;

use async_trait::async_trait;

use crate::error::AdapterError;

/// Makes, starts and stops the parts of a host's stack.
///
/// Some parts are what configured services run in ([`ServiceAdapter::container`](crate::ServiceAdapter::container)); all
/// others are applications, which use these.
#[async_trait]
pub trait Stack: fmt::Debug + Send + Sync + 'static {
    /// The parts and how they are. Changes nothing.
    ///
    /// # Errors
    /// `InvalidConfig` if its definition cannot be read, `Unavailable` if nobody answers.
    async fn parts(&self) -> Result<Vec<Part>, AdapterError>;

    /// Makes what is missing of these parts, and starts them, in the order that they need among each other. Others stay as
    /// they are, also those that these need. One that runs stays as it is, too.
    ///
    /// # Errors
    /// The program's own words: an image that is missing, a port that is taken.
    async fn start(&self, parts: &[String]) -> Result<(), AdapterError>;

    /// Stops these parts; each has the time to end that its definition gives it.
    ///
    /// # Errors
    /// The program's own words.
    async fn stop(&self, parts: &[String]) -> Result<(), AdapterError>;

    /// The folder of this host in which parts keep their data, if nothing else is said. `None` if that is nowhere here, or not
    /// known.
    async fn data_root(&self) -> Option<PathBuf> {
        None
    }

    /// The last lines that a part has written, the newest last. Empty if there are none to be had.
    async fn last_lines(&self, part: &str) -> Vec<String>;
}

/// A part of a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Part {
    /// What its definition calls it.
    pub name: String,
    /// How configurations may name its container: names, and `key=value` for labels.
    pub containers: Vec<String>,
    /// Its image, if it has one of a name.
    pub image: Option<String>,
    /// Whether that image is on this host.
    pub has_image: bool,
    /// How it is.
    pub state: PartState,
}

impl Part {
    /// A part that does not exist yet.
    pub fn new(name: impl Into<String>) -> Self {
        let state = PartState::Missing;
        Self { name: name.into(), containers: Vec::new(), image: None, has_image: true, state }
    }

    /// Whether `container`, as a configuration names it, is this part's.
    #[must_use]
    pub fn is(&self, container: &str) -> bool {
        let wanted = container.strip_prefix("label=").unwrap_or(container);
        self.containers.iter().any(|c| c == wanted)
    }
}

/// How a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PartState {
    /// It has to be made.
    Missing,
    /// It does not run; with its exit code, if it ever ran.
    Stopped(Option<i64>),
    /// It runs, and its own check has not passed yet.
    Starting,
    /// It runs, and its own check says that it does not work.
    Unhealthy,
    /// It runs, and its own check passes if it has one.
    Running,
}

impl PartState {
    /// Whether it runs, however well.
    #[must_use]
    pub fn runs(self) -> bool {
        matches!(self, Self::Starting | Self::Unhealthy | Self::Running)
    }
}

impl fmt::Display for PartState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("does not exist"),
            Self::Stopped(Some(code)) => write!(f, "has ended with exit code {code}"),
            Self::Stopped(None) => f.write_str("does not run"),
            Self::Starting => f.write_str("is starting"),
            Self::Unhealthy => f.write_str("is unhealthy"),
            Self::Running => f.write_str("runs"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_known_by_names_and_labels() {
        let mut part = Part::new("redis");
        part.containers = vec!["app-redis-1".into(), "com.docker.compose.service=redis".into()];
        assert!(part.is("app-redis-1") && part.is("label=com.docker.compose.service=redis"));
        assert!(part.is("com.docker.compose.service=redis") && !part.is("redis") && !part.is(""));
    }
}
