//! Restores by the server's own files: it is stopped, gets new ones, and is started.
//!
//! A Redis loses a restored file in four ways, and each is dealt with here: one that is ended saves over it (so it is
//! placed while the server is down), the append-only file wins over it (so that is replaced, too), without an append-only
//! file where one is expected the server starts empty (so one is made, of the same bytes), and a server that neither
//! saves nor logs loses what it had (so it saves before it is stopped).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backup_core::keep_aside::{self, Swap};
use backup_core::runtime::{Interruption, InterruptionKind, Patience, RunState, ServiceRuntime};
use backup_core::{
    AdapterError, AdapterErrorKind, Evidence, Metadata, OpContext, Replaced, RestorePlan, RestoreSource,
    RestoreTarget, SpaceNeed, StepToken,
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::conn::{Conn, Server};
use super::facts::Info;
use super::kept;
use super::live::{refuse, setting};
use super::restore::{Token, artifact, changed_at, fetch};
use super::wire::{self, Done, phase};
use super::{check, compat};
use crate::on_disk::{blocking, failed};

/// How long a server may take to end by itself: it may save first.
const GRACE: Duration = Duration::from_secs(120);

/// How long a restore may take that has no budget.
const USUAL_TIME: Duration = Duration::from_secs(900);
const LOOK: Duration = Duration::from_millis(100);

/// The append-only file as this server keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Log {
    /// A folder with a base, increments and a manifest (since 7.0).
    Folder { target: PathBuf, file: String },
    /// One file, which may begin with an RDB (since 4.0).
    File { target: PathBuf },
}

impl Log {
    fn target(&self) -> &Path {
        match self {
            Self::Folder { target, .. } | Self::File { target } => target,
        }
    }
}

/// The files of a server, on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Files {
    dump: PathBuf,
    staged: PathBuf,
    log: Option<Log>,
    staged_log: Option<PathBuf>,
    /// With what is live replaced, in this order. Empty before `stage`.
    swaps: Vec<Swap>,
    /// Whether they were.
    live: bool,
    /// What the new data counts. `None` before `stage`.
    expected: Option<Evidence>,
    done: PathBuf,
    /// Those of undos.
    records: Vec<PathBuf>,
}

fn runtime(server: &Server) -> Result<Arc<dyn ServiceRuntime>, AdapterError> {
    server.runtime().ok_or_else(|| {
        AdapterError::unsupported(format!("nothing here can stop {server}: use `restore = \"wire\"`"))
    })
}

pub(super) async fn plan(
    server: &Server,
    cx: &OpContext,
    backup: &Metadata,
) -> Result<RestorePlan, AdapterError> {
    let bytes = artifact(backup)?.plain_bytes;
    let runtime = runtime(server)?;
    let mut conn = server.connect(cx).await?;
    let live = Info::read(&mut conn, cx).await?;
    refuse(cx, &mut conn, &live).await?;
    compat::refuse_newer(&live, backup)?;
    if runtime.inspect().await?.state != RunState::Running {
        let what = format!("{server} answers, but what is configured to run it does not run");
        return Err(AdapterError::new(AdapterErrorKind::Conflict, what));
    }
    let text =
        async |conn: &mut Conn, name: &str| setting(cx, conn, name).await.map(Option::unwrap_or_default);
    let inside = PathBuf::from(text(&mut conn, "dir").await?);
    let dir = runtime.volume_path(&inside).await?.filter(|p| p.is_dir()).ok_or_else(|| {
        AdapterError::unsupported(format!(
            "`{}` of {server} cannot be reached from this host: use `restore = \"wire\"`",
            inside.display()
        ))
    })?;
    let dump = dir.join(text(&mut conn, "dbfilename").await?);
    let (folder, file) = (text(&mut conn, "appenddirname").await?, text(&mut conn, "appendfilename").await?);
    let log = match folder.is_empty() {
        true => Log::File { target: dir.join(&file) },
        false => Log::Folder { target: dir.join(&folder), file },
    };
    let log = Some(log).filter(|l| live.is("aof_enabled") || l.target().exists());
    let staged_log = log.as_ref().map(|l| keep_aside::staging_path(l.target(), &cx.run_id));
    let files = Files {
        staged: keep_aside::staging_path(&dump, &cx.run_id),
        dump,
        log,
        staged_log,
        swaps: Vec::new(),
        live: false,
        expected: None,
        done: cx.kept.join(format!("{}.done.json", cx.run_id)),
        records: Vec::new(),
    };
    let mut steps = vec![format!("write {bytes} bytes beside `{}` and check them", files.dump.display())];
    if !live.is("aof_enabled") {
        steps.push(format!("hold back the writers of {server} while it saves what it holds"));
    }
    steps.push(format!("stop {server}"));
    let mut replaces = Vec::new();
    for target in [Some(files.dump.as_path()), files.log.as_ref().map(Log::target)].into_iter().flatten() {
        let kept_as = keep_aside::kept_path(target, cx.timestamp).display().to_string();
        let what = target.display().to_string();
        steps.push(format!("put the restored data at `{what}`; what is there becomes `{kept_as}`"));
        replaces.push(Replaced { what, kept_as, changed_at: changed_at(&live, cx) });
    }
    steps.push("start it, and compare its keys".to_owned());
    let token = StepToken::new(&Token::File(Box::new(files)))?;
    let space = vec![SpaceNeed { path: dir, bytes }];
    Ok(RestorePlan { target: RestoreTarget::Live, steps, replaces, space, token })
}

