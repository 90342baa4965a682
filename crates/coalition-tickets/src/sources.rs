//! What a verifier looks up about a peer, behind seams: seats, reputation cards, settlements.
//!
//! Facts that are looked up come with the time until which they may be relied on; the door asks again then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use coalition::{EvidencePointer, UniqueId};

/// A peer's public key.
pub type PeerKey = [u8; 32];

/// Who sits in which committee.
pub trait Seats: Send + Sync + 'static {
    /// Whether this organism's committee is known at all.
    fn knows(&self, organism: UniqueId) -> bool;
    /// Until when, Unix seconds, a peer's seat may be relied on; `None` without one. `u64::MAX`: until told otherwise.
    fn seated_until_s(&self, organism: UniqueId, peer: &PeerKey) -> Option<u64>;
}

/// What a reputation organism says of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Card {
    /// Its score, parts per million.
    pub score_ppm: u32,
    /// The first second, Unix, at which the card is no longer current.
    pub until_s: u64,
}

/// Reads reputation cards.
pub trait Reputation: Send + Sync + 'static {
    /// The newest card of a peer.
    fn card(&self, organism: UniqueId, peer: &PeerKey) -> Option<Card>;
}

/// What a market committed about a peer's settlement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settlement {
    /// Whose settlement it is.
    pub peer: PeerKey,
    /// The first second, Unix, that it no longer covers.
    pub until_s: u64,
}

/// Reads settlements.
pub trait Settlements: Send + Sync + 'static {
    /// The settlement committed at a certified entry; `None` when there is none there, or the digest is another's.
    fn settlement(&self, pointer: &EvidencePointer) -> Option<Settlement>;
}

/// Seats as published rosters name them.
#[derive(Debug, Clone, Default)]
pub struct Rosters(BTreeMap<UniqueId, BTreeSet<PeerKey>>);

impl Rosters {
    /// The same with the roster of an organism.
    #[must_use]
    pub fn with(mut self, organism: UniqueId, roster: &coalition::Roster) -> Self {
        self.0.insert(organism, roster.members().iter().map(|member| member.peer_id).collect());
        self
    }
}

impl Seats for Rosters {
    fn knows(&self, organism: UniqueId) -> bool {
        self.0.contains_key(&organism)
    }

    fn seated_until_s(&self, organism: UniqueId, peer: &PeerKey) -> Option<u64> {
        self.0.get(&organism)?.contains(peer).then_some(u64::MAX)
    }
}

/// Cards and settlements that somebody puts here: a fold of the organisms that commit them, or a test.
#[derive(Debug, Default)]
pub struct Ledger {
    cards: Mutex<BTreeMap<(UniqueId, PeerKey), Card>>,
    settlements: Mutex<BTreeMap<(UniqueId, u64), (UniqueId, Settlement)>>,
}

impl Ledger {
    /// Takes a card in the place of the one before.
    pub fn set_card(&self, organism: UniqueId, peer: PeerKey, card: Card) {
        lock(&self.cards).insert((organism, peer), card);
    }

    /// Takes a settlement.
    pub fn set_settlement(&self, pointer: &EvidencePointer, settlement: Settlement) {
        lock(&self.settlements).insert((pointer.organism, pointer.index), (pointer.digest, settlement));
    }
}

impl Reputation for Ledger {
    fn card(&self, organism: UniqueId, peer: &PeerKey) -> Option<Card> {
        lock(&self.cards).get(&(organism, *peer)).copied()
    }
}

impl Settlements for Ledger {
    fn settlement(&self, pointer: &EvidencePointer) -> Option<Settlement> {
        let settlements = lock(&self.settlements);
        let (digest, settlement) = settlements.get(&(pointer.organism, pointer.index))?;
        (*digest == pointer.digest).then_some(*settlement)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
