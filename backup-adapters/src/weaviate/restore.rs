//! The steps of a restore, for each target.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use backup_core::runtime::{Interruption, InterruptionEntry, InterruptionKind, Replay, RunState};
use backup_core::{
    AdapterError, AdapterErrorKind, Answer, ArtifactMeta, Evidence, Leftover, Metadata, OpContext,
    RestorePlan, RestoreSource, RestoreTarget, StepToken, keep_aside,
};
use serde::{Deserialize, Serialize};

use super::census::Schema;
use super::live::{self, Live};
use super::place;
use super::server::Server;
use super::twin::{self, Load, What};
use super::{ask, exchange, export, tenants};
use crate::beside::Place;
use crate::on_disk::blocking;
use crate::runtime::docker::Purpose;
use crate::tree::extract::Dest;
use crate::tree::stage;

/// What a restore remembers between its steps.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Token {
    /// A folder in a directory, at any step.
    Place(Place),
    /// The live server, at any step.
    Live(Box<Live>),
}

/// What the metadata says of a backup.
#[derive(Debug, Clone)]
pub(super) struct Backup {
    pub(super) id: String,
    pub(super) node: String,
    pub(super) bytes: u64,
    pub(super) inactive: BTreeMap<String, Vec<String>>,
    /// It is an export, and not the server's own backup.
    pub(super) export: bool,
    /// What made it, e.g. `1.35.2`.
    version: Option<String>,
}

/// Whether it is an export, and not the server's own backup.
pub(super) fn is_export(artifact: &ArtifactMeta) -> bool {
    artifact.attributes.get(export::FORM).is_some_and(|form| form == export::EXPORT)
}

/// The one artifact of a backup.
fn artifact(backup: &Metadata) -> Result<&ArtifactMeta, AdapterError> {
    match backup.artifacts.as_slice() {
        [one] => Ok(one),
        other => {
            Err(AdapterError::corrupt(format!("a backup of Weaviate has one artifact, not {}", other.len())))
        }
    }
}

impl Backup {
    pub(super) fn of(metadata: &Metadata) -> Result<Self, AdapterError> {
        let artifact = artifact(metadata)?;
        let text =
            |key: &str| artifact.attributes.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        let id = text("backup_id");
        if !super::files::is_plain(OsString::from(&id).as_os_str()) {
            return Err(AdapterError::corrupt("the backup does not name the server's backup in it"));
        }
        let inactive = artifact.attributes.get("inactive_tenants").cloned().unwrap_or_default();
        let inactive = serde_json::from_value(inactive).unwrap_or_default();
        let export = is_export(artifact);
        // An export is of no node: any server takes it.
        let node = if export { String::new() } else { text("node") };
        let version = metadata.service_version.clone();
        Ok(Self { id, node, bytes: artifact.plain_bytes, inactive, export, version })
    }

    /// Refuses it for a server of version `live`, if that is of an older minor version: it does not know all that is in it.
    ///
    /// # Errors
    /// `Conflict`, unless [`OpContext::force`]: a second server has to restore it before anything is touched.
    pub(super) fn refuse_older(&self, cx: &OpContext, live: &str) -> Result<(), AdapterError> {
        let numbers = |version: &str| {
            let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
            Some((parts.next()??, parts.next()??))
        };
        let then = self.version.as_deref().unwrap_or_default();
        let (Some(has), Some(is)) = (numbers(then), numbers(live)) else { return Ok(()) };
        if has <= is || cx.force {
            return Ok(());
        }
        let what = format!(
            "the backup is of Weaviate {then}, and the server is {live}: restore into version {}.{} or a newer one, or try it \
             with --force",
            has.0, has.1
        );
        Err(AdapterError::new(AdapterErrorKind::Conflict, what))
    }
}

/// Reads the backup to its verified end; its folder becomes `target`.
pub(super) async fn unpack(
    cx: &OpContext,
    source: &RestoreSource,
    target: PathBuf,
) -> Result<(), AdapterError> {
    let backup = Backup::of(source.metadata())?;
    let artifact = artifact(source.metadata())?;
    let (Some(parent), Some(name)) = (target.parent().map(Path::to_owned), target.file_name()) else {
        return Err(AdapterError::corrupt("the place of a restore has no name"));
    };
    let dest = Dest {
        prefix: backup.id.into_bytes(),
        below_top: false,
        parent: parent.clone(),
        name: name.to_owned(),
    };
    blocking(move || {
        std::fs::create_dir_all(&parent)
            .map_err(|e| AdapterError::io(format!("cannot create `{}`", parent.display()), e))
    })
    .await?;
    let body = source.open(&artifact.name).await?;
    for warning in cx.within(stage::extract(cx, body, vec![dest])).await?? {
        cx.warn(warning);
    }
    Ok(())
}

