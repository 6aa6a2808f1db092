//! Which dumps a server takes.

use backup_core::{AdapterError, AdapterErrorKind, Metadata, OpContext};

use super::facts::ServerFacts;
use super::{Flavor, Settings};

/// The major version in what a server says of itself, e.g. of `15.20 (Debian …)` or `15.2-YB-2025.1.0.0-b0`.
fn major(version: &str) -> Option<u32> {
    let end = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version.get(..end)?.parse().ok()
}

/// Without what its packagers add.
fn short(version: &str) -> &str {
    version.split_whitespace().next().unwrap_or_default()
}

/// Refuses dumps of a server of a newer major version: they say what an older one does not know. What the scripts before this
/// program wrote does not tell its version.
///
/// # Errors
/// `Conflict`, unless [`OpContext::force`]: the dump is loaded beside what is live, so that trying it harms nothing.
pub(super) fn refuse_newer(
    settings: &Settings,
    cx: &OpContext,
    backup: &Metadata,
    live: &ServerFacts,
) -> Result<(), AdapterError> {
    let (then, now) = (backup.service_version.as_deref().unwrap_or_default(), live.version.as_str());
    let (Some(has), Some(is)) = (major(then), major(now)) else { return Ok(()) };
    if has <= is || cx.force {
        return Ok(());
    }
    let (name, then, now) = (
        match settings.flavor {
            Flavor::Postgres => "PostgreSQL",
            Flavor::Yugabyte => "YSQL",
        },
        short(then),
        short(now),
    );
    let what = format!(
        "the backup is of {name} {then}, and the server is {now}: restore into version {has} or a newer one, or try it with \
         --force"
    );
    Err(AdapterError::new(AdapterErrorKind::Conflict, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_either_server_are_read() {
        let read = ["15.20 (Debian 15.20-0+deb12u1)", "16beta1", "11.2-YB-2.20.1.3-b0", "17", "", "devel"];
        assert_eq!(read.map(major), [Some(15), Some(16), Some(11), Some(17), None, None]);
        assert_eq!(read.map(short)[0], "15.20");
    }
}
