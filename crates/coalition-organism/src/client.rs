//! A client's view of one organism: write to it, read proofs from it. Trusts no member.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use coalition::{EvidencePointer, Roster, RosterMember, UniqueId};
use coalition_log::{
    checkpoint::{CertifiedCheckpoint, RosterError, RosterVerifier, SignedCheckpoint},
    entry::WriteId,
    evidence::Evidence,
    retirement::{ApprovedRetirement, RETIRED_CODE, RETIRED_KIND, Retirement},
};
use coalition_universe::{CallError, Node, PeerId};
use tokio::time::Instant;

use crate::{
    error::{ReadError, WriteError},
    outbox::Outbox,
    pruned::Pruned,
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
    pub(crate) roster: Roster,
    pub(crate) verifier: RosterVerifier,
    members: Vec<PeerId>,
    preferred: AtomicUsize,
}

impl Shared {
    /// The member asked first, and where to go on after it failed.
    pub(crate) fn member(&self) -> (usize, PeerId) {
        let position = self.preferred.load(Ordering::Relaxed) % self.members.len();
        (position, self.members[position])
    }

    /// Moves on from a member that failed; a no-op when somebody else already did.
    pub(crate) fn demote(&self, position: usize) {
        let next = (position + 1) % self.members.len();
        let _ = self.preferred.compare_exchange(position, next, Ordering::Relaxed, Ordering::Relaxed);
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
            let everybody_pruned = pruned.len() == self.members.len();
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
                        let said = Pruned::from_fault(fault, self.name(position));
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

    /// One call to the member at a position.
    pub(crate) async fn call(
        &self,
        position: usize,
        method: &str,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, CallError> {
        self.node.call(self.members[position], method, body, timeout).await
    }

    /// How many members there are.
    pub(crate) const fn members(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn name(&self, position: usize) -> &str {
        self.roster.members().get(position).map_or("?", |member| member.name.as_str())
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
    /// A handle on organism `id` with the roster its config pins. The members' addresses must have been introduced to
    /// the node; nothing is contacted yet. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`RosterError`] when a key of the roster is unusable.
    pub fn connect(node: Arc<Node>, id: UniqueId, roster: Roster) -> Result<Self, RosterError> {
        let verifier = RosterVerifier::new(id, &roster)?;
        let peer = |member: &RosterMember| {
            let unusable = |_| RosterError::PeerId { member: member.name.clone(), key: member.peer_id };
            PeerId::from_bytes(member.peer_id).map_err(unusable)
        };
        let members = roster.members().iter().map(peer).collect::<Result<_, _>>()?;
        // Start at a random member, so that clients spread over the committee.
        let preferred = AtomicUsize::new(rand::random_range(0..roster.members().len()));
        let shared = Arc::new(Shared { node, id, roster, verifier, members, preferred });
        let outbox = Outbox::start(Arc::clone(&shared));
        Ok(Self { shared, outbox })
    }

    /// The organism's id.
    #[must_use]
    pub fn id(&self) -> UniqueId {
        self.shared.id
    }

    /// The roster that certifies its log.
    #[must_use]
    pub fn roster(&self) -> &Roster {
        &self.shared.roster
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

    async fn write_payload(
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

    /// The retirement in effect, by the log's certified last entry; `None` while the organism works.
    ///
    /// # Errors
    /// [`ReadError`] when no member gives a head and its last entry in time.
    pub async fn retirement(&self, deadline: Duration) -> Result<Option<Retirement>, ReadError> {
        let started = Instant::now();
        let Some(last) = self.head(deadline).await?.size().checked_sub(1) else { return Ok(None) };
        let evidence = self.evidence(last, deadline.saturating_sub(started.elapsed())).await?;
        let entry = evidence.claimed_entry();
        Ok(Retirement::of(entry).filter(|_| entry.kind == RETIRED_KIND))
    }

    /// The newest certified head.
    ///
    /// # Errors
    /// [`ReadError::Deadline`] when no member gives one in time.
    pub async fn head(&self, deadline: Duration) -> Result<CertifiedCheckpoint, ReadError> {
        let request = wire::encode(&wire::HeadRequest { organism: self.shared.id, newer_than: None, wait_ms: 0 });
        self.shared.ask(method::HEAD, request, deadline, |bytes| self.certify(bytes)).await
    }

    /// The mailable proof of one entry, verified before it is returned.
    ///
    /// # Errors
    /// [`ReadError`]; an index beyond the certified log runs into the deadline unless a member says so truthfully.
    pub async fn evidence(&self, index: u64, deadline: Duration) -> Result<Evidence, ReadError> {
        let size = self.head(deadline).await?.size();
        if index >= size {
            return Err(ReadError::NoSuchEntry { index, size });
        }
        let request = wire::encode(&wire::EvidenceRequest { organism: self.shared.id, index });
        let accept = |bytes: &[u8]| {
            let evidence = Evidence::parse(bytes).map_err(|error| error.to_string())?;
            let verified = evidence.verify_with(&self.shared.verifier).map_err(|error| error.to_string())?;
            if verified.entry().index == index { Ok(evidence) } else { Err("proof of another entry".into()) }
        };
        self.shared.ask(method::EVIDENCE, request, deadline, accept).await
    }

    fn certify(&self, bytes: &[u8]) -> Result<CertifiedCheckpoint, String> {
        let note: Option<String> = wire::decode(bytes).map_err(|error| error.to_string())?;
        let note = note.ok_or("nothing is certified yet")?;
        let note = SignedCheckpoint::parse(note.as_bytes()).map_err(|error| error.to_string())?;
        self.shared.verifier.certify(&note).map_err(|error| error.to_string())
    }
}

/// One call to one member, with the member's position for [`Shared::demote`].
pub(crate) async fn call_member(
    shared: &Shared,
    method: &str,
    body: Vec<u8>,
    timeout: Duration,
) -> (usize, Result<Vec<u8>, CallError>) {
    let (position, peer) = shared.member();
    (position, shared.node.call(peer, method, body, timeout).await)
}
