//! The content check of an archive: its structure, its names, its end, and what it holds.

use backup_core::{AdapterError, ContentCheck, Evidence};

use super::count::Counts;
use super::parse::{Parser, Sink};
use super::pax::{Kind, Member};

/// Checks and counts an archive as it passes.
#[derive(Debug)]
pub(crate) struct TarCheck {
    parser: Parser,
    tally: Tally,
}

impl TarCheck {
    pub(crate) fn new() -> Self {
        Self { parser: Parser::new(), tally: Tally::default() }
    }
}

impl ContentCheck for TarCheck {
    fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        self.parser.feed(bytes, &mut self.tally)
    }

    fn finish(self: Box<Self>) -> Result<Evidence, AdapterError> {
        self.parser.finish()?;
        Ok(self.tally.counts.evidence())
    }
}

/// Counts members. A member that repeats the name of the one before replaces it: the file changed while it was read.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) counts: Counts,
    last: Vec<u8>,
    last_size: Option<u64>,
}

impl Sink for Tally {
    fn member(&mut self, member: &Member) -> Result<(), AdapterError> {
        let counts = &mut self.counts;
        if let Some(size) = self.last_size.take()
            && self.last == member.path
        {
            counts.files -= 1;
            counts.bytes -= size;
        }
        match member.kind {
            Kind::File => {
                counts.files += 1;
                counts.bytes = counts.bytes.saturating_add(member.size);
                self.last_size = Some(member.size);
                self.last.clone_from(&member.path);
            }
            Kind::HardLink => counts.files += 1,
            Kind::Symlink => counts.symlinks += 1,
            Kind::Dir => counts.directories += u64::from(!member.path.is_empty()),
            Kind::Fifo | Kind::Char | Kind::Block => counts.special += 1,
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
