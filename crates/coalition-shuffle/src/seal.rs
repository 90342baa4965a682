//! Sealing to one X25519 key: HPKE (RFC 9180), base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305.
//!
//! Sealed bytes are `ephemeral_public (32) ‖ ciphertext`, [`OVERHEAD`] bytes longer than the plaintext. `info` is a
//! versioned domain string per [`Purpose`], the associated data is a [`SealContext`], so what was sealed for one grant
//! of one coalition opens nowhere else. Base mode does not say who sealed; callers learn that elsewhere.

use std::fmt;

use coalition::{RequestId, UniqueId};
use curve25519_dalek::MontgomeryPoint;
use hpke::rand_core as hpke_rand;
use hpke::{Deserializable, Kem as _, OpModeR, OpModeS, Serializable};
use rand_core::CryptoRngCore;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;
use zeroize::Zeroizing;

type Kem = hpke::kem::X25519HkdfSha256;
type Kdf = hpke::kdf::HkdfSha256;
type Aead = hpke::aead::ChaCha20Poly1305;

/// Length of the ephemeral public key that leads sealed bytes.
pub const EPHEMERAL_BYTES: usize = 32;

/// How many bytes sealing adds: the ephemeral public key and the authentication tag.
pub const OVERHEAD: usize = EPHEMERAL_BYTES + 16;

const CONTEXT_VERSION: u8 = 1;

/// The prime of the X25519 field, `2^255 - 19`, little endian.
const FIELD_PRIME: [u8; 32] = {
    let mut p = [0xff; 32];
    p[0] = 0xed;
    p[31] = 0x7f;
    p
};

/// Why 32 bytes are no usable X25519 public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InvalidReceiver {
    /// Not the one accepted encoding of its value.
    #[error("the X25519 public key is not in canonical form (a value of 2^255 - 19 or more); ask for a new key")]
    NotCanonical,
    /// A point of small order: everyone could read what is sealed to it.
    #[error("the X25519 public key has small order, so anyone could open what is sealed to it; ask for a new key")]
    SmallOrder,
}

/// Why sealing or opening failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SealError {
    /// Shorter than any sealed message.
    #[error("a sealed message has at least {least} bytes, this has {found}; it was cut short")]
    TooShort {
        /// Bytes found.
        found: usize,
        /// Bytes the shortest sealed message has.
        least: usize,
    },
    /// Changed on the way, sealed to another key, or for another purpose, coalition or grant. Not told apart on purpose.
    #[error("the sealed message does not open: it was changed, or sealed to another key, purpose, coalition or grant")]
    NotOpened,
    /// The receiver's key or the message length was refused by the primitive; excluded for validated keys.
    #[error("sealing failed: the receiver's key was refused")]
    NotSealed,
}

/// A validated X25519 public key: canonical, and not of small order.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReceiverPublic([u8; 32]);

impl ReceiverPublic {
    /// Validates 32 bytes from outside.
    ///
    /// # Errors
    /// [`InvalidReceiver`] when they are another encoding of a key or a key of small order.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, InvalidReceiver> {
        if !bytes.iter().rev().lt(FIELD_PRIME.iter().rev()) {
            return Err(InvalidReceiver::NotCanonical);
        }
        // Clamped scalars are multiples of the cofactor, so any of them sends exactly the small-order points to zero.
        if MontgomeryPoint(bytes).mul_clamped([0; 32]).0 == [0; 32] {
            return Err(InvalidReceiver::SmallOrder);
        }
        Ok(Self(bytes))
    }

    /// The 32 bytes of the key.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for ReceiverPublic {
    /// Redacted: the key links a request to its receipt.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReceiverPublic(redacted)")
    }
}

impl Serialize for ReceiverPublic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ReceiverPublic {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_bytes(<[u8; 32]>::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// An X25519 secret key to which messages are sealed. Wiped when dropped, never printed.
#[derive(Clone)]
pub struct ReceiverKey(Zeroizing<[u8; 32]>);

impl ReceiverKey {
    /// A fresh key.
    #[must_use]
    pub fn generate<R: CryptoRngCore + ?Sized>(rng: &mut R) -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.fill_bytes(bytes.as_mut());
        Self(bytes)
    }

    /// A key kept by its owner. Any 32 bytes are a key (X25519 clamps them).
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(Zeroizing::new(*bytes))
    }

    /// The secret bytes, for the owner's own storage.
    #[must_use]
    pub const fn expose(&self) -> &Zeroizing<[u8; 32]> {
        &self.0
    }

    /// The public key that belongs to it.
    #[must_use]
    pub fn public(&self) -> ReceiverPublic {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(&Kem::sk_to_pk(&self.hpke()).to_bytes());
        ReceiverPublic(bytes)
    }

    fn hpke(&self) -> <Kem as hpke::Kem>::PrivateKey {
        <Kem as hpke::Kem>::PrivateKey::from_bytes(self.0.as_ref()).expect("an X25519 key is any 32 bytes")
    }
}

