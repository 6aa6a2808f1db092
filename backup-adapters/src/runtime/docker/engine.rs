//! The connection to the engine, and what its errors mean.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use backup_core::{AdapterError, AdapterErrorKind};
use bollard::errors::Error as EngineError;
use bollard::query_parameters::LogsOptionsBuilder;
use bollard::{API_DEFAULT_VERSION, Docker};
use futures::StreamExt as _;
use tokio::sync::OnceCell;

/// Where the engine listens if nobody says otherwise.
pub const DEFAULT_ENGINE: &str = "unix:///var/run/docker.sock";

/// How long one ordinary request may take.
pub(super) const REQUEST: Duration = Duration::from_secs(60);

/// How many of its last lines a container is asked for, and how long the engine may take to tell.
const LINES: &str = "5";
const LOG: Duration = Duration::from_secs(10);

/// One engine; connects on first use, and agrees on a version of the API then.
pub(super) struct Engine {
    url: String,
    /// For which service's container it is asked, as the configuration names that; empty for none.
    service: String,
    client: OnceCell<Docker>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Engine {
    pub(super) fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), service: String::new(), client: OnceCell::new() }
    }

    /// The same for a service's container.
    pub(super) fn of(self, service: impl Into<String>) -> Self {
        Self { service: service.into(), ..self }
    }

    pub(super) fn service(&self) -> &str {
        &self.service
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The socket's path, if it is one: then the engine is on this host, or on the one that our container runs on.
    pub(super) fn socket(&self) -> Option<&str> {
        self.url.strip_prefix("unix://").or_else(|| self.url.starts_with('/').then_some(self.url.as_str()))
    }

    /// The client. A failure is not remembered.
    pub(super) async fn client(&self) -> Result<&Docker, AdapterError> {
        self.client.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> Result<Docker, AdapterError> {
        let (url, seconds) = (self.url.as_str(), REQUEST.as_secs());
        let docker = if let Some(path) = self.socket() {
            Docker::connect_with_unix(path, seconds, API_DEFAULT_VERSION)
        } else if url.starts_with("tcp://") || url.starts_with("http://") {
            Docker::connect_with_http(url, seconds, API_DEFAULT_VERSION)
        } else {
            return Err(AdapterError::new(
                AdapterErrorKind::InvalidConfig,
                format!(
                    "`{url}` is no address of a Docker engine: write `unix:///path` or `tcp://host:port`"
                ),
            ));
        };
        let docker = docker.map_err(|e| self.error("reach the engine", e))?;
        let request = docker.negotiate_version();
        let docker = self.call("reach the engine", request).await?;
        Ok(versioned(docker))
    }

    /// The last lines that a container has written; none if they cannot be had soon.
    pub(super) async fn last_lines(&self, id: &str) -> Vec<String> {
        let lines = async {
            let options = LogsOptionsBuilder::new().stdout(true).stderr(true).tail(LINES).build();
            let mut logs = self.client().await?.logs(id, Some(options));
            let mut text = String::new();
            while let Some(Ok(piece)) = logs.next().await {
                text.push_str(&String::from_utf8_lossy(&piece.into_bytes()));
            }
            Ok::<_, AdapterError>(text.lines().map(one_line).filter(|l| !l.is_empty()).collect())
        };
        tokio::time::timeout(LOG, lines).await.ok().and_then(Result::ok).unwrap_or_default()
    }

    /// The folder of this host that holds the engine's own data; `None` if it runs elsewhere.
    pub(super) async fn root(&self) -> Result<Option<PathBuf>, AdapterError> {
        if self.socket().is_none() {
            return Ok(None);
        }
        let info = self.client().await?.info();
        Ok(self.call("ask for the engine's folder", info).await?.docker_root_dir.map(PathBuf::from))
    }

    /// Runs one request, within the limit of [`REQUEST`].
    pub(super) async fn call<T>(
        &self,
        what: &str,
        request: impl Future<Output = Result<T, EngineError>> + Send,
    ) -> Result<T, AdapterError> {
        match tokio::time::timeout(REQUEST, request).await {
            Ok(done) => done.map_err(|e| self.error(what, e)),
            Err(_) => Err(self.error(what, EngineError::RequestTimeoutError)),
        }
    }

    /// The engine's error while doing `what`, an infinitive phrase.
    pub(super) fn error(&self, what: &str, error: EngineError) -> AdapterError {
        use AdapterErrorKind as Kind;
        let url = &self.url;
        match error {
            EngineError::DockerResponseServerError { status_code, message } => {
                let kind = match status_code {
                    404 => Kind::NotFound,
                    401 | 403 => Kind::PermissionDenied,
                    409 => Kind::Conflict,
                    503 => Kind::Unavailable,
                    _ => Kind::Other,
                };
                AdapterError::new(kind, format!("cannot {what}: {}", one_line(&message)))
            }
            EngineError::RequestTimeoutError => AdapterError::new(
                Kind::Timeout,
                format!("cannot {what}: the Docker engine at {url} did not answer in time"),
            ),
            EngineError::SocketNotFoundError(_) => AdapterError::new(
                Kind::Unavailable,
                format!("cannot {what}: there is no Docker engine at {url}; is it running?"),
            ),
            other => match io_kind(&other) {
                Some(std::io::ErrorKind::PermissionDenied) => AdapterError::new(
                    Kind::PermissionDenied,
                    format!(
                        "cannot {what}: not allowed to use the Docker engine at {url}; run as root or in the group `docker`"
                    ),
                ),
                _ => AdapterError::new(
                    Kind::Unavailable,
                    format!("cannot {what}: the Docker engine at {url} does not answer"),
                )
                .with_source(other),
            },
        }
    }
}

/// The client agrees on a version of the API but leaves it out of its requests, and an engine answers those in the newest
/// version that it knows, which may be none that we know.
fn versioned(docker: Docker) -> Docker {
    let version = docker.client_version();
    let prefix = format!("/v{}.{}", version.major_version, version.minor_version);
    docker.with_request_modifier(move |mut request| {
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        if !path.starts_with(&prefix) {
            let whole = request.uri().to_string();
            let place = whole.strip_suffix(path).unwrap_or_default();
            if let Ok(uri) = format!("{place}{prefix}{path}").parse() {
                *request.uri_mut() = uri;
            }
        }
        request
    })
}

fn io_kind(error: &EngineError) -> Option<std::io::ErrorKind> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = next {
        if let Some(io) = e.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        next = e.source();
    }
    None
}

/// Text of others, fit for an error: one line, of bounded length, without control characters.
pub(super) fn one_line(text: &str) -> String {
    let mut line = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()) {
        if line.len() > 1000 {
            line.push('…');
            break;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    line
}
