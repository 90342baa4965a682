//! What the targets share: one committee with known keys, and a way to damage sound bytes a little.

use coalition::{Roster, RosterMember, UniqueId};
use coalition_log::{checkpoint::RosterVerifier, handover::RosterChain};
use ed25519_dalek::SigningKey;

/// The organism of everything a target verifies.
#[must_use]
pub fn organism() -> UniqueId {
    UniqueId::from_bytes([0xab; 32])
}

/// The checkpoint key of a member.
#[must_use]
pub fn key(member: u8) -> SigningKey {
    SigningKey::from_bytes(&[member + 1; 32])
}

/// Four members, as in the golden evidence.
///
/// # Panics
/// Never: the keys differ.
#[must_use]
pub fn roster() -> Roster {
    let public = |seed: u8| SigningKey::from_bytes(&[seed; 32]).verifying_key().to_bytes();
    let member = |i: u8| RosterMember {
        name: format!("m{i}"),
        checkpoint_key: public(i + 1),
        consensus_key: public(i + 101),
        peer_id: public(i + 201),
    };
    Roster::new((0..4).map(member).collect()).expect("distinct keys")
}

/// A verifier for [`roster`].
///
/// # Panics
/// Never: the roster is usable.
#[must_use]
pub fn verifier() -> RosterVerifier {
    RosterVerifier::new(organism(), &roster()).expect("a usable roster")
}

/// Who certifies which size: [`roster`] alone, before any handover.
///
/// # Panics
/// Never: the roster is usable.
#[must_use]
pub fn chain() -> RosterChain {
    RosterChain::new(organism(), &roster()).expect("a usable roster")
}

/// Sound bytes with the edits that `data` asks for, so that checksums in front do not hide what is behind: each four bytes are
/// a kind, a place and a value. Kinds set, insert, remove and cut.
#[must_use]
pub fn damaged(sound: &[u8], data: &[u8]) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    for edit in data.chunks_exact(4) {
        let at = usize::from(u16::from_be_bytes([edit[1], edit[2]]));
        match (edit[0] % 4, at < bytes.len()) {
            (0, true) => bytes[at] = edit[3],
            (1, true) => bytes.insert(at, edit[3]),
            (2, true) => drop(bytes.remove(at)),
            (3, true) => bytes.truncate(at),
            _ => bytes.push(edit[3]),
        }
    }
    bytes
}
