//! Copies from other stores: the same directory under the same name, and what is being read for one.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};

use super::draft::create_or_same;
use super::{
    BackupState, Catalog, Draft, Entry, Lease, METADATA, RUN, TOMBSTONE, file, fixed_key, json, read_small,
};
use crate::error::{BackupError, StoreError};
use crate::id::{BackupId, RunId, ServiceName, StoreKey};
use crate::metadata::{Metadata, Process, Reservation, Status};

/// What a store says to a copy of a backup.
#[derive(Debug)]
pub(crate) enum Adopted {
    /// Its directory is ours to fill.
    Draft(Box<Draft>),
    /// An earlier copier of this very backup began to fill it, and has the lease no more: what it left may be completed
    /// under its reservation.
    Half(Box<Draft>),
    /// This very backup is there.
    There,
    /// Something else is there, which is left alone.
    Conflict(String),
}

/// Who reads which backups: `.leases/reading/<run>-<random>.<service>.json`. Retention leaves them alone.
#[derive(Debug, Serialize, Deserialize)]
struct Reading {
    run_id: RunId,
    host: String,
    process: Process,
    expires_at: DateTime<Utc>,
    service: ServiceName,
    ids: Vec<BackupId>,
}

/// Backups that are being read. [`release`](Self::release) it; else it expires.
#[derive(Debug)]
#[must_use = "what is not released keeps retention waiting until it expires"]
pub(crate) struct Pin {
    catalog: Catalog,
    key: StoreKey,
}

impl Catalog {
    /// Reserves the directory of a copy, under the name that the backup has in its store of origin. `metadata` is the
    /// text of its metadata.json. The caller holds the lease on copies of the service.
    ///
    /// What another copier left half done, from the same store of origin, is handed over with its reservation: nothing is
    /// exchanged, so that no death leaves a directory that nobody owns. Whoever had the lease before may only be paused.
    /// The one call that it may still make when it wakes up does no harm as long as nothing is removed: it makes the same
    /// bytes visible, or commits when every file is there.
    pub(crate) async fn adopt(
        &self,
        id: &BackupId,
        metadata: &Bytes,
        reservation: Reservation,
    ) -> Result<Adopted, BackupError> {
        let failed = |e| BackupError::store(format!("reserve the copy of {id}"), e);
        let keys: Vec<StoreKey> =
            self.store.list_keys(Some(&id.dir())).try_collect().await.map_err(failed)?;
        let has = |name: &str| keys.iter().any(|k| k.file_name() == name);
        let conflict = |why: &str| Ok(Adopted::Conflict(format!("{id} {why}: it is left alone")));
        if has(METADATA) {
            let there = read_small(self.store.as_ref(), &file(id, METADATA)).await.map_err(failed)?;
            if there == *metadata {
                return Ok(Adopted::There);
            }
            let status = serde_json::from_slice::<Metadata>(&there).map(|m| m.status);
            return conflict(match status {
                Ok(Status::Aborted) => "was given up there, and its writer may still wake up",
                _ => "is another backup there",
            });
        }
        if has(TOMBSTONE) {
            return conflict("is being deleted there");
        }
        if has(RUN) {
            let theirs = self.half_copy(id, reservation.copied_from.as_deref()).await?;
            let Some(theirs) = theirs else { return conflict("is being written there by somebody else") };
            return Ok(Adopted::Half(Box::new(Draft::new(self.clone(), id.clone(), theirs))));
        }
        if !keys.is_empty() {
            return conflict("is something else there");
        }
        match create_or_same(self.store.as_ref(), &file(id, RUN), json(&reservation)?).await {
            Ok(()) => Ok(Adopted::Draft(Box::new(Draft::new(self.clone(), id.clone(), reservation)))),
            Err(e) if e.is_already_exists() => conflict("was begun there by somebody else just now"),
            Err(e) => Err(failed(e)),
        }
    }

    /// The reservation of a half copy of a backup, if it came from the store `origin`. The name says which backup it is:
    /// metadata.json never changes there.
    async fn half_copy(
        &self,
        id: &BackupId,
        origin: Option<&str>,
    ) -> Result<Option<Reservation>, BackupError> {
        let text = match read_small(self.store.as_ref(), &file(id, RUN)).await {
            Ok(text) => text,
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(BackupError::store(format!("reserve the copy of {id}"), e)),
        };
        let Ok(theirs) = serde_json::from_slice::<Reservation>(&text) else { return Ok(None) };
        // What a newer version wrote, it may judge itself: the commit compares the text.
        let same = origin.is_some() && theirs.copied_from.as_deref() == origin && json(&theirs)? == text;
        Ok(same.then_some(theirs))
    }

