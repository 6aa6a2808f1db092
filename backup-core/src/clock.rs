//! Where the library gets the time from.

use std::fmt;

use chrono::{DateTime, Utc};

/// Tells the time. The library never asks the system itself, so that tests and callers decide.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The present moment. May go backwards, as real clocks do.
    fn now(&self) -> DateTime<Utc>;
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the system's clock")]
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }
}
