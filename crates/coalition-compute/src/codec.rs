//! How large commands and entry bodies may be. Their encoding is the common one of [`coalition::codec`].

pub(crate) use coalition::codec::{append, decode, encode, hex_bytes};

pub use coalition::codec::DecodeError;

/// Largest encoded command, in bytes.
pub const MAX_COMMAND_BYTES: usize = 12 * 1024;
/// Largest encoded entry body, in bytes.
pub const MAX_BODY_BYTES: usize = 16 * 1024;
