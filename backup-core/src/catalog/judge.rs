//! What the files of a backup are worth: pure functions.

use std::collections::BTreeSet;

use super::{BackupState, Fact, FactKind, Summary, VerifyLevel};
use crate::id::{BackupId, Timestamp};
use crate::metadata::{Metadata, Status};

/// Why a metadata.json cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unusable {
    pub(super) reason: String,
    pub(super) newer: bool,
}

impl From<String> for Unusable {
    fn from(reason: String) -> Self {
        Self { reason, newer: false }
    }
}

/// Whether a person wants what has these facts kept.
pub(super) fn held(facts: &[Fact]) -> bool {
    let last = |wanted: FactKind| facts.iter().filter(|f| f.kind == wanted).map(|f| f.at).max();
    // At the same moment the careful word counts.
    let hold = last(FactKind::Hold);
    hold.is_some() && hold >= last(FactKind::Unhold)
}

/// What a backup is worth, by its metadata and what became known later.
pub(super) fn derive_state(summary: &Summary, facts: &[Fact]) -> BackupState {
    if summary.status == Status::Aborted {
        return BackupState::Aborted;
    }
    // A bad verification is answered only by a newer good one that looked at least as deep.
    let answered = |level: VerifyLevel, at: Timestamp| {
        facts.iter().any(|f| match f.kind {
            FactKind::Verify { level: l, ok: true } => l >= level && f.at > at,
            _ => false,
        })
    };
    let bad = facts.iter().rev().find_map(|f| match f.kind {
        FactKind::Verify { level, ok: false } if !answered(level, f.at) => Some((level, f.at)),
        _ => None,
    });
    if let Some((level, at)) = bad {
        return BackupState::Damaged { level, at };
    }
    let known = |kind: FactKind| facts.iter().any(|f| f.kind == kind);
    match summary.status {
        Status::Pending if !known(FactKind::Complete) => BackupState::Pending,
        Status::Pending if summary.doubted && !known(FactKind::Accept) => BackupState::Suspect,
        Status::Suspect if !known(FactKind::Accept) => BackupState::Suspect,
        _ => BackupState::Good,
    }
}

/// Parses metadata.json and makes sure that it is what its place says and that nothing in it climbs out of its directory.
pub(super) fn parse_metadata(id: &BackupId, text: &[u8]) -> Result<Metadata, Unusable> {
    let value: serde_json::Value =
        serde_json::from_slice(text).map_err(|e| format!("metadata.json is not valid JSON: {e}"))?;
    // The version decides before the shape does: a newer format may look different.
    let version = value.get("format_version").and_then(serde_json::Value::as_u64).unwrap_or(0);
    if version > u64::from(crate::metadata::FORMAT_VERSION) {
        let reason =
            format!("metadata.json has format version {version}: use a newer version of this program");
        return Err(Unusable { reason, newer: true });
    }
    let metadata: Metadata = serde_json::from_value(value)
        .map_err(|e| format!("metadata.json is not of the expected shape: {e}"))?;
    let unknown = metadata.not_understood();
    if !unknown.is_empty() {
        let reason = format!("it uses {}: use a newer version of this program", unknown.join(", "));
        return Err(Unusable { reason, newer: true });
    }
    if metadata.id() != *id {
        return Err(format!("metadata.json describes {}", metadata.id()).into());
    }
    let mut names = BTreeSet::new();
    for stored in metadata.stored_files() {
        id.file(&stored.path).map_err(|e| format!("metadata.json names a hostile path: {e}"))?;
        if !names.insert(stored.path.as_str()) {
            return Err(format!("metadata.json names `{}` twice", stored.path).into());
        }
    }
    let mut artifacts = BTreeSet::new();
    if let Some(twice) = metadata.artifacts.iter().find(|a| !artifacts.insert(&a.name)) {
        return Err(format!("metadata.json names the artifact `{}` twice", twice.name).into());
    }
    // Nothing to verify must not look like nothing wrong.
    let committed = matches!(metadata.status, Status::Success | Status::Suspect | Status::Pending);
    if committed && metadata.artifacts.is_empty() {
        return Err("metadata.json names no contents".to_owned().into());
    }
    if let Some(empty) = metadata.artifacts.iter().find(|a| a.files.is_empty() && a.external.is_none()) {
        return Err(format!("metadata.json names no file for the artifact `{}`", empty.name).into());
    }
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    fn verify(level: VerifyLevel, ok: bool, at: &str) -> Fact {
        Fact { kind: FactKind::Verify { level, ok }, at: at.parse().unwrap() }
    }

    fn summary(status: Status) -> Summary {
        let backed_up_at = DateTime::from_timestamp(0, 0).unwrap();
        let (adapter, host) = ("fake".into(), "h".into());
        let doubted = status == Status::Suspect;
        Summary {
            status,
            doubted,
            size_bytes: 1,
            plain_bytes: 1,
            backed_up_at,
            adapter,
            host,
            duration_ms: 0,
        }
    }

    #[test]
    fn a_shallow_ok_does_not_hide_deeper_damage() {
        use VerifyLevel::{Content, Stored};
        let s = summary(Status::Success);
        let bad = verify(Content, false, "20260101_000000");
        assert!(matches!(derive_state(&s, &[bad]), BackupState::Damaged { level: Content, .. }));
        let shallow = verify(Stored, true, "20260101_000001");
        assert!(matches!(derive_state(&s, &[bad, shallow]), BackupState::Damaged { .. }));
        let deep = verify(Content, true, "20260101_000002");
        assert_eq!(derive_state(&s, &[bad, shallow, deep]), BackupState::Good);
    }

    #[test]
    fn an_accepted_suspect_is_good_unless_it_is_damaged() {
        let s = summary(Status::Suspect);
        assert_eq!(derive_state(&s, &[]), BackupState::Suspect);
        let accept = Fact { kind: FactKind::Accept, at: "20260101_000000".parse().unwrap() };
        assert_eq!(derive_state(&s, &[accept]), BackupState::Good);
        let bad = verify(VerifyLevel::Stored, false, "20260101_000001");
        assert!(matches!(derive_state(&s, &[accept, bad]), BackupState::Damaged { .. }));
    }

    #[test]
    fn a_pending_one_is_good_only_when_it_is_known_to_be_complete() {
        let mut s = summary(Status::Pending);
        let complete = Fact { kind: FactKind::Complete, at: "20260101_000000".parse().unwrap() };
        let accept = Fact { kind: FactKind::Accept, at: "20260101_000001".parse().unwrap() };
        assert_eq!(derive_state(&s, &[]), BackupState::Pending);
        assert_eq!(derive_state(&s, &[accept]), BackupState::Pending, "nobody can accept what is not there");
        assert_eq!(derive_state(&s, &[complete]), BackupState::Good);
        s.doubted = true;
        assert_eq!(derive_state(&s, &[complete]), BackupState::Suspect);
        assert_eq!(derive_state(&s, &[complete, accept]), BackupState::Good);
        let lost = verify(VerifyLevel::Stored, false, "20260101_000002");
        assert!(matches!(derive_state(&s, &[complete, accept, lost]), BackupState::Damaged { .. }));
    }
}
