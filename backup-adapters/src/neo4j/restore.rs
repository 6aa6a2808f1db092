//! The steps of a restore, for each target.
//!
//! The data is built in the mounts that hold the server's own, as volumes cannot be renamed, and proven there by a second
//! server. Then the server is stopped for as long as names are exchanged. Between two renames data and logs do not belong
//! together: a record says what is exchanged, so that whoever starts the server after a crash finishes that first.

use std::fs;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use backup_core::keep_aside::{self, Swap};
use backup_core::runtime::{Interruption, InterruptionEntry, InterruptionKind, Replay, RunState};
use backup_core::{
    AdapterError, AdapterErrorKind, ArtifactMeta, Evidence, Leftover, Metadata, OpContext, Replaced,
    RestorePlan, RestoreSource, RestoreTarget, SpaceNeed, StepToken, Timestamp,
};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::Neo4j;
use super::capture::{COME_BACK, DATA, TRANSACTIONS, blocking, phase};
use super::places::{self, Places};
use super::proof::{self, Subject};
use super::server::{self, Facts};
use super::tools::{self, FILES};
use crate::tree::extract::Dest;
use crate::tree::stage;

/// How long a restore may interrupt the server that has no budget.
const USUAL_TIME: Duration = Duration::from_secs(3600);

/// Beside a data directory that was restored without a container: the image of its server.
const IMAGE: &str = ".image.json";

/// What a restore remembers between its steps.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Job {
    /// Over the server, or into a folder.
    live: bool,
    /// Where the data directory and the logs are built.
    data: PathBuf,
    logs: PathBuf,
    /// Where they go.
    place: PathBuf,
    logs_place: PathBuf,
    /// Whether the logs' place is a mount, which cannot be renamed: then what is in it is.
    logs_mounted: bool,
    uid: u32,
    gid: u32,
    /// The image, if there is no container.
    image: Option<String>,
    major: u32,
    home: Option<String>,
    /// Empty before `stage`.
    swaps: Vec<Swap>,
    /// What the restored data counts. `None` before `stage`.
    expected: Option<Evidence>,
    switched: bool,
    /// The folder for records, and those that there are.
    kept: PathBuf,
    done: PathBuf,
    records: Vec<PathBuf>,
}

/// What is being exchanged while the server is down.
#[derive(Debug, Serialize, Deserialize)]
struct Exchange {
    swaps: Vec<Swap>,
    /// For an undo, its moment.
    undo: Option<Timestamp>,
}

/// How a switch ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Done {
    evidence: Evidence,
    /// The server answers, and does not let us in.
    #[serde(default)]
    credentials_differ: bool,
}

fn failed(what: &str, path: &Path) -> impl Fn(std::io::Error) -> AdapterError + use<> {
    let message = format!("cannot {what} `{}`", path.display());
    move |e| AdapterError::io(message.clone(), e)
}

fn exchange_record(kept: &Path, run: &backup_core::RunId) -> PathBuf {
    kept.join(format!("{run}.exchange.json"))
}

fn number(artifact: &ArtifactMeta, key: &str) -> Option<u64> {
    artifact.attributes.get(key)?.as_u64()
}

fn database(artifact: &ArtifactMeta) -> Option<&str> {
    artifact.attributes.get("database")?.as_str()
}

