//! Copying one backup.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio::time::Instant;

use super::super::verify::{lost_or_unreachable, without_name};
use super::super::{Inner, Run};
use super::service::{Destination, LEASE, allowance};
use crate::catalog::{Adopted, Draft, Entry, Lease, RESTORE_MD, SHA256SUMS};
use crate::error::{BackupError, StoreError, chain};
use crate::event::Event;
use crate::id::{ArtifactName, BackupId};
use crate::metadata::{Metadata, Process, Reservation, StoredFile};
use crate::pipeline::StoredCheck;
use crate::source::Settlement;
use crate::store::WriteOptions;

/// At most ten progress events a second.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// What became of one backup.
#[derive(Debug)]
pub(super) enum One {
    /// It is there now; so many bytes.
    Copied(u64),
    /// It was there.
    There,
    /// It was deleted here before it was read.
    Gone,
    /// It was made before its secrets were encrypted: it stays here.
    InClear,
    /// It cannot be copied.
    LeftOut(String),
}

/// What is copied, all but its files.
struct Papers {
    text: Bytes,
    metadata: Metadata,
    sums: Bytes,
    restore: Bytes,
}

/// How far the bytes of one backup have come.
struct Progress {
    artifact: ArtifactName,
    bytes: u64,
    total: u64,
    told: Option<Instant>,
}

impl Inner {
    pub(super) async fn copy_one(
        self: &Arc<Self>,
        run: &Run,
        to: &Destination,
        lease: &mut Lease,
        entry: &Entry,
    ) -> Result<One, BackupError> {
        if run.cancel.is_cancelled() {
            return Err(BackupError::Cancelled);
        }
        lease.keep(LEASE).await?;
        let id = &entry.id;
        let papers = match self.papers(id).await {
            Ok(papers) => papers,
            Err(_) if matches!(self.catalog.exists(id).await, Ok(false)) => return Ok(One::Gone),
            Err(e) => return Err(e),
        };
        if !super::may_leave(self.service(&id.service)?, to.store()?, papers.metadata.encryption.is_some()) {
            return Ok(One::InClear);
        }
        if let Some(external) = papers.metadata.artifacts.iter().find_map(|a| a.external.as_ref()) {
            let what = format!("{id}: a part of it is kept elsewhere ({} {})", external.kind, external.id);
            return Ok(One::LeftOut(format!("{what}: a copy would not be whole")));
        }
        if !papers.metadata.requires.is_empty() {
            return Ok(One::LeftOut(format!(
                "{id} needs other keys of its store: a copy would not be whole"
            )));
        }
        let now = self.clock.now();
        let within = allowance(papers.metadata.size_bytes, self.plan.limits.bandwidth);
        let reservation = Reservation {
            run_id: run.id.clone(),
            host: self.host.clone(),
            process: Process::this(),
            started_at: now,
            commit_deadline: now + chrono::TimeDelta::from_std(within).unwrap_or(chrono::TimeDelta::days(1)),
            tool: self.tool.clone(),
            copied_from: Some(self.catalog.store_id().to_owned()),
        };
        let mut draft = match to.catalog().adopt(id, &papers.text, reservation).await? {
            Adopted::Draft(draft) => draft,
            Adopted::There => return Ok(One::There),
            Adopted::Conflict(why) => return Ok(One::LeftOut(why)),
        };
        match self.fill(run, lease, &mut draft, &papers).await {
            Ok(()) => Ok(One::Copied(papers.metadata.size_bytes)),
            Err(error) => self.give_up_copy(lease, *draft, error, &papers).await,
        }
    }

    /// metadata.json as it is, and what belongs to it.
    async fn papers(&self, id: &BackupId) -> Result<Papers, BackupError> {
        let (text, metadata) = self.catalog.metadata_text(id).await?;
        let sums = self.catalog.read_file(id, SHA256SUMS).await?;
        let restore = self.catalog.read_file(id, RESTORE_MD).await?;
        // Who restores by hand relies on it: it must say of every file what metadata.json says.
        let lines: Vec<&str> = std::str::from_utf8(&sums).unwrap_or_default().lines().collect();
        let said = |f: &StoredFile| lines.contains(&format!("{}  {}", f.stored_sha256, f.path).as_str());
        if let Some(odd) = metadata.stored_files().find(|f| !said(f)) {
            let path = &odd.path;
            return Err(BackupError::Refused(format!(
                "{id}: {SHA256SUMS} does not say of `{path}` what metadata.json says: it is not copied"
            )));
        }
        Ok(Papers { text, metadata, sums, restore })
    }

