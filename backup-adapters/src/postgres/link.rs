//! The way to the server: its client programs, run beside it.

use std::sync::Arc;
use std::time::Duration;

use backup_core::runtime::{ExecCommand, Execution, ServiceRuntime};
use backup_core::{AdapterError, AdapterErrorKind, ByteStream, OpContext, RunId, Secret};
use futures::StreamExt as _;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

use super::fault::Failure;
use super::programs::{self, Programs};
use super::sql::conninfo;
use super::{Flavor, Settings};
use crate::runtime::{DockerRuntime, HostRuntime};

/// What one query may take; counting has a limit of its own.
const QUERY_TIME: Duration = Duration::from_secs(120);
/// The longest answer of a query, in bytes.
const MAX_ANSWER: usize = 256 << 20;
/// What a program may take to tell its exit status after its output ended.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// In front of the run's id in `application_name`.
const TAG: &str = "backup ";

/// How sessions of a run call themselves, so that they are found again.
pub(super) fn tag(run: &RunId) -> String {
    format!("{TAG}{run}")
}

/// Programs, connection and rights for one operation.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) runtime: Arc<dyn ServiceRuntime>,
    pub(super) programs: Programs,
    pub(super) cx: OpContext,
    env: Vec<(String, Secret)>,
    run_as: Option<String>,
    /// Whether the programs run in a container.
    pub(super) in_container: bool,
    /// The database for questions about the whole server.
    pub(super) home: String,
}

impl Link {
    /// Finds the programs and a database that lets us in.
    pub(super) async fn open(settings: &Settings, cx: &OpContext) -> Result<Self, AdapterError> {
        Self::to(settings, cx, None).await
    }

    /// The same with the password of the time of the backup that is restored. `None` if nobody knows it.
    pub(super) async fn as_then(settings: &Settings, cx: &OpContext) -> Result<Option<Self>, AdapterError> {
        let Some(password) = &settings.password else { return Ok(None) };
        match password.resolve_then(cx).await {
            Some(then) => Self::with(settings, cx, None, Some(then)).await.map(Some),
            None => Ok(None),
        }
    }

    /// As [`Self::open`], to `apart`, the container of a server of our own.
    pub(super) async fn to(
        settings: &Settings,
        cx: &OpContext,
        apart: Option<&DockerRuntime>,
    ) -> Result<Self, AdapterError> {
        cx.check_alive()?;
        let password = match (apart, &settings.password) {
            (Some(apart), _) => cx.within(apart.env("POSTGRES_PASSWORD")).await??,
            (None, Some(password)) => Some(password.resolve(cx, settings.docker().as_ref()).await?),
            (None, None) => None,
        };
        Self::with(settings, cx, apart, password).await
    }

    async fn with(
        settings: &Settings,
        cx: &OpContext,
        apart: Option<&DockerRuntime>,
        password: Option<Secret>,
    ) -> Result<Self, AdapterError> {
        let docker = apart.cloned().or_else(|| settings.docker());
        let runtime: Arc<dyn ServiceRuntime> = match &docker {
            Some(docker) => Arc::new(docker.clone()),
            None => Arc::new(HostRuntime::new()),
        };
        let secret = |text: &str| Secret::new(text);
        let mut env = vec![
            ("PGAPPNAME".to_owned(), secret(&tag(&cx.run_id))),
            ("PGCONNECT_TIMEOUT".to_owned(), secret("15")),
            ("LC_ALL".to_owned(), secret("C")),
        ];
        let user = match (settings.user.as_ref().filter(|_| apart.is_none()), &docker) {
            (Some(user), _) => Some(user.clone()),
            // Absent and unreadable are the same here: the default follows.
            (None, Some(docker)) if settings.flavor == Flavor::Postgres || apart.is_some() => cx
                .within(docker.env("POSTGRES_USER"))
                .await?
                .ok()
                .flatten()
                .map(|user| user.expose().to_owned()),
            _ => None,
        };
        let user = user.unwrap_or_else(|| settings.flavor.user().to_owned());
        env.push(("PGUSER".to_owned(), secret(&user)));
        env.extend(password.map(|password| ("PGPASSWORD".to_owned(), password)));
        if let Some(mode) = settings.sslmode.as_ref().filter(|_| apart.is_none()) {
            env.push(("PGSSLMODE".to_owned(), secret(mode)));
        }
        env.push(("PGPORT".to_owned(), secret(&settings.port().to_string())));
        let mut link = Self {
            runtime,
            programs: Programs::unknown(),
            cx: cx.clone(),
            env,
            run_as: settings.run_as.clone(),
            in_container: docker.is_some(),
            home: "postgres".to_owned(),
        };
        link.programs = programs::find(&link, settings).await?;
        link.connect(settings, apart.is_some()).await?;
        if docker.is_none() {
            programs::match_server(&mut link, settings).await?;
        }
        Ok(link)
    }

