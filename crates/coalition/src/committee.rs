//! Committees: the fixed roster that orders and certifies an organism's commits, and the config preimage that pins it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::bytes::{Reader, Truncated, put_bytes_u32, put_str_u8};
use crate::identity::{Preimage, UniqueId};
use crate::serde_hex;

/// Members a roster may have.
pub const MAX_MEMBERS: usize = 64;
/// Bytes a service or member name may have.
pub const MAX_NAME_BYTES: usize = 64;
/// Bytes a service's own parameters may have.
pub const MAX_PARAMS_BYTES: usize = 64 * 1024;

const TAG_ROSTER: &[u8] = b"coalition/roster";
/// First bytes of a committee's content preimage: a magic and the version of the layout.
const CONTENT_MAGIC: &[u8; 5] = b"CCOM\x01";
/// The same for a committee that succeeds another; the predecessor's id follows.
const SUCCESSOR_MAGIC: &[u8; 5] = b"CCOM\x02";

/// Why a roster or a committee's content is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CommitteeError {
    /// No members, or too many.
    #[error("a roster has 1 to {MAX_MEMBERS} members, this one has {0}")]
    Size(usize),
    /// A name that is empty, too long, or has characters that do not belong in a cosigner's name.
    #[error("'{0}' is no name: expected 1 to {MAX_NAME_BYTES} characters out of a-z, 0-9, '.', '-' and '_'")]
    Name(String),
    /// Two members share a name.
    #[error("two members of the roster are both named '{0}'")]
    DuplicateName(String),
    /// A public key is used twice, by two members or for two purposes of one member.
    #[error("member '{member}' repeats the public key {key}: every key of a roster must be used once")]
    DuplicateKey {
        /// The second user of the key.
        member: String,
        /// The key, in hexadecimal.
        key: String,
    },
    /// Parameters too long.
    #[error("a committee's parameters have {found} bytes, at most {MAX_PARAMS_BYTES} are allowed")]
    Params {
        /// Bytes found.
        found: usize,
    },
    /// The bytes do not begin as a committee's content does.
    #[error("these bytes are no committee content of layout version 1 or 2")]
    Magic,
    /// The bytes end early.
    #[error("committee content is cut short")]
    Truncated(#[from] Truncated),
    /// The bytes go on after the last field.
    #[error("committee content is followed by {0} bytes that belong to nothing")]
    Trailing(usize),
}

/// One member of a committee and its three Ed25519 public keys.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RosterMember {
    /// Name, unique in the roster; part of the member's cosigner name.
    pub name: String,
    /// Signs checkpoints of the certified log.
    #[serde(with = "serde_hex")]
    pub checkpoint_key: [u8; 32],
    /// Signs consensus votes.
    #[serde(with = "serde_hex")]
    pub consensus_key: [u8; 32],
    /// Identifies the member's node on the substrate.
    #[serde(with = "serde_hex")]
    pub peer_id: [u8; 32],
}

/// The members of a committee, in an order that is part of its identity.
///
/// Always valid: 1 to 64 members, unique names, no key used twice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<RosterMember>", into = "Vec<RosterMember>")]
pub struct Roster {
    members: Vec<RosterMember>,
}

impl TryFrom<Vec<RosterMember>> for Roster {
    type Error = CommitteeError;

    fn try_from(members: Vec<RosterMember>) -> Result<Self, CommitteeError> {
        Self::new(members)
    }
}

impl From<Roster> for Vec<RosterMember> {
    fn from(roster: Roster) -> Self {
        roster.members
    }
}

impl Roster {
    /// Validates a list of members.
    ///
    /// # Errors
    /// [`CommitteeError`] when the list has the wrong size, a malformed or repeated name, or a repeated key.
    pub fn new(members: Vec<RosterMember>) -> Result<Self, CommitteeError> {
        if members.is_empty() || members.len() > MAX_MEMBERS {
            return Err(CommitteeError::Size(members.len()));
        }
        let mut names = BTreeSet::new();
        let mut keys = BTreeSet::new();
        for member in &members {
            check_name(&member.name)?;
            if !names.insert(&member.name) {
                return Err(CommitteeError::DuplicateName(member.name.clone()));
            }
            for key in [&member.checkpoint_key, &member.consensus_key, &member.peer_id] {
                if !keys.insert(key) {
                    return Err(CommitteeError::DuplicateKey { member: member.name.clone(), key: hex::encode(key) });
                }
            }
        }
        Ok(Self { members })
    }

