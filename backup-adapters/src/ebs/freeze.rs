//! File systems that stand still while their snapshots begin.
//!
//! A snapshot holds what a volume has when `CreateSnapshots` answers: from then on file systems may go on, says AWS
//! (<https://docs.aws.amazon.com/ebs/latest/userguide/ebs-creating-snapshot.html>). Until then whoever writes waits, and
//! cannot be killed. So every way out must end in a thaw:
//!
//! * The journal knows before the first one is frozen, and the watchdog runs.
//! * A **claim**, a locked file, is open in this run from before until after, and in each `fsfreeze --freeze`: whoever
//!   thaws in its place ([`bring_back`]) goes on until the claim is free. A program that was killed, or sleeps, may still be
//!   about to freeze.
//! * The claim's content says which were begun: one that somebody else had frozen is not ours to thaw.

mod claim;
mod command;
mod place;

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use backup_core::runtime::{Announced, Interruption, InterruptionEntry, InterruptionKind, Replay};
use backup_core::{AdapterError, AdapterErrorKind as Kind, CaptureReport, OpContext, StepToken};
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::command::Done;
use self::place::{FileSystem, Needed};
use super::host::Device;
use super::{Ebs, Host, error};
use crate::runtime::docker::DockerRuntime;

/// The capture mode: application data is as after a crash all the same, file systems are not.
const MODE: &str = "create-snapshots-frozen";
/// How long writers may stand still unless somebody says otherwise.
pub(super) const LIMIT: Duration = Duration::from_secs(10);
/// What may be said.
pub(super) const LIMITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long the container engine is asked where its data is.
const ENGINE: Duration = Duration::from_secs(2);
/// Between two looks at a claim that is held by somebody.
const POLL: Duration = Duration::from_millis(250);
/// Pauses between attempts to thaw.
const AGAIN: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(500)];

/// What is to be frozen, looked at beforehand.
#[derive(Debug)]
pub(super) struct Freeze {
    program: PathBuf,
    mounts: Vec<PathBuf>,
    limit: Duration,
    needed: Vec<Needed>,
    set: Vec<String>,
    instance: String,
}

/// What the journal keeps.
#[derive(Debug, Serialize, Deserialize)]
struct Token {
    program: PathBuf,
    /// In the order of freezing.
    file_systems: Vec<Held>,
    claim: PathBuf,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Held {
    mount: PathBuf,
    device: Device,
}

impl Freeze {
    /// What the configuration asks for, if that can be done. `set` are the volumes of which snapshots are made.
    ///
    /// # Errors
    /// One line that says which one cannot be frozen, and why.
    pub(super) async fn look(
        ebs: &Ebs,
        cx: &OpContext,
        instance: &str,
        set: Vec<String>,
    ) -> Result<Option<Self>, AdapterError> {
        if ebs.config.freeze.is_empty() {
            return Ok(None);
        }
        let program = command::find()?;
        let mut needed: Vec<Needed> =
            cx.excluded.iter().map(|p| Needed::new("a store or the state directory", p)).collect();
        needed.extend([
            Needed::new("this program", "/proc/self/exe"),
            Needed::new("the program `fsfreeze`", &program),
            Needed::new("the temporary files of this run", &cx.spool),
            Needed::new("what restores keep aside", &cx.kept),
            Needed::new("the temporary files of this run", tempfile::env::temp_dir()),
        ]);
        // No container: the engine itself is asked.
        let engine = DockerRuntime::new("");
        if let Ok(Ok(Some(root))) = timeout(ENGINE, engine.root()).await {
            needed.push(Needed::new("the data of the container engine", root));
        }
        let this = Self {
            program,
            mounts: ebs.config.freeze.clone(),
            limit: ebs.limit,
            needed,
            set,
            instance: instance.to_owned(),
        };
        this.inspect().await?;
        Ok(Some(this))
    }

