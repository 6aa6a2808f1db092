//! How services are run on a host: in a container of the Docker engine, or as a process or systemd unit.
//!
//! Both are lazy: making one does no I/O, so that an adapter's configuration can build it.

mod container;
pub mod docker;
pub mod host;
pub(crate) mod memory;
mod secret;

pub use container::{EngineUrl, container_of};
pub use docker::DockerRuntime;
pub use host::HostRuntime;
pub use secret::ServiceSecret;
