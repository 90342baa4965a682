//! Every hash of the scheme: SHA-512 over length-prefixed parts, the first of which names the use.

use curve25519_dalek::{RistrettoPoint, Scalar};
use sha2::{Digest, Sha512};
use zeroize::Zeroizing;

const DOMAIN: &[u8] = b"coalition/tdh2/v1";

/// What a digest is used for.
#[derive(Clone, Copy)]
pub(super) enum Use {
    /// The second generator, from the group key.
    Generator,
    /// The key of the data encapsulation, from the shared point.
    DataKey,
    /// The challenge of the ciphertext's proof.
    CiphertextProof,
    /// The challenge of a decryption share's proof.
    ShareProof,
    /// The name of one ciphertext under one label, which shares are bound to.
    CiphertextId,
    /// The secret nonce of a share's proof.
    ShareNonce,
}

impl Use {
    const fn tag(self) -> &'static [u8] {
        match self {
            Self::Generator => b"generator",
            Self::DataKey => b"data-key",
            Self::CiphertextProof => b"ciphertext-proof",
            Self::ShareProof => b"share-proof",
            Self::CiphertextId => b"ciphertext-id",
            Self::ShareNonce => b"share-nonce",
        }
    }
}

/// SHA-512 over the domain, the use and the parts, each behind its length as a little-endian `u64`.
pub(super) fn digest(usage: Use, parts: &[&[u8]]) -> Zeroizing<[u8; 64]> {
    let mut hasher = Sha512::new();
    for part in [DOMAIN, usage.tag()].iter().chain(parts) {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    Zeroizing::new(hasher.finalize().into())
}

/// The first 32 bytes of [`digest`].
pub(super) fn digest_32(usage: Use, parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let wide = digest(usage, parts);
    let mut out = Zeroizing::new([0; 32]);
    out.copy_from_slice(&wide[..32]);
    out
}

/// [`digest`] reduced to a scalar.
pub(super) fn scalar(usage: Use, parts: &[&[u8]]) -> Scalar {
    Scalar::from_bytes_mod_order_wide(&digest(usage, parts))
}

/// [`digest`] mapped to a point nobody knows the discrete logarithm of.
pub(super) fn point(usage: Use, parts: &[&[u8]]) -> RistrettoPoint {
    RistrettoPoint::from_uniform_bytes(&digest(usage, parts))
}
