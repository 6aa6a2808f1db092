//! The content check of an export: every page that `export.json` names is there, and every line is an object.

use std::collections::BTreeMap;

use backup_core::{AdapterError, CheckPurpose, ContentCheck, Evidence};

use super::pages::Head;
use super::{Definitions, MANIFEST, MAX_PAGE, Manifest, SCHEMA};
use crate::tree::parse::{Parser, Sink};
use crate::tree::pax::{Kind, Member};
use crate::tree::show;

/// The longest description that is kept, in bytes.
const MAX_JSON: u64 = 256 << 20;

/// Checks one archive as it passes.
pub(in crate::weaviate) struct ExportCheck {
    parser: Parser,
    inside: Inside,
}

impl ExportCheck {
    pub(in crate::weaviate) fn new(purpose: &CheckPurpose) -> Self {
        // While it is made, each object was looked at already.
        let inside = Inside { walk: !matches!(purpose, CheckPurpose::Capture), ..Inside::default() };
        Self { parser: Parser::new(), inside }
    }
}

impl ContentCheck for ExportCheck {
    fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        self.parser.feed(bytes, &mut self.inside)
    }

    fn finish(self: Box<Self>) -> Result<Evidence, AdapterError> {
        self.parser.finish()?;
        self.inside.judge()
    }
}

/// What was seen of a part.
#[derive(Debug, Default)]
struct Seen {
    objects: u64,
    pages: u64,
    last: String,
}

#[derive(Default)]
struct Inside {
    walk: bool,
    path: String,
    current: Current,
    manifest: Option<(String, Vec<u8>)>,
    schema: Option<Vec<u8>>,
    /// By folder.
    parts: BTreeMap<String, Seen>,
}

#[derive(Default)]
enum Current {
    #[default]
    Nothing,
    Manifest(String, Vec<u8>),
    Schema(Vec<u8>),
    /// A page of this part, and its last line as far as it came.
    Page {
        folder: String,
        seen: Seen,
        line: Vec<u8>,
    },
}

fn broken(path: &str, what: impl std::fmt::Display) -> AdapterError {
    AdapterError::corrupt(format!("`{path}` of the export {what}"))
}

impl Sink for Inside {
    fn member(&mut self, member: &Member) -> Result<(), AdapterError> {
        self.path = show(&member.path);
        self.current = Current::Nothing;
        match member.kind {
            Kind::Dir => return Ok(()),
            Kind::File => {}
            _ => return Err(broken(&self.path, "is neither a file nor a folder")),
        }
        let parts: Vec<&str> = self.path.split('/').collect();
        let description = matches!(parts.as_slice(), [_, MANIFEST | SCHEMA]);
        if description && member.size > MAX_JSON {
            return Err(broken(&self.path, "is too large"));
        }
        self.current = match parts.as_slice() {
            [id, MANIFEST] => Current::Manifest((*id).to_owned(), Vec::new()),
            [_, SCHEMA] => Current::Schema(Vec::new()),
            [_, folder @ .., page] if !folder.is_empty() => {
                let folder = folder.join("/");
                let mut seen = self.parts.remove(&folder).unwrap_or_default();
                seen.pages += 1;
                if *page != super::page_name(seen.pages) {
                    return Err(broken(&self.path, format_args!("is not page {}", seen.pages)));
                }
                Current::Page { folder, seen, line: Vec::new() }
            }
            _ => Current::Nothing,
        };
        Ok(())
    }

