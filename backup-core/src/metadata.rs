//! What is written beside the data: metadata.json, run.json and the facts. Field names are the format.
//!
//! # Format changelog
//! * 1: first.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::id::{ArtifactName, BackupId, Interval, RunId, ServiceName, Timestamp};

/// The newest `format_version` that this library writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// The entries of `features` that this library understands. A backup with another one is listed and left alone.
pub const KNOWN_FEATURES: &[&str] = &[crate::encryption::AGE];

/// `metadata.json`: the commit of a backup. Written last, create-only, never changed.
///
/// The first seven fields are those of the Genesis scripts, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// The service.
    pub service: ServiceName,
    /// The series.
    pub interval: Interval,
    /// The directory's name.
    pub timestamp: Timestamp,
    /// Sum of the stored files, in bytes.
    pub size_bytes: u64,
    /// What was known when it was committed.
    pub status: Status,
    /// The host that ran the backup.
    pub host: String,
    /// When it was committed (RFC 3339, UTC).
    pub backed_up_at: DateTime<Utc>,
    /// See [`FORMAT_VERSION`].
    pub format_version: u32,
    /// What a reader must understand to restore or delete this backup. See [`KNOWN_FEATURES`].
    #[serde(default)]
    pub features: Vec<String>,
    /// Other keys in the store that this backup needs. Empty today.
    #[serde(default)]
    pub requires: Vec<Requirement>,
    /// The store in which it was made (a copy keeps it).
    pub store_id: String,
    /// The run that made it.
    pub run_id: RunId,
    /// Name and version of the program that made it.
    pub tool: String,
    /// The adapter's kind.
    pub adapter: String,
    /// The service's own version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_version: Option<String>,
    /// The container image: name and digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// How far the parts belong to one moment.
    pub consistency: Consistency,
    /// The data is not older than this.
    pub consistent_from: DateTime<Utc>,
    /// The data is not newer than this.
    pub consistent_to: DateTime<Utc>,
    /// How it was captured.
    pub capture: Capture,
    /// The contents.
    pub artifacts: Vec<ArtifactMeta>,
    /// Counts of what the artifacts hold.
    #[serde(default)]
    pub evidence: Evidence,
    /// For whom it is encrypted; then what would tell of the contents is in [`Private`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// Why `status` is `suspect`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suspect_because: Vec<String>,
    /// Fields of newer writers.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

impl Metadata {
    /// The backup's name.
    #[must_use]
    pub fn id(&self) -> BackupId {
        BackupId { service: self.service.clone(), interval: self.interval.clone(), timestamp: self.timestamp }
    }

    /// The artifact of that name.
    #[must_use]
    pub fn artifact(&self, name: &ArtifactName) -> Option<&ArtifactMeta> {
        self.artifacts.iter().find(|a| a.name == *name)
    }

    /// Every data file in the backup's directory, `private.json.age` included.
    pub fn stored_files(&self) -> impl Iterator<Item = &StoredFile> {
        let private = self.encryption.iter().map(|e| &e.private);
        self.artifacts.iter().flat_map(|a| &a.files).chain(private)
    }

    /// Takes out what must not be readable by everybody.
    pub(crate) fn split_private(&mut self) -> Private {
        let backup = self.id().to_string();
        let hashes = self.artifacts.iter_mut().filter(|a| a.external.is_none());
        let generic = "its counts or sizes collapsed; with the key, `backup show` tells which";
        let suspect = !self.suspect_because.is_empty();
        Private {
            backup,
            plain_blake3: hashes.map(|a| (a.name.clone(), std::mem::take(&mut a.plain_blake3))).collect(),
            evidence: std::mem::take(&mut self.evidence),
            fingerprint: self.capture.fingerprint.take(),
            suspect_because: std::mem::replace(
                &mut self.suspect_because,
                suspect.then(|| generic.to_owned()).into_iter().collect(),
            ),
        }
    }

    /// Puts it back; `None` if it is that of another backup.
    pub(crate) fn with_private(mut self, private: Private) -> Option<Self> {
        if private.backup != self.id().to_string() {
            return None;
        }
        for (name, hash) in private.plain_blake3 {
            self.artifacts.iter_mut().find(|a| a.name == name)?.plain_blake3 = hash;
        }
        self.evidence = private.evidence;
        self.capture.fingerprint = private.fingerprint;
        self.suspect_because = private.suspect_because;
        Some(self)
    }

