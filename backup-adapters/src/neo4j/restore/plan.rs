//! What a restore will do, and what refuses it before anything is done.

use std::fs;
use std::path::{Path, PathBuf};

use backup_core::keep_aside;
use backup_core::runtime::RunState;
use backup_core::{
    AdapterError, AdapterErrorKind, Metadata, OpContext, Replaced, RestorePlan, RestoreTarget, SpaceNeed,
    StepToken,
};

use super::super::Neo4j;
use super::super::capture::{DATA, TRANSACTIONS};
use super::super::places::{self, Places};
use super::super::server::Facts;
use super::super::tools;
use super::{Job, number};
use crate::on_disk::{blocking, existing, failed};
use crate::runtime::docker::Purpose;

pub(in crate::neo4j) async fn plan(
    neo4j: &Neo4j,
    cx: &OpContext,
    backup: &Metadata,
    target: &RestoreTarget,
) -> Result<RestorePlan, AdapterError> {
    let first = backup.artifacts.first().ok_or_else(|| AdapterError::corrupt("the backup is empty"))?;
    let bytes = backup.artifacts.iter().filter_map(|a| number(a, "occupied")).max().unwrap_or(0);
    let bytes = bytes.max(backup.plain_bytes());
    let major = number(first, "major").and_then(|m| u32::try_from(m).ok()).unwrap_or(5);
    let (dir, live) = match target {
        RestoreTarget::Live => (None, true),
        RestoreTarget::Dir(dir) => (Some(dir.clone()), false),
        RestoreTarget::Scratch(scratch) => (Some(scratch.dir.clone()), false),
        _ => return Err(AdapterError::unsupported("Neo4j cannot be restored there")),
    };
    places::same_host(&neo4j.server)?;
    let container = match places::inspect(&neo4j.server, cx).await {
        Ok(container) => Some(container),
        Err(e) if e.kind() == AdapterErrorKind::NotFound && !live => None,
        Err(e) => return Err(e),
    };
    let image = match &container {
        // Also of a test restore: nobody but its record tells the probe.
        Some(_) => neo4j.server.docker.image_then(cx).await?,
        None => backup.image.as_ref().map(|i| i.name.clone()),
    };
    let mut job = Job {
        live,
        data: PathBuf::new(),
        logs: PathBuf::new(),
        place: PathBuf::new(),
        logs_place: PathBuf::new(),
        logs_mounted: false,
        uid: 7474,
        gid: 7474,
        image,
        major,
        home: None,
        swaps: Vec::new(),
        expected: None,
        switched: false,
        kept: cx.kept.clone(),
        done: cx.kept.join(format!("{}.done.json", cx.run_id)),
        records: Vec::new(),
    };
    let mut steps = vec![format!("write {} MiB and check them", bytes >> 20)];
    let mut replaces = Vec::new();
    let above = match (dir, &container) {
        (Some(dir), _) => {
            job.place = dir.join(DATA);
            job.data = keep_aside::staging_path(&job.place, &cx.run_id);
            job.logs_place = job.place.join(TRANSACTIONS);
            job.logs = keep_aside::staging_path(&dir.join(TRANSACTIONS), &cx.run_id);
            if !rustix::process::geteuid().is_root() {
                (job.uid, job.gid) =
                    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            }
            let (looked, own) = (dir.clone(), target.clone());
            blocking(move || refuse_full(&looked, &own)).await?;
            steps.push(format!("put a data directory of Neo4j at `{}`", job.place.display()));
            existing(&dir)
        }
        (None, Some(container)) => {
            let facts = match container.state {
                RunState::Running => running_facts(neo4j, cx).await?,
                _ => None,
            };
            let version = match &facts {
                Some(facts) => Some(facts.version.clone()),
                None => tools::version(&neo4j.server, cx, None, Purpose::Work).await.ok(),
            };
            refuse_version(cx, backup, version.as_deref())?;
            let places = Places::find(&neo4j.server, cx, container, facts.as_ref()).await?;
            job.home = facts.and_then(|f| f.home);
            (job.uid, job.gid) = (places.uid, places.gid);
            job.logs_mounted = places.transactions == places.mounts.1;
            job.data = keep_aside::staging_path(&places.data.join(DATA), &cx.run_id);
            job.logs = match job.logs_mounted {
                true => keep_aside::staging_path(&places.transactions.join(TRANSACTIONS), &cx.run_id),
                false => keep_aside::staging_path(&places.transactions, &cx.run_id),
            };
            (job.place, job.logs_place) = (places.data, places.transactions);
            let (place, logs) = (job.place.clone(), job.logs_place.clone());
            let measured = blocking(move || {
                let of = |p: &Path| Ok(keep_aside::measure(p).unwrap_or_default().1);
                Ok((of(&place.join("databases"))?, of(&logs)?))
            });
            let (data_changed, logs_changed) = measured.await?;
            for (path, changed_at) in
                [(job.place.join("databases"), data_changed), (job.logs_place.clone(), logs_changed)]
            {
                let kept_as = match job.logs_mounted && path == job.logs_place {
                    true => format!("{}/….backup.{}", path.display(), cx.timestamp),
                    false => keep_aside::kept_path(&path, cx.timestamp).display().to_string(),
                };
                replaces.push(Replaced { what: path.display().to_string(), kept_as, changed_at });
            }
            steps.extend([
                "start a second server over them, without a network, and count what it holds".to_owned(),
                format!("stop {}, for as long as names are exchanged and it needs to start", neo4j.server),
                "keep what is there aside, in place; start it; see that every database is online".to_owned(),
            ]);
            job.place.clone()
        }
        (None, None) => return Err(AdapterError::unsupported("there is no container to restore into")),
    };
    let space = vec![SpaceNeed { path: above, bytes }];
    Ok(RestorePlan { target: target.clone(), steps, replaces, space, token: StepToken::new(&job)? })
}

