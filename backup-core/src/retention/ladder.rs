//! The ladder of generations: grandfather, father, son.

use chrono::{DateTime, Datelike, Timelike, Utc};
use serde::{Deserialize, Serialize};

use super::{Candidate, RetentionPolicy, Verdict};
use crate::error::ConfigError;

/// Keeps the newest backup of each of the last so many hours, days, weeks, months and years, and the newest ones as such.
///
/// A backup is kept if any rung keeps it. Only periods that hold a backup count, so that a host that was off for a
/// month loses nothing; verdicts do not depend on the present time. All periods are UTC; weeks are those of ISO 8601
/// (Monday first; 29 December may belong to week 1 of the next year).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ladder {
    /// How many of the newest ones.
    pub latest: u32,
    /// How many hours.
    pub hourly: u32,
    /// How many days.
    pub daily: u32,
    /// How many ISO weeks.
    pub weekly: u32,
    /// How many months.
    pub monthly: u32,
    /// How many years.
    pub yearly: u32,
}

/// A period: equal for two moments exactly if both lie in it.
type Bucket = (i32, u32);

#[derive(Debug, Clone, Copy)]
enum Rung {
    Latest,
    Hourly,
    Daily,
    Weekly,
    Monthly,
    Yearly,
}

impl Rung {
    /// The period of this rung that holds `at`; `None` where every backup stands for itself.
    fn bucket(self, at: DateTime<Utc>) -> Option<Bucket> {
        match self {
            Self::Latest => None,
            Self::Hourly => Some((at.num_days_from_ce(), at.hour())),
            Self::Daily => Some((at.num_days_from_ce(), 0)),
            // The ISO week belongs to the ISO year: with the calendar year, 29 December 2025 (2026-W01) and
            // 5 January 2025 (2025-W01) would share a bucket.
            Self::Weekly => Some((at.iso_week().year(), at.iso_week().week())),
            Self::Monthly => Some((at.year(), at.month())),
            Self::Yearly => Some((at.year(), 0)),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Latest => "latest",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        }
    }
}

impl Ladder {
    /// Makes sure that the ladder keeps something.
    ///
    /// # Errors
    /// [`ConfigError`] if every rung is zero.
    pub fn checked(self) -> Result<Self, ConfigError> {
        if self == Self::default() {
            return Err(ConfigError::new("the ladder keeps nothing")
                .hint("set at least one of latest, hourly, daily, weekly, monthly, yearly to 1 or more"));
        }
        Ok(self)
    }

    fn rungs(self) -> [(Rung, u32); 6] {
        [
            (Rung::Latest, self.latest),
            (Rung::Hourly, self.hourly),
            (Rung::Daily, self.daily),
            (Rung::Weekly, self.weekly),
            (Rung::Monthly, self.monthly),
            (Rung::Yearly, self.yearly),
        ]
    }
}

impl RetentionPolicy for Ladder {
    fn evaluate(&self, newest_first: &[Candidate], _: DateTime<Utc>) -> Vec<Verdict> {
        let mut climbers = self.rungs().map(|(rung, limit)| Climber { rung, limit, used: 0, last: None });
        newest_first
            .iter()
            .map(|candidate| {
                let at = candidate.timestamp.time();
                let reasons: Vec<String> = climbers.iter_mut().filter_map(|c| c.take(at)).collect();
                if reasons.is_empty() {
                    Verdict::Delete("no rung of the ladder needs it".into())
                } else {
                    Verdict::Keep(reasons.join(", ").into())
                }
            })
            .collect()
    }
}

/// One rung while it walks from the newest backup to the oldest.
struct Climber {
    rung: Rung,
    limit: u32,
    used: u32,
    last: Option<Bucket>,
}

impl Climber {
    /// Takes the backup if it is the newest of its period and there is room, and says so.
    fn take(&mut self, at: DateTime<Utc>) -> Option<String> {
        let bucket = self.rung.bucket(at);
        if self.used == self.limit || (bucket.is_some() && bucket == self.last) {
            return None;
        }
        self.last = bucket;
        self.used += 1;
        Some(format!("{} {} of {}", self.rung.name(), self.used, self.limit))
    }
}
