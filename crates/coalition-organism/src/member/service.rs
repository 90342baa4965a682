//! What a member answers to clients. It hands out nothing that a client could not verify.

use std::{sync::Arc, time::Duration};

use coalition::UniqueId;
use coalition_log::{
    Refusal,
    checkpoint::CertifiedCheckpoint,
    entry::WriteId,
    evidence::Evidence,
    handover::HandoverProof,
    store::{StoreError, TILE_WIDTH, TileKind},
};
use coalition_order::{OrderHandle, SubmitError};
use coalition_universe::{Fault, PeerId, Service};
use futures::future::{BoxFuture, join_all};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

use crate::{
    execution::{Outcome, pointers},
    member::{
        Standing, admission, anchor,
        hosted::{Hosted, lock},
    },
    pruned::Pruned,
    receipt,
    wire::{
        self, AdmitRequest, ChallengeRequest, EvidenceRequest, FollowAnswer, FollowRequest, HashesRequest, HeadAnswer,
        HeadRequest, MAX_COMMAND_BYTES, MAX_RANGE_BYTES, MAX_TILES, MAX_WAIT_MS, MAX_WRITES, Malformed, NO_STATE,
        Ordered, SettledRequest, StateAnswer, StatePartRequest, StateRequest, Write, WriteAnswer, WriteRequest, method,
    },
};

/// Pause before a write is offered again to an engine whose pool is full.
const FULL_RETRY: Duration = Duration::from_millis(50);

/// The methods `organism.*` of one member.
pub(crate) struct OrganismService {
    pub(crate) organisms: Arc<Vec<Hosted>>,
    /// The engine that orders now; `None` while this member has no seat.
    pub(crate) engine: watch::Receiver<Option<OrderHandle>>,
    pub(crate) standing: watch::Receiver<Standing>,
    /// This member's name in the roster.
    pub(crate) name: Arc<str>,
}

impl Service for OrganismService {
    fn call(&self, caller: PeerId, method: String, body: Vec<u8>) -> BoxFuture<'static, Result<Vec<u8>, Fault>> {
        let call = Call {
            organisms: Arc::clone(&self.organisms),
            engine: self.engine.clone(),
            standing: self.standing.clone(),
            name: Arc::clone(&self.name),
        };
        Box::pin(async move {
            match method.as_str() {
                method::WRITE => call.write(caller, read(&body)?).await,
                method::CHALLENGE => {
                    let request: ChallengeRequest = read(&body)?;
                    admission::challenge(call.organism(request.organism)?, caller)
                }
                method::ADMIT => {
                    let request: AdmitRequest = read(&body)?;
                    admission::admit(call.organism(request.organism)?, caller, &request.presentation)
                }
                method::FOLLOW => call.follow(read(&body)?).await,
                method::HEAD => call.head(read(&body)?).await,
                method::SETTLED => call.settled(read(&body)?).await,
                method::EVIDENCE => call.evidence(&read(&body)?),
                method::STATE => call.state(&read(&body)?),
                method::STATE_PART => call.state_part(&read(&body)?),
                method::HASHES => call.hashes(&read(&body)?),
                method::ANCHOR => {
                    anchor::check_member(&call.organisms, caller)?;
                    anchor::serve(&call.engine, &call.standing, &read(&body)?).await
                }
                _ => Err(Fault::new("unknown_method", format!("this node does not answer {method}"))),
            }
        })
    }
}

struct Call {
    organisms: Arc<Vec<Hosted>>,
    engine: watch::Receiver<Option<OrderHandle>>,
    standing: watch::Receiver<Standing>,
    name: Arc<str>,
}

impl Call {
    fn organism(&self, id: UniqueId) -> Result<&Hosted, Fault> {
        let unknown = || Fault::new("unknown_organism", format!("this member does not carry organism {id}"));
        self.organisms.iter().find(|hosted| hosted.id == id).ok_or_else(unknown)
    }

