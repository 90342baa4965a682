//! The backends of this version: machines of the operator's own, and AWS EC2.
//!
//! A cloud only obtains a host; on the host it is the same runner over SSH as everywhere.

pub mod baremetal;
pub(crate) mod build;
pub mod cloud_init;
pub mod ec2;
pub mod machine_keys;
mod runner;

pub use baremetal::{BareMetalBackend, BareMetalSetup};
pub use ec2::{Ec2Backend, Ec2Setup};
