//! Capture mode `bgsave`: the server writes its file, and that one is read.
//!
//! The reply to `BGSAVE` says only that a child process was made. The save is done when the server says that none runs
//! and that the last one went well, and both its counter of saves (7.0) and the time of the last one moved. `LASTSAVE`
//! counts seconds: so ours begins in a later second than the save before it. And the file says in itself when it was made.

use std::fs::{File, Metadata};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backup_core::runtime::ExecCommand;
use backup_core::{AdapterError, AdapterErrorKind, ByteStream, CHUNK_BYTES, OpContext};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::conn::{Conn, Server};
use super::facts::{Info, Settings};
use super::resp::Reply;
use super::stream::{NO_CHILD, made_at};

/// How often the server is asked how far it is.
const POLL: Duration = Duration::from_millis(100);

/// How far the kernel's coarse clock may be behind, in microseconds.
const LATE_TICK: u64 = 20_000;

/// How long after a rewrite of the append-only file a scheduled save may take to begin.
const SCHEDULED: Duration = Duration::from_secs(5);

/// Chunks between the thread that reads and the pipeline.
const QUEUE: usize = 2;

/// A save that is done.
#[derive(Debug, Clone)]
pub(super) struct Saved {
    /// The file, as the server names it.
    pub(super) path: PathBuf,
    /// Before it was asked for, and when it was done.
    pub(super) asked: DateTime<Utc>,
    pub(super) done: DateTime<Utc>,
    /// The file is not older than this, by the server's clock, in seconds since 1970.
    since: u64,
}

/// How a try to save ended.
enum Try {
    Done,
    /// Something else was running, which has ended.
    Again,
}

/// Lets the server save its data, and waits until it has.
///
/// # Errors
/// `PermissionDenied` that names the right; `Other` if the save failed.
pub(super) async fn save(
    conn: &mut Conn,
    cx: &OpContext,
    settings: &Settings,
) -> Result<Saved, AdapterError> {
    let path = settings.rdb_path(conn)?;
    loop {
        let before = wait_until_idle(conn, cx).await?;
        let since = wait_for_next_second(conn, cx, &before).await?;
        let asked = cx.clock.now();
        if let Try::Done = try_to_save(conn, cx, settings, &before).await? {
            return Ok(Saved { path, asked, done: cx.clock.now(), since });
        }
    }
}

/// Waits for a save or a rewrite of the append-only file that runs already: what it writes is older than ours.
async fn wait_until_idle(conn: &mut Conn, cx: &OpContext) -> Result<Info, AdapterError> {
    loop {
        let info = Info::read(conn, cx).await?;
        if info.text("rdb_last_save_time").is_none() {
            return Err(conn.trouble(AdapterErrorKind::Unsupported, "does not tell about its saves in INFO"));
        }
        if !info.is("rdb_bgsave_in_progress") && !info.is("aof_rewrite_in_progress") && !info.is("loading") {
            return Ok(info);
        }
        cx.within(sleep(POLL)).await?;
    }
}

/// Waits until the server's clock shows a later second than that of the last save; returns it.
async fn wait_for_next_second(conn: &mut Conn, cx: &OpContext, before: &Info) -> Result<u64, AdapterError> {
    let last = before.number("rdb_last_save_time").unwrap_or(0);
    loop {
        let reply = conn.ask(cx, &["TIME"]).await?;
        let part = |n: usize| reply.items().get(n).and_then(Reply::text)?.parse::<u64>().ok();
        match part(0).zip(part(1)) {
            // The clock that stamps files and snapshots ticks some milliseconds late.
            Some((second, micros)) if second > last && micros > LATE_TICK => return Ok(second),
            Some(_) => cx.within(sleep(POLL)).await?,
            // It may not tell the time: then a whole second is long enough, and the file is newer than the last one.
            None => {
                cx.within(sleep(Duration::from_millis(1100))).await?;
                return Ok(last + 1);
            }
        }
    }
}

