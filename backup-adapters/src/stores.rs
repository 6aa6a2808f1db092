//! The built-in stores that need more than a local disk.

mod object;

pub use object::ObjectStore;
pub(crate) use object::{complete, complete_azure, complete_google};
