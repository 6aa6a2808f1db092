//! The directory and metadata.json protocol.
