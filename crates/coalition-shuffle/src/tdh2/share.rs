//! Decryption shares: one member's contribution, with a proof that it is right.

use std::fmt;

use curve25519_dalek::traits::VartimeMultiscalarMul;
use curve25519_dalek::{RistrettoPoint, Scalar};
use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

use super::hash::{self, Use};
use super::{PublicParams, Tdh2Error, VerifiedCiphertext, parse_point, parse_scalar};
use crate::keys::KeyShare;

/// Length of a decryption share.
pub const SHARE_BYTES: usize = 1 + 3 * 32;

/// A well-formed decryption share whose proof has not been checked: `member (1) ‖ u_i (32) ‖ e_i (32) ‖ f_i (32)`.
#[derive(Clone, PartialEq, Eq)]
pub struct DecryptionShare {
    index: u8,
    point: RistrettoPoint,
    e: Scalar,
    f: Scalar,
}

/// A decryption share proved right for one ciphertext.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifiedShare {
    index: u8,
    point: RistrettoPoint,
    ciphertext: [u8; 32],
}

impl DecryptionShare {
    /// Parses bytes from outside.
    ///
    /// # Errors
    /// [`Tdh2Error`] when they have another length or hold an element or scalar that is not canonical.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Tdh2Error> {
        if bytes.len() != SHARE_BYTES {
            return Err(Tdh2Error::Length { what: "decryption share", found: bytes.len(), expected: SHARE_BYTES });
        }
        Ok(Self {
            index: bytes[0],
            point: parse_point(&bytes[1..33], "decryption share's point")?,
            e: parse_scalar(&bytes[33..65], "decryption share's e")?,
            f: parse_scalar(&bytes[65..], "decryption share's f")?,
        })
    }

    /// Its bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; SHARE_BYTES] {
        let mut out = [self.index; SHARE_BYTES];
        out[1..33].copy_from_slice(self.point.compress().as_bytes());
        out[33..65].copy_from_slice(self.e.as_bytes());
        out[65..].copy_from_slice(self.f.as_bytes());
        out
    }

    /// The member that claims to have made it, from 1.
    #[must_use]
    pub const fn index(&self) -> u8 {
        self.index
    }

    /// Checks the proof against the member's verification key and the ciphertext.
    ///
    /// # Errors
    /// [`Tdh2Error::ForgedShare`] naming the culprit; [`Tdh2Error::NoSuchMember`];
    /// [`Tdh2Error::BadCiphertext`] when the ciphertext was checked under other parameters.
    pub fn verify(&self, params: &PublicParams, ciphertext: &VerifiedCiphertext) -> Result<VerifiedShare, Tdh2Error> {
        ciphertext.check_params(params)?;
        let key = params.verification_key(self.index)?;
        let minus_e = -self.e;
        let u_hat = RistrettoPoint::vartime_multiscalar_mul([self.f, minus_e], [*ciphertext.u(), self.point]);
        let h_hat = RistrettoPoint::vartime_double_scalar_mul_basepoint(&minus_e, key, &self.f);
        let points = [key, ciphertext.u(), &self.point, &u_hat, &h_hat];
        if challenge(params, ciphertext, self.index, points) != self.e {
            return Err(Tdh2Error::ForgedShare { index: self.index });
        }
        Ok(VerifiedShare { index: self.index, point: self.point, ciphertext: *ciphertext.id() })
    }
}

impl fmt::Debug for DecryptionShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DecryptionShare(member {})", self.index)
    }
}

impl VerifiedShare {
    /// The member that made it, from 1.
    #[must_use]
    pub const fn index(&self) -> u8 {
        self.index
    }

    pub(super) const fn point(&self) -> &RistrettoPoint {
        &self.point
    }

    pub(super) const fn ciphertext_id(&self) -> &[u8; 32] {
        &self.ciphertext
    }
}

impl fmt::Debug for VerifiedShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifiedShare(member {})", self.index)
    }
}

/// The challenge of the proof that one exponent links the verification key to the base and the share to `u`.
/// `points` are h_i, u, u_i, û_i, ĥ_i.
fn challenge(params: &PublicParams, ct: &VerifiedCiphertext, index: u8, points: [&RistrettoPoint; 5]) -> Scalar {
    let [h, u, u_i, u_hat, h_hat] = points.map(|point| point.compress().to_bytes());
    let fingerprint = params.fingerprint();
    hash::scalar(Use::ShareProof, &[fingerprint.as_bytes(), ct.id(), &[index], &h, &u, &u_i, &u_hat, &h_hat])
}

/// Makes the share of the member that holds `key`.
///
/// The proof's secret nonce comes from the random source, the key and the ciphertext together, so a random source that
/// repeats itself does not give the key away.
///
/// # Errors
/// [`Tdh2Error::WrongKeyShare`] for a key of other parameters; [`Tdh2Error::BadCiphertext`] when the ciphertext was
/// checked under other parameters.
pub fn decrypt_share<R: CryptoRngCore + ?Sized>(
    params: &PublicParams,
    key: &KeyShare,
    ciphertext: &VerifiedCiphertext,
    rng: &mut R,
) -> Result<DecryptionShare, Tdh2Error> {
    ciphertext.check_params(params)?;
    if key.params() != params.fingerprint() {
        return Err(Tdh2Error::WrongKeyShare("its fingerprint differs"));
    }
    let index = key.index();
    let verification_key = params.verification_key(index)?;
    let mut random = Zeroizing::new([0; 32]);
    rng.fill_bytes(random.as_mut());
    let secret = Zeroizing::new(key.secret().to_bytes());
    let nonce = Zeroizing::new(hash::scalar(Use::ShareNonce, &[secret.as_ref(), random.as_ref(), ciphertext.id()]));
    let u = ciphertext.u();
    let point = key.secret() * u;
    let (u_hat, h_hat) = (*nonce * u, RistrettoPoint::mul_base(&nonce));
    let e = challenge(params, ciphertext, index, [verification_key, u, &point, &u_hat, &h_hat]);
    Ok(DecryptionShare { index, point, e, f: *nonce + key.secret() * e })
}
