//! Which way of capturing, and what each costs the service.

use std::fmt;
use std::time::Duration;

use backup_core::{AdapterError, AdapterErrorKind, Consistency};
use serde::Deserialize;

/// How the data is captured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum CaptureMode {
    /// `clone` where the file system can, else the first of the others that fits `max_interruption`.
    #[default]
    Auto,
    /// Paused for as long as it takes to clone its files, which are read later.
    Clone,
    /// Stopped while `neo4j-admin` dumps every database.
    StopDump,
    /// Stopped while its files are copied.
    StopCopy,
    /// Paused while its files are copied.
    PauseCopy,
    /// Neither: its files are copied while it works on them, and the copy is proven before it counts. Experimental.
    Online,
}

impl CaptureMode {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Clone => "clone",
            Self::StopDump => "stop-dump",
            Self::StopCopy => "stop-copy",
            Self::PauseCopy => "pause-copy",
            Self::Online => "online",
        }
    }

    pub(super) fn consistency(self) -> Consistency {
        match self {
            Self::StopDump => Consistency::Dump,
            Self::StopCopy => Consistency::Quiesced,
            Self::Online => Consistency::OnlineUnverified,
            _ => Consistency::CrashConsistent,
        }
    }

    /// How long the service will probably be interrupted for `bytes` of data. Rates are those of a slow disk.
    fn expected(self, bytes: u64) -> Duration {
        let at = |rate: u64| Duration::from_millis(bytes / (rate / 1000));
        // A clean stop takes 10 s, and a start until it answers as long or longer.
        let restart = Duration::from_secs(30);
        match self {
            Self::Auto | Self::Clone => Duration::from_millis(500),
            Self::StopDump => restart + Duration::from_secs(10) + at(50_000_000),
            Self::StopCopy => restart + at(150_000_000),
            Self::PauseCopy => Duration::from_millis(500) + at(150_000_000),
            Self::Online => Duration::ZERO,
        }
    }
}

impl fmt::Display for CaptureMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Chooses for `auto`. `no_clone` says why files cannot be cloned, if they cannot.
///
/// # Errors
/// `Conflict` that names the choices with what each would cost, if none fits.
pub(super) fn choose(
    bytes: u64,
    limit: Duration,
    no_clone: Option<&str>,
) -> Result<CaptureMode, AdapterError> {
    let others = [CaptureMode::StopDump, CaptureMode::StopCopy, CaptureMode::PauseCopy];
    let clone = Some(CaptureMode::Clone).filter(|_| no_clone.is_none());
    let fits = |mode: &CaptureMode| mode.expected(bytes) <= limit;
    if let Some(mode) = clone.into_iter().chain(others).find(fits) {
        return Ok(mode);
    }
    let cost = |mode: &CaptureMode| format!("`{mode}` about {}", seconds(mode.expected(bytes)));
    let costs: Vec<String> = clone.iter().chain(&others).map(cost).collect();
    let why = no_clone.map(|why| format!("{why}; ")).unwrap_or_default();
    Err(AdapterError::new(
        AdapterErrorKind::Conflict,
        format!(
            "no way to capture {} MiB interrupts Neo4j for at most {} (`max_interruption`): {why}{}; name one with \
             `capture`, or raise `max_interruption`",
            bytes >> 20,
            seconds(limit),
            costs.join(", ")
        ),
    ))
}

fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(10) {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} s", time.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_what_fits_and_else_names_the_choices() {
        let limit = Duration::from_secs(5);
        assert_eq!(choose(27 << 30, limit, None).unwrap(), CaptureMode::Clone);
        assert_eq!(choose(1 << 20, limit, Some("no reflinks")).unwrap(), CaptureMode::PauseCopy);
        assert_eq!(choose(1 << 20, Duration::from_secs(60), Some("no")).unwrap(), CaptureMode::StopDump);
        let e = choose(27 << 30, limit, Some("ext4 cannot clone")).unwrap_err();
        let text = e.to_string();
        for part in [
            "ext4 cannot clone",
            "`stop-dump` about 619 s",
            "`stop-copy` about",
            "`pause-copy` about",
            "5.0 s",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("`clone`") && !text.contains("`online`"), "{text}");
    }
}
