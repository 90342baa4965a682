//! Full verification of a TDX quote under one policy at one time.
//!
//! Order: form; the root the chain ends in; collateral and the chains in it; then, in the library, revocation lists, TCB info, QE identity,
//! platform chain, QE report, attestation key, signature, TCB level, attributes; then the policy's own demands. The
//! first that fails is the reason.

use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::{PckCertFlag, QuoteClaims, QuotePolicy};
use rustls::pki_types::CertificateDer;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use webpki::{EndEntityCert, Error as CertificateError};

use crate::binding::{Expect, differing_parts};
use crate::collateral::{Collateral, CollateralError, CollateralSource};
use crate::diagnose::{Judged, refusal};
use crate::policy::{BindingRule, PlatformFlag, Policy, TcbStatus};
use crate::quote::{Quote, decode_pem};
use crate::root;
use crate::verdict::{CollateralUsed, Guest, Invalid, Outcome, Unchecked, Verdict};

/// Judges quotes under one policy. Make one and keep it.
pub struct Verifier {
    policy: Policy,
    fingerprint: coalition::UniqueId,
    engine: QuoteVerifier,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Verifier({}, {})", self.policy.root(), self.fingerprint)
    }
}

impl Verifier {
    /// A verifier for one policy.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        let engine = QuoteVerifier::new(policy.root().certificate().to_vec());
        Self { fingerprint: policy.fingerprint(), policy, engine }
    }

    /// The policy.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The policy's fingerprint.
    #[must_use]
    pub const fn policy_fingerprint(&self) -> coalition::UniqueId {
        self.fingerprint
    }

    /// Parses a quote, looks its collateral up and judges it at `now_s`, Unix seconds.
    #[must_use]
    pub fn verify(&self, quote: &[u8], source: &dyn CollateralSource, expect: &Expect, now_s: u64) -> Verdict {
        match Quote::parse(quote) {
            Ok(quote) => self.verify_quote(&quote, source, expect, now_s),
            Err(error) => self.verdict(None, None, expect, now_s, Outcome::Invalid(error.into())),
        }
    }

    /// Looks the collateral of a parsed quote up and judges it at `now_s`, Unix seconds.
    #[must_use]
    pub fn verify_quote(&self, quote: &Quote, source: &dyn CollateralSource, expect: &Expect, now_s: u64) -> Verdict {
        match self.find_collateral(quote, source) {
            Ok(collateral) => self.judge(quote, &collateral, expect, now_s),
            Err(outcome) => self.verdict(Some(quote), None, expect, now_s, outcome),
        }
    }

    /// Judges a parsed quote with this collateral at `now_s`, Unix seconds.
    #[must_use]
    pub fn judge(&self, quote: &Quote, collateral: &Collateral, expect: &Expect, now_s: u64) -> Verdict {
        let mut verdict = self.verdict(Some(quote), Some(collateral), expect, now_s, Outcome::Valid);
        if let Err(invalid) = self.check_root(quote) {
            verdict.outcome = Outcome::Invalid(invalid);
            return verdict;
        }
        let crl_issuer = match self.check_chains(collateral) {
            Ok(crl_issuer) => crl_issuer,
            Err(outcome) => {
                verdict.outcome = outcome;
                return verdict;
            }
        };
        let appraisal = QuotePolicy::claims_only(now_s);
        match self.engine.verify_with_policy(quote.bytes(), collateral.bundle(), now_s, &appraisal) {
            Ok(claims) => {
                self.appraise(&mut verdict, quote, &claims, collateral, expect);
                if verdict.is_valid() && crl_issuer != quote.pck_chain()[1] {
                    let other = "another issuer of the platform revocation list".to_owned();
                    verdict.outcome = Outcome::CouldNotCheck(Unchecked::CollateralOfAnother(other));
                }
            }
            Err(error) => {
                let root = self.policy.root().certificate();
                verdict.outcome = match error.downcast_ref::<CertificateError>() {
                    Some(error) => Judged { quote, collateral, root, now_s }.certificate(error),
                    None => refusal(&format!("{error:#}")),
                };
            }
        }
        verdict
    }

    /// The first second, Unix, at which a valid verdict of this verifier no longer holds: its collateral has expired or grown
    /// too old, or its nonce has. None when it is not valid.
    #[must_use]
    pub fn valid_until_s(&self, verdict: &Verdict, expect: &Expect) -> Option<u64> {
        if !verdict.is_valid() {
            return None;
        }
        let used = verdict.collateral?;
        // A revocation list has expired in the very second it names.
        let collateral = used.expires_s?;
        let end = |limit: Option<u64>, since: Option<u64>| {
            limit.zip(since).map_or(u64::MAX, |(max, since)| since.saturating_add(max).saturating_add(1))
        };
        let nonce = end(self.policy.quote_age_limit_s(), expect.issued_s());
        let aged = end(self.policy.collateral_age_limit_s(), used.issued_s);
        Some(collateral.min(nonce).min(aged))
    }

    /// A quote of another root is recognised before its collateral matters.
    fn check_root(&self, quote: &Quote) -> Result<(), Invalid> {
        let found = quote.pck_chain()[2].as_slice();
        if found == self.policy.root().certificate() {
            return Ok(());
        }
        let (found, found_label) = root::claimed(found);
        Err(Invalid::WrongRoot { expected: self.policy.root().label(), found, found_label })
    }

    /// The library looks only at what it needs of the collateral's chains. Here each must be an issuer under the policy's
    /// root, so that a damaged one is the collateral's fault and no certificate goes unread. Answers the issuer of the
    /// platform's revocation list, which must be that of the platform.
    fn check_chains(&self, collateral: &Collateral) -> Result<Vec<u8>, Outcome> {
        let bundle = collateral.bundle();
        self.issuer("QE identity", &bundle.qe_identity_issuer_chain)?;
        self.issuer("TCB info", &bundle.tcb_info_issuer_chain)?;
        self.issuer("platform revocation list", &bundle.pck_crl_issuer_chain)
    }

    fn issuer(&self, what: &str, chain: &str) -> Result<Vec<u8>, Outcome> {
        let chain = decode_pem(chain.trim_end_matches('\0')).unwrap_or_default();
        let Ok([issuer, root]) = <[Vec<u8>; 2]>::try_from(chain) else {
            let malformed = format!("the issuers of its {what} are not two certificates");
            return Err(Outcome::CouldNotCheck(Unchecked::CollateralMalformed(malformed)));
        };
        if EndEntityCert::try_from(&CertificateDer::from_slice(&issuer)).is_err() {
            let malformed = format!("the issuer of its {what} is no certificate");
            return Err(Outcome::CouldNotCheck(Unchecked::CollateralMalformed(malformed)));
        }
        if root != self.policy.root().certificate() {
            let forged = format!("the issuers of its {what} end in another certificate");
            return Err(Outcome::CouldNotCheck(Unchecked::CollateralForged(forged)));
        }
        Ok(issuer)
    }

    fn find_collateral(&self, quote: &Quote, source: &dyn CollateralSource) -> Result<Collateral, Outcome> {
        self.check_root(quote).map_err(Outcome::Invalid)?;
        let key = quote.collateral_key().map_err(|e| Outcome::Invalid(Invalid::PlatformCertificate(e)))?;
        source.collateral(key).map_err(|error| {
            Outcome::CouldNotCheck(match error {
                CollateralError::Malformed(message) => Unchecked::CollateralMalformed(message),
                CollateralError::File { path, source } => {
                    Unchecked::CollateralMissing(format!("{}: {source}", path.display()))
                }
                other => Unchecked::CollateralMissing(other.to_string()),
            })
        })
    }

    fn verdict(
        &self,
        quote: Option<&Quote>,
        collateral: Option<&Collateral>,
        expect: &Expect,
        now_s: u64,
        outcome: Outcome,
    ) -> Verdict {
        let collateral = collateral.map(|c| CollateralUsed {
            digest: c.digest(),
            origin: c.origin(),
            offline: c.origin().is_offline(),
            issued_s: None,
            expires_s: None,
            tcb_evaluation: None,
        });
        Verdict {
            outcome,
            root: self.policy.root().clone(),
            policy: self.fingerprint,
            pinned: self.policy.registers().keys().copied().collect(),
            quote: quote.map(Quote::digest),
            checked_at_s: now_s,
            quote_age_s: expect.issued_s().and_then(|issued| now_s.checked_sub(issued)),
            bound: expect.report_data().is_some(),
            collateral,
            guest: None,
        }
    }

    /// Fills in what verified, then asks the policy.
    fn appraise(
        &self,
        verdict: &mut Verdict,
        quote: &Quote,
        claims: &QuoteClaims,
        collateral: &Collateral,
        expect: &Expect,
    ) {
        let head = Head::of(&collateral.bundle().tcb_info);
        let issued_s = head.as_ref().and_then(Head::issued_s);
        if let Some(used) = &mut verdict.collateral {
            used.issued_s = issued_s;
            used.expires_s = Some(claims.earliest_expiration_date);
            used.tcb_evaluation = Some(claims.tcb.eval_data_number);
        }
        let Some(tcb) = status(claims.tcb.status) else {
            verdict.outcome = Outcome::Invalid(Invalid::TcbRevoked);
            return;
        };
        let advisories = advisories(claims);
        verdict.guest = Some(Guest {
            measurements: quote.measurements(),
            report_data: quote.report_data(),
            fmspc: claims.platform.pck.fmspc,
            tcb,
            advisories,
        });
        let guest = verdict.guest.as_ref().expect("set just above");
        let outcome = self
            .check_collateral(claims, head.as_ref(), verdict.checked_at_s)
            .and_then(|()| self.check_platform(claims, guest))
            .and_then(|()| self.check_registers(guest))
            .and_then(|()| self.check_binding(guest, expect, verdict.checked_at_s));
        verdict.outcome = outcome.err().unwrap_or(Outcome::Valid);
    }

    fn check_collateral(&self, claims: &QuoteClaims, head: Option<&Head<'_>>, now_s: u64) -> Result<(), Outcome> {
        let malformed = |what: &str| Outcome::CouldNotCheck(Unchecked::CollateralMalformed(what.to_owned()));
        let head = head.ok_or_else(|| malformed("its TCB info has no date or enclave id"))?;
        // The library compares the platform family and leaves this to its caller.
        if !head.pce_id.eq_ignore_ascii_case(&hex::encode(&claims.platform.pck.pce_id)) {
            let other = "another provisioning enclave (PCE id)".to_owned();
            return Err(Outcome::CouldNotCheck(Unchecked::CollateralOfAnother(other)));
        }
        let found = claims.tcb.eval_data_number;
        if let Some(min) = self.policy.tcb_evaluation_floor().filter(|min| found < *min) {
            return Err(Outcome::CouldNotCheck(Unchecked::CollateralEvaluation { found, min }));
        }
        let Some(max_s) = self.policy.collateral_age_limit_s() else { return Ok(()) };
        let issued = head.issued_s().ok_or_else(|| malformed("the issue date of its TCB info is no date"))?;
        let age_s = now_s.saturating_sub(issued);
        if age_s > max_s {
            return Err(Outcome::CouldNotCheck(Unchecked::CollateralOld { age_s, max_s }));
        }
        Ok(())
    }

    fn check_platform(&self, claims: &QuoteClaims, guest: &Guest) -> Result<(), Outcome> {
        if !self.policy.accepts(guest.tcb) {
            let advisories = guest.advisories.clone();
            return Err(Outcome::Invalid(Invalid::Tcb { status: guest.tcb, advisories }));
        }
        if let Some(name) = guest.advisories.iter().find(|name| self.policy.rejects_advisory(name)) {
            return Err(Outcome::Invalid(Invalid::Advisory(name.clone())));
        }
        let pck = &claims.platform.pck;
        let flags = [
            (PlatformFlag::DynamicPlatform, pck.dynamic_platform),
            (PlatformFlag::CachedKeys, pck.cached_keys),
            (PlatformFlag::Smt, pck.smt_enabled),
        ];
        let refused = flags.into_iter().find(|(flag, set)| *set == PckCertFlag::True && !self.policy.allows(*flag));
        refused.map_or(Ok(()), |(flag, _)| Err(Outcome::Invalid(Invalid::Flag(flag))))
    }

    fn check_registers(&self, guest: &Guest) -> Result<(), Outcome> {
        for (register, allowed) in self.policy.registers() {
            let found = guest.measurements.get(*register);
            if !allowed.contains(&found) {
                let allowed = allowed.iter().copied().collect();
                return Err(Outcome::Invalid(Invalid::Register { register: *register, found, allowed }));
            }
        }
        Ok(())
    }

    fn check_binding(&self, guest: &Guest, expect: &Expect, now_s: u64) -> Result<(), Outcome> {
        match expect.report_data() {
            Some(expected) if *expected != guest.report_data => {
                let parts = match expect {
                    Expect::Bound { .. } => differing_parts(expected, &guest.report_data),
                    _ => Vec::new(),
                };
                return Err(Outcome::Invalid(Invalid::ReportData(parts)));
            }
            None if self.policy.binding_rule() == BindingRule::Required => {
                return Err(Outcome::CouldNotCheck(Unchecked::BindingUnknown));
            }
            _ => {}
        }
        let issued_s = expect.issued_s();
        if let Some(issued_s) = issued_s.filter(|issued| *issued > now_s) {
            return Err(Outcome::CouldNotCheck(Unchecked::NonceInFuture { issued_s, now_s }));
        }
        let Some(max_s) = self.policy.quote_age_limit_s() else { return Ok(()) };
        let age_s = now_s - issued_s.ok_or(Outcome::CouldNotCheck(Unchecked::AgeUnknown))?;
        if age_s > max_s {
            return Err(Outcome::Invalid(Invalid::TooOld { age_s, max_s }));
        }
        Ok(())
    }
}

