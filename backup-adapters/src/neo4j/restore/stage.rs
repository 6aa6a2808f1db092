//! Building the data beside its place, and proving it.

use std::fs;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};

use backup_core::keep_aside::{self, Swap};
use backup_core::{
    AdapterError, ArtifactMeta, OpContext, RestorePlan, RestoreSource, RestoreTarget, StepToken, Timestamp,
};
use futures::StreamExt;
use tokio::io::AsyncWriteExt;

use super::super::Neo4j;
use super::super::capture::{DATA, TRANSACTIONS, phase};
use super::super::proof;
use super::super::tools::{self, FILES};
use super::record::write_record;
use super::{IMAGE, Job, database, remove_all};
use crate::legacy::LEGACY;
use crate::on_disk::{blocking, failed};
use crate::runtime::docker::Purpose;
use crate::tree::extract::Dest;
use crate::tree::stage as tree;

pub(in crate::neo4j) async fn stage(
    neo4j: &Neo4j,
    cx: &OpContext,
    plan: &RestorePlan,
    source: &RestoreSource,
) -> Result<StepToken, AdapterError> {
    let job: Job = plan.token.get()?;
    let remains = [job.data.clone(), job.logs.clone()];
    let purpose = match plan.target {
        RestoreTarget::Scratch(_) => Purpose::Scratch,
        _ => Purpose::Work,
    };
    match build(neo4j, cx, job, source, purpose).await {
        Ok(job) => StepToken::new(&job),
        Err(e) => {
            // The first error tells more, and `discard` finds what is left.
            let _second = remove_all(remains.to_vec()).await;
            Err(e)
        }
    }
}

async fn build(
    neo4j: &Neo4j,
    cx: &OpContext,
    mut job: Job,
    source: &RestoreSource,
    purpose: Purpose,
) -> Result<Job, AdapterError> {
    remove_all(vec![job.data.clone(), job.logs.clone()]).await?;
    let made = job.clone();
    blocking(move || {
        for dir in [&made.data, &made.logs] {
            let above = dir.parent().unwrap_or(Path::new("/"));
            fs::create_dir_all(above).map_err(failed("create", above))?;
        }
        Ok(())
    })
    .await?;
    let artifacts = &source.metadata().artifacts;
    let dumps = artifacts.iter().any(|a| database(a).is_some());
    if dumps {
        load(neo4j, cx, &job, source, purpose).await?;
    } else {
        unpack(cx, &job, source).await?;
    }
    let owned = job.clone();
    blocking(move || {
        own(&owned.data, owned.uid, owned.gid)?;
        own(&owned.logs, owned.uid, owned.gid)
    })
    .await?;
    if job.live {
        let password = neo4j.password_to_set(cx).await?;
        let also = password.as_ref().map_or(proof::Also::Nothing, proof::Also::SetPassword);
        let subject = job.subject(&job.data, Some(&job.logs), purpose);
        let found = proof::prove(&neo4j.server, cx, &subject, also).await?;
        let differences = source.metadata().evidence.contradictions(&found);
        if !differences.is_empty() {
            let what = format!("the restored data is not that of the backup: {}", differences.join("; "));
            return Err(AdapterError::corrupt(what));
        }
        job.expected = Some(found);
    } else {
        let joined = job.clone();
        blocking(move || {
            let to = joined.data.join(TRANSACTIONS);
            fs::rename(&joined.logs, &to).map_err(failed("rename", &joined.logs))
        })
        .await?;
    }
    if let (Some(image), Some(dir)) = (&job.image, job.place.parent()) {
        // Nobody else can tell which programs open it.
        write_record(&dir.join(IMAGE), image).await?;
    }
    let (prepared, at) = (job.clone(), cx.timestamp);
    job.swaps = blocking(move || prepared.prepare(dumps, at)).await?;
    Ok(job)
}

