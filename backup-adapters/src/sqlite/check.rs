//! The check of a database's plain bytes as they pass.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use backup_core::{AdapterError, CheckPurpose, ContentCheck, Evidence};

use super::inspect::{VERIFY_COUNT_TIME, count_file, integrity_check};

/// The header's fields that tell the length (<https://www.sqlite.org/fileformat2.html#the_database_header>).
const HEADER_BYTES: usize = 100;
pub(super) const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// While a backup is written: magic, and page size × page count = length. In a verification also SQLite's own
/// integrity check, and the counts again.
pub(super) struct DatabaseCheck {
    name: String,
    header: Vec<u8>,
    bytes: u64,
    copy: Option<Copy>,
}

struct Copy {
    path: PathBuf,
    file: Option<File>,
}

impl Drop for Copy {
    fn drop(&mut self) {
        // The folder is private and removed anyway; this only frees its space early.
        let _harmless = std::fs::remove_file(&self.path);
    }
}

impl DatabaseCheck {
    pub(super) fn new(name: &str, purpose: &CheckPurpose) -> Self {
        let copy = match purpose {
            CheckPurpose::Verify { spool } => {
                Some(Copy { path: spool.join(format!("{name}.check.sqlite")), file: None })
            }
            _ => None,
        };
        Self { name: name.to_owned(), header: Vec::new(), bytes: 0, copy }
    }

    fn check_header(&self) -> Result<(), AdapterError> {
        let name = &self.name;
        let header = &self.header;
        let be = |at: usize, len: usize| {
            header.get(at..at + len).map(|b| b.iter().fold(0_u64, |n, &b| n << 8 | u64::from(b)))
        };
        let (Some(page_size), Some(pages), Some(_)) = (be(16, 2), be(28, 4), be(HEADER_BYTES - 1, 1)) else {
            return Err(AdapterError::corrupt(format!(
                "`{name}` ends within its header, at byte {}",
                self.bytes
            )));
        };
        // 65,536 does not fit into the field and is written as 1.
        let page_size = if page_size == 1 { 65_536 } else { page_size };
        let expected = page_size * pages;
        if expected == self.bytes {
            return Ok(());
        }
        let message = format!(
            "`{name}` has {} bytes, but its header says {pages} pages of {page_size} = {expected}",
            self.bytes
        );
        Err(AdapterError::corrupt(message))
    }
}

impl Copy {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(File::create_new(&self.path)?);
        }
        self.file.as_mut().map_or(Ok(()), |f| f.write_all(bytes))
    }
}

impl ContentCheck for DatabaseCheck {
    fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        let missing = HEADER_BYTES.saturating_sub(self.header.len()).min(bytes.len());
        if missing > 0 {
            self.header.extend(bytes.iter().take(missing));
            let seen = self.header.len().min(MAGIC.len());
            if self.header.get(..seen) != MAGIC.get(..seen) {
                let name = &self.name;
                return Err(AdapterError::corrupt(format!(
                    "`{name}` does not begin as a SQLite database does"
                )));
            }
        }
        self.bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if let Some(copy) = &mut self.copy {
            copy.write(bytes).map_err(|e| {
                AdapterError::io(format!("cannot write `{}` to check it", copy.path.display()), e)
            })?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Evidence, AdapterError> {
        self.check_header()?;
        let Some(copy) = &self.copy else { return Ok(Evidence::default()) };
        let unchecked = integrity_check(&copy.path, &self.name, &|| false)?;
        let mut evidence = count_file(&copy.path, self.name.as_ref(), VERIFY_COUNT_TIME, &|| false)?;
        if let Some(why) = unchecked {
            evidence.notes.insert("integrity_check".into(), format!("not possible: {why}"));
        }
        Ok(evidence)
    }
}
