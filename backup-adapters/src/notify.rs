//! Channels to people: one a file.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::config::NotifyConfig;
use backup_core::{AdapterError, SecretResolver};

mod ntfy;

pub use ntfy::Ntfy;

/// How much it matters to a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Good to know.
    Normal,
    /// Look at it when you can.
    High,
    /// Now.
    Urgent,
}

/// What a person is told. Holds no secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// One line.
    pub title: String,
    /// The rest.
    pub text: String,
    /// How much it matters.
    pub urgency: Urgency,
}

/// Tells people.
#[async_trait]
pub trait Channel: fmt::Debug + Send + Sync + 'static {
    /// What it is called, e.g. `ntfy`.
    fn name(&self) -> &'static str;

    /// Sends a message. Has no deadline of its own.
    ///
    /// # Errors
    /// One line that shows no secret, a topic's name included.
    async fn send(&self, message: &Message) -> Result<(), AdapterError>;
}

/// The channels that are configured.
#[must_use]
pub fn channels(config: &NotifyConfig, secrets: &Arc<dyn SecretResolver>) -> Vec<Arc<dyn Channel>> {
    let ntfy =
        config.ntfy.clone().map(|ntfy| Arc::new(Ntfy::new(ntfy, Arc::clone(secrets))) as Arc<dyn Channel>);
    ntfy.into_iter().collect()
}

/// Sends a message over every channel at once. Says over which; `Unsupported` if there is none.
///
/// # Errors
/// That of the first channel that failed, unless another one worked.
pub async fn tell(channels: &[Arc<dyn Channel>], message: &Message) -> Result<String, AdapterError> {
    if channels.is_empty() {
        return Err(AdapterError::unsupported("nobody is told: [notify.ntfy] with a `topic` would"));
    }
    let sent =
        futures::future::join_all(channels.iter().map(|c| async { (c.name(), c.send(message).await) })).await;
    let (told, failed): (Vec<_>, Vec<_>) = sent.into_iter().partition(|(_, sent)| sent.is_ok());
    match failed.into_iter().find_map(|(_, sent)| sent.err()) {
        Some(error) if told.is_empty() => Err(error),
        _ => Ok(format!("told by {}", told.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "))),
    }
}
