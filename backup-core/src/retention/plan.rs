//! [`RetentionPlan`]: the policy's verdicts under the engine's floors.

use std::borrow::Cow;
use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use super::policy::complete;
use super::{Candidate, RetentionPolicy, Verdict};
use crate::id::{BackupId, Timestamp};

/// What is known of a directory in the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryState {
    /// Committed, and nothing bad is known.
    Good,
    /// Committed, but evidence or size collapsed and nobody accepted that.
    Suspect,
    /// The newest verification found damage.
    Damaged,
    /// An external snapshot is not complete yet.
    Pending,
    /// Made by the scripts that came before.
    Legacy,
    /// Reserved, not committed.
    Incomplete,
    /// The sweeper won: it can never be committed.
    Aborted,
    /// A deletion was begun.
    Deleting,
    /// Not understood: broken, newer, or with an unknown feature.
    Unreadable,
}

impl EntryState {
    /// The word that people are shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Suspect => "suspect",
            Self::Damaged => "damaged",
            Self::Pending => "pending",
            Self::Legacy => "legacy",
            Self::Incomplete => "incomplete",
            Self::Aborted => "aborted",
            Self::Deleting => "deleting",
            Self::Unreadable => "unreadable",
        }
    }
}

/// What a plan knows of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlanEntry {
    /// Its name.
    pub id: BackupId,
    /// Its stored size in bytes.
    pub size_bytes: u64,
    /// Its state.
    pub state: EntryState,
    /// Somebody put a hold on it.
    pub held: bool,
    /// A restore, a drill, a verification or a copy reads it.
    pub in_use: bool,
    /// A test restore of it succeeded.
    pub verified_by_restore: bool,
    /// The store refuses to delete it before then.
    pub retain_until: Option<DateTime<Utc>>,
}

impl PlanEntry {
    /// An entry that nobody holds or uses; the rest can be set by field.
    #[must_use]
    pub fn new(id: BackupId, size_bytes: u64, state: EntryState) -> Self {
        Self {
            id,
            size_bytes,
            state,
            held: false,
            in_use: false,
            verified_by_restore: false,
            retain_until: None,
        }
    }

    fn candidate(&self) -> Candidate {
        Candidate { timestamp: self.id.timestamp, size_bytes: self.size_bytes }
    }
}

/// How far a plan may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlanOptions {
    /// The listing that gave the entries had no error. Otherwise nothing is deleted at all.
    pub listing_complete: bool,
    /// Legacy backups are judged, too.
    pub include_legacy: bool,
}

impl PlanOptions {
    /// For a listing without errors; legacy backups stay.
    #[must_use]
    pub const fn complete_listing() -> Self {
        Self { listing_complete: true, include_legacy: false }
    }

    /// For a listing with an error: the plan keeps everything.
    #[must_use]
    pub const fn partial_listing() -> Self {
        Self { listing_complete: false, include_legacy: false }
    }

    /// Sets whether legacy backups are judged, too.
    #[must_use]
    pub const fn with_legacy(mut self, include: bool) -> Self {
        self.include_legacy = include;
        self
    }
}

/// Keep or delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// It stays.
    Keep,
    /// It goes.
    Delete,
}

/// What happens to one backup, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlanItem {
    /// The backup.
    pub id: BackupId,
    /// Its stored size in bytes.
    pub size_bytes: u64,
    /// Its state.
    pub state: EntryState,
    /// What happens to it.
    pub decision: Decision,
    /// Why, for people.
    pub reason: String,
}

