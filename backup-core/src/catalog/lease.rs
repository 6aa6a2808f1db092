//! Fenced leases: who may delete or copy in a store that several hosts share.
//!
//! A lease is a sequence of create-only epoch keys, `.leases/<name>/<epoch>.json`. The highest epoch holds it until its
//! `expires_at`. Taking over means creating the next epoch, which exactly one of any number of hosts can do; a holder
//! that was paused past its lease finds a higher epoch and stops. Works on any [`Store`](crate::Store).

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};

use super::{Catalog, json, leases_key, read_small};
use crate::error::{BackupError, StoreError};
use crate::id::{RunId, StoreKey};
use crate::metadata::Process;

/// Clocks of hosts differ: an expired lease is honoured that much longer.
const SKEW: Duration = Duration::from_secs(30);

/// What an epoch key holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Epoch {
    run_id: RunId,
    host: String,
    /// The process: if it is provably dead, nobody waits for its lease to expire.
    process: Process,
    expires_at: DateTime<Utc>,
}

/// A held lease. Check [`still_mine`](Self::still_mine) before every destructive step; [`release`](Self::release) it.
#[derive(Debug)]
#[must_use = "an unreleased lease keeps others waiting until it expires"]
pub struct Lease {
    catalog: Catalog,
    dir: StoreKey,
    epoch: u64,
    mine: Epoch,
}

impl Catalog {
    /// Takes the lease `name` (a plain file name) for `ttl`.
    ///
    /// # Errors
    /// [`BackupError::Refused`] names the holder if it is taken; [`BackupError::Store`].
    pub async fn lease(
        &self,
        name: &str,
        run: &RunId,
        host: &str,
        ttl: Duration,
    ) -> Result<Lease, BackupError> {
        let dir = leases_key().join(name).map_err(|e| BackupError::Refused(e.to_string()))?;
        let epochs = self.epochs(&dir).await?;
        let newest = epochs.last().copied();
        if let Some(epoch) = newest {
            match read_small(self.store.as_ref(), &epoch_key(&dir, epoch)).await {
                Ok(text) => {
                    if let Ok(held) = serde_json::from_slice::<Epoch>(&text)
                        && self.clock.now() < held.expires_at + SKEW
                        && held.expires_at > DateTime::<Utc>::MIN_UTC
                        && !held.process.is_dead()
                    {
                        return Err(taken(name, &held));
                    }
                }
                Err(StoreError::NotFound { .. }) => {}
                Err(e) => return Err(BackupError::store(format!("take the lease `{name}`"), e)),
            }
        }
        let ttl = TimeDelta::from_std(ttl).unwrap_or(TimeDelta::MAX);
        let mine = Epoch {
            run_id: run.clone(),
            host: host.to_owned(),
            process: Process::this(),
            expires_at: self.clock.now() + ttl,
        };
        let epoch = newest.map_or(1, |e| e + 1);
        match super::draft::create_or_same(self.store.as_ref(), &epoch_key(&dir, epoch), json(&mine)?).await {
            Ok(()) => {}
            Err(e) if e.is_already_exists() => {
                return Err(BackupError::Refused(format!(
                    "the lease `{name}` was taken by another host just now: try again"
                )));
            }
            Err(e) => return Err(BackupError::store(format!("take the lease `{name}`"), e)),
        }
        // Older epochs fence nobody any more; whatever stays is harmless.
        for old in epochs {
            if let Err(error) = self.store.delete(&epoch_key(&dir, old)).await {
                tracing::debug!(%error, "An old lease epoch could not be removed.");
            }
        }
        Ok(Lease { catalog: self.clone(), dir, epoch, mine })
    }

    async fn epochs(&self, dir: &StoreKey) -> Result<Vec<u64>, BackupError> {
        let keys: Vec<StoreKey> = self
            .store
            .list_keys(Some(dir))
            .try_collect()
            .await
            .map_err(|e| BackupError::store("list the leases", e))?;
        let mut epochs: Vec<u64> =
            keys.iter().filter_map(|k| k.file_name().strip_suffix(".json")?.parse().ok()).collect();
        epochs.sort_unstable();
        Ok(epochs)
    }
}

fn epoch_key(dir: &StoreKey, epoch: u64) -> StoreKey {
    dir.join(&format!("{epoch:020}.json")).expect("digits are a plain name")
}