pub(super) async fn plan(
    server: &Server,
    cx: &OpContext,
    metadata: &Metadata,
    target: &RestoreTarget,
) -> Result<RestorePlan, AdapterError> {
    let backup = Backup::of(metadata)?;
    match target {
        RestoreTarget::Live => live::plan(server, cx, &backup).await,
        RestoreTarget::Dir(dir) => place::plan(cx, dir, target, &backup).await,
        RestoreTarget::Scratch(scratch) => place::plan(cx, &scratch.dir, target, &backup).await,
        _ => Err(AdapterError::unsupported("Weaviate cannot be restored there")),
    }
}

pub(super) async fn stage(
    server: &Server,
    cx: &OpContext,
    plan: &RestorePlan,
    source: &RestoreSource,
) -> Result<StepToken, AdapterError> {
    StepToken::new(&match plan.token.get()? {
        Token::Place(place) => {
            unpack(cx, source, place.staged.clone()).await?;
            Token::Place(place.built(cx).await?)
        }
        Token::Live(live) => Token::Live(Box::new(live.stage(server, cx, source).await?)),
    })
}

pub(super) async fn switch(
    server: &Server,
    cx: &OpContext,
    staged: &StepToken,
) -> Result<StepToken, AdapterError> {
    StepToken::new(&match staged.get()? {
        Token::Place(place) => Token::Place(place.switch().await?),
        Token::Live(live) => Token::Live(Box::new(live.switch(server, cx).await?)),
    })
}

pub(super) async fn undo(
    server: &Server,
    cx: &OpContext,
    switched: &StepToken,
) -> Result<StepToken, AdapterError> {
    StepToken::new(&match switched.get()? {
        Token::Place(place) => Token::Place(place.undo(cx).await?),
        Token::Live(live) => Token::Live(Box::new(live.undo(server, cx).await?)),
    })
}

/// Counts what is there, and asks it: a server that is started for that is started once.
pub(super) async fn probe(
    server: &Server,
    cx: &OpContext,
    target: &RestoreTarget,
    questions: &[String],
) -> Result<(Evidence, Vec<Answer>), AdapterError> {
    if let RestoreTarget::Scratch(scratch) = target {
        return try_out(server, cx, &scratch.dir, questions).await;
    }
    let found = count(server, cx, target).await?;
    let answers = match target {
        RestoreTarget::Live if !questions.is_empty() => {
            ask::all(&server.connect(cx).await?, cx, questions).await
        }
        _ => {
            let unasked = |_: &String| Err(AdapterError::unsupported("no server runs in a directory"));
            questions.iter().map(unasked).collect()
        }
    };
    Ok((found, answers))
}

async fn count(server: &Server, cx: &OpContext, target: &RestoreTarget) -> Result<Evidence, AdapterError> {
    match target {
        RestoreTarget::Live => {
            // What this very run has restored was counted before writers came.
            if let Some(done) = live::done(cx).await? {
                return Ok(done);
            }
            let api = server.connect(cx).await?;
            let schema = Schema::read(&api, cx).await?;
            let asleep = schema.inactive();
            let mut found = schema.count(&api, cx).await?;
            // Tenants that sleep were not counted.
            found.counts.retain(|name, _| {
                !(asleep.keys().any(|class| *name == format!("objects.{class}"))
                    || (name == "searchable" && !asleep.is_empty()))
            });
            Ok(found)
        }
        RestoreTarget::Dir(dir) => Ok(place::find(dir.clone()).await?.evidence()),
        _ => Err(AdapterError::unsupported("Weaviate cannot be counted there")),
    }
}

