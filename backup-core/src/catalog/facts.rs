//! Facts: what became known of a backup after its commit. Create-only files; the name tells the outcome.

use std::fmt;
use std::str::FromStr;

use futures::TryStreamExt;
use serde::{Deserialize, Serialize};

use super::{Catalog, TOMBSTONE, json};
use crate::error::BackupError;
use crate::id::{BackupId, StoreKey, Timestamp};
use crate::metadata::FactBody;

/// How deep a verification went; later levels prove more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerifyLevel {
    /// The stored bytes are those that were written: SHA-256, no key, no decoding.
    Stored,
    /// They decode to the bytes that were captured, and those have the adapter's format.
    Content,
    /// They were restored into scratch, and the counts agree.
    Restore,
}

impl VerifyLevel {
    /// All levels, weakest first.
    pub const ALL: [Self; 3] = [Self::Stored, Self::Content, Self::Restore];

    /// The word used in file names and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Content => "content",
            Self::Restore => "restore",
        }
    }
}

impl fmt::Display for VerifyLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for VerifyLevel {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|l| l.as_str() == s)
            .ok_or_else(|| format!("`{s}` is not a verification level: use stored, content or restore"))
    }
}

/// What a fact says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FactKind {
    /// A verification.
    Verify {
        /// How deep it went.
        level: VerifyLevel,
        /// Whether everything was right.
        ok: bool,
    },
    /// A later capture found the same content.
    Seen,
    /// What is kept outside the store is complete now.
    Complete,
    /// A person looked at a suspect backup and takes it as good.
    Accept,
    /// A person wants it kept.
    Hold,
    /// A person no longer wants it kept.
    Unhold,
    /// The store refuses to delete it before then: all of its files are locked.
    Retain {
        /// Until when.
        until: Timestamp,
    },
}

/// A fact as its file name tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// What it says.
    pub kind: FactKind,
    /// When it became known.
    pub at: Timestamp,
}

impl Fact {
    /// The file's name, e.g. `verify-20260309_043820-content-ok.json`.
    #[must_use]
    pub fn file_name(&self) -> String {
        let at = self.at;
        match self.kind {
            FactKind::Verify { level, ok } => {
                format!("verify-{at}-{level}-{}.json", if ok { "ok" } else { "bad" })
            }
            FactKind::Seen => format!("seen-{at}.json"),
            FactKind::Complete => format!("complete-{at}.json"),
            FactKind::Accept => format!("accept-{at}.json"),
            FactKind::Hold => format!("hold-{at}.json"),
            FactKind::Unhold => format!("unhold-{at}.json"),
            FactKind::Retain { until } => format!("retain-{at}-{until}.json"),
        }
    }

    /// The fact of a file name, if it is one.
    #[must_use]
    pub fn parse(file_name: &str) -> Option<Self> {
        let mut parts = file_name.strip_suffix(".json")?.split('-');
        let word = parts.next()?;
        let at = parts.next()?.parse().ok()?;
        let kind = match word {
            "verify" => {
                let level = parts.next()?.parse().ok()?;
                let ok = match parts.next()? {
                    "ok" => true,
                    "bad" => false,
                    _ => return None,
                };
                FactKind::Verify { level, ok }
            }
            "seen" => FactKind::Seen,
            "complete" => FactKind::Complete,
            "accept" => FactKind::Accept,
            "hold" => FactKind::Hold,
            "unhold" => FactKind::Unhold,
            "retain" => FactKind::Retain { until: parts.next()?.parse().ok()? },
            _ => return None,
        };
        parts.next().is_none().then_some(Self { kind, at })
    }
}

impl Catalog {
    /// Writes a fact beside a backup and returns it. Its moment is now, or one second after the newest fact, so that
    /// what was said later counts as later.
    ///
    /// # Errors
    /// [`BackupError::Refused`] if the backup is being deleted, or is gone; [`BackupError::Store`].
    pub async fn add_fact(
        &self,
        id: &BackupId,
        kind: FactKind,
        body: &FactBody,
    ) -> Result<Fact, BackupError> {
        let what = || format!("note a fact about {id}");
        let keys: Vec<StoreKey> = self
            .store
            .list_keys(Some(&id.dir()))
            .try_collect()
            .await
            .map_err(|e| BackupError::store(what(), e))?;
        let deleted = |keys: &[StoreKey]| {
            let is_fact = |k: &&StoreKey| Fact::parse(k.file_name()).is_some();
            keys.iter().any(|k| k.file_name() == TOMBSTONE) || keys.iter().all(|k| is_fact(&k))
        };
        let gone = || BackupError::Refused(format!("{id} was deleted meanwhile"));
        if deleted(&keys) {
            return Err(gone());
        }
        let newest = keys.iter().filter_map(|k| Fact::parse(k.file_name())).map(|f| f.at).max();
        let now = Timestamp::new(body.at);
        let mut fact = Fact { kind, at: newest.map_or(now, |newest| now.max(newest.next())) };
        loop {
            let key = id.file(&fact.file_name()).map_err(|e| BackupError::Refused(e.to_string()))?;
            match super::draft::create_or_same(self.store.as_ref(), &key, json(body)?).await {
                Ok(()) => {
                    // A deletion makes its mark, then looks for facts; we look for its mark after ours. So one of the
                    // two always sees the other, and a hold is never promised for what is gone.
                    let keys: Vec<StoreKey> = self
                        .store
                        .list_keys(Some(&id.dir()))
                        .try_collect()
                        .await
                        .map_err(|e| BackupError::store(what(), e))?;
                    if !deleted(&keys) {
                        return Ok(fact);
                    }
                    self.store.delete(&key).await.map_err(|e| BackupError::store(what(), e))?;
                    return Err(gone());
                }
                Err(e) if e.is_already_exists() => fact.at = fact.at.next(),
                Err(e) => return Err(BackupError::store(what(), e)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        let at = "20260309_043820".parse().unwrap();
        let verify = |level, ok| FactKind::Verify { level, ok };
        for kind in [
            FactKind::Seen,
            FactKind::Complete,
            FactKind::Accept,
            FactKind::Hold,
            FactKind::Unhold,
            FactKind::Retain { until: "20270309_043820".parse().unwrap() },
            verify(VerifyLevel::Content, true),
            verify(VerifyLevel::Restore, false),
        ] {
            let fact = Fact { kind, at };
            assert_eq!(Fact::parse(&fact.file_name()), Some(fact));
        }
        for other in [
            "metadata.json",
            "seen-x.json",
            "verify-20260309_043820-deep-ok.json",
            "hold-20260309_043820-x.json",
            "retain-20260309_043820.json",
        ] {
            assert_eq!(Fact::parse(other), None, "{other}");
        }
    }
}
