//! A client's view of one organism: write to it, read proofs from it. Trusts no member.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use coalition::{EvidencePointer, Roster, RosterMember, UniqueId};
use coalition_log::{
    checkpoint::{CertifiedCheckpoint, RosterError, SignedCheckpoint},
    entry::WriteId,
    evidence::Evidence,
    handover::{ApprovedHandover, HandoverProof, RosterChain},
    retirement::{ApprovedRetirement, RETIRED_CODE},
};
use coalition_universe::{CallError, Node, PeerId};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    admission::{Admissions, TicketSource},
    error::{ReadError, WriteError},
    outbox::Outbox,
    pruned::Pruned,
    search,
    wire::{self, MAX_COMMAND_BYTES, Payload, method},
};

/// Longest time one call to one member may take before the next member is asked.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(4);

/// A committed write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The id it was written under.
    pub write_id: WriteId,
    /// The certified entries it produced, in order; at least one.
    pub entries: Vec<EvidencePointer>,
}

/// A fresh random write id. Retrying with the same id writes once.
#[must_use]
pub fn random_write_id() -> WriteId {
    WriteId(rand::random())
}

/// A handle on one organism, cheap to clone.
#[derive(Clone)]
pub struct Organism {
    shared: Arc<Shared>,
    outbox: Outbox,
}

/// What every part of the client needs: who the members are, how to reach and how to verify them.
pub(crate) struct Shared {
    pub(crate) node: Arc<Node>,
    pub(crate) id: UniqueId,
    pub(crate) genesis: Roster,
    known: RwLock<Arc<Known>>,
    preferred: AtomicUsize,
    search: mpsc::Sender<()>,
    pub(crate) admissions: Admissions,
}

/// Who the members are, as far as handovers were proven.
pub(crate) struct Known {
    pub(crate) chain: RosterChain,
    /// Those in force, then those who left with the last handover: they may still serve.
    members: Vec<(String, PeerId)>,
    /// How many of them are in force.
    pub(crate) in_force: usize,
}

impl Known {
    fn new(chain: RosterChain) -> Self {
        let rosters: Vec<&Roster> = chain.rosters().collect();
        let (mut members, mut in_force) = (Vec::<(String, PeerId)>::new(), 0);
        for roster in rosters.iter().rev().take(2) {
            for member in roster.members() {
                if let Ok(peer) = PeerId::from_bytes(member.peer_id)
                    && members.iter().all(|(_, known)| *known != peer)
                {
                    members.push((member.name.clone(), peer));
                }
            }
            if in_force == 0 {
                in_force = members.len();
            }
        }
        Self { chain, members, in_force }
    }

    pub(crate) fn peers(&self) -> impl Iterator<Item = PeerId> {
        self.members.iter().map(|(_, peer)| *peer)
    }
}

impl Shared {
    /// Who the members are now.
    pub(crate) fn known(&self) -> Arc<Known> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many handovers are known.
    pub(crate) fn epoch(&self) -> u64 {
        self.known().chain.epoch()
    }

    /// Takes the proofs of handovers a member sent.
    pub(crate) fn learn(&self, proofs: &[HandoverProof]) -> Result<(), String> {
        if proofs.is_empty() {
            return Ok(());
        }
        let mut chain = self.known().chain.clone();
        chain.extend_all(proofs).map_err(|error| error.to_string())?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if chain.epoch() > known.chain.epoch() {
            tracing::info!(organism = %self.id, epoch = chain.epoch(), "the committee has handed over");
            let next = Known::new(chain);
            // Those who have left lag behind.
            self.preferred.store(rand::random_range(0..next.in_force.max(1)), Ordering::Relaxed);
            *known = Arc::new(next);
        }
        Ok(())
    }

    /// The member asked first, and where to go on after it failed.
    pub(crate) fn member(&self) -> (usize, PeerId) {
        let known = self.known();
        let position = self.preferred.load(Ordering::Relaxed) % known.members.len();
        (position, known.members[position].1)
    }

    /// Moves on from a member that failed; a no-op when somebody else already did.
    pub(crate) fn demote(&self, position: usize) {
        let next = (position + 1) % self.members();
        let moved = self.preferred.compare_exchange(position, next, Ordering::Relaxed, Ordering::Relaxed);
        if moved.is_ok() {
            // Perhaps nobody is left of those who are known. A search may be under way.
            let _ = self.search.try_send(());
        }
    }

