//! The oracle in place of the ordering engine: one sequence of batches for everybody, and what executing it must give.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use coalition::UniqueId;
use coalition_log::{
    Context, Entry,
    entry::{WriteId, is_host_kind},
    retirement::RETIRED_KIND,
    tree::Hash,
};
use coalition_order::Batch;

use super::{
    check::{Violation, invariant},
    committee::Committee,
    disk::{Log, at},
    machine::{Book, Keeper, SKIPPED_KIND, tick_of},
    plan::{Mutation, Plan},
};
use crate::{
    execution::{Command, Executed, Execution, Outcome},
    folded::Clock,
    wire::{self, Ordered},
};

/// What is true of one organism's log: executed once, without faults, and folded once more beside it.
pub(super) struct Truth {
    execution: Execution,
    pub(super) log: Log,
    /// Digest of the fold, by size.
    pub(super) digests: Vec<UniqueId>,
    fold: Book,
    pub(super) outcomes: BTreeMap<u64, Vec<(WriteId, Outcome)>>,
    /// Entries by write: first, count, height.
    pub(super) writes: BTreeMap<WriteId, (u64, u64, u64)>,
    pub(super) ended: bool,
    /// Who signed which head, liars included.
    pub(super) signed: BTreeMap<(u64, Hash), BTreeSet<usize>>,
    /// The largest size a quorum signed.
    pub(super) certified: Option<u64>,
}

impl Truth {
    fn new(committee: &Committee, organism: usize, is_clock: bool, state_every: u64) -> Self {
        let execution = Execution::new(Box::new(Keeper::new(is_clock)), committee.epochs(organism));
        Self {
            execution: execution.with_clock(is_clock.then_some(tick_of)).with_state_every(state_every),
            log: Log::default(),
            digests: vec![Book::default().digest()],
            fold: Book::default(),
            outcomes: BTreeMap::new(),
            writes: BTreeMap::new(),
            ended: false,
            signed: BTreeMap::new(),
            certified: None,
        }
    }

    /// A planted bug: executes on as if it had not ended.
    fn forget_the_end(&mut self, committee: &Committee, organism: usize, is_clock: bool, state_every: u64) {
        let fresh = Self::new(committee, organism, is_clock, state_every).execution;
        self.execution = fresh;
        for bytes in &self.log.entries {
            let mut entry = Entry::decode(bytes).expect("it was encoded here");
            if entry.kind == RETIRED_KIND {
                entry.kind = SKIPPED_KIND.into();
            }
            self.execution.restore(&entry);
        }
    }

    fn push(&mut self, height: u64, entry: &Entry) -> Result<(), Violation> {
        if self.ended {
            let detail = format!("entry {} of kind {} follows the last one", entry.index, entry.kind);
            return Err(Violation { invariant: invariant::ENDED, detail });
        }
        self.ended = entry.kind == RETIRED_KIND;
        if !is_host_kind(&entry.kind) {
            self.fold.fold(entry);
        }
        self.digests.push(self.fold.digest());
        self.log.push(entry.encode().unwrap().into());
        if entry.write_id == WriteId::NONE {
            return Ok(());
        }
        let write = self.writes.entry(entry.write_id).or_insert((entry.index, 0, height));
        if write.0 + write.1 != entry.index || write.2 != height {
            let detail = format!("write {:?} of entry {} wrote before: {write:?}", entry.write_id, entry.index);
            return Err(Violation { invariant: invariant::IDEMPOTENT, detail });
        }
        write.1 += 1;
        Ok(())
    }

    /// Notes a signature that exists now.
    pub(super) fn sign(&mut self, quorum: usize, member: usize, size: u64, root: Hash) {
        let signers = self.signed.entry((size, root)).or_default();
        signers.insert(member);
        if signers.len() >= quorum {
            self.certified = self.certified.max(Some(size));
        }
    }
}

pub(super) struct Oracle {
    committee: &'static Committee,
    pub(super) truths: Vec<Truth>,
    pub(super) batches: Vec<Arc<Batch>>,
    clock: Clock,
    pub(super) time_ms: u64,
    state_every: u64,
    /// A planted bug.
    ignores_the_end: bool,
}

/// The commands of a batch, as a member reads them.
pub(super) fn decode(batch: &Batch) -> Vec<Ordered> {
    batch.commands.iter().filter_map(|bytes| wire::decode(bytes).ok()).collect()
}

impl Oracle {
    pub(super) fn new(committee: &'static Committee, plan: &Plan) -> Self {
        let (organisms, state_every) = (plan.organisms, plan.state_every);
        let truths =
            (0..organisms).map(|organism| Truth::new(committee, organism, is_clock(organism, organisms), state_every));
        Self {
            committee,
            truths: truths.collect(),
            batches: Vec::new(),
            clock: Clock::default(),
            time_ms: 1,
            state_every,
            ignores_the_end: plan.has(Mutation::EndIgnored),
        }
    }

    /// When somebody needs a batch without commands.
    pub(super) fn wake_at_ms(&self) -> Option<u64> {
        let cx = Context { height: self.batches.len() as u64, time_ms: self.time_ms, tick: 0 };
        self.truths.iter().filter_map(|truth| truth.execution.wake_at_ms(&cx)).min()
    }

    pub(super) fn batch(&self, height: u64) -> Option<&Arc<Batch>> {
        self.batches.get(at(height.checked_sub(1)?))
    }

    /// Orders a batch and executes it.
    pub(super) fn order(&mut self, time_ms: u64, commands: Vec<Vec<u8>>) -> Result<(), Violation> {
        self.time_ms = time_ms.max(self.time_ms + 1);
        let batch = Arc::new(Batch { height: self.batches.len() as u64 + 1, time_ms: self.time_ms, commands });
        let ordered = decode(&batch);
        let organisms = self.truths.len();
        for (organism, truth) in self.truths.iter_mut().enumerate() {
            let tick = self.clock.at(batch.time_ms);
            let cx = Context { height: batch.height, time_ms: batch.time_ms, tick: tick.unwrap_or(0) };
            let done = execute(&mut truth.execution, &cx, tick, &ordered, self.committee.organisms[organism]);
            for entry in &done.entries {
                truth.push(batch.height, entry)?;
                if let Some(tick) = tick_of(entry).filter(|_| is_clock(organism, organisms)) {
                    self.clock.note(batch.time_ms, tick);
                }
            }
            truth.outcomes.insert(batch.height, done.outcomes);
            if self.ignores_the_end && truth.ended {
                truth.forget_the_end(self.committee, organism, is_clock(organism, organisms), self.state_every);
            }
        }
        self.batches.push(batch);
        Ok(())
    }
}

/// With two organisms the first is the coalition's clock.
pub(super) const fn is_clock(organism: usize, organisms: usize) -> bool {
    organisms == 2 && organism == 0
}

/// Executes a batch's commands for one organism with the real code.
pub(super) fn execute(
    execution: &mut Execution,
    cx: &Context,
    tick: Option<u64>,
    ordered: &[Ordered],
    organism: UniqueId,
) -> Executed {
    let commands = ordered.iter().filter(|command| command.organism == organism);
    let commands = commands.map(|c| Command { write_id: c.bound_id(), payload: &c.payload });
    execution.execute(cx, tick, commands).expect("the simulated machine keeps its contract")
}
