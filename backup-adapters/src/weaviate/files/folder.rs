//! A backup folder at a path of this host.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use backup_core::{AdapterError, AdapterErrorKind, ByteStream, CHUNK_BYTES, OpContext, keep_aside};
use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::sync::mpsc;

use super::Files;
use crate::on_disk::{blocking, failed};
use crate::tree::BLOCK;
use crate::tree::pax::{Kind, Member, encode, pad};

/// Chunks that may wait for the consumer.
const AHEAD: usize = 4;

/// The folder.
#[derive(Debug)]
pub(in crate::weaviate) struct Folder(pub(in crate::weaviate) PathBuf);

#[async_trait]
impl Files for Folder {
    async fn archive(&self, cx: &OpContext, id: &str) -> Result<ByteStream<AdapterError>, AdapterError> {
        Ok(archive(cx.clone(), self.0.join(id)))
    }

    async fn read(&self, _cx: &OpContext, path: &str) -> Result<Vec<u8>, AdapterError> {
        let path = self.0.join(path);
        blocking(move || fs::read(&path).map_err(failed("read", &path))).await
    }

    async fn size(&self, id: &str) -> Option<u64> {
        let path = self.0.join(id);
        blocking(move || keep_aside::measure(&path).map_err(failed("measure", &path)))
            .await
            .ok()
            .map(|(bytes, _)| bytes)
    }

    async fn names(&self, _cx: &OpContext) -> Result<Vec<String>, AdapterError> {
        let folder = self.0.clone();
        blocking(move || {
            let unreadable = failed("list", &folder);
            let entries = match fs::read_dir(&folder) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                entries => entries.map_err(&unreadable)?,
            };
            let mut names = Vec::new();
            for entry in entries {
                names.extend(entry.map_err(&unreadable)?.file_name().into_string().ok());
            }
            Ok(names)
        })
        .await
    }

    async fn remove(&self, id: &str) -> Result<(), AdapterError> {
        let path = self.0.join(id);
        blocking(move || keep_aside::remove(&path).map_err(failed("remove", &path))).await
    }
}

/// A tar archive of a folder and all in it, under the folder's own name.
fn archive(cx: OpContext, top: PathBuf) -> ByteStream<AdapterError> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut out = Out { cx, sender: sender.clone(), chunk: Vec::with_capacity(CHUNK_BYTES) };
        let name = top.file_name().unwrap_or_default().to_owned();
        let written = out.folder(&top, name.as_bytes()).and_then(|()| {
            out.put(&[0; 2 * BLOCK])?;
            out.flush()
        });
        // Nobody listens any more: then nobody needs the end or the reason.
        let _unheard = sender.blocking_send(written.map(|()| None));
    });
    let next = |receiver: Option<mpsc::Receiver<Result<Option<Bytes>, AdapterError>>>| async {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Some(Ok(Some(chunk))) => Some((Ok(chunk), Some(receiver))),
            Some(Ok(None)) => None,
            Some(Err(e)) => Some((Err(e), None)),
            None => {
                let what = "the reader of the backup's files stopped unexpectedly";
                Some((Err(AdapterError::new(AdapterErrorKind::Other, what)), None))
            }
        }
    };
    stream::unfold(Some(receiver), next).boxed()
}

struct Out {
    cx: OpContext,
    sender: mpsc::Sender<Result<Option<Bytes>, AdapterError>>,
    chunk: Vec<u8>,
}

impl Out {
    fn put(&mut self, mut bytes: &[u8]) -> Result<(), AdapterError> {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(CHUNK_BYTES - self.chunk.len()));
            self.chunk.extend_from_slice(now);
            bytes = rest;
            if self.chunk.len() == CHUNK_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), AdapterError> {
        self.cx.check_alive()?;
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_BYTES));
        self.sender.blocking_send(Ok(Some(chunk.into()))).map_err(|_| AdapterError::cancelled())
    }

    fn folder(&mut self, path: &Path, name: &[u8]) -> Result<(), AdapterError> {
        let unreadable = failed("read", path);
        let meta = fs::symlink_metadata(path).map_err(&unreadable)?;
        self.header(Member { size: 0, ..member(name, Kind::Dir, &meta) })?;
        let mut entries: Vec<_> = fs::read_dir(path).and_then(Iterator::collect).map_err(&unreadable)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, name) = (entry.path(), [name, b"/", entry.file_name().as_bytes()].concat());
            let kind = entry.file_type().map_err(&unreadable)?;
            if kind.is_dir() {
                self.folder(&path, &name)?;
            } else if kind.is_file() {
                self.file(&path, &name)?;
            } else {
                let what = format!("`{}` is neither a file nor a folder", path.display());
                return Err(AdapterError::unsupported(what));
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, name: &[u8]) -> Result<(), AdapterError> {
        let unreadable = failed("read", path);
        let file = File::open(path).map_err(&unreadable)?;
        let meta = file.metadata().map_err(&unreadable)?;
        self.header(Member { size: meta.len(), ..member(name, Kind::File, &meta) })?;
        let (mut read, mut buffer) = (0, vec![0; CHUNK_BYTES]);
        let mut reader = &file;
        loop {
            let n = match reader.read(&mut buffer) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(unreadable(e)),
            };
            if n == 0 {
                break;
            }
            read += n as u64;
            if read > meta.len() {
                break;
            }
            self.put(buffer.get(..n).unwrap_or_default())?;
        }
        let after = file.metadata().map_err(&unreadable)?;
        if read != meta.len()
            || (after.len(), after.mtime(), after.mtime_nsec())
                != (meta.len(), meta.mtime(), meta.mtime_nsec())
        {
            let what = format!("`{}` changed while it was read", path.display());
            return Err(AdapterError::new(AdapterErrorKind::Changed, what));
        }
        let mut padding = Vec::new();
        pad(&mut padding, usize::try_from(read % BLOCK as u64).unwrap_or(0));
        self.put(&padding)
    }

    fn header(&mut self, member: Member) -> Result<(), AdapterError> {
        let mut header = Vec::new();
        encode(&member, &mut header)?;
        self.put(&header)
    }
}

fn member(name: &[u8], kind: Kind, meta: &fs::Metadata) -> Member {
    Member {
        mode: meta.mode() & 0o7777,
        uid: meta.uid().into(),
        gid: meta.gid().into(),
        mtime: (meta.mtime(), 0),
        ..Member::new(name.to_vec(), kind)
    }
}
