//! Ciphertexts: making, checking, opening.

use std::fmt;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
use coalition::UniqueId;
use curve25519_dalek::traits::{MultiscalarMul, VartimeMultiscalarMul};
use curve25519_dalek::{RistrettoPoint, Scalar};
use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

use super::hash::{self, Use};
use super::share::VerifiedShare;
use super::{PublicParams, Tdh2Error, lagrange, parse_point, parse_scalar};

const HEADER_BYTES: usize = 4 * 32;
const TAG_BYTES: usize = 16;

/// How many bytes encryption adds to a payload.
pub const CIPHERTEXT_OVERHEAD: usize = HEADER_BYTES + TAG_BYTES;

/// A well-formed ciphertext whose proof has not been checked: `u (32) ‖ ū (32) ‖ e (32) ‖ f (32) ‖ payload ‖ tag (16)`.
#[derive(Clone, PartialEq, Eq)]
pub struct Ciphertext {
    u: RistrettoPoint,
    u_bar: RistrettoPoint,
    e: Scalar,
    f: Scalar,
    bytes: Vec<u8>,
}

/// A ciphertext whose proof holds under one label and one committee's parameters.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifiedCiphertext {
    ciphertext: Ciphertext,
    label: Vec<u8>,
    params: UniqueId,
    id: [u8; 32],
}

impl Ciphertext {
    /// Parses bytes from outside.
    ///
    /// # Errors
    /// [`Tdh2Error`] when they are too short or hold a group element or scalar that is not canonical.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Tdh2Error> {
        if bytes.len() < CIPHERTEXT_OVERHEAD {
            return Err(Tdh2Error::Length { what: "ciphertext", found: bytes.len(), expected: CIPHERTEXT_OVERHEAD });
        }
        Ok(Self {
            u: parse_point(&bytes[..32], "ciphertext's u")?,
            u_bar: parse_point(&bytes[32..64], "ciphertext's ū")?,
            e: parse_scalar(&bytes[64..96], "ciphertext's e")?,
            f: parse_scalar(&bytes[96..128], "ciphertext's f")?,
            bytes: bytes.to_vec(),
        })
    }

    /// The bytes it was parsed from, or made as.
    #[must_use]
    pub fn to_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn sealed(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..]
    }

    /// Checks the proof under `label` and these parameters.
    ///
    /// # Errors
    /// [`Tdh2Error::BadCiphertext`] when it was changed, or made for another label or committee.
    pub fn verify(self, params: &PublicParams, label: &[u8]) -> Result<VerifiedCiphertext, Tdh2Error> {
        let minus_e = -self.e;
        let w = RistrettoPoint::vartime_double_scalar_mul_basepoint(&minus_e, &self.u, &self.f);
        let w_bar =
            RistrettoPoint::vartime_multiscalar_mul([self.f, minus_e], [*params.second_generator(), self.u_bar]);
        let points = [&self.u, &self.u_bar, &w, &w_bar];
        if challenge(params, label, points, self.sealed()) != self.e {
            return Err(Tdh2Error::BadCiphertext);
        }
        let fingerprint = params.fingerprint();
        let id = *hash::digest_32(Use::CiphertextId, &[fingerprint.as_bytes(), label, &self.bytes]);
        Ok(VerifiedCiphertext { ciphertext: self, label: label.to_vec(), params: fingerprint, id })
    }
}

impl fmt::Debug for Ciphertext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ciphertext({} bytes)", self.bytes.len())
    }
}

impl VerifiedCiphertext {
    /// The ciphertext that was checked.
    #[must_use]
    pub const fn ciphertext(&self) -> &Ciphertext {
        &self.ciphertext
    }

    pub(super) const fn u(&self) -> &RistrettoPoint {
        &self.ciphertext.u
    }

    /// Names this ciphertext under its label and committee.
    pub(super) const fn id(&self) -> &[u8; 32] {
        &self.id
    }

    /// Refuses parameters other than those the proof was checked under.
    pub(super) fn check_params(&self, params: &PublicParams) -> Result<(), Tdh2Error> {
        if self.params == params.fingerprint() { Ok(()) } else { Err(Tdh2Error::BadCiphertext) }
    }
}

impl fmt::Debug for VerifiedCiphertext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verified{:?}", self.ciphertext)
    }
}

