//! A queue of chunks between what arrives and what is stored: a few in memory, and beyond those in a file.
//!
//! A server keeps what is written to it in memory for as long as a replica is not done, and a child process with a copy
//! of its pages: so the link is read as fast as it goes, however slow the store is. While the store keeps up, nothing
//! touches the disk.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use backup_core::AdapterError;
use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;

/// Chunks that are kept in memory before the file is used, in bytes.
const IN_MEMORY: usize = 16 << 20;

/// Where a chunk is.
enum Place {
    Memory(Bytes),
    File { at: u64, len: usize },
}

#[derive(Default)]
struct State {
    chunks: VecDeque<Place>,
    in_memory: usize,
    /// Chunks that lie in the file, and where the next one goes.
    in_file: usize,
    file_end: u64,
    /// All bytes that ever went to the file.
    spilled: u64,
    /// The file cannot take more: the writer has to wait for memory.
    full: bool,
    ended: Option<Result<(), AdapterError>>,
    reader_gone: bool,
}

struct Queue {
    state: Mutex<State>,
    dir: PathBuf,
    file: Mutex<Option<Arc<File>>>,
    more: Notify,
    less: Notify,
    limit: usize,
}

/// Puts chunks in.
pub(super) struct Writer(Arc<Queue>);

/// Takes chunks out, in order.
pub(super) struct Reader(Arc<Queue>);

/// A queue with its file, if it needs one, in `dir`.
pub(super) fn queue(dir: &Path) -> (Writer, Reader) {
    queue_with(dir, IN_MEMORY)
}

fn queue_with(dir: &Path, limit: usize) -> (Writer, Reader) {
    let queue = Arc::new(Queue {
        state: Mutex::default(),
        dir: dir.to_owned(),
        file: Mutex::default(),
        more: Notify::new(),
        less: Notify::new(),
        limit,
    });
    (Writer(Arc::clone(&queue)), Reader(queue))
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The file, made when it is first needed. It has no name, so that nothing is left of it.
    fn file(&self) -> io::Result<Arc<File>> {
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(file) = &*file {
            return Ok(Arc::clone(file));
        }
        let made = Arc::new(tempfile::tempfile_in(&self.dir)?);
        *file = Some(Arc::clone(&made));
        Ok(made)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|e| Err(io::Error::other(e)))
}

impl Writer {
    /// Adds a chunk. Waits only if the spool has no room left. `false`: nobody wants more.
    pub(super) async fn put(&mut self, chunk: Bytes) -> bool {
        loop {
            let at = {
                let mut state = self.0.lock();
                if state.reader_gone {
                    return false;
                }
                if state.in_memory < self.0.limit {
                    state.in_memory += chunk.len();
                    state.chunks.push_back(Place::Memory(chunk));
                    drop(state);
                    self.0.more.notify_one();
                    return true;
                }
                (!state.full).then_some(state.file_end)
            };
            let Some(at) = at else {
                self.0.less.notified().await;
                continue;
            };
            let (queue, bytes, len) = (Arc::clone(&self.0), chunk.clone(), chunk.len());
            let written = blocking(move || queue.file()?.write_all_at(&bytes, at)).await;
            let mut state = self.0.lock();
            match written {
                Ok(()) => {
                    state.chunks.push_back(Place::File { at, len });
                    state.in_file += 1;
                    state.file_end = at + len as u64;
                    state.spilled += len as u64;
                    drop(state);
                    self.0.more.notify_one();
                    return true;
                }
                // A full spool makes us slow, not wrong.
                Err(_) => state.full = true,
            }
        }
    }

    /// Nothing more comes; the reader gets `result` after the last chunk.
    pub(super) fn end(self, result: Result<(), AdapterError>) {
        self.0.lock().ended = Some(result);
    }

    /// Bytes that went through the file, and whether it could not take all of them.
    pub(super) fn spilled(&self) -> (u64, bool) {
        let state = self.0.lock();
        (state.spilled, state.full)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if state.ended.is_none() {
            state.ended = Some(Err(AdapterError::cancelled()));
        }
        drop(state);
        self.0.more.notify_one();
    }
}

