//! One database of a server that goes on, copied in the order that lets it be recovered, until nothing moved meanwhile.

use std::fs;
use std::path::{Path, PathBuf};

use backup_core::{AdapterError, AdapterErrorKind};

use super::super::super::replica::{self, How};
use super::super::super::watch::{LOG, Watch};

/// How often one database is copied, before a server is given up that makes checkpoints all the time.
const ATTEMPTS: u32 = 5;

/// One database, where it is and where its copy goes.
pub(super) struct Database {
    pub(super) name: String,
    pub(super) store: PathBuf,
    pub(super) logs: PathBuf,
    pub(super) store_copy: PathBuf,
    pub(super) logs_copy: PathBuf,
}

type Alive<'a> = &'a dyn Fn() -> Result<(), AdapterError>;

impl Database {
    /// Copies it until nothing moved meanwhile. `told` gets to know what is done. How often it took.
    ///
    /// # Errors
    /// `Changed` if something moved each time; those of copies.
    pub(super) fn copy(&self, alive: Alive<'_>, told: &dyn Fn(&str)) -> Result<u32, AdapterError> {
        let mut why = String::new();
        for attempt in 1..=ATTEMPTS {
            alive()?;
            if attempt > 1 {
                told(&format!("database `{}`: {why}: once more", self.name));
            }
            replica::remove(&self.store_copy)?;
            replica::remove(&self.logs_copy)?;
            why = match self.attempt(alive, told) {
                Ok(None) => return Ok(attempt),
                Ok(Some(moved)) => moved.to_owned(),
                Err(e) if e.kind() == AdapterErrorKind::Changed => e.to_string(),
                Err(e) => return Err(e),
            };
        }
        Err(AdapterError::new(
            AdapterErrorKind::Changed,
            format!(
                "database `{}` does not hold still for as long as a copy of its files takes ({ATTEMPTS} attempts; at last \
                 {why}): use `clone`, `stop-dump`, `stop-copy` or `pause-copy`",
                self.name
            ),
        ))
    }

    /// Copies it once; what moved meanwhile.
    fn attempt(&self, alive: Alive<'_>, told: &dyn Fn(&str)) -> Result<Option<&'static str>, AdapterError> {
        let before = Watch::of(&self.store, &self.logs)?;
        told(&format!("copying database `{}`", self.name));
        replica::empty_like(&self.logs, &self.logs_copy)?;
        before.write(&self.logs_copy)?;
        replica::copy(&self.store, &self.store_copy, &[], How::Live, alive)?;
        // Last: all that has come into the store by now is in them.
        for log in logs(&self.logs)? {
            replica::log(&log, &self.logs_copy.join(log.file_name().unwrap_or_default()), alive)?;
        }
        Ok(before.moved(&Watch::of(&self.store, &self.logs)?))
    }
}

/// The transaction logs. None may be missing from the checkpoint's on; those before it go with a checkpoint.
fn logs(dir: &Path) -> Result<Vec<PathBuf>, AdapterError> {
    let list = || {
        let mut all = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(LOG) {
                all.push(entry.path());
            }
        }
        all.sort();
        Ok(all)
    };
    list().map_err(|e| AdapterError::io(format!("cannot list `{}`", dir.display()), e))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn fixture() -> (tempfile::TempDir, Database) {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let database = Database {
            name: "neo4j".to_owned(),
            store: at("store"),
            logs: at("logs"),
            store_copy: at("store-copy"),
            logs_copy: at("logs-copy"),
        };
        fs::create_dir_all(at("store/schema/index/range-1.0/3")).unwrap();
        fs::create_dir(at("logs")).unwrap();
        for (file, text) in [
            ("store/neostore.nodestore.db", "records"),
            ("store/schema/index/range-1.0/3/index-3", "tree"),
            // The first went with a checkpoint long ago.
            ("logs/neostore.transaction.db.1", "log 1"),
            ("logs/neostore.transaction.db.2", "log 2"),
            ("logs/checkpoint.0", "checkpoint"),
        ] {
            fs::write(at(file), text).unwrap();
        }
        (dir, database)
    }