    /// The same where work must not be broken off any more.
    pub(super) fn calm(&self, limit: Duration) -> Self {
        let mut link = self.clone();
        link.cx.cancel = tokio_util::sync::CancellationToken::new();
        link.cx.deadline = Some(Instant::now() + limit);
        link
    }

    /// Tries the places where the server may listen, and the databases that it may have.
    async fn connect(&mut self, settings: &Settings, apart: bool) -> Result<(), AdapterError> {
        let host =
            settings.socket.as_ref().map(|p| p.display().to_string()).or_else(|| settings.host.clone());
        // A server of our own listens where its image has it.
        let host = host.filter(|_| !apart);
        let hosts = match (host, &settings.container) {
            (Some(host), _) => vec![Some(host)],
            // YugabyteDB listens on an address of the container, not on a socket.
            (None, Some(_)) if settings.flavor == Flavor::Yugabyte => {
                let own = self.run(self.command(["hostname"])).await.ok().map(|out| out.trim().to_owned());
                [Some("127.0.0.1".to_owned()), own, None]
                    .into_iter()
                    .filter(|h| h.as_deref() != Some(""))
                    .collect()
            }
            (None, _) => vec![None],
        };
        let homes = ["postgres", "template1"].map(str::to_owned).into_iter();
        let homes: Vec<String> = homes.chain(settings.databases.iter().cloned()).collect();
        let mut first = None;
        for host in hosts {
            self.env.retain(|(name, _)| name != "PGHOST");
            if let Some(host) = host {
                self.env.push(("PGHOST".to_owned(), Secret::new(host)));
            }
            for home in &homes {
                self.home.clone_from(home);
                match self.query(home, "SELECT 1").await {
                    Ok(_) => return Ok(()),
                    Err(failure) => {
                        let error = failure.explain("cannot connect to the server");
                        let other_home = matches!(
                            error.kind(),
                            AdapterErrorKind::NotFound | AdapterErrorKind::PermissionDenied
                        );
                        let ends =
                            matches!(error.kind(), AdapterErrorKind::Cancelled | AdapterErrorKind::Timeout);
                        if ends {
                            return Err(error);
                        }
                        first.get_or_insert(error);
                        if !other_home {
                            break;
                        }
                    }
                }
            }
        }
        Err(first
            .unwrap_or_else(|| AdapterError::new(AdapterErrorKind::Unavailable, "no server to connect to")))
    }

    /// `argv` with the connection in its environment.
    pub(super) fn command<S: Into<String>>(&self, argv: impl IntoIterator<Item = S>) -> ExecCommand {
        let mut command = ExecCommand::new(argv).with_deadline(self.cx.deadline);
        command.env.clone_from(&self.env);
        command.user.clone_from(&self.run_as);
        command
    }

    /// psql on `database`, which takes its commands from `-c` and `-f`.
    pub(super) fn psql(&self, database: &str) -> ExecCommand {
        let mut argv = vec![self.programs.psql.clone()];
        argv.extend(["-X", "-A", "-t", "-q", "-w", "-v", "ON_ERROR_STOP=1", "-d"].map(str::to_owned));
        argv.push(conninfo(database));
        self.command(argv).with_env("PGCLIENTENCODING", Secret::new("UTF8"))
    }

    /// Starts a program; its output must be read.
    pub(super) async fn start(&self, command: ExecCommand) -> Result<Execution, AdapterError> {
        self.cx.within(self.runtime.exec(command)).await?
    }

