//! File trees as PAX tar streams: the room that `files` and `env` share.
//!
//! [`walk`] visits a tree in a fixed order, [`write`] makes an archive of what it sees, [`parse`] takes an archive
//! apart as it passes (no seeking, no buffering of data), [`check`] counts with it and [`extract`], [`fill`] and
//! [`direct`] write the tree again. [`capture`] and [`restore`] connect these blocking parts with the engine, as one
//! [`adapter`].

pub(crate) mod adapter;
pub(crate) mod apply;
pub(crate) mod bare;
pub(crate) mod capture;
pub(crate) mod check;
pub(crate) mod count;
pub(crate) mod direct;
pub(crate) mod extract;
pub(crate) mod fill;
pub(crate) mod hand;
pub(crate) mod live;
pub(crate) mod parse;
pub(crate) mod pax;
pub(crate) mod restore;
pub(crate) mod roots;
pub(crate) mod rules;
mod same;
pub(crate) mod sparse;
pub(crate) mod stage;
pub(crate) mod units;
pub(crate) mod walk;
pub(crate) mod write;
pub(crate) mod xattrs;

/// Bytes of a tar block.
pub(crate) const BLOCK: usize = 512;

/// The most bytes that one member's extended header may have: bounds memory against hostile archives. The largest
/// value of one extended attribute on Linux is 64 KiB.
pub(crate) const MAX_EXTENDED: usize = 16 << 20;

/// The longest member name and link target.
pub(crate) const MAX_NAME: usize = 64 << 10;

/// A path for people, whatever its bytes are.
pub(crate) fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).escape_debug().to_string()
}