    async fn write(&self, caller: PeerId, request: WriteRequest) -> Result<Vec<u8>, Fault> {
        let organism = self.organism(request.organism)?;
        admission::check_writer(organism, caller, &request.writes)?;
        let until = until(request.wait_ms);
        if request.writes.len() > MAX_WRITES {
            let message = format!("{} writes in one request, at most {MAX_WRITES} are taken", request.writes.len());
            return Err(Fault::new("too_many_writes", message));
        }
        let answers = join_all(request.writes.into_iter().map(|write| self.write_one(organism, write, until))).await;
        let answers: Vec<WriteAnswer> = answers.into_iter().collect::<Result<_, _>>()?;
        let head = organism.certified().borrow().clone();
        let reply = receipt::prove(&organism.log, head.as_ref(), answers, request.epoch);
        let reply = reply.map_err(|error| self.failed(organism, &error))?;
        Ok(wire::encode(&reply))
    }

    async fn write_one(&self, organism: &Hosted, write: Write, until: Instant) -> Result<WriteAnswer, Fault> {
        if write.payload.len() > MAX_COMMAND_BYTES {
            let bytes = write.payload.len();
            let message = format!("command of {bytes} bytes exceeds {MAX_COMMAND_BYTES}");
            return Ok(WriteAnswer::Refused(Refusal::new("too_large", message)));
        }
        if write.write_id == WriteId::NONE {
            let message = "a write id of zeros means no client; choose a random one";
            return Ok(WriteAnswer::Refused(Refusal::new("no_write_id", message)));
        }
        let outcome = match organism.outcome_of(write.bound_id()) {
            Ok(outcome) => outcome,
            Err(told) => match tokio::time::timeout_at(until, self.ordered(organism, write, told)).await {
                Ok(Some(outcome)) => outcome,
                Ok(None) | Err(_) => return Ok(WriteAnswer::Pending),
            },
        };
        match outcome {
            Outcome::Refused(refusal) => Ok(WriteAnswer::Refused(refusal)),
            Outcome::Written { first, count } => self.committed(organism, first, count, until).await,
        }
    }

    /// Has a write ordered, and again by the next engine if the committee hands over meanwhile: it writes once. `None` when it
    /// cannot be ordered here. Its companions in the request are not held up by it: each waits by itself.
    async fn ordered(&self, organism: &Hosted, write: Write, mut told: oneshot::Receiver<Outcome>) -> Option<Outcome> {
        let (mut engine, mut standing) = (self.engine.clone(), self.standing.clone());
        let bound = write.bound_id();
        let Write { write_id, payload } = write;
        let ordered = wire::encode(&Ordered { organism: organism.id, write_id, attempt: rand::random(), payload });
        loop {
            let order = engine.borrow_and_update().clone();
            let is_seated = standing.borrow_and_update().is_seated();
            if let Some(outcome) = lock(&organism.execution).known_write(bound) {
                return Some(outcome);
            }
            match order {
                Some(order) if !submit(organism, &order, &ordered).await => return None,
                Some(_) => {}
                None if !is_seated => {
                    tracing::debug!(organism = %organism.name, "a write was not taken: this member has no seat");
                    return None;
                }
                None => {}
            }
            tokio::select! {
                outcome = &mut told => return outcome.ok(),
                changed = engine.changed() => changed.ok()?,
                changed = standing.changed() => changed.ok()?,
            }
        }
    }

    async fn follow(&self, request: FollowRequest) -> Result<Vec<u8>, Fault> {
        let organism = self.organism(request.organism)?;
        let ready = |size| size > request.next || size > request.head_size;
        let head = head_when(organism, until(request.wait_ms), ready).await;
        let head = head.ok_or_else(|| Fault::new("nothing_certified", "nothing is certified yet"))?;
        self.range(organism, &request, &head).map(|answer| wire::encode(&answer))
    }

    async fn head(&self, request: HeadRequest) -> Result<Vec<u8>, Fault> {
        let organism = self.organism(request.organism)?;
        let ready = |size| request.newer_than.is_none_or(|known| size > known);
        let head = head_when(organism, until(request.wait_ms), ready).await;
        let handovers = handovers(organism, request.epoch);
        Ok(wire::encode(&HeadAnswer { head: head.map(|head| head.note().to_string()), handovers }))
    }

