//! What the client programs say, as errors that tell what to do.

use backup_core::{AdapterError, AdapterErrorKind};

/// What a program said when it failed.
#[derive(Debug)]
pub(super) struct Failure {
    error: AdapterError,
    said: String,
}

/// Parts of messages, the kind of trouble they tell of, and what to do. The first that matches counts.
///
/// Messages of the server come in its own language (`lc_messages`): unknown ones keep their text.
const KNOWN: [(&str, AdapterErrorKind, &str); 32] = [
    ("password authentication failed", AdapterErrorKind::PermissionDenied, "check `user` and `password`"),
    ("no password supplied", AdapterErrorKind::PermissionDenied, "set `password`"),
    (
        "Peer authentication failed",
        AdapterErrorKind::PermissionDenied,
        "set `run_as` to the operating system's user of that name",
    ),
    (
        "no pg_hba.conf entry for replication",
        AdapterErrorKind::PermissionDenied,
        "allow the database `replication` for this role in pg_hba.conf",
    ),
    (
        "must be superuser or replication role",
        AdapterErrorKind::PermissionDenied,
        "grant it: `ALTER ROLE … REPLICATION`",
    ),
    (
        "permission denied to start WAL sender",
        AdapterErrorKind::PermissionDenied,
        "grant it: `ALTER ROLE … REPLICATION`",
    ),
    (
        "has already been removed",
        AdapterErrorKind::Other,
        "the server removed WAL that the backup needs: raise `wal_keep_size`",
    ),
    ("exceeds max_wal_senders", AdapterErrorKind::Unavailable, "raise `max_wal_senders`, or try again"),
    ("no pg_hba.conf entry", AdapterErrorKind::PermissionDenied, "allow this role in pg_hba.conf"),
    (
        "is not currently accepting connections",
        AdapterErrorKind::PermissionDenied,
        "open it: `ALTER DATABASE … ALLOW_CONNECTIONS true`",
    ),
    ("role \"", AdapterErrorKind::Other, ""),
    (
        "Snapshot too old",
        AdapterErrorKind::Other,
        "the dump took longer than YugabyteDB keeps old rows: raise `timestamp_history_retention_interval_sec` (default \
         900) on masters and tablet servers above the duration of a dump",
    ),
    (
        "kSnapshotTooOld",
        AdapterErrorKind::Other,
        "the dump took longer than YugabyteDB keeps old rows: raise `timestamp_history_retention_interval_sec` (default \
         900) on masters and tablet servers above the duration of a dump",
    ),
    (
        "permission denied for",
        AdapterErrorKind::PermissionDenied,
        "grant it: `GRANT pg_read_all_data TO` the role of the backup (or use the owner or a superuser)",
    ),
    (
        "permission denied to create database",
        AdapterErrorKind::PermissionDenied,
        "a restore needs a role with CREATEDB",
    ),
    ("permission denied", AdapterErrorKind::PermissionDenied, ""),
    ("must be owner", AdapterErrorKind::PermissionDenied, "use the owner or a superuser"),
    ("must be superuser", AdapterErrorKind::PermissionDenied, "use a superuser"),
    (
        "query would be affected by row-level security",
        AdapterErrorKind::PermissionDenied,
        "the role of the backup needs BYPASSRLS to see every row",
    ),
    ("No space left on device", AdapterErrorKind::NoSpace, "the server's disk is full"),
    (
        "server version mismatch",
        AdapterErrorKind::InvalidConfig,
        "the client programs are older than the server: set `programs` to those of its version",
    ),
    ("too many clients", AdapterErrorKind::Unavailable, ""),
    ("remaining connection slots", AdapterErrorKind::Unavailable, ""),
    ("starting up", AdapterErrorKind::Unavailable, ""),
    ("shutting down", AdapterErrorKind::Unavailable, ""),
    ("Connection refused", AdapterErrorKind::Unavailable, "is the server running?"),
    ("could not translate host name", AdapterErrorKind::Unavailable, ""),
    ("server closed the connection", AdapterErrorKind::Unavailable, ""),
    ("terminating connection", AdapterErrorKind::Unavailable, ""),
    ("connection to server", AdapterErrorKind::Unavailable, "is the server running?"),
    // Before version 14.
    ("could not connect to server", AdapterErrorKind::Unavailable, "is the server running?"),
    ("is being accessed by other users", AdapterErrorKind::Conflict, ""),
];

/// What passes if the same is tried again.
const PASSING: [&str; 8] = [
    "could not serialize access",
    "deadlock detected",
    "Restart read required",
    "schema version mismatch",
    "Catalog Version Mismatch",
    "Catalog version mismatch",
    "Query error: Try again",
    "tuple concurrently updated",
];

impl Failure {
    /// `error` of a run, and what the program wrote to standard error.
    pub(super) fn new(error: AdapterError, said: impl Into<String>) -> Self {
        let mut said = said.into();
        if said.trim().is_empty() {
            said = backup_core::chain(&error);
        }
        Self { error, said }
    }

