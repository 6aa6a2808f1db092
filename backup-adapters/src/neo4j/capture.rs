//! Captures: what the server says before and after, the interruption in between, and the stream.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use backup_core::runtime::{Inspection, Interruption, InterruptionKind, RunState};
use backup_core::{
    AdapterError, AdapterErrorKind, Artifact, ArtifactName, BackupSource, CHUNK_BYTES, CaptureReport, Event,
    Evidence, OpContext, ReadOutcome,
};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{Stream, StreamExt, stream};
use tokio::io::AsyncReadExt;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::Neo4j;
use super::mode::{CaptureMode, choose};
use super::places::{self, Places};
use super::replica::{self, How};
use super::server::{self, Facts, SYSTEM};
use super::tools;
use crate::tree::capture::{self, Job};
use crate::tree::roots::{Root, RootKind};
use crate::tree::rules::{Excluded, RuleSpec};
use crate::tree::write::OnChange;

/// How long an interruption may last that nothing else limits.
const LONGEST: Duration = Duration::from_secs(4 * 3600);

/// How long a server may take to come up again.
pub(super) const COME_BACK: Duration = Duration::from_secs(600);

/// The folders of an archive of files.
pub(super) const DATA: &str = "data";
pub(super) const TRANSACTIONS: &str = "transactions";

/// What was found before the interruption.
pub(super) struct Found {
    pub(super) container: Inspection,
    /// `None` if the server does not run.
    pub(super) facts: Option<Facts>,
    pub(super) places: Places,
    before: Evidence,
    warnings: Vec<String>,
}

impl Found {
    pub(super) fn major(&self) -> u32 {
        self.facts.as_ref().map_or(5, Facts::major)
    }
}

/// Tells people what happens.
pub(super) fn phase(cx: &OpContext, phase: &str) {
    cx.events.emit(Event::Phase { service: cx.service.clone(), phase: phase.to_owned() });
}

pub(super) async fn look(neo4j: &Neo4j, cx: &OpContext) -> Result<Found, AdapterError> {
    let server = &neo4j.server;
    let container = places::inspect(server, cx).await?;
    let (mut before, mut warnings, mut facts) = (Evidence::default(), Vec::new(), None);
    match container.state {
        RunState::Running => {
            let mut bolt = server.connect(cx).await?;
            let read = Facts::read(cx, &mut bolt).await?;
            before = server::evidence(cx, &mut bolt, &read.databases).await?;
            bolt.close(cx).await;
            facts = Some(read);
        }
        RunState::Stopped => {
            warnings.push(format!("{server} does not run: what it holds was not counted"));
        }
        _ => {
            let what = format!("{server} is paused by somebody else");
            return Err(AdapterError::new(AdapterErrorKind::Conflict, what));
        }
    }
    let places = Places::find(server, cx, &container, facts.as_ref()).await?;
    Ok(Found { container, facts, places, before, warnings })
}

