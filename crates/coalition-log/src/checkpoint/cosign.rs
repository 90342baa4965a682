//! Making cosignatures: key names and ids, the signed message, and the key that signs.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coalition::UniqueId;
use ed25519_dalek::{Signer as _, SigningKey};
use sha2::{Digest, Sha256};

use super::{COSIGNATURE_TYPE, Checkpoint, SignatureLine, origin};

/// Largest timestamp a cosignature may carry.
pub(super) const MAX_TIMESTAMP: u64 = i64::MAX as u64;

/// Key name of a member as cosigner of an organism's log: `<origin>/<member name>`.
pub fn cosigner_name(organism: UniqueId, member: &str) -> String {
    format!("{}/{member}", origin(organism))
}

/// C2SP key id of an Ed25519 cosigner: SHA-256(name ‖ `0x0A` ‖ `0x04` ‖ key), first four bytes.
pub fn key_id(name: &str, public_key: &[u8; 32]) -> [u8; 4] {
    let digest =
        Sha256::new().chain_update(name).chain_update([0x0A, COSIGNATURE_TYPE]).chain_update(public_key).finalize();
    [digest[0], digest[1], digest[2], digest[3]]
}

/// C2SP verifier key: `<name>+<key id in hex>+<base64 of 0x04 and the key>`, as third-party tools read it.
pub fn vkey(name: &str, public_key: &[u8; 32]) -> String {
    let mut typed = [COSIGNATURE_TYPE; 33];
    typed[1..].copy_from_slice(public_key);
    format!("{name}+{}+{}", hex::encode(key_id(name, public_key)), STANDARD.encode(typed))
}

/// The text a `cosignature/v1` signs.
pub(super) fn signed_message(checkpoint: &Checkpoint, timestamp_s: u64) -> String {
    format!("cosignature/v1\ntime {timestamp_s}\n{}", checkpoint.body())
}

/// A member's checkpoint key for one organism's log. The key is wiped from memory on drop and never printed.
pub struct Cosigner {
    organism: UniqueId,
    name: String,
    key: SigningKey,
}

impl Cosigner {
    /// The cosigner `member` (its name in the roster) of the log of `organism`.
    pub fn new(organism: UniqueId, member: &str, key: SigningKey) -> Self {
        Self { organism, name: cosigner_name(organism, member), key }
    }

    /// Key name in signature lines.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The organism whose log this cosigner signs.
    pub fn organism(&self) -> UniqueId {
        self.organism
    }

    /// The public key, as in the roster's `checkpoint_key`.
    pub fn public_key(&self) -> [u8; 32] {
        self.key.verifying_key().to_bytes()
    }

    /// Cosigns a head of this cosigner's log; `None` when `checkpoint` belongs to another organism.
    ///
    /// A member must not call this by itself: [`crate::store::Store::cosign`] does, after it has recorded durably what
    /// is about to be signed, so that no crash can make the member sign two histories. `timestamp_s` is POSIX seconds.
    pub fn sign(&self, checkpoint: &Checkpoint, timestamp_s: u64) -> Option<SignatureLine> {
        if checkpoint.organism != self.organism {
            return None;
        }
        let timestamp_s = timestamp_s.min(MAX_TIMESTAMP);
        let signature = self.key.sign(signed_message(checkpoint, timestamp_s).as_bytes());
        let mut bytes = timestamp_s.to_be_bytes().to_vec();
        bytes.extend_from_slice(&signature.to_bytes());
        Some(SignatureLine {
            name: self.name.clone(),
            key_id: key_id(&self.name, &self.public_key()),
            signature: bytes,
        })
    }
}

impl fmt::Debug for Cosigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cosigner({}, key redacted)", self.name)
    }
}
