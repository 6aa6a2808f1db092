//! From a stream back to a database file beside its place.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use backup_core::{
    AdapterError, AdapterErrorKind, ArtifactMeta, Metadata, OpContext, Replaced, RestorePlan, RestoreSource,
    RestoreTarget, SpaceNeed, StepToken, keep_aside,
};
use bytes::Bytes;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::connect::{SIDECARS, sidecar};
use super::in_use::users;
use super::inspect::integrity_check;
use super::swap::DatabaseSwap;
use super::{joined, resolve};

/// What a plan remembers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Plan {
    /// The file that the database shall have, symbolic links resolved.
    pub(super) target: PathBuf,
}

/// The one artifact of a backup.
fn artifact(backup: &Metadata) -> Result<&ArtifactMeta, AdapterError> {
    match backup.artifacts.as_slice() {
        [one] => Ok(one),
        other => Err(AdapterError::corrupt(format!(
            "a backup of a database has one artifact, not {}",
            other.len()
        ))),
    }
}

/// The database's own file name. What metadata says is not trusted with a path.
pub(super) fn file_name(artifact: &ArtifactMeta) -> PathBuf {
    let recorded =
        artifact.attributes.get("path").and_then(|p| p.as_str()).and_then(|p| Path::new(p).file_name());
    recorded.map_or_else(|| PathBuf::from(format!("{}.sqlite", artifact.name)), PathBuf::from)
}

pub(super) fn plan(
    live: &Path,
    backup: &Metadata,
    target: &RestoreTarget,
    cx: &OpContext,
) -> Result<RestorePlan, AdapterError> {
    let artifact = artifact(backup)?;
    let file = match target {
        RestoreTarget::Live => resolve(live)?,
        RestoreTarget::Dir(dir) => {
            refuse_full(dir, cx)?;
            dir.join(file_name(artifact))
        }
        RestoreTarget::Scratch(scratch) => scratch.dir.join(file_name(artifact)),
        _ => return Err(AdapterError::unsupported("a database cannot be restored there")),
    };
    let shown = file.display();
    if file.is_dir() {
        let message = format!("`{shown}` is a directory, where the database shall be");
        return Err(AdapterError::new(AdapterErrorKind::Conflict, message));
    }
    let mut steps = vec![format!("write {} bytes beside `{shown}`", artifact.plain_bytes)];
    steps.push("run SQLite's integrity check on what was written".into());
    if refuse_used(&file, cx)? && file.exists() {
        steps.push(format!("(processes of other users cannot be seen: make sure that none uses `{shown}`)"));
    }
    let mut replaces = Vec::new();
    for path in SIDECARS.iter().map(|s| sidecar(&file, s)).chain([file.clone()]) {
        if path.exists() {
            let (_, changed_at) = keep_aside::measure(&path)
                .map_err(|e| AdapterError::io(format!("cannot look at `{}`", path.display()), e))?;
            let kept_as = keep_aside::kept_path(&path, cx.timestamp);
            steps.push(format!("keep `{}` as `{}`", path.display(), kept_as.display()));
            let (what, kept_as) = (path.display().to_string(), kept_as.display().to_string());
            replaces.push(Replaced { what, kept_as, changed_at });
        }
    }
    steps.push(format!("put the restored database at `{shown}`"));
    let space = vec![SpaceNeed { path: existing(&file), bytes: artifact.plain_bytes }];
    let token = StepToken::new(&Plan { target: file })?;
    Ok(RestorePlan { target: target.clone(), steps, replaces, space, token })
}

