//! Making the plan. Changes nothing.

use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::around::Around;
use super::planned::Needs;
use super::predict::{in_all, longest_first};
use super::{RECOVERY_FORMAT, RecoveryAction, RecoveryPlan, RecoveryRequest, ServiceRecovery};
use crate::catalog::{BackupState, Entry, Filter};
use crate::engine::capture::adapter_error;
use crate::engine::preview::Chosen;
use crate::engine::{Engine, Inner, RestorePreview, RestoreRequest, Selector, deadline};
use crate::error::{AdapterErrorKind, BackupError, Stage, chain};
use crate::id::{ServiceName, Timestamp};
use crate::metadata::Evidence;
use crate::plan::PlannedService;
use crate::state::{RestoreJournal, RestorePhase};

/// How long a service may take to say what it holds.
const LOOK: Duration = Duration::from_secs(60);

/// How many services are looked at at once.
const LOOKS: usize = 8;

/// How a service was found.
#[derive(Debug)]
pub(super) enum Found {
    /// Its restore.
    Lost(Box<RestorePreview>),
    /// A backup of it, while there is nothing that could be asked what restoring it would do.
    Absent(Box<Chosen>),
    /// A backup of it, and why it could not be asked.
    Unknown(Box<Chosen>, BackupError),
    /// The same for one that may run and does not answer: it may be reading its log, and hold everything.
    Silent(Box<Chosen>, BackupError),
    /// What it holds.
    Holds(String),
}

/// What a service says of its data.
enum Held {
    Nothing,
    Data(String),
    /// It does not answer.
    Silent(BackupError),
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
        self.inner.make_recovery(request).await.map(|made| made.plan)
    }
}

impl Inner {
    pub(super) async fn make_recovery(&self, request: &RecoveryRequest) -> Result<Made, BackupError> {
        for name in &request.overwrite {
            self.service(name)?;
        }
        let names = self.recovered(&request.services)?;
        let (history, around) = (self.history().await, self.around().await);
        let began = Instant::now();
        let found: Vec<_> = stream::iter(&names)
            .map(|name| self.plan_one(request, name, around.as_ref()))
            .buffered(LOOKS)
            .collect()
            .await;
        let looked = millis(began.elapsed());
        let mut plan = RecoveryPlan {
            format: RECOVERY_FORMAT,
            store_id: self.catalog.store_id().to_owned(),
            made_at: self.clock.now(),
            request: request.clone(),
            services: Vec::new(),
            stack: None,
            parallel: self.parallel_recovery(),
            predicted_ms: None,
            target_ms: self.plan.rto.map(millis),
        };
        // How the stack is may be known only when the files are back that it is made from.
        let first_lost = names
            .iter()
            .zip(&found)
            .any(|(n, f)| self.is_first(n, &names) && matches!(f, Ok(Found::Lost(_))));
        let guesses = around.as_ref().is_some_and(|a| a.unknown.is_some() || first_lost);
        let mut previews = Vec::new();
        let mut needs = Needs::default();
        for (name, found) in names.iter().zip(found) {
            let service = self.service(name)?;
            let part = around.as_ref().and_then(|a| a.part_of(service));
            // Whether there is reason to hope that it can be asked later.
            let later = |e: &BackupError| match is_missing(e, service) {
                true => guesses,
                false => first_lost && !self.is_first(name, &names),
            };
            let found = match found {
                Ok(Found::Lost(preview)) => needs.add(self, preview),
                other => other,
            };
            let action = match found {
                Ok(Found::Unknown(_, e)) if !later(&e) => RecoveryAction::Blocked { why: chain(&e) },
                Ok(Found::Holds(what)) => RecoveryAction::Skip {
                    why: format!(
                        "it runs and holds data: {what} (`--overwrite {name}` restores it all the same)"
                    ),
                },
                Ok(Found::Lost(preview)) => {
                    let planned = self.restore_of(service, &preview, &history).await;
                    previews.push(*preview);
                    RecoveryAction::Restore(Box::new(planned))
                }
                Ok(Found::Silent(chosen, e)) => {
                    let first = format!("wait until it answers: now {}", chain(&e));
                    RecoveryAction::Restore(Box::new(self.later(service, &chosen, first, &history).await))
                }
                Ok(Found::Unknown(chosen, e)) if !is_missing(&e, service) => {
                    let first = format!("look again: now {}", chain(&e));
                    RecoveryAction::Restore(Box::new(self.later(service, &chosen, first, &history).await))
                }
                Ok(Found::Absent(chosen) | Found::Unknown(chosen, _)) => {
                    let mut planned = self.absent(service, &chosen, part, &history).await;
                    let root = around.as_ref().and_then(|a| a.data_root.as_deref());
                    needs.add_likely(self, root, &mut planned);
                    RecoveryAction::Restore(Box::new(planned))
                }
                Err(e) => RecoveryAction::Blocked { why: chain(&e) },
            };
            let mut after: Vec<ServiceName> = self.waits_for(name, &names).cloned().collect();
            if !self.is_first(name, &names) {
                let before = plan.services.iter().filter(|s| s.action.restores());
                let before = before.map(|s| &s.service).filter(|n| self.is_first(n, &names));
                after.extend(before.filter(|n| !after.contains(n)).cloned().collect::<Vec<_>>());
            }
            plan.services.push(ServiceRecovery {
                service: name.clone(),
                kind: service.kind.clone(),
                after,
                target_ms: service.rto.map(millis),
                max_age_ms: service.max_age.map(millis),
                action,
            });
        }
        plan.services = longest_first(plan.services);
        let restores = plan.restores().count() > 0;
        plan.stack = around.as_ref().map(|a| a.steps(self, request.services.is_empty(), restores));
        // Looking may take its time, too: a backup of the old scripts is read. Whoever recovers looks before.
        let looked = if restores { looked } else { 0 };
        let beside = history.applications(plan.stack.as_ref(), restores).saturating_add(looked);
        plan.predicted_ms = in_all(&plan.services, plan.parallel).map(|ms| ms.saturating_add(beside));
        Ok(Made { plan, previews })
    }