async fn try_to_save(
    conn: &mut Conn,
    cx: &OpContext,
    settings: &Settings,
    before: &Info,
) -> Result<Try, AdapterError> {
    let mut scheduled = false;
    match conn.ask(cx, &["BGSAVE"]).await? {
        Reply::Error(e) if e.contains("already in progress") => return Ok(Try::Again),
        // A rewrite of the append-only file began since we looked, or a module has a child process.
        Reply::Error(e) if e.contains("child process") || e.contains("AOF log rewriting") => {
            conn.call(cx, &["BGSAVE", "SCHEDULE"]).await?;
            scheduled = true;
        }
        Reply::Error(e) if e.trim() == "ERR" => {
            return Err(failed(conn, settings, NO_CHILD));
        }
        Reply::Error(e) => return Err(conn.refused("BGSAVE", &e)),
        _ => {}
    }
    let mut idle_since = None;
    loop {
        cx.within(sleep(POLL)).await?;
        let now = Info::read(conn, cx).await?;
        if now.is("rdb_bgsave_in_progress") || now.is("aof_rewrite_in_progress") {
            // A scheduled one has begun, or waits.
            scheduled &= !now.is("rdb_bgsave_in_progress");
            idle_since = None;
            continue;
        }
        let moved = |key: &str| match (before.number(key), now.number(key)) {
            (Some(before), Some(now)) => now > before,
            // Older servers count no saves.
            _ => key == "rdb_saves",
        };
        let well = now.text("rdb_last_bgsave_status") == Some("ok");
        if well && moved("rdb_saves") && moved("rdb_last_save_time") {
            return Ok(Try::Done);
        }
        if !scheduled {
            return Err(failed(conn, settings, "failed to write its file"));
        }
        if idle_since.get_or_insert_with(Instant::now).elapsed() > SCHEDULED {
            return Ok(Try::Again);
        }
    }
}

fn failed(conn: &Conn, settings: &Settings, what: &str) -> AdapterError {
    let dir = settings.text("dir").unwrap_or("its directory");
    let trap = if settings.failed_save_stops_writes() {
        "; until a save succeeds it may refuse writes (stop-writes-on-bgsave-error)"
    } else {
        ""
    };
    let what = format!("{what}: its log tells why; look at space and rights in `{dir}` and at memory{trap}");
    conn.trouble(AdapterErrorKind::Other, &what)
}

/// The bytes of the file that `saved` speaks of, and how many there are, if known.
///
/// # Errors
/// `NotFound` if it is not there; `Changed` if it is not that save; `Unsupported` if it lies on another host.
pub(super) async fn read(
    server: &Server,
    saved: &Saved,
    cx: &OpContext,
) -> Result<(ByteStream<AdapterError>, Option<u64>), AdapterError> {
    let Some(runtime) = server.runtime() else {
        return Err(AdapterError::unsupported(format!(
            "the file of Redis at {server} lies on another host: use capture = \"stream\""
        )));
    };
    let (since, inside) = (saved.since, saved.path.clone());
    let reachable = cx.within(runtime.volume_path(&inside)).await??;
    if let Some(path) = reachable {
        let (file, meta) = joined(move || open(&path)).await?;
        let body = guard(stream_of(file, meta.len()), inside, since, changed_at(&meta));
        return Ok((body, Some(meta.len())));
    }
    let command = ExecCommand::new(["cat".to_owned(), inside.display().to_string()]);
    let execution = cx.within(runtime.exec(command.with_deadline(cx.deadline))).await??;
    Ok((guard(execution.stdout, inside, since, None), None))
}

/// Redis gives a new file its name: what is open stays as it is.
fn open(path: &Path) -> Result<(File, Metadata), AdapterError> {
    let failed =
        |e| AdapterError::io(format!("cannot read `{}`, which Redis has written", path.display()), e);
    let file = match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let message = format!(
                "`{}`, which Redis has written, is not on this host: if it runs in a container, name that as `container`",
                path.display()
            );
            return Err(AdapterError::new(AdapterErrorKind::NotFound, message));
        }
        opened => opened.map_err(failed)?,
    };
    let meta = file.metadata().map_err(failed)?;
    Ok((file, meta))
}

/// When a file was changed, in seconds since 1970.
fn changed_at(meta: &Metadata) -> Option<u64> {
    Some(meta.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs())
}

