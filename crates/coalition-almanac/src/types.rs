//! Commands and entry bodies of an Almanac.
//!
//! Every encoded value is `0x01` (version) followed by postcard, is bounded in length, and has exactly one accepted
//! encoding: bytes that decode but would not be produced by the encoder are refused.

use coalition::UniqueId;
pub use coalition::codec::{DecodeError, SignatureBytes};
use coalition::codec::{decode, encode};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

/// Entry kind of a tick.
pub const TICK_KIND: &str = "almanac.tick";
/// Entry kind of one member's clock reading, folded into the next tick.
pub const OBSERVATION_KIND: &str = "almanac.observation";
/// Largest encoded command, in bytes.
pub const MAX_COMMAND_BYTES: usize = 128;
/// Largest encoded tick body, in bytes (64 members with full-width readings fit).
pub const MAX_BODY_BYTES: usize = 1_024;
/// Largest number of members in a timestamp vector.
pub const MAX_MEMBERS: usize = 64;

const OBSERVATION_DOMAIN: &[u8] = b"coalition.almanac/observation/1\0";

/// Body of an `almanac.tick` entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlmanacTickBody {
    /// Sequence number; the first tick is 1, each next one is one more.
    pub seq: u64,
    /// For each roster member, in roster order: its newest wall-clock reading (Unix milliseconds) since the tick before.
    /// `None` when the member was not heard. Advisory.
    pub timestamps: Vec<Option<u64>>,
}

/// One member's reading of its own wall clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// Position of the member in the roster, from 0.
    pub member_index: u16,
    /// The member's wall clock, Unix milliseconds.
    pub time_ms: u64,
    /// Signature by the member's key over [`Observation::signed_bytes`]; required when the machine holds keys
    /// ([`crate::Observers::Keys`]), ignored when the host vouches for the index.
    pub signature: Option<SignatureBytes>,
}

impl Observation {
    /// The bytes a member signs: domain ‖ organism ‖ u16 index ‖ u64 time, big endian.
    #[must_use]
    pub fn signed_bytes(organism: &UniqueId, member_index: u16, time_ms: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(OBSERVATION_DOMAIN.len() + 42);
        out.extend_from_slice(OBSERVATION_DOMAIN);
        out.extend_from_slice(organism.as_bytes());
        out.extend_from_slice(&member_index.to_be_bytes());
        out.extend_from_slice(&time_ms.to_be_bytes());
        out
    }

    /// A reading signed with the member's key.
    #[must_use]
    pub fn sign(key: &SigningKey, organism: &UniqueId, member_index: u16, time_ms: u64) -> Self {
        let signature = key.sign(&Self::signed_bytes(organism, member_index, time_ms));
        Self { member_index, time_ms, signature: Some(SignatureBytes::new(&signature.to_bytes())) }
    }

    /// Whether the reading carries a valid signature of `key`.
    #[must_use]
    pub fn is_signed_by(&self, key: &[u8; 32], organism: &UniqueId) -> bool {
        let Some(signature) = self.signature else { return false };
        let Ok(key) = VerifyingKey::from_bytes(key) else { return false };
        let message = Self::signed_bytes(organism, self.member_index, self.time_ms);
        key.verify_strict(&message, &Signature::from_bytes(&signature.to_bytes())).is_ok()
    }
}

/// What may be written to an Almanac.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AlmanacCommand {
    /// A member reports its wall clock for the next tick's vector.
    Observe(Observation),
}

impl AlmanacCommand {
    /// The encoded command, as handed to the committee.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    /// Parses a command.
    ///
    /// # Errors
    /// [`DecodeError`] when too long, of another version, damaged, or not in canonical form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode(bytes, MAX_COMMAND_BYTES)
    }
}

impl AlmanacTickBody {
    /// The encoded entry body.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    /// Parses an entry body.
    ///
    /// # Errors
    /// [`DecodeError`] when too long, of another version, damaged, or not in canonical form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode(bytes, MAX_BODY_BYTES)
    }
}

impl Observation {
    /// The encoded body of an `almanac.observation` entry.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    /// Parses the body of an `almanac.observation` entry.
    ///
    /// # Errors
    /// [`DecodeError`] when too long, of another version, damaged, or not in canonical form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode(bytes, MAX_COMMAND_BYTES)
    }
}