/// Captures the server.
pub(super) async fn open(neo4j: &Neo4j, cx: &OpContext) -> Result<BackupSource, AdapterError> {
    let mut found = look(neo4j, cx).await?;
    let (data, logs) = (found.places.data.clone(), found.places.transactions.clone());
    let bytes = spawn_blocking(move || {
        let outside = if logs.starts_with(&data) { 0 } else { replica::occupied(&logs, &[])? };
        Ok(replica::occupied(&data, &[data.join("dumps")])? + outside)
    });
    let bytes = bytes.await.unwrap_or_else(|e| Err(std::io::Error::from(e)));
    let bytes = bytes.map_err(|e| AdapterError::io("cannot measure the data of Neo4j", e))?;
    let mut mode = neo4j.capture;
    let mut limit = LONGEST;
    if matches!(mode, CaptureMode::Auto | CaptureMode::Clone) {
        let refused = match try_clone(cx, &found.places).await {
            Ok(()) => None,
            Err(e) if e.kind() == AdapterErrorKind::Unsupported => Some(e),
            Err(e) => return Err(e),
        };
        if mode == CaptureMode::Auto {
            limit = neo4j.max_interruption;
            let why = refused.map(|e| e.to_string());
            let chosen = choose(bytes, limit, why.as_deref());
            mode = chosen?;
            if mode != CaptureMode::Clone && mode != CaptureMode::PauseCopy {
                // A stop cannot be taken back halfway: what was expected is all that can be said.
                limit = LONGEST;
            }
        } else if let Some(e) = refused {
            return Err(e);
        }
    }
    if mode != CaptureMode::Clone {
        room(cx, mode, bytes)?;
    }
    let warnings = std::mem::take(&mut found.warnings);
    let taking = Taking { neo4j: neo4j.clone(), cx: cx.clone(), mode, limit, found };
    // It ends the interruption, and must get to that even if nobody waits any more.
    #[expect(
        clippy::disallowed_methods,
        reason = "it must outlive a caller that is dropped, to end what it began"
    )]
    let task = tokio::spawn(taking.run());
    let taken = task.await.unwrap_or_else(|e| {
        Err(AdapterError::new(AdapterErrorKind::Other, "the capture broke off").with_source(e))
    })?;
    Ok(taken.source(cx, warnings, bytes))
}

/// What is copied or dumped while the server is down goes to the spool.
fn room(cx: &OpContext, mode: CaptureMode, bytes: u64) -> Result<(), AdapterError> {
    // A dump is compressed; by how much is known afterwards.
    let needed = if mode == CaptureMode::StopDump { bytes / 2 } else { bytes };
    let free = backup_core::keep_aside::free_space(&cx.spool)
        .map_err(|e| AdapterError::io("cannot look at the free space of the spool", e))?;
    if free >= needed || cx.force {
        return Ok(());
    }
    Err(AdapterError::new(
        AdapterErrorKind::NoSpace,
        format!(
            "`{mode}` may need {} MiB in `{}`, where {} MiB are free: set `state_dir` to a larger disk, or use `clone`",
            needed >> 20,
            cx.spool.display(),
            free >> 20
        ),
    ))
}

/// The mounts that get a clone.
fn clone_places(places: &Places, cx: &OpContext) -> Vec<PathBuf> {
    let mut all = vec![replica::place(&places.mounts.0, &cx.run_id)];
    if !places.together() {
        all.push(replica::place(&places.mounts.1, &cx.run_id));
    }
    all.dedup();
    all
}

/// Finds out whether the file system can clone. Leaves nothing.
async fn try_clone(cx: &OpContext, places: &Places) -> Result<(), AdapterError> {
    let (into, places) = (clone_places(places, cx), places.clone());
    blocking(move || {
        let tried = into.iter().zip([&places.data, &places.transactions]).try_for_each(|(place, from)| {
            replica::remove(place)?;
            replica::make_private(place)?;
            replica::can_reflink(from, place)
        });
        into.iter().try_for_each(|place| replica::remove(place)).and(tried)
    })
    .await
}

/// Runs `work` off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AdapterError> + Send + 'static,
) -> Result<T, AdapterError> {
    spawn_blocking(work).await.unwrap_or_else(|e| {
        Err(AdapterError::new(AdapterErrorKind::Other, "the work on files of Neo4j broke off").with_source(e))
    })
}

async fn remove_all(all: Vec<PathBuf>) -> Result<(), AdapterError> {
    blocking(move || all.iter().try_for_each(|p| replica::remove(p))).await
}

/// A capture at work.
struct Taking {
    neo4j: Neo4j,
    cx: OpContext,
    mode: CaptureMode,
    limit: Duration,
    found: Found,
}

/// What a capture has taken; the server is back.
struct Taken {
    mode: CaptureMode,
    found: Found,
    what: What,
    /// To be removed once it was read.
    remove: Vec<PathBuf>,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
    interruption: Duration,
    exit_codes: BTreeMap<String, i64>,
    after: Option<Evidence>,
    warnings: Vec<String>,
}

