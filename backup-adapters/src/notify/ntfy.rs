//! [ntfy](https://docs.ntfy.sh/publish/#publish-as-json): push messages without an account.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backup_core::config::NtfyConfig;
use backup_core::{AdapterError, AdapterErrorKind, Secret, SecretRef, SecretResolver};
use serde_json::json;

use super::{Channel, Message, Urgency};

/// The public server.
const SERVER: &str = "https://ntfy.sh";

/// How long one attempt may take, and how often it is made: what a tired network drops, it drops once.
const ATTEMPT: Duration = Duration::from_secs(3);
const ATTEMPTS: usize = 3;

/// A topic of an ntfy server. Its name and the token are read anew for each message.
#[derive(Debug)]
pub struct Ntfy {
    config: NtfyConfig,
    secrets: Arc<dyn SecretResolver>,
}

impl Ntfy {
    /// The topic that `config` names. Makes no contact.
    #[must_use]
    pub fn new(config: NtfyConfig, secrets: Arc<dyn SecretResolver>) -> Self {
        Self { config, secrets }
    }

    async fn secret(&self, reference: &SecretRef) -> Result<Secret, AdapterError> {
        // It may be the output of a program.
        let (reference, secrets) = (reference.clone(), Arc::clone(&self.secrets));
        let resolved = tokio::task::spawn_blocking(move || secrets.resolve(&reference)).await;
        let failed = |e: String| AdapterError::new(AdapterErrorKind::InvalidConfig, format!("ntfy: {e}"));
        resolved.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))
    }
}

#[async_trait]
impl Channel for Ntfy {
    fn name(&self) -> &'static str {
        "ntfy"
    }

    async fn send(&self, message: &Message) -> Result<(), AdapterError> {
        let topic = self.secret(&self.config.topic).await?;
        let token = match &self.config.token {
            Some(token) => Some(self.secret(token).await?),
            None => None,
        };
        let (priority, tag) = match message.urgency {
            Urgency::Normal => (3, "floppy_disk"),
            Urgency::High => (4, "warning"),
            Urgency::Urgent => (5, "rotating_light"),
        };
        // As JSON to the server's root: the topic must not stand in a URL, which errors and logs would show.
        let body = json!({
            "topic": topic.expose(), "title": message.title, "message": message.text,
            "priority": priority, "tags": [tag],
        });
        let server = self.config.url.as_deref().unwrap_or(SERVER);
        let client = reqwest::Client::builder().timeout(ATTEMPT).build();
        let client = client.map_err(|e| failed("cannot make an HTTP client", e))?;
        let mut attempt = 1;
        loop {
            let mut request =
                client.post(server).header("content-type", "application/json").body(body.to_string());
            if let Some(token) = &token {
                request = request.bearer_auth(token.expose());
            }
            match request.send().await {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(answer) if attempt == ATTEMPTS || !answer.status().is_server_error() => {
                    let what = format!("ntfy: the server answers {}", answer.status());
                    return Err(AdapterError::new(AdapterErrorKind::Unavailable, what));
                }
                Err(e) if attempt == ATTEMPTS => return Err(failed("the server cannot be reached", e)),
                _ => attempt += 1,
            }
        }
    }
}

fn failed(what: &str, error: reqwest::Error) -> AdapterError {
    // A URL may hold a password.
    AdapterError::new(AdapterErrorKind::Unavailable, format!("ntfy: {what}")).with_source(error.without_url())
}
