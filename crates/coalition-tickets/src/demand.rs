//! What a door demands, as a declaration: it can be compared, named, and folded into a config before anything is enforced.
//!
//! Every demand has one access rule that stands for it in a config ([`Demand::rule`]). Rules that configs have no words for,
//! such as alternatives, are *policies published elsewhere*: the rule carries their digest. So what is enforced and what was
//! published cannot drift apart: either a door is built from the config's rules, or its fingerprint is not the config's.

use coalition::tickets::{AclComposition, AclRule};
use coalition::{UniqueId, hash_many};
use coalition_attest::TrustRoot;

use crate::admission::Admission;
use crate::resources::{Resources, Unresolved};
use crate::tdx::Tdx;

const VERSION: u8 = 1;
const TAG_SEAT: &[u8] = b"coalition/tickets/seat";
const TAG_ACL_OF: &[u8] = b"coalition/tickets/acl-of";
const TAG_ALL: &[u8] = b"coalition/tickets/all";
const TAG_ANY: &[u8] = b"coalition/tickets/any";

/// One demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Demand {
    /// A rule as configs have it.
    Rule(AclRule),
    /// An attestation.
    Tdx(Tdx),
    /// A seat in an organism's committee.
    Seat(UniqueId),
    /// What an organism's own access rules demand.
    AclOf(UniqueId),
    /// All of these.
    All(Vec<Self>),
    /// At least one of these.
    Any(Vec<Self>),
}

impl Demand {
    /// The access rule that stands for it.
    #[must_use]
    pub fn rule(&self) -> AclRule {
        match self {
            Self::Rule(rule) => *rule,
            Self::Tdx(tdx) => tdx.rule(),
            Self::Seat(organism) => AclRule::Policy(hash_many(&[&[VERSION], TAG_SEAT, organism.as_bytes()])),
            Self::AclOf(organism) => AclRule::Policy(hash_many(&[&[VERSION], TAG_ACL_OF, organism.as_bytes()])),
            Self::All(demands) => composed(TAG_ALL, demands),
            Self::Any(demands) => composed(TAG_ANY, demands),
        }
    }

    /// The same with every attestation under this root. Rules that are a digest stay what they are.
    #[must_use]
    pub fn under_root(self, root: &TrustRoot) -> Self {
        let all = |demands: Vec<Self>| demands.into_iter().map(|demand| demand.under_root(root)).collect();
        match self {
            Self::Rule(AclRule::Tdx { mrtd, .. }) => Self::Rule(AclRule::Tdx { root: root.id(), mrtd }),
            Self::Tdx(tdx) => Self::Tdx(tdx.under_root(root)),
            Self::All(demands) => Self::All(all(demands)),
            Self::Any(demands) => Self::Any(all(demands)),
            other @ (Self::Rule(_) | Self::Seat(_) | Self::AclOf(_)) => other,
        }
    }
}

/// The rule of a composition: names the rules composed, and their order.
fn composed(tag: &[u8], demands: &[Demand]) -> AclRule {
    let count = (demands.len() as u64).to_le_bytes();
    let rules: Vec<Vec<u8>> = demands.iter().map(|demand| demand.rule().to_bytes()).collect();
    let mut parts: Vec<&[u8]> = vec![&[VERSION], tag, &count];
    parts.extend(rules.iter().map(Vec::as_slice));
    AclRule::Policy(hash_many(&parts))
}

impl From<AclRule> for Demand {
    fn from(rule: AclRule) -> Self {
        Self::Rule(rule)
    }
}

impl From<TicketValidator> for Demand {
    fn from(validator: TicketValidator) -> Self {
        Self::All(validator.demands)
    }
}

impl From<AclComposition<'_>> for Demand {
    fn from(rules: AclComposition<'_>) -> Self {
        TicketValidator::from(rules).into()
    }
}

impl From<Or> for Demand {
    fn from(or: Or) -> Self {
        Self::Any(or.0)
    }
}

