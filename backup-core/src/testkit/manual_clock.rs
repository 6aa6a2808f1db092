//! A clock that a test sets.

use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};

use crate::clock::Clock;
use crate::id::Timestamp;

/// A clock that stands still until a test moves it, in either direction. Clones show the same time.
#[derive(Debug, Clone)]
pub struct ManualClock {
    now: Arc<Mutex<DateTime<Utc>>>,
}

impl ManualClock {
    /// A clock that shows `now`.
    #[must_use]
    pub fn new(now: DateTime<Utc>) -> Self {
        Self { now: Arc::new(Mutex::new(now)) }
    }

    /// A clock that shows a moment written `YYYYMMDD_HHMMSS`.
    ///
    /// # Panics
    /// When `now` is written otherwise.
    #[must_use]
    pub fn at(now: &str) -> Self {
        Self::new(now.parse::<Timestamp>().expect("YYYYMMDD_HHMMSS").time())
    }

    /// Shows another time.
    pub fn set(&self, now: DateTime<Utc>) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Moves the clock: forwards, or backwards by a negative step.
    pub fn advance(&self, step: TimeDelta) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) += step;
    }

    /// Moves the clock forwards by whole seconds, or backwards by a negative number.
    pub fn advance_secs(&self, seconds: i64) {
        self.advance(TimeDelta::seconds(seconds));
    }
}

impl Clock for ManualClock {
    fn now(&self) -> DateTime<Utc> {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_moves_both_ways_and_clones_follow() {
        let clock = ManualClock::at("20260309_043820");
        let other = clock.clone();
        let before = clock.now();
        clock.advance_secs(-5);
        assert_eq!(other.now(), before - TimeDelta::seconds(5));
    }
}
