//! Backups of the scripts that this program replaces. Nothing was recorded that could prove them: so they are read to their
//! end once, as far as their format goes, and what was found out takes the place of what is recorded of ours. From then on
//! they are verified and restored like any other, and a second reading that differs is damage.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use tokio_util::sync::CancellationToken;

use super::{Engine, Inner, deadline, hand};
use crate::adapter::{CheckPurpose, LegacyArtifact, ServiceAdapter};
use crate::catalog::LegacyDir;
use crate::context::OpContext;
use crate::error::{AdapterErrorKind, BackupError, Stage, chain};
use crate::id::BackupId;
use crate::metadata::{ArtifactMeta, Capture, Consistency, Evidence, Metadata, Status, StoredFile};
use crate::pipeline;
use crate::plan::PlannedService;

/// What is known of such a backup without reading its data.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LegacyView {
    /// The directory.
    pub dir: LegacyDir,
    /// How it would be taken: without lengths, hashes and counts of what is in it, which nobody recorded.
    pub metadata: Option<Metadata>,
    /// Why it cannot be verified and restored, one line.
    pub problem: Option<String>,
    /// How to restore it without this program, as RESTORE.md is for our own; empty if it cannot be told.
    pub by_hand: String,
}

/// What was found out about those that were read, and how their directories were then. Whoever restores one reads it once
/// more, and finds out if it is another by now.
pub(super) type AlreadyRead = BTreeMap<BackupId, (LegacyDir, Metadata)>;

/// Warns of every one of them, in verifications, plans and reports.
const NO_EVIDENCE: &str = "made by the old scripts, which recorded no checksum and no count: at best it is whole as far as \
     its format can tell; nothing proves that it holds what the service held";

impl Engine {
    /// What is known of a backup that is listed as legacy. Reads no data.
    ///
    /// # Errors
    /// [`BackupError::Store`].
    pub async fn legacy(&self, id: &BackupId) -> Result<LegacyView, BackupError> {
        let dir = self.inner.catalog.legacy(id).await?;
        let described = self.inner.service(&id.service).and_then(|service| {
            let metadata = self.inner.describe(service, id, &dir)?;
            let by_hand = hand::restore_md(&metadata, service.adapter.as_ref());
            Ok((metadata, by_hand))
        });
        Ok(match described {
            Ok((metadata, by_hand)) => LegacyView { dir, metadata: Some(metadata), problem: None, by_hand },
            Err(e) => LegacyView { dir, metadata: None, problem: Some(chain(&e)), by_hand: String::new() },
        })
    }
}

/// The one file that the adapter knows.
fn data_file(
    adapter: &dyn ServiceAdapter,
    id: &BackupId,
    dir: &LegacyDir,
) -> Result<(StoredFile, LegacyArtifact), BackupError> {
    let refused = |what: String| Err(BackupError::Refused(format!("{id}: {what}")));
    if dir.ours {
        return refused(
            "it is what is left of a backup of this program, whose metadata.json is missing or cannot be read: it cannot be \
             proven, and is not restored"
                .into(),
        );
    }
    let known = dir.files.iter().filter_map(|f| Some((f, adapter.legacy(&f.name)?)));
    let known: Vec<_> = known.collect();
    let names = |files: &mut dyn Iterator<Item = &str>| {
        let quoted: Vec<String> = files.take(5).map(|f| format!("`{f}`")).collect();
        quoted.join(", ")
    };
    match known.as_slice() {
        [(file, artifact)] => {
            let (path, stored_bytes) = (file.name.clone(), file.bytes);
            Ok((StoredFile { path, stored_bytes, stored_sha256: String::new() }, artifact.clone()))
        }
        [] if dir.files.is_empty() => refused("it holds no data file".into()),
        [] => refused(format!(
            "it holds no file of the old scripts that a service of kind `{}` restores; it holds {}",
            adapter.kind(),
            names(&mut dir.files.iter().map(|f| f.name.as_str()))
        )),
        several => refused(format!(
            "it holds several data files, and which of them is the backup cannot be told: {}",
            names(&mut several.iter().map(|(f, _)| f.name.as_str()))
        )),
    }
}

