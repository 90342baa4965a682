//! Taking over a certified state that another member serves: for a member whose next entries are pruned everywhere, or so far
//! behind that reading them all would cost more.
//!
//! Verified before anything counts: the head by the roster of its size, the entry that certifies the state by its path under
//! that head, the tree at the state by a consistency proof, the state by its digest, its handovers by their proofs, and the hash
//! tiles and entries up to the state by being that tree, of which this member's own log must be the beginning.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coalition_log::{
    Entry, SnapshotError,
    follow::{Follower as Core, StateStart},
    state::StateRecord,
    store::{Checked, TILE_WIDTH, Takeover, decode_hashes},
    tree::Frontier,
};
use coalition_universe::{Node, PeerId};

use super::{MemberError, hosted::Hosted, progress::Progress};
use crate::{
    error::describe,
    follower::state::{accept, install},
    wire::{
        self, FollowAnswer, FollowRequest, HashesRequest, MAX_RANGE_BYTES, MAX_TILES, StateAnswer, StatePartRequest,
        StateRequest, method,
    },
};

/// Longest time one call may take.
const CALL: Duration = Duration::from_secs(10);
/// Bytes of a tile of leaf hashes.
const TILE_BYTES: usize = 8_192;

/// Either it was taken, or this is why not.
pub(super) type Taken = Result<Result<(), String>, MemberError>;

/// Asks one peer for its newest state of one organism, and makes the log go on behind it.
pub(super) async fn take(node: &Node, peer: PeerId, organism: &Hosted) -> Taken {
    let from = Source { node, peer, organism };
    let (start, offer) = match from.offer().await {
        Ok(accepted) => accepted,
        Err(reason) => return Ok(Err(reason)),
    };
    let record = *start.record();
    tracing::info!(
        organism = organism.name,
        size = organism.log.size(),
        covers = record.covers,
        bytes = record.length,
        "taking over a certified state instead of the entries before it"
    );
    let state = match from.state(&record).await {
        Ok(state) => state,
        Err(reason) => return Ok(Err(reason)),
    };
    if let Err(error) = install(organism.id, &record, start.handovers(), &state, |_| Ok::<(), SnapshotError>(())) {
        return Ok(Err(describe(&error)));
    }
    let takeover = organism.with_store(|store| store.begin_takeover())?;
    let takeover = match from.hashes(takeover, record.covers).await? {
        Ok(takeover) => takeover,
        Err(reason) => return Ok(Err(reason)),
    };
    let checked = match from.entries(takeover, &offer, start.frontier()).await? {
        Ok(checked) => checked,
        Err(reason) => return Ok(Err(reason)),
    };
    let Ok(certifies) = Entry::decode(&offer.entry) else {
        return Ok(Err("the entry that certifies its state is none".into()));
    };
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    organism.take_state(checked, &certifies, &state, u64::try_from(now_ms).unwrap_or(u64::MAX))?;
    organism.keep_handovers_reached(&offer.handovers)?;
    tracing::info!(organism = organism.name, size = organism.log.size(), "going on behind a certified state");
    Ok(Ok(()))
}

struct Source<'a> {
    node: &'a Node,
    peer: PeerId,
    organism: &'a Hosted,
}

