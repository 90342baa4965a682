//! Whether a command is admitted, and what it writes.

use coalition::{ProviderId, RequestId};
use coalition_attest::Verifier;
use coalition_log::{Draft, Refusal};

use super::{attest, extend, inventory};
use crate::command::Command;
use crate::entries::{CardRemoval, CardRemovedBody, GrantEndedBody, LogBody, MarketEntry, RequestEndedBody};
use crate::refusal::RefusalCode as Code;
use crate::sign::{Deregister, EndGrant, PostCard, RefuseGrant, ServeGrant, Signed, Statement, WithdrawRequest};
use crate::state::{At, GrantRecord, GrantStage, MarketState, RequestRecord, RequestStage};
use crate::types::{ComputeLog, ComputeRequest, GrantEnd, RequestEnd, request_id};

/// How many ticks ahead of the committee a provider's clock may run.
pub const MAX_TICK_SKEW: u64 = 10;
/// Most logs of one grant.
pub const MAX_LOGS_PER_GRANT: u32 = 10_000;

pub(super) type Decision = Result<Vec<Draft>, Refusal>;

pub(super) fn decide(state: &MarketState, verifier: Option<&Verifier>, at: At, command: &Command) -> Decision {
    match command {
        Command::RegisterCard(signed) => post_card(state, at, signed, false),
        Command::RefreshCard(signed) => post_card(state, at, signed, true),
        Command::DeregisterCard(signed) => deregister(state, signed),
        Command::SubmitRequest(signed) => submit(state, at, signed),
        Command::WithdrawRequest(signed) => withdraw(state, signed),
        Command::RefuseGrant(signed) => refuse_grant(state, signed),
        Command::ServeGrant(signed) => serve_grant(state, signed),
        Command::EndGrant(signed) => end_grant(state, signed),
        Command::AppendLog(signed) => append_log(state, at, signed),
        Command::AskChallenge(signed) => attest::ask(state, at, signed),
        Command::Attest(signed) => attest::show(state, verifier, at, signed),
        Command::ExtendGrant(signed) => extend::ask(state, at, signed),
        Command::AnswerExtension(signed) => extend::answer(state, at, signed),
        Command::StateInventory(signed) => inventory::state(state, at, signed),
        Command::ReportUsage(signed) => extend::report(state, signed),
    }
}

fn check<T: Statement>(state: &MarketState, signed: &Signed<T>) -> Result<(), Refusal> {
    signed
        .statement
        .check()
        .map_err(|error| Code::Invalid.because(format!("the {} is not valid: {error}", T::LABEL)))?;
    signed.verify(&state.organism()).map_err(|error| {
        Code::BadSignature.because(format!("{error}; sign the {} for organism {}", T::LABEL, state.organism()))
    })
}

pub(super) fn check_provider<T: Statement>(
    state: &MarketState,
    signed: &Signed<T>,
    provider: ProviderId,
) -> Result<(), Refusal> {
    let signer = ProviderId::from_public_key(&signed.key);
    if signer != provider {
        return Err(Code::WrongKey.because(format!(
            "the statement speaks for provider {provider} but its key is that of {signer}; sign with the provider's key"
        )));
    }
    check(state, signed)
}

fn post_card(state: &MarketState, at: At, signed: &Signed<PostCard>, must_exist: bool) -> Decision {
    let PostCard { sequence, card } = &signed.statement;
    check_provider(state, signed, card.provider_id)?;
    let known = state.providers().get(&card.provider_id);
    let posted = known.and_then(|record| record.card.as_ref());
    if must_exist && posted.is_none() {
        return Err(
            Code::UnknownProvider.because(format!("provider {} has no card to refresh; register it", card.provider_id))
        );
    }
    check_sequence(state, &card.provider_id, *sequence)?;
    check_tick(state, at, "refreshed_at", card.refreshed_at.0)?;
    attest::check_card(state, at, card)?;
    if known.is_none() {
        check_room(state, at)?;
    }
    if let Some(offer) = state.offers_in_use(&card.provider_id).find(|offer| card.offer(offer).is_none()) {
        return Err(Code::OfferInUse.because(format!(
            "the card drops offer {offer} while grants on it are live; keep it with max_instances 0 until they end"
        )));
    }
    let evidence = posted.map(|record| record.pointer).into_iter().collect();
    Ok(vec![MarketEntry::Card(Box::new(signed.clone())).to_draft(evidence)])
}