    /// Copies; `then` is called each time a copy begins. What was told.
    fn copy(database: &Database, then: impl Fn(usize)) -> (Result<u32, AdapterError>, Vec<String>) {
        let told = RefCell::new(Vec::new());
        let copied = database.copy(&|| Ok(()), &|what| {
            told.borrow_mut().push(what.to_owned());
            let begun = told.borrow().iter().filter(|t| *t == "copying database `neo4j`").count();
            if what.starts_with("copying") {
                then(begun);
            }
        });
        (copied, told.into_inner())
    }

    #[test]
    fn a_copy_holds_the_checkpoint_from_before_and_the_logs_from_after() {
        let (_dir, database) = fixture();
        let (copied, told) = copy(&database, |_| {
            // Committed while the store is copied; a log that is rotated; a file that comes and one that goes.
            fs::write(database.logs.join("neostore.transaction.db.2"), "log 2, and more").unwrap();
            fs::write(database.logs.join("neostore.transaction.db.3"), "log 3").unwrap();
            fs::write(database.store.join("database_lock"), "").unwrap();
        });
        assert_eq!(copied.unwrap(), 1);
        assert_eq!(told, ["copying database `neo4j`"]);
        let read = |file: &str| fs::read_to_string(database.logs_copy.join(file)).unwrap_or_default();
        assert_eq!(read("checkpoint.0"), "checkpoint");
        assert_eq!(read("neostore.transaction.db.1"), "log 1");
        assert_eq!(read("neostore.transaction.db.2"), "log 2, and more");
        assert_eq!(read("neostore.transaction.db.3"), "log 3");
        assert!(!database.logs_copy.join("neostore.transaction.db.0").exists());
        assert!(!database.store_copy.join("database_lock").exists());
    }

    #[test]
    fn what_moves_meanwhile_is_copied_once_more_and_the_rest_thrown_away() {
        let (_dir, database) = fixture();
        let moves = |n| match n {
            1 => {
                // The logs before a checkpoint go with it.
                fs::write(database.logs.join("checkpoint.0"), "checkpoint, another").unwrap();
                fs::remove_file(database.logs.join("neostore.transaction.db.1")).unwrap();
            }
            2 => fs::create_dir(database.store.join("schema/index/range-1.0/4")).unwrap(),
            3 => fs::write(database.store.join("schema/index/range-1.0/3/index-3"), "state").unwrap(),
            _ => {}
        };
        let (copied, told) = copy(&database, moves);
        assert_eq!(copied.unwrap(), 4);
        assert_eq!(told.len(), 7, "{told:?}");
        assert_eq!(told[1], "database `neo4j`: a checkpoint was made: once more");
        assert!(
            told[3].contains("an index came") && told[5].contains("a checkpoint was under way"),
            "{told:?}"
        );
        let checkpoint = fs::read_to_string(database.logs_copy.join("checkpoint.0")).unwrap();
        assert_eq!(checkpoint, "checkpoint, another");
        assert!(!database.logs_copy.join("neostore.transaction.db.1").exists(), "of the first attempt");
        assert!(database.store_copy.join("schema/index/range-1.0/4").is_dir());
    }

    #[test]
    fn a_database_that_never_holds_still_is_an_error() {
        let (_dir, database) = fixture();
        let moves = |n: usize| fs::write(database.logs.join("checkpoint.0"), "x".repeat(n)).unwrap();
        let (copied, told) = copy(&database, moves);
        let e = copied.unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::Changed);
        for part in ["5 attempts", "a checkpoint was made", "`clone`", "`stop-dump`"] {
            assert!(e.to_string().contains(part), "{e}");
        }
        assert_eq!(told.iter().filter(|t| t.starts_with("copying")).count(), 5);
    }

    #[test]
    fn a_copy_ends_when_it_shall() {
        let (_dir, database) = fixture();
        let e = database.copy(&|| Err(AdapterError::cancelled()), &|_| {}).unwrap_err();
        assert_eq!(e.kind(), AdapterErrorKind::Cancelled);
    }
}
