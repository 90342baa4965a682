//! What travels: between members over the ordering engine's side channel, and between clients and members as calls.
//!
//! Everything is postcard of these types behind a length limit; certificates and entries inside stay in the log's own
//! formats and are verified by whoever receives them.

use coalition::{EvidencePointer, UniqueId, hash_many};
use coalition_log::{Refusal, entry::WriteId, handover::HandoverProof, tree::Hash};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Longest command a client may write, in bytes. Leaves room for the envelope under the ordering engine's limit.
pub const MAX_COMMAND_BYTES: usize = 56 * 1024;

/// Entries' bytes in one [`FollowAnswer`], at most.
pub(crate) const MAX_RANGE_BYTES: usize = 1 << 20;

/// Writes in one request, at most.
pub(crate) const MAX_WRITES: usize = 256;

/// Tiles of leaf hashes in one answer to [`HashesRequest`], at most: 1 MiB.
pub(crate) const MAX_TILES: u64 = 128;

/// Code of the refusal of a member whose engine has no anchor to offer.
pub(crate) const NO_ANCHOR: &str = "no_anchor";

/// Code of the refusal of a member that keeps no state a reader could start from.
pub(crate) const NO_STATE: &str = "no_state";

/// Code of the refusal of a member whose organism admits writers by ticket.
pub(crate) const NOT_ADMITTED: &str = "not_admitted";

/// Longest time a member holds a long poll, in milliseconds.
pub(crate) const MAX_WAIT_MS: u32 = 20_000;

/// Method names.
pub(crate) mod method {
    pub(crate) const WRITE: &str = "organism.write";
    pub(crate) const HEAD: &str = "organism.head";
    pub(crate) const SETTLED: &str = "organism.settled";
    pub(crate) const FOLLOW: &str = "organism.follow";
    pub(crate) const EVIDENCE: &str = "organism.evidence";
    pub(crate) const STATE: &str = "organism.state";
    pub(crate) const STATE_PART: &str = "organism.state_part";
    pub(crate) const HASHES: &str = "organism.hashes";
    pub(crate) const ANCHOR: &str = "organism.anchor";
    pub(crate) const CHALLENGE: &str = "organism.challenge";
    pub(crate) const ADMIT: &str = "organism.admit";
}

/// A command as the ordering engine carries it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ordered {
    pub(crate) organism: UniqueId,
    pub(crate) write_id: WriteId,
    /// Fresh for every submission: the engine drops a repetition of the same bytes, the organism one of the same id.
    pub(crate) attempt: u64,
    pub(crate) payload: Payload,
}

impl Ordered {
    /// Whether the organism has to execute it: a handover concerns all that the committee carries.
    pub(crate) fn is_for(&self, organism: UniqueId) -> bool {
        self.organism == organism || matches!(self.payload, Payload::Handover(_))
    }
}

/// What is asked of an organism.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Payload {
    /// A command of its machine.
    Command(Vec<u8>),
    /// The committee's own: [`coalition_log::retirement::ApprovedRetirement`].
    Retire(Vec<u8>),
    /// The committee's own: a [`Handovers`], encoded. Meant for every organism the committee carries.
    Handover(Vec<u8>),
    /// The committee's own: a [`coalition_log::predecessor::Predecessor`].
    Succeed(Vec<u8>),
}

/// For each organism of a committee, its [`coalition_log::handover::ApprovedHandover`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Handovers(pub(crate) Vec<(UniqueId, Vec<u8>)>);

