//! Quotes of a workload's guest as a requester judges and shows them.

use coalition::{Mrtd, RequestId, UniqueId};
use coalition_attest::{
    CollateralSource, DEVELOPMENT_LABEL, Evidence, Outcome, Quote, Verdict, VerdictCache, Verifier,
};
use coalition_compute::{ComputeParams, expect_workload};
use coalition_shuffle::Posture;

use crate::{
    error::{CliError, Kind, Result},
    output::Paint,
};

/// What a person is told of a machine that nothing vouches for.
pub const NOT_ATTESTED: &str = "not attested";

/// Under which root the providers of a market have to be attested, or that they need not be.
pub fn market_posture(params: &ComputeParams) -> &'static str {
    params.attestation.as_ref().map_or(NOT_ATTESTED, |rule| rule.policy.root().label())
}

/// Text with a development root's label in red wherever it occurs.
pub fn labelled(text: &str, paint: impl Fn(Paint, &str) -> String) -> String {
    text.replace(DEVELOPMENT_LABEL, &paint(Paint::Bad, DEVELOPMENT_LABEL))
}

/// A verdict for a person: green or red, and a development root's label always in red.
pub fn shown_verdict(verdict: &Verdict, paint: impl Fn(Paint, &str) -> String) -> String {
    let text = verdict.to_string();
    let (answer, rest) = match &verdict.outcome {
        Outcome::Valid => text.split_at("valid".len()),
        Outcome::Invalid(_) => text.split_at("invalid".len()),
        Outcome::CouldNotCheck(_) => text.split_at("could not check".len()),
    };
    let color = if verdict.is_valid() { Paint::Good } else { Paint::Bad };
    format!("{}{}", paint(color, answer), labelled(rest, paint))
}

/// Everything a workload's evidence is judged by.
#[derive(Debug, Clone, Copy)]
pub struct Workload<'a> {
    /// The market.
    pub organism: UniqueId,
    /// Its parameters; they name the policy.
    pub params: &'a ComputeParams,
    /// The request, which is the nonce.
    pub request: RequestId,
    /// The image it runs.
    pub image: UniqueId,
    /// The measurement the grant names.
    pub expected_mrtd: Option<Mrtd>,
    /// The key the receipt says the machine shows.
    pub host_key: [u8; 32],
    /// When the request was made, Unix milliseconds.
    pub requested_ms: u64,
}

/// Judges the evidence of a workload's guest at `now_ms`, Unix milliseconds, under the market's own policy with the granted
/// measurement. `own` collateral counts first; what came with the evidence only where that says nothing. `None` when the
/// market has no policy: then nothing says which root may vouch.
#[must_use]
pub fn judge(workload: &Workload<'_>, evidence: &Evidence, own: &dyn CollateralSource, now_ms: u64) -> Option<Verdict> {
    let rule = workload.params.attestation.as_ref()?;
    let verifier = Verifier::new(rule.policy.of_workload(workload.expected_mrtd));
    let requested_s = workload.requested_ms / 1_000;
    let expect =
        expect_workload(workload.organism, &workload.host_key, workload.image, workload.request.0, requested_s);
    Some(evidence.judge(&verifier, &VerdictCache::new(1), own, &expect, now_ms / 1_000))
}

/// What vouches for a machine, as far as anything does.
#[derive(Debug)]
pub struct Vouched {
    /// For people: the verdict, or that there is none and why.
    pub posture: String,
    /// What was found.
    pub verdict: Option<Verdict>,
}

/// What the verdict on a machine's evidence comes to, together with what its receipt says.
///
/// # Errors
/// [`Kind::Unproven`] when the machine must be inside TDX and nothing valid says so.
pub fn vouch(required: bool, receipt: Posture, verdict: Option<Verdict>) -> Result<Vouched> {
    if required {
        demand(verdict.as_ref())?;
    }
    let posture = match (&verdict, receipt) {
        (Some(verdict), _) => verdict.to_string(),
        (None, Posture::NotAttested) => NOT_ATTESTED.to_owned(),
        (None, _) => format!("{NOT_ATTESTED}: its quote did not come, or this market names no policy"),
    };
    Ok(Vouched { posture, verdict })
}

/// Refuses a machine that must be inside TDX and did not prove it.
///
/// # Errors
/// [`Kind::Unproven`] with the verdict's reason.
pub fn demand(verdict: Option<&Verdict>) -> Result<()> {
    let unproven = |code: &str, message: String| CliError::new(Kind::Unproven, code, message);
    let Some(verdict) = verdict else {
        let message = "the machine must be inside TDX, and no quote of it came";
        return Err(unproven("not_attested", message.to_owned()));
    };
    match (verdict.outcome.code(), verdict.outcome.message()) {
        (None, _) => Ok(()),
        (Some(code), message) => {
            let message = message.unwrap_or_default();
            Err(unproven(code, format!("the machine must be inside TDX, and its quote is not valid: {message}")))
        }
    }
}

/// Digest of a quote, as receipts name it; none when it is none.
#[must_use]
pub fn digest(evidence: &Evidence) -> Option<UniqueId> {
    Quote::parse(&evidence.quote).ok().map(|quote| quote.digest())
}

