//! Files in containers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backup_core::runtime::{ExecCommand, RunState};
use backup_core::{AdapterError, AdapterErrorKind, ByteStream, CHUNK_BYTES, RunId};
use bollard::models::ContainerInspectResponse;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::io::AsyncReadExt as _;

use super::archive::{self, Stat};
use super::engine::Engine;
use super::{exec, mounts, reader, state_of};

/// How long a small file may take.
const SMALL: Duration = Duration::from_secs(60);
/// The exit code of our script for a file that is not there.
const MISSING: i64 = 66;

/// A file that is being read.
pub struct ContainerFile {
    /// Its size in bytes.
    pub bytes: u64,
    /// Its bytes: exactly so many, or an error; `Changed` if the file did not stay as it was.
    pub body: ByteStream<AdapterError>,
}

impl std::fmt::Debug for ContainerFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContainerFile").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// A path as the engine takes it.
pub(super) fn plain(path: &Path) -> Result<&str, AdapterError> {
    let text = path.to_str().filter(|p| p.starts_with('/') && !p.contains('\0'));
    text.ok_or_else(|| {
        let message = format!("`{}` is no absolute path of a container", path.display());
        AdapterError::new(AdapterErrorKind::InvalidConfig, message)
    })
}

pub(super) async fn read(
    engine: &Arc<Engine>,
    container: &ContainerInspectResponse,
    path: &str,
    limit: usize,
) -> Result<Vec<u8>, AdapterError> {
    let work = async {
        if container.state.as_ref().map(state_of) == Some(RunState::Running) {
            // A program in the container sees what the engine may not: file systems in memory.
            match gather(cat(engine, container, path).await, limit, path).await {
                Err(e) if other_ways(&e) => {}
                other => return other,
            }
        }
        let id = container.id.clone().unwrap_or_default();
        let (file, stat) = archive::file(engine, &id, path).await?;
        if stat.size > limit as u64 {
            return Err(too_large(path, limit));
        }
        gather(archive::read(Arc::clone(engine), id, file, stat).await, limit, path).await
    };
    tokio::time::timeout(SMALL, work).await.unwrap_or_else(|_| {
        let message = format!("`{path}` in the container could not be read in time");
        Err(AdapterError::new(AdapterErrorKind::Timeout, message))
    })
}

/// Whether a file may be had in another way than by a program in the container: there is no shell, or the container was
/// stopped or paused meanwhile.
fn other_ways(e: &AdapterError) -> bool {
    use AdapterErrorKind as Kind;
    matches!(e.kind(), Kind::Unsupported | Kind::Unavailable | Kind::Conflict)
}

fn too_large(path: &str, limit: usize) -> AdapterError {
    AdapterError::corrupt(format!("`{path}` in the container is larger than {limit} bytes"))
}

async fn gather(
    body: Result<ByteStream<AdapterError>, AdapterError>,
    limit: usize,
    path: &str,
) -> Result<Vec<u8>, AdapterError> {
    let mut body = body?;
    let mut all = Vec::new();
    while let Some(piece) = body.try_next().await? {
        all.extend_from_slice(&piece);
        if all.len() > limit {
            return Err(too_large(path, limit));
        }
    }
    Ok(all)
}

/// A file as a program in the container reads it.
async fn cat(
    engine: &Arc<Engine>,
    container: &ContainerInspectResponse,
    path: &str,
) -> Result<ByteStream<AdapterError>, AdapterError> {
    let script = format!("[ -f \"$1\" ] || exit {MISSING}; exec cat -- \"$1\"");
    let mut command = ExecCommand::new(["sh", "-c", &script, "sh", path]);
    command.user = Some("0".to_owned());
    command.accept = vec![0, MISSING];
    let execution = exec::exec(Arc::clone(engine), container, command).await?;
    let (outcome, path) = (execution.outcome, path.to_owned());
    let verdict = stream::once(async move {
        match outcome.await?.status.code {
            Some(MISSING) => Err(archive::missing(&path)),
            _ => Ok(Bytes::new()),
        }
    });
    Ok(execution.stdout.chain(verdict).try_filter(|b| std::future::ready(!b.is_empty())).boxed())
}