impl Files {
    pub(super) async fn stage(
        mut self,
        server: &Server,
        cx: &OpContext,
        source: &RestoreSource,
    ) -> Result<Self, AdapterError> {
        let prepared = async {
            let file = fetch(cx, source, self.staged.clone()).await?;
            let mut conn = server.connect(cx).await?;
            let live = Info::read(&mut conn, cx).await?;
            compat::refuse_unloadable(cx, &mut conn, &live, &file).await?;
            let (files, at) = (self.clone(), cx.timestamp);
            let swaps = blocking(move || files.prepare(at)).await?;
            Ok((swaps, check::evidence(&file)))
        };
        match prepared.await {
            Ok((swaps, expected)) => {
                self.swaps = swaps;
                self.expected = Some(expected);
                Ok(self)
            }
            Err(e) => {
                kept::remove(self.remains()).await?;
                Err(e)
            }
        }
    }

    /// Gives the staged files their owners and records the swaps.
    fn prepare(&self, at: backup_core::Timestamp) -> Result<Vec<Swap>, AdapterError> {
        let dir = self.dump.parent().unwrap_or(Path::new("/"));
        let model = [self.dump.as_path(), dir].into_iter().find_map(|p| fs::metadata(p).ok());
        let model = model.ok_or_else(|| failed("look at", dir)(io::ErrorKind::NotFound.into()))?;
        let mode = if model.is_dir() { 0o600 } else { model.mode() & 0o777 };
        let give = |path: &Path, mode: u32| {
            chown(path, Some(model.uid()), Some(model.gid()))
                .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
                .map_err(failed("give to the server", path))
        };
        give(&self.staged, mode)?;
        let mut pairs = Vec::new();
        if let (Some(log), Some(staged)) = (&self.log, &self.staged_log) {
            keep_aside::remove(staged).map_err(failed("replace", staged))?;
            match log {
                Log::File { .. } => link(&self.staged, staged)?,
                Log::Folder { file, .. } => {
                    fs::create_dir(staged).map_err(failed("create", staged))?;
                    let base = format!("{file}.1.base.rdb");
                    link(&self.staged, &staged.join(&base))?;
                    let manifest = staged.join(format!("{file}.manifest"));
                    let mut out = fs::File::create_new(&manifest).map_err(failed("create", &manifest))?;
                    out.write_all(format!("file {base} seq 1 type b\n").as_bytes())
                        .and_then(|()| out.sync_all())
                        .map_err(failed("write", &manifest))?;
                    give(&manifest, mode)?;
                    give(&staged.join(&base), mode)?;
                    give(staged, 0o700)?;
                    keep_aside::sync_dir(staged).map_err(failed("write", staged))?;
                }
            }
            // First, because it is what the server reads.
            pairs.push((staged.as_path(), log.target()));
        }
        pairs.push((self.staged.as_path(), self.dump.as_path()));
        pairs
            .into_iter()
            .map(|(staged, target)| {
                keep_aside::prepare(staged, target, at).map_err(failed("plan to replace", target))
            })
            .collect()
    }

    pub(super) async fn switch(mut self, server: &Server, cx: &OpContext) -> Result<Self, AdapterError> {
        if let Some(done) = kept::read_record::<Done>(self.done.clone()).await? {
            return self.finished(done).await;
        }
        let expected = self.expected.clone().ok_or_else(never_staged)?;
        if !self.swaps.iter().any(is_staged) {
            // A run that died had exchanged them; whatever was running then was started.
            loaded(cx, server).await?;
            self = self.exchange().await?;
            return self.finished(Done { evidence: expected }).await;
        }
        kept::check(self.staged.clone()).await?;
        let deadline = Instant::now() + cx.remaining().unwrap_or(USUAL_TIME);
        phase(cx, "stopping the server");
        let mut interruption = stop(server, runtime(server)?, cx, deadline).await?;
        phase(cx, "replacing its files");
        let placed = self.clone().exchange().await;
        if placed.is_err() {
            // The first error tells more; what cannot be put back now is by the next switch.
            let _second = self.clone().put_back(cx.timestamp).await;
        }
        phase(cx, "starting the server");
        let up = interruption.end().await;
        let files = match placed {
            Ok(files) => files,
            Err(e) => return up.and(Err(e)),
        };
        let holds = async {
            up?;
            phase(cx, "waiting for the server to load its data");
            started(cx, server, &expected).await
        };
        match holds.await {
            Ok(done) => files.finished(done).await,
            Err(e) => {
                phase(cx, "putting the old data back");
                files.take_back(server, cx, interruption).await?;
                Err(e)
            }
        }
    }

