//! The steps of a restore, for each target.

use std::path::PathBuf;

use backup_core::runtime::{Interruption, InterruptionEntry, InterruptionKind, Replay};
use backup_core::{
    ANSWER_TIME, AdapterError, AdapterErrorKind, Answer, ArtifactMeta, Evidence, Leftover, Metadata,
    OpContext, Replaced, RestorePlan, RestoreSource, RestoreTarget, SpaceNeed, StepToken, keep_aside,
};
use chrono::{DateTime, Utc};
use futures::StreamExt;
use serde::{Deserialize, Serialize};

use super::conn::Server;
use super::elsewhere;
use super::facts::Info;
use super::file::{self, Files};
use super::kept::{self, Writer};
use super::live::refuse;
use super::rdb::Summary;
use super::wire::{self, Done, Job};
use super::{RestoreMode, ask, check, compat};
use crate::beside::Place;
use crate::on_disk::existing;

/// What the old data is called when it is kept aside.
const NAME: &str = "dump.rdb";

/// What a restore remembers between its steps.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Token {
    /// Planned or staged over the wire.
    Wire(Job),
    /// The server holds the job's file; and what earlier jobs of this restore left.
    WireDone { job: Job, older: Vec<PathBuf> },
    /// By the server's files, at any step.
    File(Box<Files>),
    /// A file in a directory, at any step.
    Place(Place),
}

/// The one artifact of a backup.
pub(super) fn artifact(backup: &Metadata) -> Result<&ArtifactMeta, AdapterError> {
    match backup.artifacts.as_slice() {
        [one] => Ok(one),
        other => {
            Err(AdapterError::corrupt(format!("a backup of Redis has one artifact, not {}", other.len())))
        }
    }
}

pub(super) async fn plan(
    server: &Server,
    mode: RestoreMode,
    cx: &OpContext,
    backup: &Metadata,
    target: &RestoreTarget,
) -> Result<RestorePlan, AdapterError> {
    let bytes = artifact(backup)?.plain_bytes;
    let dir = match target {
        RestoreTarget::Live if mode == RestoreMode::File => return file::plan(server, cx, backup).await,
        RestoreTarget::Live => return plan_wire(server, cx, backup).await,
        RestoreTarget::Dir(dir) => dir,
        RestoreTarget::Scratch(scratch) => &scratch.dir,
        _ => return Err(AdapterError::unsupported("Redis cannot be restored there")),
    };
    elsewhere::plan(cx, dir, target, bytes).await
}

async fn plan_wire(server: &Server, cx: &OpContext, backup: &Metadata) -> Result<RestorePlan, AdapterError> {
    let bytes = artifact(backup)?.plain_bytes;
    let mut conn = server.connect(cx).await?;
    let live = Info::read(&mut conn, cx).await?;
    refuse(cx, &mut conn, &live).await?;
    compat::refuse_newer(&live, backup)?;
    refuse_without_command(server, cx, &mut conn).await?;
    let missing = missing_rights(cx, &mut conn).await?;
    if !missing.is_empty() {
        let user = server.username.as_deref().unwrap_or("default");
        return Err(AdapterError::new(
            AdapterErrorKind::PermissionDenied,
            format!(
                "user `{user}` may not restore over the wire: ACL SETUSER {user} {}{}",
                missing.join(" "),
                or_by_file(server)
            ),
        ));
    }
    let job = Job {
        file: cx.kept.join(format!("{}.rdb", cx.run_id)),
        kept: cx.kept.join(format!("{NAME}.backup.{}", cx.timestamp)),
        done: cx.kept.join(format!("{}.done.json", cx.run_id)),
        id: wire::random()?,
    };
    let kept_as = job.kept.display().to_string();
    let keys = live.evidence().counts.get("keys").copied().unwrap_or(0);
    let saved = if live.is("aof_enabled") { "rewrites its append-only file" } else { "saves its file" };
    let steps = vec![
        format!("write {bytes} bytes to `{}` and check them", job.file.display()),
        format!("hold back the writers of {server}: they wait, or get errors, until the end"),
        format!("keep what it holds ({keys} keys) as `{kept_as}`"),
        "make it follow a port of this program, which only it is let in at, and load the backup".to_owned(),
        format!("compare its keys, make it a primary again, wait until it {saved}, let its writers go on"),
    ];
    let needs = vec![SpaceNeed {
        path: existing(&cx.kept),
        // A file is smaller than the same data in memory; by how much, the copy will tell.
        bytes: bytes.saturating_add(live.number("used_memory_dataset").unwrap_or(0) / 2),
    }];
    let replaces = vec![Replaced {
        what: format!("the {keys} keys of {server}"),
        kept_as,
        changed_at: changed_at(&live, cx),
    }];
    let token = StepToken::new(&Token::Wire(job))?;
    Ok(RestorePlan { target: RestoreTarget::Live, steps, replaces, space: needs, token })
}

