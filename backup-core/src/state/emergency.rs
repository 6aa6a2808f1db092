//! A host that is about to go away: nothing new begins, and what is at work makes room.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal};
use tokio::time::Instant;

use super::{LOCK_POLL, LockHolder, StateDir, boot_id, open_lock, state_error, try_lock};
use crate::error::BackupError;

/// When a process that was asked to end is asked again, which makes it end at once, and when it is killed. It has five
/// seconds in all.
const AGAIN: Duration = Duration::from_millis(2500);
const KILL: Duration = Duration::from_millis(4200);
const GIVE_UP: Duration = Duration::from_secs(5);

/// These put a service's data in place or back: killing one of them would leave the service without any, and what it
/// restores is backed up already.
const RESTORING: [&str; 4] = ["restore", "recover", "undo", "resume"];

/// The host is about to go away: while this exists (and its process lives), other processes begin nothing.
#[derive(Debug)]
pub struct Emergency {
    _lock: File,
}

/// A lock that another process holds.
#[derive(Debug)]
struct Held {
    lock: File,
    path: std::path::PathBuf,
    holder: LockHolder,
}

impl Held {
    /// Whether it is free by now.
    fn is_over(&self) -> bool {
        let free = rustix::fs::flock(&self.lock, FlockOperation::NonBlockingLockShared).is_ok();
        if free {
            let _freed = rustix::fs::flock(&self.lock, FlockOperation::Unlock);
        }
        free
    }

    /// Signals its process, if that is the one: a holder that has just begun may not have written down who it is.
    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.holder.pid).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid
            && self.holder.boot_id == boot_id()
            && self.holder.pid != std::process::id()
            && has_open(self.holder.pid, &self.path)
            && let Err(error) = rustix::process::kill_process(pid, signal)
        {
            tracing::debug!(%error, holder = %self.holder, "A process could not be signalled.");
        }
    }
}

/// Whether a process has this file open.
fn has_open(pid: u32, path: &Path) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    open.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == path))
}

impl StateDir {
    /// Says that the host is about to go away.
    ///
    /// # Errors
    /// [`BackupError::Refused`] if another process has said so and is at it; [`BackupError::State`].
    pub fn begin_emergency(&self) -> Result<Emergency, BackupError> {
        let path = self.root.join("emergency.lock");
        let lock = open_lock(&path)?;
        match try_lock(&lock, &path)? {
            true => Ok(Emergency { _lock: lock }),
            false => Err(BackupError::Refused(
                "another process is saving what can be saved from this host: leave it alone".to_owned(),
            )),
        }
    }

    /// Whether a process says that the host is about to go away.
    ///
    /// # Errors
    /// [`BackupError::State`].
    pub fn in_emergency(&self) -> Result<bool, BackupError> {
        let path = self.root.join("emergency.lock");
        let lock = match File::open(&path) {
            Ok(lock) => lock,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(state_error(format!("opening `{}`", path.display()))(e)),
        };
        // Shared, so that two who look do not take each other for it; closed at once.
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(e) => Err(state_error(format!("looking at `{}`", path.display()))(e.into())),
        }
    }

    /// Ends what other processes of this program do, but for restores: asks them twice, then kills them, all within five
    /// seconds. Returns a line for each.
    ///
    /// # Errors
    /// [`BackupError::State`] if the locks cannot be read.
    pub async fn end_others(&self) -> Result<Vec<String>, BackupError> {
        let mut held = self.held_by_others()?;
        let lines = held.iter().map(|h| format!("ended what was at work: {}", h.holder)).collect();
        let began = Instant::now();
        held.iter().for_each(|h| h.signal(Signal::TERM));
        let (mut again, mut killed) = (false, false);
        loop {
            held.retain(|h| !h.is_over());
            let passed = began.elapsed();
            if held.is_empty() || passed >= GIVE_UP {
                return Ok(lines);
            }
            if passed >= AGAIN && !again {
                again = true;
                held.iter().for_each(|h| h.signal(Signal::TERM));
            }
            if passed >= KILL && !killed {
                killed = true;
                held.iter().for_each(|h| h.signal(Signal::KILL));
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    fn held_by_others(&self) -> Result<Vec<Held>, BackupError> {
        let dir = self.root.join("locks");
        let wrap = || state_error(format!("listing `{}`", dir.display()));
        let mut held = Vec::new();
        for entry in fs::read_dir(&dir).map_err(wrap())? {
            let path = entry.map_err(wrap())?.path();
            let (Ok(lock), Ok(text)) = (File::open(&path), fs::read(&path)) else { continue };
            let Ok(holder) = serde_json::from_slice::<LockHolder>(&text) else { continue };
            let one = Held { lock, path, holder };
            let ours = one.holder.pid == std::process::id();
            if !ours && !RESTORING.contains(&one.holder.verb.as_str()) && !one.is_over() {
                held.push(one);
            }
        }
        Ok(held)
    }
}
