//! The state directory of a host: what must not live in a store.
//!
//! ```text
//! <state_dir>/locks/<service>.lock        flock; says who holds it
//! <state_dir>/runs/<run id>.lock          flock held while the run lives
//! <state_dir>/runs/<run id>/              the run's private spool folders, by service; of a dead run, until the service has
//!                                         reclaimed what it left (30 days, if the service is configured no more)
//! <state_dir>/restores/<service>/<run id>.json   journal of a restore: what `undo`, `cleanup` and a resumption need
//! <state_dir>/interruptions/<id>.json     a service that is stopped, paused or fenced by us at this moment
//! <state_dir>/fenced                      applications that a recovery stopped and did not start again yet, a line each
//! <state_dir>/emergency.lock               flock held while the host is about to go away: nothing new begins
//! <state_dir>/kept/<service>/             what a restore keeps aside when the service has no place for it
//! <state_dir>/cache/<store id>/…          may be deleted at any time
//! ```

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::BackupError;
use crate::event::{Event, EventSink};
use crate::id::{RunId, ServiceName};

mod emergency;
mod fence;
mod interruptions;
mod journal;

pub use emergency::Emergency;
pub use interruptions::{FileJournal, JournalContent};
pub use journal::{RestoreJournal, RestorePhase};

/// How often a held lock is tried again. `flock` has no wait with a deadline.
const LOCK_POLL: Duration = Duration::from_millis(100);

/// The state directory of this host.
#[derive(Debug, Clone)]
pub struct StateDir {
    root: PathBuf,
}

/// Who holds a service's lock: written into the lock file, for the message that the others get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockHolder {
    /// The verb, e.g. `run`.
    pub verb: String,
    /// The run.
    pub run_id: RunId,
    /// The process.
    pub pid: u32,
    /// The host's boot.
    pub boot_id: String,
    /// Since when.
    pub since: DateTime<Utc>,
}

impl std::fmt::Display for LockHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { verb, run_id, pid, since, .. } = self;
        write!(
            f,
            "`backup {verb}` (process {pid}, run {run_id}) holds it since {}",
            since.format("%Y-%m-%d %H:%M:%S UTC")
        )
    }
}

/// A held service lock. Dropped or killed, it is free again: the kernel sees to that.
#[derive(Debug)]
pub struct ServiceLock {
    _file: File,
}

/// A living run: while this exists (and its process lives), nobody reclaims the run's leftovers.
#[derive(Debug)]
pub struct RunGuard {
    dir: PathBuf,
    /// Made before the folder, removed after it.
    lock_path: PathBuf,
    _lock: File,
    /// See [`leave`](Self::leave).
    left: Mutex<BTreeSet<ServiceName>>,
}

/// Whether the locked file still has its name: another process may have found the run dead just before we locked it.
fn is_current(lock: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |m: fs::Metadata| (m.dev(), m.ino());
    let (ours, there) = (lock.metadata().map(identity), fs::symlink_metadata(path).map(identity));
    ours.ok().is_some_and(|ours| there.is_ok_and(|there| there == ours))
}

impl RunGuard {
    fn new(dir: PathBuf, lock_path: PathBuf, lock: File) -> Self {
        Self { dir, lock_path, _lock: lock, left: Mutex::default() }
    }

    /// A private folder for `service`; exists from here on, and goes with the guard.
    ///
    /// # Errors
    /// [`BackupError::State`].
    pub fn spool(&self, service: &ServiceName) -> Result<PathBuf, BackupError> {
        let dir = self.dir.join(service.as_str());
        make_dir(&dir)?;
        Ok(dir)
    }
}