    async fn inspect(&self) -> Result<Vec<FileSystem>, AdapterError> {
        let (mounts, needed, set) = (self.mounts.clone(), self.needed.clone(), self.set.clone());
        blocking(move || place::inspect(&Host::this(), &mounts, &needed, &set)).await
    }

    /// Does `call` while all stand still. When it takes too long, or the operation is cancelled, they go on without it.
    ///
    /// # Errors
    /// As [`Self::begin`], before `call` has begun; and those of thawing, once it has ended.
    pub(super) async fn during<T>(
        &self,
        cx: &OpContext,
        call: impl Future<Output = T>,
    ) -> Result<(T, Thawed), AdapterError> {
        let frozen = self.begin(cx).await?;
        let mut call = pin!(call);
        let answer = tokio::select! {
            biased;
            answer = &mut call => Some(answer),
            () = sleep_until(frozen.until) => None,
            () = cx.cancel.cancelled() => None,
        };
        let in_time = answer.is_some();
        let thawed = frozen.thaw().await;
        // What was asked for has to be heard all the same.
        let answer = match answer {
            Some(answer) => answer,
            None => call.await,
        };
        let mut thawed = thawed?;
        thawed.to_the_end &= in_time;
        Ok((answer, thawed))
    }

    /// Freezes all, in the order of the configuration.
    ///
    /// # Errors
    /// `Conflict` for one that somebody else has frozen; `Unsupported`, `PermissionDenied`; `Timeout` if it takes too long;
    /// those of the journal and the watchdog. Whatever was frozen is thawed then, or the journal knows.
    async fn begin(&self, cx: &OpContext) -> Result<Frozen, AdapterError> {
        // Things may have moved since the first look.
        let file_systems = self.inspect().await?;
        // What was written before is written out before: writers wait for the rest only.
        let mounts: Vec<PathBuf> = file_systems.iter().map(|f| f.mount.clone()).collect();
        cx.within(blocking(move || mounts.iter().try_for_each(|mount| sync(mount)))).await??;
        let held: Vec<Held> =
            file_systems.iter().map(|f| Held { mount: f.mount.clone(), device: f.device }).collect();
        let path = cx.spool.join("frozen");
        let claim = claim::make(&path)
            .map_err(|e| AdapterError::io(format!("cannot make `{}`", path.display()), e))?;
        let names: Vec<String> = held.iter().map(|h| h.mount.display().to_string()).collect();
        let token = Token { program: self.program.clone(), file_systems: held, claim: path };
        let announced = Interruption::announce(
            cx.interruption(),
            format!("froze {}", names.join(", ")),
            self.instance.clone(),
            StepToken::new(&token)?,
            Instant::now() + self.limit,
        )
        .await?;
        let since = Instant::now();
        let mut frozen = Frozen {
            file_systems,
            token,
            claim,
            announced,
            since,
            until: since + self.limit * 4 / 5,
            begun: 0,
        };
        match frozen.freeze_all().await {
            Ok(()) => Ok(frozen),
            Err((e, Left::Settled)) => {
                // What is left to do, if this fails, is in the journal.
                let _second = frozen.thaw().await;
                Err(e)
            }
            Err((e, Left::Underway)) => {
                let _second = frozen.thaw_all().await;
                Err(e)
            }
        }
    }
}

/// Whether a freeze that failed is over.
enum Left {
    Settled,
    /// The program is still at it: the journal has to keep it, until its claim is free.
    Underway,
}

/// File systems that are frozen by us.
#[derive(Debug)]
#[must_use = "writers wait until `thaw` is called, or the watchdog wakes up"]
struct Frozen {
    file_systems: Vec<FileSystem>,
    token: Token,
    claim: File,
    announced: Announced,
    since: Instant,
    /// When to thaw, whatever is not yet done: some time before the watchdog does.
    until: Instant,
    /// How many are frozen.
    begun: usize,
}

/// How it was.
#[derive(Debug, Default)]
pub(super) struct Thawed {
    /// How long writers waited.
    pub(super) lasted: Duration,
    /// All stood still until what was to be done was done.
    pub(super) to_the_end: bool,
    /// What was frozen.
    file_systems: Vec<FileSystem>,
}

impl Thawed {
    /// Adds another attempt. What counts for the data is the last one.
    pub(super) fn then(&mut self, next: Self) {
        let lasted = self.lasted + next.lasted;
        *self = Self { lasted, ..next };
    }