pub(super) fn check_sequence(state: &MarketState, provider: &ProviderId, sequence: u64) -> Result<(), Refusal> {
    match state.providers().get(provider) {
        Some(record) if sequence <= record.sequence => Err(Code::StaleSequence.because(format!(
            "sequence {sequence} is not above {}, the last one of this provider; use a larger one",
            record.sequence
        ))),
        _ => Ok(()),
    }
}

/// Whether a provider's own reading of the Almanac, `field` of its statement, is neither ahead nor too old.
pub(super) fn check_tick(state: &MarketState, at: At, field: &str, seen: u64) -> Result<(), Refusal> {
    let now = at.tick;
    if seen > now.saturating_add(MAX_TICK_SKEW) {
        return Err(Code::CardFromFuture.because(format!(
            "{field} is tick {seen}, more than {MAX_TICK_SKEW} ahead of the committee's {now}; read the Almanac again"
        )));
    }
    let max_age = u64::from(state.params().card_max_age_ticks);
    if now > seen.saturating_add(max_age) {
        return Err(Code::CardStale.because(format!(
            "{field} is tick {seen}, more than {max_age} behind the committee's {now}; make a new statement"
        )));
    }
    Ok(())
}

pub(super) fn check_room(state: &MarketState, at: At) -> Result<(), Refusal> {
    let limit = state.params().max_providers as usize;
    let mattering = state.providers().values().filter(|record| !state.is_provider_forgettable(record, at)).count();
    if mattering >= limit {
        return Err(Code::TooManyProviders
            .because(format!("the market has {mattering} providers, its limit is {limit}; wait until one leaves")));
    }
    Ok(())
}

fn deregister(state: &MarketState, signed: &Signed<Deregister>) -> Decision {
    let Deregister { sequence, provider } = &signed.statement;
    check_provider(state, signed, *provider)?;
    let card = state.providers().get(provider).and_then(|record| record.card.as_ref());
    let Some(card) = card else {
        return Err(Code::UnknownProvider.because(format!("provider {provider} has no card to take away")));
    };
    check_sequence(state, provider, *sequence)?;
    let reason = CardRemoval::Deregistered(Box::new(signed.clone()));
    let body = CardRemovedBody { provider: *provider, reason };
    Ok(vec![MarketEntry::CardRemoved(body).to_draft(vec![card.pointer])])
}

fn submit(state: &MarketState, at: At, signed: &Signed<ComputeRequest>) -> Decision {
    let request = &signed.statement;
    check(state, signed)?;
    let derived = request_id(&state.organism(), &signed.key, &request.nonce);
    if request.request_id != derived {
        return Err(Code::RequestIdMismatch.because(format!(
            "request id {} is not derived from this organism, key and nonce; that would be {derived}",
            request.request_id
        )));
    }
    if let Some(known) = state.requests().get(&request.request_id) {
        return Err(if known.request() == request {
            Code::DuplicateRequest.because(format!("request {derived} is already here; look up its state"))
        } else {
            Code::RequestConflict
                .because(format!("request id {derived} is already here with other content; use a new nonce"))
        });
    }
    check_times(state, at, request)?;
    check_load(state, &signed.key)?;
    Ok(vec![MarketEntry::Request(Box::new(signed.clone())).to_draft(Vec::new())])
}

