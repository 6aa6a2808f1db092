//! [`ExternalState`].

/// How data that is kept outside the store stands.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExternalState {
    /// All of it is there and complete.
    Complete,
    /// It is being completed by its service; says how far that is, e.g. `64%`.
    Pending(String),
    /// A part of it failed or is gone, so that the backup is worth nothing as a whole; says which, and why.
    Lost(String),
}
