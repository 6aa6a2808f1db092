//! Capture mode `stream`: a full resynchronisation, as a replica gets it, up to the end of the snapshot.
//!
//! `REPLCONF` and `PSYNC ? -1` (or `SYNC`), then the server announces its snapshot by its length or by a mark that ends
//! it. The connection is closed as soon as the snapshot is there: the commands that would follow are not wanted.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backup_core::{AdapterError, AdapterErrorKind, ByteStream, CHUNK_BYTES, OpContext};
use bytes::BytesMut;
use chrono::{DateTime, Utc};
use futures::{StreamExt, stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::conn::Conn;
use super::rdb::Walker;
use super::resp::{self, Reply};
use super::spill::{self, Writer};

/// How long the link may be silent. A server sends a line break each second while it prepares its snapshot.
const STALL: Duration = Duration::from_secs(60);

/// How long a server that cannot serve replicas right now (it loads its data, has lost its primary) is asked again.
const RETRY: Duration = Duration::from_secs(30);
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// The length of the mark that ends a snapshot whose length is not known beforehand.
const MARK: usize = 40;

/// The server has no second process for its snapshot.
pub(super) const NO_CHILD: &str =
    "could not make a child process: too little memory, or too few processes allowed";

/// How the server announced its snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Payload {
    /// It wrote a file first, of so many bytes.
    Sized(u64),
    /// It sends it while it makes it; this mark ends it.
    Marked([u8; MARK]),
}

/// A link on which the snapshot comes next.
#[derive(Debug)]
pub(super) struct Link {
    conn: Conn,
    pub(super) payload: Payload,
    /// Before it was asked for, and once the server had begun it.
    pub(super) asked: DateTime<Utc>,
    pub(super) begun: DateTime<Utc>,
}

/// What is known of a snapshot that was received.
#[derive(Debug, Clone, Default)]
pub(super) struct Received {
    /// When the server made it, by its own clock, in seconds since 1970.
    pub(super) made_at: Option<u64>,
    /// Bytes that went through the spool.
    pub(super) spilled: u64,
    /// The spool was full, so that the server had to wait.
    pub(super) spool_full: bool,
}

/// Asks for a snapshot, and waits until it comes.
///
/// # Errors
/// `PermissionDenied` that names the rights; `Unsupported` if the server knows no replication; `Unavailable`.
pub(super) async fn begin(mut conn: Conn, cx: &OpContext) -> Result<Link, AdapterError> {
    // Each is an offer that an older server refuses. `eof` spares the server its file, `rdb-only` (7.0) the buffer of what
    // is written meanwhile.
    for offer in [["capa", "eof", "capa", "psync2"].as_slice(), &["rdb-only", "1"]] {
        let args: Vec<&str> = ["REPLCONF"].iter().chain(offer).copied().collect();
        conn.ask(cx, &args).await?;
    }
    let asked = cx.clock.now();
    // Early enough to tell what was waited for.
    let last = cx.deadline.and_then(|d| d.checked_sub(RETRY_PAUSE * 2));
    let give_up = Instant::now() + RETRY;
    let give_up = last.map_or(give_up, |last| give_up.min(last));
    let mut command: &[&str] = &["PSYNC", "?", "-1"];
    loop {
        let answer = ask_for_snapshot(&mut conn, cx, command).await?;
        let refusal = match answer {
            Answer::Payload(payload) => {
                return Ok(Link { conn, payload, asked, begun: cx.clock.now() });
            }
            Answer::Refused(refusal) => refusal,
        };
        let passing = ["LOADING", "BUSY", "NOMASTERLINK", "MASTERDOWN"];
        let is = |words: &[&str]| words.iter().any(|w| refusal.starts_with(w));
        if is(&passing) && Instant::now() < give_up {
            cx.within(sleep(RETRY_PAUSE)).await?;
        } else if is(&["NOPERM", "ERR unknown", "ERR Unknown"]) && command.len() > 1 {
            command = &["SYNC"];
        } else if refusal.contains("BGSAVE failed") {
            return Err(conn.trouble(AdapterErrorKind::Other, &format!("{NO_CHILD}: its log tells why")));
        } else if is(&["NOPERM"]) {
            return Err(not_allowed(&conn));
        } else {
            return Err(conn.refused(command.first().copied().unwrap_or_default(), &refusal));
        }
    }
}

/// The user lacks rights for this mode; says which.
pub(super) fn not_allowed(conn: &Conn) -> AdapterError {
    conn.may_not("copy the data as a replica does", &["+psync", "+replconf", "+sync", "+ping"])
}

enum Answer {
    Payload(Payload),
    Refused(String),
}

async fn ask_for_snapshot(conn: &mut Conn, cx: &OpContext, command: &[&str]) -> Result<Answer, AdapterError> {
    let args: Vec<&[u8]> = command.iter().map(|a| a.as_bytes()).collect();
    let sent = cx.within(async {
        conn.stream.write_all(&resp::encode(&args)).await?;
        conn.stream.flush().await
    });
    sent.await?.map_err(|e| conn.broken("the request for a snapshot", e))?;
    loop {
        let next = timeout(STALL, resp::line(&mut conn.stream, &mut conn.buffer));
        let line = match cx.within(next).await? {
            Ok(line) => line.map_err(|e| conn.broken("the preparation of a snapshot", e))?,
            Err(_) => return Err(stalled(conn, 0)),
        };
        let text = String::from_utf8_lossy(&line);
        match line.first() {
            // Keeps the link alive; and `+FULLRESYNC`, after which the announcement follows.
            None | Some(b'+') => {}
            Some(b'-') => return Ok(Answer::Refused(text.get(1..).unwrap_or_default().to_owned())),
            Some(b'$') => {
                let announced = text.get(1..).unwrap_or_default();
                let payload = match announced.strip_prefix("EOF:") {
                    Some(mark) => <[u8; MARK]>::try_from(mark.as_bytes()).ok().map(Payload::Marked),
                    None => announced.parse().ok().map(Payload::Sized),
                };
                return payload.map(Answer::Payload).ok_or_else(|| unexpected(conn, &text));
            }
            Some(_) => return Err(unexpected(conn, &text)),
        }
    }
}

