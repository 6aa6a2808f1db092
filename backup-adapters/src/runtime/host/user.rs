//! Programs in the name of another user.

use backup_core::{AdapterError, AdapterErrorKind};
use tokio::process::Command;

/// What runs `argv` as `user`, with that user's groups. Only root may.
pub(super) async fn switch_to(user: &str, argv: Vec<String>) -> Result<Vec<String>, AdapterError> {
    let (uid, gid) = ids(user).await?;
    let me = rustix::process::geteuid();
    if me.as_raw().to_string() == uid {
        return Ok(argv);
    }
    if !me.is_root() {
        let what = format!("only root can run programs as user `{user}`");
        return Err(AdapterError::new(AdapterErrorKind::PermissionDenied, what));
    }
    let switch = ["setpriv", "--reuid", &uid, "--regid", &gid, "--init-groups", "--"];
    Ok(switch.into_iter().map(str::to_owned).chain(argv).collect())
}

/// A user's own number and that of the first group, wherever this host keeps its users.
async fn ids(user: &str) -> Result<(String, String), AdapterError> {
    let asked = Command::new("getent").args(["passwd", "--", user]).kill_on_drop(true).output().await;
    let asked = asked.map_err(|e| AdapterError::io("cannot run `getent`", e))?;
    let line = String::from_utf8_lossy(&asked.stdout).into_owned();
    let mut fields = line.trim_end().split(':').skip(2).map(str::to_owned);
    match (fields.next(), fields.next()) {
        (Some(uid), Some(gid)) => Ok((uid, gid)),
        _ => Err(AdapterError::new(AdapterErrorKind::NotFound, format!("there is no user `{user}`"))),
    }
}
