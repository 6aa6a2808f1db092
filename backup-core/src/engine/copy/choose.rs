//! What is to be copied: pure, but for the two listings.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::super::Inner;
use super::super::prune::retention_state;
use super::Target;
use super::service::Destination;
use crate::catalog::{BackupState, Entry, Filter, Listing, VerifyLevel};
use crate::error::BackupError;
use crate::id::{BackupId, Interval, ServiceName, StoreName};
use crate::plan::BackupPlan;
use crate::retention::{
    Decision, EntryState, KeepAll, PlanEntry, PlanOptions, RetentionPlan, RetentionPolicy,
};

/// What is to be done about one good backup and one other store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "action", content = "reason", rename_all = "kebab-case")]
pub enum CopyAction {
    /// It is missing there.
    Copy,
    /// It was found damaged there: what of it is not whole is sent again.
    Heal,
    /// It is there.
    There,
    /// It would be deleted there at once.
    NotKept(String),
    /// What is there in its place is something else.
    LeftOut(String),
}

/// One good backup and one other store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedCopy {
    /// The store.
    pub to: StoreName,
    /// The backup.
    pub id: BackupId,
    /// Its stored size.
    pub stored_bytes: u64,
    /// What is to be done.
    #[serde(flatten)]
    pub action: CopyAction,
}

/// What [`Engine::copy`](crate::Engine::copy) would do.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct CopyPlan {
    /// The store that is copied from.
    pub from: StoreName,
    /// Every good backup there, with what is to be done about it; newest first within a service.
    pub copies: Vec<PlannedCopy>,
    /// What could not be found out, one line each.
    pub errors: Vec<String>,
}

impl Default for CopyPlan {
    fn default() -> Self {
        let from = StoreName::new(crate::config::PRIMARY_STORE).expect("a literal name");
        Self { from, copies: Vec::new(), errors: Vec::new() }
    }
}

impl CopyPlan {
    /// What is to be copied, as a whole or in part.
    pub fn missing(&self) -> impl Iterator<Item = &PlannedCopy> {
        self.copies.iter().filter(|c| matches!(c.action, CopyAction::Copy | CopyAction::Heal))
    }
}

/// What concerns one service and one store.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    pub(super) copies: Vec<PlannedCopy>,
    /// The entries here of what is to be copied.
    pub(super) missing: Vec<Entry>,
    /// What is damaged there and good here: the entry here, that there, and at which level it was found.
    pub(super) damaged: Vec<(Entry, Entry, VerifyLevel)>,
    /// Unfinished ones there.
    pub(super) unfinished: Vec<Entry>,
    /// What could not be listed here.
    pub(super) errors: Vec<String>,
}

impl Inner {
    pub(super) async fn choose_copies(
        &self,
        name: &ServiceName,
        to: &Destination,
    ) -> Result<Chosen, BackupError> {
        let service = self.service(name)?;
        if !super::may_leave(service, to.store()?, service.encrypt.is_some()) {
            return Err(BackupError::Refused(format!(
                "`{name}` holds secrets and is not encrypted: nothing of it is copied to `{store}` (encrypt it, \
                 or set `secrets_in_clear = true` in [stores.{store}])",
                store = to.name()
            )));
        }
        let filter = Filter { service: Some(name.clone()), interval: to.target.only.clone() };
        let here = self.catalog.list(&filter).await?;
        let there = to.catalog().list(&filter).await?;
        if let Some(error) = there.errors.first() {
            // What is there decides what is missing.
            return Err(BackupError::Refused(format!("the store `{}` cannot be listed: {error}", to.name())));
        }
        Ok(choose(&here, there, &to.target, (&self.plan, &to.inner.plan), self.clock.now()))
    }
}