/// Opens a file that nobody changes: from this host if it can be reached here; else through the container itself if
/// it runs; else through another one with the same mounts, or, if it is on none, from the engine.
pub(super) async fn open(
    engine: &Arc<Engine>,
    container: &ContainerInspectResponse,
    path: &str,
    run: &RunId,
) -> Result<ContainerFile, AdapterError> {
    let id = container.id.clone().unwrap_or_default();
    let inside = Path::new(path);
    let mounts = mounts::of(engine, container).await;
    if let Some(host) = mounts::host_path(&mounts, inside)
        && let Some(file) = on_host(host).await?
    {
        return Ok(file);
    }
    let (file, before) = archive::file(engine, &id, path).await?;
    let bytes = before.size;
    if container.state.as_ref().map(state_of) == Some(RunState::Running) {
        match cat(engine, container, &file).await {
            Ok(body) => {
                let body = body.chain(unchanged(Arc::clone(engine), id, file, before));
                return Ok(ContainerFile { bytes, body: exactly(bytes, body.boxed()) });
            }
            Err(e) if other_ways(&e) => {}
            Err(e) => return Err(e),
        }
    }
    if mounts.iter().any(|m| inside.starts_with(&m.inside)) {
        // Reading an archive locks the container it is read from: nothing else waits for this one.
        let shelf = reader::shelf(engine, container, run).await?;
        let body = archive::read(Arc::clone(engine), shelf.id().to_owned(), file, before).await?;
        let removal = stream::once(async move {
            if let Err(e) = shelf.close().await {
                tracing::warn!(error = %e, "a container of ours may be left");
            }
            None
        });
        let body = body.chain(removal.filter_map(std::future::ready));
        return Ok(ContainerFile { bytes, body: body.boxed() });
    }
    Ok(ContainerFile { bytes, body: archive::read(Arc::clone(engine), id, file, before).await? })
}

/// Nothing, or the error that the file is not as it was.
fn unchanged(engine: Arc<Engine>, id: String, path: String, before: Stat) -> ByteStream<AdapterError> {
    let check = async move {
        match archive::stat(&engine, &id, &path).await {
            Ok(after) if after == before => None,
            Ok(_) => Some(Err(changed(&path))),
            Err(e) => Some(Err(e)),
        }
    };
    stream::once(check).filter_map(std::future::ready).boxed()
}

fn changed(path: &str) -> AdapterError {
    let message = format!("`{path}` in the container changed while it was read");
    AdapterError::new(AdapterErrorKind::Changed, message)
}

/// `body`, which ends with an error unless it has `bytes` bytes.
fn exactly(bytes: u64, body: ByteStream<AdapterError>) -> ByteStream<AdapterError> {
    stream::unfold(Some((body, bytes)), |state| async move {
        let (mut body, left) = state?;
        let wrong = || {
            let message = "a file in a container has another size than it had";
            Some((Err(AdapterError::new(AdapterErrorKind::Changed, message)), None))
        };
        match body.next().await {
            Some(Ok(piece)) => match left.checked_sub(piece.len() as u64) {
                Some(left) => Some((Ok(piece), Some((body, left)))),
                None => wrong(),
            },
            Some(Err(e)) => Some((Err(e), None)),
            None if left > 0 => wrong(),
            None => None,
        }
    })
    .boxed()
}

/// A file of this host; `None` for what is no plain file here, such as a link, which leads elsewhere in the container.
async fn on_host(path: PathBuf) -> Result<Option<ContainerFile>, AdapterError> {
    let failed = |e| AdapterError::io(format!("read `{}`", path.display()), e);
    match tokio::fs::symlink_metadata(&path).await {
        Ok(meta) if meta.is_file() => {}
        _ => return Ok(None),
    }
    let file = tokio::fs::File::open(&path).await.map_err(failed)?;
    let before = file.metadata().await.map_err(failed)?;
    let bytes = before.len();
    let (shown, seen) = (path.display().to_string(), before.modified().ok());
    let body = stream::unfold(Some((file, bytes)), move |state| {
        let shown = shown.clone();
        async move {
            let (mut file, left) = state?;
            match host_piece(&mut file, left, seen, &shown).await {
                Ok(piece) if piece.is_empty() => None,
                Ok(piece) => {
                    let left = left - piece.len() as u64;
                    Some((Ok(piece), Some((file, left))))
                }
                Err(e) => Some((Err(e), None)),
            }
        }
    });
    Ok(Some(ContainerFile { bytes, body: body.boxed() }))
}

/// The next piece; empty at the end, if the file is as it was.
async fn host_piece(
    file: &mut tokio::fs::File,
    left: u64,
    seen: Option<std::time::SystemTime>,
    shown: &str,
) -> Result<Bytes, AdapterError> {
    let failed = |e| AdapterError::io(format!("read `{shown}`"), e);
    let want = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
    let mut piece = BytesMut::with_capacity(want);
    while piece.len() < want {
        let room = (want - piece.len()) as u64;
        if file.take(room).read_buf(&mut piece).await.map_err(failed)? == 0 {
            return Err(changed(shown));
        }
    }
    if piece.is_empty() {
        let after = file.metadata().await.map_err(failed)?;
        // The file may also have been replaced; what was read is then the old one, whole.
        if after.modified().ok() != seen {
            return Err(changed(shown));
        }
    }
    Ok(piece.freeze())
}
