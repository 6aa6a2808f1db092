//! From the configuration to a connection that is logged in, and commands over it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backup_core::runtime::ServiceRuntime;
use backup_core::{AdapterError, AdapterErrorKind, OpContext, Secret};
use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::resp::{self, Reply};
use super::tls::Tls;
use crate::runtime::{DockerRuntime, HostRuntime, ServiceSecret};

/// How long a connection may take, with its handshakes.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// How long a server may think about a command. One that runs a slow script answers nobody meanwhile.
const COMMAND_TIME: Duration = Duration::from_secs(30);

/// Where the server is.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// In a container, listening at this port in there.
    Container(DockerRuntime, u16),
    /// At a host and port.
    Tcp(String, u16),
    /// At a Unix socket of this host.
    Socket(PathBuf),
}

/// A server as it is configured. Makes connections.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) place: Place,
    /// The systemd unit that runs it, if it is on this host and the configuration says so.
    pub(super) unit: Option<String>,
    pub(super) username: Option<String>,
    pub(super) password: Option<ServiceSecret>,
    pub(super) tls: Option<Tls>,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Container(docker, port) => write!(f, "container `{}`, port {port}", docker.container()),
            Place::Tcp(host, port) => write!(f, "`{host}:{port}`"),
            Place::Socket(path) => write!(f, "`{}`", path.display()),
        }
    }
}

impl Server {
    /// The container that it runs in.
    pub(super) fn container(&self) -> Option<&DockerRuntime> {
        match &self.place {
            Place::Container(docker, _) => Some(docker),
            _ => None,
        }
    }

