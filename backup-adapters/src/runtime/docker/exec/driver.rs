//! One program in a container, from its start to its end.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backup_core::runtime::ExecOutcome;
use backup_core::{AdapterError, AdapterErrorKind as Kind, ByteStream, Secret, chain};
use bollard::container::LogOutput;
use bytes::{Bytes, BytesMut};
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::failure::Failure;
use super::feed::feed;
use super::marks::{Note, Stderr, Stdout, Stray};
use super::{
    Input, NEVER, Output, PIECE, START, Spot, last_lines, one_line, outcome_of, says_no_shell,
    without_secrets,
};

/// How long the wrapper gets to go once it was let go, and to send the second of its two last lines after the first.
const GOING: Duration = Duration::from_secs(15);

/// What the engine says of a container that has ended already, while it still calls it a running one.
const STOPPED: &str = "in a stopped state";

#[derive(Debug)]
pub(super) enum Piece {
    Data(Bytes),
    Failed(AdapterError),
    /// The program ended well, and this was all.
    Done,
}

pub(super) struct Driver {
    pub(super) spot: Spot,
    pub(super) name: String,
    pub(super) program: String,
    pub(super) nonce: String,
    pub(super) exec_id: String,
    pub(super) deadline: Option<Instant>,
    pub(super) accept: Vec<i64>,
    pub(super) env: Vec<(String, Secret)>,
    /// The wrapper's process id in the container.
    pub(super) leader: Arc<OnceLock<u64>>,
}

type Start = oneshot::Sender<Result<(), AdapterError>>;

