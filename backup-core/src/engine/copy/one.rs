//! Copying one backup.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio::time::Instant;

use super::super::verify::{lost_or_unreachable, without_name};
use super::super::{Inner, Run};
use super::half::Half;
use super::service::{Destination, LEASE, allowance};
use crate::catalog::{Adopted, Draft, Entry, Lease, RESTORE_MD, SHA256SUMS};
use crate::error::{BackupError, StoreError, chain};
use crate::event::Event;
use crate::id::{ArtifactName, BackupId, StoreName};
use crate::metadata::{Metadata, Process, Reservation, StoredFile};
use crate::pipeline::StoredCheck;
use crate::source::{ByteStream, Settlement};
use crate::store::WriteOptions;

/// At most ten progress events a second.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// What became of one backup.
#[derive(Debug)]
pub(super) enum One {
    /// It is there now.
    Copied(Sent),
    /// It was damaged there, and is whole now.
    Healed(Sent),
    /// It was there.
    There,
    /// It was deleted here before it was read.
    Gone,
    /// It was made before its secrets were encrypted: it stays here.
    InClear,
    /// It cannot be copied.
    LeftOut(String),
}

/// How much of one backup was sent, and what was there already.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sent {
    /// Bytes that were sent.
    pub(super) bytes: u64,
    /// How many files were sent.
    pub(super) files: usize,
    /// How many files an interrupted copy had left whole.
    pub(super) taken: usize,
    /// Their bytes.
    pub(super) taken_bytes: u64,
}

impl Sent {
    pub(super) fn add(&mut self, file: &StoredFile) {
        self.files += 1;
        self.bytes = self.bytes.saturating_add(file.stored_bytes);
    }
}

/// What is copied, all but its files.
pub(super) struct Papers {
    pub(super) text: Bytes,
    pub(super) metadata: Metadata,
    pub(super) sums: Bytes,
    pub(super) restore: Bytes,
}

/// How far the bytes of one backup have come.
pub(super) struct Progress {
    artifact: ArtifactName,
    to: StoreName,
    pub(super) bytes: u64,
    total: u64,
    told: Option<Instant>,
}

