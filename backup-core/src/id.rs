//! Names and keys: small validated strings, so that nothing hostile ever reaches a path.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, NaiveDate, SubsecRound, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A name or key that breaks its rule. `Display` says what was given and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{}` is not valid: {rule}", .given.escape_debug())]
pub struct InvalidId {
    what: &'static str,
    given: String,
    rule: &'static str,
}

const NAME_RULE: &str = "use 1 to 64 letters, digits, `_`, `-` or `.`, starting with a letter or digit";

fn is_name(s: &str) -> bool {
    s.len() <= 64
        && s.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

/// Serialises through `Display`/`FromStr`, so that a bad value is refused while it is parsed.
macro_rules! string_serde {
    ($t:ty) => {
        impl Serialize for $t {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

macro_rules! name_type {
    ($(#[$doc:meta])* $t:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $t(String);

        impl $t {
            /// Validates `s`: 1 to 64 letters, digits, `_`, `-` or `.`, starting with a letter or digit.
            ///
            /// # Errors
            /// [`InvalidId`] when the rule is broken.
            pub fn new(s: impl Into<String>) -> Result<Self, InvalidId> {
                let s = s.into();
                if is_name(&s) { Ok(Self(s)) } else { Err(InvalidId { what: $what, given: s, rule: NAME_RULE }) }
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $t {
            type Err = InvalidId;
            fn from_str(s: &str) -> Result<Self, InvalidId> {
                Self::new(s)
            }
        }

        impl AsRef<str> for $t {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        string_serde!($t);
    };
}

name_type!(
    /// One configured thing to protect, e.g. `redis`. First path segment of its backups.
    ServiceName,
    "service name"
);
name_type!(
    /// A series of backups with a schedule and a retention of its own, e.g. `15min`, `hourly`, `manual`.
    Interval,
    "interval"
);
name_type!(
    /// One of the places where backups are kept, as the configuration names it, e.g. `cloud`.
    StoreName,
    "name of a store"
);
name_type!(
    /// One logical thing inside a backup, e.g. the dump of one database. Begins the name of its stored files.
    ArtifactName,
    "artifact name"
);

impl ArtifactName {
    /// Makes a valid name of any text, e.g. of a database's name with quotes and spaces.
    ///
    /// Every byte that a name may not hold becomes `-xx` (hex). Long results are cut and end in a hash, so that
    /// two different inputs never share a name. Put the exact text into the artifact's attributes.
    #[must_use]
    pub fn sanitized(text: &str) -> Self {
        let mut out = String::new();
        for b in text.bytes() {
            if b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.') {
                out.push(char::from(b));
            } else {
                out.push_str(&format!("-{b:02x}"));
            }
        }
        if !out.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric) {
            out.insert(0, 'x');
        }
        if out.len() > 64 {
            let hash = blake3::hash(text.as_bytes()).to_hex();
            out.truncate(47);
            out.push('-');
            out.push_str(hash.get(..16).unwrap_or_default());
        }
        Self(out)
    }
}

/// The moment that names a backup's directory: UTC, whole seconds, written `YYYYMMDD_HHMMSS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(DateTime<Utc>);

impl Timestamp {
    const FORMAT: &'static str = "%Y%m%d_%H%M%S";

    /// Drops the fraction of a second.
    #[must_use]
    pub fn new(at: DateTime<Utc>) -> Self {
        Self(at.trunc_subsecs(0))
    }

    /// The instant.
    #[must_use]
    pub fn time(self) -> DateTime<Utc> {
        self.0
    }

    /// One second later: the next free name.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + chrono::TimeDelta::seconds(1))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.format(Self::FORMAT).to_string())
    }
}

impl FromStr for Timestamp {
    type Err = InvalidId;
    fn from_str(s: &str) -> Result<Self, InvalidId> {
        let err = || InvalidId { what: "timestamp", given: s.to_owned(), rule: "use YYYYMMDD_HHMMSS (UTC)" };
        let digits =
            |r: std::ops::Range<usize>| s.as_bytes().get(r).is_some_and(|b| b.iter().all(u8::is_ascii_digit));
        if s.len() != 15 || !digits(0..8) || s.as_bytes().get(8) != Some(&b'_') || !digits(9..15) {
            return Err(err());
        }
        // By hand: listings parse a hundred thousand of them.
        let number =
            |r: std::ops::Range<usize>| s.get(r).and_then(|d| d.parse::<u32>().ok()).unwrap_or(u32::MAX);
        let date = i32::try_from(number(0..4))
            .ok()
            .and_then(|y| NaiveDate::from_ymd_opt(y, number(4..6), number(6..8)));
        let time = date.and_then(|d| d.and_hms_opt(number(9..11), number(11..13), number(13..15)));
        time.map(|t| Self(t.and_utc())).ok_or_else(err)
    }
}

string_serde!(Timestamp);

/// Names one committed backup: `<service>/<interval>/<timestamp>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId {
    /// The service that was backed up.
    pub service: ServiceName,
    /// The series that it belongs to.
    pub interval: Interval,
    /// Its place in the series.
    pub timestamp: Timestamp,
}

impl BackupId {
    /// The directory of this backup in a store.
    #[must_use]
    pub fn dir(&self) -> StoreKey {
        StoreKey(self.to_string())
    }

    /// The key of a file in this backup's directory.
    ///
    /// # Errors
    /// [`InvalidId`] when `file` is not a plain file name (a separator, `..`, a control character).
    pub fn file(&self, file: &str) -> Result<StoreKey, InvalidId> {
        self.dir().join(file)
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}/{}", self.service, self.interval, self.timestamp))
    }
}

impl FromStr for BackupId {
    type Err = InvalidId;
    fn from_str(s: &str) -> Result<Self, InvalidId> {
        let mut parts = s.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(service), Some(interval), Some(ts), None) => {
                Ok(Self { service: service.parse()?, interval: interval.parse()?, timestamp: ts.parse()? })
            }
            _ => Err(InvalidId {
                what: "backup",
                given: s.to_owned(),
                rule: "use SERVICE/INTERVAL/YYYYMMDD_HHMMSS",
            }),
        }
    }
}

string_serde!(BackupId);

/// Names one execution of a verb; tags whatever an adapter leaves in a service, so that `reclaim` finds it.
/// Sorts by time: `YYYYMMDD_HHMMSS-xxxxxxxx`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(String);

impl RunId {
    /// A new id for a run that starts at `now`.
    #[must_use]
    pub fn generate(now: DateTime<Utc>) -> Self {
        let random = uuid::Uuid::new_v4().simple().to_string();
        Self(format!("{}-{}", Timestamp::new(now), random.get(..8).unwrap_or_default()))
    }

    /// When the run started, if the id says so.
    #[must_use]
    pub fn started(&self) -> Option<Timestamp> {
        self.0.split_once('-').and_then(|(at, _)| at.parse().ok())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for RunId {
    type Err = InvalidId;
    fn from_str(s: &str) -> Result<Self, InvalidId> {
        if is_name(s) {
            Ok(Self(s.to_owned()))
        } else {
            Err(InvalidId { what: "run id", given: s.to_owned(), rule: NAME_RULE })
        }
    }
}

string_serde!(RunId);

/// A key in a store: a relative `/` path without empty, `.` or `..` segments, control characters or backslashes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreKey(String);

impl StoreKey {
    /// Validates a whole key.
    ///
    /// # Errors
    /// [`InvalidId`] for a path that is absolute, climbs, is empty, or is longer than 1,024 bytes.
    pub fn new(s: impl Into<String>) -> Result<Self, InvalidId> {
        let s = s.into();
        let good = s.len() <= 1024 && s.split('/').all(is_segment);
        if good {
            Ok(Self(s))
        } else {
            let rule = "use a relative path without `..`, empty parts, control characters or backslashes";
            Err(InvalidId { what: "key", given: s, rule })
        }
    }

    /// Appends one segment.
    ///
    /// # Errors
    /// [`InvalidId`] when `segment` is not a plain file name.
    pub fn join(&self, segment: &str) -> Result<Self, InvalidId> {
        if is_segment(segment) {
            Ok(Self(format!("{}/{segment}", self.0)))
        } else {
            let rule = "use a plain file name of at most 255 bytes";
            Err(InvalidId { what: "file name", given: segment.to_owned(), rule })
        }
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last segment.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// The key without its last segment; `None` at the top.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        self.0.rsplit_once('/').map(|(p, _)| Self(p.to_owned()))
    }

    /// What follows `prefix/`; `None` when this key is not below `prefix` (whole segments count).
    #[must_use]
    pub fn below<'a>(&'a self, prefix: &Self) -> Option<&'a str> {
        self.0.strip_prefix(&prefix.0)?.strip_prefix('/')
    }
}

fn is_segment(s: &str) -> bool {
    !s.is_empty()
        && s.len() <= 255
        && s != "."
        && s != ".."
        && !s.chars().any(|c| c.is_control() || matches!(c, '/' | '\\'))
}

impl fmt::Display for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for StoreKey {
    type Err = InvalidId;
    fn from_str(s: &str) -> Result<Self, InvalidId> {
        Self::new(s)
    }
}

string_serde!(StoreKey);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_keys_are_refused() {
        for bad in
            ["", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", "a\\b", "a\0b", "a\nb", &"x/".repeat(600)]
        {
            assert!(StoreKey::new(bad).is_err(), "{bad:?}");
        }
        assert!(StoreKey::new("redis/15min/20260309_043820/metadata.json").is_ok());
    }

    #[test]
    fn prefix_counts_whole_segments() {
        let key = StoreKey::new("a/bc/d").unwrap();
        assert_eq!(key.below(&StoreKey::new("a/bc").unwrap()), Some("d"));
        assert_eq!(key.below(&StoreKey::new("a/b").unwrap()), None);
    }

    #[test]
    fn timestamps_round_trip_and_refuse_lookalikes() {
        let ts: Timestamp = "20260309_043820".parse().unwrap();
        assert_eq!(ts.to_string(), "20260309_043820");
        assert_eq!(ts.next().to_string(), "20260309_043821");
        for bad in
            ["20260309_04382", "20260309-043820", "20261309_043820", "+0260309_043820", "20260309_0438200"]
        {
            assert!(bad.parse::<Timestamp>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sanitized_names_are_valid_and_distinct() {
        let long = "ä".repeat(80);
        for text in ["", "my \"db\"", "../x", "-a", "ok_name", long.as_str()] {
            let name = ArtifactName::sanitized(text);
            assert!(is_name(name.as_str()), "{text:?} became {name}");
        }
        assert_ne!(ArtifactName::sanitized("a b"), ArtifactName::sanitized("a-b"));
        assert_ne!(ArtifactName::sanitized("a-20b"), ArtifactName::sanitized("a b"));
    }

    #[test]
    fn backup_ids_parse_from_paths() {
        let id: BackupId = "redis/15min/20260309_043820".parse().unwrap();
        assert_eq!(id.file("metadata.json").unwrap().as_str(), "redis/15min/20260309_043820/metadata.json");
        assert!(id.file("../x").is_err());
        assert!("redis/15min".parse::<BackupId>().is_err());
    }
}
