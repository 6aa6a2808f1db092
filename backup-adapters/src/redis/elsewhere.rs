//! Restores into directories: a file `dump.rdb`, as a server would find it.

use std::path::{Path, PathBuf};

use backup_core::{
    ANSWER_TIME, AdapterError, Answer, Evidence, OpContext, RestorePlan, RestoreTarget, StepToken,
};

use super::conn::Server;
use super::kept;
use super::restore::{Token, is_own};
use super::trial::Trial;
use super::{ask, check};
use crate::beside::Place;

pub(super) const NAME: &str = "dump.rdb";

/// A file in a directory.
pub(super) async fn plan(
    cx: &OpContext,
    dir: &Path,
    target: &RestoreTarget,
    bytes: u64,
) -> Result<RestorePlan, AdapterError> {
    let (place, replaces, space) = Place::plan(cx, dir, NAME, bytes, is_own).await?;
    let steps = vec![format!("write {bytes} bytes to `{}` and check them", place.target.display())];
    let token = StepToken::new(&Token::Place(place))?;
    Ok(RestorePlan { target: target.clone(), steps, replaces, space, token })
}

/// What may lie beside the target.
pub(super) fn remains(place: &Place) -> Vec<PathBuf> {
    std::iter::once(kept::part(&place.staged)).chain(place.remains()).collect()
}

/// Counts the file in `dir` by loading it into a server, if there is one that can. Otherwise the file is walked, and no
/// question can be asked.
pub(super) async fn load(
    service: &Server,
    cx: &OpContext,
    dir: &Path,
    questions: &[String],
) -> Result<(Evidence, Vec<Answer>), AdapterError> {
    let summary = kept::check(dir.join(NAME)).await?;
    let counted = check::evidence(&summary);
    let Some(mut trial) = Trial::start(service, cx, dir, &summary).await? else {
        cx.warn("this host has no redis-server that loads this file: it was walked to its end, not loaded");
        let unasked =
            |_: &String| Err(AdapterError::unsupported("this host has no redis-server that loads this file"));
        return Ok((counted, questions.iter().map(unasked).collect()));
    };
    let found = trial.loaded(cx).await;
    let mut answers = Vec::with_capacity(questions.len());
    if found.is_ok() {
        let server = trial.server();
        for question in questions {
            answers.push(ask::of_server(&server, &cx.limited_to(ANSWER_TIME), question).await);
        }
    }
    let loaded_by = trial.loaded_by().to_owned();
    let ended = trial.end().await;
    let mut evidence = found?.evidence();
    ended?;
    evidence.notes = counted.notes;
    evidence.notes.insert("loaded_by".into(), loaded_by);
    Ok((evidence, answers))
}
