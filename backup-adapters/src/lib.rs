//! Built-in adapters and stores.
