//! After an error or a crash in the middle of a replacement: the server tells how far it got, and becomes a writable
//! primary with the old or the new data, complete.

use std::time::Duration;

use backup_core::runtime::{InterruptionEntry, InterruptionKind, Replay};
use backup_core::{AdapterError, AdapterErrorKind, Evidence, OpContext, chain};
use tokio::time::sleep;

use super::settings::Settings;
use super::{
    Job, Pending, Reach, fence, install, join, keep, persist, phase, promote, settings, settled, to_primary,
};
use crate::redis::check;
use crate::redis::conn::{Conn, Server};
use crate::redis::facts::Info;
use crate::redis::kept;
use crate::redis::rdb::Summary;
use crate::redis::serve::{Admission, Primary};

/// How often a server that does not answer is asked again.
const AGAIN: Duration = Duration::from_millis(250);

/// What a server holds in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    Old,
    New,
}

/// How long it may take: the old data may have to be loaded again.
pub(super) fn limit(bytes: u64) -> Duration {
    Duration::from_secs(120 + bytes / super::SLOW_RATE)
}

/// Undoes what an entry of the journal announces.
pub(in crate::redis) async fn bring_back(
    cx: &OpContext,
    server: &Server,
    entry: &InterruptionEntry,
) -> Result<Replay, AdapterError> {
    let InterruptionKind::Other { token, .. } = &entry.kind else {
        return Err(AdapterError::unsupported("`redis` does not know this kind of interruption"));
    };
    let pending: Pending = token.get()?;
    let here = cx.journal.place().host;
    if here != entry.place.host {
        return Ok(Replay::Foreign(format!("it was made on host `{}`", entry.place.host)));
    }
    recover(cx, server, &pending, Holds::New).await?;
    let disarmed = cx.watchdog.disarm(entry).await;
    cx.journal.clear(entry).await?;
    disarmed?;
    Ok(Replay::Undone)
}

/// Makes the server a writable primary, and tells what it holds. `wanted` is `Old` if it must not keep the new data even
/// though it is complete.
pub(super) async fn recover(
    cx: &OpContext,
    server: &Server,
    pending: &Pending,
    wanted: Holds,
) -> Result<Holds, AdapterError> {
    phase(cx, "bringing the server back");
    let mut conn = connect(cx, server).await?;
    let live = settled(cx, &mut conn).await?;
    let job = &pending.job;
    let holds = if live.holds(&job.id) {
        // What has become a primary again was counted before; writers may have changed it since.
        let counts = !live.is_replica() || fits(&kept::check(job.file.clone()).await?, &live);
        if wanted == Holds::New && counts {
            if live.is_replica() {
                to_primary(cx, &mut conn).await?;
            }
            Holds::New
        } else {
            put_back_old(cx, server, &mut conn, pending).await?;
            Holds::Old
        }
    } else if live.is_replica() {
        if !live.follows(pending.port) {
            // Somebody else made it follow another server: that is not ours to end.
            cx.warn(format!("`{}` follows {} now and is left so", cx.service, live.get("master_host")));
        } else if is_old(job, &live).await? {
            to_primary(cx, &mut conn).await?;
        } else {
            put_back_old(cx, server, &mut conn, pending).await?;
        }
        Holds::Old
    } else if live.get("run_id") == pending.server_run {
        // It never began to follow us, or is back already.
        Holds::Old
    } else {
        restarted(cx, server, &mut conn, &live, pending).await?
    };
    settings::put_back(cx, &mut conn, &pending.settings).await?;
    if holds == Holds::New {
        let counted = check::evidence(&kept::check(job.file.clone()).await?);
        super::complete(cx, &mut conn, job, counted).await?;
    }
    fence::lower(cx, &mut conn).await?;
    Ok(holds)
}

/// Connects, also if the server is just being started again.
async fn connect(cx: &OpContext, server: &Server) -> Result<Conn, AdapterError> {
    loop {
        match server.connect(cx).await {
            Err(e) if e.kind() == AdapterErrorKind::Unavailable => {
                if cx.within(sleep(AGAIN)).await.is_err() {
                    return Err(e);
                }
            }
            other => return other,
        }
    }
}

/// Whether the server still holds what was kept aside: a replica changes nothing by itself.
async fn is_old(job: &Job, live: &Info) -> Result<bool, AdapterError> {
    let old = kept::check(job.kept.clone()).await?;
    Ok(old.unknown.is_none() && fits(&old, live))
}

fn fits(file: &Summary, live: &Info) -> bool {
    check::evidence(file).contradictions(&live.evidence()).is_empty()
}

/// The server was started anew in the middle and is a primary with whatever it had on its disk. With AOF on that is the
/// old or the new data. With AOF off it may be an old file, or nothing: then the kept-aside copy goes live, and what was
/// found is kept, too.
async fn restarted(
    cx: &OpContext,
    server: &Server,
    conn: &mut Conn,
    live: &Info,
    pending: &Pending,
) -> Result<Holds, AdapterError> {
    let job = &pending.job;
    if !kept::exists(job.kept.clone()).await? {
        return Ok(Holds::Old);
    }
    let old = kept::check(job.kept.clone()).await?;
    if fits(&old, live) {
        return Ok(Holds::Old);
    }
    if fits(&kept::check(job.file.clone()).await?, live) {
        return Ok(Holds::New);
    }
    let lasting = |e: Evidence| e.counts.get("keys_without_ttl").copied().unwrap_or(0);
    let fewer = lasting(live.evidence()) < lasting(check::evidence(&old));
    if live.is("aof_enabled") || !fewer {
        cx.warn(format!(
            "`{}` was started anew during the restore; what it held before is `{}`",
            cx.service,
            job.kept.display()
        ));
        return Ok(Holds::Old);
    }
    keep::capture_to(cx, server, job.found()).await?;
    put_back_old(cx, server, conn, pending).await?;
    Ok(Holds::Old)
}

/// The kept-aside copy goes live again, by the same way.
async fn put_back_old(
    cx: &OpContext,
    server: &Server,
    conn: &mut Conn,
    pending: &Pending,
) -> Result<(), AdapterError> {
    phase(cx, "putting the old data back");
    let job = &pending.job;
    let summary = kept::check(job.kept.clone()).await?;
    let reach = Reach::of(cx, server).await?;
    let settings = Settings::read(cx, conn, server, &reach).await?;
    let admission = Admission { sources: reach.sources, password: settings.password.clone() };
    let primary = Primary::bind(reach.ip, admission).await?;
    settings.apply(cx, conn).await?;
    let back = Job { file: job.kept.clone(), id: history(&format!("{}/old", job.id)), ..job.clone() };
    let mut replica = join(cx, server, conn, &primary).await?;
    install(cx, conn, &mut replica, &back, &summary).await?;
    promote(cx, conn, replica).await?;
    if let Err(e) = persist::persist(cx, conn).await {
        cx.warn(format!("the old data is back, but not saved yet: {}", chain(&e)));
    }
    Ok(())
}

/// The name of a history: 40 hex digits that nobody else has.
pub(in crate::redis) fn history(of: &str) -> String {
    let hash = blake3::hash(of.as_bytes()).to_hex();
    hash.chars().take(40).collect()
}