    /// Whether something of a half copy may be removed: nobody works on it any more, for certain, neither who reserved it
    /// nor who took it over. Then no commit can arrive that counts on it.
    pub(crate) async fn is_forsaken(
        &self,
        id: &BackupId,
        reservation: &Reservation,
        is_dead: impl Fn(&Reservation) -> bool,
    ) -> Result<bool, BackupError> {
        let over = self.clock.now() > reservation.commit_deadline || is_dead(reservation);
        Ok(over && !self.being_read(&id.service).await?.contains(id))
    }

    /// Removes what a copy that ended midway has left, whole, unless `goes_on` wants to complete it. The caller holds the
    /// lease on copies of the service. Returns whether anything was removed.
    ///
    /// Only if its time is over, or `is_dead` knows that nobody works on it: then no commit can arrive any more.
    pub(crate) async fn clear_half_copy(
        &self,
        entry: &Entry,
        lease: &Lease,
        goes_on: impl Fn(&Reservation) -> bool,
        is_dead: impl Fn(&Reservation) -> bool,
    ) -> Result<bool, BackupError> {
        let id = &entry.id;
        let failed = |e| BackupError::store(format!("remove the unfinished copy of {id}"), e);
        if !matches!(entry.state, BackupState::Incomplete | BackupState::Aborted) {
            return Ok(false);
        }
        let Some(reservation) = self.reservation(id).await?.filter(|r| r.copied_from.is_some()) else {
            return Ok(false);
        };
        let incomplete = entry.state == BackupState::Incomplete;
        if (incomplete && goes_on(&reservation)) || !self.is_forsaken(id, &reservation, is_dead).await? {
            return Ok(false);
        }
        lease.still_mine().await?;
        if incomplete {
            // Whoever creates it decides, here as everywhere.
            let mark = super::delete::aborted_mark(id, &reservation, self.store_id(), self.clock.now());
            match self.store.create(&file(id, METADATA), json(&mark)?).await {
                Ok(()) => {}
                Err(e) if e.is_already_exists() => return Ok(false),
                Err(e) => return Err(failed(e)),
            }
        }
        self.remove_data(id).await?;
        self.remove_mark(id, lease).await?;
        Ok(true)
    }

    /// Removes what is left of a half copy whose data is gone. Whoever lost the lease meanwhile leaves it to the next one.
    pub(super) async fn remove_mark(&self, id: &BackupId, lease: &Lease) -> Result<(), BackupError> {
        let failed = |e| BackupError::store(format!("remove the unfinished copy of {id}"), e);
        lease.still_mine().await?;
        // The reservation last: what is left at any point is found and removed the next time.
        self.store.delete(&file(id, METADATA)).await.map_err(failed)?;
        self.store.delete_prefix(&id.dir()).await.map_err(failed)
    }

    /// The directory of a damaged backup, for writing what it lacks. The caller holds the lease on copies of the service, and
    /// has pinned it.
    pub(crate) fn damaged(&self, id: &BackupId, reservation: Reservation) -> Draft {
        Draft::new(self.clone(), id.clone(), reservation)
    }

    /// The files of a directory, by name, with their lengths.
    pub(crate) async fn files_of(&self, id: &BackupId) -> Result<BTreeMap<String, u64>, BackupError> {
        let infos: Result<Vec<_>, _> = self.store.list(Some(&id.dir())).try_collect().await;
        let infos = infos.map_err(|e| BackupError::store(format!("look through {id}"), e))?;
        Ok(infos.into_iter().map(|i| (i.key.file_name().to_owned(), i.bytes)).collect())
    }

    /// Says that backups of `service` are being read, for at most `ttl`.
    pub(crate) async fn pin(
        &self,
        service: &ServiceName,
        ids: Vec<BackupId>,
        run: &RunId,
        host: &str,
        ttl: Duration,
    ) -> Result<Pin, BackupError> {
        // One run may read for several stores.
        let name = format!("{run}-{}.{service}.json", uuid::Uuid::new_v4().simple());
        let key = reading_key().join(&name).map_err(|e| BackupError::Refused(e.to_string()))?;
        let reading = Reading {
            run_id: run.clone(),
            host: host.to_owned(),
            process: Process::this(),
            expires_at: self.clock.now() + TimeDelta::from_std(ttl).unwrap_or(TimeDelta::days(1)),
            service: service.clone(),
            ids,
        };
        create_or_same(self.store.as_ref(), &key, json(&reading)?)
            .await
            .map_err(|e| BackupError::store("say which backups are being read", e))?;
        Ok(Pin { catalog: self.clone(), key })
    }

