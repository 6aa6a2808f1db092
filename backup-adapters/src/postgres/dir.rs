//! A restore into a directory: the dumps as files, and how to load them.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use backup_core::{
    AdapterError, AdapterErrorKind, ByteStream, Leftover, Metadata, OpContext, RestorePlan, RestoreSource,
    RestoreTarget, SpaceNeed, StepToken, keep_aside,
};
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};

use super::base;
use super::load::proven;
use super::restore::{Listed, Token, attribute, database_of, format_of, parser_of, write_list};
use crate::on_disk::{blocking, failed};

/// Where the files go.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Plan {
    dir: PathBuf,
    staged: PathBuf,
}

pub(super) async fn plan(
    cx: &OpContext,
    backup: &Metadata,
    target: &RestoreTarget,
    path: &Path,
) -> Result<RestorePlan, AdapterError> {
    let staged = keep_aside::staging_path(path, &cx.run_id);
    let (path, force) = (path.to_owned(), cx.force);
    let dir = path.clone();
    let existing = blocking(move || {
        let full = std::fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_some());
        if full && !force {
            let message = format!("directory `{}` is not empty", path.display());
            return Err(AdapterError::new(AdapterErrorKind::Conflict, message));
        }
        Ok(path.ancestors().skip(1).find(|p| p.is_dir()).unwrap_or(Path::new("/")).to_owned())
    })
    .await?;
    let bytes = backup.plain_bytes();
    let steps = vec![
        format!("write {} artifacts, {bytes} bytes, into `{}`", backup.artifacts.len(), dir.display()),
        "check that each is whole".to_owned(),
    ];
    let token = StepToken::new(&Token::Dir(Plan { dir, staged }))?;
    let space = vec![SpaceNeed { path: existing, bytes }];
    Ok(RestorePlan { target: target.clone(), steps, replaces: Vec::new(), space, token })
}

pub(super) async fn stage(cx: &OpContext, plan: Plan, source: &RestoreSource) -> Result<Plan, AdapterError> {
    let staged = plan.staged.clone();
    blocking(move || {
        keep_aside::remove(&staged).map_err(failed("replace", &staged))?;
        std::fs::create_dir_all(&staged).map_err(failed("create", &staged))
    })
    .await?;
    let mut list = Vec::new();
    let mut hints =
        String::from("Load these into a server of the version that they come from, or a newer one:\n\n");
    for artifact in source.metadata().artifacts.iter().filter(|a| a.external.is_none()) {
        if attribute(artifact, "content") == Some(base::BASE) {
            let data = PathBuf::from("data");
            let body = source.open(&artifact.name).await?;
            base::unpack(cx, body, plan.staged.join(&data), 0o700, None).await?;
            let version = attribute(artifact, "server_version").unwrap_or("the same version");
            hints = format!(
                "`{}` is the data directory of a PostgreSQL server {version}. Give it to the user that runs the server \
                 (chown -R), and start a server of that version on it: it recovers from the WAL that is with it.\n",
                data.display()
            );
            list.push(Listed::Base { data });
            continue;
        }
        let format = format_of(artifact);
        let file = PathBuf::from(format!("{}.{}", artifact.name, format.extension()));
        let body = source.open(&artifact.name).await?;
        let body = match database_of(artifact) {
            Some(name) => {
                let body = proven(body, parser_of(artifact, &name));
                hints.push_str(&super::hand::load(artifact, &name, &file.display().to_string()));
                list.push(Listed::File { name, file: file.clone(), format });
                body
            }
            None => {
                let what = attribute(artifact, "content").unwrap_or("statements");
                hints.push_str(&format!(
                    "# {what}: read it, then run what is missing with psql -f {}\n",
                    file.display()
                ));
                body
            }
        };
        write(cx, body, plan.staged.join(file)).await?;
    }
    write_list(&plan.staged, &list).await?;
    let (path, synced) = (plan.staged.join("RESTORE.txt"), plan.staged.clone());
    blocking(move || {
        std::fs::write(&path, hints).map_err(failed("write", &path))?;
        keep_aside::sync_file_system(&synced).map_err(failed("write", &synced))
    })
    .await?;
    Ok(plan)
}

async fn write(
    cx: &OpContext,
    mut body: ByteStream<AdapterError>,
    path: PathBuf,
) -> Result<(), AdapterError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let create = path.clone();
    let mut file = blocking(move || {
        File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&create)
            .map_err(failed("create", &create))
    })
    .await?;
    while let Some(chunk) = cx.within(body.next()).await? {
        let (chunk, shown) = (chunk?, path.clone());
        file = blocking(move || {
            file.write_all(&chunk).map_err(failed("write", &shown))?;
            Ok(file)
        })
        .await?;
    }
    Ok(())
}

/// Idempotent: what has its name already keeps it.
pub(super) async fn switch(plan: Plan) -> Result<Plan, AdapterError> {
    blocking(move || {
        if plan.staged.exists() {
            if let Some(parent) = plan.dir.parent() {
                std::fs::create_dir_all(parent).map_err(failed("create", parent))?;
            }
            // Takes the place of an empty directory, too.
            std::fs::rename(&plan.staged, &plan.dir).map_err(failed("create", &plan.dir))?;
        } else if !plan.dir.is_dir() {
            let message = format!("`{}` is gone", plan.staged.display());
            return Err(AdapterError::new(AdapterErrorKind::NotFound, message));
        }
        Ok(plan)
    })
    .await
}

pub(super) async fn leftovers(plan: Plan) -> Result<Vec<Leftover>, AdapterError> {
    blocking(move || {
        if !plan.staged.exists() {
            return Ok(Vec::new());
        }
        let (bytes, _) = keep_aside::measure(&plan.staged).map_err(failed("look at", &plan.staged))?;
        Ok(vec![Leftover { what: plan.staged.display().to_string(), bytes: Some(bytes) }])
    })
    .await
}

pub(super) async fn discard(plan: Plan) -> Result<(), AdapterError> {
    blocking(move || keep_aside::remove(&plan.staged).map_err(failed("remove", &plan.staged))).await
}
