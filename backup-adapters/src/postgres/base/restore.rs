//! Restores of base backups: unpacked beside the data directory, which is exchanged while the server stands still.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backup_core::keep_aside::{self, Swap};
use backup_core::runtime::{
    Interruption, InterruptionEntry, InterruptionKind, Patience, Replay, ServiceRuntime,
};
use backup_core::{AdapterError, AdapterErrorKind, Event, Evidence, Leftover, OpContext, RestoreSource};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::plan::{base, conflict, runtime};
use super::{take, unpack};
use crate::on_disk::{blocking, failed};
use crate::postgres::Settings;
use crate::postgres::link::Link;

/// How long a server may take to end by itself: it writes a checkpoint.
const GRACE: Duration = Duration::from_secs(120);
/// How long an exchange may take that has no budget, and the way back in any case.
const USUAL_TIME: Duration = Duration::from_secs(900);
const LOOK: Duration = Duration::from_millis(250);

/// What the restore of a data directory remembers. Paths are those of this host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::postgres) struct Plan {
    pub(super) target: PathBuf,
    pub(super) staged: PathBuf,
    /// `None` before the data is staged.
    pub(super) swap: Option<Swap>,
    /// Whether the exchange was made.
    pub(super) live: bool,
    /// What was counted when the backup was taken.
    pub(super) seen: Evidence,
}

fn phase(cx: &OpContext, phase: &str) {
    cx.events.emit(Event::Phase { service: cx.service.clone(), phase: phase.to_owned() });
}

/// The same operation where it must not be broken off any more.
fn calm(cx: &OpContext) -> OpContext {
    let mut cx = cx.clone();
    cx.cancel = tokio_util::sync::CancellationToken::new();
    cx.deadline = Some(Instant::now() + Patience::LIMIT);
    cx
}

pub(in crate::postgres) async fn stage(
    cx: &OpContext,
    plan: Plan,
    source: &RestoreSource,
) -> Result<Plan, AdapterError> {
    let target = plan.target.clone();
    let (mode, owner) = blocking(move || {
        let live = fs::metadata(&target).map_err(failed("look at", &target))?;
        // The server starts with these only.
        let mode = Some(live.mode() & 0o777).filter(|m| [0o700, 0o750].contains(m)).unwrap_or(0o700);
        // What the server made itself tells best whose it is.
        let own = fs::metadata(target.join("PG_VERSION")).unwrap_or(live);
        Ok((mode, (own.uid(), own.gid())))
    })
    .await?;
    let staged = async {
        let body = source.open(&base(source.metadata())?.name).await?;
        unpack(cx, body, plan.staged.clone(), mode, Some(owner)).await?;
        let (staged, target, at) = (plan.staged.clone(), plan.target.clone(), cx.timestamp);
        blocking(move || {
            keep_aside::prepare(&staged, &target, at).map_err(failed("plan to replace", &target))
        })
        .await
    };
    match staged.await {
        Ok(swap) => Ok(Plan { swap: Some(swap), ..plan }),
        Err(e) => {
            // The first error tells more; what is left is found again by the plan.
            let _second = remove(vec![plan.staged]).await;
            Err(e)
        }
    }
}

