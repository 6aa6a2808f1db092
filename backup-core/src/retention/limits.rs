//! Limits: what they remove, they remove from the old end; the newest backup stays.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::{Candidate, RetentionPolicy, Verdict};
use crate::error::ConfigError;

/// Lets go of what is older than a certain age. The newest one stays at any age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeleteOlderThan(Duration);

impl DeleteOlderThan {
    /// Keeps what is at most `age` old.
    ///
    /// # Errors
    /// [`ConfigError`] for an age of zero, which would keep nothing.
    pub fn new(age: Duration) -> Result<Self, ConfigError> {
        if age.is_zero() {
            return Err(ConfigError::new("an age of zero keeps nothing"));
        }
        Ok(Self(age))
    }
}

impl RetentionPolicy for DeleteOlderThan {
    fn evaluate(&self, newest_first: &[Candidate], now: DateTime<Utc>) -> Vec<Verdict> {
        let text = humantime::format_duration(self.0).to_string();
        let oldest_allowed = TimeDelta::from_std(self.0).unwrap_or(TimeDelta::MAX);
        let judge = |(position, candidate): (usize, &Candidate)| {
            // A backup from the future is as old as one from just now.
            let age = now.signed_duration_since(candidate.timestamp.time()).max(TimeDelta::zero());
            if age <= oldest_allowed {
                Verdict::Keep(format!("not older than {text}").into())
            } else if position == 0 {
                Verdict::Keep("newest".into())
            } else {
                Verdict::Delete(format!("older than {text}").into())
            }
        };
        newest_first.iter().enumerate().map(judge).collect()
    }
}

/// Lets go of the oldest ones until all together are no larger than so many stored bytes. The newest one stays at any
/// size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxTotalBytes(u64);

impl MaxTotalBytes {
    /// Keeps at most `bytes`.
    ///
    /// # Errors
    /// [`ConfigError`] for zero bytes, which would keep nothing.
    pub fn new(bytes: u64) -> Result<Self, ConfigError> {
        if bytes == 0 {
            return Err(ConfigError::new("a total of zero bytes keeps nothing"));
        }
        Ok(Self(bytes))
    }
}

impl RetentionPolicy for MaxTotalBytes {
    fn evaluate(&self, newest_first: &[Candidate], _: DateTime<Utc>) -> Vec<Verdict> {
        let text = bytesize::ByteSize::b(self.0).display().si().to_string();
        let mut total = 0_u64;
        newest_first
            .iter()
            .enumerate()
            .map(|(position, candidate)| {
                // Summed up even where it is too much: a small old one must not outlive a large newer one.
                total = total.saturating_add(candidate.size_bytes);
                if total <= self.0 {
                    Verdict::Keep(format!("within {text} in all").into())
                } else if position == 0 {
                    Verdict::Keep("newest".into())
                } else {
                    Verdict::Delete(format!("more than {text} in all").into())
                }
            })
            .collect()
    }
}
