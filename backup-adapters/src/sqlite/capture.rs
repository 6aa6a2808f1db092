//! From the live database to a stream: copy into the spool, then read the copy.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use backup_core::{
    AdapterError, AdapterErrorKind, Artifact, ArtifactName, BackupSource, ByteStream, CHUNK_BYTES,
    CaptureReport, Consistency, OpContext, ReadOutcome,
};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use tempfile::TempPath;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::copy::{Copied, copy};
use super::inspect::{COUNT_TIME, count_file};
use super::{joined, resolve};
use crate::sqlite::connect::stat_database;

/// Chunks between the thread that reads and the pipeline.
const QUEUE: usize = 2;

/// Copies the database at `path` and hands out the copy.
pub(super) async fn open(path: PathBuf, cx: &OpContext) -> Result<BackupSource, AdapterError> {
    let from = cx.clock.now();
    let (spooled, copied, attributes) = joined(spawn_blocking({
        let (path, cx) = (path.clone(), cx.clone());
        move || spool(&path, &cx)
    }))
    .await?;
    let to = cx.clock.now();

    // Counting reads the same copy while it is streamed.
    let stop = cx.cancel.child_token();
    let counting = spawn_blocking({
        let (file, name, stop) = (spooled.to_path_buf(), path, stop.clone());
        move || count_file(&file, &name, COUNT_TIME, &|| stop.is_cancelled())
    });
    let body = read_file(spooled.to_path_buf(), copied.bytes);
    let name = ArtifactName::sanitized(cx.service.as_str());
    let mut artifact = Artifact::stream(name, "sqlite", body).with_size_hint(copied.bytes);
    artifact.attributes = attributes;

    Ok(BackupSource::single(artifact, async move |outcome| {
        if outcome != ReadOutcome::Complete {
            stop.cancel();
        }
        let counted = joined(counting).await;
        joined(spawn_blocking(move || {
            spooled.close().map_err(|e| AdapterError::io("cannot remove the spooled copy", e))
        }))
        .await?;
        let mut report = CaptureReport::new("online-backup", Consistency::Dump, from, to);
        report.lock_ms = u64::try_from(copied.locked.as_millis()).unwrap_or(u64::MAX);
        if outcome == ReadOutcome::Complete {
            report.evidence = counted?;
        }
        note(&mut report, &copied);
        Ok(report)
    }))
}

fn note(report: &mut CaptureReport, copied: &Copied) {
    let notes = &mut report.evidence.notes;
    notes.insert("journal_mode".into(), copied.journal_mode.clone());
    notes.insert("user_version".into(), copied.user_version.to_string());
    notes.insert("page_size".into(), copied.page_size.to_string());
    notes.insert("page_count".into(), (copied.bytes / copied.page_size.max(1)).to_string());
    if !copied.locked.is_zero() {
        report.warnings.push(format!(
            "the database changed {} times while it was copied, so that its writers were locked out for {} ms; in WAL \
             mode (`PRAGMA journal_mode=WAL`) they never are",
            copied.restarts,
            copied.locked.as_millis()
        ));
    }
}

type Attributes = std::collections::BTreeMap<String, serde_json::Value>;

fn spool(path: &Path, cx: &OpContext) -> Result<(TempPath, Copied, Attributes), AdapterError> {
    let path = resolve(path)?;
    let meta = stat_database(&path)?;
    let attributes = Attributes::from([
        ("path".into(), path.to_string_lossy().into()),
        ("mode".into(), (meta.mode() & 0o7777).into()),
        ("uid".into(), meta.uid().into()),
        ("gid".into(), meta.gid().into()),
    ]);
    let file = tempfile::Builder::new()
        .prefix("copy-")
        .suffix(".sqlite")
        .tempfile_in(&cx.spool)
        .map_err(|e| AdapterError::io(format!("cannot create a file in `{}`", cx.spool.display()), e))?
        .into_temp_path();
    let copied = copy(&path, &file, cx)?;
    Ok((file, copied, attributes))
}

/// The bytes of a file that must have `expected` of them; read on a thread of its own, a few chunks ahead.
fn read_file(path: PathBuf, expected: u64) -> ByteStream<AdapterError> {
    let (sender, mut receiver) = mpsc::channel(QUEUE);
    let read = move || {
        let mut file = File::open(&path)?;
        let mut total = 0;
        loop {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            let read =
                file.by_ref().take(u64::try_from(CHUNK_BYTES).unwrap_or(u64::MAX)).read_to_end(&mut chunk)?;
            if read == 0 {
                return Ok::<u64, std::io::Error>(total);
            }
            total += u64::try_from(read).unwrap_or(u64::MAX);
            // Nobody listens any more: the body was dropped.
            if sender.blocking_send(Bytes::from(chunk)).is_err() {
                return Ok(total);
            }
        }
    };
    // The thread ends when the body is dropped or read; what it returns proves that the end is the end.
    let mut reading = Some(spawn_blocking(read));
    stream::poll_fn(move |cx| receiver.poll_recv(cx))
        .map(Ok)
        .chain(stream::once(async move {
            let Some(reading) = reading.take() else { return Ok(Bytes::new()) };
            let total = joined(async move {
                Ok(reading.await?.map_err(|e| AdapterError::io("cannot read the spooled copy", e)))
            })
            .await?;
            if total == expected {
                return Ok(Bytes::new());
            }
            let message = format!("the spooled copy has {total} bytes, not the {expected} that were written");
            Err(AdapterError::new(AdapterErrorKind::Corrupt, message))
        }))
        .filter(|chunk| std::future::ready(!matches!(chunk, Ok(c) if c.is_empty())))
        .boxed()
}
