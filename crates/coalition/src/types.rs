//! Small value types every crate of the system shares: clock positions, ids of parties and requests, evidence pointers.
//!
//! All of them are plain data, print as the text they parse from, and serialize as that text in human-readable formats
//! and as their bytes in binary ones.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::identity::{IdError, UniqueId, parse_id};
pub use crate::money::{MicroUsd, MoneyError, RateQ64};
use crate::serde_hex::text_or_binary;

/// Sequence number of a tick of the coalition's Almanac; ticks order commits, they are not timestamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AlmanacTick(pub u64);

impl AlmanacTick {
    /// The tick `n` later, or `None` past the last one representable.
    #[must_use]
    pub const fn checked_add(self, n: u64) -> Option<Self> {
        match self.0.checked_add(n) {
            Some(seq) => Some(Self(seq)),
            None => None,
        }
    }

    /// Ticks from `earlier` to `self`, or `None` when `earlier` is later.
    #[must_use]
    pub const fn checked_since(self, earlier: Self) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }
}

impl fmt::Display for AlmanacTick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for AlmanacTick {
    type Err = TypeError;

    fn from_str(text: &str) -> Result<Self, TypeError> {
        parse_decimal(text).map(Self).ok_or_else(|| TypeError::Tick(text.to_owned()))
    }
}

/// A half-open range of ticks, `[from, to)`. Empty when `to <= from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlmanacRange {
    /// First tick inside.
    pub from: AlmanacTick,
    /// First tick after.
    pub to: AlmanacTick,
}

impl AlmanacRange {
    /// The range `[from, to)`.
    #[must_use]
    pub const fn new(from: AlmanacTick, to: AlmanacTick) -> Self {
        Self { from, to }
    }

    /// Whether `tick` lies inside.
    #[must_use]
    pub fn contains(&self, tick: AlmanacTick) -> bool {
        self.from <= tick && tick < self.to
    }

    /// Number of ticks inside.
    #[must_use]
    pub const fn ticks(&self) -> u64 {
        self.to.0.saturating_sub(self.from.0)
    }

    /// Whether no tick lies inside.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ticks() == 0
    }
}

impl fmt::Display for AlmanacRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.from, self.to)
    }
}

impl FromStr for AlmanacRange {
    type Err = TypeError;

    fn from_str(text: &str) -> Result<Self, TypeError> {
        let wrong = || TypeError::Range(text.to_owned());
        let (from, to) = text.split_once("..").ok_or_else(wrong)?;
        Ok(Self { from: from.parse().map_err(|_| wrong())?, to: to.parse().map_err(|_| wrong())? })
    }
}

/// Why a text is none of this module's values.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TypeError {
    /// Not an unsigned decimal number that fits 64 bits.
    #[error("'{0}' is no Almanac tick: expected a whole number")]
    Tick(String),
    /// Not `from..to`.
    #[error("'{0}' is no tick range: expected two whole numbers as in 12..40")]
    Range(String),
    /// Not an evidence pointer at all.
    #[error("'{0}' is no evidence pointer: expected ev1:<organism id>:<index>:<digest>")]
    Evidence(String),
    /// An evidence pointer with a wrong field.
    #[error("the {field} of an evidence pointer is wrong")]
    EvidenceId {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        #[source]
        source: IdError,
    },
}

/// Parses plain ASCII digits; unlike `u64::from_str` it takes no leading `+`.
fn parse_decimal(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A newtype over a byte string of fixed length: strict hexadecimal as text, the raw bytes in binary encodings.
///
/// Takes the documented name, the length, and the visibility of the bytes: `hex_newtype!(/// Doc. Name, 48, pub);`.
#[macro_export]
macro_rules! hex_newtype {
    ($(#[$doc:meta])* $name:ident, $len:expr, $($vis:tt)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($($vis)* [u8; $len]);

        impl $name {
            /// From its raw bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// Its raw bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(&$crate::serde_hex::text(&self.0))
            }
        }

        impl ::std::fmt::Debug for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = $crate::IdError;

            fn from_str(text: &str) -> Result<Self, $crate::IdError> {
                $crate::serde_hex::parse(text).map(Self)
            }
        }

        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                $crate::serde_hex::serialize(&self.0, serializer)
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::serde_hex::deserialize(deserializer).map(Self)
            }
        }
    };
}

hex_newtype!(
    /// Short id of a member: the first 20 bytes of its stable id; 40 hexadecimal digits as text.
    MemberId,
    20,
);

impl MemberId {
    /// The member id that belongs to a stable id.
    #[must_use]
    pub fn from_stable_id(stable_id: UniqueId) -> Self {
        let mut bytes = [0; 20];
        bytes.copy_from_slice(&stable_id.as_bytes()[..20]);
        Self(bytes)
    }
}

hex_newtype!(
    /// TDX measurement of the initial contents of a trust domain (SHA-384); 96 hexadecimal digits as text.
    Mrtd,
    48,
    pub
);

/// A newtype over [`UniqueId`] with strict hexadecimal text.
macro_rules! id_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub UniqueId);

        impl $name {
            /// From the raw 32 bytes of the id.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(UniqueId::from_bytes(bytes))
            }

            /// The raw 32 bytes of the id.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                parse_id(text).map(Self)
            }
        }

        impl From<$name> for UniqueId {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    };
}

id_newtype!(
    /// A compute provider: blake3 of its bridge's Ed25519 public key.
    ProviderId
);

impl ProviderId {
    /// The id of the provider whose bridge signs with this Ed25519 public key.
    #[must_use]
    pub fn from_public_key(public_key: &[u8; 32]) -> Self {
        Self(UniqueId::hash(public_key))
    }
}

id_newtype!(
    /// A compute request; the grant that answers it carries the same id.
    RequestId
);

/// Names one entry of one organism's certified log, so that anyone holding the organism's config can fetch and verify it.
///
/// As text: `ev1:<organism id>:<index>:<digest>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EvidencePointer {
    /// Id of the organism whose log holds the entry.
    pub organism: UniqueId,
    /// Position of the entry in that log, from zero.
    pub index: u64,
    /// RFC 6962 leaf hash (SHA-256) of the entry.
    pub digest: UniqueId,
}

impl fmt::Display for EvidencePointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ev1:{}:{}:{}", self.organism, self.index, self.digest)
    }
}

impl FromStr for EvidencePointer {
    type Err = TypeError;

    fn from_str(text: &str) -> Result<Self, TypeError> {
        let wrong = || TypeError::Evidence(text.chars().take(200).collect());
        let mut fields = text.strip_prefix("ev1:").ok_or_else(wrong)?.split(':');
        let (Some(organism), Some(index), Some(digest), None) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Err(wrong());
        };
        let id = |field, text| parse_id(text).map_err(|source| TypeError::EvidenceId { field, source });
        Ok(Self {
            organism: id("organism id", organism)?,
            index: parse_decimal(index).ok_or_else(wrong)?,
            digest: id("digest", digest)?,
        })
    }
}

text_or_binary!(
    EvidencePointer,
    (UniqueId, u64, UniqueId),
    |p: &EvidencePointer| (p.organism, p.index, p.digest),
    |(organism, index, digest)| EvidencePointer { organism, index, digest },
    |p: &EvidencePointer| p.to_string(),
    "an evidence pointer as text, ev1:<organism id>:<index>:<digest>"
);
