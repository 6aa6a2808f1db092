//! A second server over restored or captured data: proves that Neo4j opens it, and counts what it holds.
//!
//! It runs in a container without a network, with bounded memory, and asks for no password: whatever password the backup
//! holds. We talk to it through a program in that container.

use std::path::PathBuf;
use std::time::Duration;

use backup_core::runtime::ExecCommand;
use backup_core::{AdapterError, AdapterErrorKind, Answer, Evidence, OpContext, Secret};
use futures::TryStreamExt;
use tokio::time::{Instant, sleep};
use tokio_util::io::{ReaderStream, StreamReader};

use super::ask;
use super::bolt::{Bolt, Login};
use super::capture::phase;
use super::packstream::Value;
use super::server::{self, Server};
use super::tools::{self, CONF, Conf, DATA, MEMORY, TRANSACTIONS};
use crate::runtime::docker::{Helper, Purpose};

/// How long it may take to recover and come up.
const COME_UP: Duration = Duration::from_secs(3600);
/// How long it may take to end by itself.
const GRACE: Duration = Duration::from_secs(300);
const LOOK: Duration = Duration::from_millis(500);

/// Hands bytes to and from the server; bash has what it takes, and the public image has bash.
const TUNNEL: &str =
    "exec 3<>/dev/tcp/127.0.0.1/7687 || exit 7; cat <&3 & cat >&3; kill $! 2>/dev/null; exit 0";

/// Data to be proven.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    /// What messages call it: `restored`, `captured`.
    pub(super) called: &'static str,
    pub(super) data: PathBuf,
    /// The transaction logs, if they are not in the data directory.
    pub(super) transactions: Option<PathBuf>,
    pub(super) user: String,
    /// If there is no container whose image could be taken.
    pub(super) image: Option<String>,
    pub(super) major: u32,
    pub(super) home: Option<String>,
    /// Whether it is thrown away afterwards.
    pub(super) purpose: Purpose,
}

impl Subject {
    pub(super) fn binds(&self) -> Vec<(PathBuf, PathBuf)> {
        let logs = self.transactions.iter().map(|t| (t.clone(), TRANSACTIONS.into()));
        std::iter::once((self.data.clone(), DATA.into())).chain(logs).collect()
    }
}

/// What is done besides opening the data and counting it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Also<'a> {
    Nothing,
    /// Neo4j checks each database.
    Check,
    /// The configured user gets this password: the second server asks for none, as Neo4j's manual has it for lost ones
    /// (Operations Manual, "Password and user recovery").
    SetPassword(&'a Secret),
}

/// Starts a server over it, waits until every database is online, counts, and ends it cleanly.
///
/// # Errors
/// `Corrupt` if Neo4j does not open the data or finds it inconsistent; those of the runtime.
pub(super) async fn prove(
    server: &Server,
    cx: &OpContext,
    subject: &Subject,
    also: Also<'_>,
) -> Result<Evidence, AdapterError> {
    prove_and_ask(server, cx, subject, also, &[]).await.map(|(evidence, _)| evidence)
}

/// The same; while the server runs, it is asked `questions`.
///
/// # Errors
/// As [`prove`]. An answer has an error of its own.
pub(super) async fn prove_and_ask(
    server: &Server,
    cx: &OpContext,
    subject: &Subject,
    also: Also<'_>,
    questions: &[String],
) -> Result<(Evidence, Vec<Answer>), AdapterError> {
    let transactions = match &subject.transactions {
        Some(_) => TRANSACTIONS.into(),
        None => PathBuf::from(DATA).join("transactions"),
    };
    let conf = Conf {
        major: subject.major,
        data: DATA.into(),
        transactions,
        serve: true,
        home: subject.home.clone(),
    };
    let conf = conf.write(&cx.spool).await?;
    let mut spec = tools::spec(&subject.user);
    spec.image.clone_from(&subject.image);
    spec.memory = Some(MEMORY);
    spec.purpose = subject.purpose;
    spec.binds = subject.binds();
    spec.binds.push((conf, CONF.into()));
    spec.program = vec!["neo4j".to_owned(), "console".to_owned()];
    let called = subject.called;
    phase(cx, &format!("starting a second server over the {called} data"));
    let second = cx.within(server.docker.helper(&cx.run_id, spec)).await??;
    let mut counted = count(cx, &second, called, questions).await;
    if let (Ok(_), Also::SetPassword(password)) = (&counted, also) {
        let set = set_password(server, cx, &second, password).await;
        counted = counted.and_then(|found| set.map(|()| found));
    }
    let ended = match &counted {
        Ok(_) => cx.within(second.stop(GRACE)).await.and_then(|ended| ended),
        Err(_) => Ok(backup_core::runtime::ExitStatus { code: None, killed: false }),
    };
    let closed = second.close().await;
    let (evidence, databases, answers) = counted?;
    closed?;
    if ended?.killed {
        let what = format!("the second server over the {called} data does not end by itself");
        return Err(AdapterError::new(AdapterErrorKind::Timeout, what));
    }
    if also == Also::Check {
        phase(cx, &format!("checking the consistency of the {called} data"));
        let helper = tools::over(server, cx, subject, subject.binds()).await?;
        let mut checked = Ok(());
        for database in databases {
            let done = tools::admin(&helper, cx, &tools::check(subject.major, &database)).await;
            if let Err(e) = done {
                let what = format!("Neo4j finds database `{database}` inconsistent, or cannot check it");
                checked = Err(AdapterError::corrupt(what).with_source(e));
                break;
            }
        }
        helper.close().await?;
        checked?;
    }
    Ok((evidence, answers))
}

