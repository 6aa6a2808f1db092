//! `back_up`: many services, in parallel up to a limit, each safe from the others' failures.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::TimeDelta;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Engine, Inner, Run, RunReport, StepReport, millis};
use crate::catalog::{Entry, Filter, Listing};
use crate::error::{BackupError, chain};
use crate::event::Outcome;
use crate::id::{ArtifactName, Interval, RunId, ServiceName};

/// How long what a dead run left is kept for a service that is not configured: it may come back, and another
/// configuration may share the state directory.
const FORGET_AFTER: TimeDelta = TimeDelta::days(30);

/// Plain bytes by artifact, for the total of progress where the adapter has no idea.
pub(super) type UsualSizes = BTreeMap<ArtifactName, u64>;

static NOTHING_USUAL: UsualSizes = UsualSizes::new();

/// What to back up.
#[derive(Debug, Clone)]
pub struct BackupRequest {
    /// The series.
    pub interval: Interval,
    /// Only these services; empty: all of the interval.
    pub services: Vec<ServiceName>,
    /// Ends the run early, leaving every service as it was.
    pub cancel: CancellationToken,
    /// The host goes away at this moment: everything is captured at once, and nothing else is done. What earlier runs left is
    /// not tidied up, nothing is deleted, nothing copied.
    pub until: Option<Instant>,
    /// Services may be interrupted as long as there is time: see [`OpContext::last_chance`](crate::OpContext::last_chance).
    pub last_chance: bool,
    /// An exercise of that: see [`OpContext::rehearsal`](crate::OpContext::rehearsal).
    pub rehearsal: bool,
}

impl BackupRequest {
    /// All services of `interval`.
    #[must_use]
    pub fn new(interval: Interval) -> Self {
        Self {
            interval,
            services: Vec::new(),
            cancel: CancellationToken::new(),
            until: None,
            last_chance: false,
            rehearsal: false,
        }
    }
}

impl Engine {
    /// Backs up the services of an interval, then applies its retention to those that succeeded.
    ///
    /// A service's failure is in its step of the report and stops no other service.
    ///
    /// # Errors
    /// [`BackupError::Config`] for an unknown interval or service; [`BackupError::State`]. Nothing was begun then.
    pub async fn back_up(&self, request: &BackupRequest) -> Result<RunReport, BackupError> {
        let inner = &self.inner;
        let services = inner.select(&request.interval, &request.services)?;
        // Dropping this future cancels the work below; the tasks then end it in order.
        let cancel = request.cancel.child_token();
        let _on_drop = cancel.clone().drop_guard();
        let mut run = inner.begin("run", &services, cancel)?;
        (run.until, run.last_chance) = (request.until, request.last_chance);
        run.rehearsal = request.rehearsal;
        let run = Arc::new(run);
        let (usual, parallel) = match request.until {
            Some(_) => (BTreeMap::new(), services.len().max(1)),
            None => (inner.tidy_up(&run, &services, &request.interval).await, inner.parallel()),
        };
        let usual = Arc::new(usual);

        let steps = inner.for_each(&services, parallel, "back-up", |name| {
            let (inner, run, interval) = (Arc::clone(inner), Arc::clone(&run), request.interval.clone());
            let usual = Arc::clone(&usual);
            async move {
                let usual = usual.get(&name).unwrap_or(&NOTHING_USUAL);
                inner.one_service(&run, &name, &interval, usual).await
            }
        });
        let mut steps = steps.await;
        if request.until.is_some() {
            return Ok(inner.finish(&run, steps).await);
        }
        // Every service is undisturbed and its backup safe by now: however slow or broken another store is.
        let copied = inner.copy_after(&run, &services, &request.interval).await;
        steps.extend(copied.steps);
        let report = inner.finish(&run, steps).await;
        inner.tell_destinations(&report, &copied.destinations).await;
        Ok(report)
    }
}

impl Inner {
    /// One service, and then the retention of its series.
    async fn one_service(
        &self,
        run: &Run,
        name: &ServiceName,
        interval: &Interval,
        usual: &UsualSizes,
    ) -> StepReport {
        let started = tokio::time::Instant::now();
        let mut step = StepReport::new(name, "back-up");
        if let Err(error) = self.capture(run, name, interval, usual, &mut step).await {
            step.fail(&error);
        }
        if step.is_ok() && step.outcome != Outcome::Skipped && run.until.is_none() {
            if let Err(error) = self.lock_backups(run, name).await {
                let note = format!("not locked in the store: {}", chain(&error));
                self.warn(Some(name), note.clone());
                step.notes.push(note);
            }
            // The backup is safe: what retention meets is a note, not a failure of the backup.
            if let Err(error) = self.retain(run, name, interval, &mut step).await {
                let note = format!("retention: {}", chain(&error));
                self.warn(Some(name), note.clone());
                step.notes.push(note);
            }
        }
        step.ms = millis(started);
        self.announce(&step);
        step
    }