    /// The backups of `service` that are being read by anybody. What dead readers left is removed.
    pub(crate) async fn being_read(&self, service: &ServiceName) -> Result<Vec<BackupId>, BackupError> {
        let failed = |e| BackupError::store("see which backups are being read", e);
        let suffix = format!(".{service}.json");
        let keys: Vec<StoreKey> =
            self.store.list_keys(Some(&reading_key())).try_collect().await.map_err(failed)?;
        let mut ids = Vec::new();
        for key in keys.iter().filter(|k| k.file_name().ends_with(&suffix)) {
            let text = match read_small(self.store.as_ref(), key).await {
                Ok(text) => text,
                Err(StoreError::NotFound { .. }) => continue,
                Err(e) => return Err(failed(e)),
            };
            let Ok(reading) = serde_json::from_slice::<Reading>(&text) else { continue };
            if self.clock.now() >= reading.expires_at || reading.process.is_dead() {
                if let Err(error) = self.store.delete(key).await {
                    tracing::debug!(%error, "What a dead reader left could not be removed.");
                }
            } else if reading.service == *service {
                ids.extend(reading.ids);
            }
        }
        Ok(ids)
    }
}

impl Pin {
    /// Nobody reads them any more.
    pub(crate) async fn release(self) -> Result<(), BackupError> {
        let deleted = self.catalog.store.delete(&self.key).await;
        deleted.map_err(|e| BackupError::store("say that backups are not read any more", e))
    }
}

fn reading_key() -> StoreKey {
    fixed_key(".leases/reading")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::{MemoryStore, Store};
    use crate::testkit::ManualClock;

    #[tokio::test]
    async fn a_place_is_given_only_where_nothing_else_is() {
        let clock = ManualClock::at("20260309_043820");
        let store = Arc::new(MemoryStore::new());
        let (catalog, _) =
            Catalog::init(Arc::<MemoryStore>::clone(&store), Arc::new(clock.clone())).await.unwrap();
        let now = catalog.clock.now();
        let reservation = Reservation {
            run_id: RunId::generate(now),
            host: "h1".into(),
            process: Process::this(),
            started_at: now,
            commit_deadline: now,
            tool: "test".into(),
            copied_from: Some("elsewhere".into()),
        };
        let text = Bytes::from_static(b"{\"the\": \"very bytes\"}");
        for (n, (name, content, expected)) in [
            ("metadata.json", "{\"the\": \"very bytes\"}", "there"),
            ("metadata.json", "{\"the\":\"very bytes\"}", "is another backup there"),
            ("tombstone.json", "{}", "is being deleted there"),
            ("run.json", "{}", "is being written there by somebody else"),
            ("dump.rdb.gz", "x", "is something else there"),
            ("hold-20260309_043820.json", "{}", "is something else there"),
        ]
        .into_iter()
        .enumerate()
        {
            let id: BackupId = format!("a/hourly/2026030{}_000000", n + 1).parse().unwrap();
            store.create(&id.file(name).unwrap(), Bytes::from_static(content.as_bytes())).await.unwrap();
            let adopted = catalog.adopt(&id, &text, reservation.clone()).await.unwrap();
            match adopted {
                Adopted::There => assert_eq!(expected, "there", "{name}"),
                Adopted::Conflict(why) => assert!(why.contains(expected), "{name}: {why}"),
                Adopted::Draft(_) | Adopted::Half(_) => panic!("{name}: taken"),
            }
            let keys: Vec<StoreKey> = store.list_keys(Some(&id.dir())).try_collect().await.unwrap();
            assert_eq!(keys.len(), 1, "{name}: nothing is written beside it");
        }
        let free: BackupId = "a/hourly/20260301_000001".parse().unwrap();
        let adopted = catalog.adopt(&free, &text, reservation.clone()).await.unwrap();
        let Adopted::Draft(mut draft) = adopted else { panic!("it is free: {adopted:?}") };
        draft.commit_text(text.clone()).await.unwrap();
        assert!(matches!(catalog.adopt(&free, &text, reservation).await.unwrap(), Adopted::There));
    }
}
