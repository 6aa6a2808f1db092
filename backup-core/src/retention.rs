//! Which backups to keep. Policies are pure; the floors are not theirs to break.
//!
//! ```
//! use backup_core::retention::{EntryState, KeepLast, PlanEntry, PlanOptions, Policy, RetentionPlan};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let policy = Policy::keeping(KeepLast::new(2)?);
//! let entries: Vec<PlanEntry> = ["redis/15min/20260309_040000", "redis/15min/20260309_041500", "redis/15min/20260309_043000"]
//!     .iter()
//!     .map(|id| Ok(PlanEntry::new(id.parse()?, 1_000, EntryState::Good)))
//!     .collect::<Result<_, backup_core::InvalidId>>()?;
//! let now = "2026-03-09T04:31:00Z".parse()?;
//!
//! let plan = RetentionPlan::compute(&policy, &entries, PlanOptions::complete_listing(), now);
//! let gone: Vec<_> = plan.deletions().map(|item| (item.id.to_string(), item.reason.as_str())).collect();
//! assert_eq!(gone, [("redis/15min/20260309_040000".to_owned(), "beyond the last 2")]);
//! # Ok(())
//! # }
//! ```

use std::borrow::Cow;
use std::fmt;

use chrono::{DateTime, Utc};

use crate::id::Timestamp;

mod ladder;
mod limits;
mod plan;
mod policy;

pub use ladder::Ladder;
pub use limits::{DeleteOlderThan, MaxTotalBytes};
pub use plan::{Decision, EntryState, PlanEntry, PlanItem, PlanOptions, RetentionPlan};
pub use policy::{KeepAll, KeepLast, Policy};

/// Decides which good backups of **one** service and interval to keep. Pure: no I/O, no clock, same input, same output.
///
/// `newest_first` are good backups, newest first (with one exception: to judge a suspect, damaged or legacy backup the
/// plan asks again with that one among the good ones, and uses the answer for that one only). Returns one verdict for
/// each, in the same order. Times are UTC; ages are clamped at zero, because clocks go backwards. The policy may say
/// what it likes: the floors in [`RetentionPlan`] keep what must never go.
pub trait RetentionPolicy: fmt::Debug + Send + Sync {
    /// The verdicts.
    fn evaluate(&self, newest_first: &[Candidate], now: DateTime<Utc>) -> Vec<Verdict>;
}

/// What a policy knows of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its moment.
    pub timestamp: Timestamp,
    /// Its stored size in bytes.
    pub size_bytes: u64,
}

/// Keep or delete, with the reason that people are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Keep it.
    Keep(Cow<'static, str>),
    /// It may go.
    Delete(Cow<'static, str>),
}

impl Verdict {
    /// Whether it is to be kept.
    #[must_use]
    pub fn is_keep(&self) -> bool {
        matches!(self, Self::Keep(_))
    }

    /// Why.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Keep(reason) | Self::Delete(reason) => reason,
        }
    }
}