/// Restores what lies in a scratch folder into a server of its own, counts it, and asks it.
async fn try_out(
    server: &Server,
    cx: &OpContext,
    dir: &Path,
    questions: &[String],
) -> Result<(Evidence, Vec<Answer>), AdapterError> {
    let found = place::find(dir.to_owned()).await?;
    let (id, node, what) = (found.id().to_owned(), found.node(), found.what(dir));
    let work = keep_aside::staging_path(&dir.join("server"), &cx.run_id);
    let (data, backups) = twin::parts(&work);
    let export = matches!(what, What::Export(_));
    let (from, to, clean) = (dir.join(&id), backups.join(&id), work.clone());
    // The server writes into a backup that it restores: so it gets it for a while, under a name of its own.
    blocking(move || {
        let failed = |e| AdapterError::io(format!("cannot prepare `{}`", clean.display()), e);
        keep_aside::remove(&clean).map_err(failed)?;
        std::fs::create_dir_all(&data).map_err(failed)?;
        std::fs::create_dir_all(&backups).map_err(failed)?;
        if !export {
            link_tree(&from, &to).map_err(failed)?;
        }
        Ok(())
    })
    .await?;
    let load = Load { what, run_as: node, inactive: BTreeMap::new() };
    let found = twin::load_and_ask(server, cx, &work, &load, Purpose::Scratch, questions).await;
    let cleaned = blocking(move || {
        keep_aside::remove(&work)
            .map_err(|e| AdapterError::io(format!("cannot remove `{}`", work.display()), e))
    })
    .await;
    let found = found?;
    cleaned?;
    Ok(found)
}

/// The same files under other names; small ones, which the server rewrites, as copies.
fn link_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            link_tree(&from, &to)?;
        } else if from.extension().is_some_and(|e| e == "json") {
            std::fs::copy(&from, &to)?;
        } else {
            std::fs::hard_link(&from, &to).or_else(|_| std::fs::copy(&from, &to).map(drop))?;
        }
    }
    Ok(())
}

fn remains(token: &Token) -> Vec<PathBuf> {
    match token {
        Token::Place(place) => place.remains(),
        Token::Live(live) => live.remains(),
    }
}

pub(super) async fn leftovers(token: &StepToken) -> Result<Vec<Leftover>, AdapterError> {
    let paths = remains(&token.get()?);
    blocking(move || {
        let mut found = Vec::new();
        for path in paths {
            match keep_aside::measure(&path) {
                Ok((bytes, _)) if path.symlink_metadata().is_ok() => {
                    found.push(Leftover { what: path.display().to_string(), bytes: Some(bytes) });
                }
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(AdapterError::io(format!("cannot measure `{}`", path.display()), e)),
            }
        }
        Ok(found)
    })
    .await
}

pub(super) async fn discard(server: &Server, cx: &OpContext, token: &StepToken) -> Result<(), AdapterError> {
    let token: Token = token.get()?;
    if let Token::Live(live) = &token {
        live.refuse_half_done()?;
        // The server that a killed restore has started still runs, and writes into what goes now.
        if let Some(docker) = &server.container {
            docker.reclaim(std::slice::from_ref(&cx.run_id)).await?;
        }
    }
    let paths = remains(&token);
    blocking(move || {
        paths.iter().try_for_each(|path| {
            keep_aside::remove(path)
                .map_err(|e| AdapterError::io(format!("cannot remove `{}`", path.display()), e))
        })
    })
    .await
}

pub(super) async fn bring_back(
    server: &Server,
    cx: &OpContext,
    entry: &InterruptionEntry,
) -> Result<Replay, AdapterError> {
    if matches!(entry.kind, InterruptionKind::Other { .. }) {
        return tenants::bring_back(server, cx, entry).await;
    }
    let Some(runtime) = server.runtime() else {
        return Err(AdapterError::unsupported(format!("nothing here can start {server}: start it by hand")));
    };
    // An exchange that was begun is finished first: a server must never see half of each.
    if runtime.inspect().await?.state == RunState::Stopped
        && let Ok((data, _)) = live::folders(server, cx).await
    {
        blocking(move || exchange::finish(&data)).await?;
    }
    Interruption::replay(&cx.interruption(), &*runtime, entry).await
}

/// Names at the top of the data directory that stay where they are: where the backups are, and what is mounted there.
pub(super) fn fixed<'a>(data: &Path, others: impl Iterator<Item = &'a Path>) -> BTreeSet<String> {
    others
        .filter_map(|p| p.strip_prefix(data).ok()?.components().next())
        .map(|c| c.as_os_str().to_string_lossy().into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_in_the_data_stays() {
        let others = ["/var/lib/weaviate/backups/x", "/var/lib/weaviate", "/srv/y", "/var/lib/weaviate/m"]
            .map(Path::new);
        let fixed = fixed(Path::new("/var/lib/weaviate"), others.into_iter());
        assert_eq!(fixed, BTreeSet::from(["backups".to_owned(), "m".to_owned()]));
    }
}
