//! Counts and fingerprint of an archive of dotenv files, from its bytes.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use backup_core::{AdapterError, ContentCheck, Evidence, OpContext, RestoreTarget};

use crate::tree::live::Live;
use crate::tree::parse::{Parser, Sink};
use crate::tree::pax::{Kind, Member};

/// Follows an archive.
#[derive(Debug)]
pub(super) struct Inspector {
    parser: Parser,
    files: Files,
}

impl Inspector {
    pub(super) fn new() -> Self {
        Self { parser: Parser::new(), files: Files::default() }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        self.parser.feed(bytes, &mut self.files)
    }

    /// Evidence and fingerprint: names, modes, owners and contents, not times.
    pub(super) fn finish(self) -> Result<(Evidence, String), AdapterError> {
        self.parser.finish()?;
        let mut hasher = blake3::Hasher::new();
        let mut variables = 0;
        for (name, (hash, found)) in &self.files.done {
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name).update(hash.as_bytes());
            variables += found;
        }
        let evidence = evidence(self.files.done.len() as u64, variables);
        Ok((evidence, hasher.finalize().to_hex().to_string()))
    }
}

impl ContentCheck for Inspector {
    fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        Self::update(self, bytes)
    }

    fn finish(self: Box<Self>) -> Result<Evidence, AdapterError> {
        (*self).finish().map(|(evidence, _)| evidence)
    }
}

fn evidence(files: u64, variables: u64) -> Evidence {
    Evidence::default().with_count("files", files).with_count("variables", variables)
}

#[derive(Debug, Default)]
struct Files {
    /// By name: a member that repeats one replaces it.
    done: BTreeMap<Vec<u8>, (blake3::Hash, u64)>,
    current: Option<(Vec<u8>, blake3::Hasher, Variables)>,
}

impl Sink for Files {
    fn member(&mut self, member: &Member) -> Result<(), AdapterError> {
        if matches!(member.kind, Kind::Dir) {
            return Ok(());
        }
        let mut hasher = blake3::Hasher::new();
        for number in [u64::from(member.mode), member.uid, member.gid, member.size, member.link.len() as u64]
        {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(&member.link);
        self.current = Some((member.path.clone(), hasher, Variables::default()));
        Ok(())
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), AdapterError> {
        if let Some((_, hasher, variables)) = &mut self.current {
            // With its place: a hole is not the same as no hole, but the same bytes elsewhere are another file.
            if offset == 0 {
                hasher.update(b"data");
            }
            hasher.update(bytes);
            variables.feed(bytes);
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), AdapterError> {
        if let Some((name, hasher, variables)) = self.current.take() {
            self.done.insert(name, (hasher.finalize(), variables.count));
        }
        Ok(())
    }
}

/// Counts lines of the form `KEY=` or `export KEY=`; keeps nothing of them.
#[derive(Debug, Default)]
struct Variables {
    count: u64,
    state: Line,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// Nothing but blanks so far.
    #[default]
    Start,
    /// In a name; blanks after it are allowed.
    Name,
    /// Counted, or not a variable.
    Rest,
}

impl Variables {
    fn feed(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.state = match (self.state, b) {
                (_, b'\n') => Line::Start,
                (Line::Start, b' ' | b'\t') => Line::Start,
                (Line::Start, b) if b.is_ascii_alphabetic() || b == b'_' => Line::Name,
                (Line::Name, b'=') => {
                    self.count += 1;
                    Line::Rest
                }
                (Line::Name, b) if b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b' ') => {
                    Line::Name
                }
                _ => Line::Rest,
            };
        }
    }
}

/// Counts what a target holds. Blocking.
pub(super) fn probe(cx: &OpContext, live: &Live, target: &RestoreTarget) -> Result<Evidence, AdapterError> {
    let files = match target {
        RestoreTarget::Live => {
            let excluded = crate::tree::rules::Excluded::new(&cx.excluded);
            let roots = crate::tree::roots::expand(&live.base, &live.paths, &live.rules, &excluded)?;
            roots.into_iter().map(|r| r.path).collect()
        }
        RestoreTarget::Dir(dir) => files_below(dir.clone())?,
        RestoreTarget::Scratch(scratch) => files_below(scratch.dir.clone())?,
        _ => return Err(AdapterError::unsupported("cannot count this kind of target")),
    };
    let mut variables = Variables::default();
    for file in &files {
        let bytes =
            fs::read(file).map_err(|e| AdapterError::io(format!("cannot read `{}`", file.display()), e))?;
        variables.feed(b"\n");
        variables.feed(&bytes);
    }
    Ok(evidence(files.len() as u64, variables.count))
}

fn files_below(dir: PathBuf) -> Result<Vec<PathBuf>, AdapterError> {
    let mut files = Vec::new();
    let mut todo = vec![dir];
    while let Some(dir) = todo.pop() {
        let fail = |e| AdapterError::io(format!("cannot list `{}`", dir.display()), e);
        for entry in fs::read_dir(&dir).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            if entry.file_type().map_err(fail)?.is_dir() {
                todo.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_lines_with_a_name_and_an_equals_sign() {
        let text = "# A=1\nA=1\n  export B = 2\n\nC\nD=\n=x\n1=2\nE_F=\"a=b\nG=h\"";
        for size in [1, 3, 1000] {
            let mut variables = Variables::default();
            text.as_bytes().chunks(size).for_each(|c| variables.feed(c));
            assert_eq!(variables.count, 5, "in chunks of {size}");
        }
    }
}
