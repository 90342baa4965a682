//! What a quote's report data says: who shows it, for what, under which config, and since when.
//!
//! 64 bytes: a hash over everything bound, then four short tags, one per part, so that a mismatch can be named. All 64
//! are compared; the tags decide nothing alone. Byte layout in `docs/ATTESTATION.md`.

use coalition::{UniqueId, hash_many};
use serde::{Deserialize, Serialize};

const VERSION: u8 = 1;
const TAG: &[u8] = b"coalition/attest/report-data";
const PART_TAG: &[u8] = b"coalition/attest/report-data-part";

/// Something that did not exist before a known moment, so that a quote containing it is not older.
///
/// A challenge the verifier drew, or a public value with a date, such as a clock tick's certified head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Nonce {
    /// The value.
    pub value: UniqueId,
    /// When it came into being, Unix seconds, as the *verifier* knows it.
    pub issued_s: u64,
}

/// The parts a quote's report data binds together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Binding<'a> {
    /// What the quote is for, such as `compute-bridge` or `ra-tls`; keeps quotes of one use out of another.
    pub purpose: &'a str,
    /// The network or coalition it is for.
    pub network: UniqueId,
    /// The public key of whoever shows it.
    pub key: &'a [u8],
    /// Hash of the config it runs.
    pub config: UniqueId,
    /// The nonce's value.
    pub nonce: UniqueId,
}

/// One of the bound parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BoundPart {
    /// Purpose or network.
    Context,
    /// Public key.
    Key,
    /// Config hash.
    Config,
    /// Nonce.
    Nonce,
}

impl BoundPart {
    const ALL: [Self; 4] = [Self::Context, Self::Key, Self::Config, Self::Nonce];

    /// In words, for a message.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Context => "purpose or network",
            Self::Key => "public key",
            Self::Config => "config hash",
            Self::Nonce => "nonce",
        }
    }
}

impl Binding<'_> {
    /// The report data to have quoted, and to compare with.
    #[must_use]
    pub fn report_data(&self) -> [u8; 64] {
        let (network, config, nonce) = (self.network.as_bytes(), self.config.as_bytes(), self.nonce.as_bytes());
        let whole = hash_many(&[&[VERSION], TAG, self.purpose.as_bytes(), network, self.key, config, nonce]);
        let parts = [
            hash_many(&[&[VERSION], PART_TAG, b"context", self.purpose.as_bytes(), network]),
            hash_many(&[&[VERSION], PART_TAG, b"key", self.key]),
            hash_many(&[&[VERSION], PART_TAG, b"config", config]),
            hash_many(&[&[VERSION], PART_TAG, b"nonce", nonce]),
        ];
        let mut out = [0; 64];
        out[..32].copy_from_slice(whole.as_bytes());
        for (place, part) in out[32..].chunks_exact_mut(8).zip(parts) {
            place.copy_from_slice(&part.as_bytes()[..8]);
        }
        out
    }
}

/// The parts in which two report data differ by their tags; empty when only the hash over everything differs.
#[must_use]
pub fn differing_parts(expected: &[u8; 64], found: &[u8; 64]) -> Vec<BoundPart> {
    let tags = expected[32..].chunks_exact(8).zip(found[32..].chunks_exact(8));
    BoundPart::ALL.into_iter().zip(tags).filter(|(_, (a, b))| a != b).map(|(part, _)| part).collect()
}

/// What the verifier knows the report data must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// Nothing: a bare quote, judged for what it is. Only policies that say so accept this.
    Unbound,
    /// Exactly these bytes, made elsewhere; the age is known when their nonce's time is.
    Exact {
        /// The report data.
        report_data: [u8; 64],
        /// When the nonce in it came into being, Unix seconds.
        issued_s: Option<u64>,
    },
    /// A [`Binding`]; a mismatch can then be named.
    Bound {
        /// The report data.
        report_data: [u8; 64],
        /// When its nonce came into being, Unix seconds.
        issued_s: u64,
    },
}

impl Expect {
    /// Expects the binding of these parts.
    #[must_use]
    pub fn bound(purpose: &str, network: UniqueId, key: &[u8], config: UniqueId, nonce: Nonce) -> Self {
        let report_data = Binding { purpose, network, key, config, nonce: nonce.value }.report_data();
        Self::Bound { report_data, issued_s: nonce.issued_s }
    }

    pub(crate) const fn report_data(&self) -> Option<&[u8; 64]> {
        match self {
            Self::Unbound => None,
            Self::Exact { report_data, .. } | Self::Bound { report_data, .. } => Some(report_data),
        }
    }

    pub(crate) const fn issued_s(&self) -> Option<u64> {
        match self {
            Self::Unbound => None,
            Self::Exact { issued_s, .. } => *issued_s,
            Self::Bound { issued_s, .. } => Some(*issued_s),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> UniqueId {
        UniqueId::from_bytes([n; 32])
    }

    #[test]
    fn every_part_counts_and_is_named() {
        let right = Binding { purpose: "p", network: id(1), key: b"k", config: id(2), nonce: id(3) };
        let data = right.report_data();
        let wrong = [
            (Binding { purpose: "q", ..right }, BoundPart::Context),
            (Binding { network: id(9), ..right }, BoundPart::Context),
            (Binding { key: b"l", ..right }, BoundPart::Key),
            (Binding { config: id(9), ..right }, BoundPart::Config),
            (Binding { nonce: id(9), ..right }, BoundPart::Nonce),
        ];
        for (other, part) in wrong {
            let found = other.report_data();
            assert_ne!(found[..32], data[..32]);
            assert_eq!(differing_parts(&data, &found), [part]);
        }
        assert!(differing_parts(&data, &data).is_empty());
    }
}