enum What {
    /// Databases and their dumps, with lengths.
    Dumps(Vec<(String, PathBuf, u64)>),
    /// Copies of the data and of the logs, and the folders that they are in.
    Files(Vec<Root>, Vec<PathBuf>),
}

impl Taking {
    async fn run(self) -> Result<Taken, AdapterError> {
        match self.mode {
            CaptureMode::StopDump => self.dump().await,
            CaptureMode::StopCopy | CaptureMode::PauseCopy => self.copy(How::Copy).await,
            CaptureMode::Clone | CaptureMode::Auto => self.copy(How::Reflink).await,
        }
    }

    /// Stops the server; one that had to be killed is started again, to recover, and stopped once more.
    async fn stop(&self, exit_codes: &mut BTreeMap<String, i64>) -> Result<Interruption, AdapterError> {
        let (cx, grace) = (&self.cx, self.neo4j.stop_timeout);
        for attempt in 1..=2 {
            phase(cx, "stopping the server");
            let deadline = Instant::now() + cx.remaining().unwrap_or(self.limit).min(self.limit);
            let kind = InterruptionKind::Stop { grace };
            let runtime = std::sync::Arc::new(self.neo4j.server.docker.clone());
            let mut stopped = Interruption::begin(runtime, cx.interruption(), kind, deadline).await?;
            let exit = stopped.exit_status();
            if let Some(code) = exit.and_then(|e| e.code) {
                exit_codes.insert("neo4j".to_owned(), code);
            }
            if !exit.is_some_and(|e| e.killed) {
                return Ok(stopped);
            }
            stopped.end().await?;
            if attempt == 1 {
                cx.warn(format!(
                    "{} did not end within {} s and was killed: it is started to recover, and stopped once more",
                    self.neo4j.server,
                    grace.as_secs()
                ));
                drop(self.neo4j.server.wait(cx, COME_BACK).await?);
            }
        }
        Err(AdapterError::new(
            AdapterErrorKind::Conflict,
            format!(
                "{} does not end within {} s (`stop_timeout`): it was killed twice, and runs again",
                self.neo4j.server,
                grace.as_secs()
            ),
        ))
    }

    /// Freezes the server. Control groups of version 1 cannot always at the first attempt, while processes come and go.
    async fn pause(&self, deadline: Instant) -> Result<Interruption, AdapterError> {
        let mut attempt = 1;
        loop {
            let runtime = std::sync::Arc::new(self.neo4j.server.docker.clone());
            let cx = self.cx.interruption();
            match Interruption::begin(runtime, cx, InterruptionKind::Pause, deadline).await {
                Err(e) if e.kind() == AdapterErrorKind::Other && attempt < 3 => attempt += 1,
                done => return done,
            }
        }
    }

    async fn dump(self) -> Result<Taken, AdapterError> {
        let (server, cx) = (&self.neo4j.server, &self.cx);
        let files = tools::open_folder(cx.spool.join("dumps")).await?;
        // Ready before the server goes down.
        let helper = tools::beside(server, cx, &self.found.places, self.found.major(), &files).await?;
        let names: Vec<String> = match &self.found.facts {
            Some(facts) => facts.databases.iter().map(|d| d.name.clone()).collect(),
            None => Vec::new(),
        };
        let mut exit_codes = BTreeMap::new();
        let mut stopped = match self.stop(&mut exit_codes).await {
            Ok(stopped) => stopped,
            Err(e) => {
                helper.close().await?;
                return Err(e);
            }
        };
        let from = cx.clock.now();
        let began = Instant::now();
        phase(cx, "dumping its databases");
        let dumped = async {
            for arguments in tools::dump(self.found.major(), &names) {
                let code = tools::admin(&helper, cx, &arguments).await?;
                exit_codes.insert("neo4j-admin".to_owned(), code);
            }
            Ok::<_, AdapterError>(())
        };
        let dumped = dumped.await;
        let to = cx.clock.now();
        let closed = helper.close().await;
        let (interruption, after, warnings) = self.back(&mut stopped, began).await?;
        dumped?;
        closed?;
        let found = blocking(move || list_dumps(&files)).await?;
        for name in names.iter().chain([&SYSTEM.to_owned()]) {
            if !found.iter().any(|(n, _, _)| n == name) {
                let what = format!("`neo4j-admin` made no dump of database `{name}`");
                return Err(AdapterError::corrupt(what));
            }
        }
        Ok(Taken {
            mode: self.mode,
            found: self.found,
            what: What::Dumps(found),
            remove: Vec::new(),
            from,
            to,
            interruption,
            exit_codes,
            after,
            warnings,
        })
    }

