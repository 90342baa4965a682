//! The end of a log: a retirement that a quorum of the committee approved, and its last entry.
//!
//! Two entries end a log. [`ANNOUNCED_KIND`] carries the marker with the members' approvals; from then on everybody knows when
//! the organism retires and who takes over, and it goes on working. [`RETIRED_KIND`] carries the marker alone and is the last entry
//! there will ever be (spec chapters 54 and 57). Their kinds are the host's ([`crate::entry::is_host_kind`]).
//!
//! An announcement may carry the successor's whole config ([`Successor`]); the members approve that with it.

use coalition::{RetirementInstant, RetirementMarker, UniqueId, retirement};
use ed25519_dalek::SigningKey;

use crate::{
    Context, Entry,
    approval::{Approvals, MAX_APPROVALS},
    checkpoint::RosterVerifier,
    entry::{MAX_BODY_BYTES, MAX_KIND_BYTES},
    successor::{MAX_SUCCESSOR_BYTES, NextOrganism, Successor, SuccessorError},
};

pub use crate::approval::{Approval, NotApproved};

/// An approved retirement, not yet in effect. Body: [`ApprovedRetirement::to_bytes`].
pub const ANNOUNCED_KIND: &str = "committee.retiring";

/// The last entry. Body: the marker's bytes; its one evidence pointer is the announcement.
pub const RETIRED_KIND: &str = "committee.retired";

const _: () = assert!(ANNOUNCED_KIND.len() <= MAX_KIND_BYTES);

/// Code of every refusal of a retired organism.
pub const RETIRED_CODE: &str = "retired";

const STATEMENT: &[u8] = b"coalition/retirement-approval/v1";
const STATEMENT_WITH_SUCCESSOR: &[u8] = b"coalition/retirement-approval/v2";

/// A marker longer than this names its successor in some strange way; its approvals would not fit an entry any more.
const MAX_MARKER_BYTES: usize = 4_096;

const _: () = assert!(4 + MAX_MARKER_BYTES + 1 + MAX_APPROVALS * 65 + MAX_SUCCESSOR_BYTES <= MAX_BODY_BYTES);

/// Why bytes are no approved retirement of an organism.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApprovalError {
    /// Not the canonical form.
    #[error("these {bytes} bytes are no approved retirement")]
    Malformed {
        /// Length of the bytes.
        bytes: usize,
    },
    /// The marker inside is none.
    #[error("the retirement marker is not usable")]
    Marker(#[from] retirement::RetirementError),
    /// A quorum did not approve it.
    #[error(transparent)]
    NotApproved(#[from] NotApproved),
    /// The successor's config is none, or not the marker's.
    #[error("the successor is not usable")]
    Successor(#[from] SuccessorError),
}

fn statement(organism: UniqueId, marker: &[u8], successor: Option<&Successor>) -> Vec<u8> {
    let Some(successor) = successor else { return [STATEMENT, organism.as_bytes(), marker].concat() };
    let length = u32::try_from(marker.len()).expect("a marker is a few hundred bytes").to_be_bytes();
    [STATEMENT_WITH_SUCCESSOR, organism.as_bytes(), &length, marker, &successor.to_bytes()].concat()
}

/// A retirement and who approved it.
///
/// Bytes: `u32 marker length ‖ marker ‖ u8 approvals ‖ (u8 member ‖ signature(64))…`, members increasing; then the successor's
/// ([`Successor::to_bytes`]), if it brings one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovedRetirement {
    marker: Vec<u8>,
    approvals: Approvals,
    successor: Option<Successor>,
}

impl ApprovedRetirement {
    /// Puts approvals beside a marker, in canonical order; of several by one member the first counts.
    #[must_use]
    pub fn new(marker: &RetirementMarker<'_>, approvals: Vec<Approval>) -> Self {
        Self { marker: marker.to_bytes(), approvals: Approvals::new(approvals), successor: None }
    }

    /// The same with the successor's config, which has to be what was approved.
    #[must_use]
    pub fn with_successor(mut self, successor: Option<Successor>) -> Self {
        self.successor = successor;
        self
    }

    /// A member consents with its checkpoint key: Ed25519 over `coalition/retirement-approval/v1 ‖ organism id ‖ marker`.
    #[must_use]
    pub fn approve(key: &SigningKey, member: u8, organism: UniqueId, marker: &RetirementMarker<'_>) -> Approval {
        Self::approve_with(key, member, organism, marker, None)
    }

    /// The same of a marker and the successor's config with it: Ed25519 over `coalition/retirement-approval/v2 ‖ organism id ‖
    /// u32 marker length ‖ marker ‖ successor`.
    #[must_use]
    pub fn approve_with(
        key: &SigningKey,
        member: u8,
        organism: UniqueId,
        marker: &RetirementMarker<'_>,
        successor: Option<&Successor>,
    ) -> Approval {
        Approval::of(&statement(organism, &marker.to_bytes(), successor), key, member)
    }

    /// The canonical bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.marker.len()).expect("a marker is a few hundred bytes");
        let mut out = length.to_be_bytes().to_vec();
        out.extend_from_slice(&self.marker);
        self.approvals.put(&mut out);
        if let Some(successor) = &self.successor {
            out.extend_from_slice(&successor.to_bytes());
        }
        out
    }

    /// Reads the canonical form; nothing is verified yet.
    ///
    /// # Errors
    /// [`ApprovalError::Malformed`], [`ApprovalError::Marker`], [`ApprovalError::Successor`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ApprovalError> {
        let malformed = || ApprovalError::Malformed { bytes: bytes.len() };
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(malformed)?;
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_MARKER_BYTES {
            return Err(malformed());
        }
        let (marker, rest) = rest.split_at_checked(length).ok_or_else(malformed)?;
        RetirementMarker::from_bytes(marker)?;
        let (approvals, rest) = Approvals::read_first(rest).ok_or_else(malformed)?;
        let successor = if rest.is_empty() { None } else { Some(Successor::from_bytes(rest)?) };
        Ok(Self { marker: marker.to_vec(), approvals, successor })
    }

    /// Checks that a quorum of the roster approved this for the verifier's organism, and that the config it brings, if it brings
    /// one, is that of the organism it names.
    ///
    /// # Errors
    /// [`ApprovalError::NotApproved`], of which one bad approval spoils the whole and names its culprit;
    /// [`ApprovalError::Successor`].
    pub fn verify(&self, roster: &RosterVerifier) -> Result<Retirement, ApprovalError> {
        let statement = statement(roster.organism(), &self.marker, self.successor.as_ref());
        self.approvals.verify(&statement, roster)?;
        let retirement = Retirement { marker: self.marker.clone(), next: self.successor.clone() };
        retirement.next_organism(roster.organism())?;
        Ok(retirement)
    }
}

