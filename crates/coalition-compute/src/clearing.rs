//! Clearing: which offer wins which request. A pure function of the market's state and a moment.

use std::collections::BTreeMap;

use coalition::{AlmanacTick, EvidencePointer, ProviderId, RateQ64, SCHEMA_VERSION_U8, UniqueId, hash_many};

use crate::config::ClearingRule;
use crate::eligibility::{Candidate, Eligibility, LOWEST_RATE_FILTERS, removed_by};
use crate::state::{At, CardRecord, Held, MarketState, RequestRecord};
use crate::types::{
    ClearingRecord, ComputeGrant, EndpointHint, Expiry, FilterKind, Offer, OfferName, Region, RemovedBy,
};

const TAG_TIE: &[u8] = b"coalition/compute/tie-break";
const TAG_INPUTS: &[u8] = b"coalition/compute/clearing-inputs";
/// Most requests cleared in one round; the rest waits for the next. Bounds the work and the entries of one batch.
pub const MAX_CLEARED_PER_ROUND: usize = 512;

/// One request cleared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cleared {
    /// The public record.
    pub record: ClearingRecord,
    /// The grant.
    pub grant: ComputeGrant,
    /// What both rest on: the request's entry and the winning card's.
    pub evidence: Vec<EvidencePointer>,
}

/// Grants made earlier in the round being computed, not yet part of the state.
#[derive(Default)]
struct Reserved {
    held: BTreeMap<ProviderId, BTreeMap<OfferName, Held>>,
    live: BTreeMap<ProviderId, u32>,
}

/// An eligible offer with its rank: lower rate first, then lower hash.
struct Bid<'a> {
    rate: RateQ64,
    tie: UniqueId,
    provider: ProviderId,
    card: &'a CardRecord,
    offer: &'a Offer,
}

fn filters(rule: ClearingRule) -> &'static [&'static dyn Eligibility] {
    match rule {
        ClearingRule::LowestRate => &LOWEST_RATE_FILTERS,
    }
}

/// Whether some open request could be granted at `at`, were a round due then.
#[must_use]
pub fn has_clearable(state: &MarketState, at: At) -> bool {
    let reserved = Reserved::default();
    clearable(state, at).any(|request| {
        candidates(state, request, at, &reserved)
            .any(|c| removed_by(&c, filters(state.params().clearing_rule)).is_none())
    })
}

/// The clearing round at `at`: every open request that has an eligible offer, in order of admission, each reserving its
/// capacity before the next is looked at. Does not ask whether a round is due.
#[must_use]
pub fn clear_round(state: &MarketState, at: At) -> Vec<Cleared> {
    let mut reserved = Reserved::default();
    let mut cleared = Vec::new();
    for request in clearable(state, at) {
        if cleared.len() == MAX_CLEARED_PER_ROUND {
            break;
        }
        let bids = ranked_bids(state, request, at, &reserved);
        if let Some(winner) = bids.first() {
            reserved.add(state, winner, request);
            cleared.push(award(request, winner, inputs_digest(request, &bids), at, state));
        }
    }
    cleared
}

/// Why no offer is eligible for a request at `at`: how many offers each filter removed.
#[must_use]
pub fn explain_expiry(state: &MarketState, request: &RequestRecord, at: At) -> Expiry {
    let reserved = Reserved::default();
    let mut removed: BTreeMap<FilterKind, u32> = BTreeMap::new();
    let mut considered: u32 = 0;
    for candidate in candidates(state, request, at, &reserved) {
        considered = considered.saturating_add(1);
        if let Some(filter) = removed_by(&candidate, filters(state.params().clearing_rule)) {
            let count = removed.entry(filter).or_default();
            *count = count.saturating_add(1);
        }
    }
    let removed = removed.into_iter().map(|(filter, offers)| RemovedBy { filter, offers }).collect();
    Expiry { considered, removed }
}

fn clearable(state: &MarketState, at: At) -> impl Iterator<Item = &RequestRecord> {
    let max_attempts = usize::from(state.params().max_attempts);
    state
        .open_requests()
        .filter(move |request| !request.is_past_deadline(at.tick, at.time_ms) && request.refusals.len() < max_attempts)
}

fn candidates<'a, 'r>(
    state: &'a MarketState,
    request: &'a RequestRecord,
    at: At,
    reserved: &'r Reserved,
) -> impl Iterator<Item = Candidate<'a>> + use<'a, 'r> {
    let with_cards =
        state.providers().iter().filter_map(|(id, record)| Some((*id, record.live, record.card.as_ref()?)));
    with_cards.flat_map(move |(provider, live, card)| {
        let live = reserved.live.get(&provider).copied().unwrap_or(live);
        let (committed, earlier) = (state.held_of(&provider), reserved.held.get(&provider));
        card.card.offers.iter().map(move |offer| {
            let on_offer =
                |held: Option<&BTreeMap<OfferName, Held>>| held.and_then(|offers| offers.get(&offer.name)).copied();
            let held = on_offer(earlier).or_else(|| on_offer(committed)).unwrap_or_default();
            Candidate { state, request, at, provider, live, card, offer, held }
        })
    })
}

