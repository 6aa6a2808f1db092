//! The directory format, as a tar archive: a table of contents and a file for the data of each table.
//!
//! The files come in any order, so that what each holds is remembered until the table of contents tells what there should
//! be.

use std::collections::BTreeMap;

use backup_core::AdapterError;

use super::copy::CopyRows;
use super::{Contents, custom};
use crate::tree::parse::{self, Sink};
use crate::tree::pax::{Kind, Member};

const TOC: &str = "toc.dat";
/// What compression adds to the names of files.
const SUFFIXES: [&str; 4] = ["", ".gz", ".lz4", ".zst"];
/// The largest table of contents, and the largest list of large objects, in bytes.
const MAX_LIST: usize = 1 << 30;

/// Follows an archive of a directory.
#[derive(Debug)]
pub(in crate::postgres) struct Directory {
    archive: parse::Parser,
    files: Files,
}

/// What is known of one file.
#[derive(Debug)]
enum Seen {
    /// Lists are kept as they are.
    List(Vec<u8>),
    /// Data of a table, unless it is something else that ends with `.dat`.
    Rows(CopyRows, bool),
    Other,
}

#[derive(Debug)]
struct Files {
    name: String,
    seen: BTreeMap<String, Seen>,
    current: Option<(String, Seen)>,
}

impl Directory {
    pub(super) fn new(name: &str) -> Self {
        let files = Files { name: name.to_owned(), seen: BTreeMap::new(), current: None };
        Self { archive: parse::Parser::new(), files }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        let name = self.files.name.clone();
        self.archive.feed(bytes, &mut self.files).map_err(|e| in_dump(&name, e))
    }

    pub(super) fn finish(self) -> Result<Contents, AdapterError> {
        self.archive.finish().map_err(|e| in_dump(&self.files.name, e))?;
        self.files.contents()
    }
}

fn in_dump(name: &str, e: AdapterError) -> AdapterError {
    AdapterError::new(e.kind(), format!("the dump `{name}` is cut or damaged")).with_source(e)
}

impl Sink for Files {
    fn member(&mut self, member: &Member) -> Result<(), AdapterError> {
        let path = String::from_utf8_lossy(&member.path).into_owned();
        // `dump` and the files in it, no more.
        let (depth, base) = (path.split('/').count(), path.rsplit('/').next().unwrap_or_default());
        match member.kind {
            Kind::Dir if depth <= 1 => return Ok(()),
            Kind::File if depth <= 2 => {}
            _ => return Err(self.corrupt(&format!("holds `{}`, which no dump does", path.escape_debug()))),
        }
        if self.seen.contains_key(base) {
            return Err(self.corrupt(&format!("holds `{base}` twice")));
        }
        let seen = match base.rsplit_once('.') {
            _ if base == TOC => Seen::List(Vec::new()),
            Some((_, "toc")) => Seen::List(Vec::new()),
            Some((_, "dat")) if !base.starts_with("blob_") => Seen::Rows(CopyRows::new(), false),
            _ => Seen::Other,
        };
        self.current = Some((base.to_owned(), seen));
        Ok(())
    }

    fn data(&mut self, _offset: u64, bytes: &[u8]) -> Result<(), AdapterError> {
        match &mut self.current {
            Some((name, Seen::List(list))) => {
                if list.len() + bytes.len() > MAX_LIST {
                    let what = format!("has a list `{name}` of more than {MAX_LIST} bytes");
                    return Err(self.corrupt(&what));
                }
                list.extend_from_slice(bytes);
            }
            Some((_, Seen::Rows(rows, ended))) if !*ended => *ended = rows.update(bytes).1,
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), AdapterError> {
        self.seen.extend(self.current.take());
        Ok(())
    }
}

impl Files {
    fn corrupt(&self, what: &str) -> AdapterError {
        AdapterError::corrupt(format!("the dump `{}` {what}", self.name))
    }

    /// A file under its name or, compressed, a longer one.
    fn find(&self, file: &str) -> Option<&Seen> {
        SUFFIXES.iter().find_map(|suffix| self.seen.get(&format!("{file}{suffix}")))
    }

    fn contents(self) -> Result<Contents, AdapterError> {
        let toc = match self.seen.get(TOC) {
            Some(Seen::List(bytes)) => custom::toc(&self.name, bytes)?,
            _ => return Err(self.corrupt("is cut: it has no table of contents")),
        };
        let mut contents = Contents { counted: !toc.compressed, ..Contents::default() };
        for entry in toc.entries {
            let Some(seen) = self.find(&entry.file) else {
                let of = entry.table.map(|(schema, table)| format!(", with the rows of {schema}.{table}"));
                let what = format!("is cut: `{}` is missing{}", entry.file, of.unwrap_or_default());
                return Err(self.corrupt(&what));
            };
            match (seen, entry.table) {
                (Seen::Rows(rows, ended), Some(table)) if contents.counted => {
                    if entry.copy && !ended {
                        let (schema, table) = table;
                        return Err(self.corrupt(&format!("is cut within the rows of {schema}.{table}")));
                    }
                    *contents.rows.entry(table).or_default() += rows.rows;
                }
                (Seen::List(list), None) => contents.large_objects += self.large_objects(list)?,
                _ => {}
            }
        }
        Ok(contents)
    }

    /// How many large objects a list names; each must be there.
    fn large_objects(&self, list: &[u8]) -> Result<u64, AdapterError> {
        let mut count = 0;
        for line in list.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            let line = String::from_utf8_lossy(line);
            let file = line.split_once(' ').map_or("", |(_, file)| file);
            if self.find(file).is_none() {
                return Err(self.corrupt(&format!("is cut: `{}` is missing", file.escape_debug())));
            }
            count += 1;
        }
        Ok(count)
    }
}
