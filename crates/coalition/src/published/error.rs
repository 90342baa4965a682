//! What can be wrong with a published config.

use thiserror::Error;

use super::{MAX_BINARY_BYTES, MAX_TOML_BYTES};
use crate::bytes::Truncated;
use crate::committee::CommitteeError;
use crate::identity::{SCHEMA_VERSION_U8, UniqueId};

/// Why a published config is refused, or does not hold what was asked of it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PublishedError {
    /// A name that is empty, longer than 255 bytes, or has control characters.
    #[error("{what} is '{found}': a name has 1 to 255 bytes and no control characters")]
    Name {
        /// Whose name.
        what: String,
        /// The name, cut.
        found: String,
    },
    /// A list or byte string over its limit.
    #[error("{what} has {found} {unit}, at most {max} are allowed")]
    TooMany {
        /// Which.
        what: String,
        /// What is counted.
        unit: &'static str,
        /// How many.
        found: usize,
        /// How many are allowed.
        max: usize,
    },
    /// An id listed twice.
    #[error("{what} lists {id} twice")]
    Duplicate {
        /// Which list.
        what: String,
        /// The id.
        id: UniqueId,
    },
    /// A reputation floor over one million parts per million.
    #[error("an access rule of {what} demands a reputation of {found} parts per million, which nobody can have")]
    Floor {
        /// Whose rule.
        what: String,
        /// The floor.
        found: u32,
    },
    /// Another version of the identity rules.
    #[error("this config follows version {0} of the identity rules, this program knows version {SCHEMA_VERSION_U8}")]
    SchemaVersion(u8),
    /// Another root seed.
    #[error("the config's root seed is {found}, every coalition's is {expected}")]
    Seed {
        /// The seed found.
        found: UniqueId,
        /// The one seed there is.
        expected: UniqueId,
    },
    /// A published id that its preimage does not derive.
    #[error(
        "{what} is published as {published}, but derives {computed}: its name, content or access rules, or what it \
         belongs to, were changed after publication; restore them, or publish the new id"
    )]
    StableId {
        /// Whose id.
        what: String,
        /// The id in the config.
        published: UniqueId,
        /// The id recomputed.
        computed: UniqueId,
    },
    /// A pinned content hash that its preimage does not derive.
    #[error(
        "{what} is pinned to content {published}, but derives {computed}: its content or access rules were changed \
         after publication; restore them, or publish the new hash"
    )]
    ContentHash {
        /// Whose hash.
        what: String,
        /// The hash in the config.
        published: UniqueId,
        /// The hash recomputed.
        computed: UniqueId,
    },
    /// The config as a whole is not the one that was meant.
    #[error("the config's fingerprint is {computed}, expected {expected}: it is another coalition, or was changed")]
    Fingerprint {
        /// The fingerprint expected.
        expected: UniqueId,
        /// The fingerprint recomputed.
        computed: UniqueId,
    },
    /// A reference without an id and without content to compute one from.
    #[error("{what} has neither a stable_id nor a name with content to derive it from")]
    NoStableId {
        /// Which reference.
        what: String,
    },
    /// The coalition has no such module or organism.
    #[error("the coalition has no '{role}'")]
    NotShipped {
        /// Module or role asked for.
        role: String,
    },
    /// The coalition refers to it by id only.
    #[error("the config names '{role}' by id only: its operator publishes the content that names its committee")]
    NotPublished {
        /// Module or role asked for.
        role: String,
    },
    /// The content is no committee's.
    #[error("the content of '{role}' names no committee")]
    Committee {
        /// Module or role asked for.
        role: String,
        /// Why not.
        #[source]
        source: CommitteeError,
    },
    /// A character that does not belong into the hexadecimal form.
    #[error("'{found}' at position {position} does not belong into a config: expected the digits 0-9 and a-f")]
    HexDigit {
        /// Zero-based position.
        position: usize,
        /// The character.
        found: char,
    },
    /// An odd number of digits.
    #[error("the config has {0} digits, an odd number: a digit is missing")]
    HexOdd(usize),
    /// Larger than any config.
    #[error("the input has {found} bytes, a config has at most {max}")]
    TooLarge {
        /// Bytes found.
        found: usize,
        /// The limit: [`MAX_BINARY_BYTES`] or [`MAX_TOML_BYTES`].
        max: usize,
    },
    /// Not a config.
    #[error("this is no coalition config: one begins with the digits 434f414c")]
    Magic,
    /// A version of the binary form this program does not know.
    #[error("the config has version {0} of the binary form, this program reads version 1")]
    Version(u8),
    /// The header's length and the actual one differ.
    #[error("the config is cut or extended: its header announces {announced} bytes, it has {found}")]
    Length {
        /// Bytes announced, all told.
        announced: usize,
        /// Bytes found.
        found: usize,
    },
    /// The checksum is wrong.
    #[error("the config was altered: its checksum is {found}, its bytes give {computed}")]
    Checksum {
        /// Checksum at the end of the input.
        found: UniqueId,
        /// Checksum of the input.
        computed: UniqueId,
    },
    /// The checksum is right, yet a field is malformed.
    #[error("a field of the config is malformed")]
    Field(#[from] Truncated),
    /// Bytes after the last field.
    #[error("{0} bytes of the config belong to nothing")]
    Trailing(usize),
    /// The text is no TOML, or has wrong keys or values.
    #[error("the config is not valid in its TOML form")]
    Toml(#[from] toml::de::Error),
    /// Keys that exclude or need each other.
    #[error("{what}: {problem}")]
    Keys {
        /// Table at fault.
        what: String,
        /// What is wrong with its keys.
        problem: &'static str,
    },
}

impl PublishedError {
    pub(super) const fn binary_too_large(found: usize) -> Self {
        Self::TooLarge { found, max: MAX_BINARY_BYTES }
    }

    pub(super) const fn toml_too_large(found: usize) -> Self {
        Self::TooLarge { found, max: MAX_TOML_BYTES }
    }
}
