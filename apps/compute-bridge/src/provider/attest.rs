//! The provider's own attestation: asked for at boot, renewed before it grows old, named on the card.

use std::sync::PoisonError;
use std::time::Duration;

use coalition::UniqueId;
use coalition_compute::machine::CHALLENGE_MS;
use coalition_compute::{
    AskChallenge, Attest, Attestation, Challenge, Command, RefusalCode, Signed, Statement, provider_report_data,
};
use coalition_organism::random_write_id;

use super::card::next_sequence;
use super::{Context, WRITE};
use crate::fleet::chain;
use crate::market::MarketError;
use crate::platform::{Platform, PlatformError};

/// Wait for what was just certified to be folded here.
const SEEN: Duration = Duration::from_secs(10);

/// How this bridge attests itself.
#[derive(Clone, Debug)]
pub struct Attestor {
    /// Where quotes come from.
    pub platform: Platform,
    /// Hash of the boot file, bound in the quote.
    pub config: UniqueId,
}

/// Why the bridge is not attested.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// No evidence.
    #[error("the bridge cannot attest itself")]
    Platform(#[from] PlatformError),
    /// The market refused or did not answer.
    #[error(transparent)]
    Market(#[from] MarketError),
    /// Certified, but not seen here in time.
    #[error("the market's log does not show the {0} yet")]
    NotSeen(&'static str),
}

impl AttestError {
    /// Whether the market said no to what this bridge can show: trying again soon does not help.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Market(MarketError::Refused(refusal)) if refusal.code.starts_with("attestation_"))
    }
}

/// The attestation to name on the card. `None` when the market verifies none, or this bridge has nothing to show.
pub(super) async fn current(context: &Context) -> Result<Option<Attestation>, AttestError> {
    let (Some(attestor), Some(rule)) = (&context.parts.attestor, context.parts.market.attestation_rule()) else {
        return Ok(None);
    };
    let own = *context.attested.lock().unwrap_or_else(PoisonError::into_inner);
    let held = context.parts.market.attestation(context.id);
    let held = held.filter(|held| own == Some(held.digest) && held.policy == rule.policy.fingerprint());
    let left_ms = |held: &Attestation| held.expires_ms.saturating_sub(now_ms(context));
    if let Some(young) =
        held.as_ref().filter(|held| left_ms(held) > held.expires_ms.saturating_sub(held.challenged_ms) / 2)
    {
        return Ok(Some(young.clone()));
    }
    let attested = match renew(context, attestor).await {
        Ok(attested) => attested,
        // The one held still counts; it is tried again with the next card.
        Err(error) => match held.filter(|held| left_ms(held) > 0) {
            Some(held) => {
                tracing::warn!(problem = %chain(&error), "the attestation could not be renewed yet");
                return Ok(Some(held));
            }
            None => return Err(error),
        },
    };
    *context.attested.lock().unwrap_or_else(PoisonError::into_inner) = Some(attested.digest);
    tracing::info!(label = attested.root.label(), mrtd = %attested.mrtd, "the market verified this bridge's attestation");
    context.parts.status.event(format!("attested: {}", attested.root.label()));
    Ok(Some(attested))
}

/// The later of committee time as last seen and the own clock.
fn now_ms(context: &Context) -> u64 {
    context.parts.market.at().time_ms.max(crate::now_ms())
}

async fn renew(context: &Context, attestor: &Attestor) -> Result<Attestation, AttestError> {
    let market = &context.parts.market;
    let challenge = challenge(context).await?;
    let key = context.parts.signer.verifying_key().to_bytes();
    let report_data = provider_report_data(market.organism(), &key, attestor.config, challenge);
    let shown = attestor.platform.show_aside(report_data).await?;
    let digest = shown.digest;
    let sequence = next_sequence(context);
    let attest = Attest { sequence, provider: context.id, config: attestor.config, evidence: shown.bytes };
    write(context, attest, Command::Attest).await?;
    seen(context, "attestation", || market.attestation(context.id).filter(|held| held.digest == digest)).await
}

/// An unanswered challenge that is young enough, or a new one: a bridge that is refused again and again asks only now and then.
async fn challenge(context: &Context) -> Result<Challenge, AttestError> {
    let market = &context.parts.market;
    let before = market.challenge(context.id);
    let now_ms = now_ms(context);
    if let Some(young) = before.filter(|given| now_ms.saturating_sub(given.time_ms) < CHALLENGE_MS / 2) {
        return Ok(young);
    }
    let asked = AskChallenge { sequence: next_sequence(context), provider: context.id, asked_at: context.tick() };
    write(context, asked, Command::AskChallenge).await?;
    seen(context, "challenge", || market.challenge(context.id).filter(|given| Some(*given) != before)).await
}

async fn write<T: Statement>(
    context: &Context,
    statement: T,
    command: impl FnOnce(Signed<T>) -> Command,
) -> Result<(), MarketError> {
    let signed = Signed::sign(statement, &context.parts.signer, &context.parts.market.organism());
    let signed = signed.map_err(|invalid| MarketError::Refused(RefusalCode::Invalid.because(invalid.to_string())))?;
    context.parts.market.write(random_write_id(), command(signed), WRITE).await
}

/// Waits until the fold shows what is looked for.
async fn seen<T>(context: &Context, what: &'static str, look: impl Fn() -> Option<T>) -> Result<T, AttestError> {
    let waiting = async {
        let mut folded = 0;
        loop {
            if let Some(found) = look() {
                return found;
            }
            folded = context.parts.market.changed(folded, super::LOOK).await;
        }
    };
    tokio::time::timeout(SEEN, waiting).await.map_err(|_| AttestError::NotSeen(what))
}
