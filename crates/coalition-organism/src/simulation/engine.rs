//! When the oracle orders, and the invariants that are checked after every event.

use coalition::EvidencePointer;
use coalition::{AlmanacTick, OrganismRef, RetirementInstant, RetirementMarker, UniqueId};
use coalition_log::{
    entry::{WriteId, leaf_hash},
    retirement::ApprovedRetirement,
    tree::Hash,
};

use super::{
    check::invariant,
    machine::look,
    member::Process,
    world::{Event, World},
};
use crate::wire::Payload;

impl World {
    /// Orders what connected members have taken, if a quorum is connected; when all is calm, only if there is something.
    pub(super) fn order_batch(&mut self) {
        let pause = self.rng.range(self.plan.batch_ms / 2, self.plan.batch_ms * 2);
        self.after(pause, Event::Batch);
        let connected = self.connected();
        if connected.is_empty() {
            self.tally.count("no quorum to order");
            return;
        }
        let mut commands = Vec::new();
        let mut rest = Vec::new();
        for (taken_by, command) in std::mem::take(&mut self.pending) {
            let hears = connected.contains(&taken_by) && (self.calm_since.is_some() || self.rng.percent(80));
            if hears && commands.len() < 8 {
                commands.push(command);
            } else {
                rest.push((taken_by, command));
            }
        }
        self.pending = rest;
        self.rng.shuffle(&mut commands);
        let is_calm = self.calm_since.is_some();
        let is_awaited = self.oracle.wake_at_ms().is_some_and(|at| at <= self.now) || self.rng.percent(20);
        if commands.is_empty() && (is_calm || !is_awaited) {
            return;
        }
        // The proposer's clock, within the drift the engine allows.
        let time_ms = self.now + self.rng.range(0, 500);
        if let Err(violation) = self.oracle.order(time_ms, commands) {
            self.violation.get_or_insert(violation);
        }
    }

    /// A retirement, now and then one that too few approve.
    pub(super) fn make_retirement(&mut self, organism: usize) -> Payload {
        let size = self.oracle.truths[organism].log.size();
        let at = match self.rng.range(0, 3) {
            0 => RetirementInstant::AtSequence(size + self.rng.range(0, 12)),
            1 => RetirementInstant::AtTimestamp(self.now + self.rng.range(0, 2_000)),
            _ if self.plan.organisms == 2 => RetirementInstant::AtTick(AlmanacTick(self.rng.range(1, 12))),
            _ => RetirementInstant::AtSequence(size + 3),
        };
        let successor = OrganismRef::by_stable_id("sim", UniqueId::from_bytes([3; 32]));
        let marker = RetirementMarker::rotation(at, successor);
        let approving = self.plan.quorum() - usize::from(self.rng.percent(20));
        let id = self.committee.organisms[organism];
        let approve = |member: usize| {
            ApprovedRetirement::approve(&self.committee.keys[member], u8::try_from(member).unwrap(), id, &marker)
        };
        Payload::Retire(ApprovedRetirement::new(&marker, (0..approving).map(approve).collect()).to_bytes())
    }

    /// Every invariant, after every event.
    pub(super) fn check(&mut self) {
        for member in 0..self.plan.members {
            if self.is_correct(member) {
                self.check_disk(member);
                if let Some(process) = self.members[member].process.take() {
                    self.check_process(member, &process);
                    self.members[member].process = Some(process);
                }
            }
        }
        for reader in 0..self.plan.readers {
            self.check_reader(reader);
        }
    }

    fn check_disk(&mut self, member: usize) {
        for organism in 0..self.plan.organisms {
            let (disk, truth) = (&self.members[member].disks[organism], &self.oracle.truths[organism]);
            let (size, known) = (disk.size(), self.records[member][organism].durable);
            if size == known {
                continue;
            }
            if size < known {
                return self.fail(invariant::DURABLE, format!("member {member} had {known} entries, now {size}"));
            }
            let entries = disk.records.iter().flat_map(|record| &record.entries);
            let differs = (0..).zip(entries).find(|(index, entry)| truth.log.leaf(*index) != Some(leaf_hash(entry)));
            if let Some((index, _)) = differs {
                return self.fail(invariant::ONE_HISTORY, format!("member {member} has another entry {index}"));
            }
            self.records[member][organism].durable = size;
        }
    }