impl Source<'_> {
    async fn call(&self, method: &str, body: Vec<u8>) -> Result<Vec<u8>, String> {
        self.node.call(self.peer, method, body, CALL).await.map_err(|error| error.to_string())
    }

    /// The newest state ahead of this member's log, verified but for its bytes.
    async fn offer(&self) -> Result<(StateStart, StateAnswer), String> {
        let (id, chain, size) = (self.organism.id, self.organism.log.chain(), self.organism.log.size());
        let request = StateRequest { organism: id, head_size: 0, next: size, epoch: chain.epoch() };
        let answer = self.call(method::STATE, wire::encode(&request)).await?;
        let answer: StateAnswer = wire::decode(&answer).map_err(|error| error.to_string())?;
        let genesis = chain.rosters().next().ok_or("there is no roster")?;
        let mut core = Core::new(id, genesis).map_err(|error| describe(&error))?;
        core.accept_handovers(&chain.proofs(0, u64::MAX)).map_err(|error| describe(&error))?;
        let start = accept(&mut core, &answer).map_err(|error| describe(&error))?;
        let covers = start.record().covers;
        if covers <= size {
            return Err(format!("its newest state covers {covers} entries, this member has {size}"));
        }
        Ok((start, answer))
    }

    async fn state(&self, record: &StateRecord) -> Result<Vec<u8>, String> {
        let mut bytes: Vec<u8> = Vec::new();
        let mut progress = Progress::from(0);
        while (bytes.len() as u64) < record.length {
            let offset = bytes.len() as u64;
            let request = StatePartRequest { organism: self.organism.id, covers: record.covers, offset };
            let part = self.call(method::STATE_PART, wire::encode(&request)).await?;
            let expected = (record.length - offset).min(MAX_RANGE_BYTES as u64);
            if part.len() as u64 != expected {
                return Err(format!("{} bytes of its state at {offset}, expected {expected}", part.len()));
            }
            bytes.extend_from_slice(&part);
            progress.tell(&self.organism.name, "bytes of a state", bytes.len() as u64, record.length);
        }
        Ok(bytes)
    }

    /// Every full tile of leaf hashes below the state that this member lacks.
    async fn hashes(&self, mut takeover: Takeover, covers: u64) -> Result<Result<Takeover, String>, MemberError> {
        let tiles = covers / TILE_WIDTH;
        let mut progress = Progress::from(takeover.next_tile());
        while takeover.next_tile() < tiles {
            let asked = (tiles - takeover.next_tile()).min(MAX_TILES);
            let request = HashesRequest { organism: self.organism.id, tile: takeover.next_tile(), tiles: asked };
            let bytes = match self.call(method::HASHES, wire::encode(&request)).await {
                Ok(bytes) => bytes,
                Err(reason) => return Ok(Err(reason)),
            };
            let (parts, rest) = bytes.as_chunks::<TILE_BYTES>();
            if !rest.is_empty() || parts.len() as u64 != asked {
                return Ok(Err(format!("{} bytes of hashes, expected {asked} tiles", bytes.len())));
            }
            let pushed = self.on_disk(takeover, parts.iter().flatten().copied().collect()).await?;
            takeover = pushed;
            progress.tell(&self.organism.name, "tiles of hashes", takeover.next_tile(), tiles);
        }
        Ok(Ok(takeover))
    }

    async fn on_disk(&self, mut takeover: Takeover, bytes: Vec<u8>) -> Result<Takeover, MemberError> {
        let writing = move || {
            for tile in bytes.chunks(TILE_BYTES) {
                takeover.push_tile(&decode_hashes(tile, TILE_WIDTH).unwrap_or_default())?;
            }
            takeover.sync()?;
            Ok(takeover)
        };
        let written =
            tokio::task::spawn_blocking(writing).await.map_err(|_| MemberError::Ended("takeover of a state"))?;
        written.map_err(|source| self.organism.store_failed(source))
    }

    /// The entries from the last tile's beginning to the one that certifies the state, and the check of it all.
    async fn entries(
        &self,
        takeover: Takeover,
        offer: &StateAnswer,
        tree: &Frontier,
    ) -> Result<Result<Checked, String>, MemberError> {
        let (from, covers) = (takeover.next_tile() * TILE_WIDTH, tree.size());
        let mut entries: Vec<Vec<u8>> = Vec::new();
        while from + (entries.len() as u64) < covers {
            let next = from + entries.len() as u64;
            let request = FollowRequest {
                organism: self.organism.id,
                head_size: 0,
                next,
                epoch: u64::from(u32::MAX),
                wait_ms: 0,
            };
            let answer = match self.call(method::FOLLOW, wire::encode(&request)).await {
                Ok(answer) => wire::decode::<FollowAnswer>(&answer).map_err(|error| error.to_string()),
                Err(reason) => Err(reason),
            };
            match answer {
                Ok(answer) if answer.entries.is_empty() => {
                    return Ok(Err(format!("it serves no entry {next}, which its state covers")));
                }
                Ok(answer) => entries.extend(answer.entries),
                Err(reason) => return Ok(Err(reason)),
            }
        }
        entries.truncate(usize::try_from(covers - from).unwrap_or(usize::MAX));
        entries.push(offer.entry.clone());
        let checked = self.organism.with_store_unless_refused(|store| store.check_takeover(takeover, entries, tree))?;
        Ok(checked.map_err(|error| describe(&error)))
    }
}
