//! Why a door stays closed.

use coalition::UniqueId;
use coalition_attest::Verdict;
use thiserror::Error;

/// Why a peer is not admitted. The text is for the peer and for the door's log; it names nothing secret.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refused {
    /// Nothing of the kind asked for was shown.
    #[error("no {0} was shown")]
    Missing(&'static str),
    /// Bytes that are no ticket.
    #[error("the {kind} is malformed: {what}")]
    Malformed {
        /// The kind of ticket.
        kind: &'static str,
        /// What is wrong.
        what: String,
    },
    /// A ticket of an issuer that this door does not recognise: of another coalition, or of a retired root.
    #[error("the ticket is of issuer {found}, this door recognises {expected}")]
    Issuer {
        /// Issuance root recognised.
        expected: UniqueId,
        /// Issuance root the ticket names.
        found: UniqueId,
    },
    /// None of the issuer's keys signed it.
    #[error("no key of the issuer's charter signed the ticket")]
    Signature,
    /// Issued to somebody else.
    #[error("the ticket is of another peer")]
    Subject,
    /// Issued for another door.
    #[error("the ticket is for {found}, this is {expected}")]
    Audience {
        /// This door.
        expected: UniqueId,
        /// The ticket's door.
        found: UniqueId,
    },
    /// Issued for another network.
    #[error("the ticket is for network {found}, this is {expected}")]
    Network {
        /// This network.
        expected: UniqueId,
        /// The ticket's network.
        found: UniqueId,
    },
    /// Over.
    #[error("the ticket expired at {at_s}, it is {now_s}: ask for a new one")]
    Expired {
        /// When it ended, Unix seconds.
        at_s: u64,
        /// The time asked about, Unix seconds.
        now_s: u64,
    },
    /// From the future.
    #[error("the ticket was issued at {at_s}, which is after {now_s}: check the clocks")]
    NotYet {
        /// When it begins, Unix seconds.
        at_s: u64,
        /// The time asked about, Unix seconds.
        now_s: u64,
    },
    /// Longer than the issuer's charter allows.
    #[error("the ticket is for {found_s} s, the issuer's charter allows {max_s} s")]
    Lifetime {
        /// Its lifetime, seconds.
        found_s: u64,
        /// Lifetime allowed, seconds.
        max_s: u64,
    },
    /// The attestation is not valid, or cannot be checked.
    #[error("the attestation: {0}")]
    Attestation(Box<Verdict>),
    /// The policy limits the age of quotes, and this door did not draw the nonce.
    #[error("the ticket's nonce is not one of this door: ask it for a challenge and quote that")]
    Nonce,
    /// Not of the committee.
    #[error("the peer has no seat in the committee of {0}")]
    NotSeated(UniqueId),
    /// No current reputation card.
    #[error("the peer has no current reputation card of {0}")]
    NoCard(UniqueId),
    /// A card below the floor.
    #[error("the peer's reputation at {organism} is {found_ppm} ppm, the floor is {floor_ppm} ppm")]
    Floor {
        /// The reputation organism.
        organism: UniqueId,
        /// Its score.
        found_ppm: u32,
        /// The floor.
        floor_ppm: u32,
    },
    /// No settlement of this peer stands where the ticket points.
    #[error("no current settlement of this peer at {0} stands where the ticket points")]
    NoSettlement(UniqueId),
    /// No alternative holds.
    #[error("none of the {} ways in holds: {}", .0.len(), list(.0))]
    NoneOf(Vec<Self>),
}

impl Refused {
    /// Stable name of the reason.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing(_) => "no_ticket",
            Self::Malformed { .. } => "malformed",
            Self::Issuer { .. } => "issuer",
            Self::Signature => "signature",
            Self::Subject => "subject",
            Self::Audience { .. } => "audience",
            Self::Network { .. } => "network",
            Self::Expired { .. } => "expired",
            Self::NotYet { .. } => "not_yet",
            Self::Lifetime { .. } => "lifetime",
            Self::Attestation(verdict) => verdict.outcome.code().unwrap_or("attestation"),
            Self::Nonce => "nonce",
            Self::NotSeated(_) => "not_seated",
            Self::NoCard(_) => "no_card",
            Self::Floor { .. } => "reputation",
            Self::NoSettlement(_) => "no_settlement",
            Self::NoneOf(_) => "none_of",
        }
    }
}

fn list(reasons: &[Refused]) -> String {
    reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