/// Loads dumps with Neo4j's own program.
async fn load(
    neo4j: &Neo4j,
    cx: &OpContext,
    job: &Job,
    source: &RestoreSource,
    purpose: Purpose,
) -> Result<(), AdapterError> {
    let files = tools::open_folder(cx.spool.join(format!("load-{}", uuid::Uuid::new_v4().simple()))).await?;
    let made = job.clone();
    blocking(move || {
        for dir in [&made.data, &made.logs] {
            fs::create_dir(dir).map_err(failed("create", dir))?;
            own(dir, made.uid, made.gid)?;
        }
        Ok(())
    })
    .await?;
    let mut names = Vec::new();
    for artifact in &source.metadata().artifacts {
        let name = database(artifact).ok_or_else(|| AdapterError::corrupt("a dump does not say of what"))?;
        if name.contains('/') || name.starts_with('.') {
            return Err(AdapterError::corrupt(format!("`{}` is no name of a database", name.escape_debug())));
        }
        phase(cx, &format!("reading the dump of `{name}`"));
        fetch(cx, source, artifact, files.join(format!("{name}.dump"))).await?;
        names.push(name.to_owned());
    }
    phase(cx, "loading the dumps");
    let subject = job.subject(&job.data, Some(&job.logs), purpose);
    let mut binds = subject.binds();
    binds.push((files, FILES.into()));
    let helper = tools::over(&neo4j.server, cx, &subject, binds).await?;
    let mut loaded = Ok(());
    for name in &names {
        if let Err(e) = tools::admin(&helper, cx, &tools::load(job.major, name)).await {
            loaded = Err(e);
            break;
        }
    }
    helper.close().await?;
    loaded
}

async fn fetch(
    cx: &OpContext,
    source: &RestoreSource,
    artifact: &ArtifactMeta,
    path: PathBuf,
) -> Result<(), AdapterError> {
    let mut body = source.open(&artifact.name).await?;
    let mut file = tokio::fs::File::create_new(&path).await.map_err(failed("create", &path))?;
    while let Some(piece) = cx.within(body.next()).await? {
        file.write_all(&piece?).await.map_err(failed("write", &path))?;
    }
    file.flush().await.map_err(failed("write", &path))?;
    // Read by another user, in a container; the folder above is private.
    blocking(move || {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).map_err(failed("share", &path))
    })
    .await
}

/// Unpacks an archive of files.
async fn unpack(cx: &OpContext, job: &Job, source: &RestoreSource) -> Result<(), AdapterError> {
    let [artifact] = source.metadata().artifacts.as_slice() else {
        return Err(AdapterError::corrupt("a backup of Neo4j's files has one artifact"));
    };
    phase(cx, "unpacking the files");
    let legacy = artifact.attributes.contains_key(LEGACY);
    let dest = |prefix: &str, to: &Path| Dest {
        prefix: prefix.as_bytes().to_vec(),
        below_top: legacy,
        parent: to.parent().unwrap_or(Path::new("/")).to_owned(),
        name: to.file_name().unwrap_or_default().to_owned(),
    };
    let dests = match legacy {
        // One folder with everything, the logs within.
        true => vec![dest(TRANSACTIONS, &job.logs), dest("", &job.data)],
        false => vec![dest(DATA, &job.data), dest(TRANSACTIONS, &job.logs)],
    };
    let body = source.open(&artifact.name).await?;
    for warning in tree::extract(cx, body, dests).await? {
        cx.warn(warning);
    }
    Ok(())
}

/// Gives a tree to the server's user, where it is not that already.
fn own(path: &Path, uid: u32, gid: u32) -> Result<(), AdapterError> {
    let meta = fs::symlink_metadata(path).map_err(failed("look at", path))?;
    if (meta.uid(), meta.gid()) != (uid, gid) {
        lchown(path, Some(uid), Some(gid)).map_err(failed("give to the server", path))?;
    }
    if meta.is_dir() {
        for entry in fs::read_dir(path).map_err(failed("list", path))? {
            own(&entry.map_err(failed("list", path))?.path(), uid, gid)?;
        }
    }
    Ok(())
}

impl Job {
    /// Records what is exchanged for what.
    fn prepare(&self, dumps: bool, at: Timestamp) -> Result<Vec<Swap>, AdapterError> {
        let swap = |staged: &Path, target: &Path| {
            keep_aside::prepare(staged, target, at).map_err(failed("plan to replace", target))
        };
        if !self.live {
            return Ok(vec![swap(&self.data, &self.place)?]);
        }
        let mut swaps = Vec::new();
        for name in list(&self.data)? {
            // A dump says nothing of what else is in a data directory; a second server has made some of it anew.
            let wanted = name == "databases" || (!dumps && name != "server_id");
            if wanted && !keep_aside::is_set_aside(&name) && name != TRANSACTIONS {
                swaps.push(swap(&self.data.join(&name), &self.place.join(&name))?);
            }
        }
        if self.logs_mounted {
            for name in list(&self.logs)? {
                swaps.push(swap(&self.logs.join(&name), &self.logs_place.join(&name))?);
            }
        } else {
            swaps.push(swap(&self.logs, &self.logs_place)?);
        }
        Ok(swaps)
    }
}

fn list(dir: &Path) -> Result<Vec<std::ffi::OsString>, AdapterError> {
    let names = fs::read_dir(dir).and_then(|entries| entries.map(|e| Ok(e?.file_name())).collect());
    names.map_err(failed("list", dir))
}
