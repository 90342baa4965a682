//! Reading the certified log from other members: a new member up to the handover that names it, one that missed a handover,
//! and one that has left and still serves.
//!
//! Nothing from another member is taken before it is verified: the handovers by the roster before each, the head by the
//! roster of its size, the entries by a consistency proof from this member's log to the head.

use std::time::Duration;

use coalition_log::{
    Entry,
    checkpoint::{CertifiedCheckpoint, SignedCheckpoint},
    entry::leaf_hash,
    handover::{HANDOVER_KIND, HandoverProof, RosterChain},
    tree::{Frontier, verify_consistency},
};
use coalition_universe::{CallError, Node, PeerId};

use crate::{
    member::{MemberError, hosted::Hosted},
    pruned,
    wire::{self, FollowAnswer, FollowRequest, HeadAnswer, HeadRequest, method},
};

/// Longest time one call may take.
const CALL: Duration = Duration::from_secs(4);

/// What one poll of one member led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Polled {
    /// Whether the log or its rosters are further than before.
    pub(super) progress: bool,
    /// Size of the member's certified head.
    pub(super) head: u64,
}

/// Why a poll led to nothing.
#[derive(Clone, Debug)]
pub(super) enum Failed {
    /// The member has dropped the entries that come next.
    Pruned(String),
    /// It cannot be reached, has nothing, or what it serves does not verify.
    Otherwise(String),
}

/// How far a peer can prove to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct News {
    /// Handovers.
    pub(super) epoch: u64,
    /// Entries certified.
    pub(super) size: u64,
}

/// What a peer's answer proves beyond this member's log.
struct Verified {
    handovers: Vec<HandoverProof>,
    chain: RosterChain,
    head: CertifiedCheckpoint,
    entries: Vec<Entry>,
}

/// Asks one peer for what comes after this member's log of one organism, and takes what it proves.
pub(super) async fn poll(
    node: &Node,
    peer: PeerId,
    organism: &Hosted,
    wait_ms: u32,
) -> Result<Result<Polled, Failed>, MemberError> {
    let size = organism.log.size();
    let tree = organism.log.frontier_at(size).map_err(|source| organism.store_failed(source))?;
    let request = FollowRequest {
        organism: organism.id,
        head_size: size,
        next: size,
        epoch: organism.log.chain().epoch(),
        wait_ms,
    };
    let answer = match node.call(peer, method::FOLLOW, wire::encode(&request), CALL).await {
        Ok(bytes) => wire::decode::<FollowAnswer>(&bytes).map_err(|error| error.to_string()),
        Err(CallError::Refused(fault)) if pruned::is_pruned(&fault) => return Ok(Err(Failed::Pruned(fault.message))),
        Err(error) => Err(error.to_string()),
    };
    match answer.and_then(|answer| verify(organism, &tree, &answer)) {
        Ok(verified) => take(organism, verified).map(Ok),
        Err(reason) => Ok(Err(Failed::Otherwise(reason))),
    }
}

/// How far a peer can prove to be with one organism; only that is asked, no entries.
pub(super) async fn newest(node: &Node, peer: PeerId, organism: &Hosted) -> Option<News> {
    let mut chain = RosterChain::clone(&organism.log.chain());
    let request = HeadRequest { organism: organism.id, newer_than: None, epoch: chain.epoch(), wait_ms: 0 };
    let bytes = node.call(peer, method::HEAD, wire::encode(&request), CALL).await.ok()?;
    let answer: HeadAnswer = wire::decode(&bytes).ok()?;
    chain.extend_all(&answer.handovers).ok()?;
    let note = answer.head.and_then(|head| SignedCheckpoint::parse(head.as_bytes()).ok());
    let head = note.and_then(|note| chain.certify(&note).ok());
    Some(News { epoch: chain.epoch(), size: head.map_or(0, |head| head.size()) })
}

fn verify(organism: &Hosted, tree: &Frontier, answer: &FollowAnswer) -> Result<Verified, String> {
    let mut chain = RosterChain::clone(&organism.log.chain());
    chain.extend_all(&answer.handovers).map_err(|error| error.to_string())?;
    let note = SignedCheckpoint::parse(answer.head.as_bytes()).map_err(|error| error.to_string())?;
    let head = chain.certify(&note).map_err(|error| error.to_string())?;
    let mut frontier = tree.clone();
    answer.entries.iter().for_each(|entry| frontier.push(leaf_hash(entry)));
    verify_consistency(frontier.size(), &frontier.root(), head.size(), &head.root(), &answer.range_proof)
        .map_err(|error| format!("what it serves does not extend this member's log: {error}"))?;
    let read = |(bytes, index): (&Vec<u8>, u64)| match Entry::decode(bytes) {
        Ok(entry) if entry.index == index => Ok(entry),
        Ok(entry) => Err(format!("entry {index} says it is {}", entry.index)),
        Err(error) => Err(format!("entry {index}: {error}")),
    };
    let entries = answer.entries.iter().zip(tree.size()..).map(read).collect::<Result<_, _>>()?;
    Ok(Verified { handovers: answer.handovers.clone(), chain, head, entries })
}

fn take(organism: &Hosted, verified: Verified) -> Result<Polled, MemberError> {
    let before = (organism.log.size(), organism.log.chain().epoch());
    let mut entries = verified.entries;
    let stop = stop_at(&verified.chain, &entries);
    entries.truncate(usize::try_from(stop.saturating_sub(before.0)).unwrap_or(usize::MAX));
    if !entries.is_empty() {
        organism.take_entries(&entries)?;
    }
    organism.keep_handovers_reached(&verified.handovers)?;
    if verified.head.size() <= organism.log.size() {
        organism.take_head(&verified.head)?;
    }
    let after = (organism.log.size(), organism.log.chain().epoch());
    Ok(Polled { progress: after != before, head: verified.head.size() })
}

/// Size up to which entries are taken: nothing is taken over a handover that is not proven.
fn stop_at(chain: &RosterChain, entries: &[Entry]) -> u64 {
    let unproven = |entry: &&Entry| entry.kind == HANDOVER_KIND && chain.leaf_at(entry.index).is_none();
    entries.iter().find(unproven).map_or(u64::MAX, |entry| entry.index + 1)
}