fn taken(name: &str, held: &Epoch) -> BackupError {
    BackupError::Refused(format!(
        "the lease `{name}` is held by {} (run {}) until {}",
        held.host,
        held.run_id,
        held.expires_at.format("%Y-%m-%d %H:%M:%S UTC")
    ))
}

impl Lease {
    /// Fails if the lease expired or somebody took over.
    ///
    /// # Errors
    /// [`BackupError::Refused`]; [`BackupError::Store`].
    pub async fn still_mine(&self) -> Result<(), BackupError> {
        let newest = self.catalog.epochs(&self.dir).await?.last().copied();
        if newest != Some(self.epoch) {
            return Err(BackupError::Refused("another host took over our lease on the store".into()));
        }
        // After the store has answered, which may have taken until now.
        if self.catalog.clock.now() >= self.mine.expires_at {
            return Err(BackupError::Refused("our lease on the store expired: run again".into()));
        }
        Ok(())
    }

    /// Makes it last `ttl` from now, if less than half of that is left: for work whose end nobody knows.
    ///
    /// # Errors
    /// [`BackupError::Refused`] if it expired or somebody took over; [`BackupError::Store`].
    pub(crate) async fn keep(&mut self, ttl: Duration) -> Result<(), BackupError> {
        let ttl = TimeDelta::from_std(ttl).unwrap_or(TimeDelta::MAX);
        let now = self.catalog.clock.now();
        if self.mine.expires_at - now > ttl / 2 {
            return Ok(());
        }
        self.still_mine().await?;
        let longer = Epoch { expires_at: now + ttl, ..self.mine.clone() };
        let (old, next) = (epoch_key(&self.dir, self.epoch), epoch_key(&self.dir, self.epoch + 1));
        match super::draft::create_or_same(self.catalog.store.as_ref(), &next, json(&longer)?).await {
            Ok(()) => {}
            Err(e) if e.is_already_exists() => {
                return Err(BackupError::Refused("another host took over our lease on the store".into()));
            }
            Err(e) => return Err(BackupError::store("renew a lease", e)),
        }
        (self.mine, self.epoch) = (longer, self.epoch + 1);
        if let Err(error) = self.catalog.store.delete(&old).await {
            tracing::debug!(%error, "An old lease epoch could not be removed.");
        }
        Ok(())
    }

    /// Gives the lease back. The epoch key stays, expired, so that epochs never repeat.
    ///
    /// # Errors
    /// [`BackupError::Store`]; the lease then expires by itself.
    pub async fn release(self) -> Result<(), BackupError> {
        let free = Epoch { expires_at: DateTime::<Utc>::MIN_UTC, ..self.mine.clone() };
        let next = epoch_key(&self.dir, self.epoch + 1);
        match self.catalog.store.create(&next, json(&free)?).await {
            Ok(()) => {
                let old = epoch_key(&self.dir, self.epoch);
                self.catalog.store.delete(&old).await.map_err(|e| BackupError::store("give a lease back", e))
            }
            // Taken over: nothing to give back.
            Err(e) if e.is_already_exists() => Ok(()),
            Err(e) => Err(BackupError::store("give a lease back", e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::MemoryStore;
    use crate::testkit::ManualClock;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_lease_is_kept_for_as_long_as_it_is_used_and_not_longer() {
        let clock = ManualClock::at("20260309_043820");
        let (catalog, _) =
            Catalog::init(Arc::new(MemoryStore::new()), Arc::new(clock.clone())).await.unwrap();
        let take = async |host: &str| {
            let run = RunId::generate(chrono::DateTime::UNIX_EPOCH);
            catalog.lease("copy-a", &run, host, HOUR).await
        };
        let mut mine = take("h1").await.unwrap();
        for _ in 0..10 {
            clock.advance_secs(40 * 60);
            mine.keep(HOUR).await.unwrap();
            assert!(take("h2").await.is_err(), "it is held");
        }
        let epochs = catalog.epochs(&mine.dir).await.unwrap();
        assert_eq!(epochs, [mine.epoch], "older epochs go");
        clock.advance_secs(3601);
        assert!(mine.keep(HOUR).await.unwrap_err().to_string().contains("expired"));
        clock.advance_secs(60);
        let other = take("h2").await.unwrap();
        assert!(mine.still_mine().await.is_err());
        other.release().await.unwrap();
        assert!(take("h3").await.is_ok());
    }
}
