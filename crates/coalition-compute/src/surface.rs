//! What readers see: the same fold the committee decides on, with more history, and the questions people ask of it.

use coalition::{ProviderId, RequestId, UniqueId};
use coalition_log::{Contains, Entry, FromState, Persist, SnapshotError};
use serde::{Deserialize, Serialize};

use crate::config::ComputeParams;
use crate::entries::MarketEntry;
use crate::state::{
    At, CardRecord, ClearingEntry, FoldError, GrantRecord, InventoryEntry, LogEntry, MarketState, RequestRecord,
    RequestStage, Retention,
};
use crate::types::{Attestation, BondCount, Offer, ProviderCard, RequestEnd};

/// The Compute module's public surface, folded from its certified log.
#[derive(Clone, Debug)]
pub struct MarketView {
    state: MarketState,
}

/// Capacity that is free on one offer: totals of the card less what live grants hold, never below zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreeOffer {
    /// The offer as declared.
    pub offer: Offer,
    /// Free CPU, in thousandths of a core.
    pub cpu_millicores: u64,
    /// Free memory, in MiB.
    pub ram_mib: u64,
    /// Free instances.
    pub instances: u64,
}

/// A card with what a buyer wants to know about it now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardView {
    /// The card.
    pub card: ProviderCard,
    /// Free capacity per offer, in the card's order.
    pub free: Vec<FreeOffer>,
    /// Live grants.
    pub bonds: BondCount,
    /// Age in Almanac ticks.
    pub age_ticks: u64,
    /// Age in milliseconds of committee time.
    pub age_ms: u64,
    /// Whether it is too old to win anything.
    pub stale: bool,
    /// The attestation it names, while it counts: what the committee verified.
    pub attestation: Option<Attestation>,
}

