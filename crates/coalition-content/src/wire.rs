//! Bodies and answers of the content calls. Source: `docs/protocol/content.md`, section 3.

use std::ops::Range;

use coalition::UniqueId;
use coalition_universe::Fault;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::tree::{Content, GROUP_BYTES, MAX_SLICE_BYTES, PIECE_BYTES, SizeError};

/// Whether content is here whole.
pub const STAT: &str = "content.stat";
/// A slice of it.
pub const SLICE: &str = "content.slice";
/// Bringing it.
pub const PUT: &str = "content.put";
/// What the caller holds.
pub const LIST: &str = "content.list";
/// Ending a hold.
pub const REMOVE: &str = "content.remove";

/// Most runs of missing pieces in an answer.
pub const MAX_RUNS: usize = 1_024;
/// Most entries of a listing's answer.
pub const MAX_ENTRIES: usize = 500;
/// Most bytes of a body without a slice, and of one with.
const MAX_ASK_BYTES: usize = 96;
const MAX_PUT_BYTES: usize = MAX_SLICE_BYTES + MAX_ASK_BYTES;
/// Most bytes of an answer but a slice.
const MAX_ANSWER_BYTES: usize = MAX_ENTRIES * 96 + 64;

/// What is wrong with a body or an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Too long for what it is.
    #[error("{found} bytes, at most {max} are taken")]
    TooLong {
        /// Its length.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// Not an encoding of what was expected, or not the one encoding.
    #[error("the bytes are malformed")]
    Malformed,
    /// A size no content has.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// A range that is not within the content, not aligned, or too long.
    #[error(
        "bytes {offset} to {offset} + {length} are no slice of {size} bytes; offsets divide by {GROUP_BYTES}, lengths are at most {PIECE_BYTES}"
    )]
    Range {
        /// First byte.
        offset: u64,
        /// How many.
        length: u32,
        /// The content's size.
        size: u64,
    },
    /// A piece the content does not have.
    #[error("the content has {pieces} pieces; there is no piece {piece}")]
    Piece {
        /// The piece, from 0.
        piece: u32,
        /// How many there are.
        pieces: u32,
    },
    /// Another method.
    #[error("a store answers no such method")]
    Method,
}

impl From<WireError> for Fault {
    fn from(error: WireError) -> Self {
        let code = if error == WireError::Method { "unknown_method" } else { "malformed" };
        Self::new(code, error.to_string())
    }
}

/// A call, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// [`STAT`].
    Stat(UniqueId),
    /// [`SLICE`]: the content and a range of its bytes.
    Slice(Content, Range<u64>),
    /// [`PUT`], *begin*.
    Begin(Content),
    /// [`PUT`], *slice*: the content, a piece of it, and its slice.
    Put(Content, u32, Vec<u8>),
    /// [`LIST`], behind this one.
    List(Option<UniqueId>),
    /// [`REMOVE`].
    Remove(UniqueId),
}

#[derive(Serialize, Deserialize)]
struct SliceBody {
    hash: UniqueId,
    size: u64,
    offset: u64,
    length: u32,
}

#[derive(Serialize, Deserialize)]
enum PutBody {
    Begin { hash: UniqueId, size: u64 },
    Slice { hash: UniqueId, size: u64, piece: u32, bytes: Vec<u8> },
}

