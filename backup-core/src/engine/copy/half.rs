//! What an interrupted copy of a backup has left: what is whole of it is not sent again.
//!
//! Nothing is trusted that was not read: a file counts if it has the length and, read back from there, the SHA-256 that
//! metadata.json says. Of an object store that is a download instead of an upload, which no line does slower and which
//! needs nothing to be removed; it costs what the provider takes for it, at most once after each death. What lies in an
//! archive that does not answer at once is sent again.
//!
//! The copier before may be asleep and not dead. It lost its lease, so that it makes one call at most when it wakes up: as
//! long as nothing it relied on was removed, that call does no harm. So something is removed only once it is dead for
//! certain, or its time is over.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::verify::lost_or_unreachable;
use super::super::{Inner, Run};
use super::one::{Papers, Progress};
use super::service::Destination;
use crate::catalog::{Catalog, Draft, Lease, Pin, RESTORE_MD, RUN, SHA256SUMS};
use crate::error::{BackupError, chain};
use crate::id::BackupId;
use crate::metadata::StoredFile;
use crate::pipeline::StoredCheck;
use crate::store::Readiness;

/// A directory that another copier began to fill.
#[derive(Debug)]
pub(super) struct Half {
    /// What was there, by name, with lengths in bytes.
    found: BTreeMap<String, u64>,
    /// Whether its copier is gone for certain.
    forsaken: bool,
    /// Who that is.
    copier: String,
    /// Says there that somebody is at work on it: the reservation names another one.
    pin: Pin,
}

impl Half {
    pub(super) async fn release(self) {
        if let Err(e) = self.pin.release().await {
            tracing::debug!(error = %chain(&e), "What was completed is still pinned; that expires by itself.");
        }
    }

    /// Removes what does not belong there, and papers that say something else.
    pub(super) async fn check_papers(
        &self,
        to: &Destination,
        lease: &Lease,
        id: &BackupId,
        papers: &Papers,
    ) -> Result<(), BackupError> {
        for name in self.found.keys() {
            let expected = match name.as_str() {
                RUN => continue,
                SHA256SUMS => Some(&papers.sums),
                RESTORE_MD => Some(&papers.restore),
                other if papers.metadata.stored_files().any(|f| f.path == other) => continue,
                _ => None,
            };
            if let Some(expected) = expected
                && to.catalog().read_file(id, name).await? == *expected
            {
                continue;
            }
            self.remove(to, lease, id, name).await?;
        }
        Ok(())
    }

    async fn remove(
        &self,
        to: &Destination,
        lease: &Lease,
        id: &BackupId,
        name: &str,
    ) -> Result<(), BackupError> {
        if !self.forsaken {
            return Err(BackupError::Refused(format!(
                "{id}: `{name}`, which an interrupted copy left in `{}`, is not what it should be, and that copy ({}) may \
                 not be over: copy again later, it is replaced then",
                to.name(),
                self.copier
            )));
        }
        lease.still_mine().await?;
        let key = id.file(name).map_err(|e| BackupError::Refused(format!("{id}: {e}")))?;
        let removed = to.catalog().store().delete(&key).await;
        removed.map_err(|e| BackupError::store(format!("remove what an interrupted copy of {id} left"), e))
    }
}

impl Inner {
    /// Takes over what the copier has left that reserved the directory of `draft`. The lease is ours, so it has none.
    pub(super) async fn take_over(
        &self,
        run: &Run,
        to: &Destination,
        lease: &Lease,
        draft: &Draft,
        within: Duration,
    ) -> Result<Half, BackupError> {
        let (catalog, id, reservation) = (to.catalog(), draft.id(), draft.reservation());
        // Before our own pin.
        let forsaken = catalog.is_forsaken(id, reservation, |r| self.is_dead(r)).await?;
        let pin = catalog.pin(&id.service, vec![id.clone()], &run.id, &self.host, within).await?;
        let copier = format!("of {}, run {}", reservation.host, reservation.run_id);
        let mut half = Half { found: BTreeMap::new(), forsaken, copier, pin };
        let looked = async {
            // Whoever takes over from us sees the pin before anything is done.
            lease.still_mine().await?;
            // What is not visible will never be: who lost the lease fails at it, at best.
            let abandoned = catalog.store().delete_abandoned(&id.dir(), Duration::ZERO).await;
            let what = || format!("remove what an interrupted copy of {id} left");
            abandoned.map_err(|e| BackupError::store(what(), e))?;
            catalog.files_of(id).await
        };
        match looked.await {
            Ok(found) => {
                half.found = found;
                Ok(half)
            }
            Err(e) => {
                half.release().await;
                Err(e)
            }
        }
    }

    /// Whether a file is there whole. What is there instead of it is removed.
    #[expect(clippy::too_many_arguments, reason = "one step of one function")]
    pub(super) async fn takes_over(
        &self,
        run: &Run,
        to: &Destination,
        lease: &mut Lease,
        half: &Half,
        id: &BackupId,
        stored: &StoredFile,
        progress: &mut Progress,
    ) -> Result<bool, BackupError> {
        let Some(bytes) = half.found.get(&stored.path) else { return Ok(false) };
        let before = progress.bytes;
        if *bytes == stored.stored_bytes
            && self.reads_whole(run, to.catalog(), lease, id, stored, Some(progress)).await?
        {
            return Ok(true);
        }
        progress.bytes = before;
        half.remove(to, lease, id, &stored.path).await?;
        Ok(false)
    }

    /// Reads a file of a backup to its end: whether it is what metadata.json says.
    pub(super) async fn reads_whole(
        &self,
        run: &Run,
        catalog: &Catalog,
        lease: &mut Lease,
        id: &BackupId,
        stored: &StoredFile,
        mut progress: Option<&mut Progress>,
    ) -> Result<bool, BackupError> {
        let store = catalog.store();
        let key = id.file(&stored.path).map_err(|e| BackupError::Refused(format!("{id}: {e}")))?;
        // A file that is gone, or that a disk cannot read, is not whole; trouble on the way says nothing.
        let unread = |e| match lost_or_unreachable(id, &stored.path, e) {
            BackupError::Damaged { .. } => Ok(false),
            other => Err(other),
        };
        match store.thaw(&key, None).await {
            Ok(Readiness::Now) => {}
            Ok(_) => return Ok(false),
            Err(e) => return unread(e),
        }
        let mut there = match store.read(&key).await {
            Ok(there) => there,
            Err(e) => return unread(e),
        };
        let mut check = StoredCheck::new(stored);
        while let Some(chunk) = self.next_chunk(run, lease, &mut there).await? {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(e) => return unread(e),
            };
            if let Some(progress) = &mut progress {
                self.tell_progress(id, progress, chunk.len());
            }
            if check.send(chunk).await.is_err() {
                return Ok(false);
            }
        }
        Ok(check.finish().await.is_ok())
    }
}