fn ranked_bids<'a>(state: &'a MarketState, request: &'a RequestRecord, at: At, reserved: &Reserved) -> Vec<Bid<'a>> {
    let filters = filters(state.params().clearing_rule);
    let eligible =
        candidates(state, request, at, reserved).filter(|candidate| removed_by(candidate, filters).is_none());
    let mut bids: Vec<Bid<'_>> = eligible.filter_map(|c| bid(state, request, &c, at)).collect();
    bids.sort_by(|a, b| (a.rate, a.tie, &a.offer.name).cmp(&(b.rate, b.tie, &b.offer.name)));
    bids
}

fn bid<'a>(state: &MarketState, request: &RequestRecord, candidate: &Candidate<'a>, at: At) -> Option<Bid<'a>> {
    let asked = request.request();
    let rate = candidate.offer.declared_rates.effective_core_hour(asked.cpu_millicores, asked.ram_mib)?;
    let tie = tie_break(state, request, &candidate.provider, &candidate.offer.name, at);
    Some(Bid { rate, tie, provider: candidate.provider, card: candidate.card, offer: candidate.offer })
}

/// The number that decides between equal rates; the lowest wins.
///
/// It folds the request's entry (whose index, tick and time the committee assigned after the requester signed), the last
/// clearing entry of an earlier round, the tick, and the offer. A requester cannot predict the first two, a provider chose
/// its id before the request existed. A committee leader can still try orders and times within what ordering tolerates:
/// a randomness beacon, once the coalition ships one, takes that away too.
fn tie_break(
    state: &MarketState,
    request: &RequestRecord,
    provider: &ProviderId,
    offer: &OfferName,
    at: At,
) -> UniqueId {
    let last = state.last_clearing().map_or([0; 32], |last| *last.digest.as_bytes());
    hash_many(&[
        &[SCHEMA_VERSION_U8],
        TAG_TIE,
        request.pointer.digest.as_bytes(),
        &last,
        &at.tick.to_be_bytes(),
        provider.as_bytes(),
        offer.as_str().as_bytes(),
    ])
}

/// Commits to everything a clearing folded: the request's entry, then for each eligible offer in rank order the card's
/// entry, the offer's name and its effective rate.
fn inputs_digest(request: &RequestRecord, bids: &[Bid<'_>]) -> UniqueId {
    let rates: Vec<[u8; 16]> = bids.iter().map(|bid| bid.rate.0.to_be_bytes()).collect();
    let mut parts: Vec<&[u8]> = vec![&[SCHEMA_VERSION_U8], TAG_INPUTS, request.pointer.digest.as_bytes()];
    for (bid, rate) in bids.iter().zip(&rates) {
        parts.extend([bid.card.pointer.digest.as_bytes().as_slice(), bid.offer.name.as_str().as_bytes(), rate]);
    }
    hash_many(&parts)
}

impl Reserved {
    fn add(&mut self, state: &MarketState, winner: &Bid<'_>, request: &RequestRecord) {
        let asked = request.request();
        let name = &winner.offer.name;
        let offers = self.held.entry(winner.provider).or_default();
        let held = offers.entry(name.clone()).or_insert_with(|| state.held(&winner.provider, name));
        *held = held.plus(asked.cpu_millicores, asked.ram_mib);
        let committed = state.providers().get(&winner.provider).map_or(0, |record| record.live);
        let live = self.live.entry(winner.provider).or_insert(committed);
        *live = live.saturating_add(1);
    }
}

fn award(request: &RequestRecord, winner: &Bid<'_>, inputs: UniqueId, at: At, state: &MarketState) -> Cleared {
    let asked = request.request();
    let region = granted_region(request, winner.offer);
    let duration_ms = u64::from(asked.duration_sec).saturating_mul(1_000);
    let valid_to = at.tick.saturating_add(state.params().ticks_for_ms(duration_ms));
    let expected_mrtd = asked.pinned_mrtd.or_else(|| {
        let offered = winner.offer.capabilities.mrtds.first().copied();
        offered.filter(|_| asked.tdx_required)
    });
    let record = ClearingRecord {
        round: AlmanacTick(at.tick),
        request_id: asked.request_id,
        winning_provider: winner.provider,
        clearing_rate: winner.rate,
        region: region.clone(),
        tdx_required: asked.tdx_required,
        evidence: inputs,
    };
    let grant = ComputeGrant {
        request_id: asked.request_id,
        attempt: u8::try_from(request.refusals.len()).unwrap_or(u8::MAX).saturating_add(1),
        provider: winner.provider,
        offer: winner.offer.name.clone(),
        endpoint_hint: EndpointHint {
            provider_peer: winner.card.card.provider_peer,
            shuffle_reply: winner.card.card.shuffle_reply,
        },
        bearer_pointer: asked.bearer_pointer,
        workload: asked.workload,
        image_hash: asked.image_hash,
        region,
        tdx_required: asked.tdx_required,
        expected_mrtd,
        cpu_millicores: asked.cpu_millicores,
        ram_mib: asked.ram_mib,
        duration_sec: asked.duration_sec,
        rate: winner.rate,
        valid_from: AlmanacTick(at.tick),
        valid_to: AlmanacTick(valid_to),
        valid_to_ms: at.time_ms.saturating_add(duration_ms),
    };
    Cleared { record, grant, evidence: vec![request.pointer, winner.card.pointer] }
}

fn granted_region(request: &RequestRecord, offer: &Offer) -> Region {
    let wanted = request.request().region.clone();
    let first = || offer.capabilities.regions.first().cloned();
    wanted.or_else(first).expect("an admitted card lists at least one region on every offer")
}