    /// The services that a recovery is about, in an order in which they can be done.
    pub(in crate::engine) fn recovered(
        &self,
        wanted: &[ServiceName],
    ) -> Result<Vec<ServiceName>, BackupError> {
        let mut names = self.services_or_all(wanted)?;
        // One that is named is meant, even if it takes part in no runs.
        let taken = |n: &ServiceName| self.plan.services.get(n).is_some_and(|s| s.enabled && s.recovers);
        names.retain(|n| !wanted.is_empty() || taken(n));
        Ok(self.in_turn(&names))
    }

    /// What restoring a service would do, or why it is to be left alone.
    async fn plan_one(
        &self,
        request: &RecoveryRequest,
        name: &ServiceName,
        around: Option<&Around>,
    ) -> Result<Found, BackupError> {
        let service = self.service(name)?;
        let part = around.and_then(|a| a.part_of(service));
        let down = part.is_some_and(|p| !p.state.runs());
        // What a restore that was cut short has left is not certain to be whole: it is made again, and finished by that.
        let half = |j: &RestoreJournal| matches!(j.phase, RestorePhase::Switching | RestorePhase::Undoing);
        let overwrite = request.overwrite.contains(name) || self.state.restores(name)?.iter().any(half);
        let (selector, evidence) = self.choose_for_recovery(request.at, service).await?;
        // Why it could not be restored does not matter if it need not be.
        let mut held = match &evidence {
            Some(evidence) if !overwrite && !down => self.holds(service, evidence).await?,
            _ => Held::Nothing,
        };
        if let Held::Data(what) = held {
            return Ok(Found::Holds(what));
        }
        let restore = RestoreRequest { selector, ..RestoreRequest::new(name.clone()) };
        let chosen = self.choose_readable(request.at, &restore).await?;
        if down {
            return Ok(Found::Absent(Box::new(chosen)));
        }
        if evidence.is_none() && !overwrite {
            held = self.holds(service, &chosen.metadata.evidence).await?;
        }
        match held {
            Held::Data(what) => return Ok(Found::Holds(what)),
            Held::Silent(e) => return Ok(Found::Silent(Box::new(chosen), e)),
            Held::Nothing => {}
        }
        let restore = RestoreRequest { selector: Selector::Exactly(chosen.entry.id.clone()), ..restore };
        match self.preview(&restore, chosen.clone()).await {
            Ok(preview) => Ok(Found::Lost(Box::new(preview))),
            Err(e @ BackupError::Adapter { .. }) => Ok(Found::Unknown(Box::new(chosen), e)),
            Err(e) => Err(e),
        }
    }

    /// What restoring a service would do, now that it can be asked.
    pub(super) async fn plan_present(
        &self,
        request: &RecoveryRequest,
        name: &ServiceName,
    ) -> Result<Result<RestorePreview, String>, BackupError> {
        match self.plan_one(request, name, None).await? {
            Found::Lost(preview) => Ok(Ok(*preview)),
            Found::Holds(what) => Ok(Err(what)),
            Found::Unknown(_, e) => Err(e),
            Found::Silent(_, e) => Err(BackupError::Refused(format!(
                "what it holds is not known: {} (`--overwrite {name}` restores it all the same)",
                chain(&e)
            ))),
            Found::Absent(_) => Err(BackupError::Refused("it is not there".to_owned())),
        }
    }