async fn remove(paths: Vec<PathBuf>) -> Result<(), AdapterError> {
    blocking(move || paths.iter().try_for_each(|p| keep_aside::remove(p).map_err(failed("remove", p)))).await
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

impl Plan {
    fn swap(&self) -> Result<&Swap, AdapterError> {
        self.swap.as_ref().ok_or_else(|| AdapterError::corrupt("the restore was never staged"))
    }

    /// Whether the data that is meant to be live is.
    fn exchanged(&self) -> bool {
        self.swap.as_ref().is_some_and(|s| identity(&s.target) == Some(s.identity))
    }
}

async fn exchange(swap: Swap) -> Result<(), AdapterError> {
    blocking(move || keep_aside::switch(&swap).map_err(failed("replace", &swap.target))).await
}

/// Stops the server until its directory was exchanged.
async fn stop(
    runtime: &Arc<dyn ServiceRuntime>,
    cx: &OpContext,
    deadline: Instant,
) -> Result<Interruption, AdapterError> {
    phase(cx, "stopping the server");
    let left = deadline.saturating_duration_since(Instant::now());
    let kind = InterruptionKind::Stop { grace: GRACE.min(left / 2) };
    let stopped = Interruption::begin(Arc::clone(runtime), cx.interruption(), kind, deadline).await?;
    if stopped.exit_status().is_some_and(|e| e.killed) {
        cx.warn("the server did not end in time and was killed: it recovers what is kept aside when it is started on it");
    }
    Ok(stopped)
}

/// Starts it again, and waits for it, as [`answers`]. One that stood still before is started, too: the data is there to be used.
async fn start(
    settings: &Settings,
    runtime: &Arc<dyn ServiceRuntime>,
    cx: &OpContext,
    stopped: &mut Interruption,
) -> Result<Option<AdapterError>, AdapterError> {
    phase(cx, "starting the server");
    if stopped.interrupts() {
        stopped.end().await?;
    } else {
        runtime.start().await?;
    }
    phase(cx, "waiting for the server to let clients in");
    answers(settings, runtime, cx).await
}

/// Waits until it answers; why it does not let us in, if that is its answer: its roles are those of its data, with their
/// passwords of then.
async fn answers(
    settings: &Settings,
    runtime: &Arc<dyn ServiceRuntime>,
    cx: &OpContext,
) -> Result<Option<AdapterError>, AdapterError> {
    let mut patience = Patience::with(&**runtime);
    loop {
        match Link::open(settings, cx).await {
            Ok(_) => return Ok(None),
            Err(e) if e.kind() == AdapterErrorKind::PermissionDenied => return Ok(Some(e)),
            Err(e) if cx.check_alive().is_err() => return Err(e),
            Err(e) if matches!(e.kind(), AdapterErrorKind::Unavailable | AdapterErrorKind::Conflict) => {
                patience.after(e).await?;
            }
            Err(e) => return Err(e),
        }
        cx.within(sleep(LOOK)).await?;
    }
}

pub(in crate::postgres) async fn switch(
    settings: &Settings,
    cx: &OpContext,
    plan: Plan,
) -> Result<Plan, AdapterError> {
    let (runtime, swap) = (runtime(settings)?, plan.swap()?.clone());
    let back = calm(cx);
    let refused = if !plan.exchanged() {
        let deadline = Instant::now() + cx.remaining().unwrap_or(USUAL_TIME);
        let mut stopped = stop(&runtime, cx, deadline).await?;
        let ran = stopped.interrupts();
        phase(cx, "exchanging the data directory");
        let exchanged = exchange(swap.clone()).await;
        let started = match exchanged {
            Ok(()) => start(settings, &runtime, &back, &mut stopped).await,
            Err(e) => Err(e),
        };
        match started {
            Ok(refused) => refused,
            Err(e) => {
                if let Err(second) = take_back(&runtime, cx, &mut stopped, &swap, ran).await {
                    cx.warn(format!(
                        "the restore failed, and what was there could not be put back at once: {second}"
                    ));
                }
                return Err(e);
            }
        }
    } else {
        // A run that died had exchanged them; the names may not be final yet, and the server may still stand still.
        exchange(swap.clone()).await?;
        runtime.start().await?;
        answers(settings, &runtime, &back).await?
    };
    let link = match refused {
        None => Link::open(settings, &back).await.map(Some),
        Some(refusal) => Ok(as_then(settings, &back, refusal).await),
    };
    compare(settings, &back, link, &plan.seen).await;
    Ok(Plan { live: true, ..plan })
}

/// Says that the restored server has the passwords of the backup's time, which is no reason to put the old data back, and
/// tries the one that a backup of then has.
async fn as_then(settings: &Settings, cx: &OpContext, refusal: AdapterError) -> Option<Link> {
    let (kept, record) = (cx.kept.clone(), refused_record(cx));
    let noted = blocking(move || {
        fs::create_dir_all(&kept).map_err(failed("create", &kept))?;
        fs::write(&record, "").map_err(failed("write", &record))
    });
    if let Err(e) = noted.await {
        cx.warn(backup_core::chain(&e));
    }
    let then = Link::as_then(settings, cx).await;
    let known = match &then {
        Ok(Some(_)) => "the password of that time is in the backup of the `.env` of that time, and is taken",
        Ok(None) => "no backup of a `.env` of that time has the password",
        Err(e) if e.kind() == AdapterErrorKind::PermissionDenied => {
            "the one in the backup of the `.env` of that time is refused, too"
        }
        Err(_) => "the one in the backup of the `.env` of that time could not be tried",
    };
    cx.warn(format!(
        "restored, but credentials differ: roles have the passwords of the backup's time, and the configured one is refused \
         ({refusal}); {known}; put the `.env` of that time back, or log in and change it: ALTER ROLE … PASSWORD …"
    ));
    then.ok().flatten()
}

/// Is there if the server that a run restored refused it.
fn refused_record(cx: &OpContext) -> PathBuf {
    cx.kept.join(format!("{}.refused", cx.run_id))
}

/// Whether this very run has restored a server, which then refused it: of that nothing can be counted.
pub(in crate::postgres) async fn was_refused(cx: &OpContext) -> Result<bool, AdapterError> {
    let record = refused_record(cx);
    blocking(move || Ok(record.exists())).await
}

/// The old data is live again, and the new one staged as it was.
async fn take_back(
    runtime: &Arc<dyn ServiceRuntime>,
    cx: &OpContext,
    stopped: &mut Interruption,
    swap: &Swap,
    ran: bool,
) -> Result<(), AdapterError> {
    let back = calm(cx);
    let made = identity(&swap.target) == Some(swap.identity);
    // It may have come up far enough to hold its files.
    let mut again = match made && !stopped.interrupts() {
        true => Some(stop(runtime, &back, Instant::now() + USUAL_TIME).await?),
        false => None,
    };
    let (swap, at) = (swap.clone(), cx.timestamp);
    let put_back = blocking(move || {
        if identity(&swap.target) == Some(swap.identity) {
            let aside = keep_aside::undo(&swap, at).map_err(failed("put back", &swap.target))?;
            fs::rename(&aside.kept, &swap.staged).map_err(failed("rename", &aside.kept))?;
        }
        Ok(())
    })
    .await;
    for interruption in [Some(stopped), again.as_mut()].into_iter().flatten() {
        if interruption.interrupts() {
            interruption.end().await?;
        }
    }
    // One that ended by itself was not stopped by us.
    if made && ran {
        runtime.start().await?;
    }
    put_back
}

/// Tells where the restored server differs from what was counted when the backup was taken. The manifest has proven every
/// byte, and writers went on while it was taken: no reason to put the old data back.
async fn compare(
    settings: &Settings,
    cx: &OpContext,
    link: Result<Option<Link>, AdapterError>,
    seen: &Evidence,
) {
    let counted = match link {
        Ok(Some(link)) => take::counts(settings, &link).await,
        Ok(None) => return,
        Err(e) => Err(e),
    };
    match counted {
        Ok(found) => {
            for difference in seen.contradictions(&found).into_iter().take(10) {
                cx.warn(format!(
                    "counted while the backup was taken, and in the restored server: {difference}"
                ));
            }
        }
        Err(e) => cx.warn(format!("the restored server runs, but could not be counted: {e}")),
    }
}

pub(in crate::postgres) async fn undo(
    settings: &Settings,
    cx: &OpContext,
    plan: Plan,
) -> Result<Plan, AdapterError> {
    let (runtime, swap) = (runtime(settings)?, plan.swap()?.clone());
    let at = cx.timestamp;
    // The server stands still once only: an undo that was made before has only its names to finish.
    let done = {
        let (swap, kept) = (swap.clone(), keep_aside::kept_path(&swap.target, at));
        blocking(move || Ok(identity(&swap.target) != Some(swap.identity) && kept.exists())).await?
    };
    let put_back = {
        let swap = swap.clone();
        move || keep_aside::undo(&swap, at).map_err(failed("put back", &swap.target))
    };
    let (undone, refused) = if done {
        let undone = blocking(put_back).await?;
        runtime.start().await?;
        (undone, answers(settings, &runtime, &calm(cx)).await?)
    } else {
        if swap.replaced && !swap.kept.exists() && plan.exchanged() {
            let what = format!("`{}` is gone", swap.kept.display());
            return Err(AdapterError::new(AdapterErrorKind::NotFound, what));
        }
        let deadline = Instant::now() + cx.remaining().unwrap_or(USUAL_TIME);
        let mut stopped = stop(&runtime, cx, deadline).await?;
        phase(cx, "exchanging the data directory");
        let undone = blocking(put_back).await;
        let started = start(settings, &runtime, &calm(cx), &mut stopped).await;
        (undone?, started?)
    };
    if let Some(refusal) = refused {
        cx.warn(format!("the server answers, but does not let the backup in: {refusal}"));
    }
    Ok(Plan { swap: Some(undone), live: true, ..plan })
}

/// What lies beside the live data.
fn aside(plan: &Plan) -> Result<Vec<PathBuf>, AdapterError> {
    let paths = match &plan.swap {
        Some(swap) if plan.live => vec![swap.kept.clone()],
        Some(_) if plan.exchanged() => {
            let what =
                format!("the restore of `{}` is half done: what was live lies aside", plan.target.display());
            return Err(conflict(what));
        }
        _ => vec![plan.staged.clone()],
    };
    Ok(paths.into_iter().filter(|p| p.exists() && *p != plan.target).collect())
}

pub(in crate::postgres) async fn leftovers(plan: Plan) -> Result<Vec<Leftover>, AdapterError> {
    blocking(move || {
        let mut found = Vec::new();
        for path in aside(&plan)? {
            let (bytes, _) = keep_aside::measure(&path).map_err(failed("look at", &path))?;
            found.push(Leftover { what: path.display().to_string(), bytes: Some(bytes) });
        }
        Ok(found)
    })
    .await
}

pub(in crate::postgres) async fn discard(cx: &OpContext, plan: Plan) -> Result<(), AdapterError> {
    let mut paths = blocking(move || aside(&plan)).await?;
    paths.push(refused_record(cx));
    remove(paths).await
}

/// Starts the server that a run stopped and left so, on the data that is in its place: the old or the new one.
pub(in crate::postgres) async fn bring_back(
    settings: &Settings,
    cx: &OpContext,
    entry: &InterruptionEntry,
) -> Result<Replay, AdapterError> {
    Interruption::replay(&cx.interruption(), &*runtime(settings)?, entry).await
}