impl Payload {
    /// The id this payload is committed under when its writer chose `chosen`: nobody who repeats somebody's id with
    /// another payload takes that write's place.
    pub(crate) fn write_id(&self, chosen: WriteId) -> WriteId {
        if chosen == WriteId::NONE {
            return chosen;
        }
        let (kind, bytes): (&[u8], _) = match self {
            Self::Command(bytes) => (b"command", bytes),
            Self::Retire(bytes) => (b"retire\0", bytes),
            Self::Handover(bytes) => (b"handover", bytes),
            Self::Succeed(bytes) => (b"succeed", bytes),
        };
        let bound = hash_many(&[b"coalition.write.v1", &chosen.0, kind, bytes]);
        let mut id = [0; 16];
        id.copy_from_slice(&bound.as_bytes()[..16]);
        WriteId(id)
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Command(bytes) | Self::Retire(bytes) | Self::Handover(bytes) | Self::Succeed(bytes) => bytes.len(),
        }
    }
}

/// What members tell each other about certification.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Gossip {
    /// A member's signed checkpoint of its log.
    Cosigned { organism: UniqueId, checkpoint: String },
    /// A certified checkpoint, for a member that seems to have missed it.
    Certified { organism: UniqueId, checkpoint: String },
}

/// `organism.write`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WriteRequest {
    pub(crate) organism: UniqueId,
    pub(crate) writes: Vec<Write>,
    /// Handovers the writer knows; the reply brings the others.
    pub(crate) epoch: u64,
    pub(crate) wait_ms: u32,
}

/// One write of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Write {
    pub(crate) write_id: WriteId,
    pub(crate) payload: Payload,
}

impl Write {
    /// The id its entries carry.
    pub(crate) fn bound_id(&self) -> WriteId {
        self.payload.write_id(self.write_id)
    }
}

impl Ordered {
    /// The id its entries carry.
    pub(crate) fn bound_id(&self) -> WriteId {
        self.payload.write_id(self.write_id)
    }
}

/// Answer to one [`Write`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum WriteAnswer {
    /// Certified; the pointers resolve for anybody.
    Committed { entries: Vec<EvidencePointer> },
    /// The machine refused it.
    Refused(Refusal),
    /// Not certified within the wait; ask again with the same id.
    Pending,
}

/// Answer to [`WriteRequest`]; the client takes no acknowledgement without its proof.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WriteReply {
    /// One for each write, in order.
    pub(crate) answers: Vec<WriteAnswer>,
    /// The certified checkpoint, as a signed note, that every proof leads to.
    pub(crate) head: Option<String>,
    /// One for each entry the answers name, in order.
    pub(crate) proofs: Vec<ProvenEntry>,
    /// The handovers that lead to who certified the head, as far as the writer does not know them.
    pub(crate) handovers: Vec<HandoverProof>,
}

/// An entry and its inclusion path.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProvenEntry {
    pub(crate) bytes: Vec<u8>,
    pub(crate) path: Vec<Hash>,
}

/// `organism.head`: the newest certificate, waiting for one beyond `newer_than` entries.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeadRequest {
    pub(crate) organism: UniqueId,
    pub(crate) newer_than: Option<u64>,
    /// Handovers the reader knows.
    pub(crate) epoch: u64,
    pub(crate) wait_ms: u32,
}

/// `organism.settled`: a certificate that covers everything the member has signed, waiting for it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SettledRequest {
    pub(crate) organism: UniqueId,
    /// Handovers the reader knows.
    pub(crate) epoch: u64,
    pub(crate) wait_ms: u32,
}

/// Answer to [`HeadRequest`] and [`SettledRequest`].
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeadAnswer {
    /// The certified checkpoint as a signed note; `None` before the first.
    pub(crate) head: Option<String>,
    /// The handovers the reader lacks for it.
    pub(crate) handovers: Vec<HandoverProof>,
}

/// `organism.follow`: the newest head and the entries from `next` on, waiting for some beyond it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FollowRequest {
    pub(crate) organism: UniqueId,
    /// Size of the head the reader last accepted; the answer proves that its head extends it.
    pub(crate) head_size: u64,
    /// Index of the first entry the reader lacks.
    pub(crate) next: u64,
    /// Handovers the reader knows.
    pub(crate) epoch: u64,
    pub(crate) wait_ms: u32,
}

