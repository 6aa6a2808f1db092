//! The check of a dump's plain bytes in a verification.

use backup_core::{AdapterError, ArtifactMeta, CheckPurpose, ContentCheck, Evidence};

use super::base;
use super::evidence::of_contents;
use super::format::{DumpFormat, Parser, is_globals};
use super::restore::{database_of, parser_of};

/// Follows a dump to its end and counts it. While a backup is written the capture does so itself: then there is nothing to
/// check twice.
pub(super) fn content_check(
    purpose: &CheckPurpose,
    artifact: &ArtifactMeta,
) -> Option<Box<dyn ContentCheck>> {
    if matches!(purpose, CheckPurpose::Capture) {
        return None;
    }
    if super::restore::attribute(artifact, "content") == Some(base::BASE) {
        return Some(Box::new(BaseCheck(base::Base::new(()))));
    }
    match database_of(artifact) {
        Some(name) => {
            let parser = parser_of(artifact, &name);
            Some(Box::new(DumpCheck { name: Some(name), parser, head: None }))
        }
        None if super::restore::attribute(artifact, "content") == Some(super::capture::GLOBALS) => {
            let parser = Parser::new(DumpFormat::Plain, artifact.name.as_str());
            Some(Box::new(DumpCheck { name: None, parser, head: Some(Vec::new()) }))
        }
        None => Some(Box::new(PropertiesCheck { text: Vec::new() })),
    }
}

/// Every file by the manifest, and the WAL.
struct BaseCheck(base::Base<()>);

impl ContentCheck for BaseCheck {
    fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        self.0.update(bytes)
    }

    fn finish(self: Box<Self>) -> Result<Evidence, AdapterError> {
        let (facts, ()) = self.0.finish()?;
        Ok(base::evidence(&facts))
    }
}

struct DumpCheck {
    /// The database; `None` for roles.
    name: Option<String>,
    parser: Parser,
    head: Option<Vec<u8>>,
}

/// Enough for the header of a dump.
const HEAD: usize = 256;

impl ContentCheck for DumpCheck {
    fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        if let Some(head) = &mut self.head {
            head.extend(bytes.iter().take(HEAD.saturating_sub(head.len())));
        }
        self.parser.update(bytes)
    }

    fn finish(self: Box<Self>) -> Result<Evidence, AdapterError> {
        let contents = self.parser.finish()?;
        if self.head.is_some_and(|head| !is_globals(&head)) {
            return Err(AdapterError::corrupt("the dump of roles is none"));
        }
        Ok(self.name.map(|name| of_contents(&name, &contents)).unwrap_or_default())
    }
}

struct PropertiesCheck {
    text: Vec<u8>,
}

impl ContentCheck for PropertiesCheck {
    fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        self.text.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Evidence, AdapterError> {
        let text = String::from_utf8_lossy(&self.text);
        if !text.ends_with(";\n") {
            return Err(AdapterError::corrupt("the properties of databases are cut"));
        }
        super::properties::parse(&text)?;
        Ok(Evidence::default())
    }
}