async fn count(
    cx: &OpContext,
    second: &Helper,
    called: &str,
    questions: &[String],
) -> Result<(Evidence, Vec<String>, Vec<Answer>), AdapterError> {
    let unopened = format!("Neo4j does not open the {called} data");
    let until = Instant::now() + COME_UP;
    loop {
        let tried = async {
            let mut bolt = tunnel(cx, second).await?;
            let databases = opened(cx, &mut bolt, &unopened).await;
            let databases = match databases {
                Ok(databases) => databases,
                Err(e) => {
                    bolt.close(cx).await;
                    return Err(e);
                }
            };
            let evidence = server::evidence(cx, &mut bolt, &databases).await;
            let answers = match evidence.is_ok() {
                true => ask::all(cx, &mut bolt, &databases, questions).await,
                false => Vec::new(),
            };
            bolt.close(cx).await;
            let names = databases.iter().filter(|d| d.is_online()).map(|d| d.name.clone()).collect();
            Ok((evidence?, names, answers))
        };
        let late = match tried.await {
            Err(e) if e.kind() == AdapterErrorKind::Unavailable => e,
            done => return done,
        };
        if let Some(exit) = cx.within(second.ended()).await?? {
            let code = exit.code.unwrap_or(-1);
            return Err(AdapterError::corrupt(format!(
                "{unopened}: it ended with exit code {code}; it said: {}",
                second.log().await
            )));
        }
        if Instant::now() > until {
            return Err(AdapterError::corrupt(unopened).with_source(late));
        }
        cx.within(sleep(LOOK)).await?;
    }
}

async fn set_password(
    server: &Server,
    cx: &OpContext,
    second: &Helper,
    password: &Secret,
) -> Result<(), AdapterError> {
    let mut bolt = tunnel(cx, second).await?;
    let parameters = [("user", server.user.as_str()), ("password", password.expose())];
    let parameters = parameters.map(|(key, value)| (key.to_owned(), Value::text(value))).to_vec();
    let query = "ALTER USER $user SET PASSWORD $password CHANGE NOT REQUIRED";
    let set = bolt.query_with(cx, server::SYSTEM, query, parameters).await;
    bolt.close(cx).await;
    match set {
        Ok(_) => Ok(()),
        Err(e) if e.to_string().contains("cannot be the same") => Ok(()),
        Err(e) => {
            let what = format!("cannot set the password of user `{}` in the restored data", server.user);
            Err(AdapterError::new(e.kind(), what).with_source(e))
        }
    }
}

/// The databases, once all are online.
///
/// # Errors
/// `Corrupt` for one that the server could not open; `Unavailable` as long as one may come up.
async fn opened(
    cx: &OpContext,
    bolt: &mut Bolt,
    unopened: &str,
) -> Result<Vec<server::Database>, AdapterError> {
    let all = server::databases(cx, bolt).await?;
    if let Some((database, why)) = all.iter().find_map(|d| Some((d, d.failure()?))) {
        let what = format!("{unopened}: database `{}`: {why}", database.name);
        return Err(AdapterError::corrupt(what));
    }
    server::online(cx, bolt).await
}

async fn tunnel(cx: &OpContext, second: &Helper) -> Result<Bolt, AdapterError> {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let input =
        ReaderStream::new(theirs).map_err(|e| AdapterError::io("cannot talk to the second server", e));
    let command =
        ExecCommand::new(["bash", "-c", TUNNEL]).with_stdin(Box::pin(input)).with_deadline(cx.deadline);
    let running = cx.within(second.exec(command)).await?;
    let running = running.map_err(|e| {
        AdapterError::new(AdapterErrorKind::Unavailable, "the second server cannot be reached").with_source(e)
    })?;
    let output = StreamReader::new(running.stdout.map_err(std::io::Error::other));
    let login = Login { user: String::new(), password: None };
    let stream = Box::new(tokio::io::join(output, ours));
    Bolt::open(cx, stream, "the second server".to_owned(), &login).await
}