/// What retention will do, as data: print it, then apply it.
///
/// # Floors
/// They beat every policy. Of each service and interval these stay:
/// * the newest good backup, and the newest good one that a test restore proved;
/// * what is held, in use, or locked by the store;
/// * everything, if the listing had an error;
/// * pending, incomplete and unreadable ones (incomplete ones are the sweeper's);
/// * legacy ones, unless [`PlanOptions::include_legacy`] asks for them.
///
/// # What counts
/// Only good backups take a place (`last 2 of 3`). A suspect or damaged one stays while no newer good one exists; then
/// it stays for as long as the policy would keep it if it were good, judged alone among the good ones (Proxmox Backup
/// keeps failed backups for diagnosis by a similar rule). Legacy ones, if asked for, are judged all together among the
/// good ones, under the same condition. Neither ever costs a good one its place.
///
/// A begun deletion is finished, and what was aborted goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct RetentionPlan {
    items: Vec<PlanItem>,
}

impl RetentionPlan {
    /// Judges `entries`, in any order. Those of several services or intervals are judged apart, all by `policy`.
    #[must_use]
    pub fn compute(
        policy: &dyn RetentionPolicy,
        entries: &[PlanEntry],
        options: PlanOptions,
        now: DateTime<Utc>,
    ) -> Self {
        let mut sorted: Vec<&PlanEntry> = entries.iter().collect();
        sorted.sort_by(|a, b| series(a).cmp(&series(b)).then(b.id.timestamp.cmp(&a.id.timestamp)));
        let items = sorted
            .chunk_by(|a, b| series(a) == series(b))
            .flat_map(|newest_first| Series::new(policy, newest_first, options, now).judge())
            .collect();
        Self { items }
    }

    /// All backups, by service and interval, newest first.
    #[must_use]
    pub fn items(&self) -> &[PlanItem] {
        &self.items
    }

    /// What goes, oldest of each series first.
    pub fn deletions(&self) -> impl Iterator<Item = &PlanItem> {
        self.items.iter().rev().filter(|item| item.decision == Decision::Delete)
    }

    /// Stored bytes of what goes.
    #[must_use]
    pub fn freed_bytes(&self) -> u64 {
        self.deletions().fold(0, |sum, item| sum.saturating_add(item.size_bytes))
    }
}

fn series(entry: &PlanEntry) -> (&str, &str) {
    (entry.id.service.as_str(), entry.id.interval.as_str())
}

/// The backups of one service and interval, while they are judged.
struct Series<'a> {
    policy: &'a dyn RetentionPolicy,
    newest_first: &'a [&'a PlanEntry],
    options: PlanOptions,
    now: DateTime<Utc>,
    good: Vec<Candidate>,
    newest_proven: Option<Timestamp>,
}