    /// Whether it runs on this host, outside of a container, so that its paths are ours.
    pub(super) fn is_local(&self) -> bool {
        match &self.place {
            Place::Container(..) => false,
            Place::Socket(_) => true,
            Place::Tcp(host, _) => {
                host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
        }
    }

    /// How it is run, if that can be reached from here.
    pub(super) fn runtime(&self) -> Option<Arc<dyn ServiceRuntime>> {
        match (&self.place, &self.unit) {
            (Place::Container(docker, _), _) => Some(Arc::new(docker.clone())),
            (_, Some(unit)) => Some(Arc::new(HostRuntime::unit(unit))),
            _ if self.is_local() => Some(Arc::new(HostRuntime::new())),
            _ => None,
        }
    }

    /// Connects and logs in.
    ///
    /// # Errors
    /// `Unavailable` if it does not answer; `PermissionDenied` if it does not let us in; `InvalidConfig`; those of
    /// [`OpContext::within`].
    pub(super) async fn connect(&self, cx: &OpContext) -> Result<Conn, AdapterError> {
        let password = match &self.password {
            Some(secret) => Some(Box::pin(secret.resolve(cx, self.container())).await?),
            None => None,
        };
        let opened = cx.within(timeout(CONNECT_TIME, self.open())).await?;
        let stream = opened.map_err(|_| {
            AdapterError::new(
                AdapterErrorKind::Unavailable,
                format!("{self} does not answer within {} s", CONNECT_TIME.as_secs()),
            )
        })??;
        let mut conn = Conn {
            stream,
            buffer: BytesMut::with_capacity(16 << 10),
            server: self.to_string(),
            user: self.username.clone(),
            password,
        };
        conn.log_in(cx).await?;
        Ok(conn)
    }

    async fn open(&self) -> Result<Box<dyn Duplex>, AdapterError> {
        let failed = |e: io::Error| {
            let kind = match e.kind() {
                io::ErrorKind::PermissionDenied => AdapterErrorKind::PermissionDenied,
                _ => AdapterErrorKind::Unavailable,
            };
            AdapterError::new(kind, format!("cannot connect to Redis at {self}")).with_source(e)
        };
        let (stream, host) = match &self.place {
            Place::Socket(path) => {
                return Ok(Box::new(UnixStream::connect(path).await.map_err(failed)?));
            }
            Place::Tcp(host, port) => {
                (TcpStream::connect((host.as_str(), *port)).await.map_err(failed)?, host.clone())
            }
            Place::Container(docker, port) => {
                // Large, and at the bottom of everything: on the heap.
                let address = Box::pin(docker.endpoint(*port)).await?;
                (TcpStream::connect(address).await.map_err(failed)?, address.ip().to_string())
            }
        };
        // Commands are small and each waits for its answer.
        stream.set_nodelay(true).map_err(failed)?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let (config, name) = (tls.clone(), tls.name(&host)?);
        let connector = spawn_blocking(move || config.connector()).await.map_err(|e| {
            AdapterError::new(AdapterErrorKind::Other, "the set-up of TLS broke off").with_source(e)
        })??;
        let encrypted = connector.connect(name, stream).await.map_err(|e| {
            AdapterError::new(AdapterErrorKind::Unavailable, format!("no TLS with Redis at {self}"))
                .with_source(e)
        })?;
        Ok(Box::new(encrypted))
    }
}

/// Both directions of a connection.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Duplex for T {}

/// A connection that is logged in.
pub(super) struct Conn {
    pub(super) stream: Box<dyn Duplex>,
    /// What was read and not used yet.
    pub(super) buffer: BytesMut,
    server: String,
    user: Option<String>,
    password: Option<Secret>,
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Conn {
    async fn log_in(&mut self, cx: &OpContext) -> Result<(), AdapterError> {
        if let Some(password) = self.password.clone() {
            let user = self.user.clone();
            let mut args = vec!["AUTH"];
            args.extend(user.as_deref());
            args.push(password.expose());
            match self.ask(cx, &args).await? {
                // The server has no password: what was configured is superfluous, and it lets us in.
                Reply::Error(e) if e.contains("without any password configured") && user.is_none() => {}
                Reply::Error(e) => return Err(self.refused("AUTH", &e)),
                _ => {}
            }
        }
        match self.ask(cx, &["PING"]).await? {
            // Not everybody who may copy the data may ping; LOADING and its like are dealt with where they matter.
            Reply::Error(e) if e.starts_with("NOAUTH") || e.starts_with("DENIED") => {
                Err(self.refused("PING", &e))
            }
            _ => Ok(()),
        }
    }

    /// Sends a command and returns what the server answers, also if that is an error.
    ///
    /// # Errors
    /// `Unavailable` for a broken connection, `Timeout`, `Cancelled`.
    pub(super) async fn ask(&mut self, cx: &OpContext, args: &[&str]) -> Result<Reply, AdapterError> {
        let bytes: Vec<&[u8]> = args.iter().map(|a| a.as_bytes()).collect();
        let command = name(args);
        let exchange = async {
            self.stream.write_all(&resp::encode(&bytes)).await?;
            self.stream.flush().await?;
            resp::reply(&mut self.stream, &mut self.buffer).await
        };
        let answered = cx.within(timeout(COMMAND_TIME, exchange)).await?;
        match answered {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(e)) => Err(self.broken(&command, e)),
            Err(_) => Err(AdapterError::new(
                AdapterErrorKind::Timeout,
                format!(
                    "Redis at {} did not answer {command} within {} s",
                    self.server,
                    COMMAND_TIME.as_secs()
                ),
            )),
        }
    }

    /// As [`Self::ask`], but an error of the server is one.
    pub(super) async fn call(&mut self, cx: &OpContext, args: &[&str]) -> Result<Reply, AdapterError> {
        match self.ask(cx, args).await? {
            Reply::Error(e) => Err(self.refused(&name(args), &e)),
            reply => Ok(reply),
        }
    }

    /// The connection broke while the server was to answer `command`.
    pub(super) fn broken(&self, command: &str, error: io::Error) -> AdapterError {
        AdapterError::new(
            AdapterErrorKind::Unavailable,
            format!("the connection to Redis at {} broke during {command}", self.server),
        )
        .with_source(error)
    }