    fn data(&mut self, _: u64, bytes: &[u8]) -> Result<(), AdapterError> {
        match &mut self.current {
            Current::Nothing => {}
            Current::Manifest(_, all) | Current::Schema(all) => all.extend_from_slice(bytes),
            Current::Page { folder, seen, line } => {
                for piece in bytes.split_inclusive(|b| *b == b'\n') {
                    let whole = piece.ends_with(b"\n");
                    if self.walk && !(whole && line.is_empty()) {
                        line.extend_from_slice(piece);
                        if line.len() > MAX_PAGE {
                            return Err(broken(&self.path, "has a line without end"));
                        }
                    }
                    if !self.walk {
                        // Whether something stands behind the last line.
                        line.clear();
                        line.extend_from_slice(if whole { b"" } else { b"x" });
                    }
                    if whole {
                        if self.walk {
                            let object = if line.is_empty() { piece } else { line.as_slice() };
                            walk(object, folder, seen).map_err(|what| broken(&self.path, what))?;
                            line.clear();
                        }
                        seen.objects += 1;
                    }
                }
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), AdapterError> {
        match std::mem::take(&mut self.current) {
            Current::Nothing => {}
            Current::Manifest(id, all) => {
                if self.manifest.replace((id, all)).is_some() {
                    return Err(AdapterError::corrupt("the archive holds more than one export"));
                }
            }
            Current::Schema(all) => self.schema = Some(all),
            Current::Page { folder, seen, line } => {
                if !line.is_empty() {
                    return Err(broken(&self.path, "ends within a line"));
                }
                self.parts.insert(folder, seen);
            }
        }
        Ok(())
    }
}

/// One line: an object of the part, behind the one before.
fn walk(line: &[u8], folder: &str, seen: &mut Seen) -> Result<(), String> {
    let head: Head<'_> =
        serde_json::from_slice(line).map_err(|e| format!("holds a line that is no object: {e}"))?;
    let class = folder.split('/').next().unwrap_or_default();
    if head.class != class {
        return Err(format!("holds an object of `{}`", head.class));
    }
    if head.id.as_ref() <= seen.last.as_str() {
        return Err(format!("holds object `{}` out of order", head.id));
    }
    seen.last.clear();
    seen.last.push_str(&head.id);
    Ok(())
}

impl Inside {
    fn judge(self) -> Result<Evidence, AdapterError> {
        let Some((folder, manifest)) = &self.manifest else {
            return Err(AdapterError::corrupt(format!("the archive has no `{MANIFEST}`")));
        };
        let manifest = Manifest::parse(manifest)?;
        if &manifest.id != folder {
            let what = format!("export `{}` lies in folder `{folder}`", manifest.id);
            return Err(AdapterError::corrupt(what));
        }
        let schema = self.schema.as_deref().unwrap_or_default();
        let schema: Definitions =
            serde_json::from_slice(schema).map_err(|e| broken(SCHEMA, "cannot be read").with_source(e))?;
        let defined = |class: &String| schema.classes.iter().any(|c| c["class"] == class.as_str());
        if let Some(class) = manifest.collections.iter().find(|c| !defined(c)) {
            return Err(broken(SCHEMA, format_args!("lacks collection `{class}`")));
        }
        for part in &manifest.parts {
            let none = Seen::default();
            let seen = self.parts.get(&part.folder()).unwrap_or(&none);
            if (seen.objects, seen.pages) != (part.objects, part.pages) {
                return Err(AdapterError::corrupt(format!(
                    "{} has {} objects in {} pages, and the export holds {} in {}",
                    part.shown(),
                    part.objects,
                    part.pages,
                    seen.objects,
                    seen.pages
                )));
            }
        }
        Ok(manifest.evidence())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weaviate::files::{end_of_archive, member_of};

    const SCHEMA_TEXT: &str = r#"{"classes":[{"class":"Doc"},{"class":"Ten"}],"aliases":[]}"#;

    fn manifest(doc: u64) -> String {
        format!(
            r#"{{"format":1,"id":"x","collections":["Doc","Ten"],"parts":[{{"class":"Doc","objects":{doc},"pages":2}},{{"class":"Ten","tenant":"a","objects":1,"pages":1}}]}}"#
        )
    }

    fn line(class: &str, id: u32) -> String {
        format!("{{\"class\":\"{class}\",\"id\":\"{id:08}\",\"vector\":[0.5,1]}}\n")
    }

    fn archive(files: &[(&str, String)]) -> Vec<u8> {
        let mut all: Vec<u8> =
            files.iter().flat_map(|(path, text)| member_of(path, text.as_bytes()).unwrap()).collect();
        end_of_archive(&mut all);
        all
    }

    fn whole() -> Vec<(&'static str, String)> {
        vec![
            ("x/schema.json", SCHEMA_TEXT.to_owned()),
            ("x/Doc/000001.jsonl", line("Doc", 1) + &line("Doc", 2)),
            ("x/Doc/000002.jsonl", line("Doc", 3)),
            ("x/Ten/a/000001.jsonl", line("Ten", 1)),
            // Of a collection that was deleted meanwhile.
            ("x/Gone/000001.jsonl", line("Gone", 1)),
            ("x/export.json", manifest(3)),
        ]
    }

    fn check(bytes: &[u8], step: usize) -> Result<Evidence, AdapterError> {
        let purpose = CheckPurpose::Verify { spool: "/".into() };
        let mut check = Box::new(ExportCheck::new(&purpose));
        bytes.chunks(step).try_for_each(|piece| check.update(piece))?;
        check.finish()
    }

    #[test]
    fn lines_are_walked_in_pieces_of_any_size() {
        for step in [1, 7, 600, 1 << 20] {
            let found = check(&archive(&whole()), step).unwrap();
            let counts = [("objects.Doc", 3), ("objects.Ten", 1), ("objects.Ten.a", 1), ("collections", 2)];
            for (name, n) in counts {
                assert_eq!(found.counts[name], n, "{name} by {step}");
            }
            assert!(!found.counts.contains_key("objects.Gone"));
        }
        let mut quick = Box::new(ExportCheck::new(&CheckPurpose::Capture));
        quick.update(&archive(&whole())).unwrap();
        assert_eq!(quick.finish().unwrap().counts["objects.Doc"], 3);
    }

    #[test]
    fn what_is_wrong_is_named() {
        type Files = Vec<(&'static str, String)>;
        let said = |change: &dyn Fn(&mut Files)| {
            let mut files = whole();
            change(&mut files);
            backup_core::chain(&check(&archive(&files), 50).unwrap_err())
        };
        assert!(said(&|f| drop(f.pop())).contains("no `export.json`"));
        assert!(said(&|f| drop(f.remove(0))).contains("`schema.json` of the export cannot be read"));
        assert!(said(&|f| drop(f.remove(1))).contains("is not page 1"));
        assert!(said(&|f| drop(f.remove(2))).contains("the export holds 2 in 1"));
        assert!(said(&|f| f[5].1 = manifest(4)).contains("has 4 objects"));
        assert!(said(&|f| f[2].1 = line("Doc", 2)).contains("out of order"));
        assert!(said(&|f| f[2].1 = line("Ten", 3)).contains("an object of `Ten`"));
        assert!(said(&|f| f[2].1 = line("Doc", 3).replace("[0.5", "[0.5,,")).contains("no object"));
        assert!(said(&|f| f[2].1 = line("Doc", 3).trim().to_owned()).contains("ends within a line"));
        assert!(said(&|f| f[0].1 = SCHEMA_TEXT.replace("Ten", "Two")).contains("lacks collection `Ten`"));
        assert!(said(&|f| f[5].0 = "y/export.json").contains("lies in folder `y`"));
    }
}