impl Ask {
    /// The method that carries it.
    #[must_use]
    pub const fn method(&self) -> &'static str {
        match self {
            Self::Stat(_) => STAT,
            Self::Slice(..) => SLICE,
            Self::Begin(_) | Self::Put(..) => PUT,
            Self::List(_) => LIST,
            Self::Remove(_) => REMOVE,
        }
    }

    /// The body of the call.
    #[must_use]
    pub fn to_body(&self) -> Vec<u8> {
        match self {
            Self::Stat(hash) | Self::Remove(hash) => encode(hash),
            Self::Slice(content, range) => {
                let length = u32::try_from(range.end.saturating_sub(range.start)).unwrap_or(u32::MAX);
                encode(&SliceBody { hash: content.hash(), size: content.size(), offset: range.start, length })
            }
            Self::Begin(content) => encode(&PutBody::Begin { hash: content.hash(), size: content.size() }),
            Self::Put(content, piece, bytes) => {
                let (hash, size) = (content.hash(), content.size());
                encode(&PutBody::Slice { hash, size, piece: *piece, bytes: bytes.clone() })
            }
            Self::List(after) => encode(after),
        }
    }

    /// Reads a call.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn read(method: &str, body: &[u8]) -> Result<Self, WireError> {
        match method {
            STAT => Ok(Self::Stat(decode(body, MAX_ASK_BYTES)?)),
            REMOVE => Ok(Self::Remove(decode(body, MAX_ASK_BYTES)?)),
            LIST => Ok(Self::List(decode(body, MAX_ASK_BYTES)?)),
            SLICE => slice(&decode(body, MAX_ASK_BYTES)?),
            PUT => match decode(body, MAX_PUT_BYTES)? {
                PutBody::Begin { hash, size } => Ok(Self::Begin(Content::new(hash, size)?)),
                PutBody::Slice { hash, size, piece, bytes } => {
                    let content = Content::new(hash, size)?;
                    if piece >= content.pieces() {
                        return Err(WireError::Piece { piece, pieces: content.pieces() });
                    }
                    Ok(Self::Put(content, piece, bytes))
                }
            },
            _ => Err(WireError::Method),
        }
    }
}

fn slice(body: &SliceBody) -> Result<Ask, WireError> {
    let content = Content::new(body.hash, body.size)?;
    let end = body.offset.checked_add(u64::from(body.length)).filter(|end| *end <= body.size);
    let fits = body.offset.is_multiple_of(GROUP_BYTES) && (1..=PIECE_BYTES).contains(&u64::from(body.length));
    match end {
        Some(end) if fits => Ok(Ask::Slice(content, body.offset..end)),
        _ => Err(WireError::Range { offset: body.offset, length: body.length, size: body.size }),
    }
}

/// Pieces that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The first, from 0.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// The answer of [`PUT`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PutAnswer {
    /// The content is there, and the caller holds it.
    Whole,
    /// These pieces are missing, or some of them.
    Missing(Vec<Run>),
}

/// Content a caller holds, or has begun to push.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// blake3 of its bytes.
    pub hash: UniqueId,
    /// Its length in bytes.
    pub size: u64,
    /// Bytes that are there and verified; all of them for what is whole.
    pub have: u64,
    /// When the caller last pushed it, Unix milliseconds.
    pub pushed_ms: u64,
    /// When it was last pushed or read by anybody.
    pub used_ms: u64,
    /// When the caller's hold ends; 0 while it is not whole.
    pub expires_ms: u64,
}

/// The answer of [`LIST`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Bytes the caller may hold.
    pub quota_bytes: u64,
    /// Bytes it holds, unfinished uploads in full.
    pub used_bytes: u64,
    /// How long a push holds, in seconds.
    pub retain_s: u64,
    /// Ascending by hash.
    pub entries: Vec<Entry>,
    /// Whether there are more.
    pub more: bool,
}

/// The bytes of an answer.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).unwrap_or_default()
}

/// Reads an answer of [`STAT`], [`PUT`], [`LIST`] or [`REMOVE`].
///
/// # Errors
/// [`WireError`].
pub fn decode_answer<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    decode(bytes, MAX_ANSWER_BYTES)
}