    /// The server starts on its old data again, as far as it came with the new one.
    async fn take_back(
        self,
        server: &Server,
        cx: &OpContext,
        mut stopped: Interruption,
    ) -> Result<(), AdapterError> {
        let back = wire::calm(cx, USUAL_TIME);
        let mut again = match stopped.interrupts() {
            true => None,
            false => Some(stop(server, runtime(server)?, &back, Instant::now() + USUAL_TIME).await?),
        };
        let put_back = self.put_back(cx.timestamp).await;
        for interruption in [Some(&mut stopped), again.as_mut()].into_iter().flatten() {
            interruption.end().await?;
        }
        // One that had ended by itself was not stopped by us.
        runtime(server)?.start().await?;
        put_back.map(drop)
    }

    async fn finished(mut self, done: Done) -> Result<Self, AdapterError> {
        kept::write_record(self.done.clone(), &done).await?;
        blocking(move || {
            for swap in &mut self.swaps {
                swap.replaced = swap.kept.exists();
            }
            self.live = true;
            Ok(self)
        })
        .await
    }

    /// Each staged file takes its place, which it may have taken already.
    async fn exchange(mut self) -> Result<Self, AdapterError> {
        blocking(move || {
            for swap in &mut self.swaps {
                let failed = failed("replace", &swap.target);
                if is_staged(swap) {
                    // The server may have made or removed it since.
                    swap.replaced = swap.target.exists();
                    keep_aside::switch(swap).map_err(failed)?;
                } else if swap.staged.exists() {
                    // A run died between the two names of the old data. What is at the target by now may be a file that
                    // the server has written since, so that it tells nothing.
                    fs::rename(&swap.staged, &swap.kept).map_err(failed)?;
                }
            }
            Ok(self)
        })
        .await
    }

    /// Undoes the exchanges that were made.
    async fn put_back(mut self, at: backup_core::Timestamp) -> Result<Self, AdapterError> {
        blocking(move || {
            for swap in self.swaps.iter_mut().filter(|s| !is_staged(s)) {
                *swap = keep_aside::undo(swap, at).map_err(failed("put back", &swap.target))?;
            }
            Ok(self)
        })
        .await
    }

    pub(super) async fn undo(self, server: &Server, cx: &OpContext) -> Result<Self, AdapterError> {
        // Once is enough: each time the server is down for a while.
        let record = cx.kept.join(format!("undo-{}.json", cx.timestamp));
        if let Some(undone) = kept::read_record(record.clone()).await? {
            return Ok(undone);
        }
        let runtime = runtime(server)?;
        let deadline = Instant::now() + cx.remaining().unwrap_or(USUAL_TIME);
        kept::remove(vec![self.done.clone()]).await?;
        let mut interruption = stop(server, runtime, cx, deadline).await?;
        let undone = self.put_back(cx.timestamp).await;
        interruption.end().await?;
        let mut undone = undone?;
        loaded(cx, server).await?;
        undone.records.push(record.clone());
        kept::write_record(record, &undone).await?;
        Ok(undone)
    }

    /// What may lie beside the server's files.
    pub(super) fn remains(&self) -> Vec<PathBuf> {
        let kept = self.swaps.iter().map(|s| s.kept.clone());
        let staged = self.staged_log.iter().cloned();
        [kept::part(&self.staged), self.staged.clone(), self.done.clone()]
            .into_iter()
            .chain(staged)
            .chain(kept)
            .chain(self.records.iter().cloned())
            .collect()
    }

    /// Refuses to remove what may be the only copy of the old data.
    pub(super) fn refuse_half_done(&self) -> Result<(), AdapterError> {
        let half = |swap: &Swap| {
            !is_staged(swap) && [&swap.staged, &swap.kept].iter().any(|p| p.exists() && !is_new(p, swap))
        };
        if !self.live && self.swaps.iter().any(half) {
            let what = format!("the restore of `{}` is half done", self.dump.display());
            return Err(AdapterError::new(AdapterErrorKind::Conflict, what));
        }
        Ok(())
    }
}

fn never_staged() -> AdapterError {
    AdapterError::corrupt("the restore was never staged")
}

/// Whether the new data still waits beside its place.
fn is_staged(swap: &Swap) -> bool {
    is_new(&swap.staged, swap)
}

fn is_new(path: &Path, swap: &Swap) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == swap.identity)
}

