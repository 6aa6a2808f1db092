//! Retention: planned with reasons, printed, then applied under a lease on the store.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Engine, Inner, Run, RunReport, StepReport, millis};
use crate::catalog::{BackupState, Entry, Filter, Listing, PurgeExternal};
use crate::error::{AdapterError, BackupError, chain};
use crate::event::Event;
use crate::id::{BackupId, Interval, ServiceName};
use crate::metadata::ExternalRef;
use crate::plan::PlannedService;
use crate::retention::{EntryState, KeepAll, PlanEntry, PlanOptions, RetentionPlan, RetentionPolicy};
use crate::state::RestorePhase;

/// How long a retention may take before another host may take over its lease.
const LEASE: Duration = Duration::from_secs(3600);

/// What to prune.
#[derive(Debug, Clone, Default)]
pub struct PruneRequest {
    /// Only these services; empty: all.
    pub services: Vec<ServiceName>,
    /// Only this interval.
    pub interval: Option<Interval>,
    /// Judge legacy backups, too.
    pub include_legacy: bool,
    /// Ends it early, between two deletions.
    pub cancel: CancellationToken,
}

/// What retention will do to one series.
#[derive(Debug, Clone)]
pub struct SeriesPlan {
    /// The service.
    pub service: ServiceName,
    /// The interval.
    pub interval: Interval,
    /// A verdict with a reason for each backup.
    pub plan: RetentionPlan,
}

impl Engine {
    /// What [`prune`](Self::prune) would do now. Changes nothing.
    ///
    /// # Errors
    /// [`BackupError`] if the store cannot be listed at all.
    pub async fn plan_prune(&self, request: &PruneRequest) -> Result<Vec<SeriesPlan>, BackupError> {
        let mut plans = Vec::new();
        for name in self.inner.services_or_all(&request.services)? {
            let filter = Filter { service: Some(name.clone()), interval: request.interval.clone() };
            let listing = self.inner.catalog.list(&filter).await?;
            let read = self.inner.catalog.being_read(&name).await?;
            plans.extend(self.inner.plan_series(&name, &listing, &read, request.include_legacy)?);
        }
        Ok(plans)
    }

    /// Applies retention. A deletion that fails does not stop the others.
    ///
    /// # Errors
    /// [`BackupError`] if nothing could be begun; everything else is in the steps.
    pub async fn prune(&self, request: &PruneRequest) -> Result<RunReport, BackupError> {
        let inner = &self.inner;
        let services = inner.services_or_all(&request.services)?;
        let run = inner.begin("prune", &services, request.cancel.child_token())?;
        let mut steps = Vec::new();
        for name in &services {
            let started = Instant::now();
            let mut step = StepReport::new(name, "prune");
            let filter = Filter { service: Some(name.clone()), interval: request.interval.clone() };
            if let Err(error) =
                inner.prune_service(&run, name, &filter, request.include_legacy, &mut step).await
            {
                step.fail(&error);
            }
            step.ms = millis(started);
            inner.announce(&step);
            steps.push(step);
        }
        Ok(inner.finish(&run, steps).await)
    }
}

impl Engine {
    /// Deletes these backups, whatever retention says, because of `reason`: what they keep elsewhere goes with them.
    ///
    /// Held ones, those in use and the newest good one of each service stay: that is their step's error.
    ///
    /// # Errors
    /// [`BackupError`] if nothing could be begun; everything else is in the steps.
    pub async fn remove(
        &self,
        ids: &[BackupId],
        reason: &str,
        cancel: CancellationToken,
    ) -> Result<RunReport, BackupError> {
        let inner = &self.inner;
        let services: BTreeSet<ServiceName> = ids.iter().map(|id| id.service.clone()).collect();
        let services: Vec<ServiceName> = services.into_iter().collect();
        let run = inner.begin("prune", &inner.services_or_all(&services)?, cancel)?;
        let mut steps = Vec::new();
        for name in &services {
            let started = Instant::now();
            let mut step = StepReport::new(name, "prune");
            if let Err(error) = inner.remove_of(&run, name, ids, reason, &mut step).await {
                step.fail(&error);
            }
            step.ms = millis(started);
            inner.announce(&step);
            steps.push(step);
        }
        Ok(inner.finish(&run, steps).await)
    }
}