    /// Sum of the artifacts before compression, in bytes.
    #[must_use]
    pub fn plain_bytes(&self) -> u64 {
        self.artifacts.iter().fold(0, |sum, a| sum.saturating_add(a.plain_bytes))
    }

    /// The features that this library does not understand, and a newer format version.
    #[must_use]
    pub fn not_understood(&self) -> Vec<String> {
        let newer =
            (self.format_version > FORMAT_VERSION).then(|| format!("format version {}", self.format_version));
        let unknown = self.features.iter().filter(|f| !KNOWN_FEATURES.contains(&f.as_str()));
        newer.into_iter().chain(unknown.map(|f| format!("feature `{f}`"))).collect()
    }
}

/// For whom a backup is encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encryption {
    /// The public keys, or `passphrase`.
    pub recipients: Vec<String>,
    /// `private.json.age`: a [`Private`], for these recipients and the host that made it.
    pub private: StoredFile,
}

/// `private.json.age`: what of an encrypted backup's metadata would tell of its contents: plain hashes prove a guess, counts
/// and fingerprints tell when something changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Private {
    /// The backup that it belongs to.
    pub backup: String,
    /// BLAKE3 of the plain bytes of each artifact.
    pub plain_blake3: BTreeMap<ArtifactName, String>,
    /// Counts of what the artifacts hold.
    #[serde(default)]
    pub evidence: Evidence,
    /// Equal fingerprints mean equal content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Why it is suspect, in numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suspect_because: Vec<String>,
}

/// What was known of a backup when it was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Every byte was captured and stored, and looks like its predecessors.
    Success,
    /// Every byte was captured and stored, but evidence or size collapsed.
    Suspect,
    /// An external snapshot was not complete yet.
    Pending,
    /// The writer stalled past its deadline and the sweeper won.
    Aborted,
}

/// How far the parts of a backup belong to one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// The service itself wrote one consistent state.
    Dump,
    /// Nothing was written while the data was copied.
    Quiesced,
    /// Equals a power cut at one moment: the service recovers it as after a crash.
    CrashConsistent,
    /// Read while it may have changed; each file is whole in itself.
    OnlineUnverified,
    /// Made by the scripts that this program replaces: nothing tells how, and nothing was recorded that would prove it.
    /// Only in memory, never written.
    #[serde(rename = "legacy/unverified")]
    Legacy,
}

impl std::fmt::Display for Consistency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Dump => "dump",
            Self::Quiesced => "quiesced",
            Self::CrashConsistent => "crash-consistent",
            Self::OnlineUnverified => "online-unverified",
            Self::Legacy => "legacy/unverified",
        })
    }
}

/// A container image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// As it was named, e.g. `neo4j:5.26-community`.
    pub name: String,
    /// Its digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// A key in the store that a backup needs besides its own directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirement {
    /// The key.
    pub key: String,
    /// Its size in bytes.
    pub stored_bytes: u64,
    /// Its SHA-256, lower-case hex.
    pub stored_sha256: String,
}

/// How a backup was captured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    /// The adapter's capture mode, e.g. `stream`, `clone`.
    pub mode: String,
    /// When the capture began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<DateTime<Utc>>,
    /// How long the whole backup took, in ms.
    #[serde(default)]
    pub duration_ms: u64,
    /// How long the service was stopped or paused, in ms.
    #[serde(default)]
    pub interruption_ms: u64,
    /// How long the service's writers were locked out, in ms.
    #[serde(default)]
    pub lock_ms: u64,
    /// Exit codes of the programs that produced the data, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub exit_codes: BTreeMap<String, i64>,
    /// What an operator should know, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Equal fingerprints mean equal content; what "unchanged" compares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

/// One logical thing in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactMeta {
    /// Unique in the backup.
    pub name: ArtifactName,
    /// The adapter's own facts, e.g. the exact name of a database.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, serde_json::Value>,
    /// Length before any encoding, in bytes.
    #[serde(default)]
    pub plain_bytes: u64,
    /// BLAKE3 of the plain bytes, lower-case hex.
    #[serde(default)]
    pub plain_blake3: String,
    /// What was applied, in order: `zstd`, `age`.
    #[serde(default)]
    pub encodings: Vec<String>,
    /// The stored files: concatenated, they are the encoded artifact. With `age` each is encrypted by itself, and what they
    /// decrypt to is concatenated.
    #[serde(default)]
    pub files: Vec<StoredFile>,
    /// What is kept elsewhere instead, e.g. a snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalRef>,
}

