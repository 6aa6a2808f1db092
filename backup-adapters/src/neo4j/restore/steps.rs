//! The steps that others ask for, once the data is built: going live, going back, tidying up.

use backup_core::keep_aside;
use backup_core::{AdapterError, AdapterErrorKind, Evidence, Leftover, OpContext, StepToken};

use super::super::Neo4j;
use super::exchange::{Done, Exchange, Way, exchange, is_live, is_staged, replace};
use super::record::{read_record, write_record};
use super::{Job, remove_all};
use crate::on_disk::{blocking, failed};

pub(in crate::neo4j) async fn switch(
    neo4j: &Neo4j,
    cx: &OpContext,
    staged: &StepToken,
) -> Result<StepToken, AdapterError> {
    let mut job: Job = staged.get()?;
    if job.swaps.is_empty() {
        return Err(AdapterError::corrupt("the restore was never staged"));
    }
    if !job.live {
        let what = Exchange { swaps: job.swaps.clone(), way: Way::Switch };
        job.swaps = blocking(move || exchange(what)).await?;
        job.switched = true;
        return StepToken::new(&job);
    }
    let expected =
        job.expected.clone().ok_or_else(|| AdapterError::corrupt("the restore was never proven"))?;
    if read_record::<Done>(&job.done).await?.is_none() {
        let what = Exchange { swaps: job.swaps.clone(), way: Way::Switch };
        let (done, put_back) = replace(neo4j, cx, what, &expected).await?;
        if let Some(e) = put_back {
            return Err(e);
        }
        write_record(&job.done, &done).await?;
    }
    let swaps = job.swaps.clone();
    let checked = blocking(move || {
        Ok(swaps
            .into_iter()
            .map(|mut s| {
                s.replaced = s.kept.symlink_metadata().is_ok();
                s
            })
            .collect())
    });
    job.swaps = checked.await?;
    // What was built beside and is not wanted: a second server's own files.
    remove_all(vec![job.data.clone(), job.logs.clone()]).await?;
    job.switched = true;
    StepToken::new(&job)
}

pub(in crate::neo4j) async fn undo(
    neo4j: &Neo4j,
    cx: &OpContext,
    switched: &StepToken,
) -> Result<StepToken, AdapterError> {
    let mut job: Job = switched.get()?;
    if !job.switched {
        return Err(AdapterError::new(AdapterErrorKind::Conflict, "this restore never went live"));
    }
    let what = Exchange { swaps: job.swaps.clone(), way: Way::Undo(cx.timestamp) };
    if !job.live {
        job.swaps = blocking(move || exchange(what)).await?;
        return StepToken::new(&job);
    }
    // Once is enough: each time the server is down for a while.
    let record = job.kept.join(format!("undo-{}.json", cx.timestamp));
    if let Some(undone) = read_record::<Job>(&record).await? {
        return StepToken::new(&undone);
    }
    let looked = job.swaps.clone();
    blocking(move || {
        let gone = looked.iter().find(|s| s.replaced && is_live(s) && s.kept.symlink_metadata().is_err());
        gone.map_or(Ok(()), |s| {
            let what = format!("`{}` is gone: there is nothing to put back", s.kept.display());
            Err(AdapterError::new(AdapterErrorKind::NotFound, what))
        })
    })
    .await?;
    remove_all(vec![job.done.clone()]).await?;
    let at = cx.timestamp;
    let again = job.swaps.clone();
    let nothing = Evidence::default();
    let (_, failed) = replace(neo4j, cx, what, &nothing).await?;
    if let Some(e) = failed {
        return Err(e);
    }
    // The same again changes nothing, and tells what would redo it.
    job.swaps = blocking(move || exchange(Exchange { swaps: again, way: Way::Undo(at) })).await?;
    job.records.push(record.clone());
    write_record(&record, &job).await?;
    StepToken::new(&job)
}

pub(in crate::neo4j) async fn leftovers(token: &StepToken) -> Result<Vec<Leftover>, AdapterError> {
    let job: Job = token.get()?;
    blocking(move || {
        let there = job.remains().into_iter().filter(|p| p.symlink_metadata().is_ok());
        there
            .map(|path| {
                let bytes = keep_aside::measure(&path).map_err(failed("measure", &path))?.0;
                Ok(Leftover { what: path.display().to_string(), bytes: Some(bytes) })
            })
            .collect()
    })
    .await
}

pub(in crate::neo4j) async fn discard(
    neo4j: &Neo4j,
    cx: &OpContext,
    token: &StepToken,
) -> Result<(), AdapterError> {
    let job: Job = token.get()?;
    let looked = job.clone();
    blocking(move || {
        let half = !looked.switched && looked.swaps.iter().any(|s| !is_staged(s) && s.target.exists());
        let moved = looked.swaps.iter().any(|s| s.kept.symlink_metadata().is_ok());
        if half && moved {
            let what = format!("the restore of `{}` is half done", looked.place.display());
            return Err(AdapterError::new(AdapterErrorKind::Conflict, what));
        }
        Ok(())
    })
    .await?;
    // The second server that a killed restore has started still runs, and writes into what goes now.
    cx.within(neo4j.server.docker.reclaim(std::slice::from_ref(&cx.run_id))).await??;
    blocking(move || {
        job.remains().iter().try_for_each(|p| keep_aside::remove(p).map_err(failed("remove", p)))
    })
    .await
}
