//! The moment at which the new data goes live: the server is down, names are exchanged, and it comes back; or the old
//! data does.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backup_core::keep_aside::{self, Swap};
use backup_core::runtime::{
    Interruption, InterruptionEntry, InterruptionKind, Patience, Replay, RunState, ServiceRuntime as _,
};
use backup_core::{AdapterError, AdapterErrorKind, Evidence, OpContext, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::super::Neo4j;
use super::super::bolt::Bolt;
use super::super::capture::phase;
use super::super::{places, server};
use super::record::{read_record, write_record};
use super::remove_all;
use crate::on_disk::{blocking, failed};

/// How long a restore may interrupt the server that has no budget.
const USUAL_TIME: Duration = Duration::from_secs(3600);

/// What is being exchanged while the server is down.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Exchange {
    pub(super) swaps: Vec<Swap>,
    pub(super) way: Way,
}

/// Which way data is exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Way {
    /// The new data goes live.
    Switch,
    /// The old data does, and the new is kept aside as of this moment.
    Undo(Timestamp),
    /// The same, but the new data waits beside its place, as if nothing had been; the moment is that of the switch.
    TakeBack(Timestamp),
}

/// How a switch ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Done {
    pub(super) evidence: Evidence,
    /// The server answers, and does not let us in.
    #[serde(default)]
    pub(super) credentials_differ: bool,
}

fn exchange_record(kept: &Path, run: &backup_core::RunId) -> PathBuf {
    kept.join(format!("{run}.exchange.json"))
}

/// Whether the new data still waits beside its place.
pub(super) fn is_staged(swap: &Swap) -> bool {
    fs::symlink_metadata(&swap.staged).is_ok_and(|m| (m.dev(), m.ino()) == swap.identity)
}

/// Whether the new data has its place.
pub(super) fn is_live(swap: &Swap) -> bool {
    fs::symlink_metadata(&swap.target).is_ok_and(|m| (m.dev(), m.ino()) == swap.identity)
}

/// Exchanges whatever is not yet.
pub(super) fn exchange(mut what: Exchange) -> Result<Vec<Swap>, AdapterError> {
    for swap in &mut what.swaps {
        let failed = failed("replace", &swap.target);
        match what.way {
            Way::Switch => {
                if is_staged(swap) {
                    // The server may have made or removed it since.
                    swap.replaced = swap.target.exists();
                }
                keep_aside::switch(swap).map_err(failed)?;
            }
            Way::Undo(at) => *swap = keep_aside::undo(swap, at).map_err(failed)?,
            Way::TakeBack(_) if is_staged(swap) => {}
            Way::TakeBack(at) => {
                let back = keep_aside::undo(swap, at).map_err(&failed)?;
                if back.kept != swap.staged {
                    fs::rename(&back.kept, &swap.staged).map_err(&failed)?;
                }
            }
        }
    }
    Ok(what.swaps)
}

/// Stops the server, exchanges, starts it, and waits for it. If it does not come up with the new data, the old data goes
/// back; the error why is the second part of the answer then.
pub(super) async fn replace(
    neo4j: &Neo4j,
    cx: &OpContext,
    what: Exchange,
    expected: &Evidence,
) -> Result<(Done, Option<AdapterError>), AdapterError> {
    let record = exchange_record(&cx.kept, &cx.at_work);
    let way = what.way;
    phase(cx, "stopping the server");
    let mut stopped = stop(neo4j, cx).await?;
    write_record(&record, &what).await?;
    phase(cx, "replacing its data");
    let swaps = what.swaps.clone();
    let exchanged = blocking(move || exchange(what)).await;
    let exchanged = match exchanged {
        Ok(swaps) => Ok(swaps),
        Err(e) => {
            // If taking it back fails, too, the server stays down: half of its data is another's. The record says what
            // to finish, and the journal that the server is down.
            if way == Way::Switch {
                take_back(&record, swaps, cx.timestamp).await?;
            } else if !blocking(move || Ok(swaps.iter().all(is_live))).await? {
                return Err(e);
            }
            Err(e)
        }
    };
    // From here on data and logs belong together.
    remove_all(vec![record.clone()]).await?;
    let ran = stopped.interrupts();
    phase(cx, "starting the server");
    let up = stopped.end().await;
    let mut done = Done { evidence: expected.clone(), credentials_differ: false };
    let swaps = match exchanged {
        Ok(swaps) => swaps,
        Err(e) => {
            up?;
            let what = "the data could not be replaced, and what was live is live";
            return Ok((done, Some(AdapterError::new(e.kind(), what).with_source(e))));
        }
    };
    if !ran {
        cx.warn(format!("{} did not run before, and does not now: start it", neo4j.server));
        return Ok((done, None));
    }
    phase(cx, "waiting for the server to open its data");
    let calm = calm(cx);
    let counted = async {
        up?;
        let bolt = neo4j.server.wait(&calm).await?;
        count(&calm, bolt).await
    };
    match counted.await {
        Ok(evidence) => {
            done.evidence = evidence;
            Ok((done, None))
        }
        Err(e) if e.kind() == AdapterErrorKind::PermissionDenied => {
            done.credentials_differ = true;
            let then = count_as_then(neo4j, &calm).await;
            let known = match &then {
                Ok(Some(_)) => {
                    "the password of that time is in the backup of the `.env` of that time, and is taken"
                }
                Ok(None) => "no backup of a `.env` of that time has the password",
                Err(e) if e.kind() == AdapterErrorKind::PermissionDenied => {
                    "the one in the backup of the `.env` of that time is refused, too"
                }
                Err(_) => "the one in the backup of the `.env` of that time could not be tried",
            };
            cx.warn(format!(
                "restored, but credentials differ: the users and passwords of {} are those of the backup's time, and the \
                 configured ones are refused ({e}); {known}; to have the configured password set in restored data, say \
                 `reset_password = true` and restore again, or see docs/neo4j.md",
                neo4j.server
            ));
            if let Ok(Some(evidence)) = then {
                done.evidence = evidence;
            }
            Ok((done, None))
        }
        Err(e) if way != Way::Switch => Err(e),
        Err(e) => {
            phase(cx, "putting the old data back");
            let mut again = match stopped.interrupts() {
                true => None,
                false => Some(stop(neo4j, &calm).await?),
            };
            take_back(&record, swaps, cx.timestamp).await?;
            remove_all(vec![record]).await?;
            for interruption in [Some(&mut stopped), again.as_mut()].into_iter().flatten() {
                interruption.end().await?;
            }
            // One that had ended by itself was not stopped by us.
            neo4j.server.docker.start().await?;
            let what = format!(
                "{} does not come up with the restored data; the old data is live again",
                neo4j.server
            );
            Ok((done, Some(AdapterError::new(AdapterErrorKind::Corrupt, what).with_source(e))))
        }
    }
}

