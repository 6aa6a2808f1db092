//! `status`: is every service safe, and if not, what to do next.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use super::{Engine, Inner};
use crate::catalog::{BackupState, Entry, Filter, Listing};
use crate::error::BackupError;
use crate::id::{ServiceName, Timestamp};
use crate::state::JournalContent;

/// How far a moment may lie ahead of this host's clock and still be believed.
const SKEW: TimeDelta = TimeDelta::minutes(5);

/// How a service stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StatusLevel {
    /// There is a good backup, and it is young enough.
    Ok,
    /// There is a good backup, but something needs a look.
    Warning,
    /// No good backup, or too old. A disabled service is never that for its age.
    Critical,
}

/// How one service stands.
#[derive(Debug, Clone, Serialize)]
pub struct ServiceStatus {
    /// The service.
    pub service: ServiceName,
    /// The adapter's kind.
    pub kind: String,
    /// The verdict.
    pub level: StatusLevel,
    /// The newest good backup, over all intervals.
    pub newest_good: Option<Entry>,
    /// Since when its content is known to be current (a later check may have found it unchanged).
    pub fresh_at: Option<DateTime<Utc>>,
    /// Age of the newest good content.
    pub age: Option<Duration>,
    /// The oldest that it may get.
    pub max_age: Option<Duration>,
    /// Stored size of the newest good one against the one before: 0.1 means 10 % larger.
    pub trend: Option<f64>,
    /// How many good backups there are.
    pub good: usize,
    /// How many are suspect, damaged or unreadable.
    pub bad: usize,
    /// What is wrong, one line each.
    pub problems: Vec<String>,
    /// What to do next, a command where there is one.
    pub next_step: Option<String>,
}

impl Engine {
    /// How every configured service stands.
    ///
    /// # Errors
    /// [`BackupError`] if the store cannot be listed at all.
    pub async fn status(&self, services: &[ServiceName]) -> Result<Vec<ServiceStatus>, BackupError> {
        let inner = &self.inner;
        let names = inner.services_or_all(services)?;
        let filter = match names.as_slice() {
            [one] => Filter::service(one),
            _ => Filter::default(),
        };
        let listing = inner.catalog.list(&filter).await?;
        let journal = inner.interruptions().await?;
        names.iter().map(|name| inner.status_of(name, &listing, &journal)).collect()
    }
}

impl Inner {
    fn status_of(
        &self,
        name: &ServiceName,
        listing: &Listing,
        journal: &JournalContent,
    ) -> Result<ServiceStatus, BackupError> {
        let service = self.service(name)?;
        let now = self.clock.now();
        let good: Vec<&Entry> = listing.of(name).filter(|e| e.is_good()).collect();
        let newest = good.first().copied();
        // Clocks of hosts differ a little; what lies further ahead was dated by a wrong one and would look fresh for ever.
        let limit = now + SKEW;
        let fresh_at = good.iter().filter_map(|e| e.fresh_until(limit)).map(Timestamp::time).max();
        let age = fresh_at.map(|at| (now - at).to_std().unwrap_or_default());
        let mut status = ServiceStatus {
            service: name.clone(),
            kind: service.adapter.kind().to_owned(),
            level: StatusLevel::Ok,
            newest_good: newest.cloned(),
            fresh_at,
            age,
            max_age: service.max_age,
            trend: trend(&good),
            good: good.len(),
            bad: 0,
            problems: Vec::new(),
            next_step: None,
        };
        let mut problem = |level: StatusLevel, what: String, next: Option<String>| {
            if level > status.level || status.next_step.is_none() {
                status.next_step = next.or(status.next_step.take());
            }
            status.level = status.level.max(level);
            status.problems.push(what);
        };
        // First of all: the service may be down at this moment.
        for entry in journal.entries.iter().filter(|e| e.service == *name) {
            let open = self.judge(entry.clone())?;
            let level = if open.expected { StatusLevel::Warning } else { StatusLevel::Critical };
            problem(level, open.to_string(), (!open.expected).then(|| "backup resume".to_owned()));
        }
        for file in &journal.unreadable {
            problem(StatusLevel::Critical, file.clone(), None);
        }
        for error in &listing.errors {
            problem(StatusLevel::Critical, error.clone(), None);
        }
        let run = Some(format!("backup run manual --service {name}"));
        if newest.is_none() && service.enabled {
            match listing.of(name).find(|e| e.state == BackupState::Pending) {
                // Another one would have to wait, too.
                Some(pending) => problem(
                    StatusLevel::Critical,
                    format!("no good backup yet: {} is pending", pending.id),
                    Some(format!("backup verify {name}")),
                ),
                None => problem(StatusLevel::Critical, "no good backup".to_owned(), run.clone()),
            }
        }
        if let Some(newest) = newest.filter(|e| service.enabled && e.fresh_until(limit).is_none()) {
            let unknown = fresh_at.is_none() && service.max_age.is_some();
            problem(
                if unknown { StatusLevel::Critical } else { StatusLevel::Warning },
                format!("{} is dated in the future: a clock was wrong, and its age is not known", newest.id),
                run.clone(),
            );
        }
        if let (Some(age), Some(max)) = (age, service.max_age)
            && service.enabled
            && age > max
        {
            let (age, max) = (Duration::from_secs(age.as_secs()), Duration::from_secs(max.as_secs()));
            let what = format!(
                "the newest good backup is {} old, allowed are {}",
                humantime::format_duration(age),
                humantime::format_duration(max)
            );
            problem(StatusLevel::Critical, what, run);
        }
        if let Some(newest) = newest.filter(|e| service.enabled && e.retain_until().is_none())
            && self.catalog.store().object_lock().is_some()
        {
            let what = format!("{} is not locked in the store: `backup logs` tells why", newest.id);
            problem(StatusLevel::Warning, what, Some(format!("backup run manual --service {name}")));
        }
        let newest_at = newest.map(|e| e.id.timestamp);
        let mut bad = 0;
        for entry in listing.of(name) {
            let next = match &entry.state {
                BackupState::Suspect => {
                    format!("backup show {0}; if it is right: backup accept {0}", entry.id)
                }
                BackupState::Damaged { level, .. } => format!("backup verify {name} --level {level}"),
                BackupState::Unreadable { .. } => format!("backup show {}", entry.id),
                _ => continue,
            };
            bad += 1;
            // What a newer good backup has made up for is history.
            if newest_at.is_none_or(|at| entry.id.timestamp > at) {
                problem(StatusLevel::Warning, format!("{} is {}", entry.id, entry.state.word()), Some(next));
            }
        }
        for journal in self.state.restores(name)? {
            if journal.is_half_done() {
                let what = format!("a restore of {} was interrupted while it went live", journal.backup);
                problem(
                    StatusLevel::Critical,
                    what,
                    Some(format!("backup restore {name}, or backup undo {name}")),
                );
            }
        }
        status.bad = bad;
        Ok(status)
    }
}

/// How the stored size of the newest good backup compares with that of its predecessor in the same series.
fn trend(good: &[&Entry]) -> Option<f64> {
    let newest = good.first()?;
    let before = good.iter().skip(1).find(|e| e.id.interval == newest.id.interval)?;
    #[expect(clippy::cast_precision_loss, reason = "a trend needs no last digit")]
    let (now, before) = (newest.size_bytes() as f64, before.size_bytes() as f64);
    (before > 0.0).then(|| now / before - 1.0)
}
