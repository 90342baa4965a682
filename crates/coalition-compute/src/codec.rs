//! The one encoding of commands and entry bodies: a version byte, then postcard.
//!
//! Bytes are bounded before they are parsed and must be exactly what the encoder writes for the value they decode to, so
//! a value has one encoding and a signature or a digest over it means one thing.

use serde::{Serialize, de::DeserializeOwned};

/// First byte of every encoded command and entry body.
pub const VERSION: u8 = 1;
/// Largest encoded command, in bytes.
pub const MAX_COMMAND_BYTES: usize = 12 * 1024;
/// Largest encoded entry body, in bytes.
pub const MAX_BODY_BYTES: usize = 16 * 1024;

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
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    append(vec![VERSION], value)
}

/// Appends the postcard form of `value` to `out`, without a version byte.
pub(crate) fn append<T: Serialize>(out: Vec<u8>, value: &T) -> Vec<u8> {
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

/// Serde for 16- and 32-byte arrays: hex text in human-readable formats, raw bytes in binary ones.
pub(crate) mod hex_bytes {
    use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error};
    use serde::ser::{Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer, const N: usize>(bytes: &[u8; N], serializer: S) -> Result<S::Ok, S::Error>
    where
        [u8; N]: Serialize,
    {
        if serializer.is_human_readable() {
            serializer.serialize_str(&hex::encode(bytes))
        } else {
            bytes.serialize(serializer)
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(deserializer: D) -> Result<[u8; N], D::Error>
    where
        [u8; N]: DeserializeOwned,
    {
        if !deserializer.is_human_readable() {
            return <[u8; N]>::deserialize(deserializer);
        }
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; N];
        hex::decode_to_slice(&text, &mut bytes)
            .map_err(|_| D::Error::custom(format!("expected {} hexadecimal digits", 2 * N)))?;
        Ok(bytes)
    }
}
