//! Published stances: how a composition describes its consent, decisions, legitimacy, franchise and sovereignty.
//!
//! These types describe; nothing here enforces. Each enum tells with `is_substrate_enforced` whether the substrate's
//! own primitives bring about what the value says, or whether it is the publisher's commentary. A component that takes a
//! stance folds [`PoliticalStance::fingerprint`] into its content.

use crate::identity::{Preimage, UniqueId};
use crate::types::{AlmanacTick, EvidencePointer, MemberId, Mrtd};

const TAG_STANCE: &[u8] = b"coalition/stance";
const TAG_DELEGATION: &[u8] = b"coalition/delegation";
const TAG_CONSENT: &[u8] = b"coalition/consent-evidence";

/// How a party comes to be bound. Maps to the ticket validator at the admission boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConsentModel {
    /// Each bond is opted into.
    Voluntary,
    /// Using a surface counts as consent.
    Tacit,
    /// A delegate consents for others.
    Delegated,
    /// Parties are bound whether they agree or not.
    Compulsory,
}

impl ConsentModel {
    /// Only opt-in bonds are what the substrate itself brings about.
    #[must_use]
    pub const fn is_substrate_enforced(self) -> bool {
        matches!(self, Self::Voluntary)
    }

    /// Whether it leaves non-compulsion intact.
    #[must_use]
    pub const fn is_substrate_consistent(self) -> bool {
        !matches!(self, Self::Compulsory)
    }

    fn code(self) -> Vec<u8> {
        vec![match self {
            Self::Voluntary => 1,
            Self::Tacit => 2,
            Self::Delegated => 3,
            Self::Compulsory => 4,
        }]
    }
}

/// What records that a party consented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConsentEvidence {
    /// The digest of the quote it bonded with.
    SelfQuote(UniqueId),
    /// The digest of the ticket it bonded with.
    Ticket(UniqueId),
    /// An entry of a certified log.
    Commit(EvidencePointer),
}

impl ConsentEvidence {
    /// A certified commit is verified by the substrate; a bare digest is only named.
    #[must_use]
    pub const fn is_substrate_enforced(&self) -> bool {
        matches!(self, Self::Commit(_))
    }

    /// Digest of the evidence.
    #[must_use]
    pub fn fingerprint(&self) -> UniqueId {
        let preimage = Preimage::new(TAG_CONSENT);
        match self {
            Self::SelfQuote(digest) => preimage.part(&[1]).id(*digest),
            Self::Ticket(digest) => preimage.part(&[2]).id(*digest),
            Self::Commit(pointer) => {
                preimage.part(&[3]).id(pointer.organism).part(&pointer.index.to_be_bytes()).id(pointer.digest)
            }
        }
        .hash()
    }
}

/// How many must agree. Maps to a module's quorum or a committee's threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DecisionRule {
    /// One operator decides.
    SingleOperator,
    /// More than half.
    Majority,
    /// At least this share.
    Supermajority {
        /// Share needed, in basis points of all members.
        threshold_bps: u16,
    },
    /// Everyone.
    Unanimity,
    /// Members drawn by lot decide.
    Sortition {
        /// Members drawn.
        seats: u16,
    },
}

impl DecisionRule {
    /// Committees certify by quorum; drawing lots is up to the organism.
    #[must_use]
    pub const fn is_substrate_enforced(self) -> bool {
        !matches!(self, Self::Sortition { .. })
    }

    fn code(self) -> Vec<u8> {
        match self {
            Self::SingleOperator => vec![1],
            Self::Majority => vec![2],
            Self::Supermajority { threshold_bps } => tagged(3, &threshold_bps.to_be_bytes()),
            Self::Unanimity => vec![4],
            Self::Sortition { seats } => tagged(5, &seats.to_be_bytes()),
        }
    }
}

/// Whether and how a delegation can be taken back. Maps to the retirement markers it supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Revocability {
    /// At any time, by a retirement marker.
    AtWill,
    /// It ends by itself at this tick.
    AtTick(AlmanacTick),
    /// Only by the delegate's own retirement.
    ByDelegate,
    /// Never.
    Irrevocable,
}

impl Revocability {
    /// Bonds can always be dropped, so "never" is commentary.
    #[must_use]
    pub const fn is_substrate_enforced(self) -> bool {
        !matches!(self, Self::Irrevocable)
    }

