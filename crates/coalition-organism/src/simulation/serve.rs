//! What a correct member answers to clients, as `member::service`.

use std::rc::Rc;

use coalition_log::{
    Entry,
    checkpoint::SignedCheckpoint,
    entry::WriteId,
    evidence::Evidence,
    tree::{consistency_proof, inclusion_proof},
};

use super::{
    disk::Log,
    member::{Hosted, Process},
    plan::{Ms, Mutation},
    world::{Event, Packet, Reply, Request, World},
};
use crate::{
    execution::{Outcome, pointers},
    wire::{self, FollowAnswer, FollowRequest, Ordered, WriteAnswer},
};

/// A call that a member holds until it can be answered or is due.
pub(super) struct Call {
    from: usize,
    id: u64,
    until: Ms,
    pub(super) waiting: Waiting,
}

pub(super) enum Waiting {
    Write { organism: usize, id: WriteId, outcome: Option<Outcome> },
    Follow { organism: usize, request: Rc<FollowRequest> },
    Settled { organism: usize, signed: u64 },
}

impl World {
    /// Takes a call.
    pub(super) fn called(
        &mut self,
        member: usize,
        p: &mut Process,
        (from, id, wait): (usize, u64, Ms),
        request: Request,
    ) {
        let waiting = match request {
            Request::Write(organism, write) => {
                let bound = write.bound_id();
                let outcome = p.organisms[organism].execution.known_write(bound);
                let known = outcome.is_some();
                self.tally.add("write known already", u64::from(known));
                let (write_id, payload) = (write.write_id, write.payload);
                if !known {
                    let organism = self.committee.organisms[organism];
                    let ordered = Ordered { organism, write_id, attempt: self.rng.next(), payload };
                    self.submit(member, wire::encode(&ordered));
                }
                Waiting::Write { organism, id: bound, outcome }
            }
            Request::Follow(organism, request) => Waiting::Follow { organism, request },
            Request::Settled(organism) => {
                let signed = self.members[member].disks[organism].guard.size;
                Waiting::Settled { organism, signed: if self.plan.has(Mutation::SettledAtOnce) { 0 } else { signed } }
            }
            Request::Evidence(organism, request) => {
                let evidence = evidence(&p.organisms[organism], request.index);
                let reply = evidence.map_or(Reply::Fault("no_such_entry"), Reply::Evidence);
                self.send(member, from, &Packet::Reply(id, reply));
                return;
            }
            Request::State(organism, request) => {
                let reply = self.state_of(member, p, organism, &request);
                self.send(member, from, &Packet::Reply(id, reply));
                return;
            }
            Request::StatePart(organism, request) => {
                let reply = self.part_of(member, organism, &request);
                self.send(member, from, &Packet::Reply(id, reply));
                return;
            }
        };
        p.parked.push(Call { from, id, until: self.now + wait, waiting });
        let life = self.members[member].life;
        self.after(wait + 1, Event::Due(member, life));
    }

    /// Answers every held call that can be answered or is due.
    pub(super) fn answer_calls(&mut self, member: usize, p: &mut Process) {
        for call in std::mem::take(&mut p.parked) {
            match self.answer(p, &call) {
                Some(reply) => self.send(member, call.from, &Packet::Reply(call.id, reply)),
                None => p.parked.push(call),
            }
        }
    }

    fn answer(&self, p: &Process, call: &Call) -> Option<Reply> {
        let is_due = self.now > call.until;
        match &call.waiting {
            Waiting::Write { organism, outcome, .. } => {
                let hosted = &p.organisms[*organism];
                let answer = match outcome {
                    Some(Outcome::Refused(refusal)) => Some(WriteAnswer::Refused(refusal.clone())),
                    Some(Outcome::Written { first, count }) => self.committed(hosted, *organism, *first, *count),
                    None => None,
                };
                answer.or(is_due.then_some(WriteAnswer::Pending)).map(Reply::Write)
            }
            Waiting::Follow { organism, request } => {
                let hosted = &p.organisms[*organism];
                let size = hosted.published();
                let is_ready = size.is_some_and(|size| size > request.next || size > request.head_size);
                match &hosted.head {
                    Some(head) if is_ready || is_due => Some(follow(hosted, head, request, self.plan.range_bytes)),
                    None if is_due => Some(Reply::Fault("nothing_certified")),
                    _ => None,
                }
            }
            Waiting::Settled { organism, signed } => {
                let head = p.organisms[*organism].head.as_ref().filter(|head| head.checkpoint.size >= *signed);
                let settled = head.map(|head| Reply::Settled(head.to_string()));
                settled.or(is_due.then_some(Reply::Fault("unsettled")))
            }
        }
    }

    fn committed(&self, hosted: &Hosted, organism: usize, first: u64, count: u64) -> Option<WriteAnswer> {
        let end = first + count;
        let is_certified = hosted.published().is_some_and(|size| size >= end);
        if !is_certified && !self.plan.has(Mutation::AckBeforeCertified) {
            return None;
        }
        let bytes = hosted.log.range(first, end, usize::MAX);
        let entries: Vec<Entry> = bytes.iter().map(|bytes| Entry::decode(bytes).unwrap()).collect();
        let entries = pointers(self.committee.organisms[organism], entries.iter()).unwrap();
        (entries.len() as u64 == count).then_some(WriteAnswer::Committed { entries })
    }
}

/// As `answer_follow`.
fn follow(hosted: &Hosted, head: &SignedCheckpoint, request: &FollowRequest, bytes: usize) -> Reply {
    match range(&hosted.log, head, request, bytes) {
        Some(answer) => Reply::Follow(wire::encode(&answer)),
        None => Reply::Fault("behind"),
    }
}

/// The answer to a reader under `head`; `None` when the head is behind it, or the log behind the head.
pub(super) fn range(log: &Log, head: &SignedCheckpoint, request: &FollowRequest, bytes: usize) -> Option<FollowAnswer> {
    let size = head.checkpoint.size;
    if request.head_size > size || request.next > size || log.size() < size {
        return None;
    }
    let entries = log.range(request.next, size, bytes);
    let end = request.next + entries.len() as u64;
    Some(FollowAnswer {
        handovers: Vec::new(),
        head: head.to_string(),
        head_proof: consistency_proof(log, request.head_size, size).ok()?,
        range_proof: consistency_proof(log, end, size).ok()?,
        entries,
    })
}

fn evidence(hosted: &Hosted, index: u64) -> Option<Vec<u8>> {
    let head = hosted.head.as_ref().filter(|head| head.checkpoint.size > index)?;
    let certificate = hosted.certifier.certified_within(head.checkpoint.size).filter(|known| known.note() == head)?;
    let entry = hosted.log.range(index, index + 1, usize::MAX).pop()?;
    let path = inclusion_proof(&hosted.log, index, head.checkpoint.size).ok()?;
    Some(Evidence::new(entry, path, certificate).ok()?.to_string().into_bytes())
}