impl Progress {
    pub(super) fn of(id: &BackupId, papers: &Papers, to: &Destination) -> Self {
        let total = papers.metadata.stored_files().fold(0, |sum, f| f.stored_bytes.saturating_add(sum));
        let artifact = ArtifactName::sanitized(&id.timestamp.to_string());
        Self { artifact, to: to.name().clone(), bytes: 0, total, told: None }
    }
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
        let within = allowance(papers.metadata.size_bytes, self.bandwidth(run));
        let reservation = Reservation {
            run_id: run.id.clone(),
            host: self.host.clone(),
            process: Process::this(),
            started_at: now,
            commit_deadline: now + chrono::TimeDelta::from_std(within).unwrap_or(chrono::TimeDelta::days(1)),
            tool: self.tool.clone(),
            copied_from: Some(self.catalog.store_id().to_owned()),
        };
        let (mut draft, half) = match to.catalog().adopt(id, &papers.text, reservation).await? {
            Adopted::Draft(draft) => (draft, None),
            Adopted::Half(draft) => {
                let half = self.take_over(run, to, lease, &draft, within).await?;
                (draft, Some(half))
            }
            Adopted::There => return Ok(One::There),
            Adopted::Conflict(why) => return Ok(One::LeftOut(why)),
        };
        let mut sent = Sent::default();
        let filled = self.fill(run, to, lease, &mut draft, &papers, half.as_ref(), &mut sent).await;
        let one = match filled {
            Ok(()) => Ok(One::Copied(sent)),
            Err(error) => self.give_up_copy(lease, *draft, error, &papers, half.as_ref(), sent).await,
        };
        if let Some(half) = half {
            half.release().await;
        }
        one
    }

    /// metadata.json as it is, and what belongs to it.
    pub(super) async fn papers(&self, id: &BackupId) -> Result<Papers, BackupError> {
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

    #[expect(clippy::too_many_arguments, reason = "one step of one function")]
    async fn fill(
        &self,
        run: &Run,
        to: &Destination,
        lease: &mut Lease,
        draft: &mut Draft,
        papers: &Papers,
        half: Option<&Half>,
        sent: &mut Sent,
    ) -> Result<(), BackupError> {
        if let Some(half) = half {
            half.check_papers(to, lease, draft.id(), papers).await?;
        }
        let mut progress = Progress::of(draft.id(), papers, to);
        for stored in papers.metadata.stored_files() {
            if let Some(half) = half
                && self.takes_over(run, to, lease, half, draft.id(), stored, &mut progress).await?
            {
                sent.taken += 1;
                sent.taken_bytes = sent.taken_bytes.saturating_add(stored.stored_bytes);
                continue;
            }
            self.copy_file(run, to, lease, draft, stored, &mut progress).await?;
            sent.add(stored);
        }
        draft.create(SHA256SUMS, papers.sums.clone()).await?;
        draft.create(RESTORE_MD, papers.restore.clone()).await?;
        // A look at the names costs little, and finds what a copier that slept through its lease has removed since.
        let there = to.catalog().files_of(draft.id()).await?;
        let gone = |f: &&StoredFile| there.get(&f.path) != Some(&f.stored_bytes);
        if let Some(gone) = papers.metadata.stored_files().find(gone) {
            let (id, path) = (draft.id(), &gone.path);
            return Err(BackupError::Refused(format!(
                "{id}: somebody changed or removed `{path}` of the copy in `{}`: copy again",
                to.name()
            )));
        }
        lease.still_mine().await?;
        if run.cancel.is_cancelled() {
            return Err(BackupError::Cancelled);
        }
        draft.commit_text(papers.text.clone()).await
    }

    /// One file: nothing of it is visible there before it was compared to its end.
    pub(super) async fn copy_file(
        &self,
        run: &Run,
        to: &Destination,
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
            while let Some(chunk) = self.next_chunk(run, lease, &mut source).await? {
                let chunk = chunk.map_err(lost)?;
                self.tell_progress(&id, progress, chunk.len());
                check.send(chunk.clone()).await.map_err(wrong)?;
                writer.write(chunk).await.map_err(unwritten)?;
            }
            check.finish().await.map_err(wrong)?;
            lease.still_mine().await
        };
        match moved.await {
            Ok(()) => match writer.finish().await {
                Ok(_info) => Ok(()),
                // A copier that slept through its lease was about to make it visible, and has.
                Err(e) if e.is_already_exists() => {
                    match self.reads_whole(run, to.catalog(), lease, &id, stored, None).await? {
                        true => Ok(()),
                        false => Err(unwritten(e)),
                    }
                }
                Err(e) => Err(unwritten(e)),
            },
            Err(error) => {
                if let Err(e) = writer.abort().await {
                    tracing::debug!(error = %e, "A partial write could not be removed; the sweeper will.");
                }
                Err(error)
            }
        }
    }

    /// What comes next, at the pace that is allowed, while the lease is kept.
    pub(super) async fn next_chunk(
        &self,
        run: &Run,
        lease: &mut Lease,
        bytes: &mut ByteStream<StoreError>,
    ) -> Result<Option<Result<Bytes, StoreError>>, BackupError> {
        let chunk = tokio::select! {
            biased;
            () = run.cancel.cancelled() => return Err(BackupError::Cancelled),
            chunk = bytes.next() => chunk,
        };
        let Some(Ok(chunk)) = chunk else { return Ok(chunk) };
        tokio::select! {
            biased;
            () = run.cancel.cancelled() => return Err(BackupError::Cancelled),
            () = self.pace.take(self.bandwidth(run), chunk.len()) => {}
        }
        lease.keep(LEASE).await?;
        Ok(Some(Ok(chunk)))
    }

    pub(super) fn tell_progress(&self, id: &BackupId, progress: &mut Progress, more: usize) {
        progress.bytes = progress.bytes.saturating_add(more as u64);
        if progress.told.is_some_and(|at| at.elapsed() < PROGRESS_EVERY) {
            return;
        }
        progress.told = Some(Instant::now());
        self.events.emit(Event::Progress {
            service: id.service.clone(),
            artifact: progress.artifact.clone(),
            store: Some(progress.to.clone()),
            bytes: progress.bytes,
            total: Some(progress.total),
        });
    }

    /// Removes what was written, unless it is committed after all, or worth something to the next copier: after trouble on
    /// the way, files that are whole are not sent again. Who lost the lease removes nothing: it may be another one's by
    /// now; nor does who took over, whose forerunner may be asleep.
    async fn give_up_copy(
        &self,
        lease: &Lease,
        draft: Draft,
        error: BackupError,
        papers: &Papers,
        half: Option<&Half>,
        sent: Sent,
    ) -> Result<One, BackupError> {
        let id = draft.id().clone();
        let gone = matches!(error, BackupError::Damaged { .. })
            && matches!(self.catalog.exists(&id).await, Ok(false));
        if half.is_some() || (sent.files > 0 && passes(&error)) {
            tracing::debug!(%id, "An unfinished copy is left to the next copier.");
            return if gone { Ok(One::Gone) } else { Err(error) };
        }
        match lease.still_mine().await {
            Ok(()) => {
                let (settled, removed) = draft.discard_copy(&papers.text, lease).await;
                if matches!(settled, Settlement::Committed(_)) {
                    return Ok(One::Copied(sent));
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

/// Whether it may go better the next time, with what is there already. A full disk needs the room.
fn passes(error: &BackupError) -> bool {
    match error {
        BackupError::Cancelled => true,
        BackupError::Store { source, .. } => !matches!(source, StoreError::NoSpace { .. }),
        _ => false,
    }
}
