//! Listing trees.

use std::ffi::{CStr, CString};
use std::io;
use std::num::NonZero;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use rustix::fs::FileType;
use tokio::sync::mpsc;

use super::dirs::{Buffer, buffer, dir_error, entries, gone, key_part, open_prefix};
use super::tree;
use crate::error::StoreError;
use crate::id::StoreKey;

/// How many items pass between threads at a time, and how many such batches may wait.
const BATCH: usize = 1024;
const BATCHES: usize = 4;

/// A walk reads so many directories on one thread before it takes more, and so many threads at most: the kernel's work
/// for each directory dominates, and it scales.
const ALONE: usize = 64;
const THREADS: usize = 4;

/// Every object below `prefix`, as `item` makes it of directory, name and key.
pub(super) fn stream<T: Send + 'static>(
    root: Arc<Path>,
    prefix: Option<&StoreKey>,
    item: impl Fn(&OwnedFd, &CStr, StoreKey) -> io::Result<T> + Send + Sync + 'static,
) -> BoxStream<'static, Result<T, StoreError>> {
    let prefix = prefix.cloned();
    stream::once(async move {
        let (out, batches) = mpsc::channel(BATCHES);
        let lost = Arc::clone(&root);
        let task = tokio::task::spawn_blocking(move || match open_prefix(&root, prefix.as_ref()) {
            Ok(None) => {}
            Ok(Some(dir)) => {
                let path = prefix.map(|p| format!("{p}/")).unwrap_or_default();
                Walk { root: &root, item: &item, queue: Queue::default() }.run(dir, path, &out);
            }
            Err(e) => {
                // Nobody listens any more if this fails.
                let _closed = out.blocking_send(vec![Err(e)]);
            }
        });
        stream::unfold((batches, Some(task)), move |(mut batches, mut task)| {
            let root = Arc::clone(&lost);
            async move {
                if let Some(batch) = batches.recv().await {
                    return Some((batch, (batches, task)));
                }
                // A walk that died is not a complete listing.
                let died = task.take()?.await.err()?;
                let error = tree::root_error("list", &root, io::Error::other(died));
                Some((vec![Err(error)], (batches, task)))
            }
        })
        .flat_map(stream::iter)
    })
    .flatten()
    .boxed()
}

/// A directory that is still to be read: opened by whoever reads it.
struct Todo {
    parent: Arc<OwnedFd>,
    name: CString,
    /// What its keys begin with.
    path: String,
}

/// The directories that are still to be read, shared by the threads that read them. Last in, first out: so only the
/// parents along a few branches are open at a time.
#[derive(Default)]
struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    todo: Vec<Todo>,
    /// How many threads are reading a directory, and so may still add some.
    busy: usize,
    stopped: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next directory; waits for it as long as one may still come.
    fn next(&self) -> Option<Busy<'_>> {
        let mut state = self.lock();
        loop {
            if state.stopped || (state.todo.is_empty() && state.busy == 0) {
                return None;
            }
            if let Some(todo) = state.todo.pop() {
                state.busy += 1;
                return Some(Busy { queue: self, todo, found: Vec::new(), flow: ControlFlow::Continue(()) });
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A directory that is being read. When it is dropped, also by a panic, the others may go on.
struct Busy<'a> {
    queue: &'a Queue,
    todo: Todo,
    found: Vec<Todo>,
    flow: ControlFlow<()>,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.busy -= 1;
        state.stopped |= self.flow.is_break() || std::thread::panicking();
        let news = !self.found.is_empty() || state.busy == 0 || state.stopped;
        state.todo.append(&mut self.found);
        if news {
            self.queue.changed.notify_all();
        }
    }
}

struct Walk<'a, F> {
    root: &'a Path,
    item: &'a F,
    queue: Queue,
}

