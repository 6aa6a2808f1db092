//! Restores into directories: a file `dump.rdb`, as a server would find it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use backup_core::{
    ANSWER_TIME, AdapterError, Answer, Evidence, OpContext, RestorePlan, RestoreTarget, StepToken,
};
use tokio::process::{Child, Command};
use tokio::time::sleep;

use super::conn::{self, Conn, Server};
use super::facts::Info;
use super::kept;
use super::rdb::Summary;
use super::restore::{Token, is_own};
use super::{ask, check, resp};
use crate::beside::Place;
use crate::on_disk::failed;

const NAME: &str = "dump.rdb";

/// A file in a directory.
pub(super) async fn plan(
    cx: &OpContext,
    dir: &Path,
    target: &RestoreTarget,
    bytes: u64,
) -> Result<RestorePlan, AdapterError> {
    let (place, replaces, space) = Place::plan(cx, dir, NAME, bytes, is_own).await?;
    let steps = vec![format!("write {bytes} bytes to `{}` and check them", place.target.display())];
    let token = StepToken::new(&Token::Place(place))?;
    Ok(RestorePlan { target: target.clone(), steps, replaces, space, token })
}

/// What may lie beside the target.
pub(super) fn remains(place: &Place) -> Vec<PathBuf> {
    std::iter::once(kept::part(&place.staged)).chain(place.remains()).collect()
}

/// How long the scratch server may take to answer at all.
const START: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);

/// Counts the file in `dir` by loading it into a server of its own, if this host has one that can: without a port, without
/// writing anything. Otherwise the file is walked, and no question can be asked.
pub(super) async fn load(
    cx: &OpContext,
    dir: &Path,
    questions: &[String],
) -> Result<(Evidence, Vec<Answer>), AdapterError> {
    let summary = kept::check(dir.join(NAME)).await?;
    let counted = check::evidence(&summary);
    let Some(program) = program(&summary).await else {
        cx.warn("this host has no redis-server that loads this file: it was walked to its end, not loaded");
        let unasked =
            |_: &String| Err(AdapterError::unsupported("this host has no redis-server that loads this file"));
        return Ok((counted, questions.iter().map(unasked).collect()));
    };
    // A socket's path must be short.
    let run = tempfile::Builder::new().prefix("backup-redis-").tempdir();
    let run = run.map_err(failed("create a folder for", dir))?;
    let mut child = start(program, dir, run.path(), &summary)?;
    let server = Server {
        place: conn::Place::Socket(run.path().join("s")),
        unit: None,
        username: None,
        password: None,
        tls: None,
    };
    let found = answer(cx, &server, &mut child).await;
    let mut answers = Vec::with_capacity(questions.len());
    if found.is_ok() {
        for question in questions {
            answers.push(ask::of_server(&server, &cx.limited_to(ANSWER_TIME), question).await);
        }
    }
    // It has nothing to save.
    let _gone = child.kill().await;
    let mut evidence = found?.evidence();
    evidence.notes = counted.notes;
    evidence.notes.insert("loaded_by".into(), program.to_owned());
    Ok((evidence, answers))
}

/// A server of this host that is as new as the file.
async fn program(file: &Summary) -> Option<&'static str> {
    for program in ["redis-server", "valkey-server"] {
        let mut command = Command::new(program);
        command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
        let Ok(said) = command.output().await else { continue };
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let version = said.split_once("v=").and_then(|(_, v)| v.split(' ').next()).unwrap_or_default();
        let server = if program == "valkey-server" { "valkey" } else { "redis" };
        if super::compat::loads(server, version, file) {
            return Some(program);
        }
    }
    None
}

fn start(program: &str, dir: &Path, run: &Path, file: &Summary) -> Result<Child, AdapterError> {
    let databases = file.databases.keys().next_back().map_or(16, |last| last + 1).max(16);
    let mut command = Command::new(program);
    command.arg("--dir").arg(dir).args(["--dbfilename", NAME, "--port", "0", "--unixsocketperm", "700"]);
    command.arg("--unixsocket").arg(run.join("s")).args(["--save", "", "--appendonly", "no"]);
    command
        .args(["--daemonize", "no", "--databases", &databases.to_string(), "--logfile"])
        .arg(run.join("log"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command.spawn().map_err(failed("start", Path::new(program)))
}

async fn answer(cx: &OpContext, server: &Server, child: &mut Child) -> Result<Info, AdapterError> {
    let until = tokio::time::Instant::now() + START;
    let mut conn: Option<Conn> = None;
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(AdapterError::corrupt(format!(
                "a scratch server could not load the file ({status})"
            )));
        }
        match &mut conn {
            None => match server.connect(cx).await {
                Ok(fresh) => conn = Some(fresh),
                Err(e) if tokio::time::Instant::now() > until => return Err(e),
                Err(_) => {}
            },
            Some(conn) => match conn.ask(cx, &["INFO"]).await {
                Ok(resp::Reply::Error(_)) | Err(_) => {}
                Ok(reply) => {
                    let live = Info::parse(&reply.text().unwrap_or_default());
                    if !live.is("loading") {
                        return Ok(live);
                    }
                }
            },
        }
        cx.within(sleep(LOOK)).await?;
    }
}