async fn count(cx: &OpContext, mut bolt: Bolt) -> Result<Evidence, AdapterError> {
    let databases = server::databases(cx, &mut bolt).await?;
    let evidence = server::evidence(cx, &mut bolt, &databases).await?;
    bolt.close(cx).await;
    Ok(evidence)
}

/// Counts as whoever could log in when the backup was made. `None` if nobody knows the password of then.
async fn count_as_then(neo4j: &Neo4j, cx: &OpContext) -> Result<Option<Evidence>, AdapterError> {
    match neo4j.server.connect_as_then(cx).await? {
        Some(bolt) => count(cx, bolt).await.map(Some),
        None => Ok(None),
    }
}

/// Undoes exchanges that were made, so that they can be made again. The record says so, until the caller removes it.
async fn take_back(record: &Path, swaps: Vec<Swap>, at: Timestamp) -> Result<(), AdapterError> {
    let what = Exchange { swaps, way: Way::TakeBack(at) };
    write_record(record, &what).await?;
    blocking(move || exchange(what)).await.map(drop)
}

async fn stop(neo4j: &Neo4j, cx: &OpContext) -> Result<Interruption, AdapterError> {
    let deadline = Instant::now() + cx.remaining().unwrap_or(USUAL_TIME);
    let runtime = std::sync::Arc::new(neo4j.server.docker.clone());
    let kind = InterruptionKind::Stop { grace: neo4j.stop_timeout };
    // One that had to be killed keeps its logs aside with its data, and recovers from them.
    Interruption::begin(runtime, cx.interruption(), kind, deadline).await
}

/// For what must be seen through, whatever became of the run.
fn calm(cx: &OpContext) -> OpContext {
    let mut calm = cx.clone();
    calm.cancel = tokio_util::sync::CancellationToken::new();
    calm.deadline = Some(Instant::now() + Patience::LIMIT);
    calm
}

/// Undoes a dead run's interruption; an exchange of data that it had begun is finished before the server starts.
pub(in crate::neo4j) async fn bring_back(
    neo4j: &Neo4j,
    cx: &OpContext,
    entry: &InterruptionEntry,
) -> Result<Replay, AdapterError> {
    let record = exchange_record(&cx.kept, &entry.run_id);
    let here = cx.journal.place().host == entry.place.host;
    if here
        && matches!(entry.kind, InterruptionKind::Stop { .. })
        && let Some(what) = read_record::<Exchange>(&record).await?
    {
        let down = match places::inspect(&neo4j.server, cx).await {
            Ok(now) => now.instance == entry.instance && now.state == RunState::Stopped,
            // `replay` says so.
            Err(e) if e.kind() == AdapterErrorKind::NotFound => false,
            Err(e) => return Err(e),
        };
        if down {
            blocking(move || exchange(what)).await?;
            remove_all(vec![record]).await?;
        }
    }
    Interruption::replay(&cx.interruption(), &neo4j.server.docker, entry).await
}
