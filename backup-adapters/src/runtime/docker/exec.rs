//! Programs in a container, whose output cannot be lost.
//!
//! The engine ends the stream of a program 2 s after the program's end and drops what was not read by then, with exit
//! code 0. So the program does not run alone: `wrapper.sh` runs it, says on both streams when it has ended, and stays
//! until we have everything. That last line on standard output is what proves that the output is complete.
//!
//! The wrapper ends the program if the connection breaks. If that is not enough (the wrapper is busy handing over input
//! that the program does not take), `kill.sh` does it from a second exec.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backup_core::runtime::{ExecCommand, ExecOutcome, Execution, ExitStatus};
use backup_core::{AdapterError, AdapterErrorKind, Secret};
use bollard::container::LogOutput;
use bollard::exec::{StartExecOptions, StartExecResults};
use bollard::models::{ContainerInspectResponse, ExecConfig};
use futures::{FutureExt as _, StreamExt as _, stream};
use tokio::sync::{mpsc, oneshot};

use self::driver::{Driver, Piece};
use self::failure::Failure;
use super::engine::{Engine, one_line};
use super::name_of;

mod driver;
mod failure;
mod feed;
mod marks;
mod watch;

const WRAPPER: &str = concat!(include_str!("exec/group.sh"), include_str!("exec/wrapper.sh"));
const KILL: &str = concat!(include_str!("exec/group.sh"), include_str!("exec/kill.sh"));

/// How long the engine and the wrapper get to start the program.
const START: Duration = Duration::from_secs(60);
/// A year: longer than any program may run, and not too long for a timer.
const NEVER: Duration = Duration::from_secs(86_400 * 365);
/// Pieces of output in memory at the same time, each of at most [`PIECE`] bytes or one frame of the engine's.
const PIECES: usize = 4;
const PIECE: usize = 256 << 10;

/// A program's place: the container, as it was when the program was started.
#[derive(Debug, Clone)]
struct Spot {
    engine: Arc<Engine>,
    id: String,
    name: String,
    image: String,
    started_at: String,
    user: Option<String>,
}

/// Starts `command` in `container`, which runs.
pub(super) async fn exec(
    engine: Arc<Engine>,
    container: &ContainerInspectResponse,
    command: ExecCommand,
) -> Result<Execution, AdapterError> {
    let ExecCommand { argv, env, stdin, user, deadline, accept, .. } = command;
    let config = container.config.as_ref();
    let state = container.state.as_ref();
    let spot = Spot {
        engine,
        id: container.id.clone().unwrap_or_default(),
        name: name_of(container).to_owned(),
        image: config.and_then(|c| c.image.clone()).unwrap_or_default(),
        started_at: state.and_then(|s| s.started_at.clone()).unwrap_or_default(),
        user,
    };
    let program = argv.first().cloned().ok_or_else(|| AdapterError::unsupported("no program to run"))?;
    for (name, value) in &env {
        if !is_variable(name) || value.expose().contains('\0') {
            let message = format!("`{}` cannot be a variable of `{program}`", name.escape_debug());
            return Err(AdapterError::new(AdapterErrorKind::InvalidConfig, message));
        }
    }
    let nonce = uuid::Uuid::new_v4().simple().to_string();
    let mode = if stdin.is_some() { "input" } else { "none" };
    let names = env.iter().map(|(name, _)| name.clone());
    let own = ["sh", "-c", WRAPPER, "sh", nonce.as_str(), mode].map(str::to_owned);
    let argv = own.into_iter().chain([env.len().to_string()]).chain(names).chain(argv).collect();

    let (exec_id, output, input) = spot.attach(argv, &program).await?;
    let (pieces, taken) = mpsc::channel(PIECES);
    let (tell_outcome, outcome) = oneshot::channel();
    let (tell_start, start) = oneshot::channel();
    let driver = Driver {
        name: spot.name.clone(),
        spot,
        program: program.clone(),
        nonce,
        exec_id,
        deadline,
        accept,
        env,
        leader: Arc::new(OnceLock::new()),
    };
    let work = driver.run(output, input, stdin, tell_start, pieces, tell_outcome);
    #[expect(
        clippy::disallowed_methods,
        reason = "it ends by itself soon after the handles are dropped, and must outlive them to end the program"
    )]
    tokio::spawn(work);
    match start.await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => return Err(e),
        Err(_) => return Err(vanished(&program)),
    }
    let gone = program.clone();
    Ok(Execution {
        stdout: stream::unfold(Some((taken, gone)), next_piece).boxed(),
        outcome: async move { outcome.await.unwrap_or_else(|_| Err(vanished(&program))) }.boxed(),
    })
}

/// The driver ended without a word: the async runtime is being shut down.
fn vanished(program: &str) -> AdapterError {
    AdapterError::new(AdapterErrorKind::Cancelled, format!("nobody waits for `{program}` any more"))
}

type Taken = Option<(mpsc::Receiver<Piece>, String)>;

