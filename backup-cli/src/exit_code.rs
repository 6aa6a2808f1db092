//! What the process's exit code says. Scripts rely on these numbers: they never change.

use backup_core::Outcome;
use backup_core::engine::{RunReport, StepReport};

/// Everything that was asked for was done.
pub const OK: u8 = 0;
/// It failed.
pub const FAILED: u8 = 1;
/// The command line or the configuration is wrong; nothing was begun.
pub const USAGE: u8 = 2;
/// Some services failed; the others are safe.
pub const PARTIAL: u8 = 3;
/// Nothing was selected: no service, no backup.
pub const NOTHING: u8 = 4;
/// A verification found damage.
pub const DAMAGED: u8 = 5;
/// A signal ended it early.
pub const INTERRUPTED: u8 = 130;

/// The code of a verb that worked on several services.
pub(crate) fn of_report(report: &RunReport) -> u8 {
    // A part of the stack that was started or stopped is no service that is safe; one that was not is one that is missing.
    let parts = || report.parts.iter().map(|p| p.outcome);
    // Nor is a service safe after a run only because its older backups are in another store.
    let own = report.steps.iter().any(|s| s.copies.is_none());
    let counts = |s: &&StepReport| s.copies.is_none() || !own || !s.is_ok();
    let steps = || report.steps.iter().filter(counts).map(|s| s.outcome);
    let outcomes = || steps().chain(parts().filter(|o| *o != Outcome::Ok));
    let verifies = matches!(report.verb.as_str(), "verify" | "drill");
    let (mut safe, mut bad) = (0, 0);
    for outcome in outcomes() {
        match outcome {
            Outcome::Ok | Outcome::Unchanged => safe += 1,
            Outcome::Skipped => {}
            // A suspect backup is stored, but nobody may rely on it yet.
            Outcome::Suspect | Outcome::Damaged | Outcome::Failed | Outcome::Cancelled => bad += 1,
        }
    }
    if outcomes().any(|o| o == Outcome::Cancelled) {
        INTERRUPTED
    } else if verifies && outcomes().any(|o| o == Outcome::Damaged) {
        DAMAGED
    } else {
        match (safe, bad) {
            (0, 0) if parts().any(|o| o == Outcome::Ok) => OK,
            (0, 0) => NOTHING,
            (_, 0) => OK,
            (0, _) => FAILED,
            _ => PARTIAL,
        }
    }
}

/// The list for `backup --help`.
pub(crate) const HELP: &str = "\
Exit codes:
    0  done
    1  failed
    2  wrong usage or configuration; nothing was begun
    3  some services failed, the others are safe
    4  nothing selected
    5  verification found damage
  130  interrupted";