    fn code(self) -> Vec<u8> {
        match self {
            Self::AtWill => vec![1],
            Self::AtTick(tick) => tagged(2, &tick.0.to_be_bytes()),
            Self::ByDelegate => vec![3],
            Self::Irrevocable => vec![4],
        }
    }
}

/// What is delegated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DelegationScope {
    /// Issuing tickets, through a shared issuer.
    TicketIssuance,
    /// Publishing commits, through a committee.
    Publication,
    /// Running a workload, through a compute grant.
    Compute,
}

impl DelegationScope {
    /// Each of the three is carried by a primitive.
    #[must_use]
    pub const fn is_substrate_enforced(self) -> bool {
        true
    }
}

/// Authority one member hands to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Delegation {
    /// Who delegates.
    pub delegator: MemberId,
    /// To whom.
    pub delegate: MemberId,
    /// What.
    pub scope: DelegationScope,
    /// How it ends.
    pub revocability: Revocability,
}

impl Delegation {
    /// Digest of the delegation.
    #[must_use]
    pub fn fingerprint(&self) -> UniqueId {
        let scope = match self.scope {
            DelegationScope::TicketIssuance => 1,
            DelegationScope::Publication => 2,
            DelegationScope::Compute => 3,
        };
        Preimage::new(TAG_DELEGATION)
            .part(self.delegator.as_bytes())
            .part(self.delegate.as_bytes())
            .part(&[scope])
            .part(&self.revocability.code())
            .hash()
    }
}

/// What a consumer's ticket validator checks before it believes a component: a set of grounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Legitimacy(u8);

impl Legitimacy {
    /// Its members opted in.
    pub const CONSENT_BIT: u8 = 1;
    /// It runs attested images.
    pub const ATTESTATION_BIT: u8 = 1 << 1;
    /// A reputation organism vouches for it.
    pub const REPUTATION_BIT: u8 = 1 << 2;
    /// Its history is on a Chronicle.
    pub const PROVENANCE_BIT: u8 = 1 << 3;
    /// Tradition, charisma, law: grounds outside the substrate.
    pub const EXTERNAL_BIT: u8 = 1 << 4;

    /// Consent alone.
    pub const CONSENT: Self = Self(Self::CONSENT_BIT);

    const ALL_BITS: u8 = 0b1_1111;

    /// A set of grounds, from the `_BIT` constants; other bits are dropped.
    #[must_use]
    pub const fn composed(bits: u8) -> Self {
        Self(bits & Self::ALL_BITS)
    }

    /// The set as bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether every ground in `bits` is claimed.
    #[must_use]
    pub const fn has(self, bits: u8) -> bool {
        self.0 & bits == bits
    }

    /// Whether the substrate can check every ground claimed.
    #[must_use]
    pub const fn is_substrate_enforced(self) -> bool {
        self.0 & Self::EXTERNAL_BIT == 0
    }
}

/// Who has a say. Maps to the admission criterion of a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FranchiseScope {
    /// Anyone who bonds.
    Open,
    /// Holders of tickets of this issuer.
    Ticketed {
        /// Issuance root.
        issuer: UniqueId,
    },
    /// Those who run this image.
    Attested {
        /// The measurement demanded.
        measurements: Mrtd,
    },
    /// Those with at least this score.
    Reputed {
        /// The reputation organism.
        organism: UniqueId,
        /// Lowest score, in parts per million.
        floor_ppm: u32,
    },
    /// A group described outside the substrate, by the digest of its description.
    External {
        /// Digest of the description.
        description: UniqueId,
    },
}

impl FranchiseScope {
    /// Whether a ticket validator can check membership.
    #[must_use]
    pub const fn is_substrate_enforced(&self) -> bool {
        !matches!(self, Self::External { .. })
    }

    fn code(&self) -> Vec<u8> {
        match self {
            Self::Open => vec![1],
            Self::Ticketed { issuer } => tagged(2, issuer.as_bytes()),
            Self::Attested { measurements } => tagged(3, measurements.as_bytes()),
            Self::Reputed { organism, floor_ppm } => {
                let mut code = tagged(4, organism.as_bytes());
                code.extend(floor_ppm.to_be_bytes());
                code
            }
            Self::External { description } => tagged(5, description.as_bytes()),
        }
    }
}

/// How a composition is put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CompositionForm {
    /// Members of one operator, referenced directly.
    Direct,
    /// Members of several operators.
    MultiOperator,
    /// Compositions that reference compositions.
    Nested,
}