impl<F> Walk<'_, F> {
    fn run<T>(self, dir: OwnedFd, path: String, out: &mpsc::Sender<Batch<T>>)
    where
        T: Send,
        F: Fn(&OwnedFd, &CStr, StoreKey) -> io::Result<T> + Sync,
    {
        let mut worker = Worker::new(&self, out);
        let mut found = Vec::new();
        if worker.read(dir, &path, &mut found).is_break() {
            return;
        }
        self.queue.lock().todo = found;
        if worker.work(ALONE) {
            let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(THREADS);
            std::thread::scope(|scope| {
                for _ in 1..threads {
                    scope.spawn(|| Worker::new(&self, out).work(usize::MAX));
                }
                worker.work(usize::MAX);
            });
        }
    }
}

type Batch<T> = Vec<Result<T, StoreError>>;

/// One thread of a walk.
struct Worker<'a, T, F> {
    walk: &'a Walk<'a, F>,
    out: &'a mpsc::Sender<Batch<T>>,
    batch: Batch<T>,
    buffer: Buffer,
}

impl<'a, T, F: Fn(&OwnedFd, &CStr, StoreKey) -> io::Result<T>> Worker<'a, T, F> {
    fn new(walk: &'a Walk<'a, F>, out: &'a mpsc::Sender<Batch<T>>) -> Self {
        Self { walk, out, batch: Vec::with_capacity(BATCH), buffer: buffer() }
    }

    /// Reads directories, at most so many, until none is left. Tells whether there may be more.
    fn work(&mut self, most: usize) -> bool {
        for _ in 0..most {
            let Some(mut busy) = self.walk.queue.next() else {
                // Nobody listens any more if this fails.
                let _closed = self.flush();
                return false;
            };
            let Todo { parent, name, path } = &busy.todo;
            busy.flow = match tree::open_dir(parent, name.as_c_str()) {
                Ok(dir) => self.read(dir, path, &mut busy.found),
                Err(e) if gone(&e) => ControlFlow::Continue(()),
                Err(e) => self.emit(Err(dir_error(self.walk.root, path, e))),
            };
        }
        true
    }

    /// Reads one directory, whose keys begin with `path`. After an error the rest is still listed.
    fn read(&mut self, dir: OwnedFd, path: &str, found: &mut Vec<Todo>) -> ControlFlow<()> {
        let mut dirs: Vec<CString> = Vec::new();
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut flow = ControlFlow::Continue(());
        let read = entries(&dir, &mut buffer, |name, kind| {
            let Some(part) = key_part(name) else { return ControlFlow::Continue(()) };
            match kind {
                FileType::Directory => dirs.push(name.to_owned()),
                FileType::RegularFile => {
                    // Names that no key can have are not ours.
                    if let Ok(key) = StoreKey::new([path, part].concat()) {
                        flow = self.object(&dir, name, key);
                    }
                }
                _ => {}
            }
            flow
        });
        self.buffer = buffer;
        flow?;
        if let Err(e) = read {
            self.emit(Err(dir_error(self.walk.root, path, e)))?;
        }
        let parent = Arc::new(dir);
        found.extend(dirs.into_iter().filter_map(|name| {
            let path = format!("{path}{}/", key_part(&name)?);
            Some(Todo { parent: Arc::clone(&parent), name, path })
        }));
        ControlFlow::Continue(())
    }

    fn object(&mut self, dir: &OwnedFd, name: &CStr, key: StoreKey) -> ControlFlow<()> {
        match (self.walk.item)(dir, name, key.clone()) {
            Ok(item) => self.emit(Ok(item)),
            Err(e) if gone(&e) => ControlFlow::Continue(()),
            Err(e) => self.emit(Err(StoreError::io("list", &key, e))),
        }
    }

    fn emit(&mut self, item: Result<T, StoreError>) -> ControlFlow<()> {
        self.batch.push(item);
        if self.batch.len() < BATCH { ControlFlow::Continue(()) } else { self.flush() }
    }

    fn flush(&mut self) -> ControlFlow<()> {
        let batch = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
        match self.out.blocking_send(batch) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_closed) => ControlFlow::Break(()),
        }
    }
}
