//! Programs beside a service of the host: child processes of ours.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backup_core::runtime::{ExecCommand, ExecOutcome, Execution, ExitStatus};
use backup_core::{AdapterError, AdapterErrorKind, ByteStream, Secret};
use futures::FutureExt as _;
use futures::future::FusedFuture as _;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::group::Group;
use super::tail::{Tail, last_lines};
use super::{stdin, stdout};

/// How long a killed program, or one that holds standard error open after its end, is waited for.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A program that runs: dropped, every process of it is killed.
#[derive(Debug)]
pub(super) struct Job {
    group: Arc<Group>,
    _supervisor: JoinSet<()>,
}

impl Drop for Job {
    fn drop(&mut self) {
        // At once: the supervisor is only told to end, and does so when it gets the processor.
        self.group.finish();
    }
}

/// What the supervisor has for the two ends of an execution.
struct Ends {
    /// Whether the output counts.
    verdict: oneshot::Sender<Result<(), AdapterError>>,
    outcome: oneshot::Sender<ExecOutcome>,
    /// Fires, or is dropped, once nobody reads standard output any more.
    read: oneshot::Receiver<()>,
}

/// Runs `command`. Programs that are named without a path are looked for in `path` before the environment's.
pub(super) async fn run(command: ExecCommand, path: &[PathBuf]) -> Result<Execution, AdapterError> {
    let ExecCommand { argv, env, stdin: input, user, deadline, accept, .. } = command;
    let Some(program) = argv.first().cloned() else {
        return Err(AdapterError::new(AdapterErrorKind::InvalidConfig, "no program to run"));
    };
    let mut argv = located(argv, path);
    if let Some(user) = user {
        argv = super::user::switch_to(&user, argv).await?;
    }
    let mut start = Command::new(argv.first().unwrap_or(&program));
    start
        .args(argv.iter().skip(1))
        .envs(env.iter().map(|(name, value)| (name, value.expose())))
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = start.spawn().map_err(|e| {
        AdapterError::io(format!("cannot run `{program}` on this host (is it installed?)"), e)
    })?;
    let group = Arc::new(Group::of(&child));
    let missing = || AdapterError::new(AdapterErrorKind::Other, format!("`{program}` has no output"));
    let (output, errors) =
        (child.stdout.take().ok_or_else(missing)?, child.stderr.take().ok_or_else(missing)?);
    let (verdict, judged) = oneshot::channel();
    let (outcome, ended) = oneshot::channel();
    let (reading, read) = oneshot::channel();
    let supervisor = Supervisor {
        program: program.clone(),
        accept,
        secrets: env.into_iter().map(|(_, value)| value).collect(),
        deadline,
        group: Arc::clone(&group),
    };
    let ends = Ends { verdict, outcome, read };
    let mut tasks = JoinSet::new();
    tasks.spawn(supervisor.supervise(child, input, errors, ends));
    let job = Arc::new(Job { group, _supervisor: tasks });
    let lost = move || AdapterError::new(AdapterErrorKind::Other, format!("`{program}` was lost sight of"));
    let stdout = stdout::stream(output, judged, reading, Arc::clone(&job), lost.clone());
    let outcome = async move {
        let ended = ended.await.map_err(|_| lost());
        drop(job);
        ended
    };
    Ok(Execution { stdout, outcome: outcome.boxed() })
}

/// `argv` with its program's path, if that is in one of the folders.
fn located(mut argv: Vec<String>, path: &[PathBuf]) -> Vec<String> {
    if let Some(program) = argv.first_mut().filter(|p| !p.contains('/'))
        && let Some(found) = path.iter().map(|dir| dir.join(&*program)).find(|file| is_program(file))
    {
        *program = found.to_string_lossy().into_owned();
    }
    argv
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// What ends a program.
enum End {
    /// Itself.
    Exited(std::io::Result<std::process::ExitStatus>),
    /// Us, and why.
    Killed(AdapterError),
}

/// Kills a group for the last time.
struct Finish<'a>(&'a Group);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.finish();
    }
}

