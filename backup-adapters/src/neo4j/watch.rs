//! Whether files that a server works on could be copied as if it had crashed at one moment.
//!
//! Its record stores are repaired by the transaction log, from the last checkpoint on. Trees (indexes, counts, ids) and
//! what Lucene writes are sound as of a checkpoint, and after it; a copy that is half from before one and half from after
//! it is not. So nothing of what a checkpoint changes may change while the files are copied.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use backup_core::AdapterError;

use super::replica;

/// What the names of the files begin with that name the last checkpoint, and the transaction logs.
const CHECKPOINT: &str = "checkpoint.";
pub(super) const LOG: &str = "neostore.transaction.db.";

/// Where indexes are.
const SCHEMA: &str = "schema";

/// Trees outside of it.
const TREES: [&str; 4] = [".id", ".counts.db", ".degrees.db", ".indexstats.db"];

/// The first pages of a tree: what it is, and twice the state of its last checkpoint.
const HEAD: u64 = 3 * 8192;

/// A file that names checkpoints, as it was read.
#[derive(Debug)]
struct Checkpoint {
    bytes: Vec<u8>,
    meta: Metadata,
    modified: SystemTime,
}

/// What must not move while a database is copied.
#[derive(Debug)]
pub(super) struct Watch {
    checkpoints: BTreeMap<OsString, Checkpoint>,
    /// Indexes and trees, and what they begin with, if that counts.
    indexes: BTreeMap<PathBuf, Option<blake3::Hash>>,
}

impl Watch {
    /// Looks at a database: first at its checkpoint, then at its indexes.
    ///
    /// # Errors
    /// `Unsupported` if its checkpoints are in no file of their own; I/O errors.
    pub(super) fn of(store: &Path, logs: &Path) -> Result<Self, AdapterError> {
        let cannot = |path: &Path, e| AdapterError::io(format!("cannot look at `{}`", path.display()), e);
        let checkpoints = checkpoints(logs).map_err(|e| cannot(logs, e))?;
        if checkpoints.is_empty() {
            return Err(AdapterError::unsupported(format!(
                "`{}` holds no `{CHECKPOINT}…`: this version of Neo4j keeps its checkpoints elsewhere, and `online` \
                 cannot see them: use another `capture`",
                logs.display()
            )));
        }
        let mut indexes = BTreeMap::new();
        for entry in fs::read_dir(store).map_err(|e| cannot(store, e))? {
            let path = entry.map_err(|e| cannot(store, e))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if TREES.iter().any(|end| name.ends_with(end)) {
                let head = head(&path).map_err(|e| cannot(&path, e))?;
                indexes.insert(path, head);
            }
        }
        let schema = store.join(SCHEMA);
        walk(&schema, &mut indexes).map_err(|e| cannot(&schema, e))?;
        Ok(Self { checkpoints, indexes })
    }

    /// What moved between this and `later`.
    pub(super) fn moved(&self, later: &Self) -> Option<&'static str> {
        let same = self.checkpoints.len() == later.checkpoints.len()
            && self.checkpoints.iter().zip(&later.checkpoints).all(|((name, was), (now, is))| {
                name == now && was.modified == is.modified && was.bytes == is.bytes
            });
        if !same {
            return Some("a checkpoint was made");
        }
        let known = self.indexes.keys().eq(later.indexes.keys());
        match known {
            false => Some("an index came, went or was written back"),
            true if self.indexes != later.indexes => Some("a checkpoint was under way"),
            true => None,
        }
    }

    /// Puts the checkpoints as they were seen into `dir`.
    ///
    /// # Errors
    /// I/O errors.
    pub(super) fn write(&self, dir: &Path) -> Result<(), AdapterError> {
        self.checkpoints.iter().try_for_each(|(name, c)| replica::write(&dir.join(name), &c.bytes, &c.meta))
    }
}

fn checkpoints(logs: &Path) -> io::Result<BTreeMap<OsString, Checkpoint>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(logs)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(CHECKPOINT) {
            continue;
        }
        let Some(mut file) = there(File::open(entry.path()))? else { continue };
        let meta = file.metadata()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let modified = meta.modified()?;
        all.insert(entry.file_name(), Checkpoint { bytes, meta, modified });
    }
    Ok(all)
}