impl From<And> for Demand {
    fn from(and: And) -> Self {
        Self::All(and.0)
    }
}

/// Several demands, each of which has to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct And(Vec<Demand>);

impl And {
    /// All of these.
    #[must_use]
    pub fn of<D: Into<Demand>>(demands: impl IntoIterator<Item = D>) -> Self {
        Self(demands.into_iter().map(Into::into).collect())
    }

    /// The same and one more.
    #[must_use]
    pub fn and(mut self, demand: impl Into<Demand>) -> Self {
        self.0.push(demand.into());
        self
    }
}

/// Several demands, one of which has to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Or(Vec<Demand>);

impl Or {
    /// One of these.
    #[must_use]
    pub fn of<D: Into<Demand>>(demands: impl IntoIterator<Item = D>) -> Self {
        Self(demands.into_iter().map(Into::into).collect())
    }

    /// The same and one more.
    #[must_use]
    pub fn or(mut self, demand: impl Into<Demand>) -> Self {
        self.0.push(demand.into());
        self
    }
}

/// What a door demands: every one of an ordered list. Without any, it is open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TicketValidator {
    demands: Vec<Demand>,
}

impl TicketValidator {
    /// An open door.
    #[must_use]
    pub const fn new() -> Self {
        Self { demands: Vec::new() }
    }

    /// Both of two demands, such as one's own access rules and a counterpart's measurements.
    #[must_use]
    pub fn compose(first: impl Into<Demand>, second: impl Into<Demand>) -> Self {
        Self::new().require_ticket(first).require_ticket(second)
    }

    /// The same, demanding this besides.
    #[must_use]
    pub fn require_ticket(mut self, demand: impl Into<Demand>) -> Self {
        match demand.into() {
            // One list, so that composing the rules of a config is that config's list.
            Demand::All(demands) => self.demands.extend(demands),
            other => self.demands.push(other),
        }
        self
    }

    /// The same, demanding this of the peer besides. As [`TicketValidator::require_ticket`]: the two words of the
    /// specification say who has to act, and what is checked is one thing.
    #[must_use]
    pub fn verify_peer(self, demand: impl Into<Demand>) -> Self {
        self.require_ticket(demand)
    }

    /// The same, demanding a ticket issued under this issuance root besides. Put it into an [`Or`] to recognise an issuer as
    /// one way in among others.
    #[must_use]
    pub fn recognise_issuer(self, root: UniqueId) -> Self {
        self.require_ticket(AclRule::Issuer(root))
    }

    /// The same with every attestation under this root instead of Intel's, for development. Another door: its fingerprint is
    /// another, and no config that names Intel's root is satisfied by it.
    #[must_use]
    pub fn under_root(self, root: &TrustRoot) -> Self {
        Self { demands: self.demands.into_iter().map(|demand| demand.under_root(root)).collect() }
    }

    /// The demands, in order.
    #[must_use]
    pub fn demands(&self) -> &[Demand] {
        &self.demands
    }

    /// The access rules that stand for it in a config.
    #[must_use]
    pub fn acl_rules(&self) -> Vec<AclRule> {
        self.demands.iter().map(Demand::rule).collect()
    }

    /// The fingerprint of these access rules, as a config folds it.
    #[must_use]
    pub fn fingerprint(&self) -> UniqueId {
        AclComposition::new(&self.acl_rules()).fingerprint()
    }

    /// Makes it enforceable with what the verifier knows.
    ///
    /// # Errors
    /// [`Unresolved`] for the first demand that could not be judged.
    pub fn enforce(&self, resources: &Resources) -> Result<Admission, Unresolved> {
        Admission::new(self, resources)
    }
}

impl From<AclComposition<'_>> for TicketValidator {
    fn from(acl: AclComposition<'_>) -> Self {
        Self { demands: acl.rules().iter().copied().map(Demand::Rule).collect() }
    }
}
