//! How results and events are shown.

pub(crate) mod drill;
pub(crate) mod human;
pub(crate) mod json;
pub(crate) mod report;
pub(crate) mod table;