/// A retirement as the log states it: announced or in effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retirement {
    marker: Vec<u8>,
    next: Option<Successor>,
}

impl Retirement {
    /// The retirement a host's entry states, if it states one. The entry must come from a certified log: the committee checked
    /// the approvals before it signed.
    #[must_use]
    pub fn of(entry: &Entry) -> Option<Self> {
        match entry.kind.as_str() {
            ANNOUNCED_KIND => ApprovedRetirement::from_bytes(&entry.body)
                .ok()
                .map(|approved| Self { marker: approved.marker, next: approved.successor }),
            RETIRED_KIND => Self::from_bytes(&entry.body),
            _ => None,
        }
    }

    /// A retirement from its marker's bytes, if they are a marker. They must come from a certified log.
    #[must_use]
    pub fn from_bytes(marker: &[u8]) -> Option<Self> {
        RetirementMarker::from_bytes(marker).ok().map(|_| Self { marker: marker.to_vec(), next: None })
    }

    /// The same with the successor's config, which comes from the same log.
    #[must_use]
    pub fn with_config(mut self, next: Option<Successor>) -> Self {
        self.next = next;
        self
    }

    /// When, why, and who takes over.
    #[must_use]
    pub fn marker(&self) -> RetirementMarker<'_> {
        RetirementMarker::from_bytes(&self.marker).expect("read once when this was made")
    }

    /// The marker's bytes, which are the last entry's body.
    #[must_use]
    pub fn to_bytes(&self) -> &[u8] {
        &self.marker
    }

    /// Id of who takes over.
    #[must_use]
    pub fn successor(&self) -> Option<UniqueId> {
        self.marker().replacement.map(|component| component.stable_id())
    }

    /// The successor's config, and where its members were, if the announcement brought it. The last entry alone does not.
    #[must_use]
    pub const fn config(&self) -> Option<&Successor> {
        self.next.as_ref()
    }

    /// The organism to go on with after `organism`, by the config the announcement brought; `None` if it brought none.
    ///
    /// # Errors
    /// When the config is not that of the organism the marker names; no honest quorum announces such a thing.
    pub fn next_organism(&self, organism: UniqueId) -> Result<Option<NextOrganism>, SuccessorError> {
        self.next.as_ref().map(|next| next.check(organism, &self.marker())).transpose()
    }

    /// Whether it is in effect in a batch with this context, for a log that has `size` entries.
    #[must_use]
    pub fn is_due(&self, cx: &Context, size: u64) -> bool {
        match self.marker().effective_at {
            RetirementInstant::AtSequence(at) => size > at,
            RetirementInstant::AtTimestamp(at) => cx.time_ms >= at,
            RetirementInstant::AtTick(at) => cx.tick >= at.0,
        }
    }
}

impl std::fmt::Display for Retirement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let marker = self.marker();
        let reason = match marker.reason {
            retirement::RetirementReason::Rotation => "rotation",
            retirement::RetirementReason::Retired => "the service ends",
            retirement::RetirementReason::OperatorExit => "its operator leaves",
            retirement::RetirementReason::Emergency => "emergency",
        };
        match marker.replacement {
            Some(component) => write!(f, "{reason}; {} takes over", component.stable_id()),
            None => write!(f, "{reason}; nobody takes over"),
        }
    }
}