/// One stored file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// File name in the backup's directory.
    pub path: String,
    /// Length as stored, in bytes.
    pub stored_bytes: u64,
    /// SHA-256 as stored, lower-case hex.
    pub stored_sha256: String,
}

/// Data that is kept outside the store, e.g. an EBS snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalRef {
    /// What kind of thing, e.g. `ebs-snapshot`.
    pub kind: String,
    /// Its id there.
    pub id: String,
    /// Where: region, account, endpoint.
    #[serde(default)]
    pub location: BTreeMap<String, String>,
}

/// Counts of what a backup or a live service holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Guarded counts, e.g. `files`, `rows.app.public.users`: a collapse makes the backup suspect, and a restore must
    /// show the same.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counts: BTreeMap<String, u64>,
    /// For captures of a live service: the count may lie anywhere between `counts` and this.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counts_after: BTreeMap<String, u64>,
    /// Further facts, not guarded, e.g. an encoding or a version.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub notes: BTreeMap<String, String>,
}

impl Evidence {
    /// Sets one guarded count.
    #[must_use]
    pub fn with_count(mut self, name: impl Into<String>, value: u64) -> Self {
        self.counts.insert(name.into(), value);
        self
    }

    /// Adds what `other` knows; its values win.
    pub fn merge(&mut self, other: Self) {
        self.counts.extend(other.counts);
        self.counts_after.extend(other.counts_after);
        self.notes.extend(other.notes);
    }

    /// Where `found` disagrees with this evidence: one line per count that both have and that is out of range.
    #[must_use]
    pub fn contradictions(&self, found: &Self) -> Vec<String> {
        let mut out = Vec::new();
        for (name, &expected) in &self.counts {
            let after = self.counts_after.get(name).copied().unwrap_or(expected);
            let (low, high) = (expected.min(after), expected.max(after));
            match found.counts.get(name) {
                Some(&n) if n < low || n > high => {
                    let range = if low == high { low.to_string() } else { format!("{low} to {high}") };
                    out.push(format!("{name}: expected {range}, found {n}"));
                }
                _ => {}
            }
        }
        out
    }
}

/// `run.json`: reserves a backup's directory. Written first, create-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// The run.
    pub run_id: RunId,
    /// The host.
    pub host: String,
    /// The process.
    #[serde(flatten)]
    pub process: Process,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// Until then nobody sweeps; after it a commit may lose.
    pub commit_deadline: DateTime<Utc>,
    /// Name and version of the program.
    pub tool: String,
    /// The id of the store that this is a copy from, if it is one: a copier answers for it, not a writer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied_from: Option<String>,
}

/// A process, so that others can tell whether it is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// The host's boot: the pids of another boot say nothing.
    pub boot_id: String,
    /// The namespace in which `pid` has a meaning.
    #[serde(default)]
    pub pid_namespace: String,
}

impl Process {
    /// This process.
    #[must_use]
    pub fn this() -> Self {
        Self {
            pid: std::process::id(),
            boot_id: crate::state::boot_id(),
            pid_namespace: crate::state::pid_namespace(),
        }
    }

    /// Whether it is certainly gone: same boot, same namespace, and no such process. In doubt it lives.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        let this = Self::this();
        !this.boot_id.is_empty()
            && !this.pid_namespace.is_empty()
            && self.boot_id == this.boot_id
            && self.pid_namespace == this.pid_namespace
            && !crate::state::process_lives(self.pid)
    }
}

/// The contents of a fact, e.g. `verify-<ts>-content-ok.json`. The file's name already tells the outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactBody {
    /// When it was found out.
    pub at: DateTime<Utc>,
    /// The run.
    pub run_id: RunId,
    /// The host.
    pub host: String,
    /// Who or why, one line; from the user for `hold` and `accept`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What was found, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<String>,
    /// How long it took, in ms.
    #[serde(default)]
    pub duration_ms: u64,
    /// How many bytes it read, before decoding.
    #[serde(default)]
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_tells_what_disagrees() {
        let mut expected = Evidence::default().with_count("files", 10).with_count("rows", 100);
        expected.counts_after.insert("rows".into(), 120);
        let found = Evidence::default().with_count("files", 9).with_count("rows", 110).with_count("other", 1);
        assert_eq!(expected.contradictions(&found), ["files: expected 10, found 9"]);
        assert!(expected.contradictions(&Evidence::default()).is_empty());
    }
}
