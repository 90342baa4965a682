//! Threshold encryption to a committee: TDH2 of Shoup and Gennaro on ristretto255, with a label.
//!
//! Anyone encrypts to the group key. A ciphertext carries a proof that its maker knew what it encrypted and bound it to
//! its label, which makes the scheme secure against chosen ciphertexts (in the random oracle model, under decisional
//! Diffie-Hellman). A member turns its key share and a *checked* ciphertext into a decryption share with a proof of
//! correctness; any `t` checked shares of distinct members open the ciphertext, and fewer reveal nothing about it. The
//! types carry the checks: a share is made only from a [`VerifiedCiphertext`], and only [`VerifiedShare`]s combine.
//!
//! The payload is encrypted with ChaCha20-Poly1305 under a key derived from the encapsulated point; the ciphertext proof
//! covers it. Formats and every hash are in `docs/protocol/shuffle.md`. **This code awaits outside review.**

mod ciphertext;
mod hash;
mod params;
mod share;
#[cfg(test)]
mod tests;

use curve25519_dalek::ristretto::CompressedRistretto;
use curve25519_dalek::traits::IsIdentity;
use curve25519_dalek::{RistrettoPoint, Scalar};
use thiserror::Error;

pub use ciphertext::{CIPHERTEXT_OVERHEAD, Ciphertext, VerifiedCiphertext, combine, encrypt};
pub(crate) use params::matches_verification_key;
pub use params::{MAX_MEMBERS, PublicParams, Setup, deal};
pub use share::{DecryptionShare, SHARE_BYTES, VerifiedShare, decrypt_share};

/// Why threshold parameters, ciphertexts or shares were refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Tdh2Error {
    /// A threshold outside `1 <= t <= n <= MAX_MEMBERS`.
    #[error("{t} of {n} is no threshold: choose 1 <= t <= n <= {MAX_MEMBERS}")]
    Threshold {
        /// Shares needed.
        t: u8,
        /// Members.
        n: u8,
    },
    /// A length that does not fit the format.
    #[error("the {what} has {found} bytes, expected {expected}")]
    Length {
        /// Which bytes.
        what: &'static str,
        /// Bytes found.
        found: usize,
        /// Bytes expected.
        expected: usize,
    },
    /// A version this code does not know.
    #[error(
        "the {what} has version {found}, this software reads version {expected}; update it or get the other format"
    )]
    Version {
        /// Which bytes.
        what: &'static str,
        /// Version found.
        found: u8,
        /// Version expected.
        expected: u8,
    },
    /// The key setup is none this code knows.
    #[error("the key setup {0} is unknown; update this software")]
    UnknownSetup(u8),
    /// Not the canonical encoding of a usable group element.
    #[error("the {0} is no canonical ristretto255 element, or the neutral one")]
    Point(&'static str),
    /// Not a canonical scalar.
    #[error("the {0} is no canonical scalar")]
    Scalar(&'static str),
    /// The verification keys do not belong to one key of the stated threshold.
    #[error("the verification keys do not lie on one polynomial of degree {} with the group key: the setup is broken", t - 1)]
    Inconsistent {
        /// The stated threshold.
        t: u8,
    },
    /// The ciphertext's proof fails: it was changed, or made for another label or committee.
    #[error("the ciphertext's proof fails: it was changed, or made for another label or committee")]
    BadCiphertext,
    /// A member number outside `1..=n`.
    #[error("member {index} does not exist in a committee of {n}")]
    NoSuchMember {
        /// Number found.
        index: u8,
        /// Members.
        n: u8,
    },
    /// A share whose proof fails, with its claimed maker.
    #[error("member {index} sent a forged decryption share")]
    ForgedShare {
        /// The claimed maker.
        index: u8,
    },
    /// Two shares of one member.
    #[error("member {index}'s decryption share was given twice; shares of distinct members are needed")]
    DuplicateShare {
        /// The member.
        index: u8,
    },
    /// A share made for another ciphertext, label or committee.
    #[error("member {index}'s decryption share belongs to another ciphertext")]
    ForeignShare {
        /// The member.
        index: u8,
    },
    /// Not enough shares.
    #[error("{have} decryption shares of the {need} needed")]
    TooFewShares {
        /// Shares at hand.
        have: usize,
        /// Shares needed.
        need: u8,
    },
    /// The payload does not decrypt although every proof holds: its maker encrypted nonsense.
    #[error("the payload does not decrypt although all proofs hold: whoever made the ciphertext made it unreadable")]
    Unreadable,
    /// A key share that does not belong to these parameters.
    #[error("the key share does not belong to these parameters: {0}")]
    WrongKeyShare(&'static str),
}

fn parse_point(bytes: &[u8], what: &'static str) -> Result<RistrettoPoint, Tdh2Error> {
    CompressedRistretto::from_slice(bytes)
        .ok()
        .and_then(|c| c.decompress())
        .filter(|p| !p.is_identity())
        .ok_or(Tdh2Error::Point(what))
}

fn parse_scalar(bytes: &[u8], what: &'static str) -> Result<Scalar, Tdh2Error> {
    let bytes: [u8; 32] = bytes.try_into().map_err(|_| Tdh2Error::Scalar(what))?;
    Option::from(Scalar::from_canonical_bytes(bytes)).ok_or(Tdh2Error::Scalar(what))
}

/// The factors with which values at `indices` interpolate to the value at `at`. Indices are distinct and not zero.
fn lagrange(indices: &[u8], at: u8) -> Vec<Scalar> {
    let at = Scalar::from(at);
    let factor = |i: u8| {
        let others = indices.iter().filter(|j| **j != i).map(|j| Scalar::from(*j));
        let (above, below) = others
            .fold((Scalar::ONE, Scalar::ONE), |(above, below), j| (above * (at - j), below * (Scalar::from(i) - j)));
        above * below.invert()
    };
    indices.iter().map(|i| factor(*i)).collect()
}