    /// Calls members in turn until one gives an answer that `accept` takes.
    pub(crate) async fn ask<T>(
        &self,
        method: &str,
        body: Vec<u8>,
        deadline: Duration,
        mut accept: impl FnMut(&[u8]) -> Result<T, String>,
    ) -> Result<T, ReadError> {
        let started = Instant::now();
        let (mut last, mut pruned) = (None, BTreeMap::new());
        loop {
            let left = deadline.saturating_sub(started.elapsed());
            let everybody_pruned = pruned.len() >= self.members();
            if left.is_zero() || everybody_pruned {
                // The member that kept most is the one to name.
                let kept_most = pruned.into_values().min_by_key(|pruned: &Pruned| pruned.below);
                let late = ReadError::Deadline { waited_ms: millis(deadline), last };
                return Err(kept_most.map_or(late, ReadError::Pruned));
            }
            let (position, peer) = self.member();
            let answer = self.node.call(peer, method, body.clone(), left.min(CALL_TIMEOUT)).await;
            let failure = match answer {
                Ok(bytes) => match accept(&bytes) {
                    Ok(value) => return Ok(value),
                    Err(reason) => format!("member {} answered falsely: {reason}", self.name(position)),
                },
                Err(error) => {
                    if let CallError::Refused(fault) = &error {
                        let said = Pruned::from_fault(fault, &self.name(position));
                        pruned.extend(said.map(|pruned| (position, pruned)));
                    }
                    format!("member {}: {error}", self.name(position))
                }
            };
            tracing::debug!(organism = %self.id, %failure, "asking the next member");
            last = Some(failure);
            self.demote(position);
            pause(&answer_pace(started), left).await;
        }
    }

