//! The provider card: registered at start, refreshed when capacity changes and on a timer.

use std::sync::Arc;
use std::time::Duration;

use coalition::{AlmanacTick, UniqueId};
use coalition_compute::{Command, Deregister, Offer, PostCard, ProviderCard, RefusalCode, Signed};
use coalition_organism::random_write_id;

use super::attest::{self, AttestError};
use super::{Context, WRITE, clock, shuffle_channel};
use crate::fleet::{Fleet, chain};
use crate::market::MarketError;

/// Pause after a post that failed, and the least time between two posts.
const AGAIN: Duration = Duration::from_secs(2);

/// Posts the card for ever.
pub(super) async fn keep(context: Arc<Context>) {
    let mut clock_problem = clock::suspicion(&context);
    loop {
        let offerings = context.parts.fleet.offerings().await;
        let mut offers = Fleet::offers(&offerings);
        if clock_problem.is_some() {
            offers.iter_mut().for_each(sell_nothing);
        }
        tracing::debug!(offers = offers.len(), "backends looked at");
        for (name, offering) in &offerings {
            if !offering.reachable {
                tracing::warn!(backend = %name, problem = %offering.detail, "not sold now: the backend does not answer");
            }
        }
        context.parts.status.offerings(offerings);
        let pause = match attested_post(&context, offers).await {
            Ok(posted) => {
                context.parts.status.card_posted(posted.tick);
                let was_wrong = clock_problem.is_some();
                if let Some(compared) = clock::compare(&context, posted.sent_ms, posted.sequence).await {
                    clock_problem = compared;
                }
                if let Some(problem) = &clock_problem {
                    tracing::error!(%problem, "nothing is sold");
                    context.parts.status.card_failed(problem.clone());
                }
                // A card that says the opposite of what is known now is replaced at once.
                if clock_problem.is_some() == was_wrong { context.parts.tuning.capacity_refresh } else { AGAIN }
            }
            Err(error) => {
                let problem = chain(&error);
                tracing::warn!(%problem, "the card was not posted; trying again");
                context.parts.status.card_failed(problem);
                if error.is_final() { context.parts.tuning.capacity_refresh } else { AGAIN }
            }
        };
        tokio::time::sleep(AGAIN.min(pause)).await;
        tokio::select! {
            () = tokio::time::sleep(pause.saturating_sub(AGAIN)) => {}
            () = context.capacity.notified() => {}
        }
    }
}

/// What a certified card says of itself.
struct Posted {
    tick: u64,
    sequence: u64,
    /// When it was sent, by this machine's clock, Unix milliseconds.
    sent_ms: u64,
}

/// Attests the bridge if that is due, then posts the card.
async fn attested_post(context: &Context, mut offers: Vec<Offer>) -> Result<Posted, AttestError> {
    let attested = match attest::current(context).await {
        Ok(attested) => attested,
        Err(error) => {
            context.parts.status.not_attested(chain(&error));
            // The market would refuse the card for the same reason; without the requirement a plain one is sold meanwhile.
            if context.parts.market.attestation_rule().is_some_and(|rule| rule.required) {
                return Err(error);
            }
            tracing::warn!(problem = %chain(&error), "not attested; selling as a plain host");
            None
        }
    };
    match &attested {
        Some(attested) => context.parts.status.attested(attested.clone()),
        // What is not proven is not claimed.
        None => offers.iter_mut().for_each(|offer| {
            (offer.capabilities.tdx_capable, offer.capabilities.mrtds) = (false, Vec::new());
        }),
    }
    Ok(post(context, offers, attested.map(|attested| attested.digest)).await?)
}

/// Posts the card once.
async fn post(context: &Context, mut offers: Vec<Offer>, attestation: Option<UniqueId>) -> Result<Posted, MarketError> {
    let parts = &context.parts;
    let known = parts.market.card(context.id);
    if let Some(known) = &known {
        keep_offers_in_use(&mut offers, known);
    }
    let (tick, sequence, sent_ms) = (context.tick(), next_sequence(context), crate::now_ms());
    let statement = PostCard { sequence, card: card(context, offers, tick, attestation) };
    let signed = Signed::sign(statement, &parts.signer, &parts.market.organism());
    let signed = signed.map_err(|invalid| MarketError::Refused(RefusalCode::Invalid.because(invalid.to_string())))?;
    let refresh =
        if known.is_some() { Command::RefreshCard(signed.clone()) } else { Command::RegisterCard(signed.clone()) };
    match parts.market.write(random_write_id(), refresh, WRITE).await {
        Err(MarketError::Refused(refusal)) if refusal.code == RefusalCode::UnknownProvider.as_str() => {
            parts.market.write(random_write_id(), Command::RegisterCard(signed), WRITE).await?;
        }
        other => other?,
    }
    if known.is_none() {
        tracing::info!(provider = %context.id, "the card is in the market");
        parts.status.event("the card was registered");
    }
    Ok(Posted { tick: tick.0, sequence, sent_ms })
}

fn card(context: &Context, offers: Vec<Offer>, tick: AlmanacTick, attestation: Option<UniqueId>) -> ProviderCard {
    ProviderCard {
        provider_id: context.id,
        provider_peer: context.parts.peer,
        shuffle_reply: shuffle_channel(&context.parts.peer),
        offers,
        attestation,
        refreshed_at: tick,
    }
}

/// Larger than every one before, also after the clock was set back or the disk was lost.
pub(super) fn next_sequence(context: &Context) -> u64 {
    let last = context.parts.market.card_sequence(context.id);
    crate::now_ms().max(last.saturating_add(1))
}

/// An offer with live grants stays on the card, with nothing left to sell, until they have ended.
fn keep_offers_in_use(offers: &mut Vec<Offer>, known: &coalition_compute::CardView) {
    for free in &known.free {
        let total = &free.offer.capabilities;
        let in_use = free.instances < u64::from(total.max_instances)
            || free.cpu_millicores < u64::from(total.max_cpu_millicores);
        if in_use && offers.iter().all(|offer| offer.name != free.offer.name) {
            let mut offer = free.offer.clone();
            sell_nothing(&mut offer);
            offers.push(offer);
        }
    }
}

fn sell_nothing(offer: &mut Offer) {
    let capabilities = &mut offer.capabilities;
    (capabilities.max_cpu_millicores, capabilities.max_ram_mib, capabilities.max_instances) = (0, 0, 0);
}

/// Takes the card out of the market; a failure only means that it goes stale by itself.
pub(super) async fn withdraw(context: &Context) {
    let parts = &context.parts;
    let statement = Deregister { sequence: next_sequence(context), provider: context.id };
    let Ok(signed) = Signed::sign(statement, &parts.signer, &parts.market.organism()) else { return };
    match parts.market.write(random_write_id(), Command::DeregisterCard(signed), WRITE).await {
        Ok(()) => tracing::info!("the card is out of the market"),
        Err(error) => {
            tracing::warn!(error = %chain(&error), "the card could not be withdrawn; it goes stale by itself")
        }
    }
}
