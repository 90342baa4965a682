//! The filters an offer passes before price decides: an ordered list of small rules behind one trait, so that a reputation
//! floor slots in where the design puts it without touching clearing.

use crate::state::{At, CardRecord, Held, MarketState, RequestRecord};
use crate::types::{ComputeRequest, FilterKind, Offer};
use coalition::ProviderId;

/// One offer considered for one request at one moment.
#[derive(Clone, Copy)]
pub struct Candidate<'a> {
    /// The market.
    pub state: &'a MarketState,
    /// The request.
    pub request: &'a RequestRecord,
    /// When.
    pub at: At,
    /// The provider.
    pub provider: ProviderId,
    /// Its live grants, those made earlier in the same round included.
    pub live: u32,
    /// Its card.
    pub card: &'a CardRecord,
    /// The offer.
    pub offer: &'a Offer,
    /// Capacity held on the offer, grants made earlier in the same round included.
    pub held: Held,
}

/// A rule an offer must pass. Pure: the same candidate always gets the same answer, on every member and in every replay.
pub trait Eligibility: Sync {
    /// Its name in expiry records.
    fn kind(&self) -> FilterKind;

    /// Whether the offer passes.
    fn admits(&self, candidate: &Candidate<'_>) -> bool;
}

struct Rule(FilterKind, fn(&Candidate<'_>, &ComputeRequest) -> bool);

impl Eligibility for Rule {
    fn kind(&self) -> FilterKind {
        self.0
    }

    fn admits(&self, candidate: &Candidate<'_>) -> bool {
        (self.1)(candidate, candidate.request.request())
    }
}

/// The filters of [`crate::ClearingRule::LowestRate`], in order. A reputation floor belongs before the price cap once its
/// input exists.
pub static LOWEST_RATE_FILTERS: [&dyn Eligibility; 9] = [
    &Rule(FilterKind::Refused, |c, _| !c.request.was_refused_by(&c.provider)),
    &Rule(FilterKind::Region, |c, r| {
        r.region.as_ref().is_none_or(|region| c.offer.capabilities.regions.contains(region))
    }),
    &Rule(FilterKind::Posture, |c, r| !r.tdx_required || c.offer.capabilities.tdx_capable),
    &Rule(FilterKind::PinnedMrtd, |c, r| {
        r.pinned_mrtd.is_none_or(|pinned| c.offer.capabilities.mrtds.contains(&pinned))
    }),
    &Rule(FilterKind::Size, |c, r| {
        r.cpu_millicores <= c.offer.capabilities.instance_cpu_millicores
            && r.ram_mib <= c.offer.capabilities.instance_ram_mib
    }),
    &Rule(FilterKind::Capacity, |c, r| {
        c.live < c.state.params().max_live_per_provider
            && c.held.plus(r.cpu_millicores, r.ram_mib).fits(&c.offer.capabilities)
    }),
    &Rule(FilterKind::CardAge, |c, _| c.state.is_card_within(c.card, c.at, 1)),
    &Rule(FilterKind::Attestation, |c, r| {
        let needed = r.tdx_required || c.state.params().attestation.as_ref().is_some_and(|rule| rule.required);
        !needed || c.state.attestation_of(&c.card.card, c.at).is_some()
    }),
    &Rule(FilterKind::PriceCap, |c, r| {
        let rate = c.offer.declared_rates.effective_core_hour(r.cpu_millicores, r.ram_mib);
        rate.is_some_and(|rate| rate <= r.max_rate)
    }),
];

/// The first filter that removes a candidate, or `None` when it is eligible.
#[must_use]
pub fn removed_by(candidate: &Candidate<'_>, filters: &[&dyn Eligibility]) -> Option<FilterKind> {
    filters.iter().find(|filter| !filter.admits(candidate)).map(|filter| filter.kind())
}