    pub(super) fn mentions(&self, text: &str) -> bool {
        self.said.contains(text)
    }

    /// Whether the same may succeed if it is tried again at once.
    pub(super) fn passes(&self) -> bool {
        let too_old = self.mentions("Snapshot too old") || self.mentions("kSnapshotTooOld");
        !too_old && PASSING.iter().any(|p| self.mentions(p))
    }

    /// One line: `what`, what the program said, and what to do.
    pub(super) fn explain(self, what: &str) -> AdapterError {
        let own = self.error.kind();
        if matches!(
            own,
            AdapterErrorKind::Cancelled
                | AdapterErrorKind::Timeout
                | AdapterErrorKind::Conflict
                | AdapterErrorKind::NotFound
                | AdapterErrorKind::Unavailable
                | AdapterErrorKind::Corrupt
                | AdapterErrorKind::Unsupported
                | AdapterErrorKind::NoSpace
        ) {
            return AdapterError::new(own, what).with_source(self.error);
        }
        let told = telling_lines(&self.said);
        let known = KNOWN
            .iter()
            .find(|(part, _, hint)| told.contains(part) && (!hint.is_empty() || !part.starts_with("role")));
        let (kind, hint) = known.map_or((own, ""), |(_, kind, hint)| (*kind, *hint));
        let kind = match kind {
            AdapterErrorKind::Other if told.contains("database \"") && told.contains("does not exist") => {
                AdapterErrorKind::NotFound
            }
            AdapterErrorKind::Unavailable
                if told.contains("FATAL:")
                    && told.contains("database \"")
                    && told.contains("does not exist") =>
            {
                AdapterErrorKind::NotFound
            }
            AdapterErrorKind::Unavailable if told.contains("role \"") && told.contains("does not exist") => {
                AdapterErrorKind::PermissionDenied
            }
            kind => kind,
        };
        let hint = match kind {
            AdapterErrorKind::NotFound => "",
            AdapterErrorKind::PermissionDenied if hint.contains("running") => "check `user`",
            _ => hint,
        };
        let colon = if told.is_empty() { "" } else { ": " };
        let dash = if hint.is_empty() { "" } else { " - " };
        AdapterError::new(kind, format!("{what}{colon}{told}{dash}{hint}"))
    }
}

/// The lines of standard error that tell the trouble, on one line.
fn telling_lines(said: &str) -> String {
    let telling =
        |l: &&str| ["error:", "ERROR:", "FATAL:", "PANIC:", "fatal:"].iter().any(|mark| l.contains(mark));
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let mut chosen: Vec<&str> = lines.iter().copied().filter(telling).take(2).collect();
    if chosen.is_empty() {
        chosen = lines.iter().rev().take(2).rev().copied().collect();
    }
    let mut line = chosen.join("; ").chars().filter(|c| !c.is_control()).collect::<String>();
    if let Some((end, _)) = line.char_indices().nth(500) {
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explain(said: &str) -> AdapterError {
        Failure::new(AdapterError::new(AdapterErrorKind::Other, "exit code 1"), said)
            .explain("cannot dump `app`")
    }

    #[test]
    fn troubles_are_told_in_one_line_with_what_to_do() {
        let e =
            explain("pg_dump: error: query failed: ERROR:  permission denied for table secret\nDETAIL: x\n");
        assert_eq!(e.kind(), AdapterErrorKind::PermissionDenied);
        assert!(e.to_string().contains("table secret") && e.to_string().contains("pg_read_all_data"), "{e}");
        let e = explain(
            "psql: error: connection to server on socket \"/x\" failed: FATAL:  password authentication failed for user \"u\"",
        );
        assert_eq!(e.kind(), AdapterErrorKind::PermissionDenied);
        let e = explain(
            "psql: error: connection to server at \"h\" failed: Connection refused\n\tIs the server running",
        );
        assert_eq!(e.kind(), AdapterErrorKind::Unavailable);
        let e = explain("psql: error: could not connect to server: No such file or directory");
        assert_eq!(e.kind(), AdapterErrorKind::Unavailable);
        let e = explain(
            "psql: error: connection to server on socket \"/x\" failed: FATAL:  database \"x\" does not exist",
        );
        assert_eq!(e.kind(), AdapterErrorKind::NotFound);
        assert!(!e.to_string().contains('\n'));
    }

    #[test]
    fn what_passes_is_tried_again_and_too_old_snapshots_are_not() {
        let failure = |said: &str| Failure::new(AdapterError::cancelled(), said);
        assert!(failure("ERROR:  could not serialize access due to concurrent update").passes());
        assert!(!failure("ERROR:  Snapshot too old: could not serialize access kSnapshotTooOld").passes());
        assert!(!failure("ERROR:  permission denied").passes());
        let e = explain(
            "ERROR:  Snapshot too old. Read point: 1, earliest read time allowed: 2: kSnapshotTooOld",
        );
        assert!(e.to_string().contains("timestamp_history_retention_interval_sec"), "{e}");
    }
}