    /// An error about the server itself: `Redis at … {what}`.
    pub(super) fn trouble(&self, kind: AdapterErrorKind, what: &str) -> AdapterError {
        AdapterError::new(kind, format!("Redis at {} {what}", self.server))
    }

    /// The user that it is logged in as.
    pub(super) fn user(&self) -> &str {
        self.user.as_deref().unwrap_or("default")
    }

    /// The user lacks `rights`, ACL rules that would let it do `what`.
    pub(super) fn may_not(&self, what: &str, rights: &[&str]) -> AdapterError {
        let (user, rights) = (self.user(), rights.join(" "));
        AdapterError::new(
            AdapterErrorKind::PermissionDenied,
            format!(
                "user `{user}` of Redis at {} may not {what}: `ACL SETUSER {user} {rights}`",
                self.server
            ),
        )
    }

    /// The server refused `command`; says what to do about it.
    pub(super) fn refused(&self, command: &str, error: &str) -> AdapterError {
        // Some errors repeat the arguments of a command.
        let said = match &self.password {
            Some(password) if !password.expose().is_empty() => error.replace(password.expose(), "…"),
            _ => error.to_owned(),
        };
        let said: String = said.chars().filter(|c| !c.is_control()).take(300).collect();
        let server = &self.server;
        let user = self.user();
        let (kind, what) = match said.split([' ', '\r']).next().unwrap_or_default() {
            "NOAUTH" => (
                AdapterErrorKind::PermissionDenied,
                format!(
                    "Redis at {server} wants a password: set `password` (and `username` for an ACL user)"
                ),
            ),
            "WRONGPASS" => (
                AdapterErrorKind::PermissionDenied,
                format!("Redis at {server} refuses the password of user `{user}`"),
            ),
            "NOPERM" => {
                let right = format!("+{}", command.to_lowercase().replace(' ', "|"));
                return self.may_not(&format!("run {command}"), &[&right]);
            }
            "DENIED" => (
                AdapterErrorKind::PermissionDenied,
                format!(
                    "Redis at {server} is in protected mode and refuses other hosts: set a password there"
                ),
            ),
            "LOADING" => (
                AdapterErrorKind::Unavailable,
                format!("Redis at {server} still loads its data: try again later"),
            ),
            "BUSY" => (AdapterErrorKind::Unavailable, format!("Redis at {server} is busy with a script")),
            "NOMASTERLINK" | "MASTERDOWN" => (
                AdapterErrorKind::Unavailable,
                format!("Redis at {server} is a replica without a link to its primary: {said}"),
            ),
            "MISCONF" => (
                AdapterErrorKind::Conflict,
                format!(
                    "Redis at {server} refuses {command} because its last save to disk failed: see its log ({said})"
                ),
            ),
            _ if said.starts_with("ERR unknown command") || said.starts_with("ERR Unknown") => (
                AdapterErrorKind::Unsupported,
                format!("Redis at {server} does not know {command}: renamed or disabled there, or too old"),
            ),
            _ if command == "AUTH" && said.starts_with("ERR invalid password") => {
                (AdapterErrorKind::PermissionDenied, format!("Redis at {server} refuses the password"))
            }
            _ => (AdapterErrorKind::Other, format!("Redis at {server} refuses {command}: {said}")),
        };
        AdapterError::new(kind, what)
    }
}

/// The name of a command, without its arguments: those may be secrets.
fn name(args: &[&str]) -> String {
    let two = ["CONFIG", "ACL", "CLIENT", "REPLCONF"];
    let words = args.first().map_or(1, |first| if two.contains(first) { 2 } else { 1 });
    args.iter().take(words).copied().collect::<Vec<_>>().join(" ")
}

/// `path` relative to the folder of the configuration file.
pub(super) fn relative(base: &Path, path: Option<PathBuf>) -> Option<PathBuf> {
    path.map(|p| base.join(p))
}