fn check_times(state: &MarketState, at: At, request: &ComputeRequest) -> Result<(), Refusal> {
    let (deadline, now) = (request.deadline.0, at.tick);
    let furthest = now.saturating_add(u64::from(state.params().max_deadline_ticks));
    if deadline <= now {
        return Err(
            Code::DeadlinePassed.because(format!("deadline tick {deadline} is not after the present tick {now}"))
        );
    }
    if deadline > furthest {
        return Err(Code::DeadlineTooFar
            .because(format!("deadline tick {deadline} is beyond {furthest}, the furthest allowed now")));
    }
    let longest = state.params().max_duration_sec;
    if request.duration_sec > longest {
        return Err(Code::DurationTooLong.because(format!(
            "duration {} s is above the module's limit of {longest} s; ask for less and renew",
            request.duration_sec
        )));
    }
    Ok(())
}

fn check_load(state: &MarketState, key: &[u8; 32]) -> Result<(), Refusal> {
    let params = state.params();
    let (open, tracked) = (state.open_count(), state.requests().len());
    if open >= params.max_open_requests as usize || tracked >= params.max_tracked_requests() {
        return Err(Code::MarketFull.because(format!(
            "{open} requests are open (limit {}) and {tracked} remembered (limit {}); try again later",
            params.max_open_requests,
            params.max_tracked_requests()
        )));
    }
    let (own, limit) = (state.open_count_of(key), params.max_open_per_requester);
    if own >= limit as usize {
        return Err(Code::TooManyOpen
            .because(format!("{own} requests of this key are open, the limit is {limit}; withdraw one or wait")));
    }
    Ok(())
}

/// The request, if `signed` is by the key that made it.
pub(super) fn own_request<'a, T: Statement>(
    state: &'a MarketState,
    signed: &Signed<T>,
    id: &RequestId,
    missing: Code,
) -> Result<&'a RequestRecord, Refusal> {
    let Some(record) = state.requests().get(id) else {
        return Err(missing.because(format!("no request {id} is known here; it may have ended long ago")));
    };
    if record.signed.key != signed.key {
        return Err(
            Code::WrongKey.because(format!("request {id} was signed by another key; only that key may do this"))
        );
    }
    check(state, signed)?;
    Ok(record)
}

fn withdraw(state: &MarketState, signed: &Signed<WithdrawRequest>) -> Decision {
    let id = signed.statement.request_id;
    let record = own_request(state, signed, &id, Code::UnknownRequest)?;
    match &record.stage {
        RequestStage::Open => {
            let body = RequestEndedBody { request_id: id, reason: RequestEnd::Withdrawn(Box::new(signed.clone())) };
            Ok(vec![MarketEntry::RequestEnded(body).to_draft(vec![record.pointer])])
        }
        RequestStage::Granted => {
            Err(Code::RequestNotOpen.because(format!("request {id} has a grant; end the grant instead")))
        }
        RequestStage::Ended(_) => Err(Code::RequestNotOpen.because(format!("request {id} has already ended"))),
    }
}

pub(super) fn live_grant<'a>(state: &'a MarketState, id: &RequestId) -> Result<&'a GrantRecord, Refusal> {
    let Some(record) = state.grants().get(id) else {
        return Err(Code::UnknownGrant.because(format!("no grant {id} is known here; it may have ended long ago")));
    };
    if !record.is_live() {
        return Err(Code::GrantEnded.because(format!("grant {id} has already ended")));
    }
    Ok(record)
}

/// The live grant, if `signed` is by the provider it names.
pub(super) fn provider_grant<'a, T: Statement>(
    state: &'a MarketState,
    signed: &Signed<T>,
    id: &RequestId,
    provider: ProviderId,
) -> Result<&'a GrantRecord, Refusal> {
    check_provider(state, signed, provider)?;
    let record = live_grant(state, id)?;
    check_holder(record, provider)?;
    Ok(record)
}

fn check_holder(record: &GrantRecord, provider: ProviderId) -> Result<(), Refusal> {
    if record.grant.provider != provider {
        return Err(Code::WrongKey.because(format!(
            "grant {} belongs to provider {}, not to {provider}",
            record.grant.request_id, record.grant.provider
        )));
    }
    Ok(())
}