/// What a running server says; nothing, if it does not let us in or does not come up: then a restore is what it needs.
async fn running_facts(neo4j: &Neo4j, cx: &OpContext) -> Result<Option<Facts>, AdapterError> {
    let read = async {
        let mut bolt = neo4j.server.connect(cx).await?;
        let facts = Facts::read(cx, &mut bolt).await;
        bolt.close(cx).await;
        facts
    };
    match read.await {
        Ok(facts) => Ok(Some(facts)),
        Err(e) if matches!(e.kind(), AdapterErrorKind::PermissionDenied | AdapterErrorKind::Unavailable) => {
            cx.warn(format!("where {} keeps its data is taken from its configuration: {e}", neo4j.server));
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// A newer server opens older data, and then no older one does; never the other way round.
fn refuse_version(cx: &OpContext, backup: &Metadata, live: Option<&str>) -> Result<(), AdapterError> {
    let numbers = |version: &str| {
        let mut parts = version.split('.').map(|p| p.parse::<u32>().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    };
    let (Some(then), Some(now)) = (&backup.service_version, live) else {
        return Ok(());
    };
    if cx.force || numbers(then) <= numbers(now) && numbers(then).0 == numbers(now).0 {
        return Ok(());
    }
    Err(AdapterError::new(
        AdapterErrorKind::Conflict,
        format!("the backup is of Neo4j {then}, and the server is {now}: use the same version, or --force"),
    ))
}

fn refuse_full(dir: &Path, target: &RestoreTarget) -> Result<(), AdapterError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("list", dir)(e)),
    };
    for entry in entries {
        let name = entry.map_err(failed("list", dir))?.file_name();
        if !keep_aside::is_set_aside(&name) && matches!(target, RestoreTarget::Dir(_)) {
            let what = format!("`{}` is not empty", dir.display());
            return Err(AdapterError::new(AdapterErrorKind::Conflict, what));
        }
    }
    Ok(())
}
