//! Copies of the server's files: where they are, whether they can be clones, and what dead runs left of those.

use std::path::PathBuf;

use backup_core::{AdapterError, AdapterErrorKind, OpContext};

use super::super::Neo4j;
use super::super::places::{self, Places};
use super::super::replica::{self, How};
use super::{DATA, TRANSACTIONS};
use crate::on_disk::blocking;

/// The mounts that get a clone.
fn clone_places(places: &Places, cx: &OpContext) -> Vec<PathBuf> {
    let mut all = vec![replica::place(&places.mounts.0, &cx.run_id)];
    if !places.together() {
        all.push(replica::place(&places.mounts.1, &cx.run_id));
    }
    all.dedup();
    all
}

/// Makes the folders that copies go to.
pub(super) async fn prepare(cx: &OpContext, places: &Places, how: How) -> Result<Vec<PathBuf>, AdapterError> {
    let bases = match how {
        How::Reflink => clone_places(places, cx),
        _ => vec![cx.spool.join("copy")],
    };
    let (made, places) = (bases.clone(), places.clone());
    blocking(move || {
        for base in &made {
            replica::remove(base)?;
            replica::make_private(base)?;
        }
        // What was written and is not on the disk yet would be written while the service stands still.
        for dir in [&places.data, &places.transactions] {
            backup_core::keep_aside::sync_file_system(dir)
                .map_err(|e| AdapterError::io("cannot flush the file system of Neo4j", e))?;
        }
        Ok(())
    })
    .await?;
    Ok(bases)
}

/// Where in them the data goes, and where the logs.
pub(super) fn copies(bases: &[PathBuf]) -> (PathBuf, PathBuf) {
    let of = |base: Option<&PathBuf>, name| base.cloned().unwrap_or_default().join(name);
    (of(bases.first(), DATA), of(bases.last(), TRANSACTIONS))
}

/// Finds out whether the file system can clone. Leaves nothing.
pub(super) async fn try_clone(cx: &OpContext, places: &Places) -> Result<(), AdapterError> {
    let (into, places) = (clone_places(places, cx), places.clone());
    blocking(move || {
        let tried = into.iter().zip([&places.data, &places.transactions]).try_for_each(|(place, from)| {
            replica::remove(place)?;
            replica::make_private(place)?;
            replica::can_reflink(from, place)
        });
        into.iter().try_for_each(|place| replica::remove(place)).and(tried)
    })
    .await
}

/// Removes what dead runs left: clones in the server's mounts, and containers beside its own.
pub(in crate::neo4j) async fn reclaim(
    neo4j: &Neo4j,
    cx: &OpContext,
    dead: &[backup_core::RunId],
) -> Result<Vec<String>, AdapterError> {
    let docker = &neo4j.server.docker;
    let mut removed = cx.within(docker.reclaim(dead)).await??;
    let tops = match places::inspect(&neo4j.server, cx).await {
        Ok(container) => places::tops(&container),
        // Its volumes may be anywhere then, or gone.
        Err(e) if e.kind() == AdapterErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(e),
    };
    let clones: Vec<PathBuf> =
        tops.iter().flat_map(|top| dead.iter().map(|run| replica::place(top, run))).collect();
    let gone = blocking(move || {
        let there: Vec<PathBuf> = clones.into_iter().filter(|c| c.symlink_metadata().is_ok()).collect();
        there.iter().try_for_each(|c| replica::remove(c))?;
        Ok(there)
    })
    .await?;
    removed.extend(gone.iter().map(|c| format!("`{}`, a clone of a dead run", c.display())));
    Ok(removed)
}
