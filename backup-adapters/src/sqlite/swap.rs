//! Replacing a database together with what SQLite keeps beside it.
//!
//! A `-wal` or `-journal` belongs to one database file and to no other: SQLite would play the old one into the new
//! database and so damage it, and the old database without its own would lose its last transactions
//! (<https://www.sqlite.org/howtocorrupt.html>, section 1.4). Three files cannot be renamed in one step, so that a
//! crash between two renames must find a state that nobody can open by mistake:
//!
//! 1. Each file beside the database changes names with an empty *directory*. As long as that lies there SQLite cannot
//!    open the database ("unable to open database file"), and changes nothing.
//! 2. The databases change names ([`keep_aside`]).
//! 3. The directories go: removed, or, when data is put back, changed for the files that belong to it.
//!
//! Nothing that was there is changed or deleted, also not a `-wal` that was never checkpointed, so that `undo` puts
//! back exactly what was live.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use backup_core::keep_aside::{self, Swap};
use backup_core::{Leftover, Timestamp};
use rustix::fs::{CWD, RenameFlags};
use serde::{Deserialize, Serialize};

use super::connect::{SIDECARS, sidecar};

/// A database and the place it is meant for; what a restore's journal remembers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DatabaseSwap {
    /// Whether [`DatabaseSwap::switch`] was done.
    pub(super) live: bool,
    /// The database itself.
    pub(super) swap: Swap,
    /// Names what is kept aside.
    pub(super) at: Timestamp,
}

impl DatabaseSwap {
    /// Records the swap of the staged database into the place of `target`.
    pub(super) fn prepare(staged: &Path, target: &Path, at: Timestamp) -> io::Result<Self> {
        for suffix in SIDECARS {
            let kept = keep_aside::kept_path(&sidecar(target, suffix), at);
            if kept.is_file() {
                let message = format!("`{}` exists already", kept.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
            }
        }
        Ok(Self { live: false, swap: keep_aside::prepare(staged, target, at)?, at })
    }

    /// What a restore that died while it staged has left: nothing, or a file that never goes live.
    pub(super) fn never(staged: PathBuf, target: PathBuf, at: Timestamp) -> io::Result<Option<Self>> {
        let Some(identity) = identity(&staged)? else { return Ok(None) };
        let kept = keep_aside::kept_path(&target, at);
        Ok(Some(Self { live: false, swap: Swap { target, staged, kept, identity, replaced: false }, at }))
    }

    /// Whether the new database carries the name.
    pub(super) fn is_done(&self) -> io::Result<bool> {
        Ok(identity(&self.swap.target)? == Some(self.swap.identity))
    }

    /// Makes the staged database live. Can be called again after a crash.
    pub(super) fn switch(&self) -> io::Result<Self> {
        exchange(&self.swap.target, None, self.at, || self.is_done(), || keep_aside::switch(&self.swap))?;
        Ok(Self { live: true, ..self.clone() })
    }

    /// The name for what was restored once it is put aside: never the one of the data that comes back.
    fn undo_at(&self, at: Timestamp) -> Timestamp {
        if at == self.at { at.next() } else { at }
    }

    /// Whether [`DatabaseSwap::undo`] with the same `at` has the old database back under its name.
    pub(super) fn is_undone(&self, at: Timestamp) -> io::Result<bool> {
        let aside = keep_aside::kept_path(&self.swap.target, self.undo_at(at));
        let kept = identity(&self.swap.kept)?;
        if self.swap.replaced && kept == Some(self.swap.identity) {
            // They changed names, and what was restored awaits its last one.
            return Ok(true);
        }
        let gone = if self.swap.replaced { kept } else { identity(&self.swap.target)? };
        Ok(gone.is_none() && identity(&aside)?.is_some())
    }

    /// Puts the kept-aside database back, with its own `-wal` or `-journal`.
    pub(super) fn undo(&self, at: Timestamp) -> io::Result<Self> {
        let at = self.undo_at(at);
        let target = &self.swap.target;
        if self.swap.replaced && !self.is_undone(at)? && identity(&self.swap.kept)?.is_none() {
            let message = format!("`{}` is gone", self.swap.kept.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, message));
        }
        let back =
            exchange(target, Some(self.at), at, || self.is_undone(at), || keep_aside::undo(&self.swap, at))?;
        Ok(Self { live: true, swap: back, at })
    }

    /// What still occupies space: the staged database before it is live, afterwards what is kept aside.
    pub(super) fn leftovers(&self) -> io::Result<Vec<Leftover>> {
        let mut found = Vec::new();
        for path in self.leftover_paths()? {
            if identity(&path)?.is_some() {
                let (bytes, _) = keep_aside::measure(&path)?;
                found.push(Leftover { what: path.display().to_string(), bytes: Some(bytes) });
            }
        }
        Ok(found)
    }

    /// Removes what [`DatabaseSwap::leftovers`] lists.
    pub(super) fn discard(&self) -> io::Result<()> {
        if !self.live && self.is_done()? {
            return Err(io::Error::other("the restore was cut short while it went live"));
        }
        self.leftover_paths()?.iter().try_for_each(|path| keep_aside::remove(path))
    }