    /// Where the frozen file systems of `volume` are mounted.
    pub(super) fn of(&self, volume: &str) -> Vec<String> {
        let on =
            self.file_systems.iter().filter(|f| self.to_the_end && f.volumes.iter().any(|v| v == volume));
        on.map(|f| f.mount.display().to_string()).collect()
    }

    /// Fills in how the set was made: the mode, the times, and what an operator should know.
    pub(super) fn tell(&self, report: &mut CaptureReport) {
        let ms = u64::try_from(self.lasted.as_millis()).unwrap_or(u64::MAX);
        (report.interruption_ms, report.lock_ms) = (ms, ms);
        if !self.to_the_end {
            let what = "the file systems went on before EC2 had answered: in the snapshots they are as after a power cut";
            report.warnings.push(what.to_owned());
            return;
        }
        MODE.clone_into(&mut report.mode);
        let mounts: Vec<String> = self.file_systems.iter().map(|f| f.mount.display().to_string()).collect();
        report.evidence.notes.insert("frozen".to_owned(), mounts.join(", "));
        for f in self.file_systems.iter().filter(|f| f.volumes.is_empty()) {
            let mount = f.mount.display();
            let what = format!(
                "`{mount}` was frozen, but this host does not tell whether it is on one of these volumes"
            );
            report.warnings.push(what);
        }
    }
}

impl Frozen {
    async fn freeze_all(&mut self) -> Result<(), (AdapterError, Left)> {
        for (n, held) in self.token.file_systems.iter().enumerate() {
            let settled = |e| (e, Left::Settled);
            let noted = |e| {
                settled(AdapterError::io(format!("cannot note it in `{}`", self.token.claim.display()), e))
            };
            self.claim.write_all(&[claim::index(n)]).map_err(noted)?;
            let stdin = self.claim.try_clone().map_err(noted)?;
            let child =
                command::freezing(&self.token.program, &held.mount, Stdio::from(stdin)).map_err(settled)?;
            let Ok(ended) =
                tokio::time::timeout_at(self.until, command::ended(child, "freeze", &held.mount)).await
            else {
                let what = format!("cannot freeze `{}` in time", held.mount.display());
                let help = "raise `max_interruption`, or make snapshots at a calmer hour";
                let e = refused(Kind::Timeout, what, "too much is being written to it", help);
                return Err((e, Left::Underway));
            };
            match ended {
                Ok(Done::Yes) => self.begun = n + 1,
                Ok(Done::Already) => {
                    self.claim.set_len(n as u64).map_err(noted)?;
                    let mount = held.mount.display();
                    let help = format!("find out who did it; `fsfreeze --unfreeze {mount}` ends it");
                    let (what, said) =
                        (format!("cannot freeze `{mount}`"), "somebody else has frozen it already");
                    return Err(settled(refused(Kind::Conflict, what, said, &help)));
                }
                Err(e) => return Err(settled(e)),
            }
        }
        Ok(())
    }

    /// Thaws all, the last one first.
    ///
    /// # Errors
    /// Those of the program; the journal and the watchdog remember it then. `Conflict` if somebody else did it in our place.
    async fn thaw(mut self) -> Result<Thawed, AdapterError> {
        let to_the_end = self.thaw_all().await?;
        let lasted = self.since.elapsed();
        self.announced.undone().await?;
        Ok(Thawed { lasted, to_the_end, file_systems: std::mem::take(&mut self.file_systems) })
    }