/// What to say where the wire is closed: never taken without being asked for, because it stops the server.
pub(super) fn or_by_file(server: &Server) -> &'static str {
    match server.container().is_some() || server.unit.is_some() {
        true => "; or set `restore = \"file\"`, which stops the server for as long as it takes",
        false => "",
    }
}

/// A server may have its commands renamed, so that nobody makes it follow another by mistake.
async fn refuse_without_command(
    server: &Server,
    cx: &OpContext,
    conn: &mut super::conn::Conn,
) -> Result<(), AdapterError> {
    use super::resp::Reply;
    let known = conn.ask(cx, &["COMMAND", "INFO", "REPLICAOF"]).await?;
    let unknown = match known.items() {
        [Reply::Array(facts)] => facts.is_empty(),
        [one] => *one == Reply::Bulk(None),
        // Whoever may not ask finds out when it is done.
        _ => false,
    };
    if unknown {
        let what = "does not know REPLICAOF, which a restore over the wire needs: renamed or disabled there";
        return Err(conn.trouble(AdapterErrorKind::Unsupported, &format!("{what}{}", or_by_file(server))));
    }
    Ok(())
}

/// When the data was changed last, as far as the server tells: after its last save, or before.
pub(super) fn changed_at(live: &Info, cx: &OpContext) -> Option<DateTime<Utc>> {
    match live.number("rdb_changes_since_last_save")? {
        0 => DateTime::from_timestamp(live.number("rdb_last_save_time")?.try_into().ok()?, 0),
        _ => Some(cx.clock.now()),
    }
}

/// The rights that a restore needs and the user lacks, where the server tells (since 7.0).
async fn missing_rights(
    cx: &OpContext,
    conn: &mut super::conn::Conn,
) -> Result<Vec<&'static str>, AdapterError> {
    use super::resp::Reply;
    let Some(user) = conn.ask(cx, &["ACL", "WHOAMI"]).await?.text() else { return Ok(Vec::new()) };
    let needed: [(&[&str], &str); 7] = [
        (&["REPLICAOF", "NO", "ONE"], "+replicaof"),
        (&["PSYNC", "?", "-1"], "+psync"),
        (&["REPLCONF", "capa", "eof"], "+replconf"),
        (&["CONFIG", "GET", "databases"], "+config|get"),
        (&["CONFIG", "SET", "masterauth", ""], "+config|set"),
        (&["CLIENT", "PAUSE", "1", "WRITE"], "+client|pause"),
        (&["CLIENT", "UNPAUSE"], "+client|unpause"),
    ];
    let mut missing = Vec::new();
    for (command, right) in needed {
        let mut args = vec!["ACL", "DRYRUN", user.as_str()];
        args.extend(command);
        if let Reply::Bulk(Some(_)) = conn.ask(cx, &args).await? {
            missing.push(right);
        }
    }
    let save: &[(&[&str], &str)] = &[(&["BGSAVE"], "+bgsave"), (&["BGREWRITEAOF"], "+bgrewriteaof")];
    for (command, right) in save {
        let mut args = vec!["ACL", "DRYRUN", user.as_str()];
        args.extend(*command);
        if let Reply::Bulk(Some(_)) = conn.ask(cx, &args).await? {
            missing.push(right);
        }
    }
    Ok(missing)
}