fn choose(
    here: &Listing,
    there: Listing,
    target: &Target,
    (plan, kept_there): (&BackupPlan, &BackupPlan),
    now: DateTime<Utc>,
) -> Chosen {
    let known: BTreeMap<&BackupId, &Entry> = there.entries.iter().map(|e| (&e.id, e)).collect();
    let good = || here.entries.iter().filter(|e| e.is_good() && target.wants(plan, &e.id.interval));
    let is_missing = |entry: &Entry| known.get(&entry.id).is_none_or(|other| is_unfinished(other));
    // What would be kept there, were all of it there.
    let mut series: BTreeMap<&Interval, Vec<PlanEntry>> = BTreeMap::new();
    for entry in good().filter(|e| is_missing(e)) {
        let item = PlanEntry::new(entry.id.clone(), entry.size_bytes(), EntryState::Good);
        series.entry(&entry.id.interval).or_default().push(item);
    }
    for entry in there.entries.iter().filter(|e| !is_unfinished(e)) {
        let Some(state) = retention_state(entry) else { continue };
        let mut item = PlanEntry::new(entry.id.clone(), entry.size_bytes(), state);
        item.held = entry.held();
        item.verified_by_restore = entry.verified_by_restore();
        item.retain_until = entry.retain_until();
        series.entry(&entry.id.interval).or_default().push(item);
    }
    let mut not_kept: BTreeMap<BackupId, String> = BTreeMap::new();
    for (interval, entries) in series {
        let policy = kept_there.intervals.get(interval).and_then(|i| i.policy.as_ref());
        let policy: &dyn RetentionPolicy = policy.map_or(&KeepAll as &dyn RetentionPolicy, |p| p);
        let verdicts = RetentionPlan::compute(policy, &entries, PlanOptions::complete_listing(), now);
        let gone = verdicts.items().iter().filter(|i| i.decision == Decision::Delete);
        not_kept.extend(gone.map(|i| (i.id.clone(), i.reason.clone())));
    }
    let mut chosen = Chosen { errors: here.errors.clone(), ..Chosen::default() };
    for entry in good() {
        let action = match known.get(&entry.id).filter(|other| !is_unfinished(other)) {
            Some(other) => match (compared(entry, other, now), &other.state) {
                (CopyAction::Heal, BackupState::Damaged { level, .. }) => {
                    chosen.damaged.push((entry.clone(), (*other).clone(), *level));
                    CopyAction::Heal
                }
                (action, _) => action,
            },
            None => match not_kept.get(&entry.id) {
                Some(reason) => CopyAction::NotKept(reason.clone()),
                None => CopyAction::Copy,
            },
        };
        if action == CopyAction::Copy {
            chosen.missing.push(entry.clone());
        }
        let (to, id) = (target.to.clone(), entry.id.clone());
        chosen.copies.push(PlannedCopy { to, id, stored_bytes: entry.size_bytes(), action });
    }
    chosen.unfinished = there.entries.into_iter().filter(is_unfinished).collect();
    chosen
}

fn is_unfinished(entry: &Entry) -> bool {
    matches!(entry.state, BackupState::Incomplete | BackupState::Aborted)
}

/// What is there under the name of a good backup. What a listing knows of both tells them apart; where it knows too
/// little, nothing is touched either.
fn compared(here: &Entry, there: &Entry, now: DateTime<Utc>) -> CopyAction {
    let id = &here.id;
    match &there.state {
        BackupState::Deleting => CopyAction::LeftOut(format!("{id} is being deleted there")),
        BackupState::Damaged { level, .. } => {
            let left = |why: &str| {
                CopyAction::LeftOut(format!(
                    "{id} is damaged there: {why}, it is left alone and does not count"
                ))
            };
            match level {
                _ if here.summary != there.summary => left("it is another backup than the one here"),
                // Bytes that are those of the original do not answer it.
                VerifyLevel::Restore => left("a test restore failed, which new bytes do not answer"),
                _ if there.held() => left("somebody holds it"),
                _ if there.retain_until().is_some_and(|until| until > now) => left("it is locked"),
                _ => CopyAction::Heal,
            }
        }
        _ if here.summary == there.summary => CopyAction::There,
        state => {
            CopyAction::LeftOut(format!("{id} is another backup there ({}): it is left alone", state.word()))
        }
    }
}