    /// Finishes what killed runs left: in the services, in the store, in the state directory. Trouble here is a
    /// warning; it must not keep new backups from being made. Returns what the listings tell of the usual sizes.
    async fn tidy_up(
        &self,
        run: &Run,
        services: &[ServiceName],
        interval: &Interval,
    ) -> BTreeMap<ServiceName, UsualSizes> {
        let mut usual = BTreeMap::new();
        let dead = self.state.dead_runs().unwrap_or_else(|e| {
            self.warn(None, chain(&e));
            Vec::new()
        });
        for name in services {
            let Some(service) = self.plan.services.get(name) else { continue };
            // Before what their runs left elsewhere is judged: what is given up here, nobody commits any more.
            match self.sweep(name).await {
                Ok(listing) => {
                    usual.insert(name.clone(), self.usual_sizes(&listing, name, interval).await);
                    if let Err(e) = self.settle_pending(run, name, &listing).await {
                        self.warn(Some(name), chain(&e));
                    }
                }
                Err(e) => self.warn(Some(name), chain(&e)),
            }
            if let Err(e) = self.reclaim_service(run, service, &dead).await {
                self.warn(Some(name), chain(&e));
            }
        }
        // What is not part of any backup.
        if let Err(e) = self.catalog.sweep_abandoned(services).await {
            self.warn(None, chain(&e));
        }
        // A run is forgotten when every service that it touched had its chance to reclaim what the run left there.
        for (id, guard) in dead {
            if let Err(e) = self.forget_unknown(&id, &guard) {
                self.warn(None, chain(&e));
            }
            if guard.touched().is_ok_and(|left| left.is_empty()) {
                drop(guard);
            } else {
                guard.keep();
            }
        }
        usual
    }

    /// What the artifacts of the newest good backup come to, of the same series if there is one. Only a hint: trouble is
    /// no news here.
    async fn usual_sizes(&self, listing: &Listing, name: &ServiceName, interval: &Interval) -> UsualSizes {
        let good: Vec<&Entry> = listing.of(name).filter(|e| e.is_good()).collect();
        let of_series = good.iter().find(|e| e.id.interval == *interval);
        let Some(newest) = of_series.or(good.first()) else { return UsualSizes::new() };
        let metadata = self.catalog.metadata(&newest.id).await;
        metadata
            .map(|m| m.artifacts.into_iter().map(|a| (a.name, a.plain_bytes)).collect())
            .unwrap_or_default()
    }

    /// Services that are configured no more have no adapter that could reclaim: after a while, and unless there is a
    /// restore to be finished, what the dead run kept for them in the state directory goes.
    fn forget_unknown(&self, id: &RunId, guard: &crate::state::RunGuard) -> Result<(), BackupError> {
        if id.started().is_none_or(|at| self.clock.now() - at.time() < FORGET_AFTER) {
            return Ok(());
        }
        for name in guard.touched()? {
            let journal =
                || Ok::<_, BackupError>(self.state.restores(&name)?.iter().any(|j| j.run_id == *id));
            if self.plan.services.contains_key(&name) || journal()? {
                continue;
            }
            guard.reclaimed(&name)?;
            self.warn(
                None,
                format!(
                    "forgot the interrupted run {id} of `{name}`, which is not configured any more: what it may have left in the service itself is still there"
                ),
            );
        }
        Ok(())
    }

    async fn reclaim_service(
        &self,
        run: &Run,
        service: &crate::plan::PlannedService,
        dead: &[(RunId, crate::state::RunGuard)],
    ) -> Result<(), BackupError> {
        let name = &service.name;
        // What a restore left belongs to its journal: it may be the very data that was live until then.
        let restores = self.state.restores(name)?;
        let mut mine = Vec::new();
        for (id, guard) in dead {
            if guard.touched()?.contains(name) && restores.iter().all(|j| j.run_id != *id) {
                mine.push((id.clone(), guard));
            }
        }
        if mine.is_empty() {
            return Ok(());
        }
        let ids: Vec<RunId> = mine.iter().map(|(id, _)| id.clone()).collect();
        for line in self.reclaim(run, service, &ids).await? {
            self.warn(Some(name), format!("removed what an interrupted run had left: {line}"));
        }
        mine.iter().try_for_each(|(_, guard)| guard.reclaimed(name))
    }

    async fn reclaim(
        &self,
        run: &Run,
        service: &crate::plan::PlannedService,
        dead: &[RunId],
    ) -> Result<Vec<String>, BackupError> {
        let cx = self.context(
            run,
            service,
            self.now(),
            super::deadline(Some(std::time::Duration::from_secs(120))),
        )?;
        let fail = |source| BackupError::Adapter {
            service: service.name.clone(),
            stage: crate::error::Stage::CleanUp,
            source,
        };
        let mut removed = service.adapter.reclaim(&cx, dead).await.map_err(fail)?;
        let without = self.without_commit(&service.name, dead).await?;
        if !without.is_empty() {
            removed.extend(service.adapter.reclaim_external(&cx, &without).await.map_err(fail)?);
        }
        Ok(removed)
    }

    async fn sweep(&self, name: &ServiceName) -> Result<Listing, BackupError> {
        let listing = self.catalog.list(&Filter::service(name)).await?;
        for entry in &listing.entries {
            if self.catalog.sweep(entry).await? {
                self.warn(Some(name), format!("gave up {}: its run ended without a commit", entry.id));
            }
        }
        Ok(listing)
    }
}
