//! From what was read to a committed backup: unchanged or new, trusted or suspect, in clear or encrypted.

use tokio::time::Instant;

use super::capture::Read;
use super::{Inner, Run, StepReport, millis};
use crate::catalog::{Draft, FactKind, Filter, Listing, RESTORE_MD, SHA256SUMS};
use crate::encryption::Recipients;
use crate::error::{BackupError, StoreError, chain};
use crate::event::Outcome;
use crate::id::{BackupId, ServiceName};
use crate::metadata::{Capture, FORMAT_VERSION, FactBody, Metadata, Status};
use crate::plan::PlannedService;
use crate::source::CaptureReport;

impl Inner {
    /// Commits what was read. `false`: nothing had changed, the newest backup was marked as seen instead.
    #[expect(clippy::too_many_arguments, reason = "the one place where all that is known of a backup meets")]
    pub(super) async fn publish(
        &self,
        run: &Run,
        service: &PlannedService,
        draft: &mut Draft,
        read: Read,
        report: CaptureReport,
        started: Instant,
        step: &mut StepReport,
    ) -> Result<bool, BackupError> {
        let id = draft.id().clone();
        step.plain_bytes = read.artifacts.iter().map(|a| a.plain_bytes).sum();
        step.stored_bytes = read.artifacts.iter().flat_map(|a| &a.files).map(|f| f.stored_bytes).sum();
        step.notes.extend(report.warnings.iter().cloned());
        let listing = self.catalog.list(&Filter::service(&id.service)).await?;
        if report.only_if_changed && report.fingerprint.is_some() {
            let newest = listing.of(&id.service).find(|e| e.is_good() && e.id.interval == id.interval);
            if let Some(newest) = newest
                && let Some(newest) = self.usable(&newest.id).await?
                && newest.capture.fingerprint == report.fingerprint
                && is_for(&newest, read.recipients.as_ref())
                && self.is_whole(&newest).await?
            {
                let now = self.clock.now();
                let body = self.fact(run, now);
                self.catalog.add_fact(&newest.id(), FactKind::Seen, &body).await?;
                step.outcome = Outcome::Unchanged;
                step.id = Some(newest.id());
                step.stored_bytes = 0;
                return Ok(false);
            }
        }
        let recent = self.recent_good(&listing, &id.service).await?;
        let mut evidence = read.evidence;
        evidence.merge(report.evidence);
        let mut metadata = Metadata {
            service: id.service.clone(),
            interval: id.interval.clone(),
            timestamp: id.timestamp,
            size_bytes: step.stored_bytes,
            status: if report.pending { Status::Pending } else { Status::Success },
            host: self.host.clone(),
            backed_up_at: self.clock.now(),
            format_version: FORMAT_VERSION,
            features: Vec::new(),
            requires: Vec::new(),
            store_id: self.catalog.store_id().to_owned(),
            run_id: run.id.clone(),
            tool: self.tool.clone(),
            adapter: service.adapter.kind().to_owned(),
            service_version: report.service_version,
            image: report.image,
            consistency: report.consistency,
            consistent_from: report.consistent_from,
            consistent_to: report.consistent_to,
            capture: Capture {
                mode: report.mode,
                started_at: Some(draft.reservation().started_at),
                duration_ms: millis(started),
                interruption_ms: report.interruption_ms,
                lock_ms: report.lock_ms,
                exit_codes: report.exit_codes,
                warnings: report.warnings,
                fingerprint: report.fingerprint,
            },
            artifacts: read.artifacts,
            evidence,
            encryption: None,
            suspect_because: Vec::new(),
            unknown: std::collections::BTreeMap::new(),
        };
        metadata.suspect_because = super::guard::doubts(&self.plan.guard, &metadata, &recent);
        if !metadata.suspect_because.is_empty() {
            // What is pending and doubtful is pending first.
            if !report.pending {
                metadata.status = Status::Suspect;
            }
            step.outcome = Outcome::Suspect;
            step.error = Some(metadata.suspect_because.join("; "));
        }
        if let Some(recipients) = &read.recipients {
            self.seal_private(draft, &mut metadata, recipients).await?;
            step.stored_bytes = metadata.size_bytes;
        }
        draft.create(SHA256SUMS, super::hand::sha256sums(&metadata)).await?;
        draft.create(RESTORE_MD, super::hand::restore_md(&metadata, service.adapter.as_ref())).await?;
        draft.commit(&metadata).await?;
        Ok(true)
    }

    /// The newest good backups of a service, over all its intervals, newest first; back to the newest one that a
    /// person accepted, because from there on that is what is usual.
    async fn recent_good(
        &self,
        listing: &Listing,
        service: &ServiceName,
    ) -> Result<Vec<Metadata>, BackupError> {
        let mut recent = Vec::new();
        for entry in listing.of(service).filter(|e| e.is_good()).take(super::guard::RECENT) {
            recent.extend(self.usable(&entry.id).await?);
            if entry.facts.iter().any(|f| f.kind == FactKind::Accept) {
                break;
            }
        }
        Ok(recent)
    }

    /// The metadata of an older backup; `None` for one that is rotten or gone meanwhile: that must not keep a new one
    /// from being made.
    async fn usable(&self, id: &BackupId) -> Result<Option<Metadata>, BackupError> {
        let read = async { self.opened_if_possible(self.catalog.metadata(id).await?).await };
        match read.await {
            Ok(metadata) => Ok(Some(metadata)),
            Err(BackupError::Store { source: StoreError::NotFound { .. }, .. }) => Ok(None),
            Err(e @ (BackupError::Damaged { .. } | BackupError::Refused(_))) => {
                self.warn(Some(&id.service), chain(&e));
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Whether the stored files of a backup are there, in their length: what is to stand for today's content must.
    async fn is_whole(&self, metadata: &Metadata) -> Result<bool, BackupError> {
        let id = metadata.id();
        for stored in metadata.stored_files() {
            let key = id.file(&stored.path).map_err(|e| BackupError::Refused(format!("{id}: {e}")))?;
            match self.catalog.store().head(&key).await {
                Ok(info) if info.bytes == stored.stored_bytes => {}
                Ok(_) | Err(StoreError::NotFound { .. }) => {
                    self.warn(
                        Some(&id.service),
                        format!("{id} is not whole (`{}`): a new one is made", stored.path),
                    );
                    return Ok(false);
                }
                Err(e) => return Err(BackupError::store(format!("look at {id}"), e)),
            }
        }
        Ok(true)
    }

    /// An empty fact of this run.
    pub(super) fn fact(&self, run: &Run, at: chrono::DateTime<chrono::Utc>) -> FactBody {
        FactBody {
            at,
            run_id: run.id.clone(),
            host: self.host.clone(),
            note: None,
            findings: Vec::new(),
            duration_ms: 0,
            bytes: 0,
        }
    }
}

/// Whether a backup was made for just these: with other keys, the same content is to be stored anew.
fn is_for(metadata: &Metadata, recipients: Option<&Recipients>) -> bool {
    let now = recipients.map(Recipients::shown);
    metadata.encryption.as_ref().map(|e| e.recipients.as_slice()) == now
}