/// Lists what is below `dir`. Of Lucene's files those count that say which others do: it writes and merges the rest at
/// any time, and keeps what the last checkpoint knows of.
fn walk(dir: &Path, into: &mut BTreeMap<PathBuf, Option<blake3::Hash>>) -> io::Result<()> {
    let Some(listed) = there(fs::read_dir(dir))? else { return Ok(()) };
    let mut files = Vec::new();
    for entry in listed {
        let entry = entry?;
        match there(entry.file_type())? {
            None => {}
            Some(kind) if kind.is_dir() => {
                into.insert(entry.path(), None);
                walk(&entry.path(), into)?;
            }
            Some(_) => files.push(entry.path()),
        }
    }
    let segments =
        |f: &PathBuf| f.file_name().is_some_and(|name| name.to_string_lossy().starts_with("segments_"));
    let lucene = files.iter().any(segments);
    for file in files {
        if !lucene || segments(&file) {
            let head = head(&file)?;
            into.insert(file, head);
        }
    }
    Ok(())
}

fn head(path: &Path) -> io::Result<Option<blake3::Hash>> {
    let Some(file) = there(File::open(path))? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(HEAD).read_to_end(&mut bytes)?;
    Ok(Some(blake3::hash(&bytes)))
}

/// What vanishes meanwhile is not there.
fn there<T>(tried: io::Result<T>) -> io::Result<Option<T>> {
    match tried {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        tried => tried.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use backup_core::AdapterErrorKind;

    use super::*;

    const CHECKPOINTED: Option<&str> = Some("a checkpoint was made");
    const LISTED: Option<&str> = Some("an index came, went or was written back");
    const UNDER_WAY: Option<&str> = Some("a checkpoint was under way");

    #[test]
    fn what_a_checkpoint_changes_is_seen_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (store, logs) = (dir.path().join("store"), dir.path().join("logs"));
        let (tree, lucene) =
            (store.join("schema/index/range-1.0/3/index-3"), store.join("schema/index/text-2.0/4/1"));
        for made in [tree.parent().unwrap(), &lucene, &logs] {
            fs::create_dir_all(made).unwrap();
        }
        fs::write(logs.join("neostore.transaction.db.0"), "log").unwrap();
        let refused = Watch::of(&store, &logs).unwrap_err();
        assert!(refused.kind() == AdapterErrorKind::Unsupported, "{refused}");
        let (checkpoint, ids) = (logs.join("checkpoint.0"), store.join("neostore.nodestore.db.id"));
        fs::write(&checkpoint, "first").unwrap();
        for file in [&tree, &ids, &store.join("neostore.nodestore.db")] {
            fs::write(file, vec![1; 5 * 8192]).unwrap();
        }
        for file in ["segments_2", "_0.cfs"] {
            fs::write(lucene.join(file), file).unwrap();
        }
        let page = |path: &Path, page: u64| {
            File::options().write(true).open(path).unwrap().write_all_at(b"changed", page * 8192).unwrap();
        };
        let first = Watch::of(&store, &logs).unwrap();
        let moved = || first.moved(&Watch::of(&store, &logs).unwrap());
        // What a server does all the time.
        page(&tree, 4);
        page(&ids, 3);
        page(&store.join("neostore.nodestore.db"), 0);
        fs::write(lucene.join("_1.cfs"), "merged").unwrap();
        fs::remove_file(lucene.join("_0.cfs")).unwrap();
        fs::write(logs.join("neostore.transaction.db.1"), "rotated").unwrap();
        assert_eq!(moved(), None);
        // What a checkpoint does before it is written down.
        let undo = fs::read(&tree).unwrap();
        page(&tree, 2);
        assert_eq!(moved(), UNDER_WAY);
        fs::write(&tree, undo).unwrap();
        assert_eq!(moved(), None);
        fs::rename(lucene.join("segments_2"), lucene.join("segments_3")).unwrap();
        assert_eq!(moved(), LISTED);
        fs::rename(lucene.join("segments_3"), lucene.join("segments_2")).unwrap();
        fs::create_dir(store.join("schema/index/range-1.0/5")).unwrap();
        assert_eq!(moved(), LISTED);
        fs::remove_dir(store.join("schema/index/range-1.0/5")).unwrap();
        page(&ids, 1);
        assert_eq!(moved(), UNDER_WAY);
        fs::write(&checkpoint, "first, second").unwrap();
        assert_eq!(moved(), CHECKPOINTED);
        fs::remove_file(&checkpoint).unwrap();
        fs::write(logs.join("checkpoint.1"), "first").unwrap();
        assert_eq!(moved(), CHECKPOINTED);
    }
}
