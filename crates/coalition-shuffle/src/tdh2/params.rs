//! Public parameters of a committee's key, and the dealer that makes one.

use std::fmt;

use coalition::{UniqueId, hash_many};
use curve25519_dalek::traits::VartimeMultiscalarMul;
use curve25519_dalek::{RistrettoPoint, Scalar};
use rand_core::CryptoRngCore;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

use super::hash::{self, Use};
use super::{Tdh2Error, lagrange, parse_point};
use crate::keys::KeyShare;

/// Largest committee.
pub const MAX_MEMBERS: u8 = 64;

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 4;
const TAG_FINGERPRINT: &[u8] = b"coalition/shuffle/params";

/// How a committee's key came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Setup {
    /// One party made the key and handed out the shares; it could have kept the key.
    TrustedDealer,
}

impl Setup {
    const fn code(self) -> u8 {
        match self {
            Self::TrustedDealer => 1,
        }
    }

    const fn from_code(code: u8) -> Result<Self, Tdh2Error> {
        match code {
            1 => Ok(Self::TrustedDealer),
            other => Err(Tdh2Error::UnknownSetup(other)),
        }
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TrustedDealer => f.write_str("trusted dealer (whoever ran the setup could have kept the key)"),
        }
    }
}

/// What everybody knows of a committee's key: validated, consistent, and named by a fingerprint.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicParams {
    setup: Setup,
    t: u8,
    group_key: RistrettoPoint,
    verification_keys: Vec<RistrettoPoint>,
    second_generator: RistrettoPoint,
    fingerprint: UniqueId,
    bytes: Vec<u8>,
}

impl PublicParams {
    fn assemble(setup: Setup, t: u8, group_key: RistrettoPoint, verification_keys: Vec<RistrettoPoint>) -> Self {
        let compressed = group_key.compress();
        let n = u8::try_from(verification_keys.len()).expect("at most MAX_MEMBERS keys, checked by every caller");
        let mut bytes = vec![VERSION, setup.code(), t, n];
        bytes.extend_from_slice(compressed.as_bytes());
        verification_keys.iter().for_each(|key| bytes.extend_from_slice(key.compress().as_bytes()));
        Self {
            setup,
            t,
            group_key,
            verification_keys,
            second_generator: hash::point(Use::Generator, &[compressed.as_bytes()]),
            fingerprint: hash_many(&[&[VERSION], TAG_FINGERPRINT, &bytes]),
            bytes,
        }
    }

    /// Parses canonical bytes:
    /// `0x01 ‖ setup (1) ‖ t (1) ‖ n (1) ‖ group key (32) ‖ n × verification key (32)`.
    ///
    /// # Errors
    /// [`Tdh2Error`] for another version, setup, threshold or length, for elements that are not canonical, and for
    /// verification keys that do not belong to the group key.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Tdh2Error> {
        const WHAT: &str = "threshold parameters";
        let &[version, setup, t, n, ref keys @ ..] = bytes else {
            return Err(Tdh2Error::Length { what: WHAT, found: bytes.len(), expected: HEADER_BYTES });
        };
        if version != VERSION {
            return Err(Tdh2Error::Version { what: WHAT, found: version, expected: VERSION });
        }
        let setup = Setup::from_code(setup)?;
        check_threshold(t, n)?;
        let expected = HEADER_BYTES + 32 * (1 + usize::from(n));
        if bytes.len() != expected {
            return Err(Tdh2Error::Length { what: WHAT, found: bytes.len(), expected });
        }
        let (group, members) = keys.split_at(32);
        let group_key = parse_point(group, "group key")?;
        let parsed = members.chunks_exact(32).map(|key| parse_point(key, "verification key"));
        let params = Self::assemble(setup, t, group_key, parsed.collect::<Result<_, _>>()?);
        params.check_consistent().map(|()| params)
    }

    /// Parses [`PublicParams::to_hex`].
    ///
    /// # Errors
    /// Like [`PublicParams::from_bytes`]; text that is no hexadecimal counts as empty.
    pub fn from_hex(text: &str) -> Result<Self, Tdh2Error> {
        Self::from_bytes(&hex::decode(text.trim()).unwrap_or_default())
    }

    /// The first `t` verification keys fix a polynomial; the group key and all others must lie on it.
    fn check_consistent(&self) -> Result<(), Tdh2Error> {
        let base: Vec<u8> = (1..=self.t).collect();
        let points = &self.verification_keys[..base.len()];
        let at = |x: u8| RistrettoPoint::vartime_multiscalar_mul(lagrange(&base, x), points);
        let rest = (self.t + 1..=self.n()).zip(&self.verification_keys[base.len()..]);
        if at(0) == self.group_key && rest.into_iter().all(|(x, key)| at(x) == *key) {
            return Ok(());
        }
        Err(Tdh2Error::Inconsistent { t: self.t })
    }

    /// Canonical bytes, as [`PublicParams::from_bytes`] reads them. An unseal organism folds them into its content.
    #[must_use]
    pub fn to_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// [`PublicParams::to_bytes`] in hexadecimal.
    #[must_use]
    pub fn to_hex(&self) -> String {
        hex::encode(&self.bytes)
    }

    /// Name of these parameters; every proof of the scheme is bound to it.
    #[must_use]
    pub const fn fingerprint(&self) -> UniqueId {
        self.fingerprint
    }

    /// How the key came to be.
    #[must_use]
    pub const fn setup(&self) -> Setup {
        self.setup
    }

    /// Shares needed to open.
    #[must_use]
    pub const fn t(&self) -> u8 {
        self.t
    }

    /// Members.
    #[must_use]
    pub fn n(&self) -> u8 {
        u8::try_from(self.verification_keys.len()).expect("at most MAX_MEMBERS keys, checked by every constructor")
    }

    pub(super) const fn group_key(&self) -> &RistrettoPoint {
        &self.group_key
    }

    pub(super) const fn second_generator(&self) -> &RistrettoPoint {
        &self.second_generator
    }

    pub(super) fn verification_key(&self, index: u8) -> Result<&RistrettoPoint, Tdh2Error> {
        usize::from(index)
            .checked_sub(1)
            .and_then(|i| self.verification_keys.get(i))
            .ok_or_else(|| Tdh2Error::NoSuchMember { index, n: self.n() })
    }
}

