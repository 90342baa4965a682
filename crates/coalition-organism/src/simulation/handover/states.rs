//! Starting from states across handovers: readers with the steps of `follower::state`, members with those of `member::resume`.

use coalition_log::{
    Entry, Machine as _,
    follow::FollowError,
    handover::HANDOVER_KIND,
    state::{HostState, StateRecord},
    tree::{consistency_proof, inclusion_proof},
};

use super::{Mutation, Run, Violation, organism};
use crate::{
    execution::{Execution, NewState},
    follower::state::{accept, install},
    simulation::{machine::Keeper, states::peaks},
    wire::StateAnswer,
};

impl Run {
    /// A reader asks for a state under some head; whoever serves it may keep the handovers back.
    pub(super) fn start_from_a_state(&mut self, reader: usize) {
        let Some(newest) = self.heads.len().checked_sub(1) else { return };
        let head = self.heads[self.rng.index(newest + 1)].clone();
        let hides = self.rng.percent(30);
        let next = self.readers[reader].core.next_index();
        let usable = self.states.iter().rev().find(|state| state.covers < head.size() && state.covers >= next);
        let Some(NewState { covers, bytes }) = usable.cloned() else { return };
        let core = &self.readers[reader].core;
        let Ok(head_proof) = consistency_proof(&self.log, core.head_size(), head.size()) else { return };
        let known = usize::try_from(core.chain().epoch()).unwrap();
        let handovers = self.proofs.get(known..self.epoch_at(head.size())).unwrap_or_default();
        let answer = StateAnswer {
            handovers: if hides { Vec::new() } else { handovers.to_vec() },
            head: head.note().to_string(),
            head_proof,
            entry: self.log.range(covers, covers + 1, usize::MAX).pop().unwrap(),
            path: inclusion_proof(&self.log, covers, head.size()).unwrap(),
            peaks: peaks(&self.log, covers),
            proof: consistency_proof(&self.log, covers, head.size()).unwrap(),
        };
        self.take_state(reader, &answer, &bytes);
    }

    fn take_state(&mut self, reader: usize, answer: &StateAnswer, bytes: &[u8]) {
        let unchecked = self.mutation == Some(Mutation::StateHandoversUnchecked);
        let r = &mut self.readers[reader];
        let start = match accept(&mut r.core, answer) {
            Ok(start) => start,
            Err(error) => {
                let what = if matches!(error, FollowError::Unconfirmed { .. }) {
                    "state under an unconfirmed head refused"
                } else {
                    "state refused"
                };
                self.tally.count(what);
                return;
            }
        };
        let record = *start.record();
        let claimed = unchecked.then(|| handovers_in(bytes, record.covers));
        let proven = claimed.as_deref().unwrap_or(start.handovers());
        let machine = |machine: &[u8]| Keeper::new(false).restore(machine);
        if install(organism(), &record, proven, bytes, machine).is_err() {
            self.tally.count("state with unproven handovers refused");
            return;
        }
        r.core.start_from(start);
        (r.first, r.wants_state) = (record.covers, false);
        r.shown.clear();
        self.tally.count("reader started from a state");
    }

    /// A restart takes some state instead of folding what it covers.
    pub(super) fn restore_a_state(&mut self, execution: &mut Execution) -> Result<(), Violation> {
        let NewState { covers, bytes } = self.states[self.rng.index(self.states.len())].clone();
        let entry = self.log.range(covers, covers + 1, usize::MAX).pop().unwrap();
        let (mut certifies, mut bytes) = (Entry::decode(&entry).unwrap(), bytes);
        if self.mutation == Some(Mutation::RestoreForgetsHandovers) {
            let mut state = HostState::from_bytes(&bytes, organism(), covers).unwrap();
            state.host_entries.retain(|bytes| Entry::decode(bytes).unwrap().kind != HANDOVER_KIND);
            bytes = state.to_bytes().unwrap();
            certifies.body = StateRecord::new(covers, &bytes).to_bytes();
        }
        self.tally.count("restarted from a state");
        execution.resume(&certifies, &bytes).map_err(|error| format!("the state of {covers} entries fails: {error}"))
    }
}

/// Leaf hashes of the handovers a state speaks of.
fn handovers_in(bytes: &[u8], covers: u64) -> Vec<coalition_log::tree::Hash> {
    let state = HostState::from_bytes(bytes, organism(), covers).unwrap();
    let is_handover = |bytes: &&Vec<u8>| Entry::decode(bytes).unwrap().kind == HANDOVER_KIND;
    state.host_entries.iter().filter(is_handover).map(|bytes| coalition_log::entry::leaf_hash(bytes)).collect()
}