    fn check_process(&mut self, member: usize, process: &Process) {
        for (organism, hosted) in process.organisms.iter().enumerate() {
            let truth = &self.oracle.truths[organism];
            let size = hosted.log.size();
            if !hosted.is_ahead && hosted.checked.get() != Some(size) {
                let digest = look(&hosted.book, |book| book.digest());
                if truth.digests.get(usize::try_from(size).unwrap()) != Some(&digest) {
                    return self.fail(invariant::FOLD, format!("member {member} at {size} entries has another state"));
                }
                if hosted.execution.next_index() != size {
                    return self.fail(invariant::FOLD, format!("member {member} would write past {size}"));
                }
                let known = truth.writes.iter().filter(|(_, (first, _, _))| *first < size);
                for (id, (first, count, _)) in known {
                    let expected = crate::execution::Outcome::Written { first: *first, count: *count };
                    if hosted.execution.known_write(*id) != Some(expected) {
                        return self.fail(invariant::IDEMPOTENT, format!("member {member} does not know {id:?}"));
                    }
                }
                hosted.checked.set(Some(size));
            }
            if let Some(head) = &hosted.head {
                let (size, root) = (head.checkpoint.size, head.checkpoint.root);
                if hosted.log.root_at(size) != Some(root) {
                    let detail = format!("member {member} publishes {size}, its log has {}", hosted.log.size());
                    return self.fail(invariant::PROVABLE, detail);
                }
                if truth.certified < Some(size) || truth.log.root_at(size) != Some(root) {
                    let detail = format!("member {member} publishes {size}, certified are {:?}", truth.certified);
                    return self.fail(invariant::QUORUM, detail);
                }
            }
        }
        if let Some((_, liar)) = process.met.contradicted.difference(&process.met.proven).next() {
            self.fail(invariant::NAMED, format!("member {member} met two heads of {liar} and has no proof"));
        }
    }

    fn check_reader(&mut self, reader: usize) {
        let r = &self.readers[reader];
        let (shown, truth) = (r.size(), &self.oracle.truths[r.organism]);
        if shown == r.checked {
            return;
        }
        if shown < r.checked {
            return self.fail(invariant::READER, format!("reader {reader} went back from {} to {shown}", r.checked));
        }
        if truth.certified.unwrap_or(0) < shown || !self.shows_the_log(r) {
            return self.fail(invariant::READER, format!("reader {reader} shows {shown} entries nobody certified"));
        }
        if truth.digests[super::disk::at(shown)] != r.book.digest() {
            return self.fail(invariant::FOLD, format!("reader {reader} at {shown} entries has another state"));
        }
        self.readers[reader].checked = shown;
    }

    /// A writer was told that its write is in the log, by a correct member, or by a liar with a proof of each entry.
    pub(super) fn acknowledged(&mut self, by: usize, organism: usize, id: WriteId, pointers: &[EvidencePointer]) {
        if pointers.is_empty() {
            // Like a refusal: nothing was written, so nothing is remembered, and a later retry is decided anew.
            self.tally.count("write changed nothing");
            return;
        }
        let truth = &self.oracle.truths[organism];
        for pointer in pointers {
            if truth.log.leaf(pointer.index) != Some(Hash(*pointer.digest.as_bytes())) {
                return self.fail(invariant::ACKED, format!("{pointer} was acknowledged, and is another entry"));
            }
            if truth.certified.unwrap_or(0) <= pointer.index {
                return self.fail(invariant::ACKED_CERTIFIED, format!("{pointer} was acknowledged uncertified"));
            }
            let is_durable = |member: &usize| self.members[*member].disks[organism].size() > pointer.index;
            let correct = (0..self.plan.members).filter(|member| self.plan.is_honest(*member));
            let (have, lost) = (correct.filter(is_durable).count(), self.members.iter().filter(|m| m.lost).count());
            if have + lost < self.plan.quorum() - self.plan.liars.len() {
                return self.fail(invariant::ACKED, format!("{pointer} was acknowledged, {have} members have it"));
            }
        }
        let written = truth.writes.get(&id).map(|(first, count, _)| (*first, *count));
        if !self.plan.is_honest(by) {
            // Proofs of entries do not show that they are all: a liar may name fewer.
            let is_part = written.is_some_and(|(first, count)| {
                pointers.iter().all(|pointer| (first..first + count).contains(&pointer.index))
            });
            if !is_part {
                self.fail(invariant::IDEMPOTENT, format!("{id:?} wrote {written:?}, proven are {pointers:?}"));
            }
            return;
        }
        let first_and_count = pointers.first().map(|first| (first.index, pointers.len() as u64));
        if written != first_and_count {
            let detail = format!("{id:?} wrote {written:?}, acknowledged as {first_and_count:?}");
            return self.fail(invariant::IDEMPOTENT, detail);
        }
        if !self.answers.note(organism, id, pointers) {
            self.fail(invariant::IDEMPOTENT, format!("{id:?} was answered twice, differently"));
        }
    }

    /// Once more over everything that was ever acknowledged.
    pub(super) fn check_end(&mut self) {
        let mut lost = None;
        for (organism, id, pointers) in self.answers.iter() {
            for member in (0..self.plan.members).filter(|member| self.is_correct(*member)) {
                let disk = &self.members[member].disks[organism];
                let has = |pointer: &EvidencePointer| {
                    let mut entries = disk.records.iter().flat_map(|record| &record.entries);
                    let index = usize::try_from(pointer.index).unwrap();
                    entries.nth(index).is_some_and(|entry| leaf_hash(entry).0 == *pointer.digest.as_bytes())
                };
                if !pointers.iter().all(has) {
                    lost = Some(format!("member {member} does not have {id:?} at the end"));
                }
            }
        }
        if let Some(detail) = lost {
            self.fail(invariant::ACKED, detail);
        }
        let ended = self.oracle.truths.iter().filter(|truth| truth.ended).count();
        self.tally.add("log retired", ended as u64);
    }
}