impl RunGuard {
    /// The services that the run worked on and that have not reclaimed what it left: those that have a folder here.
    ///
    /// # Errors
    /// [`BackupError::State`].
    pub fn touched(&self) -> Result<Vec<ServiceName>, BackupError> {
        let wrap = || state_error(format!("listing `{}`", self.dir.display()));
        let mut services = Vec::new();
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            // It was killed before it had a folder.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(services),
            Err(e) => return Err(wrap()(e)),
        };
        for entry in entries {
            let name = entry.map_err(wrap())?.file_name();
            services.extend(name.to_str().and_then(|n| n.parse::<ServiceName>().ok()));
        }
        Ok(services)
    }

    /// Notes that nothing of the run is left in `service`: its folder goes.
    ///
    /// # Errors
    /// [`BackupError::State`].
    pub fn reclaimed(&self, service: &ServiceName) -> Result<(), BackupError> {
        let dir = self.dir.join(service.as_str());
        crate::keep_aside::remove(&dir).map_err(state_error(format!("removing `{}`", dir.display())))
    }

    /// Notes that the run leaves something in `service` on purpose, for [`reclaim`](crate::ServiceAdapter::reclaim):
    /// when the guard is dropped, the run is on record as a dead one.
    pub fn leave(&self, service: &ServiceName) {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).insert(service.clone());
    }

    /// Empties the folder, but for the (emptied) folders of services in which something was left.
    fn clear(&self, left: &BTreeSet<ServiceName>) -> io::Result<()> {
        if left.is_empty() {
            return crate::keep_aside::remove(&self.dir);
        }
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_str().and_then(|n| n.parse::<ServiceName>().ok());
            if name.is_some_and(|n| left.contains(&n)) {
                for spooled in fs::read_dir(entry.path())? {
                    crate::keep_aside::remove(&spooled?.path())?;
                }
            } else {
                crate::keep_aside::remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Lets go without removing anything: for a dead run that is not wholly reclaimed yet.
    pub fn keep(mut self) {
        self.dir = PathBuf::new();
    }
}

impl Drop for RunGuard {
    fn drop(&mut self) {
        if self.dir.as_os_str().is_empty() {
            return;
        }
        // Best effort: what stays is reclaimed by the next run, which finds it by the lock file. That goes last: a
        // thread of a cancelled operation may still be writing.
        let left = std::mem::take(self.left.get_mut().unwrap_or_else(PoisonError::into_inner));
        let removed = self.clear(&left);
        let forget = || if left.is_empty() { fs::remove_file(&self.lock_path) } else { Ok(()) };
        if let Err(error) = removed.and_then(|()| forget()) {
            tracing::debug!(%error, dir = %self.dir.display(), "The run's spool could not be removed.");
        }
    }
}

fn state_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> BackupError {
    let what = what.into();
    move |source| BackupError::State { what, source }
}

fn make_dir(dir: &Path) -> Result<(), BackupError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(state_error(format!("creating `{}`", dir.display())))
}

fn open_lock(path: &Path) -> Result<File, BackupError> {
    fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(state_error(format!("opening `{}`", path.display())))
}

fn try_lock(file: &File, path: &Path) -> Result<bool, BackupError> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(state_error(format!("locking `{}`", path.display()))(e.into())),
    }
}

/// Writes a small file so that a reader sees the old or the new content, also after a crash.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), BackupError> {
    let wrap = || state_error(format!("writing `{}`", path.display()));
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut temp = tempfile::NamedTempFile::new_in(dir).map_err(wrap())?;
    temp.write_all(bytes).map_err(wrap())?;
    temp.as_file().sync_all().map_err(wrap())?;
    temp.persist(path).map_err(|e| wrap()(e.error))?;
    crate::keep_aside::sync_dir(dir).map_err(wrap())
}

/// This boot of the host, or empty where the system does not tell.
#[must_use]
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|s| s.trim().to_owned()).unwrap_or_default()
}

/// The namespace in which this process's id has a meaning; empty where the system does not tell.
#[must_use]
pub fn pid_namespace() -> String {
    fs::read_link("/proc/self/ns/pid").map(|p| p.display().to_string()).unwrap_or_default()
}

/// Whether a process of this namespace lives. Errs on the side of "yes".
pub(crate) fn process_lives(pid: u32) -> bool {
    let known = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    known.is_none_or(|pid| !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH)))
}

