//! A child process with everything that it starts.

use std::process::ExitStatus;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Child;

/// The process group that a child leads. Killing the child alone would leave what it started behind.
///
/// A group's number may be used anew once its leader was waited for. So the leader is waited for under the same lock that
/// guards the kill.
#[derive(Debug)]
pub(super) struct Group(Mutex<Option<Pid>>);

impl Group {
    /// The group that `child` leads.
    pub(super) fn of(child: &Child) -> Self {
        Self(Mutex::new(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Pid>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills all of it, unless its leader is gone already.
    pub(super) fn kill(&self) {
        if let Some(group) = *self.lock()
            && let Err(error) = kill_process_group(group, Signal::KILL)
        {
            tracing::debug!(%error, "The processes of a program could not be killed.");
        }
    }

    /// As [`kill`](Self::kill), once and for all: for the last moment before the leader is handed to somebody else.
    pub(super) fn finish(&self) {
        self.kill();
        *self.lock() = None;
    }

    /// Waits for the leader to end.
    pub(super) async fn wait(&self, child: &mut Child) -> std::io::Result<ExitStatus> {
        let mut wait = std::pin::pin!(child.wait());
        std::future::poll_fn(|cx| {
            let mut group = self.lock();
            let polled = wait.as_mut().poll(cx);
            if let Poll::Ready(Ok(_)) = polled {
                *group = None;
            }
            polled
        })
        .await
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.finish();
    }
}