impl Driver {
    pub(super) async fn run(
        self,
        output: Output,
        input: Input,
        stdin: Option<ByteStream<AdapterError>>,
        start: Start,
        pieces: mpsc::Sender<Piece>,
        mut outcome: oneshot::Sender<Result<ExecOutcome, AdapterError>>,
    ) {
        let mut start = Some(start);
        let abandoned = async {
            pieces.closed().await;
            outcome.closed().await;
        };
        let result = tokio::select! {
            result = self.converse(output, input, stdin, &mut start, &pieces) => result,
            failure = self.spot.changed() => Err(failure.during(&self.program)),
            () = tokio::time::sleep_until(self.deadline.unwrap_or_else(|| Instant::now() + NEVER)) => Err(self.too_late()),
            () = abandoned => Err(Failure::new(Kind::Cancelled, format!("`{}` was given up", self.program))),
        };
        // The connection is closed by now, which makes the wrapper end the program.
        let result = match result {
            Ok(done) => self.confirm(done).await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = &result
            && !failure.over
            && let Some(leader) = self.leader.get()
        {
            self.spot.kill(*leader, &self.nonce).await;
        }
        let (last, told) = match result {
            Ok(done) if done.status.code.is_some_and(|c| self.accept.contains(&c)) => (Piece::Done, Ok(done)),
            Ok(done) => (Piece::Failed(self.failed(&done)), Ok(done)),
            Err(failure) => {
                if let Some(start) = start.take() {
                    // Nobody waits for the start of what was given up.
                    drop(start.send(Err(failure.error())));
                }
                (Piece::Failed(failure.error()), Err(failure.error()))
            }
        };
        // Whoever does not listen any more needs no answer.
        drop(outcome.send(told));
        drop(pieces.send(last).await);
    }

    async fn converse(
        &self,
        output: Output,
        input: Input,
        stdin: Option<ByteStream<AdapterError>>,
        start: &mut Option<Start>,
        pieces: &mpsc::Sender<Piece>,
    ) -> Result<ExecOutcome, Failure> {
        let ended = CancellationToken::new();
        let feed = feed(input, &self.env, stdin, &ended);
        let read = self.read(output, &ended, start, pieces);
        tokio::pin!(feed, read);
        tokio::select! {
            result = &mut read => result,
            fed = &mut feed => match fed {
                Ok(()) => read.await,
                Err(e) => Err(Failure::new(e.kind(), format!("the input of `{}` failed: {}", self.program, chain(&e)))),
            },
        }
    }

    /// Reads until the wrapper is gone.
    async fn read(
        &self,
        mut output: Output,
        ended: &CancellationToken,
        start: &mut Option<Start>,
        pieces: &mpsc::Sender<Piece>,
    ) -> Result<ExecOutcome, Failure> {
        let (mut stdout, mut stderr) = (Stdout::new(&self.nonce), Stderr::new(&self.nonce));
        let mut said: Option<i64> = None;
        let mut gathered = BytesMut::new();
        loop {
            // Gathers what is there; hands it on before it waits.
            let frame = match output.next().now_or_never() {
                Some(frame) if gathered.len() < PIECE => frame,
                ready => {
                    if !gathered.is_empty() {
                        // Nobody reads: the program goes on all the same.
                        drop(pieces.send(Piece::Data(gathered.split().freeze())).await);
                    }
                    match ready {
                        Some(frame) => frame,
                        None => {
                            // Counted anew for each wait: how slowly our output is taken does not matter.
                            let patience = if stdout.code().is_some() || said.is_some() {
                                GOING
                            } else if self.leader.get().is_none() {
                                START
                            } else {
                                NEVER
                            };
                            match tokio::time::timeout(patience, output.next()).await {
                                Ok(frame) => frame,
                                Err(_) if ended.is_cancelled() => None,
                                Err(_) => return Err(self.silent(said)),
                            }
                        }
                    }
                }
            };
            let Some(frame) = frame else { break };
            match frame {
                Ok(LogOutput::StdOut { message }) => {
                    match stdout.push(message) {
                        Ok(data) => gathered.extend_from_slice(&data),
                        Err(Stray::BeforeStart(text)) => return Err(self.garbage(&text).await),
                        Err(Stray::AfterEnd) => {
                            return Err(
                                self.corrupt("something that it left behind went on printing after its end")
                            );
                        }
                    }
                    if let Some(pid) = stdout.leader()
                        && let Some(start) = start.take()
                    {
                        self.leader.get_or_init(|| pid);
                        // Given up meanwhile: that is seen elsewhere.
                        drop(start.send(Ok(())));
                    }
                }
                Ok(LogOutput::StdErr { message }) => {
                    for note in stderr.push(&message) {
                        match note {
                            Note::Refused(what) => return Err(self.refused(&what)),
                            Note::NotFed if said.is_none() => {
                                return Err(self.corrupt("its input could not be handed over"));
                            }
                            Note::NotFed => {}
                            Note::Ended(code) => said = Some(code),
                        }
                    }
                }
                Ok(LogOutput::Console { message } | LogOutput::StdIn { message }) => {
                    return Err(self.garbage(&message).await);
                }
                Err(e) => {
                    tracing::debug!(error = %e, "the stream of a program in a container broke");
                    break;
                }
            }
            if stdout.code().is_some() && stdout.code() == said {
                ended.cancel();
            }
        }
        if !ended.is_cancelled() {
            return Err(self.broken_off(start.is_some()).await);
        }
        if !gathered.is_empty() {
            drop(pieces.send(Piece::Data(gathered.freeze())).await);
        }
        let tail = without_secrets(stderr.tail(), &self.env);
        Ok(outcome_of(said.unwrap_or(-1), tail))
    }

    /// Compares with what the engine knows: a program that ended in two ways has not ended well.
    async fn confirm(&self, done: ExecOutcome) -> Result<ExecOutcome, Failure> {
        let until = Instant::now() + GOING;
        loop {
            match self.spot.exit_code(&self.exec_id).await {
                Ok(Some(code)) if Some(code) == done.status.code => return Ok(done),
                Ok(Some(code)) => {
                    let said = done.status.code.unwrap_or(-1);
                    return Err(self.corrupt(&format!("it ended with {said}, but the engine says {code}")));
                }
                Ok(None) if Instant::now() < until => tokio::time::sleep(Duration::from_millis(20)).await,
                Ok(None) => return Err(self.corrupt("the engine does not learn of its end")),
                // The container was stopped or removed since: the program had ended, and said how.
                Err(e) if e.kind() == Kind::NotFound => return Ok(done),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// The stream ended before the program did.
    async fn broken_off(&self, before_start: bool) -> Failure {
        if let Some(failure) = self.spot.look().await {
            return failure.during(&self.program);
        }
        if before_start && let Ok(Some(126 | 127)) = self.spot.exit_code(&self.exec_id).await {
            return self.spot.no_shell().await;
        }
        let what = "the connection to the engine broke off; how it ended is not known";
        Failure::new(Kind::Unavailable, format!("`{}` in container `{}`: {what}", self.program, self.name))
    }

    async fn garbage(&self, message: &[u8]) -> Failure {
        let text = String::from_utf8_lossy(message.get(..message.len().min(4096)).unwrap_or_default());
        if self.leader.get().is_none() {
            // The engine reports so what kept it from starting the program.
            if says_no_shell(&text) {
                return self.spot.no_shell().await;
            }
            if text.contains(STOPPED) {
                return self.spot.stopped().await;
            }
            // Only if the program was never started: else it may be what the program printed, which can be a secret.
            if let Ok(Some(126 | 127)) = self.spot.exit_code(&self.exec_id).await {
                let text = without_secrets(one_line(&text), &self.env);
                let message = format!("cannot run `{}` in container `{}`: {text}", self.program, self.name);
                return Failure::new(Kind::Other, message);
            }
            return self.corrupt("its output does not begin as it must");
        }
        match self.spot.look().await {
            Some(failure) => failure.during(&self.program),
            None => self.corrupt("its stream was cut or is damaged"),
        }
    }

    fn failed(&self, done: &ExecOutcome) -> AdapterError {
        let (code, lines) = (done.status.code.unwrap_or(-1), last_lines(&done.stderr_tail));
        let lines = if lines.is_empty() { String::new() } else { format!(": {lines}") };
        let program = &self.program;
        let what = match code {
            126 | 127 => format!("`{program}` cannot be run in container `{}`", self.name),
            137 => format!("`{program}` was killed (exit code 137; out of memory?)"),
            _ => format!("`{program}` ended with exit code {code}"),
        };
        AdapterError::new(Kind::Other, format!("{what}{lines}"))
    }

    fn refused(&self, what: &str) -> Failure {
        let why = match what {
            "dd" => "its image has no `dd` that knows `iflag=fullblock`, which hands over the input",
            "group" => "programs get no process group of their own there, so that they could not be ended",
            _ => "it has no `/proc`",
        };
        let message = format!("`{}` cannot be run in container `{}`: {why}", self.program, self.name);
        Failure::new(Kind::Unsupported, message)
    }

    fn corrupt(&self, what: &str) -> Failure {
        Failure::new(Kind::Corrupt, format!("`{}` in container `{}`: {what}", self.program, self.name))
    }

    fn silent(&self, said: Option<i64>) -> Failure {
        match said {
            Some(_) => self.corrupt("the end of its output did not arrive"),
            None => Failure::new(
                Kind::Timeout,
                format!("`{}` in container `{}` was not started in time", self.program, self.name),
            ),
        }
    }

    fn too_late(&self) -> Failure {
        let message =
            format!("`{}` in container `{}` was not done in time and was ended", self.program, self.name);
        Failure::new(Kind::Timeout, message)
    }
}

impl Failure {
    fn during(mut self, program: &str) -> Self {
        self.message = format!("{} while `{program}` ran in it", self.message);
        self
    }
}
