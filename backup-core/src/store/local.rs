//! A store in a directory.
/// A store in a directory.
#[derive(Debug)]
pub struct LocalStore;