fn refuse_grant(state: &MarketState, signed: &Signed<RefuseGrant>) -> Decision {
    let RefuseGrant { grant_id, provider, .. } = &signed.statement;
    let record = provider_grant(state, signed, grant_id, *provider)?;
    if record.stage == GrantStage::Serving {
        return Err(Code::AlreadyServing
            .because(format!("grant {grant_id} is already being served; stop it with a final log instead")));
    }
    Ok(vec![ended(record, GrantEnd::Refused(Box::new(signed.clone())))])
}

fn serve_grant(state: &MarketState, signed: &Signed<ServeGrant>) -> Decision {
    let ServeGrant { grant_id, provider } = &signed.statement;
    let record = provider_grant(state, signed, grant_id, *provider)?;
    if record.stage == GrantStage::Serving {
        return Err(Code::AlreadyServing.because(format!("grant {grant_id} is already being served")));
    }
    Ok(vec![MarketEntry::GrantServing(Box::new(signed.clone())).to_draft(vec![record.pointer])])
}

fn end_grant(state: &MarketState, signed: &Signed<EndGrant>) -> Decision {
    let id = signed.statement.grant_id;
    own_request(state, signed, &id, Code::UnknownGrant)?;
    let record = live_grant(state, &id)?;
    if record.ending_ms.is_some() {
        return Err(
            Code::AlreadyEnding.because(format!("grant {id} is already being ended; its provider has to log now"))
        );
    }
    Ok(vec![MarketEntry::GrantEnding(Box::new(signed.clone())).to_draft(vec![record.pointer])])
}

fn append_log(state: &MarketState, at: At, signed: &Signed<ComputeLog>) -> Decision {
    let log = &signed.statement;
    check_provider(state, signed, log.provider)?;
    let Some(record) = state.grants().get(&log.grant_id) else {
        return Err(
            Code::UnknownGrant.because(format!("no grant {} is known here; it may have ended long ago", log.grant_id))
        );
    };
    check_holder(record, log.provider)?;
    let late = takes_late_log(record);
    if !record.is_live() && !late {
        return Err(Code::GrantEnded.because(format!("grant {} has ended and takes no further log", log.grant_id)));
    }
    check_log(record, at, log)?;
    let body = LogBody { log: signed.clone(), late };
    let mut drafts = vec![MarketEntry::Log(Box::new(body)).to_draft(vec![record.pointer])];
    if let Some(end) = log.ended
        && !late
    {
        drafts.push(ended(record, GrantEnd::Logged(end)));
    }
    Ok(drafts)
}

/// A grant that ended for want of a final log still takes logs until that one arrives.
fn takes_late_log(record: &GrantRecord) -> bool {
    matches!(record.stage, GrantStage::Ended(GrantEnd::NoLog | GrantEnd::NoFinalLog)) && !record.final_log
}

fn check_log(record: &GrantRecord, at: At, log: &ComputeLog) -> Result<(), Refusal> {
    let next = record.log_count.saturating_add(1);
    if log.number != next {
        return Err(Code::LogOutOfOrder.because(format!("log number {} came where {next} was due", log.number)));
    }
    if next > MAX_LOGS_PER_GRANT {
        return Err(
            Code::TooManyLogs.because(format!("grant {} has {MAX_LOGS_PER_GRANT} logs, the limit", log.grant_id))
        );
    }
    let (from, to) = (log.window.from.0, log.window.to.0);
    let (earliest, latest) = (record.logged_to.0, at.tick.saturating_add(MAX_TICK_SKEW));
    if from < earliest || to < from || to > latest {
        return Err(Code::LogWindow.because(format!(
            "window {from}..{to} must lie within {earliest}..{latest}: after the last log, not in the future"
        )));
    }
    Ok(())
}

fn ended(record: &GrantRecord, reason: GrantEnd) -> Draft {
    let grant = &record.grant;
    let body = GrantEndedBody { grant_id: grant.request_id, attempt: grant.attempt, provider: grant.provider, reason };
    MarketEntry::GrantEnded(body).to_draft(vec![record.pointer])
}
