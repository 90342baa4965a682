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
use coalition_universe::{Node, PeerId};

use crate::{
    member::{MemberError, executor::first_height, hosted::Hosted},
    wire::{self, FollowAnswer, FollowRequest, HeadAnswer, HeadRequest, method},
};

/// Longest time one call may take.
const CALL: Duration = Duration::from_secs(4);
/// Set in the heights under which fetched entries are stored: above everything the epoch's engine delivers, so that a
/// member which began to catch up never executes a batch of that engine again.
const FETCHED: u64 = 1 << 39;

/// What one poll of one member led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Polled {
    /// The log or its rosters are further than before.
    Progress,
    /// Nothing new.
    Idle,
}

/// What a peer's answer proves beyond this member's log.
struct News {
    handovers: Vec<HandoverProof>,
    chain: RosterChain,
    head: CertifiedCheckpoint,
    entries: Vec<Entry>,
}

/// Asks one peer for what comes after this member's log of one organism, and takes what it proves: up to the last handover
/// if `joins` says that this member has a seat in the engine that begins there, else all of it.
pub(super) async fn poll(
    node: &Node,
    peer: PeerId,
    organism: &Hosted,
    wait_ms: u32,
    joins: impl Fn(&RosterChain) -> bool,
) -> Result<Result<Polled, String>, MemberError> {
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
        Err(error) => Err(error.to_string()),
    };
    match answer.and_then(|answer| verify(organism, &tree, &answer)) {
        Ok(news) => {
            let joins = joins(&news.chain);
            take(organism, news, joins).map(Ok)
        }
        Err(reason) => Ok(Err(reason)),
    }
}

/// The newest epoch of one organism that a peer can prove; only that is asked, no entries.
pub(super) async fn newest_epoch(node: &Node, peer: PeerId, organism: &Hosted) -> Option<u64> {
    let mut chain = RosterChain::clone(&organism.log.chain());
    let request = HeadRequest { organism: organism.id, newer_than: None, epoch: chain.epoch(), wait_ms: 0 };
    let bytes = node.call(peer, method::HEAD, wire::encode(&request), CALL).await.ok()?;
    let answer: HeadAnswer = wire::decode(&bytes).ok()?;
    chain.extend_all(&answer.handovers).ok()?;
    Some(chain.epoch())
}

fn verify(organism: &Hosted, tree: &Frontier, answer: &FollowAnswer) -> Result<News, String> {
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
    Ok(News { handovers: answer.handovers.clone(), chain, head, entries })
}

fn take(organism: &Hosted, news: News, joins: bool) -> Result<Polled, MemberError> {
    let before = (organism.log.size(), organism.log.chain().epoch());
    let mut entries = news.entries;
    let stop = stop_at(&news.chain, &entries, joins);
    entries.truncate(usize::try_from(stop.saturating_sub(before.0)).unwrap_or(usize::MAX));
    if !entries.is_empty() {
        let last = entries.last().map_or(0, |entry| entry.index);
        let epoch = news.chain.epoch_at(last + 1);
        organism.take_entries(first_height(epoch) | FETCHED | (last + 1), &entries)?;
    }
    let size = organism.log.size();
    let reached =
        news.handovers.iter().filter(|proof| Entry::decode(&proof.entry).is_ok_and(|entry| entry.index < size));
    let reached: Vec<HandoverProof> = reached.cloned().collect();
    if !reached.is_empty() {
        organism.keep_handovers(&reached)?;
    }
    if news.head.size() <= size {
        organism.take_head(&news.head)?;
    }
    let after = (size, organism.log.chain().epoch());
    Ok(if after == before { Polled::Idle } else { Polled::Progress })
}

/// Size up to which entries are taken. An engine starts right behind its handover, and delivers what it has ordered since;
/// and nothing is taken over a handover that is not proven.
fn stop_at(chain: &RosterChain, entries: &[Entry], joins: bool) -> u64 {
    let unproven = |entry: &&Entry| entry.kind == HANDOVER_KIND && chain.leaf_at(entry.index).is_none();
    let open = entries.iter().find(unproven).map_or(u64::MAX, |entry| entry.index + 1);
    if joins { chain.begins_after().min(open) } else { open }
}