fn unexpected(conn: &Conn, line: &str) -> AdapterError {
    let shown: String = line.chars().filter(|c| !c.is_control()).take(60).collect();
    conn.trouble(AdapterErrorKind::Other, &format!("announces its snapshot in an unknown way: `{shown}`"))
}

fn stalled(conn: &Conn, bytes: u64) -> AdapterError {
    let what = format!("has sent nothing for {} s, after {bytes} bytes of its snapshot", STALL.as_secs());
    conn.trouble(AdapterErrorKind::Timeout, &what)
}

/// A snapshot that is being received.
#[derive(Debug)]
pub(super) struct Receiving {
    task: JoinSet<()>,
    received: Arc<Mutex<Received>>,
}

impl Receiving {
    /// Ends the link, whether or not everything came; what is known then.
    pub(super) async fn end(mut self) -> Received {
        self.task.shutdown().await;
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The bytes of the snapshot. They are received at full speed whether or not the stream is read, until it is dropped or
/// [`Receiving`] is ended or dropped.
pub(super) fn receive(link: Link, cx: &OpContext) -> (ByteStream<AdapterError>, Receiving) {
    let received = Arc::new(Mutex::new(Received::default()));
    let (mut writer, reader) = spill::queue(&cx.spool);
    let mut task = JoinSet::new();
    task.spawn({
        let (cx, received) = (cx.clone(), Arc::clone(&received));
        async move {
            let result = take_all(link, &cx, &mut writer, &received).await;
            let (spilled, full) = writer.spilled();
            if let Ok(mut received) = received.lock() {
                (received.spilled, received.spool_full) = (spilled, full);
            }
            writer.end(result);
        }
    });
    let body = stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        match reader.next().await {
            Ok(Some(chunk)) => Some((Ok(chunk), Some(reader))),
            Ok(None) => None,
            Err(e) => Some((Err(e), None)),
        }
    });
    (body.boxed(), Receiving { task, received })
}

/// Receives the snapshot to its end, and proves that it is that.
async fn take_all(
    link: Link,
    cx: &OpContext,
    writer: &mut Writer,
    received: &Mutex<Received>,
) -> Result<(), AdapterError> {
    let Link { mut conn, payload, .. } = link;
    let mut chunk = BytesMut::with_capacity(CHUNK_BYTES + MARK);
    let mut total = 0;
    chunk.extend_from_slice(&std::mem::take(&mut conn.buffer));
    if let Payload::Sized(bytes) = payload {
        chunk.truncate(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
    loop {
        let (body, ended) = match &payload {
            Payload::Sized(bytes) => (chunk.len(), total + chunk.len() as u64 == *bytes),
            // What may be the mark stays back until it is known whether it is.
            Payload::Marked(mark) => (chunk.len().saturating_sub(MARK), chunk.ends_with(mark)),
        };
        if ended || body >= CHUNK_BYTES {
            let full = chunk.split_to(if ended { body } else { CHUNK_BYTES }).freeze();
            if total == 0
                && let Ok(mut received) = received.lock()
            {
                received.made_at = made_at(&full);
            }
            total += full.len() as u64;
            if !full.is_empty() && !writer.put(full).await {
                return Err(AdapterError::cancelled());
            }
            if ended {
                return Ok(());
            }
            let mut next = BytesMut::with_capacity(CHUNK_BYTES + MARK);
            next.extend_from_slice(&chunk);
            chunk = next;
            continue;
        }
        let so_far = total + chunk.len() as u64;
        let room = (CHUNK_BYTES + MARK - chunk.len()) as u64;
        let room = match &payload {
            Payload::Sized(bytes) => room.min(bytes - so_far),
            Payload::Marked(_) => room,
        };
        let mut limited = (&mut conn.stream).take(room);
        let read = timeout(STALL, limited.read_buf(&mut chunk));
        match cx.within(read).await? {
            Ok(Ok(0)) => {
                let what = format!("closed the link after {so_far} bytes of its snapshot: its log tells why");
                return Err(conn.trouble(AdapterErrorKind::Unavailable, &what));
            }
            Ok(Ok(_)) => {}
            Ok(Err(e)) => return Err(conn.broken(&format!("the snapshot, after {so_far} bytes"), e)),
            Err(_) => return Err(stalled(&conn, so_far)),
        }
    }
}

/// When the snapshot that begins so was made.
pub(super) fn made_at(beginning: &[u8]) -> Option<u64> {
    let mut walker = Walker::new();
    // The content check is the one to complain.
    let _walked = walker.update(beginning.get(..4096).unwrap_or(beginning));
    walker.summary().made_at()
}

/// What a dry run says about the right to stream; `None` if that cannot be told.
pub(super) async fn dry_run(
    conn: &mut Conn,
    cx: &OpContext,
    user: &str,
) -> Result<Option<bool>, AdapterError> {
    let mut may = None;
    for command in [["PSYNC", "?", "-1"].as_slice(), &["SYNC"]] {
        let args: Vec<&str> = ["ACL", "DRYRUN", user].iter().chain(command).copied().collect();
        match conn.ask(cx, &args).await? {
            Reply::Status(ok) if ok == "OK" => return Ok(Some(true)),
            Reply::Bulk(Some(_)) => may = Some(false),
            _ => return Ok(None),
        }
    }
    Ok(may)
}