/// Reads the backup to its verified end into `path`.
pub(super) async fn fetch(
    cx: &OpContext,
    source: &RestoreSource,
    path: PathBuf,
) -> Result<Summary, AdapterError> {
    let meta = artifact(source.metadata())?;
    let mut body = source.open(&meta.name).await?;
    let writer = Writer::create(path.clone());
    let read = async {
        let mut bytes = 0;
        while let Some(piece) = cx.within(body.next()).await? {
            let piece = piece?;
            bytes += piece.len() as u64;
            if !writer.write(piece).await {
                // Its own error tells why.
                return Ok(());
            }
        }
        if bytes != meta.plain_bytes {
            let what = format!("artifact `{}` has {bytes} bytes, not {}", meta.name, meta.plain_bytes);
            return Err(AdapterError::corrupt(what));
        }
        Ok(())
    };
    match read.await {
        Ok(()) => writer.finish().await,
        Err(e) => {
            writer.abandon().await;
            Err(e)
        }
    }
}

pub(super) async fn stage(
    server: &Server,
    cx: &OpContext,
    plan: &RestorePlan,
    source: &RestoreSource,
) -> Result<StepToken, AdapterError> {
    match plan.token.get()? {
        Token::Wire(job) => {
            let file = fetch(cx, source, job.file.clone()).await?;
            let fits = async {
                let mut conn = server.connect(cx).await?;
                let live = Info::read(&mut conn, cx).await?;
                compat::refuse_unloadable(cx, &mut conn, &live, &file).await
            };
            if let Err(e) = fits.await {
                kept::remove(job.files()).await?;
                return Err(e);
            }
            StepToken::new(&Token::Wire(job))
        }
        Token::Place(place) => {
            fetch(cx, source, place.staged.clone()).await?;
            StepToken::new(&Token::Place(place.built(cx).await?))
        }
        Token::File(files) => StepToken::new(&Token::File(Box::new(files.stage(server, cx, source).await?))),
        Token::WireDone { .. } => Err(AdapterError::corrupt("this restore was done already")),
    }
}

pub(super) async fn switch(
    server: &Server,
    cx: &OpContext,
    staged: &StepToken,
) -> Result<StepToken, AdapterError> {
    let done = match staged.get()? {
        Token::Wire(job) => {
            wire::replace(cx, server, &job).await?;
            // The server holds it now, on its own disk, too.
            kept::remove(vec![job.file.clone()]).await?;
            Token::WireDone { job, older: Vec::new() }
        }
        Token::Place(place) => Token::Place(place.switch().await?),
        Token::File(files) => Token::File(Box::new(files.switch(server, cx).await?)),
        done @ Token::WireDone { .. } => done,
    };
    StepToken::new(&done)
}

/// Counts what is there, and asks it.
pub(super) async fn probe(
    server: &Server,
    cx: &OpContext,
    target: &RestoreTarget,
    questions: &[String],
) -> Result<(Evidence, Vec<Answer>), AdapterError> {
    if let RestoreTarget::Scratch(scratch) = target {
        return elsewhere::load(server, cx, &scratch.dir, questions).await;
    }
    let found = count(server, cx, target).await?;
    let mut answers = Vec::with_capacity(questions.len());
    for question in questions {
        answers.push(ask::ask(server, &cx.limited_to(ANSWER_TIME), target, question).await);
    }
    Ok((found, answers))
}

