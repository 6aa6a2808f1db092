//! Waiting for another second of the server's clock, where it must be waited for.
//!
//! The server names the logs of its vector indexes by the second, and a backup begins new ones and leaves those out: so the
//! vectors of an index that was made or loaded in the same second are not in it, and their objects are never found by vector
//! again (seen with 1.35). What is to be in the backup is in logs of earlier seconds.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backup_core::{AdapterError, OpContext};
use tokio::time::{Instant, sleep_until};

use crate::on_disk::blocking;
use crate::runtime::DockerRuntime;
use crate::weaviate::live;
use crate::weaviate::server::Server;

/// Longer than a second, where the server's clock is not this host's.
const SECOND: Duration = Duration::from_millis(1200);

/// How far beyond the end of a second the clock is waited for, where it is this host's.
const MARGIN: Duration = Duration::from_millis(100);

/// How long logs are looked for: with very many tenants it is waited instead.
const LOOK: Duration = Duration::from_millis(100);

/// What the folder of an index's logs is called.
const LOGS: &str = ".hnsw.commitlog.d";

/// Waits until everything that is there now was begun in an earlier second.
///
/// # Errors
/// `Cancelled`, `Timeout`.
pub(super) async fn over(server: &Server, cx: &OpContext) -> Result<(), AdapterError> {
    let (began, now) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    let same_clock = server.container.as_ref().is_some_and(DockerRuntime::shares_files);
    if same_clock && let Ok((data, _)) = live::folders(server, cx).await {
        let young = blocking(move || Ok(begun_since(&data, now.as_secs()).unwrap_or(true))).await?;
        if !young {
            return Ok(());
        }
    }
    let wait = match same_clock {
        true => Duration::from_secs(1) - Duration::from_nanos(now.subsec_nanos().into()) + MARGIN,
        false => SECOND,
    };
    cx.within(sleep_until(began + wait)).await
}

/// Whether a log in `data` was begun in the second `since` (Unix) or later, or this cannot be told soon enough.
fn begun_since(data: &Path, since: u64) -> io::Result<bool> {
    let until = std::time::Instant::now() + LOOK;
    let mut indexes = 0;
    for class in folders(data)? {
        for shard in folders(&class)? {
            for logs in folders(&shard)? {
                if !logs.file_name().is_some_and(|n| n.to_string_lossy().ends_with(LOGS)) {
                    continue;
                }
                indexes += 1;
                for log in fs::read_dir(&logs)? {
                    let name = log?.file_name();
                    let name = name.to_string_lossy();
                    let digits = name.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
                    if digits.parse().map_or(true, |second: u64| second >= since) {
                        return Ok(true);
                    }
                }
            }
            if std::time::Instant::now() > until {
                return Ok(true);
            }
        }
    }
    // Data that is laid out in another way tells nothing.
    Ok(indexes == 0)
}

fn folders(of: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(of)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_of_this_second_is_waited_for_and_older_ones_are_not() {
        let data = tempfile::tempdir().unwrap();
        let begun = |since| begun_since(data.path(), since).unwrap();
        assert!(begun(100), "nothing is known of such a layout");
        let logs = data.path().join("doc/shard/main.hnsw.commitlog.d");
        fs::create_dir_all(&logs).unwrap();
        fs::write(data.path().join("schema.db"), "").unwrap();
        fs::create_dir_all(data.path().join("raft/snapshots")).unwrap();
        fs::write(logs.join("98.condensed"), "").unwrap();
        fs::write(logs.join("99"), "").unwrap();
        assert!(!begun(100));
        fs::write(logs.join("100"), "").unwrap();
        assert!(begun(100));
        assert!(!begun(101));
        fs::write(logs.join("odd"), "").unwrap();
        assert!(begun(101), "an unknown name is not known to be old");
    }

    #[test]
    fn vectors_with_names_have_logs_too() {
        let data = tempfile::tempdir().unwrap();
        let logs = data.path().join("doc/shard/vectors_title.hnsw.commitlog.d");
        fs::create_dir_all(&logs).unwrap();
        fs::write(logs.join("100"), "").unwrap();
        assert!(begun_since(data.path(), 100).unwrap());
    }
}
