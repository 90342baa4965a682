//! The backends: machines of the operator's own, and clouds.
//!
//! A cloud only obtains a host; on the host it is the same runner over SSH as everywhere.

pub mod baremetal;
pub(crate) mod build;
mod build_clouds;
pub mod cloud;
pub mod cloud_init;
pub mod machine_keys;
mod runner;

pub use baremetal::{BareMetalBackend, BareMetalSetup, HostSetup};
pub use cloud::{CloudBackend, CloudSetup};