#[cfg(test)]
mod tests {
    use coalition_attest::{DevelopmentRoot, Measurements, Policy, QuoteSource, TrustRoot, evidence::Nowhere};
    use coalition_compute::{AttestationRule, workload_report_data};

    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;
    const MRTD: Mrtd = Mrtd([7; 48]);

    fn id(byte: u8) -> UniqueId {
        UniqueId::from_bytes([byte; 32])
    }

    fn params(root: TrustRoot) -> ComputeParams {
        let policy = Policy::servers(root).require_mrtd(Mrtd([1; 48])).max_quote_age_s(60).unwrap();
        ComputeParams::standard(1_000).with_attestation(AttestationRule { required: true, policy })
    }

    fn workload(params: &ComputeParams) -> Workload<'_> {
        Workload {
            organism: id(1),
            params,
            request: RequestId(id(2)),
            image: id(3),
            expected_mrtd: Some(MRTD),
            host_key: [4; 32],
            requested_ms: NOW_MS - 90_000,
        }
    }

    /// Every way in which a machine may not be the one that was asked for.
    #[test]
    fn only_the_granted_guest_with_this_host_key_for_this_request_is_valid() {
        let root = DevelopmentRoot::generate().unwrap();
        let own = params(root.trust_root().unwrap());
        let right = workload(&own);
        let data = workload_report_data(id(1), &[4; 32], id(3), id(2));
        let quote = root.guest(Measurements::of_mrtd(MRTD)).unwrap().quote(&data).unwrap();
        let evidence = Evidence { quote, collateral: Some(root.collateral(NOW_MS / 1_000).unwrap()) };
        let valid = judge(&right, &evidence, &Nowhere, NOW_MS).unwrap();
        assert!(valid.is_valid(), "{valid}");
        let shown = shown_verdict(&valid, |paint, text| format!("<{paint:?} {text}>"));
        assert!(shown.starts_with("<Good valid>") && shown.contains("<Bad DEVELOPMENT ROOT"), "{shown}");
        let intel = params(TrustRoot::Intel);
        let cases = [
            ("report_data", Workload { host_key: [5; 32], ..right }),
            ("report_data", Workload { request: RequestId(id(9)), ..right }),
            ("report_data", Workload { image: id(9), ..right }),
            ("report_data", Workload { organism: id(9), ..right }),
            ("register", Workload { expected_mrtd: Some(Mrtd([8; 48])), ..right }),
            ("wrong_root", Workload { params: &intel, ..right }),
            ("nonce_in_future", Workload { requested_ms: NOW_MS + 1_000, ..right }),
        ];
        for (code, wrong) in cases {
            let verdict = judge(&wrong, &evidence, &Nowhere, NOW_MS).unwrap();
            assert_eq!(verdict.outcome.code(), Some(code), "{verdict}");
            assert!(shown_verdict(&verdict, |paint, text| format!("<{paint:?} {text}>")).starts_with("<Bad "));
            // A machine that must be inside TDX is not taken with it; one that need not be is, and is told apart.
            let refused = vouch(true, Posture::Attested { quote: id(6) }, Some(verdict.clone())).unwrap_err();
            assert_eq!((refused.kind(), refused.code()), (Kind::Unproven, code));
            let taken = vouch(false, Posture::Attested { quote: id(6) }, Some(verdict)).unwrap();
            assert!(!taken.posture.starts_with("valid"), "{}", taken.posture);
        }
        let plain = ComputeParams::standard(1_000);
        assert!(judge(&Workload { params: &plain, ..right }, &evidence, &Nowhere, NOW_MS).is_none());
    }

    /// Nothing came, whatever the receipt claims.
    #[test]
    fn a_machine_without_a_quote_is_not_attested() {
        for receipt in [Posture::NotAttested, Posture::Attested { quote: id(1) }] {
            let refused = vouch(true, receipt, None).unwrap_err();
            assert_eq!((refused.kind(), refused.code()), (Kind::Unproven, "not_attested"));
            let taken = vouch(false, receipt, None).unwrap();
            assert!(taken.posture.starts_with(NOT_ATTESTED) && taken.verdict.is_none());
        }
    }

    /// Collateral lives for a month, a grant may live longer: what was fetched since counts first.
    #[test]
    fn newer_collateral_of_ones_own_counts_first() {
        let root = DevelopmentRoot::generate().unwrap();
        let own = params(root.trust_root().unwrap());
        let right = workload(&own);
        let data = workload_report_data(id(1), &[4; 32], id(3), id(2));
        let quote = root.guest(Measurements::of_mrtd(MRTD)).unwrap().quote(&data).unwrap();
        let evidence = Evidence { quote, collateral: Some(root.collateral(NOW_MS / 1_000).unwrap()) };
        let later_ms = NOW_MS + 400 * 24 * 3_600_000;
        let expired = judge(&right, &evidence, &Nowhere, later_ms).unwrap();
        assert_eq!(expired.outcome.code(), Some("collateral_expired"), "{expired}");
        let fresh = root.collateral(later_ms / 1_000).unwrap();
        let valid = judge(&right, &evidence, &fresh, later_ms).unwrap();
        assert!(valid.is_valid(), "{valid}");
    }
}