impl Inner {
    async fn remove_of(
        &self,
        run: &Run,
        name: &ServiceName,
        ids: &[BackupId],
        reason: &str,
        step: &mut StepReport,
    ) -> Result<(), BackupError> {
        let listing = self.catalog.list_uncached(&Filter::service(name)).await?;
        if let Some(error) = listing.errors.first() {
            return Err(BackupError::Refused(format!("the store cannot be listed completely: {error}")));
        }
        let newest = listing.of(name).find(|e| e.is_good()).map(|e| e.id.clone());
        let mut in_use = self.catalog.being_read(name).await?;
        in_use.extend(self.state.restores(name)?.into_iter().map(|j| j.backup));
        let mut items = Vec::new();
        let mut stays = Vec::new();
        for entry in listing.of(name).filter(|e| ids.contains(&e.id)) {
            let why = match entry {
                e if newest.as_ref() == Some(&e.id) => "the newest good backup stays",
                e if e.held() => "it is held",
                e if in_use.contains(&e.id) => "it is in use",
                e if e.retain_until().is_some_and(|until| until > self.clock.now()) => {
                    "the store has locked it (`backup show` tells until when)"
                }
                _ => {
                    let (id, bytes, reason) = (entry.id.clone(), entry.size_bytes(), reason.to_owned());
                    items.push(Going { id, bytes, reason });
                    continue;
                }
            };
            stays.push(format!("{}: {why}", entry.id));
        }
        if !items.is_empty() {
            self.delete_all(run, name, items, step).await?;
        }
        if stays.is_empty() { Ok(()) } else { Err(BackupError::Refused(stays.join("; "))) }
    }

    fn plan_series(
        &self,
        name: &ServiceName,
        listing: &Listing,
        being_read: &[BackupId],
        include_legacy: bool,
    ) -> Result<Vec<SeriesPlan>, BackupError> {
        // What a restore of this host reads or may resume must stay.
        let in_use: Vec<BackupId> = self
            .state
            .restores(name)?
            .into_iter()
            .filter(|j| !matches!(j.phase, RestorePhase::Switched | RestorePhase::Undone))
            .map(|j| j.backup)
            .collect();
        let mut series: BTreeMap<Interval, Vec<PlanEntry>> = BTreeMap::new();
        for entry in listing.of(name) {
            let Some(state) = retention_state(entry) else { continue };
            let mut item = PlanEntry::new(entry.id.clone(), entry.size_bytes(), state);
            item.held = entry.held();
            item.in_use = in_use.contains(&entry.id) || being_read.contains(&entry.id);
            item.verified_by_restore = entry.verified_by_restore();
            item.retain_until = entry.retain_until();
            series.entry(entry.id.interval.clone()).or_default().push(item);
        }
        let options = if listing.errors.is_empty() {
            PlanOptions::complete_listing()
        } else {
            PlanOptions::partial_listing()
        };
        let options = options.with_legacy(include_legacy);
        let plans = series.into_iter().map(|(interval, entries)| {
            let configured = self.plan.intervals.get(&interval).and_then(|i| i.policy.as_ref());
            let policy: &dyn RetentionPolicy = configured.map_or(&KeepAll as &dyn RetentionPolicy, |p| p);
            let plan = RetentionPlan::compute(policy, &entries, options, self.clock.now());
            SeriesPlan { service: name.clone(), interval, plan }
        });
        Ok(plans.collect())
    }

    /// The retention of one series, after a backup of it.
    pub(super) async fn retain(
        &self,
        run: &Run,
        name: &ServiceName,
        interval: &Interval,
        step: &mut StepReport,
    ) -> Result<(), BackupError> {
        if self.plan.intervals.get(interval).is_none_or(|i| i.policy.is_none()) {
            return Ok(());
        }
        let mut pruned = StepReport::new(name, "prune");
        let result = self.prune_service(run, name, &Filter::series(name, interval), false, &mut pruned).await;
        step.notes.extend(pruned.notes);
        result
    }

    async fn prune_service(
        &self,
        run: &Run,
        name: &ServiceName,
        filter: &Filter,
        include_legacy: bool,
        step: &mut StepReport,
    ) -> Result<(), BackupError> {
        let listing = self.catalog.list(filter).await?;
        for error in &listing.errors {
            self.warn(Some(name), error.clone());
        }
        for entry in &listing.entries {
            if self.catalog.sweep(entry).await? {
                step.notes.push(format!("gave up {}", entry.id));
            }
        }
        let plans = self.plan_series(name, &listing, &[], include_legacy)?;
        if plans.iter().all(|p| p.plan.deletions().next().is_none()) {
            return Ok(());
        }
        // What is kept is the reason for what goes: a cache that is behind must not stand in for a rotten metadata.json.
        let listing = self.catalog.list_uncached(filter).await?;
        // What a copier reads on any host stays until the next time.
        let read = self.catalog.being_read(name).await?;
        let plans = self.plan_series(name, &listing, &read, include_legacy)?;
        let items = plans.iter().flat_map(|p| p.plan.deletions());
        let items = items.map(|i| Going { id: i.id.clone(), bytes: i.size_bytes, reason: i.reason.clone() });
        self.delete_all(run, name, items.collect(), step).await
    }

