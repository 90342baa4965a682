//! Starting an engine above batches that nobody keeps any more: a batch with the certificate that a quorum finalised it.
//!
//! Whoever starts from one must have the effects of every batch before it, and need not believe anybody: the certificate is
//! checked against the committee's keys, and the batch's height and time are part of what it certifies.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use commonware_codec::{Decode as _, Encode as _};
use commonware_consensus::Epochable as _;
use commonware_consensus::simplex::scheme::ed25519::Scheme;
use commonware_consensus::simplex::types::Finalization;
use commonware_consensus::types::Epoch;
use commonware_cryptography::Digestible as _;
use commonware_cryptography::certificate::Verifier as _;
use commonware_cryptography::ed25519::PublicKey;
use commonware_cryptography::sha256::Digest;
use commonware_parallel::Sequential;
use commonware_utils::ordered::Set;
use rand_core_10::{TryCryptoRng, TryRng};
use thiserror::Error;

use crate::block::{BatchBlock, BlockLimits};

/// Why bytes are no anchor for a committee's engine.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AnchorError {
    /// Not what an anchor looks like.
    #[error("the anchor is malformed: {0}")]
    Malformed(&'static str),
    /// The certificate is of another batch.
    #[error("the anchor's certificate is not of its batch")]
    OtherBatch,
    /// No quorum of this committee signed it.
    #[error("the anchor at height {height} is not certified by a quorum of the committee")]
    NotCertified {
        /// Height of the batch.
        height: u64,
    },
    /// The config does not describe a committee.
    #[error("the config has no usable keys to check an anchor with")]
    NoCommittee,
}

/// What the votes of a committee sign besides their content.
pub(crate) fn vote_namespace(fingerprint: &[u8; 32]) -> Vec<u8> {
    [b"coalition-order/1".as_slice(), fingerprint].concat()
}

/// A batch that a quorum of one committee finalised. Exists only as the result of verification, by
/// [`OrderConfig::verify_anchor`](crate::OrderConfig::verify_anchor).
#[derive(Clone)]
pub struct Anchor {
    height: u64,
    time_ms: u64,
    committee: [u8; 32],
    finalization: Arc<Finalization<Scheme, Digest>>,
}

impl std::fmt::Debug for Anchor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Anchor").field("height", &self.height).field("time_ms", &self.time_ms).finish_non_exhaustive()
    }
}

impl Anchor {
    /// Checks what somebody served against a committee's fingerprint, keys and limits; `secret` is known to this member alone.
    pub(crate) fn check(
        bytes: &[u8],
        committee: [u8; 32],
        keys: Set<PublicKey>,
        limits: &BlockLimits,
        secret: &[u8; 32],
    ) -> Result<Self, AnchorError> {
        let scheme = Scheme::verifier(&vote_namespace(&committee), keys);
        let (finalization, block) = decode(bytes, &scheme, limits)?;
        let (height, time_ms) = (block.height, block.time_ms);
        if finalization.proposal.payload != block.digest() || finalization.epoch() != Epoch::zero() || height == 0 {
            return Err(AnchorError::OtherBatch);
        }
        // Signatures are verified as one, with factors that nobody else can foresee.
        let mut seed = blake3::Hasher::new_keyed(secret);
        seed.update(bytes);
        if !finalization.verify(&mut Factors(seed.finalize_xof()), &scheme, &Sequential) {
            return Err(AnchorError::NotCertified { height });
        }
        Ok(Self { height, time_ms, committee, finalization: Arc::new(finalization) })
    }

    /// Height of the batch: the first that an engine which starts here delivers.
    #[must_use]
    pub const fn height(&self) -> u64 {
        self.height
    }

    /// The batch's time, in milliseconds since the Unix epoch.
    #[must_use]
    pub const fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// Fingerprint of the committee that finalised it.
    pub(crate) const fn committee(&self) -> &[u8; 32] {
        &self.committee
    }

    pub(crate) fn finalization(&self) -> Finalization<Scheme, Digest> {
        Finalization::clone(&self.finalization)
    }
}

