//! The judgement: who may come in, with what, and until when.

use std::sync::Arc;

use coalition::UniqueId;
use coalition_attest::binding::differing_parts;
use coalition_attest::{Evidence, Expect, Invalid, Outcome, Quote, Verdict, Verifier};

use crate::demand::TicketValidator;
use crate::issuer::Charter;
use crate::presentation::{Presentation, Shown};
use crate::refused::Refused;
use crate::resources::{Resources, Unresolved};
use crate::sources::{ENDLESS_FOR_S, PeerKey, Reputation, Seats, Settlements};
use crate::tdx_ticket::{Carried, TdxTicket};

const ATTESTATION: &str = "attestation";
const ISSUED: &str = "ticket of the issuer";
const SETTLEMENT: &str = "settlement pointer";

/// Who stands at which door. The caller has authenticated the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bearer {
    /// The network both are on.
    pub network: UniqueId,
    /// The door: the id of the organism, stream or group.
    pub audience: UniqueId,
    /// The peer's public key on that network.
    pub peer: PeerKey,
}

/// A demand that can be judged.
pub(crate) enum Check {
    Tdx(Arc<Verifier>),
    Issued { root: UniqueId, charter: Charter },
    Seat { organism: UniqueId, source: Arc<dyn Seats> },
    Reputation { organism: UniqueId, floor_ppm: u32, source: Arc<dyn Reputation> },
    Settlement { organism: UniqueId, source: Arc<dyn Settlements> },
    All(Vec<Self>),
    Any(Vec<Self>),
}

/// An enforceable [`TicketValidator`].
pub struct Admission {
    demands: Check,
    fingerprint: UniqueId,
    resources: Resources,
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Admission({})", self.fingerprint)
    }
}

impl Admission {
    pub(crate) fn new(validator: &TicketValidator, resources: &Resources) -> Result<Self, Unresolved> {
        let demands = Check::All(resources.resolve_all(validator.demands(), 0)?);
        Ok(Self { demands, fingerprint: validator.fingerprint(), resources: resources.clone() })
    }

    /// The fingerprint of the access rules it enforces, as a config folds them.
    #[must_use]
    pub const fn fingerprint(&self) -> UniqueId {
        self.fingerprint
    }

    /// Whether it demands nothing.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(&self.demands, Check::All(demands) if demands.is_empty())
    }

    /// Changes whenever seats change hands; earlier judgements then count no more.
    pub(crate) fn edition(&self) -> u64 {
        self.resources.seats_edition()
    }

    /// The first second, Unix, at which what was shown no longer admits the bearer; `u64::MAX` when nothing of it ends.
    ///
    /// # Errors
    /// [`Refused`] with the first demand that does not hold.
    pub fn judge(&self, bearer: &Bearer, shown: &Presentation, now_s: u64) -> Result<u64, Refused> {
        Judging { bearer, shown, now_s, resources: &self.resources }.check(&self.demands)
    }
}

/// One judgement under way.
struct Judging<'a> {
    bearer: &'a Bearer,
    shown: &'a Presentation,
    now_s: u64,
    resources: &'a Resources,
}

