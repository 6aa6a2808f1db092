//! Planning the restore of a base backup: where the data directory is, and what speaks against exchanging it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::keep_aside;
use backup_core::runtime::ServiceRuntime;
use backup_core::{
    AdapterError, AdapterErrorKind, ArtifactMeta, Evidence, Metadata, OpContext, Replaced, RestorePlan,
    RestoreTarget, SpaceNeed, StepToken,
};

use super::restore::Plan;
use super::{BASE, Server};
use crate::on_disk::{blocking, failed};
use crate::postgres::Settings;
use crate::postgres::link::Link;
use crate::postgres::restore::{Token, attribute, of_content};
use crate::runtime::HostRuntime;

pub(super) fn conflict(what: impl Into<String>) -> AdapterError {
    AdapterError::new(AdapterErrorKind::Conflict, what)
}

/// What can stop and start the server.
pub(super) fn runtime(settings: &Settings) -> Result<Arc<dyn ServiceRuntime>, AdapterError> {
    match (settings.docker(), &settings.unit) {
        (Some(docker), _) => Ok(Arc::new(docker)),
        (None, Some(unit)) => Ok(Arc::new(HostRuntime::unit(unit))),
        (None, None) => Err(AdapterError::unsupported(
            "nothing here can stop the server: set `unit` to its systemd unit, or restore with `--to` a directory",
        )),
    }
}

fn refuse_other(has: u32, is: u32) -> Result<(), AdapterError> {
    if has == is {
        return Ok(());
    }
    Err(conflict(format!(
        "the base backup is of PostgreSQL {has}, the server of {is}: files fit their own version only, restore into one of {has}"
    )))
}

/// The data directory as the server calls it. One that does not run cannot be asked.
async fn directory(
    settings: &Settings,
    cx: &OpContext,
    artifact: &ArtifactMeta,
    backup: u32,
) -> Result<(PathBuf, Vec<String>), AdapterError> {
    let mut told = Vec::new();
    let server = match Link::open(settings, cx).await {
        Ok(link) => Some(Server::ask(&link).await?),
        Err(e) if matches!(e.kind(), AdapterErrorKind::Unavailable | AdapterErrorKind::Conflict) => {
            told.push(format!("(the server does not answer: {e})"));
            None
        }
        Err(e) => return Err(e),
    };
    if let Some(server) = &server {
        refuse_other(backup / 10_000, server.version / 10_000)?;
        if server.recovery {
            return Err(conflict("the server is a standby: restore its primary, and make the standby anew"));
        }
        if server.replicas > 0 && !cx.force {
            return Err(conflict(format!(
                "{} standbys follow the server: they would go on from data that is gone; make them anew afterwards \
                 (--force)",
                server.replicas
            )));
        }
        if server.archiving {
            told.push(
                "(the server archives its WAL: that archive does not fit the restored data, begin a new one)"
                    .into(),
            );
        }
    }
    let inside = match server.and_then(|s| s.data_directory) {
        Some(directory) => Some(directory),
        None => match settings.docker() {
            Some(docker) => {
                let env = cx.within(docker.env("PGDATA")).await?;
                env?.map(|pgdata| pgdata.expose().to_owned())
            }
            None => None,
        },
    };
    let inside = inside.or_else(|| attribute(artifact, "data_directory").map(str::to_owned));
    let inside = inside.ok_or_else(|| {
        AdapterError::unsupported(
            "it is not known where the server has its data: restore with `--to` a directory",
        )
    })?;
    Ok((PathBuf::from(inside), told))
}

/// The data directory on this host, as a folder that can change its name.
fn usable(path: Option<PathBuf>, inside: &Path) -> Result<PathBuf, AdapterError> {
    let path = path.ok_or_else(|| {
        AdapterError::unsupported(format!(
            "`{}` of the server cannot be reached from this host: restore with `--to` a directory",
            inside.display()
        ))
    })?;
    let meta = fs::symlink_metadata(&path).map_err(failed("look at", &path))?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    let above = fs::metadata(parent).map_err(failed("look at", parent))?;
    if !meta.is_dir() || meta.dev() != above.dev() {
        return Err(AdapterError::unsupported(format!(
            "`{}` is a link or a mounted file system and cannot be exchanged: restore with `--to` a directory",
            path.display()
        )));
    }
    Ok(path)
}

pub(in crate::postgres) async fn plan(
    settings: &Settings,
    cx: &OpContext,
    backup: &Metadata,
) -> Result<RestorePlan, AdapterError> {
    let artifact = base(backup)?;
    let runtime = runtime(settings)?;
    let number = artifact.attributes.get("server_version_num").and_then(serde_json::Value::as_u64);
    let number = u32::try_from(number.unwrap_or(0)).unwrap_or(0);
    let (inside, told) = directory(settings, cx, artifact, number).await?;
    let host = cx.within(runtime.volume_path(&inside)).await??;
    let (target, linked) = blocking(move || {
        let target = usable(host, &inside)?;
        let linked = target.join("pg_wal").is_symlink();
        // A server that does not answer has told its version there.
        let is = fs::read_to_string(target.join("PG_VERSION")).ok().and_then(|v| v.trim().parse().ok());
        refuse_other(number / 10_000, is.unwrap_or(number / 10_000))?;
        Ok((target, linked))
    })
    .await?;
    let bytes = artifact.plain_bytes;
    let name = target.display().to_string();
    let kept = keep_aside::kept_path(&target, cx.timestamp).display().to_string();
    let mut steps = vec![
        format!("unpack {bytes} bytes beside `{name}` and compare each file with the manifest"),
        "stop the server".to_owned(),
        format!("put the restored data at `{name}`; what is there becomes `{kept}`"),
        "start the server and wait until it lets clients in".to_owned(),
        "(all databases, roles, passwords and settings in that directory become those of the backup)"
            .to_owned(),
    ];
    steps.extend(told);
    if linked {
        steps.push("(its WAL lies elsewhere by a link; that of the restored data lies within it)".to_owned());
    }
    let seen = |name: &&String| name.contains("_seen");
    let mut expected = Evidence::default();
    for name in backup.evidence.counts.keys().filter(seen) {
        expected.counts.extend(backup.evidence.counts.get_key_value(name).map(|(k, v)| (k.clone(), *v)));
        let after = backup.evidence.counts_after.get_key_value(name);
        expected.counts_after.extend(after.map(|(k, v)| (k.clone(), *v)));
    }
    let plan = Plan {
        staged: keep_aside::staging_path(&target, &cx.run_id),
        swap: None,
        live: false,
        seen: expected,
        target: target.clone(),
    };
    let parent = target.parent().unwrap_or(Path::new("/")).to_owned();
    Ok(RestorePlan {
        target: RestoreTarget::Live,
        steps,
        replaces: vec![Replaced { what: name, kept_as: kept, changed_at: None }],
        space: vec![SpaceNeed { path: parent, bytes }],
        token: StepToken::new(&Token::Base(Box::new(plan)))?,
    })
}

pub(super) fn base(backup: &Metadata) -> Result<&ArtifactMeta, AdapterError> {
    of_content(backup, BASE).ok_or_else(|| AdapterError::corrupt("the backup holds no base backup"))
}
