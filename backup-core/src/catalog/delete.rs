//! Removing backups: sweeping what was never committed, and deleting what retention lets go.

use std::time::Duration;

use async_trait::async_trait;
use futures::TryStreamExt;

use super::{
    BackupState, Catalog, Entry, Fact, METADATA, RUN, TOMBSTONE, file, json, leases_key, read_small, runs_key,
};
use crate::error::{AdapterError, BackupError, StoreError};
use crate::id::{BackupId, ServiceName, StoreKey};
use crate::metadata::{ExternalRef, Metadata, Reservation};

/// Marks of given-up backups stay that long after the commit deadline, so that a writer that sleeps for hours still
/// finds that it lost.
const ABORTED_DAYS: i64 = 7;

/// Leases and reports are small: nobody writes one for so long.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// Deletes external artifacts; the engine passes the adapters.
#[async_trait]
pub trait PurgeExternal: Send + Sync {
    /// Deletes `refs` of the backup `id`, made by the adapter of kind `adapter`. Idempotent.
    async fn purge(&self, id: &BackupId, adapter: &str, refs: &[ExternalRef]) -> Result<(), AdapterError>;
}

/// What a deletion came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteReport {
    /// External references that were left alone, because this is not their store of origin.
    pub kept_external: Vec<ExternalRef>,
}

