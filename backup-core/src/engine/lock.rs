//! Backups that the store is to lock: this run's, and those of runs that died before they came to it.

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};

use super::{Inner, Run};
use crate::catalog::{BackupState, Entry, FactKind, Filter};
use crate::error::BackupError;
use crate::id::{ServiceName, Timestamp};
use crate::store::ObjectLock;

/// Where the store locks by itself, what is older is not looked at again: it may be from before it did.
const LOOK_BACK: TimeDelta = TimeDelta::days(7);

impl Inner {
    /// Locks what is committed and not locked yet, for as long as the store is to keep it from when it was made, or from when
    /// it was last found to be current, and notes that beside it. The note is written last: without it, the next run does it
    /// again.
    ///
    /// # Errors
    /// The first trouble; the others were tried all the same.
    pub(super) async fn lock_backups(&self, run: &Run, name: &ServiceName) -> Result<(), BackupError> {
        let Some(lock) = self.catalog.store().object_lock() else { return Ok(()) };
        let listing = self.catalog.list(&Filter::service(name)).await?;
        let mut trouble = None;
        for (entry, until) in listing.of(name).filter_map(|e| Some((e, self.due(e, lock)?))) {
            let locked = match self.catalog.lock(&entry.id, until).await {
                Ok(until) => {
                    let kind = FactKind::Retain { until: Timestamp::new(until) };
                    let body = self.fact(run, self.clock.now());
                    self.catalog.add_fact(&entry.id, kind, &body).await.map(drop)
                }
                Err(e) => Err(e),
            };
            if let Err(e) = locked {
                trouble.get_or_insert(e);
            }
        }
        trouble.map_or(Ok(()), Err)
    }

    /// Until when an entry is to be locked, if that is still to be done; `Some(None)` where the store knows.
    #[expect(clippy::option_option, reason = "whether, and until when")]
    fn due(&self, entry: &Entry, lock: ObjectLock) -> Option<Option<DateTime<Utc>>> {
        let worth_it = matches!(entry.state, BackupState::Good | BackupState::Suspect | BackupState::Pending);
        let locked = entry.retain_until();
        let made = entry.summary.as_ref().filter(|_| worth_it)?.backed_up_at;
        let now = self.clock.now();
        match lock {
            ObjectLock::OfTheStore => (locked.is_none() && now - made < LOOK_BACK).then_some(None),
            ObjectLock::For(time) => {
                let time = TimeDelta::from_std(time).ok()?;
                // What a later run found unchanged stands for that day, too.
                let current = entry.fresh_until(now).map_or(made, |at| at.time().max(made));
                let wanted = current.checked_add_signed(time)?;
                if wanted <= now || locked.is_some_and(|until| until >= wanted) {
                    return None;
                }
                // Locked once more, it is locked for a while longer, so that not every run has to.
                let spare = if locked.is_some() { time / 10 } else { TimeDelta::zero() };
                // Servers know seconds; rounded up, so that it is never shorter than asked for.
                let until = wanted.checked_add_signed(spare + TimeDelta::milliseconds(999))?;
                Some(Some(until.trunc_subsecs(0)))
            }
        }
    }
}
