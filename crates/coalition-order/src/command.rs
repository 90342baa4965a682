//! Commands and their ids.

use std::fmt;

/// Identifies a command by its bytes: BLAKE3 in derive-key mode, context `coalition-order command v1`.
///
/// Two submissions of the same bytes are one command. Give commands a nonce if both are meant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommandId(pub [u8; 32]);

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The id of `command`.
#[must_use]
pub fn command_id(command: &[u8]) -> CommandId {
    CommandId(blake3::derive_key("coalition-order command v1", command))
}
