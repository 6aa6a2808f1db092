//! Back up, verify, restore, prune.
