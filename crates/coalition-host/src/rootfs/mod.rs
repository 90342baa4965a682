//! From an image file to a root file system on disk: what an archive may contain (pure), and putting it there safely.

mod policy;
mod unpack;
mod usage;

pub use policy::{Budget, DIRECTORY_BYTES, ENTRY_COST, EntryKind, Header, Planned, plan};
pub use unpack::{Owner, Unpacked, open_verified, unpack};
pub use usage::{disk_bytes, remove_tree};
