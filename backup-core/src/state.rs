//! The host's state directory.