/// An anchor's bytes: `u32 length ‖ certificate ‖ batch`, big endian, the parts as they travel in the engine.
pub(crate) fn encode(finalization: &Finalization<Scheme, Digest>, block: &BatchBlock) -> Vec<u8> {
    let certificate = finalization.encode();
    let length = u32::try_from(certificate.len()).expect("a certificate has one signature for each of 64 members");
    [&length.to_be_bytes()[..], &certificate, &block.encode()].concat()
}

fn decode(
    bytes: &[u8],
    scheme: &Scheme,
    limits: &BlockLimits,
) -> Result<(Finalization<Scheme, Digest>, BatchBlock), AnchorError> {
    let cut = AnchorError::Malformed("it is cut short");
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or(cut.clone())?;
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    let (certificate, block) = rest.split_at_checked(length).ok_or(cut)?;
    let certificate = Finalization::decode_cfg(Bytes::copy_from_slice(certificate), &scheme.certificate_codec_config());
    let certificate = certificate.map_err(|_| AnchorError::Malformed("its certificate is none"))?;
    let block = BatchBlock::decode_cfg(Bytes::copy_from_slice(block), limits);
    Ok((certificate, block.map_err(|_| AnchorError::Malformed("its batch is none"))?))
}

/// Random bytes from a keyed hash.
struct Factors(blake3::OutputReader);

impl TryRng for Factors {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.0.fill(bytes);
        Ok(())
    }
}

impl TryCryptoRng for Factors {}

#[cfg(test)]
mod tests {
    use super::*;
    use commonware_consensus::simplex::types::{Finalize, Proposal};
    use commonware_consensus::types::{Round, View};
    use commonware_cryptography::Signer as _;
    use commonware_cryptography::ed25519::PrivateKey;
    use commonware_utils::iter::NonEmpty;

    const LIMITS: BlockLimits = BlockLimits { max_bytes: 200, max_commands: 10, max_command_bytes: 60 };
    const COMMITTEE: [u8; 32] = [5; 32];

    fn keys() -> Set<PublicKey> {
        Set::from_iter_dedup((0..4).map(|seed| PrivateKey::from_seed(seed).public_key()))
    }

    /// What three of four members finalised.
    fn anchor(height: u64) -> Vec<u8> {
        let commands = vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")];
        let block = BatchBlock { view: 9, height, time_ms: 1_234, commands, ..BatchBlock::genesis([1; 32], 0) };
        let proposal = Proposal::new(Round::new(Epoch::zero(), View::new(9)), View::new(8), block.digest());
        let scheme = |seed| Scheme::signer(&vote_namespace(&COMMITTEE), keys(), PrivateKey::from_seed(seed)).unwrap();
        let mut votes = (0..3).map(|seed| Finalize::sign(&scheme(seed), proposal.clone()).unwrap());
        let first = votes.next().unwrap();
        let votes = NonEmpty::new(first, votes);
        encode(&Finalization::from_owned_finalizes(&scheme(0), votes, &Sequential).unwrap(), &block)
    }

    fn check(bytes: &[u8]) -> Result<Anchor, AnchorError> {
        Anchor::check(bytes, COMMITTEE, keys(), &LIMITS, &[6; 32])
    }

    #[test]
    fn golden() {
        let bytes = anchor(7);
        let anchor = check(&bytes).unwrap();
        assert_eq!((anchor.height(), anchor.time_ms(), anchor.committee()), (7, 1_234, &COMMITTEE));
        assert_eq!(bytes.len(), 315);
        assert_eq!(
            blake3::hash(&bytes).to_string(),
            "8d39d1915bc6ceb5d20788a37f1bd7495512694b6a0adacef2ef57b1398a43ab"
        );
    }

    #[test]
    fn what_was_not_finalised_is_refused() {
        let bytes = anchor(7);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(check(&changed).is_err(), "byte {at}");
            assert!(check(&bytes[..at]).is_err(), "cut at {at}");
        }
        assert!(check(&[&bytes[..], &[0]].concat()).is_err(), "longer");
        assert_eq!(check(&anchor(0)).unwrap_err(), AnchorError::OtherBatch, "the beginning needs no certificate");
        let other = Anchor::check(&bytes, [4; 32], keys(), &LIMITS, &[6; 32]).unwrap_err();
        assert_eq!(other, AnchorError::NotCertified { height: 7 });
    }
}