impl Catalog {
    /// Gives up a directory that was reserved and never committed, if its time is over or its process is provably dead.
    /// Returns whether it was given up now.
    ///
    /// Half a copy stays until its time is over, for the next copier to complete, and as long as one does that.
    ///
    /// Creating `metadata.json` with status `aborted` decides: a writer that wakes up later loses its commit.
    ///
    /// # Errors
    /// [`BackupError::Store`].
    pub async fn sweep(&self, entry: &Entry) -> Result<bool, BackupError> {
        let what = || format!("sweep {}", entry.id);
        match &entry.state {
            BackupState::Incomplete => {
                let Some(reservation) = self.reservation(&entry.id).await? else { return Ok(false) };
                let copy = reservation.copied_from.is_some();
                let in_time = self.clock.now() <= reservation.commit_deadline;
                if in_time && (copy || !reservation.process.is_dead()) {
                    return Ok(false);
                }
                if copy && self.being_read(&entry.id.service).await?.contains(&entry.id) {
                    return Ok(false);
                }
                let mark = aborted_mark(&entry.id, &reservation, self.store_id(), self.clock.now());
                match self.store.create(&file(&entry.id, METADATA), json(&mark)?).await {
                    Ok(()) => {}
                    // The writer won.
                    Err(e) if e.is_already_exists() => return Ok(false),
                    Err(e) => return Err(BackupError::store(what(), e)),
                }
                self.remove_data(&entry.id).await?;
                Ok(true)
            }
            BackupState::Aborted => {
                let reservation = self.reservation(&entry.id).await?;
                let long_ago = self.clock.now() - chrono::TimeDelta::days(ABORTED_DAYS);
                let old = reservation.as_ref().is_none_or(|r| r.commit_deadline < long_ago);
                // The next copier removes it, or has done so, and fills the place anew since it was listed.
                if !old && reservation.is_some_and(|r| r.copied_from.is_some()) {
                    return Ok(false);
                }
                // A sweep that was interrupted is finished; the marks go when nobody can be asleep any more.
                self.remove_data(&entry.id).await?;
                if old {
                    self.store
                        .delete_prefix(&entry.id.dir())
                        .await
                        .map_err(|e| BackupError::store(what(), e))?;
                }
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    /// Removes everything but the two files that decide, hidden partial writes included.
    pub(super) async fn remove_data(&self, id: &BackupId) -> Result<(), BackupError> {
        let what = || format!("sweep {id}");
        let keep = [file(id, METADATA), file(id, RUN)];
        let keys: Vec<StoreKey> = self
            .store
            .list_keys(Some(&id.dir()))
            .try_collect()
            .await
            .map_err(|e| BackupError::store(what(), e))?;
        for key in keys.iter().filter(|k| !keep.contains(k)) {
            self.store.delete(key).await.map_err(|e| BackupError::store(what(), e))?;
        }
        let abandoned = self.store.delete_abandoned(&id.dir(), Duration::ZERO).await;
        abandoned.map_err(|e| BackupError::store(what(), e))
    }

    /// Removes what killed processes left half-written and no backup owns: among leases and reports once it is a day
    /// old, of `services` once it is a week old (who was killed during the reservation of a backup leaves a part of it
    /// that no listing shows). What a backup owns, [`sweep`](Self::sweep) and [`delete`](Self::delete) remove.
    ///
    /// # Errors
    /// [`BackupError::Store`].
    pub async fn sweep_abandoned(&self, services: &[ServiceName]) -> Result<(), BackupError> {
        let mut prefixes = vec![(leases_key(), ABANDONED), (runs_key(), ABANDONED)];
        for name in services {
            let key = StoreKey::new(name.as_str()).map_err(|e| {
                BackupError::store("tidy up", StoreError::NotAStore { message: e.to_string() })
            })?;
            prefixes.push((key, ABANDONED * 7));
        }
        for (prefix, untouched) in prefixes {
            let swept = self.store.delete_abandoned(&prefix, untouched).await;
            swept.map_err(|e| BackupError::store(format!("tidy up `{prefix}`"), e))?;
        }
        Ok(())
    }

    /// Deletes a backup: its metadata becomes a tombstone, then external artifacts go (only in their store of origin),
    /// then the files. Works on a full disk; a crash leaves `deleting`, and calling it again resumes.
    ///
    /// # Errors
    /// [`BackupError::Refused`] if it is held; [`BackupError::Store`]; the adapter's error if an external artifact cannot be deleted.
    pub async fn delete(
        &self,
        id: &BackupId,
        purge: &dyn PurgeExternal,
    ) -> Result<DeleteReport, BackupError> {
        let what = || format!("delete {id}");
        let tombstone = file(id, TOMBSTONE);
        let begun_now = self.exists(id).await?;
        match self.store.rename(&file(id, METADATA), &tombstone).await {
            // A legacy directory may have no metadata; a resumed deletion may have come further.
            Ok(()) | Err(StoreError::NotFound { .. }) => {}
            Err(e) => return Err(BackupError::store(what(), e)),
        }
        let keys: Vec<StoreKey> = self
            .store
            .list_keys(Some(&id.dir()))
            .try_collect()
            .await
            .map_err(|e| BackupError::store(what(), e))?;
        let facts: Vec<Fact> = keys.iter().filter_map(|k| Fact::parse(k.file_name())).collect();
        if begun_now && super::judge::held(&facts) {
            // Somebody held it after the plan was made. Nothing of it was removed yet.
            self.store
                .rename(&tombstone, &file(id, METADATA))
                .await
                .map_err(|e| BackupError::store(what(), e))?;
            return Err(BackupError::Refused(format!("{id} is held")));
        }
        let mut report = DeleteReport::default();
        if let Ok(text) = read_small(self.store.as_ref(), &tombstone).await
            && let Ok(metadata) = serde_json::from_slice::<Metadata>(&text)
        {
            let refs: Vec<ExternalRef> =
                metadata.artifacts.iter().filter_map(|a| a.external.clone()).collect();
            if metadata.store_id != self.store_id() {
                report.kept_external = refs;
            } else if !refs.is_empty() {
                purge.purge(id, &metadata.adapter, &refs).await.map_err(|source| BackupError::Adapter {
                    service: id.service.clone(),
                    stage: crate::error::Stage::CleanUp,
                    source,
                })?;
            }
        }
        for key in keys.iter().filter(|k| **k != tombstone) {
            self.store.delete(key).await.map_err(|e| BackupError::store(what(), e))?;
        }
        self.store.delete_prefix(&id.dir()).await.map_err(|e| BackupError::store(what(), e))?;
        Ok(report)
    }
}

pub(super) fn aborted_mark(
    id: &BackupId,
    reservation: &Reservation,
    store_id: &str,
    now: chrono::DateTime<chrono::Utc>,
) -> Metadata {
    Metadata {
        service: id.service.clone(),
        interval: id.interval.clone(),
        timestamp: id.timestamp,
        size_bytes: 0,
        status: crate::metadata::Status::Aborted,
        host: reservation.host.clone(),
        backed_up_at: now,
        format_version: crate::metadata::FORMAT_VERSION,
        features: Vec::new(),
        requires: Vec::new(),
        store_id: store_id.to_owned(),
        run_id: reservation.run_id.clone(),
        tool: reservation.tool.clone(),
        adapter: String::new(),
        service_version: None,
        image: None,
        consistency: crate::metadata::Consistency::OnlineUnverified,
        consistent_from: reservation.started_at,
        consistent_to: reservation.started_at,
        capture: crate::metadata::Capture::default(),
        artifacts: Vec::new(),
        evidence: crate::metadata::Evidence::default(),
        encryption: None,
        suspect_because: Vec::new(),
        unknown: std::collections::BTreeMap::new(),
    }
}