/// The challenge `e` of the proof that one exponent links `u` to the base and `ū` to the second generator.
/// `points` are u, ū, w, w̄.
fn challenge(params: &PublicParams, label: &[u8], points: [&RistrettoPoint; 4], sealed: &[u8]) -> Scalar {
    let [u, u_bar, w, w_bar] = points.map(|point| point.compress().to_bytes());
    let fingerprint = params.fingerprint();
    hash::scalar(Use::CiphertextProof, &[fingerprint.as_bytes(), label, &u, &u_bar, &w, &w_bar, sealed])
}

/// The cipher of the data encapsulation. Its key is fresh for every ciphertext, so its nonce may be constant.
fn cipher(params: &PublicParams, u: &RistrettoPoint, shared: &RistrettoPoint) -> ChaCha20Poly1305 {
    let shared = Zeroizing::new(shared.compress().to_bytes());
    let u = u.compress();
    let fingerprint = params.fingerprint();
    let key = hash::digest_32(Use::DataKey, &[fingerprint.as_bytes(), u.as_bytes(), shared.as_ref()]);
    ChaCha20Poly1305::new((&*key).into())
}

/// Encrypts `payload` to the committee, bound to `label`. The result is [`CIPHERTEXT_OVERHEAD`] bytes longer.
///
/// # Panics
/// Never for payloads below 256 GiB, the limit of the cipher.
#[must_use]
pub fn encrypt<R: CryptoRngCore + ?Sized>(
    params: &PublicParams,
    label: &[u8],
    payload: &[u8],
    rng: &mut R,
) -> Ciphertext {
    let r = Zeroizing::new(Scalar::random(rng));
    let s = Zeroizing::new(Scalar::random(rng));
    let u = RistrettoPoint::mul_base(&r);
    let u_bar = *r * params.second_generator();
    let shared = Zeroizing::new(*r * params.group_key());
    let sealed = cipher(params, &u, &shared)
        .encrypt(&Nonce::default(), Payload { msg: payload, aad: label })
        .expect("the cipher fails only above its length limit");
    let w = RistrettoPoint::mul_base(&s);
    let w_bar = *s * params.second_generator();
    let e = challenge(params, label, [&u, &u_bar, &w, &w_bar], &sealed);
    let f = *s + *r * e;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + sealed.len());
    for part in [u.compress().to_bytes(), u_bar.compress().to_bytes(), e.to_bytes(), f.to_bytes()] {
        bytes.extend_from_slice(&part);
    }
    bytes.extend_from_slice(&sealed);
    Ciphertext { u, u_bar, e, f, bytes }
}

/// Opens a ciphertext with checked shares of `t` or more distinct members. The payload is wiped when dropped.
///
/// # Errors
/// [`Tdh2Error::DuplicateShare`], [`Tdh2Error::ForeignShare`], [`Tdh2Error::TooFewShares`];
/// [`Tdh2Error::Unreadable`] when the maker of the ciphertext encrypted nonsense, which every `t` members find alike.
pub fn combine(
    params: &PublicParams,
    ciphertext: &VerifiedCiphertext,
    shares: &[VerifiedShare],
) -> Result<Zeroizing<Vec<u8>>, Tdh2Error> {
    ciphertext.check_params(params)?;
    for (at, share) in shares.iter().enumerate() {
        let index = share.index();
        if share.ciphertext_id() != ciphertext.id() {
            return Err(Tdh2Error::ForeignShare { index });
        }
        if shares[..at].iter().any(|earlier| earlier.index() == index) {
            return Err(Tdh2Error::DuplicateShare { index });
        }
    }
    let used = shares
        .get(..usize::from(params.t()))
        .ok_or(Tdh2Error::TooFewShares { have: shares.len(), need: params.t() })?;
    let indices: Vec<u8> = used.iter().map(VerifiedShare::index).collect();
    let points = used.iter().map(VerifiedShare::point);
    let shared = Zeroizing::new(RistrettoPoint::multiscalar_mul(lagrange(&indices, 0), points));
    let payload = Payload { msg: ciphertext.ciphertext.sealed(), aad: &ciphertext.label };
    cipher(params, ciphertext.u(), &shared)
        .decrypt(&Nonce::default(), payload)
        .map(Zeroizing::new)
        .map_err(|_| Tdh2Error::Unreadable)
}
