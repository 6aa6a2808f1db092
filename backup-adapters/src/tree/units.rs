//! The renames that make a restored tree live.
//!
//! Where nothing below a root has to stay in place, one exchange of two names does it. Otherwise (a store, a mount
//! point, or what the backup leaves out lies below it) the folders on the way to those places stay, and their other
//! contents are exchanged one by one.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use backup_core::keep_aside::{self, Swap};
use backup_core::{AdapterError, AdapterErrorKind, Timestamp};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};

use super::rules::Why;

/// One rename, or exchange.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Unit {
    /// Something new takes the name of something old, which stays as `kept`.
    Swap(Swap),
    /// Something new takes a free name.
    Place { target: PathBuf, staged: PathBuf, identity: (u64, u64) },
    /// Something that the backup does not hold goes aside.
    Aside { target: PathBuf, kept: PathBuf },
}

fn identity(path: &Path) -> io::Result<Option<(u64, u64)>> {
    match fs::symlink_metadata(path) {
        Ok(m) => Ok(Some((m.dev(), m.ino()))),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}

fn rename_to_free(from: &Path, to: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

/// The name for what is kept aside; a later second if the name is taken.
pub(crate) fn free_kept_path(target: &Path, mut at: Timestamp) -> io::Result<(PathBuf, Timestamp)> {
    loop {
        let kept = keep_aside::kept_path(target, at);
        if identity(&kept)?.is_none() {
            return Ok((kept, at));
        }
        at = at.next();
    }
}

impl Unit {
    /// Brings `staged` to `target`.
    pub(crate) fn new(staged: &Path, target: &Path, at: Timestamp) -> io::Result<Self> {
        if identity(target)?.is_none() {
            let identity = identity(staged)?.ok_or(io::ErrorKind::NotFound)?;
            return Ok(Self::Place { target: target.to_owned(), staged: staged.to_owned(), identity });
        }
        let (_, at) = free_kept_path(target, at)?;
        keep_aside::prepare(staged, target, at).map(Self::Swap)
    }

    fn aside(target: &Path, at: Timestamp) -> io::Result<Self> {
        Ok(Self::Aside { target: target.to_owned(), kept: free_kept_path(target, at)?.0 })
    }

    /// The name that it is about.
    pub(crate) fn target(&self) -> &Path {
        match self {
            Self::Swap(swap) => &swap.target,
            Self::Place { target, .. } | Self::Aside { target, .. } => target,
        }
    }

    /// What it keeps aside once it is done.
    pub(crate) fn kept(&self) -> Option<&Path> {
        match self {
            Self::Swap(swap) => Some(&swap.kept),
            Self::Place { .. } => None,
            Self::Aside { kept, .. } => Some(kept),
        }
    }

    /// Whether [`apply`](Self::apply) was at work, and was not taken back.
    pub(crate) fn is_begun(&self) -> io::Result<bool> {
        Ok(match self {
            Self::Swap(swap) => {
                identity(&swap.target)? == Some(swap.identity) || identity(&swap.kept)?.is_some()
            }
            Self::Place { target, identity: id, .. } => identity(target)? == Some(*id),
            Self::Aside { kept, .. } => identity(kept)?.is_some(),
        })
    }

    /// Does it. Idempotent.
    pub(crate) fn apply(&self) -> io::Result<()> {
        match self {
            Self::Swap(swap) => keep_aside::switch(swap),
            Self::Place { target, staged, identity: id } => {
                if identity(target)? == Some(*id) {
                    return Ok(());
                }
                rename_to_free(staged, target)
            }
            Self::Aside { target, kept } => {
                if identity(target)?.is_none() {
                    return Ok(());
                }
                rename_to_free(target, kept)
            }
        }
    }

    /// Takes it back, as if it had never been applied. Also after a failed [`apply`](Self::apply).
    fn revert(&self) -> io::Result<()> {
        match self {
            Self::Swap(swap) => {
                if identity(&swap.target)? != Some(swap.identity) {
                    return Ok(());
                }
                // Between exchange and rename the old data has the staged name.
                let old = if identity(&swap.staged)?.is_some() { &swap.staged } else { &swap.kept };
                match renameat_with(CWD, old, CWD, &swap.target, RenameFlags::EXCHANGE) {
                    Ok(()) if old == &swap.kept => rename_to_free(&swap.kept, &swap.staged),
                    Ok(()) => Ok(()),
                    Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                        fs::rename(&swap.target, &swap.staged)?;
                        fs::rename(&swap.kept, &swap.target)
                    }
                    Err(e) => Err(e.into()),
                }
            }
            Self::Place { target, staged, identity: id } => {
                if identity(target)? == Some(*id) {
                    rename_to_free(target, staged)
                } else {
                    Ok(())
                }
            }
            Self::Aside { target, kept } => {
                if identity(kept)?.is_some() && identity(target)?.is_none() {
                    return rename_to_free(kept, target);
                }
                Ok(())
            }
        }
    }

    /// Puts back what was there before; what was restored goes aside. Returns what would undo that. Idempotent for
    /// one `at`.
    pub(crate) fn undo(&self, at: Timestamp) -> io::Result<Self> {
        match self {
            Self::Swap(swap) => {
                // An earlier call of ours may have made the name already: then `undo` itself knows.
                let done = identity(&swap.kept)?.is_none();
                let at = if done { at } else { free_kept_path(&swap.target, at)?.1 };
                keep_aside::undo(swap, at).map(Self::Swap)
            }
            Self::Place { target, .. } => {
                let kept = keep_aside::kept_path(target, at);
                if identity(target)?.is_some() {
                    rename_to_free(target, &kept)?;
                }
                Ok(Self::Aside { target: target.clone(), kept })
            }
            Self::Aside { target, kept } => {
                if let Some(id) = identity(kept)? {
                    rename_to_free(kept, target)?;
                    return Ok(Self::Place { target: target.clone(), staged: kept.clone(), identity: id });
                }
                let id = identity(target)?.ok_or_else(|| {
                    io::Error::new(io::ErrorKind::NotFound, format!("`{}` is gone", kept.display()))
                })?;
                Ok(Self::Place { target: target.clone(), staged: kept.clone(), identity: id })
            }
        }
    }
}

/// Applies all units, or none.
///
/// # Errors
/// I/O errors, after everything was put back.
pub(crate) fn apply_all(units: &[Unit]) -> Result<(), AdapterError> {
    for (i, unit) in units.iter().enumerate() {
        let Err(e) = unit.apply() else { continue };
        let mut what = format!("cannot put `{}` into its place", unit.target().display());
        for done in units.iter().take(i + 1).rev() {
            if let Err(e) = done.revert() {
                what.push_str(&format!("; and cannot put `{}` back: {e}", done.target().display()));
            }
        }
        return Err(AdapterError::io(what, e));
    }
    Ok(())
}

/// What has to stay where it is, below a root.
pub(crate) type Pinned = BTreeSet<PathBuf>;

/// What a walk over the live root left out, as far as it has to stay: what the restored tree brings is replaced.
pub(crate) fn pinned(left_out: Vec<(PathBuf, Why)>, root: &Path, staged: &Path) -> Pinned {
    let stays = |(path, why): &(PathBuf, Why)| match why {
        Why::Excluded | Why::Mount | Why::SetAside => true,
        Why::Pattern | Why::Git => {
            let in_backup =
                path.strip_prefix(root).is_ok_and(|rest| staged.join(rest).symlink_metadata().is_ok());
            !in_backup
        }
    };
    left_out.into_iter().filter(stays).map(|(path, _)| path).collect()
}

/// Whether something that has to stay lies below `path`.
fn holds_pinned(pinned: &Pinned, path: &Path) -> bool {
    pinned.range(path.to_owned()..).next().is_some_and(|p| p.starts_with(path))
}

/// What of the live `root` will be kept aside by [`plan`], as far as that can be told without the staged data.
pub(crate) fn kept_aside(root: &Path, pinned: &Pinned, out: &mut Vec<PathBuf>) -> io::Result<()> {
    if pinned.is_empty() {
        out.push(root.to_owned());
        return Ok(());
    }
    let mut entries = fs::read_dir(root)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_unstable_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if pinned.contains(&path) {
            continue;
        }
        if entry.file_type()?.is_dir() && holds_pinned(pinned, &path) {
            kept_aside(&path, pinned, out)?;
        } else {
            out.push(path);
        }
    }
    Ok(())
}

