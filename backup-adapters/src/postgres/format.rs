//! The dump formats: parsers that follow a dump as it passes, prove that it is whole, and count what it holds.
//!
//! Sources: `pg_backup_archiver.c`, `pg_backup_custom.c` and `pg_backup_directory.c` of PostgreSQL 9.6 to 17;
//! `pg_dump.c` for what a plain dump looks like. YugabyteDB's `ysql_dump` writes the same with its own name.

mod copy;
mod custom;
mod directory;
mod named;
mod plain;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use backup_core::AdapterError;
use serde::{Deserialize, Serialize};

pub(super) use plain::is_globals;

/// How a dump is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DumpFormat {
    /// SQL text, for `psql`.
    Plain,
    /// The archive of `pg_dump -Fc`, for `pg_restore`.
    Custom,
    /// The directory of `pg_dump -Fd`, which several processes write and `pg_restore -j` reads, as a tar archive.
    Directory,
}

impl DumpFormat {
    /// The suffix of its files.
    pub(super) fn extension(self) -> &'static str {
        match self {
            Self::Plain => "sql",
            Self::Custom => "dump",
            Self::Directory => "tar",
        }
    }

    /// What attributes call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Custom => "custom",
            Self::Directory => "directory",
        }
    }
}

/// What a dump holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// Rows by schema and table.
    pub(super) rows: BTreeMap<(String, String), u64>,
    /// Large objects with data.
    pub(super) large_objects: u64,
    /// Whether rows could be counted: not in archives that are compressed in themselves.
    pub(super) counted: bool,
    /// Roles that its statements name; only of dumps of which nobody knows how they were made.
    pub(super) roles: BTreeSet<String>,
}

impl Contents {
    /// Rows of all tables.
    pub(super) fn total(&self) -> u64 {
        self.rows.values().sum()
    }
}

/// Follows one dump.
pub(super) enum Parser {
    Plain(Box<plain::Plain>),
    Custom(Box<custom::Custom>),
    Directory(Box<directory::Directory>),
}

impl Parser {
    /// A parser for the dump called `name` in errors.
    pub(super) fn new(format: DumpFormat, name: &str) -> Self {
        match format {
            DumpFormat::Plain => Self::Plain(Box::new(plain::Plain::new(name))),
            DumpFormat::Custom => Self::Custom(Box::new(custom::Custom::new(name))),
            DumpFormat::Directory => Self::Directory(Box::new(directory::Directory::new(name))),
        }
    }

    /// A parser that also refuses what would reach out of the database that the dump is loaded into: for dumps of which
    /// nobody knows how they were made.
    pub(super) fn confined(self) -> Self {
        match self {
            Self::Plain(plain) => Self::Plain(Box::new(plain.confined())),
            other => other,
        }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// `Corrupt` as soon as they cannot be right.
    pub(super) fn update(&mut self, bytes: &[u8]) -> Result<(), AdapterError> {
        match self {
            Self::Plain(plain) => plain.update(bytes),
            Self::Custom(custom) => custom.update(bytes),
            Self::Directory(directory) => directory.update(bytes),
        }
    }

    /// The dump ended.
    ///
    /// # Errors
    /// `Corrupt` when it is not whole.
    pub(super) fn finish(self) -> Result<Contents, AdapterError> {
        match self {
            Self::Plain(plain) => plain.finish(),
            Self::Custom(custom) => custom.finish(),
            Self::Directory(directory) => directory.finish(),
        }
    }
}