impl Inner {
    /// Metadata for a legacy backup, less what only its data can tell.
    fn describe(
        &self,
        service: &PlannedService,
        id: &BackupId,
        dir: &LegacyDir,
    ) -> Result<Metadata, BackupError> {
        let (file, artifact) = data_file(service.adapter.as_ref(), id, dir)?;
        let mut warnings = vec![NO_EVIDENCE.to_owned()];
        warnings.extend(artifact.caution);
        if let Some(status) = dir.status.as_deref().filter(|s| *s != "success") {
            warnings.push(format!("its metadata.json says `status` {status}"));
        }
        if let Some(recorded) = dir.size_bytes.filter(|recorded| *recorded > file.stored_bytes) {
            // Some scripts counted the folder itself, too.
            if recorded - file.stored_bytes > 64 << 10 {
                let (path, bytes) = (&file.path, file.stored_bytes);
                warnings.push(format!(
                    "its metadata.json says {recorded} bytes, and `{path}` has {bytes}: it may have been cut since"
                ));
            }
        }
        let others: Vec<&str> =
            dir.files.iter().map(|f| f.name.as_str()).filter(|name| *name != file.path).collect();
        if !others.is_empty() {
            warnings.push(format!("not taken from its directory: {}", others.join(", ")));
        }
        let taken = id.timestamp.time();
        let backed_up_at = dir.backed_up_at.unwrap_or(taken);
        let size_bytes = file.stored_bytes;
        Ok(Metadata {
            service: id.service.clone(),
            interval: id.interval.clone(),
            timestamp: id.timestamp,
            size_bytes,
            status: Status::Success,
            host: dir.host.clone().unwrap_or_else(|| "unknown".to_owned()),
            backed_up_at,
            format_version: crate::metadata::FORMAT_VERSION,
            features: Vec::new(),
            requires: Vec::new(),
            store_id: self.catalog.store_id().to_owned(),
            run_id: "legacy".parse()?,
            tool: "the old scripts".to_owned(),
            adapter: service.adapter.kind().to_owned(),
            service_version: None,
            image: None,
            consistency: Consistency::Legacy,
            consistent_from: taken,
            consistent_to: taken.max(backed_up_at),
            capture: Capture { mode: "legacy".to_owned(), warnings, ..Capture::default() },
            artifacts: vec![ArtifactMeta {
                name: artifact.name,
                attributes: artifact.attributes,
                plain_bytes: 0,
                plain_blake3: String::new(),
                encodings: artifact.encodings,
                files: vec![file],
                external: None,
            }],
            evidence: Evidence::default(),
            encryption: None,
            suspect_because: Vec::new(),
            unknown: BTreeMap::new(),
        })
    }

    /// Reads a legacy backup to its end, checks what its format lets check, and returns metadata as if that had been
    /// recorded.
    pub(super) async fn measure_legacy(
        &self,
        cx: &OpContext,
        service: &PlannedService,
        id: &BackupId,
    ) -> Result<Metadata, BackupError> {
        let dir = self.catalog.legacy(id).await?;
        let mut metadata = self.describe(service, id, &dir)?;
        self.phase(&service.name, "reading a backup of the old scripts to its end");
        let mut evidence = Evidence::default();
        for artifact in &mut metadata.artifacts {
            let Some(path) = artifact.files.first().map(|f| f.path.clone()) else { continue };
            let damaged = |what: String| BackupError::Damaged { id: id.clone(), file: path.clone(), what };
            let key = id.file(&path).map_err(|e| damaged(e.to_string()))?;
            let stream = self.catalog.store().read(&key).await;
            let stream = stream.map_err(|e| super::verify::lost_or_unreachable(id, &path, e))?;
            let purpose = CheckPurpose::Verify { spool: cx.spool.clone() };
            let check = service.adapter.content_check(&purpose, artifact);
            let settings = self.pipeline(cx, &artifact.name, None);
            let reading = pipeline::measure(stream, &path, &artifact.encodings, check, &settings);
            let measured = cx.within(reading).await.and_then(|measured| measured);
            let measured = measured.map_err(|e| match e.kind() {
                AdapterErrorKind::Corrupt => damaged(super::verify::without_name(&path, &chain(&e))),
                AdapterErrorKind::Cancelled => BackupError::Cancelled,
                _ => BackupError::Adapter { service: id.service.clone(), stage: Stage::Read, source: e },
            })?;
            artifact.plain_bytes = measured.plain_bytes;
            artifact.plain_blake3 = measured.plain_blake3;
            for file in &mut artifact.files {
                file.stored_bytes = measured.stored_bytes;
                file.stored_sha256.clone_from(&measured.stored_sha256);
            }
            evidence.merge(measured.evidence.unwrap_or_default());
        }
        metadata.size_bytes = metadata.stored_files().map(|f| f.stored_bytes).sum();
        metadata.evidence = evidence;
        Ok(metadata)
    }

    /// As [`measure_legacy`](Self::measure_legacy), for a plan: refuses what the scripts themselves called no success.
    pub(super) async fn plan_legacy(
        &self,
        service: &PlannedService,
        id: &BackupId,
        force: bool,
        cancel: CancellationToken,
    ) -> Result<Metadata, BackupError> {
        let dir = self.catalog.legacy(id).await?;
        if let Some(status) = dir.status.as_deref().filter(|s| *s != "success" && !force) {
            return Err(BackupError::Refused(format!(
                "{id} is legacy, and its metadata.json says `status` {status}: use --force to restore it all the same"
            )));
        }
        let known =
            |read: &AlreadyRead| read.get(id).filter(|(then, _)| *then == dir).map(|(_, m)| m.clone());
        if let Some(metadata) = known(&self.read_legacy.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(metadata);
        }
        let run = self.quiet_run("restore", cancel)?;
        let cx = self.context(&run, service, id.timestamp, deadline(service.timeout))?;
        let metadata = self.measure_legacy(&cx, service, id).await?;
        let mut read = self.read_legacy.lock().unwrap_or_else(PoisonError::into_inner);
        read.insert(id.clone(), (dir, metadata.clone()));
        Ok(metadata)
    }
}
