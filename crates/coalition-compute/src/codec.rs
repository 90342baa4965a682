//! How large commands and entry bodies may be. Their encoding is the common one of [`coalition::codec`].

pub(crate) use coalition::codec::{append, decode, encode, hex_bytes};

pub use coalition::codec::DecodeError;

/// Largest encoded command, in bytes.
pub const MAX_COMMAND_BYTES: usize = 12 * 1024;
/// Largest encoded command that carries attestation evidence, in bytes.
pub const MAX_ATTEST_COMMAND_BYTES: usize = 46 * 1024;
/// Largest encoded entry body, in bytes.
pub const MAX_BODY_BYTES: usize = 16 * 1024;
/// Largest encoded body of an attestation entry, in bytes; below what an entry of the log takes.
pub const MAX_ATTESTATION_BODY_BYTES: usize = 47 * 1024;