/// The server never writes into an RDB file, so that one may have two names; where it cannot, it is copied.
fn link(from: &Path, to: &Path) -> Result<(), AdapterError> {
    fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop)).map_err(failed("create", to))
}

/// Stops the server, such that its files hold what it held.
async fn stop(
    server: &Server,
    runtime: Arc<dyn ServiceRuntime>,
    cx: &OpContext,
    deadline: Instant,
) -> Result<Interruption, AdapterError> {
    let left = deadline.saturating_duration_since(Instant::now());
    let kind = InterruptionKind::Stop { grace: GRACE.min(left / 2) };
    let begin = Interruption::begin(runtime, cx.interruption(), kind, deadline);
    let mut conn = match server.connect(cx).await {
        Ok(conn) => conn,
        // It does not even run.
        Err(e) if e.kind() == AdapterErrorKind::Unavailable => return begin.await,
        Err(e) => return Err(e),
    };
    let live = Info::read(&mut conn, cx).await?;
    refuse(cx, &mut conn, &live).await?;
    if live.is("aof_enabled") {
        return begin.await;
    }
    wire::saved_and_fenced(cx, server, &mut conn, &live, begin).await
}

/// Waits until the server answers and has loaded its data.
async fn loaded(cx: &OpContext, server: &Server) -> Result<Info, AdapterError> {
    let cx = &wire::calm(cx, Patience::LIMIT);
    let runtime = runtime(server)?;
    let mut patience = Patience::with(&*runtime);
    loop {
        let asked = async {
            let mut conn = server.connect(cx).await?;
            Info::read(&mut conn, cx).await
        };
        let late = match asked.await {
            Ok(live) if !live.is("loading") => return Ok(live),
            Ok(live) => AdapterError::new(
                AdapterErrorKind::Unavailable,
                format!(
                    "{server} loads its data: {} bytes so far",
                    live.number("loading_loaded_bytes").unwrap_or(0)
                ),
            ),
            Err(e) if e.kind() == AdapterErrorKind::Unavailable => e,
            Err(e) => return Err(e),
        };
        patience.after(late).await?;
        cx.within(sleep(LOOK)).await?;
    }
}

/// How many keys would have to be added or removed at least, from the one to the other.
fn apart(expected: &Evidence, found: &Evidence) -> u64 {
    let of = |kind: &str| {
        let names = expected.counts.keys().chain(found.counts.keys()).filter(|n| n.ends_with(kind));
        let count = |counts: &BTreeMap<String, u64>, name: &String| counts.get(name).copied().unwrap_or(0);
        let unique: BTreeSet<&String> = names.collect();
        let apart = unique.into_iter().map(|name| {
            let before = count(&expected.counts, name);
            let after = expected.counts_after.get(name).copied().unwrap_or(before);
            let now = count(&found.counts, name);
            before.min(after).saturating_sub(now) + now.saturating_sub(before.max(after))
        });
        apart.sum::<u64>()
    };
    of(".keys").max(of(".keys_without_ttl"))
}

/// Whether it has loaded the file. Writers are there at once: if it holds other keys, what it says of the load decides.
async fn started(cx: &OpContext, server: &Server, expected: &Evidence) -> Result<Done, AdapterError> {
    let live = loaded(cx, server).await?;
    let differences = expected.contradictions(&live.evidence());
    if differences.is_empty() {
        return Ok(Done { evidence: live.evidence() });
    }
    let read = live.number("rdb_last_load_keys_loaded").zip(live.number("rdb_last_load_keys_expired"));
    let all = expected.counts.get("keys").copied();
    let right = match read {
        Some((loaded, expired)) => Some(loaded + expired) == all,
        // Before 7.0 it does not say. But it counts what was written since, each key once for each time.
        None => apart(expected, &live.evidence()) <= live.number("rdb_changes_since_last_save").unwrap_or(0),
    };
    if right {
        return Ok(Done { evidence: expected.clone() });
    }
    let what = format!("{server} holds other data than the file after its start: {}", differences.join("; "));
    Err(AdapterError::corrupt(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_writers_cannot_have_done_is_seen() {
        let of = |text: &str| Info::parse(text).evidence();
        let file = of("db0:keys=100,expires=10\ndb3:keys=5,expires=0\n");
        assert_eq!(apart(&file, &file), 0);
        assert_eq!(apart(&file, &of("db0:keys=101,expires=10\ndb3:keys=4,expires=0\n")), 2);
        assert_eq!(apart(&file, &of("db0:keys=100,expires=12\ndb3:keys=5,expires=0\n")), 2);
        assert_eq!(apart(&file, &of("db0:keys=100,expires=10\ndb3:keys=5,expires=0\ndb4:keys=7\n")), 7);
        assert_eq!(apart(&file, &of("")), 105);
    }
}