    /// Runs a program to its end; what it printed.
    pub(super) async fn run(&self, command: ExecCommand) -> Result<String, Failure> {
        let bytes = self.run_bytes(command).await?;
        String::from_utf8(bytes).map_err(|e| {
            let what = "the server answered with text that is not UTF-8";
            Failure::new(AdapterError::new(AdapterErrorKind::Other, what).with_source(e), "")
        })
    }

    async fn run_bytes(&self, command: ExecCommand) -> Result<Vec<u8>, Failure> {
        let mut execution = self.start(command).await.map_err(|e| Failure::new(e, ""))?;
        let mut out = Vec::new();
        loop {
            match self.cx.within(execution.stdout.next()).await {
                Ok(Some(Ok(chunk))) if out.len() + chunk.len() <= MAX_ANSWER => out.extend_from_slice(&chunk),
                Ok(Some(Ok(_))) => {
                    let what = format!("the answer is longer than {MAX_ANSWER} bytes");
                    return Err(Failure::new(AdapterError::new(AdapterErrorKind::Other, what), ""));
                }
                Ok(Some(Err(e))) => return Err(ended(e, execution).await),
                Ok(None) => return Ok(out),
                Err(e) => return Err(Failure::new(e, "")),
            }
        }
    }

    /// Runs statements, each in a transaction of its own; what they gave.
    pub(super) async fn statements<S: Into<String>>(
        &self,
        database: &str,
        statements: impl IntoIterator<Item = S>,
    ) -> Result<String, Failure> {
        let mut command = self.psql(database);
        command.deadline = Some(self.soon());
        for statement in statements {
            command.argv.push("-c".to_owned());
            command.argv.push(statement.into());
        }
        self.run(command).await
    }

    /// The latest moment for the end of something short.
    fn soon(&self) -> Instant {
        let soon = Instant::now() + QUERY_TIME;
        self.cx.deadline.map_or(soon, |d| d.min(soon))
    }

    /// One query; what it gave, as psql prints it unaligned.
    pub(super) async fn query(&self, database: &str, sql: &str) -> Result<String, Failure> {
        self.statements(database, [sql]).await
    }

    /// One query whose answer is a JSON value.
    pub(super) async fn json<T: DeserializeOwned>(&self, database: &str, sql: &str) -> Result<T, Failure> {
        let answer = self.query(database, sql).await?;
        parse(&answer).map_err(|e| Failure::new(e, ""))
    }

    /// A script of any length through standard input; what it printed. Takes as long as it takes.
    pub(super) async fn script(&self, database: &str, script: String) -> Result<String, Failure> {
        let mut command = self.psql(database);
        command.argv.extend(["-f".to_owned(), "-".to_owned()]);
        let input = futures::stream::iter([Ok(bytes::Bytes::from(script))]).boxed();
        self.run(command.with_stdin(input)).await
    }

    /// Feeds `input` to a program to its end; what it wrote to standard error.
    pub(super) async fn feed(
        &self,
        command: ExecCommand,
        input: ByteStream<AdapterError>,
    ) -> Result<String, Failure> {
        let execution = self.start(command.with_stdin(input)).await.map_err(|e| Failure::new(e, ""))?;
        let Execution { mut stdout, outcome } = execution;
        loop {
            match self.cx.within(stdout.next()).await {
                // What a script prints is of no use.
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(e))) => return Err(ended(e, Execution { stdout, outcome }).await),
                Ok(None) => break,
                Err(e) => return Err(Failure::new(e, "")),
            }
        }
        let told = timeout(LAST_WORDS, outcome).await;
        Ok(told.ok().and_then(Result::ok).map(|o| o.stderr_tail).unwrap_or_default())
    }
}

/// The failure of a program whose output ended with `error`.
pub(super) async fn ended(error: AdapterError, execution: Execution) -> Failure {
    let Execution { stdout, outcome } = execution;
    drop(stdout);
    let told = timeout(LAST_WORDS, outcome).await;
    Failure::new(error, told.ok().and_then(Result::ok).map(|o| o.stderr_tail).unwrap_or_default())
}

/// A JSON answer.
pub(super) fn parse<T: DeserializeOwned>(answer: &str) -> Result<T, AdapterError> {
    serde_json::from_str(answer).map_err(|e| {
        AdapterError::new(AdapterErrorKind::Other, "the server's answer is not understood").with_source(e)
    })
}
