//! What happens without a command: grants and requests that run out, cards that go stale, clearing.

use coalition_log::Draft;

use crate::clearing::{clear_round, explain_expiry, has_clearable};
use crate::entries::{CardRemoval, CardRemovedBody, GrantEndedBody, MarketEntry, RequestEndedBody};
use crate::state::{At, MarketState, RequestRecord, STALE_FACTOR};
use crate::types::{GrantEnd, RequestEnd};

/// The next group of entries due at `at`, or `None` when nothing is. Capacity is freed before anything is cleared, and
/// what has run out ends before it could be cleared.
pub(super) fn next(state: &MarketState, at: At) -> Option<Vec<Draft>> {
    [ended_grants, ended_requests, stale_cards, cleared].iter().find_map(|phase| {
        let drafts = phase(state, at);
        (!drafts.is_empty()).then_some(drafts)
    })
}

fn ended_grants(state: &MarketState, at: At) -> Vec<Draft> {
    let due = state.live_grants().filter(|record| at.time_ms >= state.grant_end_ms(record));
    due.map(|record| {
        let body = GrantEndedBody {
            grant_id: record.grant.request_id,
            attempt: record.grant.attempt,
            provider: record.grant.provider,
            reason: if record.log_count == 0 { GrantEnd::NoLog } else { GrantEnd::NoFinalLog },
        };
        MarketEntry::GrantEnded(body).to_draft(vec![record.pointer])
    })
    .collect()
}

fn ended_requests(state: &MarketState, at: At) -> Vec<Draft> {
    let ended = |record: &RequestRecord| {
        let attempts = u8::try_from(record.refusals.len()).unwrap_or(u8::MAX);
        if record.is_past_deadline(at.tick, at.time_ms) {
            return Some(RequestEnd::Expired(explain_expiry(state, record, at)));
        }
        (attempts >= state.params().max_attempts).then_some(RequestEnd::Exhausted { attempts })
    };
    let due = state.open_requests().filter_map(|record| Some((record, ended(record)?)));
    due.map(|(record, reason)| {
        let body = RequestEndedBody { request_id: record.request().request_id, reason };
        MarketEntry::RequestEnded(body).to_draft(vec![record.pointer])
    })
    .collect()
}

fn stale_cards(state: &MarketState, at: At) -> Vec<Draft> {
    let cards = state.providers().iter().filter_map(|(id, record)| Some((*id, record.card.as_ref()?)));
    cards
        .filter(|(_, card)| !state.is_card_within(card, at, STALE_FACTOR))
        .map(|(provider, card)| {
            let body = CardRemovedBody { provider, reason: CardRemoval::Stale };
            MarketEntry::CardRemoved(body).to_draft(vec![card.pointer])
        })
        .collect()
}

fn cleared(state: &MarketState, at: At) -> Vec<Draft> {
    if at.time_ms < state.next_round_ms() {
        return Vec::new();
    }
    let round = clear_round(state, at).into_iter();
    round
        .flat_map(|cleared| {
            let clearing = MarketEntry::Clearing(cleared.record).to_draft(cleared.evidence.clone());
            [clearing, MarketEntry::Grant(Box::new(cleared.grant)).to_draft(cleared.evidence)]
        })
        .collect()
}

/// When the market next needs a batch on its own account. Deadlines in ticks need none: a new tick is a batch.
pub(super) fn wake_at_ms(state: &MarketState, at: At) -> Option<u64> {
    let grants = state.live_grants().map(|record| state.grant_end_ms(record));
    let requests = state.open_requests().map(|record| record.deadline_ms);
    let max_age_ms = state.params().ms_for_ticks(u64::from(state.params().card_max_age_ticks) * STALE_FACTOR);
    let cards = state.providers().values().filter_map(|record| record.card.as_ref());
    let stale = cards.map(|card| card.posted_ms.saturating_add(max_age_ms).saturating_add(1));
    // A request without an eligible offer needs no wake: only an entry can make one eligible, and entries come in batches.
    let round_ms = state.next_round_ms();
    let round = (at.time_ms < round_ms && has_clearable(state, at)).then_some(round_ms);
    grants.chain(requests).chain(stale).chain(round).min()
}