/// Answer to [`FollowRequest`]; nothing in it is trusted before the reader has verified it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FollowAnswer {
    /// The handovers the reader lacks for the head.
    pub(crate) handovers: Vec<HandoverProof>,
    /// The certified checkpoint as a signed note.
    pub(crate) head: String,
    /// Consistency proof from the reader's head to this one.
    pub(crate) head_proof: Vec<Hash>,
    /// Encoded entries from the requested index on.
    pub(crate) entries: Vec<Vec<u8>>,
    /// Consistency proof from the end of `entries` to the head.
    pub(crate) range_proof: Vec<Hash>,
}

/// `organism.evidence`: the mailable proof of one entry.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EvidenceRequest {
    pub(crate) organism: UniqueId,
    pub(crate) index: u64,
}

/// `organism.state`: the newest certified state that is not behind the reader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StateRequest {
    pub(crate) organism: UniqueId,
    /// Size of the head the reader last accepted; the answer proves that its head extends it.
    pub(crate) head_size: u64,
    /// Index of the first entry the reader lacks.
    pub(crate) next: u64,
    /// Handovers the reader knows.
    pub(crate) epoch: u64,
}

/// Answer to [`StateRequest`]; nothing in it is trusted before the reader has verified it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StateAnswer {
    /// The handovers the reader lacks for the head.
    pub(crate) handovers: Vec<HandoverProof>,
    /// The certified checkpoint as a signed note.
    pub(crate) head: String,
    /// Consistency proof from the reader's head to this one.
    pub(crate) head_proof: Vec<Hash>,
    /// The entry that certifies the state.
    pub(crate) entry: Vec<u8>,
    /// Its inclusion path under the head.
    pub(crate) path: Vec<Hash>,
    /// The tree of the entries the state covers.
    pub(crate) peaks: Vec<Hash>,
    /// Consistency proof from that tree to the head.
    pub(crate) proof: Vec<Hash>,
}

/// `organism.state_part`: [`MAX_RANGE_BYTES`] of a state from an offset on, or all there are; the answer is those bytes alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StatePartRequest {
    pub(crate) organism: UniqueId,
    pub(crate) covers: u64,
    pub(crate) offset: u64,
}

/// `organism.hashes`: leaf hashes of the log, from a tile of 256 on; the answer is the hashes of that tile and as many of the
/// tiles after it as are full and were asked for, [`MAX_TILES`] at most.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HashesRequest {
    pub(crate) organism: UniqueId,
    pub(crate) tile: u64,
    pub(crate) tiles: u64,
}

/// `organism.anchor`: where the engine of an epoch may be started by a member that has the effects of all batches up to a time;
/// the answer is a [`coalition_order::Anchor`]'s bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AnchorRequest {
    pub(crate) epoch: u64,
    pub(crate) time_ms: u64,
}

/// `organism.challenge`: what the caller has to have quoted for an attestation whose age counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChallengeRequest {
    pub(crate) organism: UniqueId,
}

/// Answer to [`ChallengeRequest`]; good at this member, until it starts again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChallengeAnswer {
    pub(crate) value: UniqueId,
    pub(crate) issued_s: u64,
}

/// `organism.admit`: a [`coalition_tickets::Presentation`], encoded. Who is admitted may write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AdmitRequest {
    pub(crate) organism: UniqueId,
    pub(crate) presentation: Vec<u8>,
}

/// Answer to [`AdmitRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AdmitAnswer {
    /// The first second, Unix, at which the caller is no longer admitted; the greatest number when nothing ends.
    pub(crate) until_s: u64,
}

/// Bytes that are not the message they should be.
#[derive(Debug, thiserror::Error)]
#[error("message of {bytes} bytes is not a {expected}")]
pub(crate) struct Malformed {
    bytes: usize,
    expected: &'static str,
}

/// Encodes a message of this module.
pub(crate) fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    postcard::to_stdvec(message).expect("messages hold only types postcard can encode")
}

