//! The market as the fold of its log. One fold for everybody: the committee's machine decides on it, readers look at it.

mod apply;
mod later;
mod records;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use coalition::{ProviderId, RequestId, UniqueId};

pub use apply::FoldError;
pub use later::{AnsweredExtension, GrantExtras, InventoryEntry, InventoryRecord, ReportRecord, WaitingExtension};
pub use records::{
    CardRecord, ClearingEntry, GrantRecord, GrantStage, Held, LastClearing, LogEntry, PlatformRecord, ProviderRecord,
    RequestRecord, RequestStage, Retention,
};

use crate::config::ComputeParams;
use crate::types::{Attestation, OfferName, ProviderCard};

/// A moment as the committee sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Sequence of the last Almanac tick, 0 before the first.
    pub tick: u64,
    /// Committee time, Unix milliseconds.
    pub time_ms: u64,
}

/// How many times its maximum age a card must reach before it is removed from the market altogether.
pub const STALE_FACTOR: u64 = 8;

/// The market: every card, request and grant that matters now, and as much history as [`Retention`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarketState {
    organism: UniqueId,
    params: ComputeParams,
    retention: Retention,
    providers: BTreeMap<ProviderId, ProviderRecord>,
    requests: BTreeMap<RequestId, RequestRecord>,
    /// Open requests in order of admission: entry index, id, and the key that signed.
    open: BTreeMap<u64, (RequestId, [u8; 32])>,
    grants: BTreeMap<RequestId, GrantRecord>,
    live: BTreeSet<RequestId>,
    held: BTreeMap<ProviderId, BTreeMap<OfferName, Held>>,
    finished: VecDeque<RequestId>,
    clearings: VecDeque<ClearingEntry>,
    last_clearing: Option<LastClearing>,
    next_index: Option<u64>,
}

impl MarketState {
    /// An empty market of the Compute organism `organism`.
    #[must_use]
    pub const fn new(organism: UniqueId, params: ComputeParams, retention: Retention) -> Self {
        Self {
            organism,
            params,
            retention,
            providers: BTreeMap::new(),
            requests: BTreeMap::new(),
            open: BTreeMap::new(),
            grants: BTreeMap::new(),
            live: BTreeSet::new(),
            held: BTreeMap::new(),
            finished: VecDeque::new(),
            clearings: VecDeque::new(),
            last_clearing: None,
            next_index: None,
        }
    }

    /// The organism whose log this folds.
    #[must_use]
    pub const fn organism(&self) -> UniqueId {
        self.organism
    }

    /// The module's parameters.
    #[must_use]
    pub const fn params(&self) -> &ComputeParams {
        &self.params
    }

    /// Known providers by id. A provider without a card has left, but grants or a recent card of it still matter.
    #[must_use]
    pub const fn providers(&self) -> &BTreeMap<ProviderId, ProviderRecord> {
        &self.providers
    }

    /// Remembered requests by id.
    #[must_use]
    pub const fn requests(&self) -> &BTreeMap<RequestId, RequestRecord> {
        &self.requests
    }

    /// Open requests in order of admission.
    pub fn open_requests(&self) -> impl Iterator<Item = &RequestRecord> {
        self.open.values().filter_map(|(id, _)| self.requests.get(id))
    }

