//! Making the plan. Changes nothing.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::predict::{History, in_all};
use super::{
    PlannedRestore, RECOVERY_FORMAT, RecoveryAction, RecoveryPlan, RecoveryRequest, ServiceRecovery, Verified,
};
use crate::adapter::RestoreTarget;
use crate::catalog::{BackupState, Entry, Filter};
use crate::engine::{Engine, Inner, RestorePreview, RestoreRequest, Selector, deadline};
use crate::error::{BackupError, chain};
use crate::id::ServiceName;
use crate::metadata::Evidence;
use crate::plan::PlannedService;
use crate::state::{RestoreJournal, RestorePhase};

/// How long a service may take to say what it holds.
const LOOK: Duration = Duration::from_secs(60);

/// How a service was found.
#[derive(Debug)]
enum Found {
    /// Its restore.
    Lost(Box<RestorePreview>),
    /// What it holds.
    Holds(String),
}

/// A plan, and what its restores are made of.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) plan: RecoveryPlan,
    pub(super) previews: Vec<RestorePreview>,
}

impl Engine {
    /// Finds out what a recovery would do to each service, and how long that would take. Changes nothing. What stands in
    /// the way of one service is in its part of the plan.
    ///
    /// # Errors
    /// [`BackupError::Config`] for an unknown service.
    pub async fn plan_recovery(&self, request: &RecoveryRequest) -> Result<RecoveryPlan, BackupError> {
        self.make_recovery(request).await.map(|made| made.plan)
    }

    pub(super) async fn make_recovery(&self, request: &RecoveryRequest) -> Result<Made, BackupError> {
        let inner = &self.inner;
        for name in &request.overwrite {
            inner.service(name)?;
        }
        let mut names = inner.services_or_all(&request.services)?;
        // One that is named is meant, even if it takes part in no runs.
        names.retain(|n| {
            !request.services.is_empty() || inner.plan.services.get(n).is_some_and(|s| s.enabled)
        });
        let names = inner.in_turn(&names);
        let history = inner.history().await;
        let mut made = Made {
            plan: RecoveryPlan {
                format: RECOVERY_FORMAT,
                store_id: inner.catalog.store_id().to_owned(),
                made_at: inner.clock.now(),
                request: request.clone(),
                services: Vec::new(),
                parallel: inner.parallel(),
                predicted_ms: None,
            },
            previews: Vec::new(),
        };
        for name in &names {
            let service = inner.service(name)?;
            let action = match self.plan_one(request, service).await {
                Ok(Found::Lost(preview)) => {
                    let planned = planned(&preview, &history);
                    made.previews.push(*preview);
                    RecoveryAction::Restore(Box::new(planned))
                }
                Ok(Found::Holds(what)) => RecoveryAction::Skip {
                    why: format!(
                        "it runs and holds data: {what} (`--overwrite {name}` restores it all the same)"
                    ),
                },
                Err(e) => RecoveryAction::Blocked { why: chain(&e) },
            };
            made.plan.services.push(ServiceRecovery {
                service: name.clone(),
                kind: service.kind.clone(),
                after: inner.waits_for(name, &names).cloned().collect(),
                target_ms: service.rto.map(|rto| u64::try_from(rto.as_millis()).unwrap_or(u64::MAX)),
                action,
            });
        }
        made.plan.predicted_ms = in_all(&made.plan.services, made.plan.parallel);
        Ok(made)
    }

    /// What restoring a service would do, or why it is to be left alone.
    async fn plan_one(
        &self,
        request: &RecoveryRequest,
        service: &PlannedService,
    ) -> Result<Found, BackupError> {
        // What a restore that was cut short has left is not certain to be whole: it is made again, and finished by that.
        let half = |j: &RestoreJournal| matches!(j.phase, RestorePhase::Switching | RestorePhase::Undoing);
        let overwrite = request.overwrite.contains(&service.name)
            || self.inner.state.restores(&service.name)?.iter().any(half);
        let (selector, evidence) = self.inner.choose_for_recovery(request, service).await?;
        // Why it could not be restored does not matter if it need not be.
        if let Some(evidence) = &evidence
            && !overwrite
            && let Some(what) = self.inner.holds(service, evidence).await
        {
            return Ok(Found::Holds(what));
        }
        let restore = RestoreRequest { selector, ..RestoreRequest::new(service.name.clone()) };
        let preview = self.plan_restore(&restore).await?;
        if evidence.is_none()
            && !overwrite
            && let Some(what) = self.inner.holds(service, &preview.metadata.evidence).await
        {
            return Ok(Found::Holds(what));
        }
        Ok(Found::Lost(Box::new(preview)))
    }
}