impl CompositionForm {
    /// References are what the substrate has; each form is made of them.
    #[must_use]
    pub const fn is_substrate_enforced(self) -> bool {
        true
    }

    fn code(self) -> Vec<u8> {
        vec![match self {
            Self::Direct => 1,
            Self::MultiOperator => 2,
            Self::Nested => 3,
        }]
    }
}

/// A published claim to authority. The substrate brings about only [`SovereigntyClaim::None`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SovereigntyClaim {
    /// No claim.
    None,
    /// Authority shared with the members.
    Shared,
    /// Authority over the members.
    Absolute,
}

impl SovereigntyClaim {
    /// Only the absence of a claim.
    #[must_use]
    pub const fn is_substrate_enforced(self) -> bool {
        matches!(self, Self::None)
    }

    /// Whether it leaves non-compulsion intact.
    #[must_use]
    pub const fn is_substrate_consistent(self) -> bool {
        !matches!(self, Self::Absolute)
    }

    fn code(self) -> Vec<u8> {
        vec![match self {
            Self::None => 1,
            Self::Shared => 2,
            Self::Absolute => 3,
        }]
    }
}

/// Everything a composition says about itself in these terms.
///
/// ```
/// use coalition::Mrtd;
/// use coalition::political_theory::{
///     CompositionForm, ConsentModel, DecisionRule,
///     Delegation, FranchiseScope, Legitimacy,
///     PoliticalStance, Revocability, SovereigntyClaim,
/// };
/// # const COMMITTEE_MRTD: Mrtd = Mrtd([7; 48]);
///
/// // The substrate-default stance. Every field matches
/// // what the coalition primitives directly implement.
/// let stance = PoliticalStance::DEFAULT;
/// assert!(stance.is_substrate_consistent());
///
/// // A composite organism that runs a two-of-three
/// // committee under pinned Measurements can publish:
/// let attested_multi_operator = PoliticalStance {
///     consent:       ConsentModel::Voluntary,
///     decision_rule: DecisionRule::Supermajority {
///         threshold_bps: 6_667,
///     },
///     legitimacy:    Legitimacy::composed(
///         Legitimacy::CONSENT_BIT | Legitimacy::ATTESTATION_BIT,
///     ),
///     franchise:     FranchiseScope::Attested {
///         measurements: COMMITTEE_MRTD,
///     },
///     composition:   CompositionForm::MultiOperator,
///     sovereignty:   SovereigntyClaim::Shared,
/// };
/// let fp = attested_multi_operator.fingerprint();
/// assert_ne!(fp, stance.fingerprint());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoliticalStance {
    /// How parties come to be bound.
    pub consent: ConsentModel,
    /// How many must agree.
    pub decision_rule: DecisionRule,
    /// Why it should be believed.
    pub legitimacy: Legitimacy,
    /// Who has a say.
    pub franchise: FranchiseScope,
    /// How it is put together.
    pub composition: CompositionForm,
    /// What authority it claims.
    pub sovereignty: SovereigntyClaim,
}

impl PoliticalStance {
    /// What the coalition primitives directly implement.
    pub const DEFAULT: Self = Self {
        consent: ConsentModel::Voluntary,
        decision_rule: DecisionRule::Majority,
        legitimacy: Legitimacy::CONSENT,
        franchise: FranchiseScope::Open,
        composition: CompositionForm::Direct,
        sovereignty: SovereigntyClaim::None,
    };

    /// Whether it leaves non-compulsion intact: no compulsory consent, no absolute sovereignty.
    #[must_use]
    pub const fn is_substrate_consistent(&self) -> bool {
        self.consent.is_substrate_consistent() && self.sovereignty.is_substrate_consistent()
    }

    /// Digest of every field.
    #[must_use]
    pub fn fingerprint(&self) -> UniqueId {
        Preimage::new(TAG_STANCE)
            .part(&self.consent.code())
            .part(&self.decision_rule.code())
            .part(&[self.legitimacy.bits()])
            .part(&self.franchise.code())
            .part(&self.composition.code())
            .part(&self.sovereignty.code())
            .hash()
    }
}

impl Default for PoliticalStance {
    fn default() -> Self {
        Self::DEFAULT
    }
}

fn tagged(kind: u8, fields: &[u8]) -> Vec<u8> {
    let mut code = vec![kind];
    code.extend(fields);
    code
}
