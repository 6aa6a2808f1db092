//! A copy that a verification found damaged there is made whole from the good one here.
//!
//! It stays damaged, by the fact beside it, until a verification of what is there then is well: whoever dies midway leaves a
//! damaged backup, as it was. Metadata.json stays, and so does every file that reads as it says. What does not is removed only
//! once the same file was read here and is good: a damaged file is worth more than none. What is locked or held is left alone.

use std::sync::Arc;

use super::super::{Inner, Run, StepReport};
use super::one::{One, Papers, Progress, Sent};
use super::service::{Destination, LEASE, allowance};
use crate::catalog::{Draft, Entry, Lease, METADATA, RESTORE_MD, SHA256SUMS, VerifyLevel};
use crate::error::{BackupError, StoreError, chain};
use crate::id::BackupId;

impl Inner {
    /// Makes a copy whole that was found damaged at `level`.
    pub(super) async fn heal_one(
        self: &Arc<Self>,
        run: &Run,
        to: &Destination,
        lease: &mut Lease,
        (here, there): (&Entry, &Entry),
        level: VerifyLevel,
    ) -> Result<One, BackupError> {
        lease.keep(LEASE).await?;
        let (id, catalog) = (&here.id, to.catalog());
        let papers = self.papers(id).await?;
        if !super::may_leave(self.service(&id.service)?, to.store()?, papers.metadata.encryption.is_some()) {
            return Ok(One::InClear);
        }
        let left =
            |why: &str| Ok(One::LeftOut(format!("{id} is damaged there, and {why}: it is left alone")));
        if catalog.store().object_lock().is_some() {
            return left("that store locks what it holds");
        }
        if catalog.read_file(id, METADATA).await? != papers.text {
            return left("its metadata.json is another one");
        }
        // Who reads it, or makes it whole already, sees nothing removed.
        if catalog.being_read(&id.service).await?.contains(id) {
            return left("somebody is at work on it");
        }
        let Some(reservation) = catalog.reservation(id).await? else { return left("has no run.json") };
        let draft = catalog.damaged(id, reservation);
        let within = allowance(papers.metadata.size_bytes, self.bandwidth(run));
        let pin = catalog.pin(&id.service, vec![id.clone()], &run.id, &self.host, within).await?;
        let healed = self.make_whole(run, to, lease, &draft, &papers).await;
        let healed = match healed {
            Ok(sent) => self.prove(run, to, there, level).await.map(|()| One::Healed(sent)),
            Err(e) => Err(e),
        };
        if let Err(e) = pin.release().await {
            tracing::debug!(error = %chain(&e), "What was healed is still pinned; that expires by itself.");
        }
        healed
    }

    /// Verifies what was made whole, as deep as it was found damaged: that is what makes it good again.
    async fn prove(
        &self,
        run: &Run,
        to: &Destination,
        there: &Entry,
        level: VerifyLevel,
    ) -> Result<(), BackupError> {
        let id = &there.id;
        let mut verified = StepReport::new(&id.service, format!("verify-{level}"));
        if let Err(error) = to.inner.examine(run, &id.service, there, level, &mut verified).await {
            verified.fail(&error);
        }
        to.inner.note_verdict(run, there, level, &mut verified).await;
        if verified.is_ok() {
            return Ok(());
        }
        if run.cancel.is_cancelled() {
            return Err(BackupError::Cancelled);
        }
        let why = verified.error.unwrap_or_default();
        Err(BackupError::Refused(format!(
            "{id}: its copy in `{}` has the bytes of the original now, and cannot be verified all the same: {why} (look at the \
             original: `backup verify {} --level {level} --all`)",
            to.name(),
            id.service
        )))
    }

    async fn make_whole(
        &self,
        run: &Run,
        to: &Destination,
        lease: &mut Lease,
        draft: &Draft,
        papers: &Papers,
    ) -> Result<Sent, BackupError> {
        let id = draft.id();
        // Whoever takes over sees the pin before anything is done.
        lease.still_mine().await?;
        let there = to.catalog().files_of(id).await?;
        let mut sent = Sent::default();
        let mut progress = Progress::of(id, papers, to);
        for stored in papers.metadata.stored_files() {
            let (bytes, before) = (there.get(&stored.path).copied(), progress.bytes);
            if bytes == Some(stored.stored_bytes)
                && self.reads_whole(run, to.catalog(), lease, id, stored, Some(&mut progress)).await?
            {
                continue;
            }
            progress.bytes = before;
            if !self.reads_whole(run, &self.catalog, lease, id, stored, None).await? {
                let (id, file) = (id.clone(), stored.path.clone());
                let what = "it is not what was recorded, here either".to_owned();
                return Err(BackupError::Damaged { id, file, what });
            }
            if bytes.is_some() {
                remove(to, lease, id, &stored.path).await?;
            }
            self.copy_file(run, to, lease, draft, stored, &mut progress).await?;
            sent.add(stored);
        }
        for (name, text) in [(SHA256SUMS, &papers.sums), (RESTORE_MD, &papers.restore)] {
            match to.catalog().read_file(id, name).await {
                Ok(there) if there == *text => continue,
                Ok(_) => remove(to, lease, id, name).await?,
                Err(BackupError::Store { source: StoreError::NotFound { .. }, .. }) => {}
                Err(e) => return Err(e),
            }
            draft.create(name, text.clone()).await?;
        }
        Ok(sent)
    }
}

async fn remove(to: &Destination, lease: &Lease, id: &BackupId, name: &str) -> Result<(), BackupError> {
    let key = id.file(name).map_err(|e| BackupError::Refused(format!("{id}: {e}")))?;
    lease.still_mine().await?;
    let removed = to.catalog().store().delete(&key).await;
    removed.map_err(|e| BackupError::store(format!("remove the damaged `{name}` of {id}"), e))
}