    /// Deletes backups of one service under the lease of its retention. One that fails does not stop the others.
    async fn delete_all(
        &self,
        run: &Run,
        name: &ServiceName,
        items: Vec<Going>,
        step: &mut StepReport,
    ) -> Result<(), BackupError> {
        let lease = self.catalog.lease(&format!("retention-{name}"), &run.id, &self.host, LEASE).await;
        // On a full disk not even a lease can be written, and pruning is what helps then.
        let lease = match lease {
            Ok(lease) => Some(lease),
            Err(BackupError::Store { source: crate::error::StoreError::NoSpace { .. }, .. }) => None,
            Err(e) => return Err(e),
        };
        let mut failures = Vec::new();
        for item in items {
            if run.cancel.is_cancelled() {
                failures.push("cancelled".to_owned());
                break;
            }
            if let Some(lease) = &lease {
                lease.still_mine().await?;
            }
            match self.catalog.delete(&item.id, &Purge { inner: self, run }).await {
                Ok(report) => {
                    step.stored_bytes = step.stored_bytes.saturating_add(item.bytes);
                    step.notes.push(format!("deleted {}: {}", item.id, item.reason));
                    for external in report.kept_external {
                        step.notes
                            .push(format!("{} {} stays: another store made it", external.kind, external.id));
                    }
                    let Going { id, reason, bytes } = item;
                    self.events.emit(Event::Pruned { id, reason, bytes });
                }
                Err(e) => failures.push(format!("{}: {}", item.id, chain(&e))),
            }
        }
        if let Some(lease) = lease
            && let Err(e) = lease.release().await
        {
            tracing::debug!(error = %chain(&e), "The retention lease could not be released; it expires by itself.");
        }
        if failures.is_empty() { Ok(()) } else { Err(BackupError::Refused(failures.join("; "))) }
    }
}

/// How retention sees an entry; `None` for what is the sweeper's.
pub(super) fn retention_state(entry: &Entry) -> Option<EntryState> {
    Some(match entry.state {
        BackupState::Good => EntryState::Good,
        BackupState::Suspect => EntryState::Suspect,
        BackupState::Damaged { .. } => EntryState::Damaged,
        BackupState::Pending => EntryState::Pending,
        BackupState::Legacy => EntryState::Legacy,
        BackupState::Incomplete => EntryState::Incomplete,
        // Its marks must outlive any sleeping writer: the sweeper removes them when it is time.
        BackupState::Aborted => return None,
        BackupState::Deleting => EntryState::Deleting,
        BackupState::Unreadable { .. } => EntryState::Unreadable,
    })
}

/// A backup that is to be deleted.
struct Going {
    id: BackupId,
    bytes: u64,
    reason: String,
}

/// Deletes external artifacts through the configured adapters.
struct Purge<'a> {
    inner: &'a Inner,
    run: &'a Run,
}

#[async_trait]
impl PurgeExternal for Purge<'_> {
    async fn purge(&self, id: &BackupId, adapter: &str, refs: &[ExternalRef]) -> Result<(), AdapterError> {
        // That of the service itself, which has its keys, before any other of the kind.
        let services = &self.inner.plan.services;
        let own = services.get(&id.service).into_iter().chain(services.values());
        let service: Option<&PlannedService> = own.into_iter().find(|s| s.adapter.kind() == adapter);
        let Some(service) = service else {
            return Err(AdapterError::unsupported(format!(
                "no service of kind `{adapter}` is configured any more, which could delete {} external artifacts",
                refs.len()
            )));
        };
        let cx = self
            .inner
            .context(self.run, service, self.inner.now(), super::deadline(service.timeout))
            .map_err(|e| {
                AdapterError::new(crate::AdapterErrorKind::Other, "cannot prepare the deletion")
                    .with_source(e)
            })?;
        service.adapter.purge_external(&cx, refs).await
    }
}
