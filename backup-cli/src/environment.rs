//! The one place that reads the process's environment.

use std::path::PathBuf;

use backup_core::Clock;
#[cfg(not(any(debug_assertions, feature = "test-clock")))]
use backup_core::SystemClock;

use crate::error::CliError;

/// A variable; `None` if it is unset, empty or not UTF-8.
#[expect(clippy::disallowed_methods, reason = "the binary may read the environment, here and nowhere else")]
pub(crate) fn var(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A variable that holds a path; `None` if it is unset or empty.
pub(crate) fn path(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The directory that the program was started in.
pub(crate) fn current_dir() -> Result<PathBuf, CliError> {
    std::env::current_dir().map_err(|e| CliError::failed("the current directory cannot be found").because(&e))
}

/// Where the host's state lives if the configuration does not say: `/var/lib/backup` for root, else as the XDG base
/// directory specification has it.
pub(crate) fn default_state_dir() -> Result<PathBuf, CliError> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/backup"));
    }
    // The specification: relative paths in these variables are to be ignored.
    let absolute = |name| path(name).filter(|p| p.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("backup"))
        .ok_or_else(|| {
            CliError::usage("there is no place for the state directory: HOME is not set")
                .hint("set `state_dir` in the configuration")
        })
}

/// The clock of this process.
#[cfg(not(any(debug_assertions, feature = "test-clock")))]
pub(crate) fn clock() -> Result<std::sync::Arc<dyn Clock>, CliError> {
    Ok(std::sync::Arc::new(SystemClock))
}

/// The clock of this process; a fixed one if BACKUP_TEST_NOW is set.
#[cfg(any(debug_assertions, feature = "test-clock"))]
pub(crate) fn clock() -> Result<std::sync::Arc<dyn Clock>, CliError> {
    test_clock::from_environment()
}

#[cfg(any(debug_assertions, feature = "test-clock"))]
mod test_clock {
    use std::sync::Arc;

    use backup_core::{Clock, SystemClock};
    use chrono::{DateTime, Utc};

    use super::{CliError, var};

    #[derive(Debug)]
    struct Fixed(DateTime<Utc>);

    impl Clock for Fixed {
        fn now(&self) -> DateTime<Utc> {
            self.0
        }
    }

    pub(super) fn from_environment() -> Result<Arc<dyn Clock>, CliError> {
        let Some(text) = var("BACKUP_TEST_NOW") else { return Ok(Arc::new(SystemClock)) };
        let now = DateTime::parse_from_rfc3339(&text)
            .map_err(|e| CliError::usage("BACKUP_TEST_NOW is not RFC 3339").because(&e))?;
        Ok(Arc::new(Fixed(now.to_utc())))
    }
}
