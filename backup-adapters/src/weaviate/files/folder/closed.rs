//! Which files of a folder another program has written and closed, as inotify tells ([inotify(7)]).
//!
//! Nothing is promised about files that were closed before their folder was watched.
//!
//! [inotify(7)]: https://man7.org/linux/man-pages/man7/inotify.7.html

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backup_core::AdapterError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init};
use rustix::io::Errno;

use crate::on_disk::failed;

/// Room for several events with the longest names.
const EVENTS: usize = 8192;

/// A folder, which may not be there yet, and all folders in it.
#[derive(Debug)]
pub(super) struct Closed {
    inotify: OwnedFd,
    top: PathBuf,
    watched: HashMap<i32, PathBuf>,
}

impl Closed {
    /// Watches for the folder `top`, which will be made in `parent`.
    ///
    /// # Errors
    /// `Io` if nothing can be watched there.
    pub(super) fn watch(parent: &Path, top: &Path) -> Result<Self, AdapterError> {
        let cannot = failed("watch", parent);
        let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(|e| cannot(e.into()))?;
        let mut closed = Self { inotify, top: top.to_owned(), watched: HashMap::new() };
        closed.add(parent, WatchFlags::CREATE).map_err(|e| cannot(e.into()))?;
        closed.enter(top);
        Ok(closed)
    }

    /// Waits for at most `limit` until there are some. One may be named again.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn wait(&mut self, limit: Duration) -> Result<Vec<PathBuf>, AdapterError> {
        let cannot = failed("watch", &self.top);
        let limit = Timespec::try_from(limit).ok();
        let mut ready = [PollFd::new(&self.inotify, PollFlags::IN)];
        match poll(&mut ready, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(cannot(e.into())),
        }
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        let mut buffer = [MaybeUninit::uninit(); EVENTS];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(e) => return Err(cannot(e.into())),
            };
            let (Some(folder), Some(name)) = (self.watched.get(&event.wd()), event.file_name()) else {
                continue;
            };
            let path = folder.join(OsStr::from_bytes(name.to_bytes()));
            if !path.starts_with(&self.top) {
                continue;
            }
            if event.events().contains(ReadFlags::ISDIR) {
                folders.push(path);
            } else if event.events().contains(ReadFlags::CLOSE_WRITE) {
                files.push(path);
            }
        }
        for folder in folders {
            self.enter(&folder);
        }
        Ok(files)
    }

    /// Watches a folder and those that were made in it before it was watched. What cannot be watched tells nothing.
    fn enter(&mut self, folder: &Path) {
        if self.add(folder, WatchFlags::CREATE | WatchFlags::CLOSE_WRITE).is_err() {
            return;
        }
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                self.enter(&entry.path());
            }
        }
    }

    fn add(&mut self, folder: &Path, what: WatchFlags) -> Result<(), Errno> {
        let flags = what | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
        let watch = add_watch(&self.inotify, folder, flags)?;
        self.watched.insert(watch, folder.to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// What is told until `path` is among it.
    fn until(closed: &mut Closed, path: &Path) -> Vec<PathBuf> {
        let started = std::time::Instant::now();
        let mut all = Vec::new();
        while !all.contains(&path.to_owned()) {
            assert!(started.elapsed() < LONG, "`{}` was never told: {all:?}", path.display());
            all.extend(closed.wait(Duration::from_millis(20)).unwrap());
        }
        all
    }

    #[test]
    fn files_are_told_when_they_are_closed_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("one");
        let mut closed = Closed::watch(dir.path(), &top).unwrap();
        fs::write(dir.path().join("beside"), "x").unwrap();
        let deep = top.join("node/class");
        fs::create_dir_all(&deep).unwrap();
        // Its folder is watched as soon as its making was read.
        assert!(closed.wait(LONG).unwrap().is_empty());
        let open = deep.join("chunk-1");
        let mut writing = fs::File::create(&open).unwrap();
        writing.write_all(b"half").unwrap();
        let other = deep.join("chunk-2");
        fs::write(&other, "whole").unwrap();
        assert_eq!(until(&mut closed, &other), [other]);
        writing.write_all(b"whole").unwrap();
        drop(writing);
        assert_eq!(until(&mut closed, &open), [open]);
    }

    #[test]
    fn a_folder_that_is_not_there_cannot_be_watched() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        let e = Closed::watch(&gone, &gone.join("one")).unwrap_err();
        assert!(e.to_string().contains("cannot watch"), "{e}");
    }
}