impl Reader {
    /// The next chunk; `None` once the writer ended well.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, AdapterError> {
        loop {
            let place = {
                let mut state = self.0.lock();
                match state.chunks.pop_front() {
                    Some(place) => Some(place),
                    None => match state.ended.take() {
                        Some(Ok(())) => {
                            state.ended = Some(Ok(()));
                            return Ok(None);
                        }
                        Some(Err(e)) => {
                            state.ended = Some(Err(AdapterError::cancelled()));
                            return Err(e);
                        }
                        None => None,
                    },
                }
            };
            match place {
                // One that was notified meanwhile returns at once.
                None => self.0.more.notified().await,
                Some(Place::Memory(chunk)) => {
                    self.0.lock().in_memory -= chunk.len();
                    self.0.less.notify_one();
                    return Ok(Some(chunk));
                }
                Some(Place::File { at, len }) => return self.read(at, len).await.map(Some),
            }
        }
    }

    async fn read(&self, at: u64, len: usize) -> Result<Bytes, AdapterError> {
        let queue = Arc::clone(&self.0);
        let read = blocking(move || {
            let file = queue.file()?;
            let mut chunk = BytesMut::zeroed(len);
            file.read_exact_at(&mut chunk, at)?;
            let mut state = queue.lock();
            state.in_file -= 1;
            // Once the store has caught up, the file begins anew.
            if state.in_file == 0 {
                state.file_end = 0;
            }
            drop(state);
            Ok(chunk.freeze())
        });
        let dir = self.0.dir.display().to_string();
        let read = read.await.map_err(|e| AdapterError::io(format!("cannot use the spool in `{dir}`"), e));
        self.0.less.notify_one();
        read
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.reader_gone = true;
        state.chunks.clear();
        drop(state);
        self.0.less.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(n: u32) -> Bytes {
        Bytes::from(n.to_le_bytes().repeat(250))
    }

    #[tokio::test]
    async fn order_holds_through_memory_and_file() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, mut reader) = queue_with(dir.path(), 3000);
        let mut expected = 0;
        let mut written = 0;
        // Bursts with pauses, so that it changes between memory and file many times.
        for burst in [1, 2, 7, 3, 20, 1, 1, 9] {
            for _ in 0..burst {
                assert!(writer.put(chunk(written)).await);
                written += 1;
            }
            for _ in 0..burst.min(6) {
                assert_eq!(reader.next().await.unwrap(), Some(chunk(expected)));
                expected += 1;
            }
        }
        let (spilled, full) = writer.spilled();
        assert!(spilled > 0 && !full);
        writer.end(Ok(()));
        while let Some(got) = reader.next().await.unwrap() {
            assert_eq!(got, chunk(expected));
            expected += 1;
        }
        assert_eq!(expected, written);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_full_spool_waits_for_the_reader() {
        let (mut writer, mut reader) = queue_with(Path::new("/nonexistent"), 1000);
        assert!(writer.put(chunk(0)).await);
        let (put, got) = tokio::join!(
            async {
                let more = writer.put(chunk(1)).await;
                (more, writer.spilled())
            },
            async {
                tokio::task::yield_now().await;
                reader.next().await.unwrap()
            }
        );
        assert_eq!((put, got), ((true, (0, true)), Some(chunk(0))));
        assert_eq!(reader.next().await.unwrap(), Some(chunk(1)));
    }

    #[tokio::test]
    async fn errors_and_lost_ends_arrive_after_the_chunks() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, mut reader) = queue(dir.path());
        writer.put(chunk(0)).await;
        drop(writer);
        assert!(reader.next().await.unwrap().is_some());
        assert!(reader.next().await.is_err());
        assert!(reader.next().await.is_err());

        let (mut writer, reader) = queue(dir.path());
        drop(reader);
        assert!(!writer.put(chunk(0)).await);
    }
}
