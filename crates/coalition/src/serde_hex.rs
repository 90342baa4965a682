//! Serde for byte strings of fixed length: hexadecimal text in human-readable formats, raw bytes in binary ones.

use std::fmt;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::ser::{SerializeTuple, Serializer};

use crate::identity::{IdError, parse_hex};

/// The text form: lower-case digits.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    hex::encode(bytes)
}

/// Parses exactly `N` bytes of hexadecimal, in either case.
///
/// # Errors
/// [`IdError`] naming the digit or the length.
pub fn parse<const N: usize>(text: &str) -> Result<[u8; N], IdError> {
    parse_hex(text)
}

/// Serializes `bytes` as hex text, or as a tuple of bytes in a binary format.
pub fn serialize<S: Serializer, const N: usize>(bytes: &[u8; N], serializer: S) -> Result<S::Ok, S::Error> {
    if serializer.is_human_readable() {
        return serializer.serialize_str(&hex::encode(bytes));
    }
    let mut tuple = serializer.serialize_tuple(N)?;
    for byte in bytes {
        tuple.serialize_element(byte)?;
    }
    tuple.end()
}

/// Deserializes what [`serialize`] wrote; text must have exactly `2 * N` digits.
pub fn deserialize<'de, D: Deserializer<'de>, const N: usize>(deserializer: D) -> Result<[u8; N], D::Error> {
    if deserializer.is_human_readable() {
        deserializer.deserialize_str(HexText::<N>)
    } else {
        deserializer.deserialize_tuple(N, RawBytes::<N>)
    }
}

struct HexText<const N: usize>;

impl<const N: usize> Visitor<'_> for HexText<N> {
    type Value = [u8; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} hexadecimal digits", 2 * N)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        parse_hex(text).map_err(E::custom)
    }
}

struct RawBytes<const N: usize>;

impl<'de, const N: usize> Visitor<'de> for RawBytes<N> {
    type Value = [u8; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{N} bytes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut bytes = [0; N];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(i, &self))?;
        }
        Ok(bytes)
    }
}

/// Serde of a type with `Display`/`FromStr` text in human-readable formats and `$shape` in binary ones.
macro_rules! text_or_binary {
    ($type:ty, $shape:ty, $to:expr, $from:expr, $text:expr, $expecting:literal) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    let text: String = $text(self);
                    serializer.serialize_str(&text)
                } else {
                    let shape: $shape = $to(self);
                    shape.serialize(serializer)
                }
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                if deserializer.is_human_readable() {
                    deserializer.deserialize_str(Text)
                } else {
                    let shape = <$shape as serde::Deserialize>::deserialize(deserializer)?;
                    Ok($from(shape))
                }
            }
        }
    };
}

pub(crate) use text_or_binary;
