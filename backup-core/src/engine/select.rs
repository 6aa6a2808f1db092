//! Choosing one backup.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::keys::Need;
use super::{Engine, Inner, deadline};
use crate::adapter::RestoreSource;
use crate::catalog::{Entry, Filter};
use crate::error::BackupError;
use crate::id::{BackupId, Interval, ServiceName, Timestamp};

/// Which backup of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Selector {
    /// The newest good one, over all intervals.
    #[default]
    Newest,
    /// The newest good one that is not newer than this moment.
    At(Timestamp),
    /// This one, whatever its state.
    Exactly(BackupId),
}

/// A choice, and what was passed over for it.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    pub(super) entry: Entry,
    /// Newer ones that were not taken, one line each.
    pub(super) passed_over: Vec<String>,
}

impl Engine {
    /// A backup to read from, without restoring it: the plain bytes of its artifacts, which are proven at their end.
    ///
    /// # Errors
    /// [`BackupError::Refused`] if there is no such backup; those of the store.
    pub async fn source(
        &self,
        service: &ServiceName,
        selector: &Selector,
    ) -> Result<RestoreSource, BackupError> {
        let inner = &self.inner;
        let planned = inner.service(service)?;
        let Choice { entry, .. } = inner.choose(service, None, selector).await?;
        let metadata = inner.opened(inner.catalog.metadata(&entry.id).await?, Need::Data).await?;
        let run = inner.quiet_run("read", CancellationToken::new())?;
        let cx = inner.context(&run, planned, inner.now(), deadline(planned.timeout))?;
        Ok(inner.restore_source(&cx, Arc::new(metadata)))
    }
}

impl Inner {
    pub(super) async fn choose(
        &self,
        service: &ServiceName,
        interval: Option<&Interval>,
        selector: &Selector,
    ) -> Result<Choice, BackupError> {
        let filter = Filter { service: Some(service.clone()), interval: interval.cloned() };
        let listing = self.catalog.list(&filter).await?;
        if let Selector::Exactly(id) = selector {
            let found = listing.entries.into_iter().find(|e| e.id == *id);
            let entry = found.ok_or_else(|| BackupError::Refused(format!("there is no backup {id}")))?;
            return Ok(Choice { entry, passed_over: Vec::new() });
        }
        for error in &listing.errors {
            self.warn(Some(service), error.clone());
        }
        let limit = match selector {
            Selector::At(at) => Some(*at),
            _ => None,
        };
        let mut passed_over = Vec::new();
        for entry in listing.entries {
            if limit.is_some_and(|at| entry.id.timestamp > at) {
                continue;
            }
            if entry.is_good() {
                return Ok(Choice { entry, passed_over });
            }
            passed_over.push(format!("{} is {}", entry.id, entry.state.word()));
        }
        let when = limit.map(|at| format!(" at or before {at}")).unwrap_or_default();
        let by_name = match passed_over.iter().any(|line| line.ends_with(" is legacy")) {
            true => "; one that is legacy is restored only if it is named (--at SERVICE/INTERVAL/TIMESTAMP)",
            false => "",
        };
        let seen =
            if passed_over.is_empty() { String::new() } else { format!(" ({})", passed_over.join(", ")) };
        Err(BackupError::Refused(format!("service `{service}` has no good backup{when}{seen}{by_name}")))
    }
}

impl Inner {
    /// The services of an interval, or those of them that are wanted.
    pub(super) fn select(
        &self,
        interval: &Interval,
        wanted: &[ServiceName],
    ) -> Result<Vec<ServiceName>, BackupError> {
        let planned = self.plan.interval(interval.as_str())?;
        for name in wanted {
            self.plan.service(name.as_str())?;
            if planned.disabled.contains(name) {
                return Err(BackupError::Refused(format!(
                    "service `{name}` is disabled (`enabled = false`)"
                )));
            }
            if !planned.services.contains(name) {
                return Err(BackupError::Refused(format!(
                    "service `{name}` is not part of interval `{interval}`: use `backup run manual --service {name}`"
                )));
            }
        }
        let chosen = planned.services.iter().filter(|s| wanted.is_empty() || wanted.contains(s));
        Ok(chosen.cloned().collect())
    }

    /// The wanted services, which must exist, or all of them.
    pub(super) fn services_or_all(&self, wanted: &[ServiceName]) -> Result<Vec<ServiceName>, BackupError> {
        for name in wanted {
            self.plan.service(name.as_str())?;
        }
        if wanted.is_empty() { Ok(self.plan.services.keys().cloned().collect()) } else { Ok(wanted.to_vec()) }
    }
}