    fn leftover_paths(&self) -> io::Result<Vec<PathBuf>> {
        if !self.live {
            // After a crash amid the switch this name may carry the old database.
            let staged = identity(&self.swap.staged)? == Some(self.swap.identity);
            return Ok(staged.then(|| self.swap.staged.clone()).into_iter().collect());
        }
        let kept = SIDECARS.iter().map(|s| keep_aside::kept_path(&sidecar(&self.swap.target, s), self.at));
        Ok(kept.chain([self.swap.kept.clone()]).collect())
    }
}

fn identity(path: &Path) -> io::Result<Option<(u64, u64)>> {
    match fs::symlink_metadata(path) {
        Ok(m) => Ok(Some((m.dev(), m.ino()))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The three steps. `incoming` names the kept-aside files that belong to the new database, `outgoing` what those of
/// the old one will be called.
fn exchange<T>(
    target: &Path,
    incoming: Option<Timestamp>,
    outgoing: Timestamp,
    done: impl Fn() -> io::Result<bool>,
    swap: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let beside: Vec<Beside> = SIDECARS
        .iter()
        .map(|suffix| {
            let name = sidecar(target, suffix);
            Beside {
                incoming: incoming.map(|at| keep_aside::kept_path(&name, at)),
                outgoing: keep_aside::kept_path(&name, outgoing),
                name,
            }
        })
        .collect();
    let blocked = if done()? { Ok(()) } else { beside.iter().try_for_each(Beside::block) };
    let swapped = blocked.and_then(|()| trouble()).and_then(|()| swap());
    match swapped {
        Ok(value) => {
            beside.iter().try_for_each(Beside::unblock)?;
            keep_aside::sync_dir(target.parent().unwrap_or(Path::new(".")))?;
            Ok(value)
        }
        Err(e) => {
            // Only beside the old database: if the new one has the name already, the next call goes on from here.
            if matches!(done(), Ok(false)) {
                for file in beside.iter().rev() {
                    // The first error tells more. What stays blocked cannot be opened, and so not be damaged.
                    let _second = file.unblock_back();
                }
            }
            Err(e)
        }
    }
}

/// A file beside the database.
struct Beside {
    name: PathBuf,
    incoming: Option<PathBuf>,
    outgoing: PathBuf,
}

impl Beside {
    /// Puts an empty directory in the place of the file, which takes its name for later.
    fn block(&self) -> io::Result<()> {
        if self.name.is_dir() {
            return Ok(());
        }
        if identity(&self.name)?.is_some() {
            make_dir(&self.outgoing)?;
            swap_names(&self.name, &self.outgoing)
        } else if self.incoming.as_deref().is_some_and(Path::is_file) {
            make_dir(&self.name)
        } else {
            Ok(())
        }
    }

    /// Gives way to the file that belongs to the new database, or to none.
    fn unblock(&self) -> io::Result<()> {
        if let Some(incoming) = &self.incoming
            && self.name.is_dir()
            && incoming.is_file()
        {
            swap_names(incoming, &self.name)?;
        }
        for path in [Some(&self.name), self.incoming.as_ref(), Some(&self.outgoing)].into_iter().flatten() {
            if path.is_dir() {
                trouble()?;
                fs::remove_dir(path)?;
            }
        }
        Ok(())
    }

    /// Undoes [`Beside::block`].
    fn unblock_back(&self) -> io::Result<()> {
        if self.name.is_dir() && self.outgoing.is_file() {
            swap_names(&self.outgoing, &self.name)?;
        }
        for path in [&self.name, &self.outgoing] {
            if path.is_dir() {
                trouble()?;
                fs::remove_dir(path)?;
            }
        }
        Ok(())
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    trouble()?;
    match fs::create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other,
    }
}

/// A file and an empty directory change names: in one step where the file system can, else in three.
fn swap_names(file: &Path, dir: &Path) -> io::Result<()> {
    trouble()?;
    match rustix::fs::renameat_with(CWD, file, CWD, dir, RenameFlags::EXCHANGE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            fs::remove_dir(dir)?;
            fs::rename(file, dir)?;
            fs::create_dir(file)
        }
        other => Ok(other?),
    }
}

/// Where tests let a step fail, or the process die.
#[cfg(not(test))]
fn trouble() -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
use tests::trouble;

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use rusqlite::Connection;

    use super::*;

    thread_local! {
        static COUNTDOWN: Cell<Option<u32>> = const { Cell::new(None) };
        static DIE: Cell<bool> = const { Cell::new(false) };
    }

    pub(super) fn trouble() -> io::Result<()> {
        match COUNTDOWN.get() {
            None => Ok(()),
            Some(0) => {
                COUNTDOWN.set(None);
                // A panic leaves everything as a kill would: nothing here cleans up when it is dropped.
                if DIE.get() {
                    std::panic::resume_unwind(Box::new("killed"));
                }
                Err(io::Error::other("scripted"))
            }
            Some(n) => {
                COUNTDOWN.set(Some(n - 1));
                Ok(())
            }
        }
    }

    fn at(s: &str) -> Timestamp {
        s.parse().unwrap()
    }

    /// A database of `rows` rows, of which the last two are in a `-wal` or are being taken back by a hot journal, as a
    /// crash leaves them.
    fn crashed(path: &Path, mode: &str, rows: u32) {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("work.db");
        let conn = Connection::open(&work).unwrap();
        conn.pragma_update(None, "journal_mode", mode).unwrap();
        conn.execute_batch(
            "CREATE TABLE t (x); PRAGMA cache_size=2; PRAGMA synchronous=OFF; PRAGMA wal_autocheckpoint=0",
        )
        .unwrap();
        let insert = |n| conn.execute_batch(&"INSERT INTO t VALUES (zeroblob(9000));".repeat(n)).unwrap();
        insert(usize::try_from(rows).unwrap() - 2);
        if mode == "wal" {
            conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
            insert(2);
        } else {
            insert(2);
        }
        if mode == "delete" {
            conn.execute_batch("BEGIN; DELETE FROM t").unwrap();
            insert(50);
        }
        for suffix in ["", "-wal", "-journal"] {
            if sidecar(&work, suffix).exists() {
                fs::copy(sidecar(&work, suffix), sidecar(path, suffix)).unwrap();
            }
        }
    }

    /// What a service would find: looked at in a copy, so that looking changes nothing. `None`: it cannot be opened.
    fn rows(target: &Path) -> Option<u32> {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("copy.db");
        for suffix in ["", "-wal", "-journal"] {
            let (from, to) = (sidecar(target, suffix), sidecar(&copy, suffix));
            if from.is_dir() {
                fs::create_dir(to).unwrap();
            } else if from.exists() {
                fs::copy(from, to).unwrap();
            }
        }
        let conn = Connection::open(&copy).unwrap();
        let count = conn.query_row("SELECT count(*) FROM t", [], |r| r.get(0));
        if count.is_err() {
            // And trying does no harm.
            drop(conn);
            assert!(
                fs::read(&copy).unwrap() == fs::read(target).unwrap(),
                "a vain attempt to open changed it"
            );
            return None;
        }
        let ok: String = conn.query_row("PRAGMA integrity_check", [], |r| r.get(0)).unwrap();
        assert_eq!(ok, "ok", "a database met the log of another");
        count.ok()
    }

    fn names(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().count()
    }

    /// Lets `step` meet trouble at its operation number `n`. Whether it got through without.
    fn with_trouble(n: u32, die: bool, step: impl FnOnce() -> io::Result<DatabaseSwap>) -> bool {
        COUNTDOWN.set(Some(n));
        DIE.set(die);
        let result = catch_unwind(AssertUnwindSafe(step));
        COUNTDOWN.take().is_some() && result.is_ok_and(|r| r.is_ok())
    }

    #[test]
    fn trouble_at_any_point_never_pairs_a_database_with_another_ones_log() {
        for (mode, die) in [("wal", true), ("wal", false), ("delete", true), ("delete", false)] {
            let (mut n, mut through) = (0, 0);
            while through < 2 {
                let dir = tempfile::tempdir().unwrap();
                let target = dir.path().join("app.db");
                crashed(&target, mode, 20);
                assert_eq!(rows(&target), Some(20));
                let staged = dir.path().join("staged");
                crashed(&staged, "off", 30);
                let swap = DatabaseSwap::prepare(&staged, &target, at("20260101_000000")).unwrap();

                through = u32::from(with_trouble(n, die, || swap.switch()));
                let found = rows(&target);
                match swap.is_done().unwrap() {
                    true => assert!(matches!(found, None | Some(30)), "{mode} {n}: {found:?}"),
                    // An error leaves the old data live; a kill may leave what cannot be opened.
                    false if die => assert!(matches!(found, None | Some(20)), "{mode} {n}: {found:?}"),
                    false => assert_eq!(found, Some(20), "{mode} {n}"),
                }
                let switched = swap.switch().unwrap();
                assert_eq!(rows(&target), Some(30), "{mode} {n}");
                assert_eq!(names(dir.path()), 3, "{mode} {n}");

                // The restored database was used, and left a log, too.
                crashed(&target, mode, 40);
                let undo_at = at("20260101_000005");
                through += u32::from(with_trouble(n, die, || switched.undo(undo_at)));
                let found = rows(&target);
                let undone = switched.is_undone(undo_at).unwrap();
                assert!(
                    found.is_none() || found == Some(if undone { 20 } else { 40 }),
                    "{mode} {n}: {found:?}"
                );
                let back = switched.undo(undo_at).unwrap();
                assert_eq!(rows(&target), Some(20), "{mode} {n}");
                assert_eq!(names(dir.path()), 4, "{mode} {n}");

                back.undo(at("20260101_000009")).unwrap();
                assert_eq!(rows(&target), Some(40), "{mode} {n}");
                assert_eq!(names(dir.path()), 4, "{mode} {n}");
                n += 1;
            }
            assert!(n > 4, "{mode}: the trouble met nothing");
        }
    }
}
