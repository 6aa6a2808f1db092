//! Which backups to keep. Policies are pure; the floors are not theirs to break.

use std::borrow::Cow;
use std::fmt;

use chrono::{DateTime, Utc};

use crate::id::Timestamp;

/// Decides which good backups of **one** service and interval to keep. Pure: no I/O, no clock, same input, same output.
///
/// `newest_first` are good backups only, newest first. Returns one verdict for each, in the same order. Times are UTC;
/// ages are clamped at zero, because clocks go backwards. The policy may say what it likes: the floors in
/// [`RetentionPlan`] keep what must never go.
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
