//! Walks an RDB file while it streams: finds its end, counts its keys, computes its checksum. Holds no values.
//!
//! The file is a sequence of tokens of at most nine bytes (lengths, opcodes, numbers) and of bytes to skip. What is
//! still expected lies on a stack of [`Step`]s, so that the bytes may come in pieces of any size.
//!
//! A value whose type is unknown cannot be skipped: from there on only the checksum is computed, which covers every
//! byte of the file. Such a file is as good as any other; only its keys cannot be counted.

mod entries;
mod formats;
mod steps;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use backup_core::AdapterError;
use crc_fast::{CrcAlgorithm, Digest};

use self::steps::Progress;

/// What comes next.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// The nine bytes at the beginning.
    Header,
    /// What the next entry is.
    Opcode,
    /// As many bytes of no interest.
    Skip(u64),
    /// As many strings.
    Strings(u64),
    /// The two lengths of a compressed string, and its bytes.
    Compressed,
    /// As many numbers that are written like lengths.
    Lens(u64),
    /// A count, then as many times this number of strings.
    CountStrings(u64),
    /// A count, then as many times these steps.
    CountEach(&'static [Self]),
    /// As many times these steps.
    Each(u64, &'static [Self]),
    /// A number as text.
    Double,
    /// The id of a module.
    ModuleId,
    /// What a module writes, with its own opcodes.
    Module,
    /// When the next key expires: eight bytes of milliseconds.
    ExpiryMs,
    /// When the next key expires: four bytes of seconds.
    ExpirySeconds,
    /// The database of the following keys.
    Database,
    /// A string, kept if it is short.
    Text,
    /// Its bytes.
    TextBytes(u64),
    /// A string that is written as a number of 1, 2 or 4 bytes.
    TextNumber(u8),
    /// The string was the name of an auxiliary field.
    AuxName,
    /// The string was its value.
    AuxValue,
}

/// The version since which a checksum stands at the end.
const CHECKSUM_SINCE: u32 = 5;
const CHECKSUM_BYTES: usize = 8;

/// What a file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Summary {
    /// The version of the format.
    pub(super) version: u32,
    /// Valkey's own numbering of versions and types.
    pub(super) valkey: bool,
    /// Auxiliary fields, e.g. `redis-ver`, `ctime`, `aof-base`.
    pub(super) aux: BTreeMap<String, String>,
    /// The keys by database.
    pub(super) databases: BTreeMap<u64, Keys>,
    /// Libraries of functions.
    pub(super) functions: u64,
    /// Modules that have data in the file.
    pub(super) modules: BTreeSet<String>,
    /// Whether the checksum was there, and then it was right; `false` for servers that write none.
    pub(super) checksum: bool,
    /// Why and where counting ended early.
    pub(super) unknown: Option<String>,
}

impl Summary {
    /// When the server made it, in seconds since 1970 by its clock.
    pub(super) fn made_at(&self) -> Option<u64> {
        self.aux.get("ctime")?.parse().ok()
    }
}

/// Counts of keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Keys {
    /// All of them.
    pub(super) all: u64,
    /// Those that expire.
    pub(super) with_ttl: u64,
    /// Those that were expired already when the file was made. A server does not load them.
    pub(super) expired: u64,
    /// Those that do not expire, but of whose fields some do.
    pub(super) fields_expire: u64,
}

/// Walks one file.
#[derive(Debug)]
pub(super) struct Walker {
    /// What is expected, the next one last. Empty: nothing may come any more.
    steps: Vec<Step>,
    /// The beginning of a token that continues in the next piece.
    carry: Vec<u8>,
    /// How many bytes are done with.
    at: u64,
    /// The checksum of all bytes but `tail`.
    crc: Digest,
    /// The last bytes: at the end they are the checksum that the file has.
    tail: Vec<u8>,
    summary: Summary,
    database: u64,
    keys: Keys,
    expires_at: Option<u64>,
    text: Option<Vec<u8>>,
    aux_name: Option<String>,
}

impl Default for Walker {
    fn default() -> Self {
        Self::new()
    }
}

impl Walker {
    /// At the beginning of a file.
    pub(super) fn new() -> Self {
        Self {
            steps: vec![Step::Header],
            carry: Vec::new(),
            at: 0,
            crc: Digest::new(CrcAlgorithm::Crc64Redis),
            tail: Vec::new(),
            summary: Summary::default(),
            database: 0,
            keys: Keys::default(),
            expires_at: None,
            text: None,
            aux_name: None,
        }
    }

    /// What is known so far.
    pub(super) fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// `Corrupt`, with the place.
    pub(super) fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        self.add_to_checksum(bytes);
        let mut rest = bytes;
        while self.summary.unknown.is_none() {
            let Some(step) = self.steps.pop() else {
                return if rest.is_empty() { Ok(()) } else { Err(self.damaged("it should end here")) };
            };
            if self.step(step, &mut rest)? == Progress::Starved {
                break;
            }
        }
        Ok(())
    }

    /// The file ended.
    ///
    /// # Errors
    /// `Corrupt` if it ended too early, or is not what the server wrote.
    pub(super) fn finish(mut self) -> Result<Summary, AdapterError> {
        if self.summary.unknown.is_none() && !self.steps.is_empty() {
            let at = self.at + length(&self.carry);
            let message = format!("the RDB is cut off: it ends at byte {at}, before its end mark");
            return Err(AdapterError::corrupt(message));
        }
        self.leave_database();
        if self.summary.version >= CHECKSUM_SINCE {
            let Ok(stored) = <[u8; CHECKSUM_BYTES]>::try_from(self.tail.as_slice()) else {
                return Err(AdapterError::corrupt("the RDB is cut off: it has no checksum"));
            };
            let (stored, found) = (u64::from_le_bytes(stored), self.crc.finalize());
            // A server that computes none writes zero.
            self.summary.checksum = stored != 0;
            if stored != 0 && stored != found {
                let odd = self.summary.unknown.map(|u| format!(" ({u})")).unwrap_or_default();
                let message = format!(
                    "the RDB is damaged: its checksum is {found:016x}, not {stored:016x} as it says{odd}"
                );
                return Err(AdapterError::corrupt(message));
            }
        }
        Ok(self.summary)
    }

    fn add_to_checksum(&mut self, bytes: &[u8]) {
        if let Some((body, tail)) = bytes.split_last_chunk::<CHECKSUM_BYTES>() {
            self.crc.update(&self.tail);
            self.crc.update(body);
            self.tail.clear();
            self.tail.extend_from_slice(tail);
        } else {
            self.tail.extend_from_slice(bytes);
            let excess = self.tail.len().saturating_sub(CHECKSUM_BYTES);
            self.crc.update(self.tail.get(..excess).unwrap_or_default());
            self.tail.drain(..excess);
        }
    }

    fn damaged(&self, what: &str) -> AdapterError {
        AdapterError::corrupt(format!("the RDB is damaged at byte {}: {what}", self.at))
    }

    /// Counting ends here: what follows cannot be told apart.
    fn give_up(&mut self, what: &str) {
        // The opcode itself was taken already.
        self.summary.unknown = Some(format!("{what} at byte {}", self.at.saturating_sub(1)));
        self.steps.clear();
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