    async fn copy(self, how: How) -> Result<Taken, AdapterError> {
        let (cx, places) = (&self.cx, self.found.places.clone());
        let bases = match how {
            How::Reflink => clone_places(&places, cx),
            How::Copy => vec![cx.spool.join("copy")],
        };
        let (made, flushed) = (bases.clone(), places.clone());
        blocking(move || {
            for base in &made {
                replica::remove(base)?;
                replica::make_private(base)?;
            }
            // What was written and is not on the disk yet would be written while the service stands still.
            for dir in [&flushed.data, &flushed.transactions] {
                backup_core::keep_aside::sync_file_system(dir)
                    .map_err(|e| AdapterError::io("cannot flush the file system of Neo4j", e))?;
            }
            Ok(())
        })
        .await?;
        let taken = self.copy_into(how, bases.clone()).await;
        if taken.is_err() {
            // The first error tells more; what is left is found by the run's id.
            let _second = remove_all(bases).await;
        }
        taken
    }

    async fn copy_into(self, how: How, bases: Vec<PathBuf>) -> Result<Taken, AdapterError> {
        let (cx, places) = (&self.cx, self.found.places.clone());
        let mut exit_codes = BTreeMap::new();
        let from = cx.clock.now();
        let mut began = Instant::now();
        let mut interruption = if self.mode == CaptureMode::StopCopy {
            let stopped = self.stop(&mut exit_codes).await?;
            began = Instant::now();
            stopped
        } else {
            phase(cx, "pausing the server");
            let deadline = began + cx.remaining().unwrap_or(self.limit).min(self.limit);
            self.pause(deadline).await?
        };
        phase(cx, if how == How::Reflink { "cloning its files" } else { "copying its files" });
        let ends = Instant::now() + interruption.remaining();
        let (alive_cx, targets) = (cx.clone(), bases.clone());
        let copied = blocking(move || {
            let alive = move || {
                alive_cx.check_alive()?;
                if Instant::now() < ends {
                    return Ok(());
                }
                let what = "the copy takes longer than the service may be interrupted (`max_interruption`)";
                Err(AdapterError::new(AdapterErrorKind::Timeout, what))
            };
            let data = targets.first().cloned().unwrap_or_default();
            let logs = targets.last().cloned().unwrap_or_default();
            let except = [places.transactions.clone(), places.data.join("dumps")];
            replica::copy(&places.data, &data.join(DATA), &except, how, &alive)?;
            let (from, to) = (&places.transactions, logs.join(TRANSACTIONS));
            replica::copy(from, &to, &[], how, &alive)?;
            let root =
                |path: PathBuf, member: &str| Root { path, member: member.to_owned(), kind: RootKind::Dir };
            Ok(vec![root(data.join(DATA), DATA), root(to, TRANSACTIONS)])
        })
        .await;
        let to = cx.clock.now();
        let (lasted, after, warnings) = self.back(&mut interruption, began).await?;
        let roots = copied?;
        Ok(Taken {
            mode: self.mode,
            found: self.found,
            what: What::Files(roots, bases.clone()),
            remove: bases,
            from,
            to,
            interruption: lasted,
            exit_codes,
            after,
            warnings,
        })
    }