impl Inner {
    /// `names` in an order in which none comes before one that it waits for; else by name.
    fn in_turn(&self, names: &[ServiceName]) -> Vec<ServiceName> {
        let mut sorted: Vec<ServiceName> = names.to_vec();
        sorted.sort();
        sorted.dedup();
        let mut out: Vec<ServiceName> = Vec::new();
        while let Some(at) = sorted.iter().position(|n| self.waits_for(n, names).all(|a| out.contains(a))) {
            out.push(sorted.remove(at));
        }
        out
    }

    /// The newest good backup and its evidence; where there is none, the newest of the old scripts, of which nothing is known
    /// before it is read.
    async fn choose_for_recovery(
        &self,
        request: &RecoveryRequest,
        service: &PlannedService,
    ) -> Result<(Selector, Option<Evidence>), BackupError> {
        let listing = self.catalog.list(&Filter::service(&service.name)).await?;
        let in_time = |e: &&Entry| request.at.is_none_or(|limit| e.id.timestamp <= limit);
        let of_time: Vec<&Entry> = listing.of(&service.name).filter(in_time).collect();
        let selector = request.at.map_or(Selector::Newest, Selector::At);
        if let Some(good) = of_time.iter().find(|e| e.is_good()) {
            let metadata = self.catalog.metadata(&good.id).await?;
            return Ok((selector, Some(metadata.evidence)));
        }
        let legacy = of_time.iter().find(|e| e.state == BackupState::Legacy);
        Ok((legacy.map_or(selector, |e| Selector::Exactly(e.id.clone())), None))
    }

    /// What a service holds, if it answers and holds data. That is told by the count that the backup has most of: a server
    /// that was just started has databases and users, too.
    async fn holds(&self, service: &PlannedService, backup: &Evidence) -> Option<String> {
        if !service.adapter.capabilities().probe {
            return None;
        }
        let run = self.quiet_run("recover", CancellationToken::new()).ok()?;
        let cx = self.context(&run, service, self.now(), deadline(Some(LOOK))).ok()?;
        // One that cannot be asked holds nothing that anybody could use.
        let found = service.adapter.probe(&cx, &RestoreTarget::Live).await.ok()?;
        let most = backup.counts.iter().max_by_key(|(_, n)| **n).filter(|(_, n)| **n > 0);
        match most {
            Some((name, then)) => {
                let now = *found.counts.get(name).filter(|n| **n > 0)?;
                // Somebody has to look whether that is all of it.
                let beware = if now < then / 2 { ", MUCH LESS than" } else { ", and" };
                Some(format!("{name} {now}{beware} {then} in the newest backup"))
            }
            None => {
                let (name, now) = found.counts.iter().find(|(_, n)| **n > 0)?;
                Some(format!("{name} {now}"))
            }
        }
    }
}

fn planned(preview: &RestorePreview, history: &History) -> PlannedRestore {
    let RestorePreview { entry, metadata, passed_over, plan, .. } = preview;
    let verified = entry.last_verification().filter(|(_, ok, _)| *ok);
    PlannedRestore {
        backup: entry.id.clone(),
        state: entry.state.word().to_owned(),
        as_of: metadata.consistent_from,
        consistency: metadata.consistency,
        verified: verified.map(|(level, _, at)| Verified { level, at }),
        passed_over: passed_over.clone(),
        plain_bytes: metadata.plain_bytes(),
        stored_bytes: metadata.size_bytes,
        steps: plan.steps.clone(),
        replaces: plan.replaces.clone(),
        space: plan.space.clone(),
        predicted: history.predict(&entry.id.service, metadata.plain_bytes()),
    }
}