    /// What was signed before the question may have been acknowledged elsewhere before the certificate came here.
    async fn settled(&self, request: SettledRequest) -> Result<Vec<u8>, Fault> {
        let organism = self.organism(request.organism)?;
        let signed = organism.signed_size();
        let head = head_when(organism, until(request.wait_ms), |size| size >= signed).await;
        let settled = head.filter(|head| head.size() >= signed && organism.is_epoch_proven());
        let unsettled = || Fault::new("unsettled", format!("{signed} entries are signed here, and not certified yet"));
        let head = settled.ok_or_else(unsettled)?.note().to_string();
        Ok(wire::encode(&HeadAnswer { head: Some(head), handovers: handovers(organism, request.epoch) }))
    }

    fn evidence(&self, request: &EvidenceRequest) -> Result<Vec<u8>, Fault> {
        let organism = self.organism(request.organism)?;
        let head = organism.certified().borrow().clone();
        let head = head.filter(|head| head.size() > request.index);
        let head =
            head.ok_or_else(|| Fault::new("no_such_entry", format!("entry {} is not certified", request.index)))?;
        let broken = |error| self.failed(organism, &error);
        let entry = organism.entry_bytes(request.index).map_err(broken)?;
        let path = organism.log.inclusion_proof(request.index, head.size()).map_err(broken)?;
        let evidence = Evidence::new(entry, path, &head).map_err(|e| Fault::new("internal", e.to_string()))?;
        let evidence = evidence.with_handovers(organism.log.chain().proofs(0, head.size()));
        Ok(evidence.to_string().into_bytes())
    }

    /// The newest state that the newest head certifies, with what shows it. Its bytes are asked for part by part.
    fn state(&self, request: &StateRequest) -> Result<Vec<u8>, Fault> {
        let organism = self.organism(request.organism)?;
        let head = organism.certified().borrow().clone();
        let head = head.ok_or_else(|| Fault::new("nothing_certified", "nothing is certified yet"))?;
        if request.head_size > head.size() {
            return Err(behind(head.size()));
        }
        let (log, broken) = (&organism.log, |error| self.failed(organism, &error));
        let states = log.states().list().map_err(broken)?;
        let usable = states.into_iter().find(|covers| *covers < head.size() && *covers >= request.next);
        let covers = usable.ok_or_else(|| Fault::new(NO_STATE, "this member keeps no state that is any use to you"))?;
        Ok(wire::encode(&StateAnswer {
            handovers: handovers(organism, request.epoch),
            head: head.note().to_string(),
            head_proof: log.consistency_proof(request.head_size, head.size()).map_err(broken)?,
            entry: log.entry_bytes(covers).map_err(broken)?.to_vec(),
            path: log.inclusion_proof(covers, head.size()).map_err(broken)?,
            peaks: log.frontier_at(covers).map_err(broken)?.peaks().to_vec(),
            proof: log.consistency_proof(covers, head.size()).map_err(broken)?,
        }))
    }

    fn state_part(&self, request: &StatePartRequest) -> Result<Vec<u8>, Fault> {
        let organism = self.organism(request.organism)?;
        let part = organism.log.states().read_part(request.covers, request.offset, MAX_RANGE_BYTES);
        part.map_err(|_| Fault::new(NO_STATE, format!("this member keeps no state of {} entries", request.covers)))
    }

    /// Leaf hashes, for a member that takes over a state. They stay when entries go.
    fn hashes(&self, request: &HashesRequest) -> Result<Vec<u8>, Fault> {
        let organism = self.organism(request.organism)?;
        let full = organism.log.size() / TILE_WIDTH;
        let to = request.tile.saturating_add(request.tiles.min(MAX_TILES)).min(full);
        let tile = |number| organism.log.tile(TileKind::Level(0), number, TILE_WIDTH);
        let tiles: Result<Vec<Vec<u8>>, StoreError> = (request.tile..to).map(tile).collect();
        tiles.map(|tiles| tiles.concat()).map_err(|error| self.failed(organism, &error))
    }