    /// Ends the interruption, and waits until the server answers. How long it did not, and what it counts now.
    async fn back(
        &self,
        interruption: &mut Interruption,
        began: Instant,
    ) -> Result<(Duration, Option<Evidence>, Vec<String>), AdapterError> {
        let (server, cx) = (&self.neo4j.server, &self.cx);
        let mut lasted = interruption.end().await?;
        let Some(facts) = &self.found.facts else { return Ok((lasted, None, Vec::new())) };
        // Also if the capture was cancelled or has used its time up: what it did to the service is seen through.
        let mut calm = cx.clone();
        calm.cancel = tokio_util::sync::CancellationToken::new();
        calm.deadline = Some(Instant::now() + COME_BACK);
        let stopped = self.mode == CaptureMode::StopDump || self.mode == CaptureMode::StopCopy;
        if stopped {
            phase(cx, "waiting for the server to answer");
        }
        let counted = async {
            let mut bolt = server.wait(&calm, COME_BACK).await?;
            // A stop lasts until the server answers again, not until its container runs.
            let answered = began.elapsed();
            let after = server::evidence(&calm, &mut bolt, &facts.databases).await?;
            bolt.close(&calm).await;
            Ok::<_, AdapterError>((answered, after))
        };
        match counted.await {
            Ok((answered, after)) => {
                if stopped {
                    lasted = lasted.max(answered);
                }
                Ok((lasted, Some(after), Vec::new()))
            }
            Err(e) => {
                let what = format!("after the capture, {server} could not be asked: {e}");
                cx.warn(what.clone());
                Ok((lasted, None, vec![what]))
            }
        }
    }
}

fn list_dumps(dir: &std::path::Path) -> Result<Vec<(String, PathBuf, u64)>, AdapterError> {
    let list = || {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let bytes = entry.metadata()?.len();
            if let Some(database) = name.strip_suffix(".dump")
                && bytes > 0
            {
                all.push((database.to_owned(), entry.path(), bytes));
            }
        }
        all.sort();
        Ok(all)
    };
    list().map_err(|e| AdapterError::io("cannot list the dumps", e))
}

impl Taken {
    fn source(self, cx: &OpContext, mut warnings: Vec<String>, occupied: u64) -> BackupSource {
        warnings.extend(self.warnings.iter().cloned());
        let major = u64::from(self.found.major());
        let (artifacts, running) = match &self.what {
            What::Dumps(dumps) => {
                let of = |(database, path, bytes): &(String, PathBuf, u64)| {
                    let name = ArtifactName::sanitized(database);
                    let artifact = Artifact::stream(name, "dump", file(path.clone(), *bytes, cx.clone()))
                        .with_size_hint(*bytes)
                        .with_attribute("database", database.as_str())
                        .with_attribute("major", major)
                        .with_attribute("occupied", occupied);
                    Ok(artifact)
                };
                (dumps.iter().map(of).collect::<Vec<_>>(), None)
            }
            What::Files(roots, bases) => {
                let job = Job {
                    roots: roots.clone(),
                    bases: bases.clone(),
                    rules: RuleSpec::default(),
                    excluded: Excluded::default(),
                    on_change: OnChange::Fail,
                };
                let (stream, running) = capture::start(cx, job);
                let artifact = Artifact::stream(ArtifactName::sanitized("files"), "tar", stream)
                    .with_attribute("major", major)
                    .with_attribute("occupied", occupied)
                    .with_attribute("databases", self.databases());
                (vec![Ok(artifact)], Some(running))
            }
        };
        BackupSource::new(stream::iter(artifacts), move |outcome| async move {
            let whole = match running {
                Some(running) => running.ended().await.is_some(),
                None => true,
            };
            let removed = remove_all(self.remove.clone()).await;
            if outcome == ReadOutcome::Complete && !whole {
                return Err(AdapterError::new(AdapterErrorKind::Other, "the archive was not completed"));
            }
            if let Err(e) = removed {
                warnings.push(e.to_string());
            }
            Ok(self.report(warnings))
        })
    }

