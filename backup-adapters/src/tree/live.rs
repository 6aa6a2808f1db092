//! The live tree, as an adapter knows it.

use std::path::PathBuf;
use std::time::Instant;

use backup_core::{AdapterError, AdapterErrorKind, ArtifactName, OpContext, RestoreTarget};

use super::count::Counter;
use super::roots::{Root, RootKind, expand};
use super::rules::{Excluded, RuleSpec};
use super::walk::walk;
use crate::on_disk::blocking;

/// What was configured.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub(crate) base: PathBuf,
    pub(crate) paths: Vec<String>,
    pub(crate) rules: RuleSpec,
}

impl Live {
    /// What there is to archive now.
    pub(crate) async fn roots(&self, cx: &OpContext) -> Result<(Vec<Root>, Excluded), AdapterError> {
        let (live, cx) = (self.clone(), cx.clone());
        blocking(move || live.expanded(&cx)).await
    }

    /// Counts a restored directory, or the live paths. Blocking.
    pub(crate) fn count(&self, cx: &OpContext, target: &RestoreTarget) -> Result<Counter, AdapterError> {
        let dir = match target {
            RestoreTarget::Live => {
                let (roots, excluded) = self.expanded(cx)?;
                return Counter::count(&roots, &self.rules, &excluded);
            }
            RestoreTarget::Dir(dir) => dir,
            RestoreTarget::Scratch(scratch) => &scratch.dir,
            _ => return Err(AdapterError::unsupported("cannot count this kind of target")),
        };
        let mut counter = Counter::default();
        let root = Root { path: dir.clone(), member: String::new(), kind: RootKind::Dir };
        let everything = RuleSpec { cross_mounts: true, ..RuleSpec::default() };
        walk(&root, &everything, &Excluded::default(), &mut counter)?;
        // The directory itself is not a part of the backup.
        counter.counts.directories = counter.counts.directories.saturating_sub(1);
        Ok(counter)
    }

    fn expanded(&self, cx: &OpContext) -> Result<(Vec<Root>, Excluded), AdapterError> {
        let excluded = Excluded::new(&cx.excluded);
        Ok((expand(&self.base, &self.paths, &self.rules, &excluded)?, excluded))
    }

    /// How many files there are at least, if they are too many to be counted until then.
    pub(crate) fn at_least(&self, cx: &OpContext, until: Instant) -> Result<Option<u64>, AdapterError> {
        let (roots, excluded) = self.expanded(cx)?;
        Counter::at_least(&roots, &self.rules, &excluded, until)
    }
}

/// The artifact's name: the service's.
pub(crate) fn artifact_name(cx: &OpContext) -> ArtifactName {
    ArtifactName::sanitized(cx.service.as_str())
}

/// Where the roots of an archive come from; what a restore goes by.
pub(crate) fn roots_attribute(roots: &[Root]) -> Result<serde_json::Value, AdapterError> {
    serde_json::to_value(roots).map_err(|e| {
        AdapterError::new(AdapterErrorKind::Other, "cannot record the paths of the backup").with_source(e)
    })
}