/// Decodes exactly one message; trailing bytes are refused.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        _ => Err(Malformed { bytes: bytes.len(), expected: std::any::type_name::<T>() }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_members_ask_of_members_is_pinned() {
        let organism = UniqueId::from_bytes([0x11; 32]);
        let hashes = encode(&HashesRequest { organism, tile: 300, tiles: 2 });
        assert_eq!(hashes[hashes.len() - 3..], [0xAC, 0x02, 2]);
        assert_eq!(hashes.len(), 35);
        assert_eq!(encode(&AnchorRequest { epoch: 1, time_ms: 300 }), [1, 0xAC, 0x02]);
    }

    #[test]
    fn what_is_said_at_a_door_is_pinned() {
        let organism = UniqueId::from_bytes([0x11; 32]);
        let id = [&[32], &[0x11; 32][..]].concat();
        assert_eq!(
            encode(&ChallengeRequest { organism }),
            id[id.len() - encode(&ChallengeRequest { organism }).len()..]
        );
        let challenge = encode(&ChallengeAnswer { value: organism, issued_s: 300 });
        assert_eq!(challenge[challenge.len() - 3..], [0x11, 0xAC, 0x02]);
        let admit = encode(&AdmitRequest { organism, presentation: vec![1, 0] });
        assert_eq!(admit[admit.len() - 4..], [0x11, 2, 1, 0]);
        assert_eq!(encode(&AdmitAnswer { until_s: 300 }), [0xAC, 0x02]);
    }

    #[test]
    fn the_wire_forms_are_pinned() {
        let organism = UniqueId::from_bytes([0x11; 32]);
        let ordered =
            Ordered { organism, write_id: WriteId([2; 16]), attempt: 3, payload: Payload::Command(vec![4, 5]) };
        let bytes = encode(&ordered);
        assert_eq!(decode::<Ordered>(&bytes).unwrap(), ordered);
        let tail = &bytes[bytes.len() - 21..];
        assert_eq!(tail, [&[2u8; 16][..], &[3, 0, 2, 4, 5]].concat());
        let answer = encode(&vec![WriteAnswer::Refused(Refusal::new("a", "b")), WriteAnswer::Pending]);
        assert_eq!(answer, [2, 1, 1, b'a', 1, b'b', 2]);
    }

    /// An independent implementation must derive the same: docs/protocol/log.md, section 1.
    #[test]
    fn an_id_is_bound_to_what_is_written() {
        let chosen = WriteId([2; 16]);
        let command = |byte| Payload::Command(vec![byte]);
        assert_eq!(hex(command(1).write_id(chosen)), "476996723d1f49435d29fd3599988f23");
        assert_eq!(hex(Payload::Retire(vec![1]).write_id(chosen)), "006d66735c3734881e1e5d3091cb938e");
        assert_ne!(Payload::Handover(vec![1]).write_id(chosen), command(1).write_id(chosen));
        assert_ne!(command(2).write_id(chosen), command(1).write_id(chosen));
        assert_ne!(command(1).write_id(WriteId([3; 16])), command(1).write_id(chosen));
        assert_eq!(command(1).write_id(WriteId::NONE), WriteId::NONE);
    }

    fn hex(id: WriteId) -> String {
        id.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<Ordered>(&bytes);
            let _ = decode::<Gossip>(&bytes);
            let _ = decode::<WriteRequest>(&bytes);
            let _ = decode::<WriteReply>(&bytes);
            let _ = decode::<StateAnswer>(&bytes);
            let _ = decode::<Handovers>(&bytes);
            let _ = decode::<HeadAnswer>(&bytes);
            let _ = decode::<FollowAnswer>(&bytes);
            let _ = decode::<HashesRequest>(&bytes);
            let _ = decode::<AnchorRequest>(&bytes);
            let head = HeadRequest { organism: UniqueId::from_bytes([1; 32]), newer_than: None, epoch: 0, wait_ms: 1 };
            let mut longer = encode(&head);
            longer.push(0);
            prop_assert!(decode::<HeadRequest>(&longer).is_err());
        }
    }
}
