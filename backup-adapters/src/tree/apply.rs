//! Gives what was created its owner, attributes, mode and times, and keeps count of what could not be given.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;

use backup_core::{AdapterError, AdapterErrorKind};
use rustix::fs::{
    AtFlags, Gid, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, chmodat, chownat, fchmod, fchown, fstat,
    futimens, utimensat,
};

use super::pax::{Kind, Member};
use super::show;
use super::xattrs::{self, Object};

/// One for each thread; [`Self::merge`] brings their counts together.
#[derive(Debug)]
pub(crate) struct Apply {
    is_root: bool,
    /// Extended attributes that could not be set: how many, and the first.
    lost_attributes: (u64, String),
    foreign_owners: u64,
}

impl Apply {
    pub(crate) fn new() -> Self {
        Self {
            is_root: rustix::process::geteuid().is_root(),
            lost_attributes: (0, String::new()),
            foreign_owners: 0,
        }
    }

    /// For an open file or directory. The order matters: each would undo a later one.
    pub(crate) fn open(&mut self, fd: BorrowedFd<'_>, member: &Member) -> Result<(), AdapterError> {
        let owned = match self.owner(member)? {
            Some((uid, gid)) => {
                fchown(fd, Some(uid), Some(gid)).map_err(|e| failed(member, e))?;
                true
            }
            None => {
                let stat = fstat(fd).map_err(|e| failed(member, e))?;
                u64::from(stat.st_uid) == member.uid && u64::from(stat.st_gid) == member.gid
            }
        };
        self.attributes(Object::Open(fd), member)?;
        fchmod(fd, mode(member, owned)).map_err(|e| failed(member, e))?;
        futimens(fd, &times(member)).map_err(|e| failed(member, e))
    }

    /// For what cannot be opened, which we have just created.
    pub(crate) fn named(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        member: &Member,
    ) -> Result<(), AdapterError> {
        let no_follow = AtFlags::SYMLINK_NOFOLLOW;
        let owner = self.owner(member)?;
        if let Some((uid, gid)) = owner {
            chownat(dir, name, Some(uid), Some(gid), no_follow).map_err(|e| failed(member, e))?;
        }
        self.attributes(Object::Named(dir, name), member)?;
        if member.kind != Kind::Symlink {
            // We have just created it: it is no symlink.
            chmodat(dir, name, mode(member, owner.is_some()), AtFlags::empty())
                .map_err(|e| failed(member, e))?;
        }
        utimensat(dir, name, &times(member), no_follow).map_err(|e| failed(member, e))
    }

    /// Adds the counts of `other`, whose first lost attribute is told if we lost none.
    pub(crate) fn merge(mut self, other: Self) -> Self {
        if self.lost_attributes.0 == 0 {
            self.lost_attributes.1 = other.lost_attributes.1;
        }
        self.lost_attributes.0 += other.lost_attributes.0;
        self.foreign_owners += other.foreign_owners;
        self
    }

    /// What could not be restored, one line each.
    pub(crate) fn warnings(self) -> Vec<String> {
        let mut warnings = Vec::new();
        let (lost, first) = self.lost_attributes;
        if lost > 0 {
            warnings.push(format!(
                "{lost} extended attributes could not be set (no right, or not supported there), the first: {first}"
            ));
        }
        if self.foreign_owners > 0 {
            warnings
                .push(format!("{} entries belong to us now: only root can set owners", self.foreign_owners));
        }
        warnings
    }

    /// The owner to set; `None` if only root could.
    fn owner(&mut self, member: &Member) -> Result<Option<(Uid, Gid)>, AdapterError> {
        if !self.is_root {
            let ours = u64::from(rustix::process::geteuid().as_raw()) == member.uid;
            self.foreign_owners += u64::from(!ours);
            return Ok(None);
        }
        // `-1` would mean "leave it".
        let id = |n: u64| u32::try_from(n).ok().filter(|n| *n != u32::MAX);
        match (id(member.uid), id(member.gid)) {
            (Some(uid), Some(gid)) => Ok(Some((Uid::from_raw(uid), Gid::from_raw(gid)))),
            _ => Err(refused(member, "its owner is not a number that a system knows")),
        }
    }

    fn attributes(&mut self, object: Object<'_>, member: &Member) -> Result<(), AdapterError> {
        for (name, value) in &member.xattrs {
            if !xattrs::write(object, name, value).map_err(|e| failed(member, e))? {
                if self.lost_attributes.0 == 0 {
                    self.lost_attributes.1 = format!("`{}` of `{}`", show(name), show(&member.path));
                }
                self.lost_attributes.0 += 1;
            }
        }
        Ok(())
    }
}

/// Without the right owner, no set-id bits: they would lend our rights.
fn mode(member: &Member, owned: bool) -> Mode {
    Mode::from_raw_mode(if owned { member.mode } else { member.mode & 0o1777 })
}

fn times(member: &Member) -> Timestamps {
    let (tv_sec, nanos) = member.mtime;
    modified(Timespec { tv_sec, tv_nsec: nanos.into() })
}

/// The time that something has now, to set it again.
pub(crate) fn times_of(stat: &Stat) -> Timestamps {
    // Below 1,000,000,000.
    modified(Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0) })
}

fn modified(at: Timespec) -> Timestamps {
    Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: at }
}

/// What the archive asks for is not done.
pub(crate) fn refused(member: &Member, what: &str) -> AdapterError {
    AdapterError::corrupt(format!("the archive's member `{}` is refused: {what}", show(&member.path)))
}

/// The system did not do it.
pub(crate) fn failed(member: &Member, e: impl Into<std::io::Error>) -> AdapterError {
    let e = e.into();
    let what = format!("cannot restore `{}`", show(&member.path));
    if e.kind() == std::io::ErrorKind::IsADirectory {
        return AdapterError::new(AdapterErrorKind::Corrupt, what).with_source(e);
    }
    AdapterError::io(what, e)
}
