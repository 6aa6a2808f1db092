//! Base backups as files: unpacked, and verified once more where they lie.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use backup_core::{AdapterError, ByteStream, CHUNK_BYTES, OpContext};
use crc_fast::{CrcAlgorithm, Digest};
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::check::{Base, Facts, judge, text};
use super::extract::Folder;
use super::manifest;
use crate::on_disk::{blocking, failed};

/// Writes a base backup into the new folder `root`, and proves that it is whole.
pub(in crate::postgres) async fn unpack(
    cx: &OpContext,
    mut body: ByteStream<AdapterError>,
    root: PathBuf,
    mode: u32,
    owner: Option<(u32, u32)>,
) -> Result<Facts, AdapterError> {
    let (sender, mut receiver) = mpsc::channel::<bytes::Bytes>(4);
    let writer = spawn_blocking(move || {
        let mut base = Base::new(Folder::create(&root, mode, owner)?);
        while let Some(bytes) = receiver.blocking_recv() {
            if bytes.is_empty() {
                let (facts, folder) = base.finish()?;
                folder.finish()?;
                return Ok(facts);
            }
            base.update(&bytes)?;
        }
        Err(AdapterError::cancelled())
    });
    let read = async {
        while let Some(chunk) = cx.within(body.next()).await? {
            let chunk = chunk?;
            // An empty piece is the end. A writer that is gone says why below.
            if !chunk.is_empty() && sender.send(chunk).await.is_err() {
                break;
            }
        }
        let _gone = sender.send(bytes::Bytes::new()).await;
        Ok(())
    };
    let read: Result<(), AdapterError> = read.await;
    drop(sender);
    let written = writer.await.unwrap_or_else(|e| {
        let what = "unpacking a base backup broke off";
        Err(AdapterError::new(backup_core::AdapterErrorKind::Other, what).with_source(e))
    });
    read.and(written)
}

/// A data directory that was unpacked: its files against its manifest, with `pg_verifybackup` of its version where this
/// host has it, which looks into the WAL, too.
pub(in crate::postgres) async fn verified(cx: &OpContext, root: PathBuf) -> Result<Facts, AdapterError> {
    let cancel = cx.cancel.clone();
    let facts = blocking({
        let root = root.clone();
        move || walked(&root, || cancel.is_cancelled())
    })
    .await?;
    let Some(program) = program(&root).await? else {
        cx.warn("this host has no pg_verifybackup of that version: the base backup was checked without it");
        return Ok(facts);
    };
    let mut command = tokio::process::Command::from(Command::new(&program));
    command.arg("--quiet").arg(&root).stdin(Stdio::null()).kill_on_drop(true);
    let done = cx.within(command.output()).await?;
    let done = done.map_err(failed("run", &program))?;
    if done.status.success() {
        return Ok(facts);
    }
    let said = String::from_utf8_lossy(&done.stderr).lines().take(2).collect::<Vec<_>>().join("; ");
    Err(AdapterError::corrupt(format!("pg_verifybackup refuses the base backup: {said}")))
}

/// `pg_verifybackup` of the version that a data directory is of.
async fn program(root: &Path) -> Result<Option<PathBuf>, AdapterError> {
    let version = root.join("PG_VERSION");
    let major = tokio::fs::read_to_string(&version).await.map_err(failed("read", &version))?;
    let major = major.trim().parse::<u32>().unwrap_or(0);
    let folders = crate::postgres::programs::on_host().await;
    let found = folders.into_iter().filter(|(of, _)| *of == major);
    Ok(found.map(|(_, folder)| folder.join("pg_verifybackup")).find(|p| p.is_file()))
}

/// Reads every file.
fn walked(root: &Path, ended: impl Fn() -> bool) -> Result<Facts, AdapterError> {
    let mut seen = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Some(folder) = todo.pop() {
        for entry in std::fs::read_dir(&folder).map_err(failed("read", &folder))? {
            let path = entry.map_err(failed("read", &folder))?.path();
            let meta = std::fs::symlink_metadata(&path).map_err(failed("read", &path))?;
            if meta.is_dir() {
                todo.push(path);
                continue;
            }
            let (mut file, mut sum) =
                (File::open(&path).map_err(failed("read", &path))?, Digest::new(CrcAlgorithm::Crc32Iscsi));
            let mut size = 0;
            loop {
                if ended() {
                    return Err(AdapterError::cancelled());
                }
                match file.read(&mut chunk).map_err(failed("read", &path))? {
                    0 => break,
                    n => {
                        sum.update(chunk.get(..n).unwrap_or_default());
                        size += n as u64;
                    }
                }
            }
            use std::os::unix::ffi::OsStrExt as _;
            let name = path.strip_prefix(root).unwrap_or(&path);
            let sum = u32::try_from(sum.finalize()).unwrap_or(u32::MAX);
            seen.insert(text(name.as_os_str().as_bytes()), (size, sum));
        }
    }
    let path = root.join("backup_manifest");
    let manifest = manifest::parse(&std::fs::read(&path).map_err(failed("read", &path))?)?;
    seen.remove("backup_manifest");
    let bytes = seen.values().map(|(size, _)| size).sum();
    Ok(Facts { bytes, ..judge(&manifest, &seen)? })
}
