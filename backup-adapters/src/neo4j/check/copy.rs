//! The check of an archive that the scripts before this program made: a copy of the data directory of a running server.

use backup_core::{AdapterError, ContentCheck, Evidence};

use crate::legacy::is_stamped;
use crate::tree::parse::{Parser, Sink};
use crate::tree::pax::{Kind, Member};

/// Walks an archive of the scripts before this program: a data directory below one folder.
#[derive(Debug)]
pub(super) struct CopyCheck {
    parser: Parser,
    copy: Copy,
}

impl CopyCheck {
    pub(super) fn new() -> Self {
        Self { parser: Parser::new(), copy: Copy::default() }
    }
}

impl ContentCheck for CopyCheck {
    fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        self.parser.feed(bytes, &mut self.copy)
    }

    fn finish(self: Box<Self>) -> Result<Evidence, AdapterError> {
        self.parser.finish()?;
        let missing = |what: &str| {
            let what = format!("the archive is no data directory of Neo4j: it has no files below `{what}`");
            Err(AdapterError::corrupt(what))
        };
        match (self.copy.databases, self.copy.transactions) {
            (false, _) => missing("neo4j_bak_…/databases"),
            (true, false) => missing("neo4j_bak_…/transactions"),
            (true, true) => Ok(Evidence::default()),
        }
    }
}

/// What such an archive was seen to hold.
#[derive(Debug, Default)]
struct Copy {
    top: Option<Vec<u8>>,
    databases: bool,
    transactions: bool,
}

impl Sink for Copy {
    fn member(&mut self, member: &Member) -> Result<(), AdapterError> {
        let mut parts = member.path.splitn(3, |b| *b == b'/');
        let top = parts.next().unwrap_or_default();
        if top.is_empty() {
            return Ok(());
        }
        let known = std::str::from_utf8(top).is_ok_and(|top| is_stamped(top, "neo4j_bak_", ""));
        if !known || member.kind != Kind::Dir && !member.path.contains(&b'/') {
            let shown = crate::tree::show(&member.path);
            let what = format!(
                "the archive is none of the old scripts: it holds `{shown}`, outside of `neo4j_bak_<time>/`"
            );
            return Err(AdapterError::corrupt(what));
        }
        if self.top.get_or_insert_with(|| top.to_owned()) != top {
            return Err(AdapterError::corrupt("the archive holds more than one folder `neo4j_bak_<time>/`"));
        }
        let below = parts.next();
        if parts.next().is_some() && member.kind == Kind::File {
            self.databases |= below == Some(b"databases");
            self.transactions |= below == Some(b"transactions");
        }
        Ok(())
    }

    fn data(&mut self, _: u64, _: &[u8]) -> Result<(), AdapterError> {
        Ok(())
    }

    fn end(&mut self) -> Result<(), AdapterError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Members by name; those that end with `/` are folders.
    fn copy(names: &[&str]) -> Result<Evidence, AdapterError> {
        let mut tar = tar::Builder::new(Vec::new());
        for name in names {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(match name.ends_with('/') {
                true => tar::EntryType::Directory,
                false => tar::EntryType::Regular,
            });
            header.set_size(0);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            tar.append_data(&mut header, name, std::io::empty()).unwrap();
        }
        let bytes = tar.into_inner().unwrap();
        let mut check = CopyCheck::new();
        check.update(&bytes)?;
        Box::new(check).finish()
    }

    #[test]
    fn a_copy_of_old_is_one_data_directory() {
        const TOP: &str = "neo4j_bak_20250301_040000";
        let (store, logs) = (format!("{TOP}/databases/neo4j/x"), format!("{TOP}/transactions/neo4j/y"));
        let dir = format!("{TOP}/");
        copy(&[&dir, &store, &logs]).unwrap();
        copy(&["./", &store, &logs, &format!("{TOP}/server_id")]).unwrap();
        for (names, why) in [
            (vec![dir.as_str(), &store], "neo4j_bak_…/transactions"),
            (vec![dir.as_str(), &logs], "neo4j_bak_…/databases"),
            (vec![store.as_str(), &logs, "databases/neo4j/x"], "`databases/neo4j/x`"),
            (vec![store.as_str(), &logs, TOP], "outside of"),
            (vec![store.as_str(), &logs, "neo4j_bak_20250301_050000/databases/z/z"], "more than one folder"),
            (vec![store.as_str(), &logs, "neo4j_bak_/x"], "`neo4j_bak_/x`"),
        ] {
            let e = copy(&names).unwrap_err();
            assert!(e.to_string().contains(why), "{names:?}: {e}");
        }
    }
}