/// The end of the channel proves nothing: only the driver's word that the program ended well does.
async fn next_piece(taken: Taken) -> Option<(Result<bytes::Bytes, AdapterError>, Taken)> {
    let (mut pieces, program) = taken?;
    match pieces.recv().await {
        Some(Piece::Data(bytes)) => Some((Ok(bytes), Some((pieces, program)))),
        Some(Piece::Done) => None,
        Some(Piece::Failed(e)) => Some((Err(e), None)),
        None => Some((Err(vanished(&program)), None)),
    }
}

fn is_variable(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

type Output = stream::BoxStream<'static, Result<LogOutput, bollard::errors::Error>>;
type Input = std::pin::Pin<Box<dyn tokio::io::AsyncWrite + Send>>;

impl Spot {
    async fn create(&self, cmd: Vec<String>, attached: bool) -> Result<String, AdapterError> {
        let config = ExecConfig {
            attach_stdin: Some(attached),
            attach_stdout: Some(attached),
            attach_stderr: Some(attached),
            tty: Some(false),
            cmd: Some(cmd),
            user: self.user.clone(),
            ..Default::default()
        };
        let request = self.engine.client().await?.create_exec(&self.id, config);
        Ok(self.engine.call(&format!("run a program in container `{}`", self.name), request).await?.id)
    }

    async fn attach(&self, cmd: Vec<String>, program: &str) -> Result<(String, Output, Input), AdapterError> {
        let id = self.create(cmd, true).await?;
        let options = StartExecOptions { detach: false, tty: false, output_capacity: Some(PIECE) };
        let request = self.engine.client().await?.start_exec(&id, Some(options));
        let what = format!("run `{program}` in container `{}`", self.name);
        match tokio::time::timeout(START, request).await {
            Ok(Ok(StartExecResults::Attached { output, input })) => Ok((id, output.boxed(), input)),
            Ok(Ok(StartExecResults::Detached)) => {
                Err(AdapterError::corrupt(format!("cannot {what}: not attached")))
            }
            Ok(Err(bollard::errors::Error::DockerResponseServerError { message, .. }))
                if says_no_shell(&message) =>
            {
                Err(self.no_shell().await.error())
            }
            Ok(Err(e)) => Err(self.engine.error(&what, e)),
            Err(_) => Err(self.engine.error(&what, bollard::errors::Error::RequestTimeoutError)),
        }
    }

    /// A container that has just stopped is told in the same words by the engine.
    async fn no_shell(&self) -> Failure {
        if let Some(failure) = self.look().await {
            return failure;
        }
        Failure::from(AdapterError::unsupported(format!(
            "no program can be run in container `{}`: its image `{}` has no `sh`",
            self.name, self.image
        )))
    }

    /// How an exec stands: `None` while it runs.
    async fn exit_code(&self, exec_id: &str) -> Result<Option<i64>, AdapterError> {
        let request = self.engine.client().await?.inspect_exec(exec_id);
        let what = format!("learn how a program in container `{}` ended", self.name);
        let state = self.engine.call(&what, request).await?;
        Ok(if state.running == Some(false) { state.exit_code } else { None })
    }

    /// Ends the program that `leader` wraps from outside. Best effort: what cannot be reached is told to the log.
    async fn kill(&self, leader: u64, nonce: &str) {
        let work = async {
            let cmd = ["sh", "-c", KILL, "sh", &leader.to_string(), nonce].map(str::to_owned).to_vec();
            let id = self.create(cmd, false).await?;
            let options = StartExecOptions { detach: true, tty: false, output_capacity: None };
            let request = self.engine.client().await?.start_exec(&id, Some(options));
            self.engine.call("end a program", request).await?;
            while self.exit_code(&id).await?.is_none() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok::<_, AdapterError>(())
        };
        match tokio::time::timeout(Duration::from_secs(60), work).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => {
                tracing::warn!(container = self.name, error = %e, "a program in a container may still run");
            }
            Err(_) => tracing::warn!(container = self.name, "a program in a container may still run"),
        }
    }
}

pub(super) fn says_no_shell(text: &str) -> bool {
    text.contains("executable file not found") || text.contains("no such file or directory")
}

/// `text` without what it must not show.
fn without_secrets(mut text: String, secrets: &[(String, Secret)]) -> String {
    for (_, secret) in secrets {
        // Shorter ones would take apart ordinary words.
        if secret.expose().len() >= 4 {
            text = text.replace(secret.expose(), "***");
        }
    }
    text
}

fn outcome_of(code: i64, stderr_tail: String) -> ExecOutcome {
    ExecOutcome { status: ExitStatus { code: Some(code), killed: code == 137 }, stderr_tail }
}

/// The last lines of `stderr`, for an error.
fn last_lines(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().rev().filter(|l| !l.trim().is_empty()).take(3).collect();
    let lines: Vec<String> = lines.into_iter().rev().map(one_line).collect();
    lines.join(" | ")
}
