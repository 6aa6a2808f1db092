//! Exchanging all that a data directory holds, where the directory itself cannot be renamed because a volume is mounted
//! there: its entries move into a folder beside them, and the new ones take their place.
//!
//! That is not one step, so it is written down before it begins; until it is done, the record lies in the folder of the
//! old entries. Whoever finds the record finishes what it says, before the server is started: it then finds the old data
//! or the new, and never a mixture.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::on_disk::failed;
use backup_core::{AdapterError, AdapterErrorKind, keep_aside};
use serde::{Deserialize, Serialize};

/// The record of an exchange that is not done.
const RECORD: &str = ".exchange.json";

/// What moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    from: PathBuf,
    old: BTreeSet<String>,
    new: BTreeSet<String>,
}

/// Whether an entry of the data directory is none of the server's: what restores keep there.
fn is_ours(name: &str) -> bool {
    keep_aside::is_set_aside(OsString::from(name).as_os_str())
}

/// The names in `dir` that move.
fn names(dir: &Path, keep: &BTreeSet<String>) -> Result<BTreeSet<String>, AdapterError> {
    let unreadable = failed("list", dir);
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir).map_err(&unreadable)? {
        let name = entry.map_err(&unreadable)?.file_name().into_string().map_err(|name| {
            AdapterError::unsupported(format!("`{}` in `{}` is not UTF-8", name.display(), dir.display()))
        })?;
        if name != RECORD && !is_ours(&name) && !keep.contains(&name) && name != "lost+found" {
            names.insert(name);
        }
    }
    Ok(names)
}

/// Makes the entries of `from` those of `data`, whose own go to `aside`, less those in `keep`. Can be called again after
/// a crash, and does nothing once it is done. Blocking; the server must not run.
///
/// # Errors
/// I/O errors; what was begun is finished by the next call, or by [`finish`].
pub(super) fn exchange(
    data: &Path,
    from: &Path,
    aside: &Path,
    keep: &BTreeSet<String>,
) -> Result<(), AdapterError> {
    if !aside.exists() {
        let record =
            Record { from: from.to_owned(), old: names(data, keep)?, new: names(from, &BTreeSet::new())? };
        // With another name until the record is in it: a folder of that name is an exchange that was begun.
        let mut part = aside.as_os_str().to_owned();
        part.push(".new");
        let part = PathBuf::from(part);
        keep_aside::remove(&part).map_err(failed("replace", &part))?;
        fs::create_dir(&part).map_err(failed("create", &part))?;
        write(&part.join(RECORD), &record)?;
        sync(&part)?;
        fs::rename(&part, aside).map_err(failed("name", aside))?;
        sync(data)?;
    }
    resume(data, aside)?;
    if from.is_dir() && !names(from, &BTreeSet::new())?.is_empty() {
        let what = format!("`{}` is there already, of something else", aside.display());
        return Err(AdapterError::new(AdapterErrorKind::Conflict, what));
    }
    Ok(())
}

/// Whether an exchange into `aside` was begun and is not done.
pub(super) fn is_half_done(aside: &Path) -> bool {
    aside.join(RECORD).exists()
}

/// Whether an exchange into `aside` is done.
pub(super) fn is_done(aside: &Path) -> bool {
    aside.is_dir() && !is_half_done(aside)
}

/// Finishes whatever exchange of `data` was begun. Blocking; the server must not run.
///
/// # Errors
/// I/O errors.
pub(super) fn finish(data: &Path) -> Result<(), AdapterError> {
    let unreadable = failed("list", data);
    for entry in fs::read_dir(data).map_err(&unreadable)? {
        let path = entry.map_err(&unreadable)?.path();
        if is_half_done(&path) && path.extension().is_none_or(|e| e != "new") {
            resume(data, &path)?;
        }
    }
    Ok(())
}

