//! Key shares and what a dealer hands out.

use std::fmt;

use coalition::UniqueId;
use curve25519_dalek::Scalar;
use rand_core::CryptoRngCore;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::tdh2::{self, PublicParams, Tdh2Error, matches_verification_key};

const SHARE_PREFIX: &str = "coalition-key-share-1:";
const BODY_BYTES: usize = 1 + 32 + 32;
const CHECK_BYTES: usize = 4;
const CHECK_DOMAIN: &str = "coalition shuffle key share checksum v1";

/// Why a text is no key share. No message repeats any of the text: it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Another kind of text.
    #[error(
        "this is no key share: it must start with '{SHARE_PREFIX}'; give the file the dealer wrote for this member"
    )]
    Prefix,
    /// Not the right amount of hexadecimal.
    #[error("a key share has {expected} hexadecimal digits behind its prefix, this has {found} characters")]
    Digits {
        /// Digits expected.
        expected: usize,
        /// Characters found.
        found: usize,
    },
    /// Mistyped or damaged.
    #[error("the key share's checksum is wrong: the file is damaged; restore it from the dealer's copy")]
    Checksum,
    /// Not a key.
    #[error("the key share holds no valid secret or member number")]
    Value,
    /// Of another committee, or another member's number with this secret.
    #[error("the key share does not belong to this committee")]
    Mismatch(#[source] Tdh2Error),
}

/// One member's share of the committee's key. Wiped when dropped, never printed.
#[derive(Clone)]
pub struct KeyShare {
    index: u8,
    params: UniqueId,
    secret: Zeroizing<Scalar>,
}

impl KeyShare {
    pub(crate) fn new(index: u8, params: UniqueId, secret: &Scalar) -> Self {
        Self { index, params, secret: Zeroizing::new(*secret) }
    }

    /// The member's number, from 1.
    #[must_use]
    pub const fn index(&self) -> u8 {
        self.index
    }

    /// Fingerprint of the parameters it belongs to.
    #[must_use]
    pub const fn params(&self) -> UniqueId {
        self.params
    }

    pub(crate) fn secret(&self) -> &Scalar {
        &self.secret
    }

    /// Checks that this is a share of the key with these parameters.
    ///
    /// # Errors
    /// [`KeyError::Mismatch`] when the fingerprint, the number or the secret differ.
    pub fn check(&self, params: &PublicParams) -> Result<(), KeyError> {
        if self.params != params.fingerprint() {
            return Err(KeyError::Mismatch(Tdh2Error::WrongKeyShare("its fingerprint differs")));
        }
        match matches_verification_key(params, self.index, &self.secret).map_err(KeyError::Mismatch)? {
            true => Ok(()),
            false => Err(KeyError::Mismatch(Tdh2Error::WrongKeyShare("its secret is not that member's"))),
        }
    }

    /// The text a member keeps in a file only it can read: a prefix, then hexadecimal of
    /// `member (1) ‖ parameters' fingerprint (32) ‖ secret scalar (32) ‖ checksum (4)`.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([self.index; BODY_BYTES + CHECK_BYTES]);
        bytes[1..33].copy_from_slice(self.params.as_bytes());
        bytes[33..65].copy_from_slice(self.secret.as_bytes());
        let check = checksum(&bytes[..BODY_BYTES]);
        bytes[BODY_BYTES..].copy_from_slice(&check);
        let mut digits = Zeroizing::new([0; 2 * (BODY_BYTES + CHECK_BYTES)]);
        hex::encode_to_slice(bytes.as_ref(), digits.as_mut()).expect("the buffer has two digits for every byte");
        let mut text = Zeroizing::new(String::with_capacity(SHARE_PREFIX.len() + digits.len()));
        text.push_str(SHARE_PREFIX);
        text.extend(digits.iter().map(|digit| char::from(*digit)));
        text
    }

    /// Parses [`KeyShare::to_text`]; whitespace around it is ignored.
    ///
    /// # Errors
    /// [`KeyError`], which never repeats the text.
    pub fn from_text(text: &str) -> Result<Self, KeyError> {
        let digits = text.trim().strip_prefix(SHARE_PREFIX).ok_or(KeyError::Prefix)?;
        let mut bytes = Zeroizing::new([0; BODY_BYTES + CHECK_BYTES]);
        hex::decode_to_slice(digits, bytes.as_mut())
            .map_err(|_| KeyError::Digits { expected: 2 * bytes.len(), found: digits.chars().count() })?;
        let (body, check) = bytes.split_at(BODY_BYTES);
        if checksum(body) != check {
            return Err(KeyError::Checksum);
        }
        let (mut params, mut secret) = ([0; 32], Zeroizing::new([0; 32]));
        params.copy_from_slice(&body[1..33]);
        secret.copy_from_slice(&body[33..]);
        let secret = Option::<Scalar>::from(Scalar::from_canonical_bytes(*secret)).map(Zeroizing::new);
        match (body[0], secret) {
            (index @ 1..=tdh2::MAX_MEMBERS, Some(secret)) => {
                Ok(Self { index, params: UniqueId::from_bytes(params), secret })
            }
            _ => Err(KeyError::Value),
        }
    }
}

