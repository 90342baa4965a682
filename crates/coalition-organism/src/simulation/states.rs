//! Certified states in the simulation: on a member's disk, at its start, served to readers, lied about, and taken by readers.
//!
//! Real are what writes a state, what a member and a reader check before they take one, and both folds. The steps are those of
//! `member::resume`, `member::service` and `follower::state`.

use std::rc::Rc;

use coalition_log::{
    Entry, Machine as _,
    follow::{FollowError, Follower, StateStart},
    state::{HostState, StateRecord},
    tree::{Hash, Nodes as _, consistency_proof, inclusion_proof},
};

use super::{
    check::invariant,
    clients::Reader,
    disk::{Disk, Log, at},
    machine::{Book, Keeper},
    member::Process,
    plan::{Mutation, Plan},
    world::{Event, Reply, Request, World},
};
use crate::{
    execution::Execution,
    follower::state::{accept, install},
    wire::{self, StateAnswer, StatePartRequest, StateRequest},
};

/// What a member's start did with the states on its disk.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Restored {
    pub(super) restored: bool,
    pub(super) set_aside: u64,
}

/// As `member::resume::restore_newest`: the newest state that this log confirms and whose bytes are those certified.
pub(super) fn restore_newest(
    plan: &Plan,
    disk: &mut Disk,
    log: &Log,
    certified: u64,
    execution: &mut Execution,
    fresh: impl Fn() -> Execution,
) -> Restored {
    let mut done = Restored::default();
    let candidates: Vec<u64> = disk.states.keys().rev().copied().filter(|covers| *covers < certified).collect();
    for covers in candidates {
        let Some(certifies) = log.entries.get(at(covers)).and_then(|bytes| Entry::decode(bytes).ok()) else { break };
        let bytes = disk.states[&covers].clone();
        let (certifies, bytes) = as_mutants_do(plan, log, certifies, &bytes, &fresh);
        if execution.resume(&certifies, &bytes).is_ok() {
            done.restored = true;
            return done;
        }
        disk.states.remove(&covers);
        done.set_aside += 1;
    }
    done
}

/// Planted bugs: the state is another than the one certified, and is believed.
fn as_mutants_do(
    plan: &Plan,
    log: &Log,
    certifies: Entry,
    bytes: &[u8],
    fresh: &impl Fn() -> Execution,
) -> (Entry, Vec<u8>) {
    let organism = |bytes: &[u8]| coalition::UniqueId::from_bytes(bytes[8..40].try_into().unwrap());
    let covers = certifies.index;
    let changed = match plan.mutation {
        Some(Mutation::RestoreForgetsWrites) => {
            HostState::from_bytes(bytes, organism(bytes), covers).ok().map(|state| {
                let state = HostState { writes: Vec::new(), ..state };
                state.to_bytes().unwrap()
            })
        }
        Some(Mutation::StateBeforeLastEntry) => {
            let mut before = fresh();
            let entries = log.entries.iter().take(at(covers - 1));
            entries.for_each(|bytes| before.restore(&Entry::decode(bytes).unwrap()));
            let early = before.state().unwrap();
            let state = HostState::from_bytes(&early, organism(&early), covers - 1).unwrap();
            HostState { covers, ..state }.to_bytes()
        }
        Some(Mutation::StateUnverified) => Some(bytes.to_vec()),
        _ => None,
    };
    match changed {
        Some(changed) => {
            let record = StateRecord::new(covers, &changed);
            (Entry { body: record.to_bytes(), ..certifies }, changed)
        }
        None => (certifies, bytes.to_vec()),
    }
}

/// The tree of the first `size` entries.
pub(super) fn peaks(log: &Log, size: u64) -> Vec<Hash> {
    let levels = (0..u64::BITS).rev().filter(|level| size >> level & 1 == 1);
    levels.map(|level| log.node(level, (size >> level) - 1).unwrap()).collect()
}

/// What a reader that starts from a state has so far.
pub(super) struct Taking {
    start: StateStart,
    bytes: Vec<u8>,
}

impl World {
    /// As `Call::state` of the member's service.
    pub(super) fn state_of(&self, member: usize, p: &Process, organism: usize, request: &StateRequest) -> Reply {
        let hosted = &p.organisms[organism];
        let Some(head) = &hosted.head else { return Reply::Fault("nothing_certified") };
        let size = head.checkpoint.size;
        if request.head_size > size || hosted.log.size() < size {
            return Reply::Fault("behind");
        }
        let states = self.members[member].disks[organism].states.keys().rev();
        let Some(&covers) = states.into_iter().find(|covers| **covers < size && **covers >= request.next) else {
            return Reply::Fault("no_state");
        };
        let log = &hosted.log;
        Reply::State(wire::encode(&StateAnswer {
            handovers: Vec::new(),
            head: head.to_string(),
            head_proof: consistency_proof(log, request.head_size, size).unwrap(),
            entry: log.entries[at(covers)].to_vec(),
            path: inclusion_proof(log, covers, size).unwrap(),
            peaks: peaks(log, covers),
            proof: consistency_proof(log, covers, size).unwrap(),
        }))
    }

    /// As `Call::state_part`.
    pub(super) fn part_of(&self, member: usize, organism: usize, request: &StatePartRequest) -> Reply {
        match self.members[member].disks[organism].states.get(&request.covers) {
            Some(bytes) => {
                let rest = bytes.get(at(request.offset)..).unwrap_or_default();
                Reply::StatePart(rest[..rest.len().min(self.plan.range_bytes)].to_vec())
            }
            None => Reply::Fault("no_state"),
        }
    }