impl<'a> Series<'a> {
    fn new(
        policy: &'a dyn RetentionPolicy,
        newest_first: &'a [&'a PlanEntry],
        options: PlanOptions,
        now: DateTime<Utc>,
    ) -> Self {
        let good = || newest_first.iter().filter(|e| e.state == EntryState::Good);
        let newest_proven = good().find(|e| e.verified_by_restore).map(|e| e.id.timestamp);
        let good = good().map(|e| e.candidate()).collect();
        Self { policy, newest_first, options, now, good, newest_proven }
    }

    fn newest_good(&self) -> Option<Timestamp> {
        self.good.first().map(|c| c.timestamp)
    }

    fn judge(&self) -> Vec<PlanItem> {
        let good = self.verdicts(&self.good);
        let legacy = if self.options.include_legacy { self.with_legacy() } else { BTreeMap::new() };
        self.newest_first
            .iter()
            .map(|entry| {
                let (decision, reason) = self.decide(entry, self.verdict(entry, &good, &legacy));
                let PlanEntry { id, size_bytes, state, .. } = entry;
                PlanItem { id: id.clone(), size_bytes: *size_bytes, state: *state, decision, reason }
            })
            .collect()
    }

    /// The floors over the verdict.
    fn decide(&self, entry: &PlanEntry, verdict: Verdict) -> (Decision, String) {
        if !self.options.listing_complete {
            return (Decision::Keep, "nothing is deleted: the listing is not complete".to_owned());
        }
        let mut reasons: Vec<Cow<'_, str>> = self.floors(entry);
        match verdict {
            Verdict::Delete(reason) if reasons.is_empty() => (Decision::Delete, reason.into_owned()),
            Verdict::Delete(_) => (Decision::Keep, reasons.join(", ")),
            Verdict::Keep(reason) => {
                reasons.push(reason);
                (Decision::Keep, reasons.join(", "))
            }
        }
    }

    fn floors(&self, entry: &PlanEntry) -> Vec<Cow<'static, str>> {
        let mut reasons: Vec<Cow<'static, str>> = Vec::new();
        let good_at = (entry.state == EntryState::Good).then_some(entry.id.timestamp);
        if good_at.is_some() && good_at == self.newest_good() {
            reasons.push("newest good".into());
        }
        if good_at.is_some() && good_at == self.newest_proven {
            reasons.push("newest one proven by a restore".into());
        }
        // A deletion that was begun took the metadata away: no hold brings that back.
        if entry.held && entry.state != EntryState::Deleting {
            reasons.push("held".into());
        }
        if entry.in_use {
            reasons.push("in use".into());
        }
        if let Some(until) = entry.retain_until.filter(|until| *until > self.now) {
            let until = until.to_rfc3339_opts(SecondsFormat::Secs, true);
            reasons.push(format!("locked by the store until {until}").into());
        }
        reasons
    }

    fn verdict(
        &self,
        entry: &PlanEntry,
        good: &BTreeMap<Timestamp, Verdict>,
        legacy: &BTreeMap<Timestamp, Verdict>,
    ) -> Verdict {
        let at = entry.id.timestamp;
        let state = entry.state.as_str();
        let outsider = |verdict: Option<Verdict>| match verdict {
            _ if self.newest_good().is_none_or(|newest| newest < at) => {
                Verdict::Keep(format!("{state}: no newer good one").into())
            }
            Some(Verdict::Delete(reason)) => Verdict::Delete(format!("{state}, {reason}").into()),
            Some(Verdict::Keep(reason)) => Verdict::Keep(format!("{state}: kept as {reason}").into()),
            None => Verdict::Keep(format!("{state}: not judged").into()),
        };
        match entry.state {
            EntryState::Good => good.get(&at).cloned().unwrap_or_else(|| Verdict::Keep("not judged".into())),
            EntryState::Suspect | EntryState::Damaged => outsider(self.alone(entry)),
            EntryState::Legacy if self.options.include_legacy => outsider(legacy.get(&at).cloned()),
            EntryState::Legacy => Verdict::Keep("legacy: goes only when asked".into()),
            EntryState::Pending | EntryState::Incomplete | EntryState::Unreadable => {
                Verdict::Keep(format!("{state}: never touched by retention").into())
            }
            EntryState::Aborted => Verdict::Delete("aborted: was never complete".into()),
            EntryState::Deleting => Verdict::Delete("its deletion was begun".into()),
        }
    }

    fn verdicts(&self, newest_first: &[Candidate]) -> BTreeMap<Timestamp, Verdict> {
        let verdicts = complete(self.policy.evaluate(newest_first, self.now), newest_first.len());
        newest_first.iter().map(|c| c.timestamp).zip(verdicts).collect()
    }

    /// The verdict on `entry` if it were one more good backup.
    fn alone(&self, entry: &PlanEntry) -> Option<Verdict> {
        let at = entry.id.timestamp;
        let mut candidates = self.good.clone();
        let position = candidates.partition_point(|c| c.timestamp >= at);
        candidates.insert(position, entry.candidate());
        complete(self.policy.evaluate(&candidates, self.now), candidates.len()).into_iter().nth(position)
    }

    /// The verdicts if the legacy backups were good, too.
    fn with_legacy(&self) -> BTreeMap<Timestamp, Verdict> {
        let judged = |e: &&&PlanEntry| matches!(e.state, EntryState::Good | EntryState::Legacy);
        let candidates: Vec<Candidate> =
            self.newest_first.iter().filter(judged).map(|e| e.candidate()).collect();
        self.verdicts(&candidates)
    }
}