fn not_that_save(path: &Path) -> AdapterError {
    let message = format!(
        "`{}` is older than the save that Redis has just made: is another file system mounted there?",
        path.display()
    );
    AdapterError::new(AdapterErrorKind::Changed, message)
}

async fn joined<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AdapterError> + Send + 'static,
) -> Result<T, AdapterError> {
    spawn_blocking(work).await.unwrap_or_else(|e| {
        Err(AdapterError::new(AdapterErrorKind::Other, "the work on the file broke off").with_source(e))
    })
}

/// `body`, if it says that it was made at `since` or later. Where it does not say (before Redis 3.2), when the file was
/// changed decides; that is a clock which may be another one, if a network brings the file.
fn guard(
    body: ByteStream<AdapterError>,
    path: PathBuf,
    since: u64,
    changed: Option<u64>,
) -> ByteStream<AdapterError> {
    let mut first = true;
    body.map(move |chunk| {
        let chunk = chunk?;
        if std::mem::take(&mut first) && made_at(&chunk).or(changed).is_some_and(|made| made < since) {
            return Err(not_that_save(&path));
        }
        Ok(chunk)
    })
    .boxed()
}

/// The bytes of a file that must have `expected` of them; read on a thread of its own, a few chunks ahead.
fn stream_of(mut file: File, expected: u64) -> ByteStream<AdapterError> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let read = move || {
        let mut left = expected;
        loop {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            let limit = u64::try_from(CHUNK_BYTES).unwrap_or(u64::MAX);
            let read = file.by_ref().take(limit).read_to_end(&mut chunk);
            let next = match read {
                Ok(0) if left == 0 => return,
                Ok(0) => Err(AdapterError::corrupt(format!("the file of Redis ended {left} bytes early"))),
                Ok(n) => {
                    left = left.saturating_sub(n as u64);
                    Ok(Bytes::from(chunk))
                }
                Err(e) => Err(AdapterError::io("cannot read the file of Redis", e)),
            };
            let last = next.is_err();
            // Nobody listens any more: the body was dropped.
            if sender.blocking_send(next).is_err() || last {
                return;
            }
        }
    };
    let reading = spawn_blocking(read);
    stream::unfold((receiver, Some(reading)), |(mut receiver, mut reading)| async move {
        if let Some(next) = receiver.recv().await {
            return Some((next, (receiver, reading)));
        }
        // A thread that panicked sent no end.
        let ended = reading.take()?.await;
        let broken = |e| AdapterError::new(AdapterErrorKind::Other, "reading broke off").with_source(e);
        ended.err().map(|e| (Err(broken(e)), (receiver, None)))
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The beginning of a file that was made in second `made_at`, if it says so.
    fn file(made_at: Option<u32>) -> Bytes {
        let mut bytes = b"REDIS0010".to_vec();
        if let Some(at) = made_at {
            bytes.extend(b"\xfa\x05ctime\xc2");
            bytes.extend(at.to_le_bytes());
        }
        bytes.push(255);
        bytes.into()
    }

    async fn accepted(made_at: Option<u32>, changed: Option<u64>) -> bool {
        let body = stream::iter([Ok(file(made_at)), Ok(Bytes::from("more"))]).boxed();
        let all: Vec<_> = guard(body, "/data/dump.rdb".into(), 1000, changed).collect().await;
        all.iter().all(Result::is_ok)
    }

    #[tokio::test]
    async fn a_file_that_is_not_that_save_is_refused() {
        assert!(accepted(Some(1000), Some(1)).await);
        assert!(!accepted(Some(999), Some(2000)).await);
        assert!(accepted(None, Some(1000)).await);
        assert!(!accepted(None, Some(999)).await);
    }

    #[tokio::test]
    async fn a_file_that_is_shorter_or_missing_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dump.rdb");
        assert!(open(&path).unwrap_err().to_string().contains("not on this host"));
        std::fs::write(&path, "abc").unwrap();
        let all: Vec<_> = stream_of(File::open(&path).unwrap(), 4).collect().await;
        assert!(matches!(all.as_slice(), [Ok(_), Err(_)]));
        let all: Vec<_> = stream_of(File::open(&path).unwrap(), 3).collect().await;
        assert!(matches!(all.as_slice(), [Ok(_)]));
    }
}
