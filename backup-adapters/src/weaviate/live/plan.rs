//! What a restore over the live server would do, and where.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use backup_core::runtime::ServiceRuntime as _;
use backup_core::{
    AdapterError, AdapterErrorKind, OpContext, Replaced, RestorePlan, RestoreTarget, SpaceNeed, StepToken,
    keep_aside,
};

use super::Live;
use crate::weaviate::census::Schema;
use crate::weaviate::restore::{Backup, Token, fixed};
use crate::weaviate::server::{self, Facts, Server};

/// The data directory on this host, and the names in it that stay.
pub(in crate::weaviate) async fn folders(
    server: &Server,
    cx: &OpContext,
) -> Result<(PathBuf, BTreeSet<String>), AdapterError> {
    let Some(docker) = &server.container else {
        return Err(AdapterError::unsupported(format!(
            "nothing here can stop {server}: name its `container`, or restore into a directory and by hand"
        )));
    };
    let path = async |name: &str, usual: &str| -> Result<PathBuf, AdapterError> {
        let value = cx.within(docker.env(name)).await??;
        // A relative path is relative to where the image starts its server.
        Ok(Path::new("/").join(value.map_or(usual.to_owned(), |v| v.expose().to_owned())))
    };
    let inside = path("PERSISTENCE_DATA_PATH", "data").await?;
    let backups = path("BACKUP_FILESYSTEM_PATH", "backups").await?;
    let seen = cx.within(docker.inspect()).await??;
    let Some(data) = seen.host_path(&inside) else {
        return Err(AdapterError::unsupported(format!(
            "the data directory `{}` of {server} is in no volume that can be reached from this host",
            inside.display()
        )));
    };
    let others = seen.mounts.iter().map(|m| m.inside.as_path()).chain([backups.as_path()]);
    Ok((data, fixed(&inside, others)))
}

pub(in crate::weaviate) async fn plan(
    server: &Server,
    cx: &OpContext,
    backup: &Backup,
) -> Result<RestorePlan, AdapterError> {
    let (data, keep) = folders(server, cx).await?;
    let (node, collections) = match look(server, cx).await {
        Ok((facts, collections)) => {
            backup.refuse_older(cx, &facts.version)?;
            (facts.node, Some(collections))
        }
        // One that cannot even start is what restores are for.
        Err(e) if e.kind() == AdapterErrorKind::Unavailable => (named(server, cx).await?, None),
        Err(e) => return Err(e),
    };
    // The server can be told of another name (`node_mapping`), but then does not find its objects (1.35).
    if !backup.node.is_empty() && !node.is_empty() && backup.node != node {
        return Err(AdapterError::new(
            AdapterErrorKind::Conflict,
            format!(
                "the backup is of node `{}`, and {server} is node `{node}`: set CLUSTER_HOSTNAME={} in it",
                backup.node, backup.node
            ),
        ));
    }
    let name = "weaviate";
    let mut kept_at = cx.timestamp;
    while keep_aside::kept_path(&data.join(name), kept_at).exists() {
        kept_at = kept_at.next();
    }
    let live = Live {
        staged: keep_aside::staging_path(&data.join(name), &cx.run_id),
        kept: keep_aside::kept_path(&data.join(name), kept_at),
        keep,
        node: if node.is_empty() { backup.node.clone() } else { node },
        expected: None,
        live: false,
        older: Vec::new(),
        data,
    };
    let kept_as = live.kept.display().to_string();
    let mut steps = vec![
        format!(
            "start a server of the same image beside {server}, which {} `{}`",
            if backup.export { "gets the objects of the export, in" } else { "restores the backup into" },
            live.staged.display()
        ),
        "count what it restored, and end it".to_owned(),
        format!("stop {server}"),
        format!("put the restored data into `{}`; what is there goes to `{kept_as}`", live.data.display()),
        "start it, and compare its collections".to_owned(),
    ];
    if backup.export {
        steps.push(
            "users and roles are not in an export: those of the server's environment are there, the others are \
             with the data that is kept"
                .to_owned(),
        );
    }
    let replaces = vec![Replaced {
        what: match collections {
            Some(many) => format!("the {many} collections of {server}"),
            None => format!("the data of {server}, which does not answer"),
        },
        kept_as,
        changed_at: Some(cx.clock.now()),
    }];
    // The backup, and the data made of it.
    let space = vec![SpaceNeed { path: live.data.clone(), bytes: backup.bytes.saturating_mul(2) }];
    let token = StepToken::new(&Token::Live(Box::new(live)))?;
    Ok(RestorePlan { target: RestoreTarget::Live, steps, replaces, space, token })
}

/// What the live node says of itself, and how many collections it has.
async fn look(server: &Server, cx: &OpContext) -> Result<(Facts, usize), AdapterError> {
    let api = server.connect(cx).await?;
    let facts = server::facts(&api, cx).await?;
    Ok((facts, Schema::read(&api, cx).await?.classes.len()))
}

/// The name of the live node, as its container says.
async fn named(server: &Server, cx: &OpContext) -> Result<String, AdapterError> {
    let Some(docker) = &server.container else { return Ok(String::new()) };
    let value = cx.within(docker.env("CLUSTER_HOSTNAME")).await??;
    Ok(value.map(|v| v.expose().to_owned()).unwrap_or_default())
}