struct Supervisor {
    program: String,
    accept: Vec<i64>,
    secrets: Vec<Secret>,
    deadline: Option<Instant>,
    group: Arc<Group>,
}

impl Supervisor {
    async fn supervise(
        self,
        mut child: Child,
        input: Option<ByteStream<AdapterError>>,
        errors: ChildStderr,
        ends: Ends,
    ) {
        let Ends { verdict, outcome, read } = ends;
        // Before `child` goes: from then on its number may be another one's.
        let group = Finish(&self.group);
        let tail = Mutex::new(Tail::default());
        let mut drain = std::pin::pin!(drain(errors, &tail).fuse());
        let end = {
            let mut watch = std::pin::pin!(self.watch(&mut child, input, read));
            loop {
                tokio::select! {
                    end = &mut watch => break end,
                    () = &mut drain, if !drain.is_terminated() => {}
                }
            }
        };
        let (status, trouble) = match end {
            End::Exited(Ok(status)) => (Some(status), None),
            End::Exited(Err(e)) => {
                (None, Some(AdapterError::io(format!("cannot wait for `{}`", self.program), e)))
            }
            End::Killed(why) => {
                self.group.kill();
                let status = timeout(LAST_WORDS, self.group.wait(&mut child)).await.ok().and_then(Result::ok);
                (status, Some(why))
            }
        };
        if !drain.is_terminated() {
            // What it started and left running may hold standard error open for ever.
            let _held_open = timeout(LAST_WORDS, drain).await;
        }
        drop(group);
        let status = exit_status(status, trouble.is_some());
        let stderr_tail = tail.lock().unwrap_or_else(PoisonError::into_inner).text(&self.secrets);
        let judged = match trouble {
            Some(why) => Err(why),
            None => self.judge(&status, &stderr_tail),
        };
        // Whoever does not listen any more does not want to know.
        let _unread = outcome.send(ExecOutcome { status, stderr_tail });
        let _unread = verdict.send(judged);
    }

    /// Until the program ends, or must be ended.
    async fn watch(
        &self,
        child: &mut Child,
        input: Option<ByteStream<AdapterError>>,
        read: oneshot::Receiver<()>,
    ) -> End {
        let feed = stdin::feed(child.stdin.take(), input, &self.group);
        tokio::select! {
            () = until(self.deadline) => End::Killed(AdapterError::new(
                AdapterErrorKind::Timeout,
                format!("`{}` did not end in time and was killed", self.program),
            )),
            error = feed => End::Killed(error),
            // Nobody waits for the leader before: as long as nobody has, its group can be killed.
            status = async {
                let _dropped = read.await;
                self.group.wait(child).await
            } => End::Exited(status),
        }
    }

    fn judge(&self, status: &ExitStatus, stderr: &str) -> Result<(), AdapterError> {
        let how = match status.code {
            Some(code) if self.accept.contains(&code) => return Ok(()),
            Some(code) if code > 128 => format!("was ended by signal {}", code - 128),
            Some(code) => format!("failed with exit code {code}"),
            None => "ended without an exit code".to_owned(),
        };
        let said = last_lines(stderr);
        let colon = if said.is_empty() { "" } else { ": " };
        let message = format!("`{}` {how}{colon}{said}", self.program);
        Err(AdapterError::new(AdapterErrorKind::Other, message))
    }
}

fn exit_status(status: Option<std::process::ExitStatus>, by_us: bool) -> ExitStatus {
    let signal = status.and_then(|s| s.signal());
    let code = status.and_then(|s| s.code().or_else(|| s.signal().map(|n| 128 + n)));
    let killed = by_us || signal == Some(rustix::process::Signal::KILL.as_raw());
    ExitStatus { code: code.map(i64::from), killed }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Reads standard error to its end, so that the program never waits for it.
async fn drain(mut errors: impl AsyncRead + Unpin + Send, tail: &Mutex<Tail>) {
    let mut chunk = vec![0; 8192];
    while let Ok(n @ 1..) = errors.read(&mut chunk).await {
        tail.lock().unwrap_or_else(PoisonError::into_inner).push(chunk.get(..n).unwrap_or_default());
    }
}