impl fmt::Debug for ReceiverKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReceiverKey(redacted)")
    }
}

/// What a sealed message is for; each purpose is a domain of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// An SSH access receipt, provider to requester.
    SshReceipt,
}

impl Purpose {
    const fn info(self) -> &'static [u8] {
        match self {
            Self::SshReceipt => b"coalition/seal/v1/ssh-receipt",
        }
    }
}

/// What a sealed message belongs to; bound as associated data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealContext {
    /// Stable id of the coalition.
    pub coalition: UniqueId,
    /// The grant.
    pub grant: RequestId,
}

impl SealContext {
    /// Canonical bytes: `0x01 ‖ coalition (32) ‖ grant (32)`.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 65] {
        let mut out = [CONTEXT_VERSION; 65];
        out[1..33].copy_from_slice(self.coalition.as_bytes());
        out[33..].copy_from_slice(self.grant.as_bytes());
        out
    }
}

/// Seals `plaintext` to `public`: `ephemeral_public (32) ‖ ciphertext`, [`OVERHEAD`] bytes longer than the plaintext.
///
/// # Errors
/// [`SealError::NotSealed`], excluded for a validated key.
pub fn seal<R: CryptoRngCore + ?Sized>(
    public: &ReceiverPublic,
    purpose: Purpose,
    context: &SealContext,
    plaintext: &[u8],
    rng: &mut R,
) -> Result<Vec<u8>, SealError> {
    seal_raw(public.as_bytes(), purpose.info(), &context.to_bytes(), plaintext, rng)
}

/// Opens what [`seal`] made for the same key, purpose and context. The plaintext is wiped when dropped.
///
/// # Errors
/// [`SealError`] for anything else.
pub fn open(
    key: &ReceiverKey,
    purpose: Purpose,
    context: &SealContext,
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, SealError> {
    open_raw(key, purpose.info(), &context.to_bytes(), sealed)
}

fn seal_raw<R: CryptoRngCore + ?Sized>(
    public: &[u8; 32],
    info: &[u8],
    aad: &[u8],
    plaintext: &[u8],
    rng: &mut R,
) -> Result<Vec<u8>, SealError> {
    let public = <Kem as hpke::Kem>::PublicKey::from_bytes(public).map_err(|_| SealError::NotSealed)?;
    let mut rng = HpkeRng(rng);
    let (ephemeral, ciphertext) =
        hpke::single_shot_seal_with_rng::<Aead, Kdf, Kem>(&OpModeS::Base, &public, info, plaintext, aad, &mut rng)
            .map_err(|_| SealError::NotSealed)?;
    let mut sealed = Vec::with_capacity(EPHEMERAL_BYTES + ciphertext.len());
    sealed.extend_from_slice(&ephemeral.to_bytes());
    sealed.extend_from_slice(&ciphertext);
    Ok(sealed)
}

fn open_raw(key: &ReceiverKey, info: &[u8], aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    if sealed.len() < OVERHEAD {
        return Err(SealError::TooShort { found: sealed.len(), least: OVERHEAD });
    }
    let (ephemeral, ciphertext) = sealed.split_at(EPHEMERAL_BYTES);
    let ephemeral = <Kem as hpke::Kem>::EncappedKey::from_bytes(ephemeral).map_err(|_| SealError::NotOpened)?;
    hpke::single_shot_open::<Aead, Kdf, Kem>(&OpModeR::Base, &key.hpke(), &ephemeral, info, ciphertext, aad)
        .map(Zeroizing::new)
        .map_err(|_| SealError::NotOpened)
}

/// Hands our random source to `hpke`, which speaks a later version of the random-source traits.
struct HpkeRng<'a, R: ?Sized>(&'a mut R);

impl<R: CryptoRngCore + ?Sized> hpke_rand::TryRng for HpkeRng<'_, R> {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok(self.0.next_u32())
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(self.0.next_u64())
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Self::Error> {
        self.0.fill_bytes(dst);
        Ok(())
    }
}