/// Where a request stands, for somebody who waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestStatus<'a> {
    /// Not in the log as far as it was read, or forgotten.
    Unknown,
    /// Waiting for clearing.
    Open(&'a RequestRecord),
    /// Granted; the record says how that goes or went.
    Granted(&'a GrantRecord),
    /// Ended without a further grant.
    Ended(&'a RequestEnd),
}

impl MarketView {
    /// An empty view of the Compute organism `organism`, keeping [`Retention::READER`].
    #[must_use]
    pub const fn new(organism: UniqueId, params: ComputeParams) -> Self {
        Self::with_retention(organism, params, Retention::READER)
    }

    /// An empty view keeping as much history as `retention` says.
    #[must_use]
    pub const fn with_retention(organism: UniqueId, params: ComputeParams, retention: Retention) -> Self {
        Self { state: MarketState::new(organism, params, retention) }
    }

    /// Folds one verified entry and returns it decoded; `None` when its kind is not this module's.
    ///
    /// # Errors
    /// [`FoldError`] when the entry contradicts the log before it; the view is unchanged then.
    pub fn apply(&mut self, entry: &Entry) -> Result<Option<MarketEntry>, FoldError> {
        self.state.apply(entry)
    }

    /// The whole state.
    #[must_use]
    pub const fn state(&self) -> &MarketState {
        &self.state
    }

    /// Every card in the market, by provider id, as it stands at `at`.
    pub fn cards(&self, at: At) -> impl Iterator<Item = CardView> {
        let records = self.state.providers().iter();
        records.filter_map(move |(id, record)| Some(self.card_view(*id, record.live, record.card.as_ref()?, at)))
    }

    /// One provider's card as it stands at `at`.
    #[must_use]
    pub fn card(&self, provider: &ProviderId, at: At) -> Option<CardView> {
        let record = self.state.providers().get(provider)?;
        Some(self.card_view(*provider, record.live, record.card.as_ref()?, at))
    }

    fn card_view(&self, provider: ProviderId, live: u32, record: &CardRecord, at: At) -> CardView {
        let free = record.card.offers.iter().map(|offer| {
            let held = self.state.held(&provider, &offer.name);
            let total = &offer.capabilities;
            FreeOffer {
                cpu_millicores: u64::from(total.max_cpu_millicores).saturating_sub(held.cpu_millicores),
                ram_mib: u64::from(total.max_ram_mib).saturating_sub(held.ram_mib),
                instances: u64::from(total.max_instances).saturating_sub(held.instances),
                offer: offer.clone(),
            }
        });
        let (age_ticks, age_ms) = self.state.card_age(record, at);
        CardView {
            card: record.card.clone(),
            free: free.collect(),
            bonds: BondCount { provider, count: live },
            age_ticks,
            age_ms,
            stale: !self.state.is_card_within(record, at, 1),
            attestation: self.state.attestation_of(&record.card, at).cloned(),
        }
    }

    /// Open requests in order of admission.
    pub fn open_requests(&self) -> impl Iterator<Item = &RequestRecord> {
        self.state.open_requests()
    }

    /// The grant of this id: the latest, if the request was granted again after a refusal.
    #[must_use]
    pub fn grant(&self, id: &RequestId) -> Option<&GrantRecord> {
        self.state.grants().get(id)
    }

    /// Live grants of one provider: what its bridge must be serving.
    pub fn live_grants_of(&self, provider: ProviderId) -> impl Iterator<Item = &GrantRecord> {
        self.state.live_grants_of(provider)
    }

    /// Logs of one grant, oldest first, as many as the view keeps.
    #[must_use]
    pub fn logs(&self, id: &RequestId) -> &[LogEntry] {
        self.grant(id).map_or(&[], |record| record.logs.as_slice())
    }

    /// Clearing records, oldest first, as many as the view keeps.
    pub fn clearings(&self) -> impl DoubleEndedIterator<Item = &ClearingEntry> {
        self.state.clearings()
    }

    /// How many live grants are bound to a provider's card.
    #[must_use]
    pub fn bond_count(&self, provider: ProviderId) -> BondCount {
        let count = self.state.providers().get(&provider).map_or(0, |record| record.live);
        BondCount { provider, count }
    }

    /// A provider's last inventory and whether the log agreed with it.
    #[must_use]
    pub fn inventory(&self, provider: &ProviderId) -> Option<&InventoryEntry> {
        self.state.inventory(provider)
    }

    /// Where a request stands.
    #[must_use]
    pub fn request_status(&self, id: &RequestId) -> RequestStatus<'_> {
        let Some(record) = self.state.requests().get(id) else { return RequestStatus::Unknown };
        match &record.stage {
            RequestStage::Open => RequestStatus::Open(record),
            RequestStage::Ended(end) => RequestStatus::Ended(end),
            RequestStage::Granted => self.grant(id).map_or(RequestStatus::Unknown, RequestStatus::Granted),
        }
    }
}

impl coalition_log::Fold for MarketView {
    fn fold(&mut self, entry: &Entry) -> Result<(), coalition_log::FoldFault> {
        self.apply(entry)?;
        Ok(())
    }
}

impl FromState for MarketView {
    /// Clearing records and logs of before are not there: the committee's machine keeps none.
    fn start_from(&mut self, machine: &[u8]) -> Result<(), SnapshotError> {
        let (state, fault) = self.state.restored(machine)?;
        match fault {
            None => self.state = state,
            Some(fault) => return Err(SnapshotError::Contradiction(format!("the committee could not fold: {fault}"))),
        }
        Ok(())
    }
}

impl Persist for MarketView {
    fn save(&self) -> Vec<u8> {
        self.state.to_snapshot(None)
    }

    fn load(&mut self, saved: &[u8]) -> Result<(), SnapshotError> {
        self.start_from(saved)
    }
}

impl Contains<RequestId> for MarketView {
    fn contains(&self, request: &RequestId) -> bool {
        self.state.requests().contains_key(request)
    }
}

impl Contains<ProviderId> for MarketView {
    fn contains(&self, provider: &ProviderId) -> bool {
        self.state.providers().get(provider).is_some_and(|record| record.card.is_some())
    }
}
