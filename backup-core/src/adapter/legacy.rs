//! [`LegacyArtifact`]: what an adapter makes of files that it did not write.

use std::collections::BTreeMap;

use crate::id::ArtifactName;

/// A file of the scripts before this program, as an adapter takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegacyArtifact {
    /// What it is called while it is restored.
    pub name: ArtifactName,
    /// As of [`ArtifactMeta::attributes`](crate::ArtifactMeta::attributes): what the adapter needs to check and restore it.
    pub attributes: BTreeMap<String, serde_json::Value>,
    /// As of [`ArtifactMeta::encodings`](crate::ArtifactMeta::encodings): none, or [`GZIP`](crate::pipeline::GZIP).
    pub encodings: Vec<String>,
    /// What is to be known before it is relied on, one line, beyond that nothing was recorded of it.
    pub caution: Option<String>,
}

impl LegacyArtifact {
    /// An artifact in a file as it is.
    #[must_use]
    pub fn plain(name: &str) -> Self {
        let name = ArtifactName::sanitized(name);
        Self { name, attributes: BTreeMap::new(), encodings: Vec::new(), caution: None }
    }

    /// An artifact in a gzip file.
    #[must_use]
    pub fn gzip(name: &str) -> Self {
        Self { encodings: vec![crate::pipeline::GZIP.to_owned()], ..Self::plain(name) }
    }

    /// Adds an attribute.
    #[must_use]
    pub fn with_attribute(mut self, key: &str, value: impl Into<serde_json::Value>) -> Self {
        self.attributes.insert(key.to_owned(), value.into());
        self
    }

    /// Sets what is to be known before it is relied on.
    #[must_use]
    pub fn with_caution(mut self, caution: &str) -> Self {
        self.caution = Some(caution.to_owned());
        self
    }
}