impl fmt::Debug for PublicParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (t, n, setup, print) = (self.t, self.n(), self.setup, self.fingerprint);
        write!(f, "PublicParams({t} of {n}, {setup:?}, {print})")
    }
}

impl Serialize for PublicParams {
    /// As hexadecimal in human-readable formats, as bytes in binary ones.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return serializer.serialize_str(&self.to_hex());
        }
        self.bytes.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for PublicParams {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = if deserializer.is_human_readable() {
            hex::decode(String::deserialize(deserializer)?).map_err(de::Error::custom)?
        } else {
            Vec::deserialize(deserializer)?
        };
        Self::from_bytes(&bytes).map_err(de::Error::custom)
    }
}

const fn check_threshold(t: u8, n: u8) -> Result<(), Tdh2Error> {
    if 1 <= t && t <= n && n <= MAX_MEMBERS { Ok(()) } else { Err(Tdh2Error::Threshold { t, n }) }
}

/// Makes a key for `n` members of whom any `t` open. The caller is the *trusted dealer*: while this runs it holds the
/// whole key (wiped on return), and the parameters say so for ever.
///
/// # Errors
/// [`Tdh2Error::Threshold`] unless `1 <= t <= n <= MAX_MEMBERS`.
pub fn deal<R: CryptoRngCore + ?Sized>(t: u8, n: u8, rng: &mut R) -> Result<(PublicParams, Vec<KeyShare>), Tdh2Error> {
    check_threshold(t, n)?;
    let polynomial: Zeroizing<Vec<Scalar>> = Zeroizing::new((0..t).map(|_| Scalar::random(rng)).collect());
    let at = |x: u8| {
        let x = Scalar::from(x);
        Zeroizing::new(polynomial.iter().rev().fold(Scalar::ZERO, |sum, coefficient| sum * x + coefficient))
    };
    let secrets: Vec<(u8, Zeroizing<Scalar>)> = (1..=n).map(|x| (x, at(x))).collect();
    let keys = secrets.iter().map(|(_, secret)| RistrettoPoint::mul_base(secret)).collect();
    let params = PublicParams::assemble(Setup::TrustedDealer, t, RistrettoPoint::mul_base(&at(0)), keys);
    let shares = secrets.into_iter().map(|(x, secret)| KeyShare::new(x, params.fingerprint(), &secret)).collect();
    Ok((params, shares))
}

/// Whether `secret` is member `index`'s share of the key.
pub(crate) fn matches_verification_key(params: &PublicParams, index: u8, secret: &Scalar) -> Result<bool, Tdh2Error> {
    Ok(RistrettoPoint::mul_base(secret) == *params.verification_key(index)?)
}
