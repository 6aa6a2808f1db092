//! What runs leave on the server: found by its name, which begins with ours and holds the run.

use backup_core::{AdapterError, OpContext, RunId};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use std::ffi::OsStr;

use super::CaptureMode;
use super::api::Api;
use super::files::{Files, is_plain};
use super::job::{Job, Kind, root};
use super::server::{self, Server};

/// Backups of ours that are older than this are left-overs, whoever made them.
const OLD: TimeDelta = TimeDelta::days(2);

/// Text as the server allows it in the name of a backup.
fn plain(text: &str) -> String {
    text.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect()
}

fn prefix(cx: &OpContext) -> String {
    format!("backup-{}-", plain(cx.service.as_str()))
}

/// The name of this run's backup.
pub(super) fn backup_id(cx: &OpContext) -> String {
    format!("{}{}", prefix(cx), plain(cx.run_id.as_str()))
}

/// Removes old backups of this service that nobody works on; what cannot be removed is a warning.
///
/// # Errors
/// Those of the requests.
pub(super) async fn sweep(
    api: &Api,
    cx: &OpContext,
    files: &dyn Files,
    backend: &str,
) -> Result<Vec<String>, AdapterError> {
    let asked = async {
        // The server reads every backup to list them, which in a bucket takes its time.
        if !files.names(cx).await?.iter().any(|id| id.starts_with(&prefix(cx))) {
            return Ok(Value::Null);
        }
        api.get(cx, &root(backend)).await
    };
    let listed = match asked.await {
        Ok(listed) => listed,
        // Older servers list nothing. It is no more than tidying up.
        Err(e) => {
            cx.check_alive()?;
            tracing::debug!(error = %e, "the backups on the server are not listed");
            return Ok(Vec::new());
        }
    };
    let mut warnings = Vec::new();
    for backup in listed.as_array().into_iter().flatten() {
        let Some(id) = old_one(cx, backup) else { continue };
        match files.remove(id).await {
            Ok(()) => cx.warn(format!("removed the backup `{id}`, which an earlier run left on the server")),
            Err(e) => warnings.push(format!("the backup `{id}` of an earlier run stays on the server: {e}")),
        }
    }
    Ok(warnings)
}

fn old_one<'a>(cx: &OpContext, backup: &'a Value) -> Option<&'a str> {
    let id = backup["id"].as_str().filter(|id| id.starts_with(&prefix(cx)) && is_plain(OsStr::new(id)))?;
    let over = matches!(backup["status"].as_str(), Some("SUCCESS" | "FAILED" | "CANCELED" | "CANCELLED"));
    let started: DateTime<Utc> = backup["startedAt"].as_str()?.parse().ok()?;
    (over && cx.clock.now() - started > OLD).then_some(id)
}

/// Ends and removes what `dead` runs left.
pub(super) async fn reclaim(
    server: &Server,
    mode: CaptureMode,
    cx: &OpContext,
    dead: &[RunId],
) -> Result<Vec<String>, AdapterError> {
    let mut removed = Vec::new();
    if dead.is_empty() {
        return Ok(removed);
    }
    if let Some(docker) = &server.container {
        removed.extend(cx.within(docker.reclaim(dead)).await??);
    }
    let api = server.connect(cx).await?;
    let facts = server::facts(&api, cx).await?;
    let wanted: Vec<String> =
        dead.iter().map(|run| format!("{}{}", prefix(cx), plain(run.as_str()))).collect();
    for backups in facts.reclaimable(server, mode) {
        let files = server.files(cx, &backups, &backup_id(cx)).await?;
        for id in files.names(cx).await? {
            if !wanted.contains(&id) {
                continue;
            }
            let job = Job { backend: backups.backend(), id: id.clone(), kind: Kind::Create };
            if job.is_over(&api, cx).await != Some(true) {
                job.cancel(&api, cx, std::time::Duration::from_secs(30)).await;
            }
            files.remove(&id).await?;
            removed.push(format!("backup `{id}` on the server"));
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_server_allows() {
        assert_eq!(plain("Vectors.Main é"), "vectors-main--");
        assert!(is_plain(OsStr::new(&plain("20260101_000000-0a1b2c3d"))));
        assert!(!is_plain(OsStr::new("../x")) && !is_plain(OsStr::new("")));
    }
}