    async fn fill(
        &self,
        run: &Run,
        lease: &mut Lease,
        draft: &mut Draft,
        papers: &Papers,
    ) -> Result<(), BackupError> {
        let total = papers.metadata.stored_files().fold(0, |sum, f| f.stored_bytes.saturating_add(sum));
        let artifact = ArtifactName::sanitized(&draft.id().timestamp.to_string());
        let mut progress = Progress { artifact, bytes: 0, total, told: None };
        for stored in papers.metadata.stored_files() {
            self.copy_file(run, lease, draft, stored, &mut progress).await?;
        }
        draft.create(SHA256SUMS, papers.sums.clone()).await?;
        draft.create(RESTORE_MD, papers.restore.clone()).await?;
        lease.still_mine().await?;
        if run.cancel.is_cancelled() {
            return Err(BackupError::Cancelled);
        }
        draft.commit_text(papers.text.clone()).await
    }

    /// One file: nothing of it is visible there before it was compared to its end.
    async fn copy_file(
        &self,
        run: &Run,
        lease: &mut Lease,
        draft: &Draft,
        stored: &StoredFile,
        progress: &mut Progress,
    ) -> Result<(), BackupError> {
        let id = draft.id().clone();
        let damaged = |what: String| BackupError::Damaged { id: id.clone(), file: stored.path.clone(), what };
        let key = id.file(&stored.path).map_err(|e| damaged(e.to_string()))?;
        let lost = |e: StoreError| lost_or_unreachable(&id, &stored.path, e);
        let mut source = self.catalog.store().read(&key).await.map_err(lost)?;
        let mut writer = draft.writer(&stored.path, WriteOptions::data(Some(stored.stored_bytes))).await?;
        let mut check = StoredCheck::new(stored);
        let wrong = |e: crate::error::AdapterError| damaged(without_name(&stored.path, &chain(&e)));
        let unwritten = |e| BackupError::store(format!("write the copy of {id}"), e);
        let moved = async {
            loop {
                let chunk = tokio::select! {
                    biased;
                    () = run.cancel.cancelled() => return Err(BackupError::Cancelled),
                    chunk = source.next() => chunk,
                };
                let Some(chunk) = chunk else { break };
                let chunk = chunk.map_err(lost)?;
                tokio::select! {
                    biased;
                    () = run.cancel.cancelled() => return Err(BackupError::Cancelled),
                    () = self.pace.take(self.plan.limits.bandwidth, chunk.len()) => {}
                }
                lease.keep(LEASE).await?;
                progress.bytes = progress.bytes.saturating_add(chunk.len() as u64);
                check.send(chunk.clone()).await.map_err(wrong)?;
                writer.write(chunk).await.map_err(unwritten)?;
                self.tell_progress(&id, progress);
            }
            check.finish().await.map_err(wrong)?;
            lease.still_mine().await
        };
        match moved.await {
            Ok(()) => writer.finish().await.map(drop).map_err(unwritten),
            Err(error) => {
                if let Err(e) = writer.abort().await {
                    tracing::debug!(error = %e, "A partial write could not be removed; the sweeper will.");
                }
                Err(error)
            }
        }
    }

    fn tell_progress(&self, id: &BackupId, progress: &mut Progress) {
        if progress.told.is_some_and(|at| at.elapsed() < PROGRESS_EVERY) {
            return;
        }
        progress.told = Some(Instant::now());
        self.events.emit(Event::Progress {
            service: id.service.clone(),
            artifact: progress.artifact.clone(),
            bytes: progress.bytes,
            total: Some(progress.total),
        });
    }

    /// Removes what was written, unless it is committed after all. Who lost the lease removes nothing: it may be another
    /// one's by now.
    async fn give_up_copy(
        &self,
        lease: &Lease,
        draft: Draft,
        error: BackupError,
        papers: &Papers,
    ) -> Result<One, BackupError> {
        let id = draft.id().clone();
        let gone = matches!(error, BackupError::Damaged { .. })
            && matches!(self.catalog.exists(&id).await, Ok(false));
        match lease.still_mine().await {
            Ok(()) => {
                let (settled, removed) = draft.discard().await;
                if matches!(settled, Settlement::Committed(_)) {
                    return Ok(One::Copied(papers.metadata.size_bytes));
                }
                if let Err(e) = removed {
                    self.warn(Some(&id.service), format!("{} (a later copy will remove it)", chain(&e)));
                }
            }
            Err(e) => tracing::debug!(error = %chain(&e), "An unfinished copy is left to the next copier."),
        }
        if gone { Ok(One::Gone) } else { Err(error) }
    }
}