    fn range(
        &self,
        organism: &Hosted,
        request: &FollowRequest,
        head: &CertifiedCheckpoint,
    ) -> Result<FollowAnswer, Fault> {
        let size = head.size();
        if request.head_size > size || request.next > size {
            return Err(behind(size));
        }
        let (log, broken) = (&organism.log, |error| self.failed(organism, &error));
        let entries = log.entries(request.next..size, MAX_RANGE_BYTES).map_err(broken)?;
        let end = request.next + entries.len() as u64;
        Ok(FollowAnswer {
            handovers: handovers(organism, request.epoch),
            head: head.note().to_string(),
            head_proof: log.consistency_proof(request.head_size, size).map_err(broken)?,
            entries: entries.iter().map(|entry| entry.to_vec()).collect(),
            range_proof: log.consistency_proof(end, size).map_err(broken)?,
        })
    }

    async fn committed(&self, organism: &Hosted, first: u64, count: u64, until: Instant) -> Result<WriteAnswer, Fault> {
        let end = first + count;
        let mut certified = organism.certified();
        let covers = |head: &Option<CertifiedCheckpoint>| head.as_ref().is_some_and(|h| h.size() >= end);
        if tokio::time::timeout_at(until, certified.wait_for(covers)).await.is_err() {
            return Ok(WriteAnswer::Pending);
        }
        let entries = match (first..end).map(|index| organism.log.entry(index)).collect::<Result<Vec<_>, _>>() {
            Ok(entries) => entries,
            // Committed, and not provable here any more: another member may have kept it, and its companions in the
            // request need not wait for that.
            Err(StoreError::Pruned { .. }) => return Ok(WriteAnswer::Pending),
            Err(error) => return Err(self.failed(organism, &error)),
        };
        let entries =
            pointers(organism.id, entries.iter()).map_err(|error| Fault::new("internal", error.to_string()))?;
        Ok(WriteAnswer::Committed { entries })
    }

    /// What a client is told when the log does not give what it asked for.
    fn failed(&self, organism: &Hosted, error: &StoreError) -> Fault {
        if let StoreError::Pruned { below, at_ms, .. } = *error {
            return Pruned { below, at_ms, by: self.name.to_string() }.to_fault();
        }
        tracing::error!(organism = %organism.name, %error, "the log could not be read");
        Fault::new("log_unreadable", "this member cannot read its log; ask another")
    }
}

/// Hands a write to the ordering engine, again and again while its pool is full. Answers whether it was taken.
async fn submit(organism: &Hosted, order: &OrderHandle, ordered: &[u8]) -> bool {
    loop {
        match order.submit(ordered.to_vec()) {
            // One that has stopped has handed over; the next is about to start.
            Ok(_) | Err(SubmitError::Stopped) => return true,
            Err(SubmitError::Full { .. }) => tokio::time::sleep(FULL_RETRY).await,
            Err(error) => {
                tracing::debug!(organism = %organism.name, %error, "a write was not taken");
                return false;
            }
        }
    }
}

/// What a client that knows `epoch` handovers needs for any head this member serves.
fn handovers(organism: &Hosted, epoch: u64) -> Vec<HandoverProof> {
    organism.log.chain().proofs(epoch, u64::MAX)
}

fn behind(size: u64) -> Fault {
    Fault::new("behind", format!("this member is at {size} entries, behind the reader; ask another"))
}

/// The newest certificate as soon as its size satisfies `ready`, or at the latest when the wait ends.
async fn head_when(organism: &Hosted, until: Instant, ready: impl Fn(u64) -> bool) -> Option<CertifiedCheckpoint> {
    let mut certified = organism.certified();
    let reached = |head: &Option<CertifiedCheckpoint>| head.as_ref().is_some_and(|head| ready(head.size()));
    let _ = tokio::time::timeout_at(until, certified.wait_for(reached)).await;
    certified.borrow().clone()
}

fn until(wait_ms: u32) -> Instant {
    Instant::now() + Duration::from_millis(u64::from(wait_ms.min(MAX_WAIT_MS)))
}

fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    wire::decode(body).map_err(|error: Malformed| Fault::new("malformed", error.to_string()))
}