impl StateDir {
    /// Opens the state directory; creates it if it is missing.
    ///
    /// # Errors
    /// [`BackupError::State`].
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, BackupError> {
        let root = root.into();
        make_dir(&root)?;
        let root = root.canonicalize().map_err(state_error(format!("resolving `{}`", root.display())))?;
        for sub in ["locks", "runs", "restores", "cache"] {
            make_dir(&root.join(sub))?;
        }
        Ok(Self { root })
    }

    /// Where it is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A folder for caches of one store; may be deleted at any time.
    ///
    /// # Errors
    /// [`BackupError::State`].
    pub fn cache(&self, store_id: &str) -> Result<PathBuf, BackupError> {
        let dir = self.root.join("cache").join(store_id);
        make_dir(&dir)?;
        Ok(dir)
    }

    /// Registers a run as living.
    ///
    /// # Errors
    /// [`BackupError::State`].
    pub fn begin_run(&self, run: &RunId) -> Result<RunGuard, BackupError> {
        let runs = self.root.join("runs");
        let (dir, lock_path) = (runs.join(run.as_str()), runs.join(format!("{run}.lock")));
        loop {
            let lock = open_lock(&lock_path)?;
            if !try_lock(&lock, &lock_path)? {
                return Err(BackupError::Refused(format!("run {run} is at work already")));
            }
            if is_current(&lock, &lock_path) {
                make_dir(&dir)?;
                return Ok(RunGuard::new(dir, lock_path, lock));
            }
        }
    }

    /// Runs that ended without tidying up. Their lock is held while the returned guards live, so that two processes do
    /// not reclaim the same run; dropping a guard removes what the run left in the state directory.
    ///
    /// # Errors
    /// [`BackupError::State`].
    pub fn dead_runs(&self) -> Result<Vec<(RunId, RunGuard)>, BackupError> {
        let runs = self.root.join("runs");
        let mut dead = Vec::new();
        for entry in fs::read_dir(&runs).map_err(state_error(format!("listing `{}`", runs.display())))? {
            let entry = entry.map_err(state_error(format!("listing `{}`", runs.display())))?;
            let name = entry.file_name();
            let run = name.to_str().and_then(|n| n.strip_suffix(".lock")?.parse::<RunId>().ok());
            let Some(run) = run else { continue };
            let (dir, lock_path) = (runs.join(run.as_str()), entry.path());
            // A run that just ended took its lock file along.
            let Ok(lock) = fs::OpenOptions::new().read(true).write(true).open(&lock_path) else { continue };
            if try_lock(&lock, &lock_path)? && is_current(&lock, &lock_path) {
                dead.push((run, RunGuard::new(dir, lock_path, lock)));
            }
        }
        Ok(dead)
    }

    /// Whether a run lives. Takes nothing from it, and reclaims nothing.
    ///
    /// # Errors
    /// [`BackupError::State`].
    pub fn run_lives(&self, run: &RunId) -> Result<bool, BackupError> {
        let path = self.root.join("runs").join(format!("{run}.lock"));
        let lock = match File::open(&path) {
            Ok(lock) => lock,
            // It took its lock file along.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(state_error(format!("opening `{}`", path.display()))(e)),
        };
        // Shared, so that two who look do not take each other for the run; closed at once.
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(e) => Err(state_error(format!("looking at `{}`", path.display()))(e.into())),
        }
    }

    /// Takes the lock of `service`, waiting at most `patience` for another process. A dead process holds nothing.
    ///
    /// # Errors
    /// [`BackupError::Busy`] names the holder; [`BackupError::Cancelled`].
    pub async fn lock(
        &self,
        service: &ServiceName,
        me: &LockHolder,
        patience: Duration,
        cancel: &CancellationToken,
        events: &dyn EventSink,
    ) -> Result<ServiceLock, BackupError> {
        let path = self.root.join("locks").join(format!("{service}.lock"));
        let until = Instant::now() + patience;
        let mut told = false;
        let mut file = open_lock(&path)?;
        while !try_lock(&file, &path)? {
            let holder = read_holder(&path);
            if Instant::now() >= until {
                return Err(BackupError::Busy { service: service.clone(), holder });
            }
            if !told {
                events.emit(Event::Waiting { service: service.clone(), holder });
                told = true;
            }
            tokio::select! {
                () = cancel.cancelled() => return Err(BackupError::Cancelled),
                () = tokio::time::sleep(LOCK_POLL) => {}
            }
        }
        let text = serde_json::to_vec(me).map_err(|e| state_error("describing the lock")(e.into()))?;
        file.set_len(0)
            .and_then(|()| file.write_all(&text))
            .map_err(state_error(format!("writing `{}`", path.display())))?;
        Ok(ServiceLock { _file: file })
    }
}