pub(super) async fn plan(
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
    let container = match places::inspect(&neo4j.server, cx).await {
        Ok(container) => Some(container),
        Err(e) if e.kind() == AdapterErrorKind::NotFound && !live => None,
        Err(e) => return Err(e),
    };
    let image = match &container {
        Some(_) => None,
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
            dir.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/")).to_owned()
        }
        (None, Some(container)) => {
            let facts = match container.state {
                RunState::Running => running_facts(neo4j, cx).await?,
                _ => None,
            };
            refuse_version(cx, backup, facts.as_ref())?;
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
fn refuse_version(cx: &OpContext, backup: &Metadata, live: Option<&Facts>) -> Result<(), AdapterError> {
    let numbers = |version: &str| {
        let mut parts = version.split('.').map(|p| p.parse::<u32>().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    };
    let (Some(then), Some(now)) = (&backup.service_version, live.map(|f| f.version.as_str())) else {
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

pub(super) async fn stage(
    neo4j: &Neo4j,
    cx: &OpContext,
    plan: &RestorePlan,
    source: &RestoreSource,
) -> Result<StepToken, AdapterError> {
    let job: Job = plan.token.get()?;
    let remains = [job.data.clone(), job.logs.clone()];
    match build(neo4j, cx, job, source).await {
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
        load(neo4j, cx, &job, source).await?;
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
        let found = proof::prove(&neo4j.server, cx, &job.subject(&job.data, Some(&job.logs)), false).await?;
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
async fn load(neo4j: &Neo4j, cx: &OpContext, job: &Job, source: &RestoreSource) -> Result<(), AdapterError> {
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
    let subject = job.subject(&job.data, Some(&job.logs));
    let mut binds = subject.binds();
    binds.push((files, FILES.into()));
    let image = job.image.clone();
    let helper = tools::over(&neo4j.server, cx, image, &subject.user, job.major, binds).await?;
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
    let dest = |prefix: &str, to: &Path| Dest {
        prefix: prefix.as_bytes().to_vec(),
        parent: to.parent().unwrap_or(Path::new("/")).to_owned(),
        name: to.file_name().unwrap_or_default().to_owned(),
    };
    let dests = vec![dest(DATA, &job.data), dest(TRANSACTIONS, &job.logs)];
    let body = source.open(&artifact.name).await?;
    for warning in stage::extract(cx, body, dests).await? {
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

async fn remove_all(all: Vec<PathBuf>) -> Result<(), AdapterError> {
    blocking(move || all.iter().try_for_each(|p| keep_aside::remove(p).map_err(failed("remove", p)))).await
}

/// Whether the new data still waits beside its place.
fn is_staged(swap: &Swap) -> bool {
    fs::symlink_metadata(&swap.staged).is_ok_and(|m| (m.dev(), m.ino()) == swap.identity)
}

/// Whether the new data has its place.
fn is_live(swap: &Swap) -> bool {
    fs::symlink_metadata(&swap.target).is_ok_and(|m| (m.dev(), m.ino()) == swap.identity)
}

impl Job {
    fn subject(&self, data: &Path, logs: Option<&Path>) -> Subject {
        Subject {
            data: data.to_owned(),
            transactions: logs.map(Path::to_owned),
            user: format!("{}:{}", self.uid, self.gid),
            image: self.image.clone(),
            major: self.major,
            home: self.home.clone(),
        }
    }

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

    fn remains(&self) -> Vec<PathBuf> {
        let kept = self.swaps.iter().map(|s| s.kept.clone());
        [self.data.clone(), self.logs.clone(), self.done.clone()]
            .into_iter()
            .chain(kept)
            .chain(self.records.iter().cloned())
            .collect()
    }
}

fn list(dir: &Path) -> Result<Vec<std::ffi::OsString>, AdapterError> {
    let names = fs::read_dir(dir).and_then(|entries| entries.map(|e| Ok(e?.file_name())).collect());
    names.map_err(failed("list", dir))
}

/// Exchanges, or exchanges back, whatever is not yet.
fn exchange(mut what: Exchange) -> Result<Vec<Swap>, AdapterError> {
    for swap in &mut what.swaps {
        let failed = failed("replace", &swap.target);
        match what.undo {
            Some(at) => *swap = keep_aside::undo(swap, at).map_err(failed)?,
            None => {
                if is_staged(swap) {
                    // The server may have made or removed it since.
                    swap.replaced = swap.target.exists();
                }
                keep_aside::switch(swap).map_err(failed)?;
            }
        }
    }
    Ok(what.swaps)
}

async fn write_record<T: Serialize + Sync>(path: &Path, value: &T) -> Result<(), AdapterError> {
    let text = serde_json::to_vec_pretty(value).map_err(|e| {
        AdapterError::new(AdapterErrorKind::Other, "cannot record the restore").with_source(e)
    })?;
    let path = path.to_owned();
    blocking(move || {
        use std::io::Write;
        use std::os::unix::fs::DirBuilderExt;
        let dir = path.parent().unwrap_or(Path::new("/"));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("create", dir))?;
        let written = || {
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            file.write_all(&text)?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|e| e.error)?;
            keep_aside::sync_dir(dir)
        };
        written().map_err(failed("write", &path))
    })
    .await
}

async fn read_record<T: serde::de::DeserializeOwned + Send + 'static>(
    path: &Path,
) -> Result<Option<T>, AdapterError> {
    let path = path.to_owned();
    blocking(move || match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| {
            AdapterError::corrupt(format!("`{}` is no record of a restore", path.display())).with_source(e)
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("read", &path)(e)),
    })
    .await
}

pub(super) async fn switch(
    neo4j: &Neo4j,
    cx: &OpContext,
    staged: &StepToken,
) -> Result<StepToken, AdapterError> {
    let mut job: Job = staged.get()?;
    if job.swaps.is_empty() {
        return Err(AdapterError::corrupt("the restore was never staged"));
    }
    if !job.live {
        let what = Exchange { swaps: job.swaps.clone(), undo: None };
        job.swaps = blocking(move || exchange(what)).await?;
        job.switched = true;
        return StepToken::new(&job);
    }
    let expected =
        job.expected.clone().ok_or_else(|| AdapterError::corrupt("the restore was never proven"))?;
    if read_record::<Done>(&job.done).await?.is_none() {
        let what = Exchange { swaps: job.swaps.clone(), undo: None };
        let (done, put_back) = replace(neo4j, cx, what, &expected).await?;
        if let Some(e) = put_back {
            return Err(e);
        }
        write_record(&job.done, &done).await?;
    }
    let swaps = job.swaps.clone();
    let checked = blocking(move || {
        Ok(swaps
            .into_iter()
            .map(|mut s| {
                s.replaced = s.kept.symlink_metadata().is_ok();
                s
            })
            .collect())
    });
    job.swaps = checked.await?;
    // What was built beside and is not wanted: a second server's own files.
    remove_all(vec![job.data.clone(), job.logs.clone()]).await?;
    job.switched = true;
    StepToken::new(&job)
}

/// Stops the server, exchanges, starts it, and waits for it. If it does not come up with the new data, the old data goes
/// back; the error why is the second part of the answer then.
async fn replace(
    neo4j: &Neo4j,
    cx: &OpContext,
    what: Exchange,
    expected: &Evidence,
) -> Result<(Done, Option<AdapterError>), AdapterError> {
    let record = exchange_record(&cx.kept, &cx.at_work);
    let undo_at = what.undo;
    phase(cx, "stopping the server");
    let mut stopped = stop(neo4j, cx).await?;
    write_record(&record, &what).await?;
    phase(cx, "replacing its data");
    let swaps = what.swaps.clone();
    let exchanged = blocking(move || exchange(what)).await;
    let exchanged = match exchanged {
        Ok(swaps) => Ok(swaps),
        Err(e) => {
            if undo_at.is_none() {
                // If that fails, too, the server stays down: half of its data is another's. The record says what to
                // finish, and the journal that the server is down.
                put_back(swaps, cx.timestamp).await?;
            } else if !blocking(move || Ok(swaps.iter().all(is_live))).await? {
                return Err(e);
            }
            Err(e)
        }
    };
    // From here on data and logs belong together.
    remove_all(vec![record]).await?;
    let ran = stopped.interrupts();
    phase(cx, "starting the server");
    stopped.end().await?;
    let mut done = Done { evidence: expected.clone(), credentials_differ: false };
    let swaps = match exchanged {
        Ok(swaps) => swaps,
        Err(e) => {
            let what = "the data could not be replaced, and what was live is live";
            return Ok((done, Some(AdapterError::new(e.kind(), what).with_source(e))));
        }
    };
    if !ran {
        cx.warn(format!("{} did not run before, and does not now: start it", neo4j.server));
        return Ok((done, None));
    }
    phase(cx, "waiting for the server to open its data");
    let calm = calm(cx);
    let counted = async {
        let mut bolt = neo4j.server.wait(&calm, COME_BACK).await?;
        let databases = server::databases(&calm, &mut bolt).await?;
        let evidence = server::evidence(&calm, &mut bolt, &databases).await?;
        bolt.close(&calm).await;
        Ok::<_, AdapterError>(evidence)
    };
    match counted.await {
        Ok(evidence) => {
            done.evidence = evidence;
            Ok((done, None))
        }
        Err(e) if e.kind() == AdapterErrorKind::PermissionDenied => {
            done.credentials_differ = true;
            cx.warn(format!(
                "restored, but credentials differ: the users and passwords of {} are those of the backup's time, and the \
                 configured ones are refused ({e}); docs/neo4j.md says how to set a password anew",
                neo4j.server
            ));
            Ok((done, None))
        }
        Err(e) if undo_at.is_some() => Err(e),
        Err(e) => {
            phase(cx, "putting the old data back");
            let mut stopped = stop(neo4j, &calm).await?;
            let back = put_back(swaps, cx.timestamp).await;
            stopped.end().await?;
            back?;
            let what = format!(
                "{} does not come up with the restored data; the old data is live again",
                neo4j.server
            );
            Ok((done, Some(AdapterError::new(AdapterErrorKind::Corrupt, what).with_source(e))))
        }
    }
}

/// Undoes exchanges that were made, so that they can be made again.
async fn put_back(swaps: Vec<Swap>, at: Timestamp) -> Result<(), AdapterError> {
    blocking(move || {
        for swap in swaps.iter().filter(|s| !is_staged(s)) {
            let failed = failed("put back", &swap.target);
            let back = keep_aside::undo(swap, at).map_err(&failed)?;
            if back.kept != swap.staged {
                fs::rename(&back.kept, &swap.staged).map_err(&failed)?;
            }
        }
        Ok(())
    })
    .await
}

async fn stop(neo4j: &Neo4j, cx: &OpContext) -> Result<Interruption, AdapterError> {
    let deadline = Instant::now() + cx.remaining().unwrap_or(USUAL_TIME);
    let runtime = std::sync::Arc::new(neo4j.server.docker.clone());
    let kind = InterruptionKind::Stop { grace: neo4j.stop_timeout };
    // One that had to be killed keeps its logs aside with its data, and recovers from them.
    Interruption::begin(runtime, cx.interruption(), kind, deadline).await
}

/// For what must be seen through, whatever became of the run.
fn calm(cx: &OpContext) -> OpContext {
    let mut calm = cx.clone();
    calm.cancel = tokio_util::sync::CancellationToken::new();
    calm.deadline = Some(Instant::now() + COME_BACK);
    calm
}

pub(super) async fn probe(
    neo4j: &Neo4j,
    cx: &OpContext,
    target: &RestoreTarget,
) -> Result<Evidence, AdapterError> {
    let dir = match target {
        RestoreTarget::Live => return probe_live(neo4j, cx).await,
        RestoreTarget::Dir(dir) => dir,
        RestoreTarget::Scratch(scratch) => &scratch.dir,
        _ => return Err(AdapterError::unsupported("Neo4j cannot be counted there")),
    };
    let data = dir.join(DATA);
    let looked = data.clone();
    let owner = blocking(move || {
        fs::metadata(&looked).map(|m| (m.uid(), m.gid())).map_err(failed("look at", &looked))
    });
    let (uid, gid) = owner.await?;
    let image = match places::inspect(&neo4j.server, cx).await {
        Ok(_) => None,
        Err(e) if e.kind() == AdapterErrorKind::NotFound => read_record::<String>(&dir.join(IMAGE)).await?,
        Err(e) => return Err(e),
    };
    let user = format!("{uid}:{gid}");
    let subject = Subject { data, transactions: None, user, image, major: 5, home: None };
    proof::prove(&neo4j.server, cx, &subject, true).await
}

async fn probe_live(neo4j: &Neo4j, cx: &OpContext) -> Result<Evidence, AdapterError> {
    let counted = async {
        let mut bolt = neo4j.server.connect(cx).await?;
        let databases = server::databases(cx, &mut bolt).await?;
        let evidence = server::evidence(cx, &mut bolt, &databases).await;
        bolt.close(cx).await;
        evidence
    };
    // Writers may have gone on since: what this very run has restored was counted when it came up.
    let done = read_record::<Done>(&cx.kept.join(format!("{}.done.json", cx.run_id))).await?;
    match done {
        Some(done) => Ok(done.evidence),
        None => counted.await,
    }
}

pub(super) async fn undo(
    neo4j: &Neo4j,
    cx: &OpContext,
    switched: &StepToken,
) -> Result<StepToken, AdapterError> {
    let mut job: Job = switched.get()?;
    if !job.switched {
        return Err(AdapterError::new(AdapterErrorKind::Conflict, "this restore never went live"));
    }
    let what = Exchange { swaps: job.swaps.clone(), undo: Some(cx.timestamp) };
    if !job.live {
        job.swaps = blocking(move || exchange(what)).await?;
        return StepToken::new(&job);
    }
    // Once is enough: each time the server is down for a while.
    let record = job.kept.join(format!("undo-{}.json", cx.timestamp));
    if let Some(undone) = read_record::<Job>(&record).await? {
        return StepToken::new(&undone);
    }
    let looked = job.swaps.clone();
    blocking(move || {
        let gone = looked.iter().find(|s| s.replaced && is_live(s) && s.kept.symlink_metadata().is_err());
        gone.map_or(Ok(()), |s| {
            let what = format!("`{}` is gone: there is nothing to put back", s.kept.display());
            Err(AdapterError::new(AdapterErrorKind::NotFound, what))
        })
    })
    .await?;
    remove_all(vec![job.done.clone()]).await?;
    let at = cx.timestamp;
    let again = job.swaps.clone();
    let nothing = Evidence::default();
    let (_, failed) = replace(neo4j, cx, what, &nothing).await?;
    if let Some(e) = failed {
        return Err(e);
    }
    // The same again changes nothing, and tells what would redo it.
    job.swaps = blocking(move || exchange(Exchange { swaps: again, undo: Some(at) })).await?;
    job.records.push(record.clone());
    write_record(&record, &job).await?;
    StepToken::new(&job)
}

pub(super) async fn leftovers(token: &StepToken) -> Result<Vec<Leftover>, AdapterError> {
    let job: Job = token.get()?;
    blocking(move || {
        let there = job.remains().into_iter().filter(|p| p.symlink_metadata().is_ok());
        there
            .map(|path| {
                let bytes = keep_aside::measure(&path).map_err(failed("measure", &path))?.0;
                Ok(Leftover { what: path.display().to_string(), bytes: Some(bytes) })
            })
            .collect()
    })
    .await
}

pub(super) async fn discard(token: &StepToken) -> Result<(), AdapterError> {
    let job: Job = token.get()?;
    blocking(move || {
        let half = !job.switched && job.swaps.iter().any(|s| !is_staged(s) && s.target.exists());
        let moved = job.swaps.iter().any(|s| s.kept.symlink_metadata().is_ok());
        if half && moved {
            let what = format!("the restore of `{}` is half done", job.place.display());
            return Err(AdapterError::new(AdapterErrorKind::Conflict, what));
        }
        job.remains().iter().try_for_each(|p| keep_aside::remove(p).map_err(failed("remove", p)))
    })
    .await
}

/// Undoes a dead run's interruption; an exchange of data that it had begun is finished before the server starts.
pub(super) async fn bring_back(
    neo4j: &Neo4j,
    cx: &OpContext,
    entry: &InterruptionEntry,
) -> Result<Replay, AdapterError> {
    let record = exchange_record(&cx.kept, &entry.run_id);
    let here = cx.journal.place().host == entry.place.host;
    if here
        && matches!(entry.kind, InterruptionKind::Stop { .. })
        && let Some(what) = read_record::<Exchange>(&record).await?
    {
        let down = match places::inspect(&neo4j.server, cx).await {
            Ok(now) => now.instance == entry.instance && now.state == RunState::Stopped,
            // `replay` says so.
            Err(e) if e.kind() == AdapterErrorKind::NotFound => false,
            Err(e) => return Err(e),
        };
        if down {
            blocking(move || exchange(what)).await?;
            remove_all(vec![record]).await?;
        }
    }
    Interruption::replay(&cx.interruption(), &neo4j.server.docker, entry).await
}
