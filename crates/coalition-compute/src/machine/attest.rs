//! Challenges and attestations: what a provider's platform must prove before its card counts.
//!
//! Nothing here depends on the member that runs it: the verdict is a function of the evidence in the command, the policy in
//! the parameters, the challenge in the state and committee time.

use coalition_attest::evidence::Evidence;
use coalition_attest::{Quote, Verdict, Verifier};
use coalition_log::Refusal;

use super::admit::{Decision, check_provider, check_room, check_sequence, check_tick};
use crate::config::AttestationRule;
use crate::entries::{AttestationBody, MarketEntry};
use crate::refusal::RefusalCode as Code;
use crate::sign::{AskChallenge, Attest, Signed};
use crate::state::{At, MarketState};
use crate::types::{Attestation, Challenge, EvidenceShape, ProviderCard, RootKind, expect_provider};

/// Longest a challenge can be answered, in milliseconds.
pub const CHALLENGE_MS: u64 = 600_000;

pub(super) fn ask(state: &MarketState, at: At, signed: &Signed<AskChallenge>) -> Decision {
    let AskChallenge { sequence, provider, asked_at } = &signed.statement;
    rule(state)?;
    check_provider(state, signed, *provider)?;
    check_sequence(state, provider, *sequence)?;
    check_tick(state, at, "asked_at", asked_at.0)?;
    if !state.providers().contains_key(provider) {
        check_room(state, at)?;
    }
    Ok(vec![MarketEntry::Challenge(Box::new(signed.clone())).to_draft(Vec::new())])
}

pub(super) fn show(state: &MarketState, verifier: Option<&Verifier>, at: At, signed: &Signed<Attest>) -> Decision {
    let shown = &signed.statement;
    rule(state)?;
    let verifier = verifier.ok_or_else(not_asked)?;
    check_provider(state, signed, shown.provider)?;
    check_sequence(state, &shown.provider, shown.sequence)?;
    let challenge = state.providers().get(&shown.provider).and_then(|record| record.platform.challenge);
    let challenge = challenge.filter(|challenge| at.time_ms.saturating_sub(challenge.time_ms) <= CHALLENGE_MS);
    let challenge = challenge.ok_or_else(|| {
        Code::ChallengeUnknown.because(format!(
            "provider {} has no challenge of the last {} s to answer; ask for one",
            shown.provider,
            CHALLENGE_MS / 1_000
        ))
    })?;
    let found = verify(state, verifier, at, signed, challenge)?;
    let body = AttestationBody { shown: signed.clone(), found };
    Ok(vec![MarketEntry::Attestation(Box::new(body)).to_draft(Vec::new())])
}

fn verify(
    state: &MarketState,
    verifier: &Verifier,
    at: At,
    signed: &Signed<Attest>,
    challenge: Challenge,
) -> Result<Attestation, Refusal> {
    let shown = &signed.statement;
    let refused = |why: String| Code::AttestationRefused.because(format!("the evidence is refused: {why}"));
    let evidence = Evidence::from_bytes(&shown.evidence).map_err(|error| refused(error.to_string()))?;
    let collateral = evidence.collateral.as_ref();
    let collateral = collateral.ok_or_else(|| refused("it has no collateral, and members look none up".to_owned()))?;
    let quote = Quote::parse(&evidence.quote).map_err(|error| refused(format!("malformed: {error}")))?;
    let expect = expect_provider(state.organism(), &signed.key, shown.config, challenge);
    let verdict = verifier.judge(&quote, collateral, &expect, at.time_ms / 1_000);
    let expires_s = verifier.valid_until_s(&verdict, &expect);
    let (Some(expires_s), Some(guest)) = (expires_s, &verdict.guest) else {
        return Err(refused(because(&verdict)));
    };
    Ok(Attestation {
        provider: shown.provider,
        digest: quote.digest(),
        shape: if quote.version() == 4 { EvidenceShape::TdxQuoteV4 } else { EvidenceShape::TdxQuoteV5 },
        root: if verdict.root.is_intel() { RootKind::Intel } else { RootKind::Development },
        root_id: verdict.root.id(),
        policy: verdict.policy,
        mrtd: guest.measurements.mrtd,
        measurements: guest.measurements.fingerprint(),
        config: shown.config,
        challenged_ms: challenge.time_ms,
        verified_ms: at.time_ms,
        expires_ms: expires_s.saturating_mul(1_000),
    })
}

/// `invalid (wrong_root): …`: outcome, stable reason, words.
fn because(verdict: &Verdict) -> String {
    let (outcome, code) = (verdict.outcome.name(), verdict.outcome.code().unwrap_or("expired"));
    let words = verdict.outcome.message().unwrap_or_else(|| "its collateral has no end".to_owned());
    format!("{outcome} ({code}): {words} [root: {}]", verdict.root.label())
}

/// What a card must say about attestation where the market asks: one that names any names the one held here, while it counts.
pub(super) fn check_card(state: &MarketState, at: At, card: &ProviderCard) -> Result<(), Refusal> {
    // A market that asks for nothing verifies nothing: what a card names there is stored and vouches for nothing.
    let Some(rule) = &state.params().attestation else { return Ok(()) };
    let Some(named) = card.attestation else {
        return check_unattested(rule, card);
    };
    let held = state.providers().get(&card.provider_id).and_then(|record| record.platform.attestation.as_ref());
    match held {
        Some(held) if held.digest != named => Err(Code::AttestationUnknown.because(format!(
            "the card names attestation {named}, the one held here is {}; name that or attest again",
            held.digest
        ))),
        None => Err(Code::AttestationUnknown
            .because(format!("the card names attestation {named}, none of this provider is held here; attest first"))),
        Some(held) if at.time_ms >= held.expires_ms => Err(Code::AttestationStale.because(format!(
            "the attestation counted until {} ms, it is {} ms now; attest again",
            held.expires_ms, at.time_ms
        ))),
        Some(_) => Ok(()),
    }
}

fn check_unattested(rule: &AttestationRule, card: &ProviderCard) -> Result<(), Refusal> {
    let policy = rule.policy.fingerprint();
    if rule.required {
        return Err(Code::AttestationMissing.because(format!(
            "this market admits only attested providers (policy {policy}, root {}), and the card names no attestation",
            rule.policy.root().label()
        )));
    }
    match card.offers.iter().find(|offer| offer.capabilities.tdx_capable) {
        Some(offer) => Err(Code::AttestationMissing.because(format!(
            "offer {} claims TDX, which only an attested provider may do here (policy {policy}, root {})",
            offer.name,
            rule.policy.root().label()
        ))),
        None => Ok(()),
    }
}

fn rule(state: &MarketState) -> Result<&AttestationRule, Refusal> {
    state.params().attestation.as_ref().ok_or_else(not_asked)
}

fn not_asked() -> Refusal {
    Code::AttestationNotAsked.because("this market verifies no attestation; leave it out")
}