    /// One call to the member at a position; positions are those of [`known`](Self::known) at one time.
    pub(crate) async fn call(
        &self,
        position: usize,
        method: &str,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, CallError> {
        let known = self.known();
        let (_, peer) = known.members[position % known.members.len()];
        self.node.call(peer, method, body, timeout).await
    }

    /// How many members can be asked.
    pub(crate) fn members(&self) -> usize {
        self.known().members.len()
    }

    pub(crate) fn name(&self, position: usize) -> String {
        self.known().members.get(position).map_or_else(|| "?".into(), |(name, _)| name.clone())
    }
}

/// Members are asked in quick succession at first, then every 200 ms.
fn answer_pace(started: Instant) -> Duration {
    if started.elapsed() < Duration::from_millis(100) { Duration::from_millis(5) } else { Duration::from_millis(200) }
}

async fn pause(pace: &Duration, left: Duration) {
    tokio::time::sleep((*pace).min(left)).await;
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Organism {
    /// A handle on organism `id` with the roster its config pins; it follows the committee's handovers by itself. The members'
    /// addresses must have been introduced to the node; nothing is contacted yet. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`RosterError`] when a key of the roster is unusable.
    pub fn connect(node: Arc<Node>, id: UniqueId, roster: Roster) -> Result<Self, RosterError> {
        let unusable = |member: &RosterMember| {
            let peer = PeerId::from_bytes(member.peer_id);
            peer.err().map(|_| RosterError::PeerId { member: member.name.clone(), key: member.peer_id })
        };
        roster.members().iter().find_map(unusable).map_or(Ok(()), Err)?;
        let known = RwLock::new(Arc::new(Known::new(RosterChain::new(id, &roster)?)));
        // Start at a random member, so that clients spread over the committee.
        let preferred = AtomicUsize::new(rand::random_range(0..roster.members().len()));
        let (search, wanted) = mpsc::channel(1);
        let admissions = Admissions::default();
        let shared = Arc::new(Shared { node, id, genesis: roster, known, preferred, search, admissions });
        tokio::spawn(search::run(Arc::downgrade(&shared), wanted));
        let outbox = Outbox::start(Arc::clone(&shared));
        Ok(Self { shared, outbox })
    }

    /// Has this handle and its clones show tickets where a member asks for them.
    #[must_use]
    pub fn showing(self, tickets: Arc<dyn TicketSource>) -> Self {
        self.shared.admissions.set(tickets);
        self
    }

    /// The organism's id.
    #[must_use]
    pub fn id(&self) -> UniqueId {
        self.shared.id
    }

    /// The genesis roster, which its config pins: all that evidence is verified with.
    #[must_use]
    pub fn roster(&self) -> &Roster {
        &self.shared.genesis
    }

    /// Who certifies its log, as far as this client has learned: epochs, and the rosters of each.
    #[must_use]
    pub fn committee(&self) -> RosterChain {
        self.shared.known().chain.clone()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Writes a command and waits until its entries are certified. Members are tried in turn under the same id, so the
    /// command takes effect once however often it is sent; calling again with the same id gives the same answer.
    ///
    /// # Errors
    /// [`WriteError`]. After [`WriteError::Deadline`] the write may still commit.
    pub async fn write(
        &self,
        write_id: WriteId,
        command: Vec<u8>,
        deadline: Duration,
    ) -> Result<Committed, WriteError> {
        self.write_payload(write_id, Payload::Command(command), deadline).await
    }

    /// Ends the organism's log, as a quorum of its members has approved: announces the retirement now, and the last entry
    /// follows when it takes effect.
    ///
    /// # Errors
    /// As [`write`](Self::write); refusals `already_retiring`, `not_approved`, `malformed`.
    pub async fn retire(
        &self,
        write_id: WriteId,
        approved: &ApprovedRetirement,
        deadline: Duration,
    ) -> Result<Committed, WriteError> {
        self.write_payload(write_id, Payload::Retire(approved.to_bytes()), deadline).await
    }

    /// Hands the committee over to the next roster, as a quorum of its members has approved for every organism it carries.
    /// The entry the answer names is this organism's; the next roster certifies what comes after it.
    ///
    /// # Errors
    /// As [`write`](Self::write); refusals `not_approved`, `wrong_epoch`, `not_allowed`, `not_all_organisms`,
    /// `different_rosters`, `already_handing_over`, `malformed`.
    pub async fn hand_over(
        &self,
        write_id: WriteId,
        approved: &[(UniqueId, ApprovedHandover)],
        deadline: Duration,
    ) -> Result<Committed, WriteError> {
        let all = approved.iter().map(|(organism, approved)| (*organism, approved.to_bytes())).collect();
        self.write_payload(write_id, Payload::Handover(wire::encode(&wire::Handovers(all))), deadline).await
    }

    pub(crate) async fn write_payload(
        &self,
        write_id: WriteId,
        payload: Payload,
        deadline: Duration,
    ) -> Result<Committed, WriteError> {
        if payload.len() > MAX_COMMAND_BYTES {
            return Err(WriteError::TooLarge { bytes: payload.len(), limit: MAX_COMMAND_BYTES });
        }
        let started = Instant::now();
        match self.outbox.write(write_id, payload, deadline).await {
            // One member's word so far; the log's last entry is the committee's.
            Err(WriteError::Refused(refusal)) if refusal.code == RETIRED_CODE => {
                let left = deadline.saturating_sub(started.elapsed()).max(CALL_TIMEOUT);
                match self.retirement(left).await {
                    Ok(Some(retirement)) => Err(WriteError::Retired(Box::new(retirement))),
                    Ok(None) | Err(_) => Err(WriteError::Refused(refusal)),
                }
            }
            other => other,
        }
    }

    /// The newest certified head that the member asked knows; others may know a newer one, see [`settled_head`](Self::settled_head).
    ///
    /// # Errors
    /// [`ReadError::Deadline`] when no member gives one in time.
    pub async fn head(&self, deadline: Duration) -> Result<CertifiedCheckpoint, ReadError> {
        let started = Instant::now();
        loop {
            let (organism, epoch) = (self.shared.id, self.shared.epoch());
            let request = wire::encode(&wire::HeadRequest { organism, newer_than: None, epoch, wait_ms: 0 });
            let left = deadline.saturating_sub(started.elapsed());
            let head = self.shared.ask(method::HEAD, request, left, |bytes| self.certify(bytes)).await?;
            // One that taught this client a handover may have left itself.
            if self.shared.epoch() == epoch {
                return Ok(head);
            }
        }
    }

    /// The mailable proof of one entry, verified before it is returned.
    ///
    /// # Errors
    /// [`ReadError`]; an index beyond the certified log runs into the deadline unless a member says so truthfully.
    pub async fn evidence(&self, index: u64, deadline: Duration) -> Result<Evidence, ReadError> {
        let size = self.size_beyond(index, deadline).await?;
        if index >= size {
            return Err(ReadError::NoSuchEntry { index, size });
        }
        let request = wire::encode(&wire::EvidenceRequest { organism: self.shared.id, index });
        let accept = |bytes: &[u8]| {
            let evidence = Evidence::parse(bytes).map_err(|error| error.to_string())?;
            let verified = evidence.verify_with(&self.shared.known().chain).map_err(|error| error.to_string())?;
            self.shared.learn(evidence.handovers())?;
            if verified.entry().index == index { Ok(evidence) } else { Err("proof of another entry".into()) }
        };
        self.shared.ask(method::EVIDENCE, request, deadline, accept).await
    }

    /// The largest certified size that members know, asking no more of them than it takes to find `index`.
    async fn size_beyond(&self, index: u64, deadline: Duration) -> Result<u64, ReadError> {
        let mut largest = self.head(deadline).await?.size();
        let known = self.shared.known();
        // One that has left the committee lags behind.
        for _ in known.in_force..known.members.len() {
            if largest > index {
                break;
            }
            self.shared.demote(self.shared.member().0);
            largest = self.head(deadline).await?.size().max(largest);
        }
        Ok(largest)
    }

    pub(crate) fn certify(&self, bytes: &[u8]) -> Result<CertifiedCheckpoint, String> {
        let answer: wire::HeadAnswer = wire::decode(bytes).map_err(|error| error.to_string())?;
        self.shared.learn(&answer.handovers)?;
        let note = answer.head.ok_or("nothing is certified yet")?;
        let note = SignedCheckpoint::parse(note.as_bytes()).map_err(|error| error.to_string())?;
        self.shared.known().chain.certify(&note).map_err(|error| error.to_string())
    }
}
