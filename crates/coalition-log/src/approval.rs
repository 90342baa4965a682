//! What a quorum of the members approves with their checkpoint keys: a retirement, a handover.

use ed25519_dalek::{Signer as _, SigningKey};

use crate::checkpoint::RosterVerifier;

/// As many as a roster has members.
pub(crate) const MAX_APPROVALS: usize = 64;

/// One member's consent, by its checkpoint key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// Position in the roster in force.
    pub member: u8,
    /// Ed25519 over the statement of what is approved.
    pub signature: [u8; 64],
}

impl Approval {
    pub(crate) fn of(statement: &[u8], key: &SigningKey, member: u8) -> Self {
        Self { member, signature: key.sign(statement).to_bytes() }
    }
}

/// Why approvals do not approve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotApproved {
    /// An approval of a member the roster does not have.
    #[error("an approval is of member {member}, the roster in force has {members}")]
    UnknownMember {
        /// Position claimed.
        member: u8,
        /// Members in the roster.
        members: usize,
    },
    /// An approval that its member did not sign.
    #[error("the approval of member {member:?} does not verify for this organism, this roster and what is approved")]
    BadSignature {
        /// Name of the member.
        member: String,
    },
    /// Too few approvals.
    #[error("{have} members approve, {need} are needed")]
    NoQuorum {
        /// Distinct members that approve.
        have: usize,
        /// Quorum of the roster.
        need: usize,
    },
}

/// Approvals of distinct members, by position. Bytes: `u8 approvals ‖ (u8 member ‖ signature(64))…`, members increasing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Approvals(Vec<Approval>);

impl Approvals {
    /// In canonical order; of several by one member the first counts.
    pub(crate) fn new(mut approvals: Vec<Approval>) -> Self {
        approvals.sort_by_key(|approval| approval.member);
        approvals.dedup_by_key(|approval| approval.member);
        Self(approvals)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::try_from(self.0.len()).expect("members are numbered by a byte"));
        for approval in &self.0 {
            out.push(approval.member);
            out.extend_from_slice(&approval.signature);
        }
    }

    /// Reads the canonical form, all of `bytes`; nothing is verified yet.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        Self::read_first(bytes).filter(|(_, rest)| rest.is_empty()).map(|(approvals, _)| approvals)
    }

    /// The same of what `bytes` begin with; answers what follows, too.
    pub(crate) fn read_first(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (&count, mut rest) = bytes.split_first()?;
        let mut approvals: Vec<Approval> = Vec::new();
        for _ in 0..count {
            let (&member, after) = rest.split_first()?;
            let (signature, after) = after.split_first_chunk::<64>()?;
            if approvals.last().is_some_and(|last| last.member >= member) {
                return None;
            }
            approvals.push(Approval { member, signature: *signature });
            rest = after;
        }
        (approvals.len() <= MAX_APPROVALS).then_some((Self(approvals), rest))
    }

    pub(crate) const fn len(&self) -> usize {
        self.0.len()
    }

    /// Checks that a quorum of `roster` approved `statement`. One bad approval spoils the whole: it names its culprit.
    pub(crate) fn verify(&self, statement: &[u8], roster: &RosterVerifier) -> Result<(), NotApproved> {
        for approval in &self.0 {
            let member = usize::from(approval.member);
            let unknown = || NotApproved::UnknownMember { member: approval.member, members: roster.members() };
            let name = roster.member_name(member).ok_or_else(unknown)?;
            if !roster.is_signed_by(member, statement, &approval.signature) {
                return Err(NotApproved::BadSignature { member: name.to_owned() });
            }
        }
        if self.len() < roster.quorum() {
            return Err(NotApproved::NoQuorum { have: self.len(), need: roster.quorum() });
        }
        Ok(())
    }
}
