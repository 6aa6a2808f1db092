//! `recover`: the whole host. A plan first, as data, which says what would be done to each service and how long that would
//! take; then the same plan, executed.

mod around;
mod cold;
mod fallback;
mod plan;
mod planned;
mod predict;
mod run;

pub(super) use plan::millis as span;
pub(super) use predict::critical_path;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::room::Room;
use crate::adapter::Replaced;
use crate::catalog::VerifyLevel;
use crate::id::{BackupId, ServiceName, Timestamp};
use crate::metadata::Consistency;

/// The version of [`RecoveryPlan`]'s form.
pub const RECOVERY_FORMAT: u32 = 1;

/// What to recover.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryRequest {
    /// Only these services; empty: all that are enabled.
    pub services: Vec<ServiceName>,
    /// As of this moment: the newest backups that are not newer. `None`: the newest.
    pub at: Option<Timestamp>,
    /// Services to restore although they run and hold data.
    pub overwrite: Vec<ServiceName>,
}

/// What a recovery would do, service by service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryPlan {
    /// [`RECOVERY_FORMAT`].
    pub format: u32,
    /// The store that it was made for: the backups' names say nothing elsewhere.
    pub store_id: String,
    /// When it was made.
    pub made_at: DateTime<Utc>,
    /// What was asked for.
    pub request: RecoveryRequest,
    /// The services, in an order in which they can be done one after the other.
    pub services: Vec<ServiceRecovery>,
    /// What is done to the rest of the stack; `None` if none is configured.
    #[serde(default)]
    pub stack: Option<StackSteps>,
    /// How many are done at once.
    pub parallel: usize,
    /// How long all of it will take, in ms: to look as for this plan, the services along `after` and no more at once than
    /// `parallel`, and the applications. `None` if one of the services was never measured.
    pub predicted_ms: Option<u64>,
    /// How long all of it may take, in ms.
    #[serde(default)]
    pub target_ms: Option<u64>,
}

/// What a recovery does to the parts of a stack that no service runs in: applications, which use the services.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackSteps {
    /// Those that run, and are stopped before anything is restored: nobody shall write to half a host.
    pub stops: Vec<String>,
    /// Those that are started last, if every service came back.
    pub starts: Vec<String>,
    /// Why the parts are not known yet, e.g. because a file is missing that is restored first.
    pub unknown: Option<String>,
}

/// What is to be done to one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRecovery {
    /// The service.
    pub service: ServiceName,
    /// The adapter's kind.
    pub kind: String,
    /// Which of the plan's services come before it.
    pub after: Vec<ServiceName>,
    /// How long it may take, in ms.
    pub target_ms: Option<u64>,
    /// How old the data may be, in ms.
    #[serde(default)]
    pub max_age_ms: Option<u64>,
    /// What.
    pub action: RecoveryAction,
}

/// What is done to a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum RecoveryAction {
    /// It is restored.
    Restore(Box<PlannedRestore>),
    /// It is left alone.
    Skip {
        /// Why.
        why: String,
    },
    /// It cannot be restored as things are.
    Blocked {
        /// Why.
        why: String,
    },
}

/// One service's restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedRestore {
    /// The backup.
    pub backup: BackupId,
    /// What it is worth: `good`, `legacy`.
    pub state: String,
    /// The moment that it shows.
    pub as_of: DateTime<Utc>,
    /// How far its parts belong together.
    pub consistency: Consistency,
    /// Its newest verification, if it was good.
    pub verified: Option<Verified>,
    /// Newer backups that were not taken, and why, one line each.
    pub passed_over: Vec<String>,
    /// Bytes before compression.
    pub plain_bytes: u64,
    /// Bytes as stored.
    pub stored_bytes: u64,
    /// What is done, in order.
    pub steps: Vec<String>,
    /// Whether what is there is looked at again before: nobody could tell when the plan was made.
    #[serde(default)]
    pub looks_again: bool,
    /// The part of the stack that is made or started for it.
    #[serde(default)]
    pub starts: Option<String>,
    /// Secrets of its configuration that are not to be had on this host, and why, one line each.
    #[serde(default)]
    pub missing: Vec<String>,
    /// What an operator should know before, one line each.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// What is replaced, and kept aside.
    pub replaces: Vec<Replaced>,
    /// Free space that it needs, and what there is. Of one that has to be made first, as much as the backup holds.
    pub space: Vec<Room>,
    /// How long it will take. `None` if nothing like it was ever measured.
    pub predicted: Option<Prediction>,
}

/// A verification that found nothing wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// How deep it went.
    pub level: VerifyLevel,
    /// When.
    pub at: Timestamp,
}

/// How long something will take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prediction {
    /// Milliseconds.
    pub ms: u64,
    /// What it is concluded from.
    pub from: String,
}

/// A restore into scratch of the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScratchRestore {
    /// When it was done.
    pub at: Timestamp,
    /// How long it took, in ms.
    pub ms: u64,
    /// How much it was, before compression.
    pub plain_bytes: u64,
}

impl RecoveryPlan {
    /// The services that it restores, in order.
    pub fn restores(&self) -> impl Iterator<Item = (&ServiceRecovery, &PlannedRestore)> {
        self.services.iter().filter_map(|s| match &s.action {
            RecoveryAction::Restore(restore) => Some((s, &**restore)),
            _ => None,
        })
    }

    /// Where `now`, made for the same request later, would do something else: one line each.
    #[must_use]
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let mut out = Vec::new();
        if self.store_id != now.store_id {
            out.push("it was made for another store".to_owned());
        }
        for then in &self.services {
            let Some(now) = now.services.iter().find(|s| s.service == then.service) else {
                out.push(format!("{}: it is not to be recovered any more", then.service));
                continue;
            };
            let (then_does, now_does) = (then.action.gist(), now.action.gist());
            if then_does != now_does {
                out.push(format!("{}: then {then_does}, now {now_does}", then.service));
            }
        }
        let known = |name: &ServiceName| self.services.iter().any(|s| s.service == *name);
        out.extend(
            now.services.iter().filter(|s| !known(&s.service)).map(|s| format!("{}: it is new", s.service)),
        );
        let stopped = |plan: &Self| plan.stack.as_ref().map(|s| s.stops.clone()).unwrap_or_default();
        let (then, now) = (stopped(self), stopped(now));
        out.extend(
            now.iter().filter(|p| !then.contains(p)).map(|p| format!("{p}: it runs, and would be stopped")),
        );
        out
    }
}

impl RecoveryAction {
    fn restores(&self) -> bool {
        matches!(self, Self::Restore(_))
    }

    /// What counts when two plans are compared: not times, sizes or free space.
    fn gist(&self) -> String {
        match self {
            Self::Restore(restore) => {
                let replaced: Vec<&str> = restore.replaces.iter().map(|r| r.what.as_str()).collect();
                match (replaced.as_slice(), &restore.starts) {
                    ([], Some(part)) => format!("{} is restored into `{part}`, made anew", restore.backup),
                    ([], None) => format!("{} is restored", restore.backup),
                    (all, _) => format!("{} is restored in place of {}", restore.backup, all.join(", ")),
                }
            }
            Self::Skip { .. } => "it is left alone".to_owned(),
            Self::Blocked { .. } => "it cannot be restored".to_owned(),
        }
    }
}