    /// Whether all were still frozen. One that cannot be thawed does not keep the others from it.
    async fn thaw_all(&self) -> Result<bool, AdapterError> {
        let (mut to_the_end, mut failed) = (true, None);
        for held in self.token.file_systems.iter().take(self.begun).rev() {
            let mut again = AGAIN.into_iter();
            loop {
                match (thaw_by_device(&self.token.program, held).await, again.next()) {
                    (Ok(done), _) => to_the_end &= done == Done::Yes,
                    (Err(_), Some(pause)) => {
                        sleep(pause).await;
                        continue;
                    }
                    (Err(e), None) => failed = Some(e),
                }
                break;
            }
        }
        failed.map_or(Ok(to_the_end), Err)
    }
}

/// Undoes what an entry of the journal says, in the place of a run that is dead, stuck or late.
pub(super) async fn bring_back(cx: &OpContext, entry: &InterruptionEntry) -> Result<Replay, AdapterError> {
    let InterruptionKind::Other { token, .. } = &entry.kind else {
        return Err(AdapterError::unsupported("this is no interruption of file systems"));
    };
    let token: Token = token.get()?;
    // A restart thaws everything; what is frozen since is somebody else's.
    if entry.place.boot_id != cx.journal.place().boot_id {
        return Ok(Replay::NothingToDo);
    }
    let mut undone = false;
    loop {
        let path = token.claim.clone();
        // Looked at first: who held it until then has frozen the last one before we thaw.
        let (begun, free) = blocking(move || {
            claim::look_at(&path)
                .map_err(|e| AdapterError::io(format!("cannot look at `{}`", path.display()), e))
        })
        .await?;
        let ours = token.file_systems.iter().enumerate();
        let ours = ours.filter(|(n, _)| begun.as_ref().is_none_or(|begun| begun.contains(&claim::index(*n))));
        // All at once: one that waits for another must not keep that from it.
        for done in join_all(ours.map(|(_, held)| thaw_by_device(&token.program, held))).await {
            undone |= done? == Done::Yes;
        }
        if free {
            return Ok(if undone { Replay::Undone } else { Replay::NothingToDo });
        }
        cx.within(sleep(POLL)).await?;
    }
}

/// Thaws a file system where it is mounted now: at its place there may be another one.
async fn thaw_by_device(program: &Path, held: &Held) -> Result<Done, AdapterError> {
    let held_there = held.clone();
    let mount = blocking(move || {
        let table = Host::this().mount_table();
        let seen = |target: &Path| table.iter().rfind(|m| m.target == target).map(|m| m.device);
        let here = |target: &Path| seen(target) == Some(held_there.device);
        let elsewhere = || table.iter().map(|m| &m.target).find(|t| here(t)).cloned();
        Ok(if here(&held_there.mount) { Some(held_there.mount.clone()) } else { elsewhere() })
    })
    .await?;
    match mount {
        Some(mount) => command::thaw(program, &mount).await,
        // The kernel keeps a frozen file system that is unmounted: mounted again, it is still frozen.
        None => {
            let place = held.mount.display();
            let help = format!("mount it at `{place}` again: then `backup resume` thaws it");
            let said = "it was unmounted while it was frozen";
            Err(refused(Kind::NotFound, format!("cannot thaw `{place}`"), said, &help))
        }
    }
}

/// An error that itself says what to do: of a service's error in a run, the line alone is shown.
fn refused(kind: Kind, what: impl Into<String>, said: &str, help: &str) -> AdapterError {
    error(kind, what).with_source(format!("{said}; {help}"))
}

fn sync(mount: &Path) -> Result<(), AdapterError> {
    let done = File::open(mount).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
    done.map_err(|e| AdapterError::io(format!("cannot write out `{}`", mount.display()), e))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AdapterError> + Send + 'static,
) -> Result<T, AdapterError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
        Err(error(Kind::Other, "the work on file systems stopped unexpectedly").with_source(e))
    })
}
