//! Identity: one id type for everything, and the one way to hash several things into it.
//!
//! The id type is [`mosaik::UniqueId`], re-exported, so a coalition's fingerprints are exactly the values the substrate's
//! streams, groups and tickets publish. Every preimage with more than one part goes through [`hash_many`], which prefixes
//! each part with its length; its first part is [`SCHEMA_VERSION_U8`], its second a domain tag that names what is hashed.
//! `docs/protocol/identity.md` gives every preimage byte by byte.

use thiserror::Error;

pub use mosaik::{UniqueId, unique_id};

/// Version of every identity preimage of this crate, folded as its first part.
///
/// A change invalidates every fingerprint ever published.
pub const SCHEMA_VERSION_U8: u8 = 1;

/// Domain-separation seed folded into every coalition's root: blake3 of `coalition.root.v1`.
pub const COALITION_ROOT_SEED: UniqueId = mosaik::unique_id!("coalition.root.v1");

/// The network every coalition, lattice and organism lives on: blake3 of `mosaik.universe`.
pub const UNIVERSE: UniqueId = mosaik::unique_id!("mosaik.universe");

/// The all-zero id, folded (behind a presence byte) where a component is declared absent.
pub const ZERO_ID: UniqueId = UniqueId::from_bytes([0; 32]);

const TAG_STABLE_ID: &[u8] = b"coalition/stable-id";

/// A string was not the 64 hexadecimal digits of an id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdError {
    /// Wrong number of digits.
    #[error("an id is {expected} hexadecimal digits, this has {found} characters")]
    Length {
        /// Digits an id of this kind has.
        expected: usize,
        /// Characters found.
        found: usize,
    },
    /// A character that is no hexadecimal digit.
    #[error("'{found}' at position {position} is no hexadecimal digit")]
    Digit {
        /// Zero-based position of the character.
        position: usize,
        /// The character.
        found: char,
    },
}

/// blake3 of the parts, each preceded by its length in bytes as a little-endian `u64`.
///
/// The prefixes make the encoding of a list of parts unique, so no two different lists share a preimage.
#[must_use]
pub fn hash_many(parts: &[&[u8]]) -> UniqueId {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    UniqueId::from(hasher.finalize())
}

/// The stable id of a member known by name on one network: changes only when the member retires.
///
/// `network` is usually [`UNIVERSE`].
#[must_use]
pub fn derive_stable_id(instance_name: &str, network: UniqueId) -> UniqueId {
    hash_many(&[&[SCHEMA_VERSION_U8], TAG_STABLE_ID, instance_name.as_bytes(), network.as_bytes()])
}

/// Parses the 64 hexadecimal digits of an id, strictly.
///
/// `UniqueId::from(&str)` hashes whatever is not 64 digits, so a mistyped id becomes a different valid one; text from
/// outside comes through here instead.
///
/// # Errors
/// [`IdError`] when `text` is anything else.
pub fn parse_id(text: &str) -> Result<UniqueId, IdError> {
    parse_hex(text).map(UniqueId::from_bytes)
}

/// Parses exactly `N` bytes of hexadecimal, in either case.
pub(crate) fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], IdError> {
    if let Some((position, found)) = text.chars().enumerate().find(|(_, c)| !c.is_ascii_hexdigit()) {
        return Err(IdError::Digit { position, found });
    }
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| IdError::Length { expected: 2 * N, found: text.len() })?;
    Ok(bytes)
}

/// The part an optional id folds as: a presence byte, then the id or [`ZERO_ID`].
///
/// The byte keeps "absent" apart from an id that happens to be all zeros.
pub(crate) fn optional_part(id: Option<UniqueId>) -> [u8; 33] {
    let mut part = [0; 33];
    part[0] = u8::from(id.is_some());
    part[1..].copy_from_slice(id.unwrap_or(ZERO_ID).as_bytes());
    part
}

/// Collects the parts of one preimage: the schema version and the domain tag first, lists behind their length.
pub(crate) struct Preimage(Vec<Vec<u8>>);

impl Preimage {
    pub(crate) fn new(tag: &[u8]) -> Self {
        Self::with_version(SCHEMA_VERSION_U8, tag)
    }

    pub(crate) fn with_version(version: u8, tag: &[u8]) -> Self {
        Self(vec![vec![version], tag.to_vec()])
    }

    #[must_use]
    pub(crate) fn part(mut self, bytes: &[u8]) -> Self {
        self.0.push(bytes.to_vec());
        self
    }

    #[must_use]
    pub(crate) fn id(self, id: UniqueId) -> Self {
        self.part(id.as_bytes())
    }

    #[must_use]
    pub(crate) fn optional(self, id: Option<UniqueId>) -> Self {
        self.part(&optional_part(id))
    }

    /// A list: its length as a little-endian `u64`, then each id as a part of its own.
    #[must_use]
    pub(crate) fn list(mut self, ids: impl ExactSizeIterator<Item = UniqueId>) -> Self {
        self.0.push((ids.len() as u64).to_le_bytes().to_vec());
        self.0.extend(ids.map(|id| id.as_bytes().to_vec()));
        self
    }

    pub(crate) fn hash(&self) -> UniqueId {
        let parts: Vec<&[u8]> = self.0.iter().map(Vec::as_slice).collect();
        hash_many(&parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_prefixes_keep_parts_apart() {
        assert_ne!(hash_many(&[b"ab", b"c"]), hash_many(&[b"a", b"bc"]));
        assert_ne!(hash_many(&[b"abc"]), hash_many(&[b"abc", b""]));
        assert_ne!(hash_many(&[]), hash_many(&[b""]));
    }

    #[test]
    fn hash_many_is_blake3_of_prefixed_parts() {
        let mut preimage = 2u64.to_le_bytes().to_vec();
        preimage.extend(b"hi");
        preimage.extend(0u64.to_le_bytes());
        assert_eq!(hash_many(&[b"hi", b""]), UniqueId::hash(&preimage));
    }

    #[test]
    fn absence_is_not_the_zero_id() {
        assert_ne!(optional_part(None), optional_part(Some(ZERO_ID)));
    }

    #[test]
    fn ids_parse_strictly() {
        let id = UniqueId::hash(b"x");
        assert_eq!(parse_id(&id.to_string()), Ok(id));
        assert_eq!(parse_id("abcd"), Err(IdError::Length { expected: 64, found: 4 }));
        assert_eq!(parse_id("not an id"), Err(IdError::Digit { position: 0, found: 'n' }));
        assert!(parse_id(&"é".repeat(32)).is_err());
    }
}
