//! The one encoding of commands and entry bodies: a version byte, then postcard.
//!
//! Bytes are bounded before they are parsed and must be exactly what the encoder writes for the value they decode to, so
//! a value has one encoding and a signature or a digest over it means one thing.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// First byte of every encoded command and entry body.
pub const VERSION: u8 = 1;

/// Why bytes were refused.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Longer than the limit.
    #[error("{given} bytes exceed the limit of {limit}")]
    TooLong {
        /// Length found.
        given: usize,
        /// Length allowed.
        limit: usize,
    },
    /// No bytes, or a version this build does not know.
    #[error("unknown version {given:?}; this build knows version {VERSION}")]
    Version {
        /// First byte found, if any.
        given: Option<u8>,
    },
    /// The payload does not parse.
    #[error("the bytes after the version do not parse")]
    Damaged(#[source] postcard::Error),
    /// The payload parses but is not what the encoder produces.
    #[error("the bytes are not in canonical form; encode the value again")]
    NotCanonical,
}

/// Encodes `value` behind the version byte.
///
/// # Panics
/// Never for plain data; a type whose `Serialize` fails or hides its length has no encoding.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    append(vec![VERSION], value)
}

/// Appends the postcard form of `value` to `out`, without a version byte.
///
/// # Panics
/// As [`encode`].
#[must_use]
pub fn append<T: Serialize>(out: Vec<u8>, value: &T) -> Vec<u8> {
    postcard::to_extend(value, out).expect("plain data with known lengths always serialises into a Vec")
}

/// Decodes what [`encode`] wrote, at most `limit` bytes of it.
///
/// # Errors
/// [`DecodeError`] when too long, of another version, damaged, or not in canonical form.
pub fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, DecodeError> {
    if bytes.len() > limit {
        return Err(DecodeError::TooLong { given: bytes.len(), limit });
    }
    let Some((&VERSION, payload)) = bytes.split_first() else {
        return Err(DecodeError::Version { given: bytes.first().copied() });
    };
    let value: T = postcard::from_bytes(payload).map_err(DecodeError::Damaged)?;
    if encode(&value) != bytes {
        return Err(DecodeError::NotCanonical);
    }
    Ok(value)
}

/// An Ed25519 signature inside an encoded value (serde has no impl for 64-byte arrays). Hex in two halves as text, 64 raw
/// bytes in binary.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SignatureBytes(Halves);

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Halves(#[serde(with = "hex_bytes")] [u8; 32], #[serde(with = "hex_bytes")] [u8; 32]);

impl SignatureBytes {
    /// Wraps the 64 bytes of a signature.
    #[must_use]
    pub fn new(bytes: &[u8; 64]) -> Self {
        let mut halves = Halves([0; 32], [0; 32]);
        halves.0.copy_from_slice(&bytes[..32]);
        halves.1.copy_from_slice(&bytes[32..]);
        Self(halves)
    }

    /// The 64 bytes of the signature.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 64] {
        let mut out = [0; 64];
        out[..32].copy_from_slice(&self.0.0);
        out[32..].copy_from_slice(&self.0.1);
        out
    }
}

impl std::fmt::Debug for SignatureBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SignatureBytes({}…)", hex::encode(&self.0.0[..4]))
    }
}

/// Serde of byte arrays, for `#[serde(with = "…")]`: hex text in human-readable formats, raw bytes in binary ones.
pub mod hex_bytes {
    use serde::{Deserializer, Serializer};

    use crate::serde_hex;

    /// Serializes `bytes`.
    ///
    /// # Errors
    /// As the serializer.
    pub fn serialize<S: Serializer, const N: usize>(bytes: &[u8; N], serializer: S) -> Result<S::Ok, S::Error> {
        serde_hex::serialize(bytes, serializer)
    }

    /// Deserializes what [`serialize`] wrote; text must have exactly `2 * N` digits.
    ///
    /// # Errors
    /// As the deserializer, and for text of another length or with other characters.
    pub fn deserialize<'de, D: Deserializer<'de>, const N: usize>(deserializer: D) -> Result<[u8; N], D::Error> {
        serde_hex::deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
    struct Sample {
        number: u32,
        signature: SignatureBytes,
    }

    fn sample() -> Sample {
        Sample { number: 300, signature: SignatureBytes::new(&std::array::from_fn(|i| u8::try_from(i).unwrap())) }
    }

    #[test]
    fn a_value_has_one_encoding() {
        let bytes = encode(&sample());
        let mut expected = vec![VERSION, 0xac, 0x02];
        expected.extend(0..64);
        assert_eq!(bytes, expected);
        assert_eq!(decode::<Sample>(&bytes, bytes.len()).unwrap(), sample());
        assert_eq!(sample().signature.to_bytes(), std::array::from_fn(|i| u8::try_from(i).unwrap()));
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        let bytes = encode(&sample());
        let refused = |bytes: &[u8], limit| decode::<Sample>(bytes, limit).unwrap_err();
        assert!(matches!(refused(&bytes, 66), DecodeError::TooLong { given: 67, limit: 66 }));
        assert!(matches!(refused(&[], 100), DecodeError::Version { given: None }));
        assert!(matches!(refused(&[2, 1], 100), DecodeError::Version { given: Some(2) }));
        assert!(matches!(refused(&bytes[..66], 100), DecodeError::Damaged(_)));
        let trailing = [bytes.as_slice(), &[0]].concat();
        assert!(matches!(refused(&trailing, 100), DecodeError::NotCanonical));
        // 300 as a varint of three bytes instead of two.
        let padded = [&[VERSION, 0xac, 0x82, 0x00], &bytes[3..]].concat();
        assert!(matches!(refused(&padded, 100), DecodeError::NotCanonical | DecodeError::Damaged(_)));
    }

    #[test]
    fn text_formats_show_hex() {
        let text = serde_json::to_string(&sample()).unwrap();
        assert!(text.contains("000102030405"), "{text}");
        assert_eq!(serde_json::from_str::<Sample>(&text).unwrap(), sample());
    }
}
