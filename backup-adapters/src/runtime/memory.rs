//! The memory that a test restore may take: what is left over, and no more. Production runs beside it.

use backup_core::{AdapterError, AdapterErrorKind};

/// Memory that a test restore needs, and why that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    /// How much.
    pub(crate) bytes: u64,
    /// Who says so.
    pub(crate) why: &'static str,
    /// It is also the most that it may take.
    pub(crate) limits: bool,
}

/// The most memory that the test restore of `service` may take, in bytes; `None` if nobody knows how much there is.
///
/// # Errors
/// `NoSpace` if there is less than it needs.
pub(crate) fn bounded(
    service: &str,
    need: Option<Need>,
    available: Option<u64>,
) -> Result<Option<u64>, AdapterError> {
    if let (Some(need), Some(available)) = (need, available)
        && need.bytes > available
    {
        let what = format!(
            "the test restore of `{service}` needs about {} of memory ({}), {} are available: free some, or run it elsewhere",
            shown(need.bytes),
            need.why,
            shown(available)
        );
        return Err(AdapterError::new(AdapterErrorKind::NoSpace, what));
    }
    Ok(match need {
        Some(need) if need.limits => Some(need.bytes),
        // An eighth stays for everybody else.
        _ => available.map(|bytes| bytes - bytes / 8),
    })
}

fn shown(bytes: u64) -> String {
    // No need to be exact.
    #[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
    let gigabytes = bytes as f64 / 1e9;
    format!("{gigabytes:.1} GB")
}

/// What this host can give now, in bytes.
pub(crate) async fn available() -> Option<u64> {
    of_meminfo(&tokio::fs::read_to_string("/proc/meminfo").await.ok()?)
}

fn of_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(bytes: u64, limits: bool) -> Option<Need> {
        Some(Need { bytes, why: "the service's container has that", limits })
    }

    #[test]
    fn what_does_not_fit_is_refused_in_one_line() {
        let e = bounded("neo4j", need(4_200_000_000, true), Some(1_100_000_000)).unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::NoSpace);
        let expected = "the test restore of `neo4j` needs about 4.2 GB of memory (the service's container has that), 1.1 GB are \
                        available: free some, or run it elsewhere";
        assert_eq!(e.to_string(), expected);
    }

    #[test]
    fn what_fits_is_bounded() {
        assert_eq!(bounded("s", need(100, true), Some(800)).unwrap(), Some(100));
        assert_eq!(bounded("s", need(100, false), Some(800)).unwrap(), Some(700));
        // Nothing known is no reason to refuse.
        assert_eq!(bounded("s", None, Some(800)).unwrap(), Some(700));
        assert_eq!(bounded("s", need(100, true), None).unwrap(), Some(100));
        assert_eq!(bounded("s", need(100, false), None).unwrap(), None);
    }

    #[test]
    fn available_memory_is_read() {
        let text = "MemTotal:       24684148 kB\nMemFree:         1 kB\nMemAvailable:   21645588 kB\n";
        assert_eq!(of_meminfo(text), Some(21_645_588 * 1024));
        assert_eq!(of_meminfo("MemTotal: 1 kB\n"), None);
    }
}