fn read_holder(path: &Path) -> String {
    fs::read(path)
        .ok()
        .and_then(|b| serde_json::from_slice::<LockHolder>(&b).ok())
        .map_or_else(|| "another process holds its lock".to_owned(), |h| h.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::NoEvents;

    fn holder() -> LockHolder {
        let since = DateTime::from_timestamp(0, 0).unwrap();
        LockHolder {
            verb: "run".into(),
            run_id: RunId::generate(since),
            pid: std::process::id(),
            boot_id: boot_id(),
            since,
        }
    }

    #[tokio::test]
    async fn a_held_lock_names_its_holder_and_a_dropped_one_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let service = ServiceName::new("redis").unwrap();
        let cancel = CancellationToken::new();
        let me = holder();
        let first = state.lock(&service, &me, Duration::ZERO, &cancel, &NoEvents).await.unwrap();
        let error = state
            .lock(&service, &holder(), Duration::from_millis(150), &cancel, &NoEvents)
            .await
            .unwrap_err();
        assert!(error.to_string().contains(&format!("run {}", me.run_id)), "{error}");
        drop(first);
        state.lock(&service, &holder(), Duration::ZERO, &cancel, &NoEvents).await.unwrap();
    }

    #[tokio::test]
    async fn a_lock_is_taken_over_when_its_holder_lets_go_within_the_patience() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let service = ServiceName::new("redis").unwrap();
        let cancel = CancellationToken::new();
        let (me, other) = (holder(), holder());
        let first = state.lock(&service, &me, Duration::ZERO, &cancel, &NoEvents).await.unwrap();
        let second = state.lock(&service, &other, Duration::from_secs(60), &cancel, &NoEvents);
        let release = async {
            tokio::task::yield_now().await;
            drop(first);
        };
        let (second, ()) = tokio::join!(second, release);
        second.unwrap();
    }

    #[test]
    fn only_dead_runs_are_reclaimed_and_their_spool_goes() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let now = DateTime::from_timestamp(0, 0).unwrap();
        let (alive, dead) = (RunId::generate(now), RunId::generate(now));
        let _guard = state.begin_run(&alive).unwrap();
        let killed = state.begin_run(&dead).unwrap();
        let spool = killed.spool(&ServiceName::new("redis").unwrap()).unwrap();
        // As after a SIGKILL: the lock is gone, the files are not.
        rustix::fs::flock(&killed._lock, FlockOperation::Unlock).unwrap();
        std::mem::forget(killed);
        assert!(state.run_lives(&alive).unwrap() && !state.run_lives(&dead).unwrap());
        assert!(!state.run_lives(&RunId::generate(now)).unwrap(), "it ended long ago");
        let found = state.dead_runs().unwrap();
        assert_eq!(found.iter().map(|(r, _)| r.clone()).collect::<Vec<_>>(), [dead]);
        assert!(spool.exists());
        drop(found);
        assert!(!spool.exists());
        assert!(state.dead_runs().unwrap().is_empty());
        // One that was killed before it had a folder.
        fs::write(dir.path().join("runs").join(format!("{}.lock", RunId::generate(now))), "").unwrap();
        assert_eq!(state.dead_runs().unwrap().len(), 1);
        assert_eq!(state.dead_runs().unwrap().len(), 0, "and it is gone");
    }

    #[test]
    fn the_process_check_errs_on_the_side_of_life() {
        assert!(process_lives(std::process::id()));
        assert!(process_lives(0));
        assert!(!process_lives(0x3fff_fff0));
    }
}
