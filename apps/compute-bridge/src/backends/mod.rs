//! The backends of this version: one, machines of the operator's own.

pub mod baremetal;
mod runner;

pub use baremetal::{BareMetalBackend, BareMetalSetup};