    /// A liar's answer to a reader that wants a state, or a part of one.
    pub(super) fn lie_about_state(&mut self, liar: usize, request: &Request) -> Option<Reply> {
        let p = self.members[liar].process.take()?;
        let honest = match request {
            Request::State(organism, request) => self.state_of(liar, &p, *organism, request),
            Request::StatePart(organism, request) => self.part_of(liar, *organism, request),
            _ => Reply::Fault("nothing"),
        };
        self.members[liar].process = Some(p);
        match honest {
            Reply::State(bytes) => {
                let mut answer: StateAnswer = wire::decode(&bytes).ok()?;
                match self.rng.range(0, 4) {
                    0 => {
                        let position = self.rng.index(answer.entry.len());
                        answer.entry[position] ^= 1;
                    }
                    1 => *answer.peaks.first_mut()? = Hash([9; 32]),
                    2 => drop(answer.peaks.pop()?),
                    _ => {
                        self.tally.count("lie: keeps no state");
                        return Some(Reply::Fault("no_state"));
                    }
                }
                self.tally.count("lie: false state offered");
                Some(Reply::State(wire::encode(&answer)))
            }
            Reply::StatePart(mut bytes) => {
                let last = bytes.len().checked_sub(1)?;
                let position = if self.rng.percent(50) { last } else { self.rng.index(bytes.len()) };
                bytes[position] ^= 1;
                self.tally.count("lie: state changed");
                Some(Reply::StatePart(bytes))
            }
            other => Some(other),
        }
    }

    /// A reader's request on its way to a state, if it wants one.
    pub(super) fn state_request(&self, reader: usize) -> Option<Request> {
        let r = &self.readers[reader];
        let organism = self.committee.organisms[r.organism];
        match &r.taking {
            _ if !r.wants_state => None,
            None => {
                let (head_size, next) = (r.core.head_size(), r.core.next_index());
                Some(Request::State(r.organism, Rc::new(StateRequest { organism, head_size, next, epoch: 0 })))
            }
            Some(taking) => {
                let (covers, offset) = (taking.start.record().covers, taking.bytes.len() as u64);
                Some(Request::StatePart(r.organism, Rc::new(StatePartRequest { organism, covers, offset })))
            }
        }
    }

    /// A member's answer to a reader that wants a state. `false` when the reader must ask somebody else.
    pub(super) fn told_of_state(&mut self, reader: usize, reply: &Reply) -> bool {
        let r = &mut self.readers[reader];
        let before = r.core.head_size();
        let went_well = match reply {
            Reply::Fault("no_state") => {
                r.without_state += 1;
                r.wants_state = r.without_state <= self.plan.faults();
                r.taking = None;
                !r.wants_state
            }
            Reply::State(bytes) => {
                match wire::decode::<StateAnswer>(bytes).map(|answer| accept(&mut r.core, &answer)) {
                    Ok(Ok(start)) => {
                        r.taking = Some(Taking { start, bytes: Vec::new() });
                        true
                    }
                    Ok(Err(FollowError::Fork { .. })) => {
                        self.fail(invariant::ONE_ROOT, format!("reader {reader} was shown a certified fork"));
                        return true;
                    }
                    _ => false,
                }
            }
            Reply::StatePart(part) => self.take_part(reader, part),
            _ => false,
        };
        let r = &mut self.readers[reader];
        if let Some(head) = r.core.head().filter(|head| head.size() > before).cloned() {
            let organism = r.organism;
            self.saw_certificate(&format!("reader {reader}"), organism, &head);
        }
        if !went_well {
            self.readers[reader].taking = None;
            self.tally.count("state not taken by a reader");
        }
        went_well
    }

    fn take_part(&mut self, reader: usize, part: &[u8]) -> bool {
        let unverified = self.plan.has(Mutation::ReaderTakesAnyState);
        let r = &mut self.readers[reader];
        let Some(taking) = &mut r.taking else { return false };
        let mut record = *taking.start.record();
        let left = record.length - taking.bytes.len() as u64;
        if part.is_empty() || part.len() as u64 > left {
            return false;
        }
        taking.bytes.extend_from_slice(part);
        if (taking.bytes.len() as u64) < record.length {
            return true;
        }
        if unverified {
            record = StateRecord::new(record.covers, &taking.bytes);
        }
        let mut book = Book::default();
        let start = |machine: &[u8]| {
            let mut keeper = Keeper::new(false);
            keeper.restore(machine)?;
            book = keeper.take();
            Ok(())
        };
        let organism = self.committee.organisms[r.organism];
        if install(organism, &record, taking.start.handovers(), &taking.bytes, start).is_err() {
            return false;
        }
        let Some(Taking { start, .. }) = r.taking.take() else { return false };
        r.core.start_from(start);
        (r.book, r.first, r.wants_state) = (book, record.covers, false);
        r.shown.clear();
        self.tally.count("reader started from a state");
        true
    }

    /// A reader's process ends, and a new one starts from nothing but a certified state.
    pub(super) fn fresh_reader(&mut self, reader: usize) {
        let (committee, r) = (self.committee, &mut self.readers[reader]);
        r.start_over(Follower::new(committee.organisms[r.organism], &committee.roster).unwrap());
        let call = r.call;
        self.tally.count("reader started anew");
        self.after(1, Event::Poll(reader, call));
    }

    /// What a reader shows must be in the committee's log where the reader stands.
    pub(super) fn shows_the_log(&self, r: &Reader) -> bool {
        let first = at(r.first);
        self.oracle.truths[r.organism].log.leaves().get(first..first + r.shown.len()) == Some(&r.shown[..])
    }
}