    /// Whether a service is recovered before all others: they read what it restores, and it waits for none of them.
    pub(super) fn is_first(&self, name: &ServiceName, names: &[ServiceName]) -> bool {
        let first = self.plan.services.get(name).is_some_and(|s| s.adapter.comes_first());
        first && self.waits_for(name, names).all(|other| self.is_first(other, names))
    }
}

impl Inner {
    /// `names` in an order in which none comes before one that it waits for; else those that come first, and then by name.
    fn in_turn(&self, names: &[ServiceName]) -> Vec<ServiceName> {
        let mut sorted: Vec<ServiceName> = names.to_vec();
        sorted.sort();
        sorted.dedup();
        sorted.sort_by_key(|n| !self.is_first(n, names));
        let mut out: Vec<ServiceName> = Vec::new();
        while let Some(at) = sorted.iter().position(|n| self.waits_for(n, names).all(|a| out.contains(a))) {
            out.push(sorted.remove(at));
        }
        out
    }

    /// The newest good backup and its evidence; where there is none, the newest of the old scripts, of which nothing is known
    /// before it is read.
    pub(in crate::engine) async fn choose_for_recovery(
        &self,
        at: Option<Timestamp>,
        service: &PlannedService,
    ) -> Result<(Selector, Option<Evidence>), BackupError> {
        let listing = self.catalog.list(&Filter::service(&service.name)).await?;
        let in_time = |e: &&Entry| at.is_none_or(|limit| e.id.timestamp <= limit);
        let of_time: Vec<&Entry> = listing.of(&service.name).filter(in_time).collect();
        let selector = at.map_or(Selector::Newest, Selector::At);
        if let Some(good) = of_time.iter().find(|e| e.is_good()) {
            // Without a key, what is there can only not be compared.
            let metadata = self.opened_if_possible(self.catalog.metadata(&good.id).await?).await?;
            return Ok((selector, Some(metadata.evidence)));
        }
        let legacy = of_time.iter().find(|e| e.state == BackupState::Legacy);
        Ok((legacy.map_or(selector, |e| Selector::Exactly(e.id.clone())), None))
    }

    /// What a service holds, as far as it says. Compared is what the backup has most of.
    ///
    /// # Errors
    /// It runs and does not tell, in time or us: to restore over it would be to guess.
    async fn holds(&self, service: &PlannedService, backup: &Evidence) -> Result<Held, BackupError> {
        if !service.adapter.capabilities().probe {
            return Ok(Held::Nothing);
        }
        let run = self.quiet_run("recover", CancellationToken::new())?;
        let cx = self.context(&run, service, self.now(), deadline(Some(LOOK)))?;
        let looked = cx.within(service.adapter.data(&cx)).await.and_then(|found| found);
        let found = match looked {
            Ok(found) => found.counts,
            // It may be healthy and hold everything.
            Err(e) if matches!(e.kind(), AdapterErrorKind::Timeout | AdapterErrorKind::PermissionDenied) => {
                return Err(BackupError::Refused(format!(
                    "it did not tell whether it holds data: {} (`--overwrite {}` restores it all the same)",
                    chain(&e),
                    service.name
                )));
            }
            Err(e) if e.kind() == AdapterErrorKind::Unavailable => {
                return Ok(Held::Silent(adapter_error(service, Stage::Probe, e)));
            }
            // One that answers and cannot tell holds nothing that anybody could use.
            Err(_) => return Ok(Held::Nothing),
        };
        let there = found.iter().filter(|(_, now)| **now > 0);
        let Some((name, now)) = there.max_by_key(|(name, now)| (backup.counts.get(*name).copied(), **now))
        else {
            return Ok(Held::Nothing);
        };
        Ok(Held::Data(match backup.counts.get(name) {
            // Somebody has to look whether that is all of it.
            Some(then) if *now < then / 2 => {
                format!("{name} {now}, MUCH LESS than {then} in the newest backup")
            }
            Some(then) => format!("{name} {now}, and {then} in the newest backup"),
            None => format!("{name} {now}"),
        }))
    }
}

pub(in crate::engine) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Whether the container that a service runs in is missing.
fn is_missing(error: &BackupError, service: &PlannedService) -> bool {
    let gone =
        matches!(error, BackupError::Adapter { source, .. } if source.kind() == AdapterErrorKind::NotFound);
    gone && service.adapter.container().is_some()
}