/// One value, in its one encoding.
fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, WireError> {
    if bytes.len() > max {
        return Err(WireError::TooLong { found: bytes.len(), max });
    }
    let value: T = postcard::from_bytes(bytes).map_err(|_| WireError::Malformed)?;
    if encode(&value) == bytes { Ok(value) } else { Err(WireError::Malformed) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn content() -> Content {
        Content::new(UniqueId::from_bytes([0xab; 32]), 3_000_000).unwrap()
    }

    fn vectors() -> Vec<(&'static str, Ask)> {
        vec![
            ("stat", Ask::Stat(content().hash())),
            ("slice", Ask::Slice(content(), 2_097_152..3_000_000)),
            ("begin", Ask::Begin(content())),
            ("put", Ask::Put(content(), 2, vec![1, 2, 3])),
            ("list", Ask::List(None)),
            ("list-after", Ask::List(Some(content().hash()))),
            ("remove", Ask::Remove(content().hash())),
        ]
    }

    /// `name method hex` a line.
    #[test]
    fn calls_and_answers_are_these_bytes() {
        let mut lines: Vec<String> = vectors()
            .iter()
            .map(|(name, ask)| format!("{name} {} {}", ask.method(), hex::encode(ask.to_body())))
            .collect();
        let entry = Entry {
            hash: content().hash(),
            size: 3_000_000,
            have: 1 << 20,
            pushed_ms: 1_000,
            used_ms: 2_000,
            expires_ms: 0,
        };
        let listing = Listing {
            quota_bytes: 1 << 30,
            used_bytes: 3_000_000,
            retain_s: 604_800,
            entries: vec![entry],
            more: false,
        };
        let missing = PutAnswer::Missing(vec![Run { first: 0, count: 2 }, Run { first: 300, count: 1 }]);
        lines.push(format!("answer-stat - {}", hex::encode(encode(&Some(3_000_000_u64)))));
        lines.push(format!("answer-absent - {}", hex::encode(encode(&None::<u64>))));
        lines.push(format!("answer-whole - {}", hex::encode(encode(&PutAnswer::Whole))));
        lines.push(format!("answer-missing - {}", hex::encode(encode(&missing))));
        lines.push(format!("answer-list - {}", hex::encode(encode(&listing))));
        lines.push(format!("answer-remove - {}", hex::encode(encode(&true))));
        assert_eq!(lines.join("\n"), include_str!("../tests/vectors/calls.txt").trim_end());
        assert_eq!(decode_answer::<Listing>(&encode(&listing)).unwrap(), listing);
        assert_eq!(decode_answer::<PutAnswer>(&encode(&missing)).unwrap(), missing);
    }

    #[test]
    fn calls_round_trip_and_limits_are_named() {
        for (name, ask) in vectors() {
            assert_eq!(Ask::read(ask.method(), &ask.to_body()).unwrap(), ask, "{name}");
            let long = [ask.to_body(), vec![0]].concat();
            assert!(Ask::read(ask.method(), &long).is_err(), "{name}");
        }
        let body = |offset, length| encode(&SliceBody { hash: content().hash(), size: 3_000_000, offset, length });
        for (offset, length) in [(1, 1), (0, 0), (0, 1_048_577), (2_097_152, 902_849), (u64::MAX - 65_535, 65_535)] {
            let refused = Ask::read(SLICE, &body(offset, length)).unwrap_err();
            assert!(matches!(refused, WireError::Range { .. }), "{offset} {length}: {refused}");
        }
        let past = Ask::Put(content(), 3, vec![]).to_body();
        assert_eq!(Ask::read(PUT, &past), Err(WireError::Piece { piece: 3, pieces: 3 }));
        let huge = vec![0; MAX_PUT_BYTES + 1];
        assert_eq!(Ask::read(PUT, &huge), Err(WireError::TooLong { found: huge.len(), max: MAX_PUT_BYTES }));
        let empty = encode(&PutBody::Begin { hash: content().hash(), size: 0 });
        assert_eq!(Ask::read(PUT, &empty), Err(WireError::Size(SizeError(0))));
        assert_eq!(Ask::read("content.other", &[]), Err(WireError::Method));
        assert_eq!(Fault::from(WireError::Method).code, "unknown_method");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(which in 0_usize..5, body in any::<Vec<u8>>()) {
            let method = [STAT, SLICE, PUT, LIST, REMOVE][which];
            if let Ok(ask) = Ask::read(method, &body) {
                prop_assert_eq!(ask.to_body(), body);
            }
        }
    }
}
