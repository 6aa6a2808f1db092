//! A tar archive of a folder, written by a thread of its own.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use backup_core::{AdapterError, AdapterErrorKind, ByteStream, CHUNK_BYTES, OpContext};
use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::sync::mpsc;

use crate::on_disk::failed;
use crate::tree::BLOCK;
use crate::tree::pax::{Kind, Member, encode, pad};

/// Chunks that may wait for the consumer.
const AHEAD: usize = 4;

/// A tar archive of the folder `top` and all in it, under the folder's own name. `first` may pack files before the
/// others.
pub(super) fn archive(
    cx: OpContext,
    top: PathBuf,
    first: impl FnOnce(&mut Out) -> Result<(), AdapterError> + Send + 'static,
) -> ByteStream<AdapterError> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::task::spawn_blocking(move || {
        let chunk = Vec::with_capacity(CHUNK_BYTES);
        let mut out = Out { cx, sender: sender.clone(), chunk, base: top.clone(), packed: HashMap::new() };
        let written = first(&mut out).and_then(|()| {
            out.folder(&top)?;
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

/// By what a file is known to be as it was: its length, and when it was last written.
type State = (u64, i64, i64);

fn state(meta: &fs::Metadata) -> State {
    (meta.len(), meta.mtime(), meta.mtime_nsec())
}

/// The archive, as far as it was written.
pub(super) struct Out {
    cx: OpContext,
    sender: mpsc::Sender<Result<Option<Bytes>, AdapterError>>,
    chunk: Vec<u8>,
    /// The folder of which it is.
    base: PathBuf,
    /// What is in it, and as what it was read; folders too.
    packed: HashMap<PathBuf, State>,
}

impl Out {
    /// Whether somebody still wants it.
    ///
    /// # Errors
    /// `Cancelled`, or `Timeout`, if not.
    pub(super) fn check_wanted(&self) -> Result<(), AdapterError> {
        self.cx.check_alive()?;
        if self.sender.is_closed() { Err(AdapterError::cancelled()) } else { Ok(()) }
    }

    /// Adds a file of the folder, and before it the folders that it is in, unless they are there.
    pub(super) fn add(&mut self, path: &Path) -> Result<(), AdapterError> {
        let mut above: Vec<PathBuf> =
            path.ancestors().skip(1).take_while(|p| p.starts_with(&self.base)).map(Path::to_owned).collect();
        while let Some(folder) = above.pop() {
            self.enter(&folder)?;
        }
        self.file(path)
    }

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

    /// A folder without what is in it.
    fn enter(&mut self, path: &Path) -> Result<(), AdapterError> {
        if self.packed.contains_key(path) {
            return Ok(());
        }
        let meta = fs::symlink_metadata(path).map_err(failed("read", path))?;
        self.packed.insert(path.to_owned(), state(&meta));
        self.header(Member { size: 0, ..member(&self.name(path), Kind::Dir, &meta) })
    }

    fn folder(&mut self, path: &Path) -> Result<(), AdapterError> {
        let unreadable = failed("read", path);
        self.enter(path)?;
        let mut entries: Vec<_> = fs::read_dir(path).and_then(Iterator::collect).map_err(&unreadable)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let kind = entry.file_type().map_err(&unreadable)?;
            if kind.is_dir() {
                self.folder(&path)?;
            } else if kind.is_file() {
                self.file(&path)?;
            } else {
                let what = format!("`{}` is neither a file nor a folder", path.display());
                return Err(AdapterError::unsupported(what));
            }
        }
        Ok(())
    }

    /// A file, unless it is there as it is now.
    fn file(&mut self, path: &Path) -> Result<(), AdapterError> {
        let unreadable = failed("read", path);
        let changed = || {
            let what = format!("`{}` changed while it was read", path.display());
            Err(AdapterError::new(AdapterErrorKind::Changed, what))
        };
        let file = File::open(path).map_err(&unreadable)?;
        let meta = file.metadata().map_err(&unreadable)?;
        if let Some(was) = self.packed.get(path) {
            return if *was == state(&meta) { Ok(()) } else { changed() };
        }
        self.header(Member { size: meta.len(), ..member(&self.name(path), Kind::File, &meta) })?;
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
        if read != meta.len() || state(&after) != state(&meta) {
            return changed();
        }
        self.packed.insert(path.to_owned(), state(&meta));
        let mut padding = Vec::new();
        pad(&mut padding, usize::try_from(read % BLOCK as u64).unwrap_or(0));
        self.put(&padding)
    }

    /// What a path of the folder is called in the archive.
    fn name(&self, path: &Path) -> Vec<u8> {
        let above = self.base.parent().unwrap_or(Path::new(""));
        path.strip_prefix(above).unwrap_or(path).as_os_str().as_bytes().to_vec()
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