impl fmt::Debug for KeyShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyShare(member {}, redacted)", self.index)
    }
}

/// A keyed hash, so that the checksum of a share is not a plain hash of the secret used anywhere else.
fn checksum(body: &[u8]) -> [u8; CHECK_BYTES] {
    let hash = blake3::derive_key(CHECK_DOMAIN, body);
    [hash[0], hash[1], hash[2], hash[3]]
}

/// Everything a trusted dealer makes: publish the parameters, give each member its share, forget the rest.
#[derive(Debug, Clone)]
pub struct DealerOutput {
    /// Public; folded into the unseal organism's content.
    pub params: PublicParams,
    /// One for each member, in order of their numbers.
    pub shares: Vec<KeyShare>,
}

impl DealerOutput {
    /// Makes a key for `n` members of whom any `t` open.
    ///
    /// # Errors
    /// [`Tdh2Error::Threshold`] unless `1 <= t <= n <= 64`.
    pub fn deal<R: CryptoRngCore + ?Sized>(t: u8, n: u8, rng: &mut R) -> Result<Self, Tdh2Error> {
        let (params, shares) = tdh2::deal(t, n, rng)?;
        Ok(Self { params, shares })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SeededRng;
    use proptest::prelude::*;

    fn dealt(seed: &str) -> DealerOutput {
        DealerOutput::deal(2, 3, &mut SeededRng::new(seed)).unwrap()
    }

    #[test]
    fn shares_round_trip_and_match_their_parameters() {
        let output = dealt("round trip");
        for (at, share) in (1..).zip(&output.shares) {
            assert_eq!(share.index(), at);
            let read = KeyShare::from_text(&format!("  {}\n", *share.to_text())).unwrap();
            assert_eq!(read.to_text(), share.to_text());
            read.check(&output.params).unwrap();
        }
    }

    #[test]
    fn shares_of_another_committee_or_member_are_refused() {
        let (ours, theirs) = (dealt("ours"), dealt("theirs"));
        assert!(matches!(ours.shares[0].check(&theirs.params), Err(KeyError::Mismatch(_))));
        let swapped = KeyShare::new(2, ours.params.fingerprint(), ours.shares[0].secret());
        assert!(matches!(swapped.check(&ours.params), Err(KeyError::Mismatch(Tdh2Error::WrongKeyShare(_)))));
        let absent = KeyShare::new(4, ours.params.fingerprint(), ours.shares[0].secret());
        let refused = absent.check(&ours.params);
        assert_eq!(refused, Err(KeyError::Mismatch(Tdh2Error::NoSuchMember { index: 4, n: 3 })));
    }

    #[test]
    fn golden_vector() {
        let output = dealt("coalition-shuffle/keys");
        let text = format!("{}\n{}\n", output.params.to_hex(), *output.shares[2].to_text());
        assert_eq!(text, include_str!("../tests/vectors/keys.txt"));
    }

    #[test]
    fn debug_and_errors_show_no_secret() {
        let output = dealt("debug");
        let secret = hex::encode(output.shares[0].secret().as_bytes());
        assert!(!format!("{output:?}").contains(&secret[..8]));
        let text = output.shares[0].to_text();
        let mistyped = text.replace(&secret[..2], "zz");
        let error = KeyShare::from_text(&mistyped).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(&secret[8..16]));
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_refused(text in ".{0,200}", digits in "[0-9a-f]{138}") {
            prop_assert!(KeyShare::from_text(&text).is_err());
            let prefixed = format!("{SHARE_PREFIX}{digits}");
            prop_assert!(KeyShare::from_text(&prefixed).is_err());
        }

        #[test]
        fn any_changed_digit_is_refused(at in 0usize..138, by in 1u8..16) {
            let text = dealt("digit").shares[1].to_text();
            let mut bytes = text.as_bytes().to_vec();
            let digit = &mut bytes[SHARE_PREFIX.len() + at];
            let value = u8::try_from(char::from(*digit).to_digit(16).unwrap()).unwrap();
            *digit = b"0123456789abcdef"[usize::from((value + by) % 16)];
            prop_assert!(KeyShare::from_text(&String::from_utf8(bytes).unwrap()).is_err());
        }
    }
}
