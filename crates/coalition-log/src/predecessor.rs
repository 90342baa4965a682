//! The beginning of a log that succeeds another: the head of that one, as its own committee certified it.
//!
//! A committee's content may name a predecessor ([`coalition::CommitteeContent`]). Its log then begins with one entry of kind
//! [`SUCCEEDS_KIND`], before which nothing else is written but handovers of its own roster. The entry holds all it takes to verify
//! it: the predecessor's published config, the handovers of its roster, and a certified head of its log. So who has the new
//! log alone can walk back.

use coalition::{CommitteeContent, PublishedConfig, PublishedError, UniqueId};

use crate::{
    Entry,
    checkpoint::{CertifiedCheckpoint, CertifyError, NoteError, RosterError, SignedCheckpoint},
    entry::MAX_BODY_BYTES,
    handover::{HandoverError, HandoverProof, MAX_HANDOVERS, RosterChain},
    tree::Hash,
};

/// The first entry of a log that succeeds another. Body: [`Predecessor::to_bytes`].
pub const SUCCEEDS_KIND: &str = "committee.succeeds";

/// Hashes of an inclusion path, at most.
const MAX_PATH: usize = 65;

/// Why bytes are no predecessor's head, or it does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PredecessorError {
    /// Longer than an entry's body.
    #[error(
        "the predecessor's config, {handovers} handovers and head have {bytes} bytes, an entry has room for \
         {MAX_BODY_BYTES}; name an earlier head, or publish the successor in two steps"
    )]
    TooLong {
        /// Bytes there are.
        bytes: usize,
        /// Handovers among them.
        handovers: usize,
    },
    /// Not the canonical form.
    #[error("these {bytes} bytes are no predecessor's config and head")]
    Malformed {
        /// Length of the bytes.
        bytes: usize,
    },
    /// The config is none.
    #[error("the predecessor's config is not usable")]
    Config(#[source] Box<PublishedError>),
    /// The head is no signed checkpoint.
    #[error("the predecessor's head is malformed")]
    Note(#[from] NoteError),
    /// The config does not publish the predecessor.
    #[error(
        "the config of {coalition} publishes no organism {expected}, which this log's config names as its predecessor"
    )]
    OtherOrganism {
        /// Name of the config's coalition.
        coalition: String,
        /// The predecessor.
        expected: UniqueId,
    },
    /// The predecessor is run by no committee.
    #[error("the predecessor is run by no committee: {reason}")]
    NoCommittee {
        /// Why its content is none.
        reason: String,
    },
    /// A key of its roster cannot verify anything.
    #[error("the predecessor's roster cannot certify")]
    Roster(#[from] RosterError),
    /// The head is of another log.
    #[error("the head is of organism {found}, the predecessor is {expected}")]
    OtherLog {
        /// Organism of the head.
        found: UniqueId,
        /// The predecessor.
        expected: UniqueId,
    },
    /// A handover does not hold.
    #[error("a handover of the predecessor does not hold")]
    Handover(#[from] HandoverError),
    /// More or fewer handovers than lead to who certified the head.
    #[error("there are {found} handovers, a head of {size} entries needs {expected}")]
    Handovers {
        /// How many there are.
        found: usize,
        /// How many belong there.
        expected: u64,
        /// Size of the head.
        size: u64,
    },
    /// The head is not certified.
    #[error("the predecessor's head is not certified by its committee")]
    NotCertified(#[from] CertifyError),
}

/// A predecessor's config, the handovers of its roster, and a head of its log. Parsed; [`Predecessor::verify`] verifies it.
///
/// Bytes: `u32 length ‖ config ‖ u16 handovers ‖ (u32 length ‖ entry ‖ u8 hashes ‖ path, 32 each ‖ u32 length ‖ note)… ‖
/// u32 length ‖ the head as a signed note`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Predecessor {
    config: PublishedConfig,
    handovers: Vec<HandoverProof>,
    head: SignedCheckpoint,
}

impl Predecessor {
    /// What the successor of the organism of `head` begins with. `handovers` lead from the roster in `config` to who certified it.
    ///
    /// # Errors
    /// [`PredecessorError::TooLong`].
    pub fn new(
        config: PublishedConfig,
        handovers: Vec<HandoverProof>,
        head: &CertifiedCheckpoint,
    ) -> Result<Self, PredecessorError> {
        let predecessor = Self { config, handovers, head: head.note().clone() };
        let bytes = predecessor.to_bytes().len();
        if bytes > MAX_BODY_BYTES {
            return Err(PredecessorError::TooLong { bytes, handovers: predecessor.handovers.len() });
        }
        Ok(predecessor)
    }

    /// What an entry of kind [`SUCCEEDS_KIND`] holds; `None` of any other.
    #[must_use]
    pub fn of(entry: &Entry) -> Option<Self> {
        (entry.kind == SUCCEEDS_KIND).then(|| Self::from_bytes(&entry.body).ok()).flatten()
    }

    /// The predecessor's published config.
    #[must_use]
    pub const fn config(&self) -> &PublishedConfig {
        &self.config
    }

    /// The head, as somebody sent it.
    #[must_use]
    pub const fn head(&self) -> &SignedCheckpoint {
        &self.head
    }

    /// The canonical bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let put = |out: &mut Vec<u8>, bytes: &[u8]| {
            out.extend(u32::try_from(bytes.len()).expect("all parts are bounded").to_be_bytes());
            out.extend_from_slice(bytes);
        };
        put(&mut out, &self.config.to_bytes());
        out.extend(u16::try_from(self.handovers.len()).expect("a log has at most 256 handovers").to_be_bytes());
        for proof in &self.handovers {
            put(&mut out, &proof.entry);
            out.push(u8::try_from(proof.path.len()).expect("a path has at most 65 hashes"));
            proof.path.iter().for_each(|hash| out.extend_from_slice(&hash.0));
            put(&mut out, proof.checkpoint.as_bytes());
        }
        put(&mut out, self.head.to_string().as_bytes());
        out
    }

    /// Reads the canonical form, and verifies the config in itself.
    ///
    /// # Errors
    /// [`PredecessorError::TooLong`], [`PredecessorError::Malformed`], [`PredecessorError::Config`], [`PredecessorError::Note`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PredecessorError> {
        let malformed = || PredecessorError::Malformed { bytes: bytes.len() };
        if bytes.len() > MAX_BODY_BYTES {
            return Err(PredecessorError::TooLong { bytes: bytes.len(), handovers: 0 });
        }
        let mut parts = Parts(bytes);
        let config = parts.bytes().ok_or_else(malformed)?;
        let handovers = parts.handovers().ok_or_else(malformed)?;
        let head = parts.bytes().filter(|_| parts.0.is_empty()).ok_or_else(malformed)?;
        let config = PublishedConfig::from_bytes(config).map_err(|error| PredecessorError::Config(Box::new(error)))?;
        let predecessor = Self { config, handovers, head: SignedCheckpoint::parse(head)? };
        if predecessor.to_bytes() == bytes { Ok(predecessor) } else { Err(malformed()) }
    }

    /// Verifies that this is a certified head of the log of `organism`: its id derives from the config, the handovers lead from its
    /// genesis roster to the one of the head's size, and a quorum of that one signed it.
    ///
    /// # Errors
    /// What does not hold.
    pub fn verify(&self, organism: UniqueId) -> Result<CertifiedCheckpoint, PredecessorError> {
        let published = self.config.by_id(organism).ok_or_else(|| PredecessorError::OtherOrganism {
            coalition: self.config.instance_name().to_owned(),
            expected: organism,
        })?;
        let content = CommitteeContent::from_bytes(&published.content)
            .map_err(|error| PredecessorError::NoCommittee { reason: error.to_string() })?;
        let (found, size) = (self.head.checkpoint.organism, self.head.checkpoint.size);
        if found != organism {
            return Err(PredecessorError::OtherLog { found, expected: organism });
        }
        let mut chain = RosterChain::new(organism, &content.roster)?;
        chain.extend_all(&self.handovers)?;
        let expected = chain.epoch_at(size);
        if self.handovers.len() as u64 != expected || chain.epoch() != expected {
            return Err(PredecessorError::Handovers { found: self.handovers.len(), expected, size });
        }
        Ok(chain.verifier_at(size).certify_canonical(&self.head)?)
    }
}

/// What is left to read.
struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(u32::from_be_bytes(self.array()?)).ok()?;
        self.take(length)
    }

    fn handovers(&mut self) -> Option<Vec<HandoverProof>> {
        let count = usize::from(u16::from_be_bytes(self.array()?));
        if count > MAX_HANDOVERS {
            return None;
        }
        let mut all = Vec::new();
        for _ in 0..count {
            let entry = self.bytes()?.to_vec();
            let hashes = usize::from(self.array::<1>()?[0]);
            if hashes > MAX_PATH {
                return None;
            }
            let (path, _) = self.take(32 * hashes)?.as_chunks::<32>();
            let path = path.iter().map(|hash| Hash(*hash)).collect();
            let checkpoint = std::str::from_utf8(self.bytes()?).ok()?.to_owned();
            all.push(HandoverProof { entry, path, checkpoint });
        }
        Some(all)
    }
}
