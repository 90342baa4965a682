//! What a verifier looks up about a peer, behind seams: seats, reputation cards, settlements.
//!
//! Facts that are looked up come with the time until which they may be relied on; the door asks again then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError, RwLock};

use coalition::{CommitteeContent, EvidencePointer, ModuleKind, PublishedConfig, PublishedOrganism, Roster, UniqueId};

/// A peer's public key.
pub type PeerKey = [u8; 32];

/// How long an answer that names no end is relied on, seconds; then it is asked for again.
pub const ENDLESS_FOR_S: u64 = 600;

/// Who sits in which committee.
pub trait Seats: Send + Sync + 'static {
    /// Whether this organism's committee is known at all.
    fn knows(&self, organism: UniqueId) -> bool;
    /// Until when, Unix seconds, a peer's seat may be relied on; `None` without one. `u64::MAX`: until told otherwise, which
    /// is relied on for [`ENDLESS_FOR_S`].
    fn seated_until_s(&self, organism: UniqueId, peer: &PeerKey) -> Option<u64>;
    /// Another number whenever seats were given or taken. What a door remembers under an earlier one counts no more.
    fn edition(&self) -> u64 {
        0
    }
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

/// Seats as published rosters name them: those of the configs, for ever. Committees that hand over need [`Committees`].
#[derive(Debug, Clone, Default)]
pub struct Rosters(BTreeMap<UniqueId, BTreeSet<PeerKey>>);

impl Rosters {
    /// The rosters of everything a config publishes.
    #[must_use]
    pub fn of_config(config: &PublishedConfig) -> Self {
        published(config).fold(Self::default(), Self::with_organism)
    }

    /// The same with the roster of an organism.
    #[must_use]
    pub fn with(mut self, organism: UniqueId, roster: &Roster) -> Self {
        self.0.insert(organism, peers(roster));
        self
    }

    /// The same with the roster that an organism publishes, if it has a committee.
    pub(crate) fn with_organism(self, organism: &PublishedOrganism) -> Self {
        match CommitteeContent::from_bytes(&organism.content) {
            Ok(committee) => self.with(organism.id, &committee.roster),
            Err(_) => self,
        }
    }
}

/// The modules and organisms of a config, where it has their preimages.
pub(crate) fn published(config: &PublishedConfig) -> impl Iterator<Item = &PublishedOrganism> {
    let modules = ModuleKind::ALL.into_iter().filter_map(|kind| config.module(kind));
    modules.chain(config.organism_refs().filter_map(|reference| config.organism(&reference.role)))
}

fn peers(roster: &Roster) -> BTreeSet<PeerKey> {
    roster.members().iter().map(|member| member.peer_id).collect()
}

impl Seats for Rosters {
    fn knows(&self, organism: UniqueId) -> bool {
        self.0.contains_key(&organism)
    }

    fn seated_until_s(&self, organism: UniqueId, peer: &PeerKey) -> Option<u64> {
        self.0.get(&organism)?.contains(peer).then_some(u64::MAX)
    }
}

/// Seats that change hands. Whoever follows the committees puts each new roster here; doors and streams that ask it take
/// notice: a door at the peer's next write, a stream of the substrate within [`ENDLESS_FOR_S`].
#[derive(Debug, Default)]
pub struct Committees {
    seats: RwLock<(Rosters, u64)>,
}

impl Committees {
    /// Begins with the rosters of everything a config publishes.
    #[must_use]
    pub fn of_config(config: &PublishedConfig) -> Self {
        Self { seats: RwLock::new((Rosters::of_config(config), 0)) }
    }

    /// Seats a roster in the place of the one before, as after a handover.
    pub fn seat(&self, organism: UniqueId, roster: &Roster) {
        self.change(|rosters| rosters.0.insert(organism, peers(roster)));
    }

    /// Forgets a committee, as after a retirement. Nobody has a seat in it then.
    pub fn dissolve(&self, organism: UniqueId) {
        self.change(|rosters| rosters.0.remove(&organism));
    }

    fn change(&self, change: impl FnOnce(&mut Rosters) -> Option<BTreeSet<PeerKey>>) {
        let mut seats = self.seats.write().unwrap_or_else(PoisonError::into_inner);
        let (rosters, edition) = &mut *seats;
        change(rosters);
        *edition = edition.wrapping_add(1);
    }

    fn read<T>(&self, look: impl FnOnce(&Rosters, u64) -> T) -> T {
        let seats = self.seats.read().unwrap_or_else(PoisonError::into_inner);
        look(&seats.0, seats.1)
    }
}

impl Seats for Committees {
    fn knows(&self, organism: UniqueId) -> bool {
        self.read(|rosters, _| rosters.knows(organism))
    }

    fn seated_until_s(&self, organism: UniqueId, peer: &PeerKey) -> Option<u64> {
        self.read(|rosters, _| rosters.seated_until_s(organism, peer))
    }

    fn edition(&self) -> u64 {
        self.read(|_, edition| edition)
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
