//! Signals: the first one asks the verb to end in order, the second one ends the program.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::ui::Ui;

/// Connects signals with the verb at work.
#[derive(Debug, Default)]
pub(crate) struct Interrupt {
    token: CancellationToken,
    graceful: AtomicBool,
}

impl Interrupt {
    /// The token for work that must end in order. Until a verb asks for it, a signal ends the program at once.
    pub(crate) fn graceful(&self) -> CancellationToken {
        self.graceful.store(true, Ordering::SeqCst);
        self.token.clone()
    }

    /// Whether a signal came.
    pub(crate) fn happened(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Returns when the program is to end now, whatever it is doing.
    pub(crate) async fn watch(&self, ui: &Ui) -> io::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = if hangup_is_ignored() { None } else { Some(signal(SignalKind::hangup())?) };
        loop {
            let hung_up = async {
                match &mut hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hung_up => {}
            }
            let second = self.token.is_cancelled();
            self.token.cancel();
            if second || !self.graceful.load(Ordering::SeqCst) {
                return Ok(());
            }
            ui.warn("stopping: waiting for the service to be left as it was (again to quit at once)");
        }
    }
}

/// Whether `nohup` or the like wants this process to outlive its terminal: a handler of ours would undo that.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:")).map(str::trim);
    // Bit n - 1 stands for signal n; SIGHUP is 1.
    mask.and_then(|m| u64::from_str_radix(m, 16).ok()).is_some_and(|m| m & 1 == 1)
}