impl<R: CryptoRngCore + ?Sized> hpke_rand::TryCryptoRng for HpkeRng<'_, R> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FixedRng, SeededRng};
    use proptest::prelude::*;

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        hex::decode(hex).unwrap().try_into().unwrap()
    }

    fn context() -> SealContext {
        SealContext { coalition: UniqueId::from_u8(1), grant: RequestId(UniqueId::from_u8(2)) }
    }

    /// RFC 9180, A.2.1: base mode, sequence number 0, in both directions.
    #[test]
    fn rfc_9180_a_2_1() {
        let info = hex::decode("4f6465206f6e2061204772656369616e2055726e").unwrap();
        let aad = b"Count-0";
        let plaintext = b"Beauty is truth, truth beauty";
        let receiver =
            ReceiverKey::from_bytes(&bytes("8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb"));
        let public: [u8; 32] = bytes("4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a");
        assert_eq!(receiver.public().as_bytes(), &public);
        let expected = hex::decode(concat!(
            "1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a",
            "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d2dd1b51a28",
        ))
        .unwrap();
        let ikm = hex::decode("909a9b35d3dc4713a5e72a4da274b55d3d3821a37e5d099e74a647db583a904b").unwrap();
        let sealed = seal_raw(&public, &info, aad, plaintext, &mut FixedRng(ikm)).unwrap();
        assert_eq!(hex::encode(&sealed), hex::encode(&expected));
        assert_eq!(open_raw(&receiver, &info, aad, &expected).unwrap().as_slice(), plaintext);
    }

    #[test]
    fn golden_vector() {
        let mut rng = SeededRng::new("coalition-shuffle/seal");
        let key = ReceiverKey::generate(&mut rng);
        let sealed = seal(&key.public(), Purpose::SshReceipt, &context(), b"receipt", &mut rng).unwrap();
        assert_eq!(hex::encode(&sealed), include_str!("../tests/vectors/seal.hex").trim());
    }

    #[test]
    fn another_purpose_context_or_key_does_not_open() {
        let mut rng = SeededRng::new("context");
        let key = ReceiverKey::generate(&mut rng);
        let sealed = seal(&key.public(), Purpose::SshReceipt, &context(), b"receipt", &mut rng).unwrap();
        assert_eq!(open(&key, Purpose::SshReceipt, &context(), &sealed).unwrap().as_slice(), b"receipt");
        let grant = SealContext { grant: RequestId(UniqueId::from_u8(3)), ..context() };
        let coalition = SealContext { coalition: UniqueId::from_u8(3), ..context() };
        for other in [grant, coalition] {
            assert_eq!(open(&key, Purpose::SshReceipt, &other, &sealed), Err(SealError::NotOpened));
        }
        let domain = open_raw(&key, b"coalition/seal/v1/other", &context().to_bytes(), &sealed);
        assert_eq!(domain, Err(SealError::NotOpened));
        let stranger = ReceiverKey::generate(&mut rng);
        assert_eq!(open(&stranger, Purpose::SshReceipt, &context(), &sealed), Err(SealError::NotOpened));
    }

    #[test]
    fn weak_and_non_canonical_receivers_are_refused() {
        let low_order = [
            "0000000000000000000000000000000000000000000000000000000000000000",
            "0100000000000000000000000000000000000000000000000000000000000000",
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        ];
        for hex in low_order {
            assert_eq!(ReceiverPublic::from_bytes(bytes(hex)), Err(InvalidReceiver::SmallOrder), "{hex}");
        }
        let mut two_bits = *ReceiverKey::from_bytes(&[7; 32]).public().as_bytes();
        two_bits[31] |= 0x80;
        for other in [FIELD_PRIME, [0xff; 32], two_bits] {
            assert_eq!(ReceiverPublic::from_bytes(other), Err(InvalidReceiver::NotCanonical));
        }
        let mut largest = FIELD_PRIME;
        largest[0] -= 2;
        assert!(ReceiverPublic::from_bytes(largest).is_ok());
    }

    #[test]
    fn an_ephemeral_of_small_order_opens_for_nobody() {
        let key = ReceiverKey::from_bytes(&[9; 32]);
        for first in [0, 1] {
            let mut sealed = vec![0; 80];
            sealed[0] = first;
            assert_eq!(open(&key, Purpose::SshReceipt, &context(), &sealed), Err(SealError::NotOpened));
        }
    }

    #[test]
    fn debug_shows_no_key() {
        let key = ReceiverKey::from_bytes(&[0xab; 32]);
        let public = key.public();
        let shown = format!("{key:?} {public:?}");
        assert!(!shown.contains("ab") && !shown.contains(&hex::encode(public.as_bytes())), "{shown}");
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_refused(bit in 0..(8 * (OVERHEAD + 20)), text in any::<[u8; 20]>()) {
            let mut rng = SeededRng::new("flip");
            let key = ReceiverKey::generate(&mut rng);
            let mut sealed = seal(&key.public(), Purpose::SshReceipt, &context(), &text, &mut rng).unwrap();
            prop_assert_eq!(sealed.len(), text.len() + OVERHEAD);
            sealed[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(open(&key, Purpose::SshReceipt, &context(), &sealed), Err(SealError::NotOpened));
        }

        #[test]
        fn arbitrary_bytes_never_open(sealed in proptest::collection::vec(any::<u8>(), 0..200)) {
            let key = ReceiverKey::from_bytes(&[5; 32]);
            prop_assert!(open(&key, Purpose::SshReceipt, &context(), &sealed).is_err());
        }

        #[test]
        fn arbitrary_receivers_never_panic(key in any::<[u8; 32]>()) {
            if let Ok(public) = ReceiverPublic::from_bytes(key) {
                prop_assert_eq!(public.as_bytes(), &key);
                let mut rng = SeededRng::new("any");
                prop_assert!(seal(&public, Purpose::SshReceipt, &context(), b"x", &mut rng).is_ok());
            }
        }
    }
}