fn resume(data: &Path, aside: &Path) -> Result<(), AdapterError> {
    let path = aside.join(RECORD);
    let bytes = match fs::read(&path) {
        // It is done.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        bytes => bytes.map_err(failed("read", &path))?,
    };
    let record: Record = serde_json::from_slice(&bytes)
        .map_err(|e| AdapterError::corrupt(format!("`{}` cannot be read", path.display())).with_source(e))?;
    for name in &record.old {
        // Once it is there, what has its name in the data directory is the new one.
        if !there(&aside.join(name))? && there(&data.join(name))? {
            rename(&data.join(name), &aside.join(name))?;
        }
    }
    sync(aside)?;
    for name in &record.new {
        let (source, target) = (record.from.join(name), data.join(name));
        if there(&source)? {
            if there(&target)? {
                let what = format!("`{}` is there again: does the server run?", target.display());
                return Err(AdapterError::new(AdapterErrorKind::Conflict, what));
            }
            rename(&source, &target)?;
        }
    }
    sync(data)?;
    if record.from.is_dir() {
        sync(&record.from)?;
    }
    fs::remove_file(&path).map_err(failed("remove", &path))?;
    sync(aside)
}

fn there(path: &Path) -> Result<bool, AdapterError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(failed("look at", path)(e)),
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), AdapterError> {
    fs::rename(from, to).map_err(failed("move", from))
}

fn sync(dir: &Path) -> Result<(), AdapterError> {
    keep_aside::sync_dir(dir).map_err(failed("write", dir))
}

fn write(path: &Path, record: &Record) -> Result<(), AdapterError> {
    let text = serde_json::to_vec(record).map_err(|e| {
        AdapterError::new(AdapterErrorKind::Other, "cannot record the exchange").with_source(e)
    })?;
    let written = || {
        let mut file = File::create_new(path)?;
        file.write_all(&text)?;
        file.sync_all()
    };
    written().map_err(failed("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(dir: &Path, names: &[&str], text: &str) {
        fs::create_dir_all(dir).unwrap();
        for name in names {
            fs::write(dir.join(name), text).unwrap();
        }
    }

    fn list(dir: &Path) -> Vec<(String, String)> {
        let mut all: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.is_file())
            .map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&p).unwrap()))
            .collect();
        all.sort();
        all
    }

    struct Place {
        _dir: tempfile::TempDir,
        data: PathBuf,
        from: PathBuf,
        aside: PathBuf,
        keep: BTreeSet<String>,
    }

    fn place() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let from = data.join(".weaviate.restore-20260101_000000-00000000/data");
        fill(&data, &["a", "b", "backups"], "old");
        fill(&from, &["b", "c"], "new");
        let keep = BTreeSet::from(["backups".to_owned()]);
        Place { aside: data.join("weaviate.backup.20260101_000000"), _dir: dir, data, from, keep }
    }

    fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn entries_are_exchanged_and_back() {
        let p = place();
        for _ in 0..2 {
            exchange(&p.data, &p.from, &p.aside, &p.keep).unwrap();
            assert_eq!(list(&p.data), pairs(&[("b", "new"), ("backups", "old"), ("c", "new")]));
            assert_eq!(list(&p.aside), pairs(&[("a", "old"), ("b", "old")]));
            assert!(is_done(&p.aside));
        }
        let second = p.data.join("weaviate.backup.20260101_000001");
        exchange(&p.data, &p.aside, &second, &p.keep).unwrap();
        assert_eq!(list(&p.data), pairs(&[("a", "old"), ("b", "old"), ("backups", "old")]));
        assert_eq!(list(&second), pairs(&[("b", "new"), ("c", "new")]));
    }

    /// Wherever it stops, finishing gives the same.
    #[test]
    fn an_exchange_that_stops_anywhere_is_finished() {
        let steps = ["", "a", "a b", "a b >b", "a b >b >c"];
        for done in steps {
            let p = place();
            fs::create_dir(&p.aside).unwrap();
            let set = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect::<BTreeSet<_>>();
            let record = Record { from: p.from.clone(), old: set(&["a", "b"]), new: set(&["b", "c"]) };
            write(&p.aside.join(RECORD), &record).unwrap();
            for step in done.split_whitespace() {
                match step.strip_prefix('>') {
                    Some(name) => fs::rename(p.from.join(name), p.data.join(name)).unwrap(),
                    None => fs::rename(p.data.join(step), p.aside.join(step)).unwrap(),
                }
            }
            assert!(is_half_done(&p.aside));
            finish(&p.data).unwrap();
            assert_eq!(list(&p.data), pairs(&[("b", "new"), ("backups", "old"), ("c", "new")]), "{done}");
            assert_eq!(list(&p.aside), pairs(&[("a", "old"), ("b", "old")]), "{done}");
            exchange(&p.data, &p.from, &p.aside, &p.keep).unwrap();
        }
    }
}