async fn count(server: &Server, cx: &OpContext, target: &RestoreTarget) -> Result<Evidence, AdapterError> {
    match target {
        RestoreTarget::Live => {
            // What this very run has restored was counted before the writers went on.
            let done = kept::read_record::<Done>(cx.kept.join(format!("{}.done.json", cx.run_id))).await?;
            if let Some(done) = done {
                return Ok(done.evidence);
            }
            let mut conn = server.connect(cx).await?;
            Ok(Info::read(&mut conn, cx).await?.evidence())
        }
        RestoreTarget::Dir(dir) => Ok(check::evidence(&kept::check(dir.join(NAME)).await?)),
        _ => Err(AdapterError::unsupported("Redis cannot be counted there")),
    }
}

pub(super) async fn undo(
    server: &Server,
    cx: &OpContext,
    switched: &StepToken,
) -> Result<StepToken, AdapterError> {
    let undone = match switched.get()? {
        Token::WireDone { job, mut older } => {
            let at = cx.timestamp;
            let mut aside = cx.kept.join(format!("{NAME}.backup.{at}"));
            if aside == job.kept {
                aside = cx.kept.join(format!("{NAME}.backup.{at}.undone"));
            }
            let id = wire::history(&format!("{} undone {at}", job.id));
            let done = cx.kept.join(format!("undo-{at}-{}.done.json", short(&id)));
            let back = Job { file: job.kept.clone(), kept: aside, done, id };
            wire::replace(cx, server, &back).await?;
            // It is live again.
            kept::remove(vec![job.kept.clone(), job.done.clone()]).await?;
            older.extend(job.files().into_iter().filter(|f| !back.files().contains(f)));
            Token::WireDone { job: back, older }
        }
        Token::Place(place) => Token::Place(place.undo(cx).await?),
        Token::File(files) => Token::File(Box::new(files.undo(server, cx).await?)),
        Token::Wire(_) => {
            return Err(AdapterError::new(AdapterErrorKind::Conflict, "this restore never went live"));
        }
    };
    StepToken::new(&undone)
}

fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

async fn remains(token: &StepToken) -> Result<Vec<PathBuf>, AdapterError> {
    Ok(match token.get()? {
        Token::Wire(job) => job.files(),
        Token::WireDone { job, older } => job.files().into_iter().chain(older).collect(),
        Token::Place(place) => elsewhere::remains(&place),
        Token::File(files) => files.remains(),
    })
}

pub(super) async fn leftovers(token: &StepToken) -> Result<Vec<Leftover>, AdapterError> {
    let found = kept::sizes(remains(token).await?).await?;
    Ok(found
        .into_iter()
        .map(|(path, bytes)| Leftover { what: path.display().to_string(), bytes: Some(bytes) })
        .collect())
}

pub(super) async fn discard(cx: &OpContext, token: &StepToken) -> Result<(), AdapterError> {
    match token.get()? {
        Token::Wire(job) | Token::WireDone { job, .. } => wire::refuse_half_done(cx, &job).await?,
        Token::File(files) => files.refuse_half_done()?,
        Token::Place(_) => {}
    }
    kept::remove(remains(token).await?).await
}

pub(super) async fn bring_back(
    server: &Server,
    cx: &OpContext,
    entry: &InterruptionEntry,
) -> Result<Replay, AdapterError> {
    if matches!(entry.kind, InterruptionKind::Other { .. }) {
        return wire::bring_back(cx, server, entry).await;
    }
    let runtime = server.runtime().ok_or_else(|| {
        AdapterError::unsupported(format!("nothing here can start {server}: start it by hand"))
    })?;
    Interruption::replay(&cx.interruption(), &*runtime, entry).await
}

/// Whether a file of a directory was left by a restore: such a directory counts as empty.
pub(super) fn is_own(name: &std::ffi::OsStr) -> bool {
    keep_aside::is_set_aside(name) || name.to_str().is_some_and(|n| n.starts_with("..dump.rdb.restore-"))
}
