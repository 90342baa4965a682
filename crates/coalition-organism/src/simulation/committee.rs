//! Keys, rosters and verifiers, made once.

use std::sync::OnceLock;

use coalition::{Roster, RosterMember, UniqueId};
use coalition_log::checkpoint::{Cosigner, RosterVerifier};
use coalition_log::handover::RosterChain;
use ed25519_dalek::SigningKey;

use crate::epochs::Epochs;

/// A roster and everything derived from it.
pub(super) struct Committee {
    pub(super) keys: Vec<SigningKey>,
    pub(super) roster: Roster,
    pub(super) organisms: [UniqueId; 2],
    pub(super) verifiers: [RosterVerifier; 2],
    pub(super) chains: [RosterChain; 2],
}

impl Committee {
    /// The committee of 4 or 7.
    pub(super) fn of(members: usize) -> &'static Self {
        static FOUR: OnceLock<Committee> = OnceLock::new();
        static SEVEN: OnceLock<Committee> = OnceLock::new();
        let slot = if members == 4 { &FOUR } else { &SEVEN };
        slot.get_or_init(|| Self::make(members))
    }

    fn make(members: usize) -> Self {
        let keys: Vec<SigningKey> = (0..members).map(|member| key(1, member)).collect();
        let public = |domain, member| key(domain, member).verifying_key().to_bytes();
        let roster = (0..members).map(|member| RosterMember {
            name: format!("m{member}"),
            checkpoint_key: public(1, member),
            consensus_key: public(2, member),
            peer_id: public(3, member),
        });
        let roster = Roster::new(roster.collect()).unwrap();
        let organisms = [UniqueId::hash(b"simulated organism 0"), UniqueId::hash(b"simulated organism 1")];
        let verifiers = organisms.map(|organism| RosterVerifier::new(organism, &roster).unwrap());
        let chains = organisms.map(|organism| RosterChain::new(organism, &roster).unwrap());
        Self { keys, roster, organisms, verifiers, chains }
    }

    /// The position of an organism's id.
    pub(super) fn organism(&self, id: UniqueId) -> Option<usize> {
        self.organisms.iter().position(|known| *known == id)
    }

    /// Epoch 0 of an organism.
    pub(super) fn epochs(&self, organism: usize) -> Epochs {
        Epochs::new(self.organisms[organism], &self.roster, self.organisms.into()).unwrap()
    }

    pub(super) fn cosigner(&self, member: usize, organism: usize) -> Cosigner {
        Cosigner::new(self.organisms[organism], &format!("m{member}"), self.keys[member].clone())
    }
}

pub(super) fn key(domain: u8, member: usize) -> SigningKey {
    let mut seed = [domain; 32];
    seed[0] = u8::try_from(member).unwrap();
    SigningKey::from_bytes(&seed)
}
