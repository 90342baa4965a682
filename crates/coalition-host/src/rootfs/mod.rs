//! From an image file to a root file system on disk: what an archive may contain (pure), and putting it there safely.

mod archive;
pub mod oci;
mod policy;
mod unpack;
mod usage;

pub use archive::{OciImage, find_oci};
pub use policy::{Budget, DIRECTORY_BYTES, ENTRY_COST, EntryKind, Header, Planned, Whiteout, plan, whiteout};
pub use unpack::{ImageFile, Owner, Unpacked, open_verified, unpack};
pub use usage::{disk_bytes, remove_tree};