/// The units that bring `staged` to `root`.
pub(crate) fn plan(
    staged: &Path,
    root: &Path,
    pinned: &Pinned,
    at: Timestamp,
    out: &mut Vec<Unit>,
) -> Result<(), AdapterError> {
    let fail =
        |e: io::Error| AdapterError::io(format!("cannot prepare the switch of `{}`", root.display()), e);
    if pinned.is_empty() || !fs::symlink_metadata(root).is_ok_and(|m| m.is_dir()) {
        out.push(Unit::new(staged, root, at).map_err(fail)?);
        return Ok(());
    }
    let mut names = BTreeSet::new();
    for dir in [staged, root] {
        for entry in fs::read_dir(dir).map_err(fail)? {
            names.insert(entry.map_err(fail)?.file_name());
        }
    }
    for name in names {
        let (new, live) = (staged.join(&name), root.join(&name));
        if pinned.contains(&live) {
            continue;
        }
        let holds_pinned = holds_pinned(pinned, &live);
        let there = new.symlink_metadata().ok();
        match there {
            Some(meta) if holds_pinned && meta.is_dir() => plan(&new, &live, pinned, at, out)?,
            Some(_) if holds_pinned => {
                return Err(AdapterError::new(
                    AdapterErrorKind::Conflict,
                    format!(
                        "`{}` holds data that must stay, but it is no folder in the backup: restore with `--to`",
                        live.display()
                    ),
                ));
            }
            Some(_) => out.push(Unit::new(&new, &live, at).map_err(fail)?),
            // A folder that the backup does not know, with something in it that must stay.
            None if holds_pinned => {}
            None => out.push(Unit::aside(&live, at).map_err(fail)?),
        }
    }
    Ok(())
}
