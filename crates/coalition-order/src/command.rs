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

#[cfg(test)]
mod tests {
    use super::*;

    /// Members compare ids with each other, so they never change.
    #[test]
    fn golden() {
        assert_eq!(
            command_id(b"hello").to_string(),
            "ed981b0e4e10e1b2cedcd48b457bebde8342b60361631b68b88781ab66f27a17"
        );
        assert_ne!(command_id(b""), command_id(b"\0"));
    }
}