/// Every advisory that applies: to the launch TCB, to the current one, and to the quoting enclave.
fn advisories(claims: &QuoteClaims) -> Vec<String> {
    let current = claims.platform.current_tcb_level.iter().flat_map(|level| &level.advisory_ids);
    let mut all: Vec<String> = claims.tcb.advisory_ids.iter().chain(current).cloned().collect();
    all.sort();
    all.dedup();
    all
}

/// None for a revoked level, which the library has refused already.
const fn status(status: dcap_qvl::TcbStatus) -> Option<TcbStatus> {
    use dcap_qvl::TcbStatus as Theirs;
    Some(match status {
        Theirs::UpToDate => TcbStatus::UpToDate,
        Theirs::SWHardeningNeeded => TcbStatus::SWHardeningNeeded,
        Theirs::ConfigurationNeeded => TcbStatus::ConfigurationNeeded,
        Theirs::ConfigurationAndSWHardeningNeeded => TcbStatus::ConfigurationAndSWHardeningNeeded,
        Theirs::OutOfDate => TcbStatus::OutOfDate,
        Theirs::OutOfDateConfigurationNeeded => TcbStatus::OutOfDateConfigurationNeeded,
        Theirs::TDRelaunchAdvised => TcbStatus::TDRelaunchAdvised,
        Theirs::TDRelaunchAdvisedConfigurationNeeded => TcbStatus::TDRelaunchAdvisedConfigurationNeeded,
        Theirs::Revoked => return None,
    })
}

/// What is read here of TCB info that has verified.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head<'a> {
    issue_date: &'a str,
    pce_id: &'a str,
}

impl<'a> Head<'a> {
    fn of(tcb_info: &'a str) -> Option<Self> {
        serde_json::from_str(tcb_info).ok()
    }

    /// Its issue date, Unix seconds.
    fn issued_s(&self) -> Option<u64> {
        let at = OffsetDateTime::parse(self.issue_date, &Rfc3339).ok()?;
        u64::try_from(at.unix_timestamp()).ok()
    }
}
