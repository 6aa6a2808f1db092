//! A fake adapter by configuration.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;

use super::{FakeAdapter, Step};
use crate::adapter::ServiceAdapter;
use crate::error::ConfigError;
use crate::id::ArtifactName;
use crate::registry::{AdapterConfig, BuildContext};

/// The configuration of a [`FakeAdapter`]: `kind = "fake"`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FakeConfig {
    /// Chunks of text by artifact.
    #[serde(default)]
    pub artifacts: BTreeMap<String, Vec<String>>,
    /// Steps that fail, e.g. `open`.
    #[serde(default)]
    pub failing: Vec<Step>,
    /// Steps that hang until the operation is over.
    #[serde(default)]
    pub hanging: Vec<Step>,
    /// Every body fails in place of this chunk.
    #[serde(default)]
    pub fail_at: Option<usize>,
    /// Commit only when the content changed.
    #[serde(default)]
    pub only_if_changed: bool,
}

impl AdapterConfig for FakeConfig {
    const KIND: &'static str = "fake";
    const SUMMARY: &'static str = "a service in memory, for tests";
    const PROVEN: &'static str = "by the conformance suite";

    fn build(self, _: &BuildContext) -> Result<Arc<dyn ServiceAdapter>, ConfigError> {
        let adapter = FakeAdapter::new();
        adapter.script(|s| {
            for (name, chunks) in self.artifacts {
                let name = ArtifactName::new(name)?;
                if let Some(chunk) = self.fail_at {
                    s.fail_at.insert(name.clone(), chunk);
                }
                s.live.insert(name, chunks.into_iter().map(Bytes::from).collect());
            }
            s.failing.extend(self.failing);
            s.hanging.extend(self.hanging);
            (s.fingerprint, s.only_if_changed) = (self.only_if_changed, self.only_if_changed);
            Ok::<(), ConfigError>(())
        })?;
        Ok(Arc::new(adapter))
    }
}
