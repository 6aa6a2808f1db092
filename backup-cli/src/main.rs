//! The `backup` binary.
fn main() {}