impl Judging<'_> {
    fn check(&self, check: &Check) -> Result<u64, Refused> {
        let until_s = match check {
            Check::All(checks) => {
                checks.iter().try_fold(u64::MAX, |until, check| self.check(check).map(|next| until.min(next)))
            }
            Check::Any(checks) => self.any(checks),
            Check::Tdx(verifier) => self.tdx(verifier),
            Check::Issued { root, charter } => self.issued(*root, charter),
            Check::Seat { organism, source } => {
                let until = source.seated_until_s(*organism, &self.bearer.peer);
                let until = until.filter(|until| *until > self.now_s).ok_or(Refused::NotSeated(*organism))?;
                // Seats change hands: what has no end is looked at again.
                Ok(if until == u64::MAX { self.now_s.saturating_add(ENDLESS_FOR_S) } else { until })
            }
            Check::Reputation { organism, floor_ppm, source } => {
                let card = source.card(*organism, &self.bearer.peer).filter(|card| card.until_s > self.now_s);
                let card = card.ok_or(Refused::NoCard(*organism))?;
                let (found_ppm, floor_ppm) = (card.score_ppm, *floor_ppm);
                if found_ppm < floor_ppm {
                    return Err(Refused::Floor { organism: *organism, found_ppm, floor_ppm });
                }
                Ok(card.until_s)
            }
            Check::Settlement { organism, source } => self.settlement(*organism, &**source),
        }?;
        // Whoever is admitted is admitted for a while: nothing here lets somebody in for no time.
        if until_s > self.now_s { Ok(until_s) } else { Err(Refused::Expired { at_s: until_s, now_s: self.now_s }) }
    }

    /// The way in that lasts longest.
    fn any(&self, checks: &[Check]) -> Result<u64, Refused> {
        let mut reasons = Vec::new();
        let mut longest = None;
        for check in checks {
            match self.check(check) {
                Ok(until) => longest = longest.max(Some(until)),
                Err(reason) => reasons.push(reason),
            }
        }
        longest.ok_or(Refused::NoneOf(reasons))
    }

    /// The ticket of a kind that lasts longest; if none holds, why the first one does not.
    fn best<'s, T: ?Sized + 's>(
        kind: &'static str,
        tickets: impl Iterator<Item = &'s T>,
        judge: impl Fn(&'s T) -> Result<u64, Refused>,
    ) -> Result<u64, Refused> {
        let mut best = Err(Refused::Missing(kind));
        for ticket in tickets {
            best = match (best, judge(ticket)) {
                (Ok(one), Ok(other)) => Ok(one.max(other)),
                (Ok(held), Err(_)) | (Err(_), Ok(held)) => Ok(held),
                (Err(Refused::Missing(_)), Err(reason)) | (Err(reason), Err(_)) => Err(reason),
            };
        }
        best
    }

    fn issued(&self, root: UniqueId, charter: &Charter) -> Result<u64, Refused> {
        let issued = self.shown.tickets().iter().filter_map(|ticket| match ticket {
            Shown::Issued(ticket) => Some(ticket),
            _ => None,
        });
        Self::best(ISSUED, issued, |ticket| ticket.verify(root, charter, self.bearer, self.now_s))
    }

    fn settlement(&self, organism: UniqueId, source: &dyn Settlements) -> Result<u64, Refused> {
        let pointers = self.shown.tickets().iter().filter_map(|ticket| match ticket {
            Shown::Settlement(pointer) => Some(pointer),
            _ => None,
        });
        Self::best(SETTLEMENT, pointers, |pointer| {
            let found = source.settlement(pointer).filter(|_| pointer.organism == organism);
            let own = found.filter(|found| found.peer == self.bearer.peer && found.until_s > self.now_s);
            own.map(|settlement| settlement.until_s).ok_or(Refused::NoSettlement(organism))
        })
    }

    fn tdx(&self, verifier: &Verifier) -> Result<u64, Refused> {
        let attestations = self.shown.tickets().iter().filter_map(|ticket| match ticket {
            Shown::Tdx(bytes) => Some(bytes.as_slice()),
            _ => None,
        });
        Self::best(ATTESTATION, attestations, |bytes| self.attestation(verifier, bytes))
    }

    fn attestation(&self, verifier: &Verifier, bytes: &[u8]) -> Result<u64, Refused> {
        let malformed = |what: String| Refused::Malformed { kind: ATTESTATION, what };
        let ticket = TdxTicket::from_bytes(bytes).map_err(|error| malformed(error.to_string()))?;
        let is_dated = self.resources.nonces().is_some_and(|nonces| nonces.is_dated(self.bearer, &ticket.nonce));
        if verifier.policy().quote_age_limit_s().is_some() && !is_dated {
            return Err(Refused::Nonce);
        }
        let report_data = TdxTicket::report_data(self.bearer, ticket.nonce.value);
        // What the bearer says about the time of a nonce counts for nothing.
        let expect = Expect::Exact { report_data, issued_s: is_dated.then_some(ticket.nonce.issued_s) };
        let (own, verdicts) = (self.resources.collateral(), self.resources.verdicts());
        let (quote, verdict) = match &ticket.carried {
            Carried::Evidence(bytes) => {
                let evidence = Evidence::from_bytes(bytes).map_err(|error| malformed(error.to_string()))?;
                let verdict = evidence.judge(verifier, verdicts, own, &expect, self.now_s);
                (Quote::parse(&evidence.quote).ok(), verdict)
            }
            Carried::Slim(slim) => {
                let (quote, collateral) =
                    Quote::from_slim(slim, own).map_err(|error| malformed(format!("{error}{}", cause(&error))))?;
                let verdict = verdicts.judge(verifier, &quote, &collateral, &expect, self.now_s);
                (Some(quote), verdict)
            }
        };
        let until_s = verifier.valid_until_s(&verdict, &expect);
        until_s.ok_or_else(|| Refused::Attestation(Box::new(explained(verdict, quote.as_ref(), &report_data))))
    }
}

/// Names the parts in which a quote is bound to something else.
fn explained(mut verdict: Verdict, quote: Option<&Quote>, expected: &[u8; 64]) -> Verdict {
    if let (Outcome::Invalid(Invalid::ReportData(parts)), Some(quote)) = (&mut verdict.outcome, quote) {
        *parts = differing_parts(expected, &quote.report_data());
    }
    verdict
}

fn cause(error: &dyn std::error::Error) -> String {
    error.source().map(|source| format!(": {source}")).unwrap_or_default()
}