    /// The members, in roster order.
    #[must_use]
    pub fn members(&self) -> &[RosterMember] {
        &self.members
    }

    /// The member of this name.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&RosterMember> {
        self.members.iter().find(|m| m.name == name)
    }

    /// Number of members.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a roster is never empty")]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Members that may lie or be down while the committee stays correct: `(n - 1) / 3`.
    #[must_use]
    pub fn faults_tolerated(&self) -> usize {
        (self.members.len() - 1) / 3
    }

    /// Signatures that certify: `n - faults_tolerated`.
    #[must_use]
    pub fn quorum(&self) -> usize {
        self.members.len() - self.faults_tolerated()
    }

    /// Digest of the members, their keys and their order.
    #[must_use]
    pub fn fingerprint(&self) -> UniqueId {
        let mut preimage = Preimage::new(TAG_ROSTER).part(&(self.members.len() as u64).to_le_bytes());
        for member in &self.members {
            preimage = preimage
                .part(member.name.as_bytes())
                .part(&member.checkpoint_key)
                .part(&member.consensus_key)
                .part(&member.peer_id);
        }
        preimage.hash()
    }
}

/// What a committee organism publishes as its content: which service it is, who runs it, and the service's parameters.
///
/// [`CommitteeContent::to_bytes`] is the preimage handed to `ContentParams`; each value has exactly one encoding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitteeContent {
    /// Name and version of the service the members run, for example `compute.v1`.
    pub service: String,
    /// The genesis roster.
    pub roster: Roster,
    /// The service's own parameters, in a form the service defines.
    pub params: Vec<u8>,
    /// The organism this one succeeds: its log begins with a head of that one's (docs/protocol/log.md, section 13).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predecessor: Option<UniqueId>,
}

impl CommitteeContent {
    /// Checks the service name and the length of the parameters.
    ///
    /// # Errors
    /// [`CommitteeError`] naming what is wrong.
    pub fn validate(&self) -> Result<(), CommitteeError> {
        check_name(&self.service)?;
        if self.params.len() > MAX_PARAMS_BYTES {
            return Err(CommitteeError::Params { found: self.params.len() });
        }
        Ok(())
    }

    /// The canonical preimage. Only a value that passes [`CommitteeContent::validate`] can be read back.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self.predecessor {
            None => out.extend(CONTENT_MAGIC),
            Some(predecessor) => {
                out.extend(SUCCESSOR_MAGIC);
                out.extend(predecessor.as_bytes());
            }
        }
        put_str_u8(&mut out, &self.service);
        out.push(u8::try_from(self.roster.len()).expect("a roster has at most 64 members"));
        for member in self.roster.members() {
            put_str_u8(&mut out, &member.name);
            out.extend(member.checkpoint_key);
            out.extend(member.consensus_key);
            out.extend(member.peer_id);
        }
        put_bytes_u32(&mut out, &self.params);
        out
    }

    /// Reads a canonical preimage.
    ///
    /// # Errors
    /// [`CommitteeError`] when the bytes are anything but the encoding of a valid value.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CommitteeError> {
        let (mut reader, predecessor) = match bytes.strip_prefix(CONTENT_MAGIC) {
            Some(body) => (Reader::new(body), None),
            None => {
                let mut reader = Reader::new(bytes.strip_prefix(SUCCESSOR_MAGIC).ok_or(CommitteeError::Magic)?);
                let predecessor = UniqueId::from_bytes(reader.array("predecessor")?);
                (reader, Some(predecessor))
            }
        };
        let service = reader.string_u8("service name")?;
        let mut members = Vec::new();
        for _ in 0..reader.u8("number of members")? {
            members.push(RosterMember {
                name: reader.string_u8("member name")?,
                checkpoint_key: reader.array("checkpoint key")?,
                consensus_key: reader.array("consensus key")?,
                peer_id: reader.array("peer id")?,
            });
        }
        let params = reader.bytes_u32("parameters", MAX_PARAMS_BYTES)?.to_vec();
        if reader.remaining() > 0 {
            return Err(CommitteeError::Trailing(reader.remaining()));
        }
        let content = Self { service, roster: Roster::new(members)?, params, predecessor };
        content.validate()?;
        Ok(content)
    }
}

fn check_name(name: &str) -> Result<(), CommitteeError> {
    let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(allowed) {
        return Err(CommitteeError::Name(name.chars().take(MAX_NAME_BYTES).collect()));
    }
    Ok(())
}