    fn databases(&self) -> serde_json::Value {
        let names = self.found.facts.iter().flat_map(|f| &f.databases).map(|d| d.name.clone());
        names.collect::<Vec<_>>().into()
    }

    fn report(self, warnings: Vec<String>) -> CaptureReport {
        let mut report = CaptureReport::new(self.mode.name(), self.mode.consistency(), self.from, self.to);
        report.interruption_ms = u64::try_from(self.interruption.as_millis()).unwrap_or(u64::MAX);
        report.exit_codes = self.exit_codes;
        report.evidence = self.found.before;
        for (name, count) in self.after.unwrap_or_default().counts {
            if report.evidence.counts.get(&name) != Some(&count) {
                report.evidence.counts_after.insert(name, count);
            }
        }
        if let Some(facts) = &self.found.facts {
            report.service_version = Some(facts.version.clone());
            report.evidence.notes.insert("edition".into(), facts.edition.clone());
            let names: Vec<&str> = facts.databases.iter().map(|d| d.name.as_str()).collect();
            report.evidence.notes.insert("databases".into(), names.join(", "));
        }
        report.image = self.found.container.image;
        report.warnings = warnings;
        report
    }
}

/// The bytes of a file that has `bytes` of them.
fn file(
    path: PathBuf,
    bytes: u64,
    cx: OpContext,
) -> impl Stream<Item = Result<Bytes, AdapterError>> + Send + 'static {
    let failed = move |path: &PathBuf, e| AdapterError::io(format!("cannot read `{}`", path.display()), e);
    stream::once(async move {
        let opened = tokio::fs::File::open(&path).await.map_err(|e| failed(&path, e));
        let begin = opened.map(|file| (file, path, 0_u64, cx));
        match begin {
            Err(e) => stream::iter([Err(e)]).boxed(),
            Ok(begin) => stream::try_unfold(begin, move |(mut file, path, at, cx)| async move {
                cx.check_alive()?;
                let mut piece = vec![0; CHUNK_BYTES];
                let mut filled = 0;
                while let Some(rest) = piece.get_mut(filled..).filter(|r| !r.is_empty()) {
                    match file.read(rest).await.map_err(|e| failed(&path, e))? {
                        0 => break,
                        n => filled += n,
                    }
                }
                piece.truncate(filled);
                let at = at + filled as u64;
                match filled {
                    0 if at == bytes => Ok(None),
                    0 => Err(AdapterError::new(
                        AdapterErrorKind::Changed,
                        format!("`{}` has {at} bytes, not {bytes}", path.display()),
                    )),
                    _ => Ok(Some((Bytes::from(piece), (file, path, at, cx)))),
                }
            })
            .boxed(),
        }
    })
    .flatten()
}

/// Removes what dead runs left: clones in the server's mounts, and containers beside its own.
pub(super) async fn reclaim(
    neo4j: &Neo4j,
    cx: &OpContext,
    dead: &[backup_core::RunId],
) -> Result<Vec<String>, AdapterError> {
    let docker = &neo4j.server.docker;
    let mut removed = cx.within(docker.reclaim(dead)).await??;
    let tops = match places::inspect(&neo4j.server, cx).await {
        Ok(container) => places::tops(&container),
        // Its volumes may be anywhere then, or gone.
        Err(e) if e.kind() == AdapterErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(e),
    };
    let clones: Vec<PathBuf> =
        tops.iter().flat_map(|top| dead.iter().map(|run| replica::place(top, run))).collect();
    let gone = blocking(move || {
        let there: Vec<PathBuf> = clones.into_iter().filter(|c| c.symlink_metadata().is_ok()).collect();
        there.iter().try_for_each(|c| replica::remove(c))?;
        Ok(there)
    })
    .await?;
    removed.extend(gone.iter().map(|c| format!("`{}`, a clone of a dead run", c.display())));
    Ok(removed)
}
