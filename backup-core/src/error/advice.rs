//! Causes that know what to do.

use std::error::Error;

use super::{BoxError, ConfigError};

/// What to do about `error`, if one of its causes knows.
#[must_use]
pub fn advice<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a str> {
    let mut next = Some(error);
    while let Some(e) = next {
        let config = e.downcast_ref::<ConfigError>().and_then(ConfigError::help);
        if let Some(help) = config.or_else(|| e.downcast_ref::<Advice>().map(Advice::help)) {
            return Some(help);
        }
        next = e.source();
    }
    None
}

/// A cause that knows what to do: what stands between an error of ours and the words of somebody else's server.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Advice {
    message: String,
    help: String,
    #[source]
    source: Option<BoxError>,
}

impl Advice {
    /// What is wrong, as a cause, and what to do about it.
    pub fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: help.into(), source: None }
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What to do.
    #[must_use]
    pub fn help(&self) -> &str {
        &self.help
    }
}