    /// Number of open requests.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.open.len()
    }

    /// Number of open requests signed by `key`.
    #[must_use]
    pub fn open_count_of(&self, key: &[u8; 32]) -> usize {
        self.open.values().filter(|(_, signer)| signer == key).count()
    }

    /// Remembered grants by id.
    #[must_use]
    pub const fn grants(&self) -> &BTreeMap<RequestId, GrantRecord> {
        &self.grants
    }

    /// Live grants, in order of id.
    pub fn live_grants(&self) -> impl Iterator<Item = &GrantRecord> {
        self.live.iter().filter_map(|id| self.grants.get(id))
    }

    /// Live grants of one provider, in order of id.
    pub fn live_grants_of(&self, provider: ProviderId) -> impl Iterator<Item = &GrantRecord> {
        self.live_grants().filter(move |record| record.grant.provider == provider)
    }

    /// A provider's last inventory, if it has stated one.
    #[must_use]
    pub fn inventory(&self, provider: &ProviderId) -> Option<&InventoryEntry> {
        self.providers.get(provider)?.inventory.last.as_ref()
    }

    /// Index of the newest entry that changed what an inventory of the provider is about.
    #[must_use]
    pub fn inventory_changed_at(&self, provider: &ProviderId) -> u64 {
        let granted = self.live_grants_of(*provider).map(|record| record.pointer.index);
        let known = self.providers.get(provider).map(|record| &record.inventory);
        let stated = known.and_then(|known| known.last.as_ref()).map(|last| last.pointer.index);
        granted.chain(stated).chain(known.map(|known| known.last_ending)).max().unwrap_or(0)
    }

    /// Capacity that live grants hold on an offer.
    #[must_use]
    pub fn held(&self, provider: &ProviderId, offer: &OfferName) -> Held {
        self.held_of(provider).and_then(|offers| offers.get(offer)).copied().unwrap_or_default()
    }

    /// Capacity that live grants hold on a provider's offers; `None` when it has no live grant.
    #[must_use]
    pub fn held_of(&self, provider: &ProviderId) -> Option<&BTreeMap<OfferName, Held>> {
        self.held.get(provider)
    }

    /// Names of the provider's offers that live grants are on.
    pub fn offers_in_use(&self, provider: &ProviderId) -> impl Iterator<Item = &OfferName> {
        self.held_of(provider).into_iter().flat_map(BTreeMap::keys)
    }

    /// Kept clearing records, oldest first.
    pub fn clearings(&self) -> impl DoubleEndedIterator<Item = &ClearingEntry> {
        self.clearings.iter()
    }

    /// The last clearing, if any.
    #[must_use]
    pub const fn last_clearing(&self) -> Option<LastClearing> {
        self.last_clearing
    }

    /// Earliest committee time of the next clearing round.
    #[must_use]
    pub fn next_round_ms(&self) -> u64 {
        self.last_clearing.map_or(0, |last| last.time_ms.saturating_add(u64::from(self.params.round_ms)))
    }

    /// Age of a card in ticks, and in milliseconds since it was posted.
    #[must_use]
    pub const fn card_age(&self, card: &CardRecord, at: At) -> (u64, u64) {
        (at.tick.saturating_sub(card.fresh_tick), at.time_ms.saturating_sub(card.posted_ms))
    }

    /// Whether a card is at most `factor` times the maximum age old, by ticks and by committee time. Both count: ticks
    /// that are missed while the committee stands still do not keep a card young.
    #[must_use]
    pub fn is_card_within(&self, card: &CardRecord, at: At, factor: u64) -> bool {
        let max_ticks = u64::from(self.params.card_max_age_ticks).saturating_mul(factor);
        let (ticks, ms) = self.card_age(card, at);
        ticks <= max_ticks && ms <= self.params.ms_for_ticks(max_ticks)
    }

    /// The attestation a card names, if the market holds it and it still counts.
    #[must_use]
    pub fn attestation_of(&self, card: &ProviderCard, at: At) -> Option<&Attestation> {
        let held = self.providers.get(&card.provider_id)?.platform.attestation.as_ref()?;
        (card.attestation == Some(held.digest) && at.time_ms < held.expires_ms).then_some(held)
    }

    /// Committee time at which a live grant ends for want of a final log.
    #[must_use]
    pub fn grant_end_ms(&self, record: &GrantRecord) -> u64 {
        let grace = self.params.ms_for_ticks(u64::from(self.params.grant_grace_ticks));
        record.grant.valid_to_ms.saturating_add(grace)
    }

    /// Whether nothing about a provider matters any more: no card, no live grant, no attestation that counts, and its last
    /// statement is too old to be played again.
    #[must_use]
    pub fn is_provider_forgettable(&self, record: &ProviderRecord, at: At) -> bool {
        let stated = record.inventory.last.as_ref().map_or(0, |last| last.stated.window.to.0);
        let last_said = record.last_refreshed.max(record.platform.asked_at).max(stated);
        let replayable_until = last_said.saturating_add(u64::from(self.params.card_max_age_ticks));
        let attested = record.platform.attestation.as_ref().is_some_and(|held| at.time_ms < held.expires_ms);
        record.card.is_none() && record.live == 0 && !attested && at.tick > replayable_until
    }
}
