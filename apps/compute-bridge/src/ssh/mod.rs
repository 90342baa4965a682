//! An SSH client session to one machine: pinned host key, key login, keepalive, reconnect, every wait bounded.
//!
//! One connection carries everything; it is made when first needed and again when it has died. A host that shows another
//! key than the pinned one is never talked to, and the error names both fingerprints.

mod error;
mod files;
mod session;

pub use error::SshError;
pub use files::{Uploaded, file_blake3};
pub use session::{ExecOutput, LoginKey, SshHost, SshTarget, quote};
