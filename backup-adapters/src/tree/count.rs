//! Counts of what a tree or an archive holds.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use backup_core::{AdapterError, AdapterErrorKind, Evidence};
use rustix::fs::{AtFlags, FileType, Stat, statat};
use rustix::io::Errno;

use super::roots::{Root, parents};
use super::rules::{Excluded, RuleSpec, Why};
use super::walk::{Visit, error, walk};

/// What evidence says about trees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Names of regular files.
    pub(crate) files: u64,
    pub(crate) directories: u64,
    pub(crate) symlinks: u64,
    /// Named pipes and devices.
    pub(crate) special: u64,
    /// Lengths of regular files, each once however many names it has.
    pub(crate) bytes: u64,
}

impl Counts {
    pub(crate) fn evidence(&self) -> Evidence {
        let mut out = Evidence::default()
            .with_count("files", self.files)
            .with_count("directories", self.directories)
            .with_count("bytes", self.bytes);
        for (name, value) in [("symlinks", self.symlinks), ("special", self.special)] {
            if value > 0 {
                out = out.with_count(name, value);
            }
        }
        out
    }
}

/// How many left-out entries are remembered by name.
const REMEMBERED: usize = 10_000;

/// Counts a tree as an archive of it would, without reading a file.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    pub(crate) counts: Counts,
    /// What rules leave out, up to a limit.
    pub(crate) left_out: Vec<(PathBuf, Why)>,
    linked: HashSet<(u64, u64)>,
    /// When enough is counted, if there is anything by then.
    until: Option<Instant>,
}

impl Counter {
    /// Whether more was left out than is remembered.
    pub(crate) fn too_many(&self) -> bool {
        self.left_out.len() >= REMEMBERED
    }

    /// How many files there are, if more than can be counted until then: at least so many.
    ///
    /// # Errors
    /// As [`count`](Self::count).
    pub(crate) fn at_least(
        roots: &[Root],
        rules: &RuleSpec,
        excluded: &Excluded,
        until: Instant,
    ) -> Result<Option<u64>, AdapterError> {
        let mut counter = Self { until: Some(until), ..Self::default() };
        for root in roots {
            match walk(root, rules, excluded, &mut counter) {
                Err(_) if counter.late() => return Ok(Some(counter.counts.files)),
                walked => walked?,
            }
        }
        Ok(None)
    }

    fn late(&self) -> bool {
        self.counts.files > 0 && self.until.is_some_and(|until| Instant::now() >= until)
    }

    /// Counts what an archive of `roots` holds.
    ///
    /// # Errors
    /// An entry that cannot be looked at, by name.
    pub(crate) fn count(roots: &[Root], rules: &RuleSpec, excluded: &Excluded) -> Result<Self, AdapterError> {
        let mut out = Self::default();
        out.counts.directories = parents(roots).len() as u64;
        for root in roots {
            walk(root, rules, excluded, &mut out)?;
        }
        Ok(out)
    }
}

impl Visit for Counter {
    fn dir(&mut self, path: &Path, _: BorrowedFd<'_>, _: &Stat) -> Result<(), AdapterError> {
        self.counts.directories += u64::from(path.parent().is_some());
        Ok(())
    }

    fn file(&mut self, path: &Path, parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), AdapterError> {
        let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(error("look at", path, e)),
        };
        self.counts.files += 1;
        if stat.st_nlink == 1 || self.linked.insert((stat.st_dev, stat.st_ino)) {
            self.counts.bytes += stat.st_size.cast_unsigned();
        }
        if self.late() {
            return Err(AdapterError::new(
                AdapterErrorKind::Timeout,
                "there is more than can be counted in time",
            ));
        }
        Ok(())
    }

    fn other(&mut self, _: &Path, _: BorrowedFd<'_>, _: &OsStr, stat: &Stat) -> Result<(), AdapterError> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => self.counts.symlinks += 1,
            FileType::Socket => {}
            _ => self.counts.special += 1,
        }
        Ok(())
    }

    fn vanished(&mut self, _: &Path) -> Result<(), AdapterError> {
        Ok(())
    }

    fn left_out(&mut self, path: &Path, why: Why) {
        if self.left_out.len() < REMEMBERED {
            self.left_out.push((path.to_owned(), why));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::tree::roots::RootKind;

    #[test]
    fn what_cannot_be_counted_in_time_is_there_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let roots = [Root { path: dir.path().to_owned(), member: String::new(), kind: RootKind::Dir }];
        let at_least = |until| Counter::at_least(&roots, &RuleSpec::default(), &Excluded::default(), until);
        let (over, ahead) = (Instant::now(), Instant::now() + Duration::from_secs(600));
        assert_eq!(at_least(over).unwrap(), None, "nothing is nothing, however late");
        for name in ["a", "b", "c"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        assert_eq!(at_least(over).unwrap(), Some(1));
        assert_eq!(at_least(ahead).unwrap(), None);
    }
}