/// The nearest folder above `file` that exists.
fn existing(file: &Path) -> PathBuf {
    file.ancestors().skip(1).find(|p| p.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

fn refuse_full(dir: &Path, cx: &OpContext) -> Result<(), AdapterError> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    // What a killed restore staged does not count.
    let full = entries.flatten().any(|e| !keep_aside::is_set_aside(&e.file_name()));
    if full && !cx.force {
        let message = format!("directory `{}` is not empty", dir.display());
        return Err(AdapterError::new(AdapterErrorKind::Conflict, message));
    }
    Ok(())
}

/// Refuses to replace a database that somebody has open. Returns whether the look was incomplete.
pub(super) fn refuse_used(file: &Path, cx: &OpContext) -> Result<bool, AdapterError> {
    let users = users(file);
    if users.found.is_empty() || cx.force {
        return Ok(users.incomplete);
    }
    let message = format!("database `{}` is in use by {}", file.display(), users.found.join(", "));
    Err(AdapterError::new(AdapterErrorKind::Conflict, message))
}

/// Writes the backup beside the target, to its verified end, and checks it.
pub(super) async fn stage(
    cx: &OpContext,
    plan: &RestorePlan,
    source: &RestoreSource,
) -> Result<DatabaseSwap, AdapterError> {
    let Plan { target } = plan.token.get()?;
    let meta = artifact(source.metadata())?;
    let mut body = source.open(&meta.name).await?;
    let staged = keep_aside::staging_path(&target, &cx.run_id);
    let (sender, receiver) = mpsc::channel(4);
    let writing = spawn_blocking({
        let (cx, meta, staged) = (cx.clone(), meta.clone(), staged.clone());
        move || {
            let result = write(&cx, &meta, &staged, receiver).and_then(|()| {
                DatabaseSwap::prepare(&staged, &target, cx.timestamp).map_err(|e| {
                    AdapterError::io(format!("cannot plan to replace `{}`", target.display()), e)
                })
            });
            if result.is_err() {
                // The first error tells more; an incomplete file is found again by its name.
                let _second = fs::remove_file(&staged);
            }
            result
        }
    });
    let read = async {
        while let Some(chunk) = body.next().await {
            cx.check_alive()?;
            if sender.send(Ok(chunk?)).await.is_err() {
                // The writer's own error tells why.
                break;
            }
        }
        Ok(())
    };
    let read: Result<(), AdapterError> = tokio::select! {
        read = read => read,
        () = cx.cancel.cancelled() => Err(AdapterError::cancelled()),
    };
    // Tells the writer that what it has is not complete.
    let end = if read.is_ok() { Ok(Bytes::new()) } else { Err(()) };
    // A writer that is gone says why below.
    let _gone = sender.send(end).await;
    drop(sender);
    let written = joined(writing).await;
    read.and(written)
}

fn write(
    cx: &OpContext,
    meta: &ArtifactMeta,
    staged: &Path,
    mut chunks: mpsc::Receiver<Result<Bytes, ()>>,
) -> Result<(), AdapterError> {
    let failed = |what: &str| {
        let message = format!("cannot {what} `{}`", staged.display());
        move |e| AdapterError::io(message, e)
    };
    if let Some(folder) = staged.parent() {
        fs::create_dir_all(folder).map_err(failed("create the folder of"))?;
    }
    // Left by an earlier call with the same input.
    keep_aside::remove(staged).map_err(failed("replace"))?;
    let mut file =
        File::options().write(true).create_new(true).mode(0o600).open(staged).map_err(failed("create"))?;
    let mut bytes = 0;
    loop {
        match chunks.blocking_recv() {
            Some(Ok(chunk)) if chunk.is_empty() => break,
            Some(Ok(chunk)) => {
                file.write_all(&chunk).map_err(failed("write"))?;
                bytes += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
            }
            Some(Err(())) | None => return Err(AdapterError::cancelled()),
        }
    }
    if bytes != meta.plain_bytes {
        let message = format!("artifact `{}` has {bytes} bytes, not {}", meta.name, meta.plain_bytes);
        return Err(AdapterError::corrupt(message));
    }
    let unchecked = integrity_check(staged, meta.name.as_str(), &|| cx.check_alive().is_err())?;
    if let Some(why) = unchecked {
        cx.warn(format!("the restored database could not be checked: {why}"));
    }
    restore_owner(cx, meta, &file).map_err(failed("set owner and mode of"))?;
    file.sync_all().map_err(failed("write"))
}

/// Gives the file the owner and the mode that the database had.
fn restore_owner(cx: &OpContext, meta: &ArtifactMeta, file: &File) -> std::io::Result<()> {
    let number = |key: &str| meta.attributes.get(key)?.as_u64()?.try_into().ok();
    let now = file.metadata()?;
    let (uid, gid): (u32, u32) = (number("uid").unwrap_or(now.uid()), number("gid").unwrap_or(now.gid()));
    if (uid, gid) != (now.uid(), now.gid())
        && let Err(e) = std::os::unix::fs::fchown(file, Some(uid), Some(gid))
    {
        if e.kind() != std::io::ErrorKind::PermissionDenied {
            return Err(e);
        }
        cx.warn(format!("only root can give the restored database back to its owner {uid}:{gid}"));
    }
    // After the owner: giving a file away clears mode bits.
    file.set_permissions(Permissions::from_mode(number("mode").unwrap_or(0o600) & 0o777))
}
