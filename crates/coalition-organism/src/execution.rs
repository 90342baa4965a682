//! Executing ordered batches: commands in, entries out. Pure.
//!
//! Every member runs the same batches through an [`Execution`] and so reaches the same entries. The table that makes
//! writes idempotent is a fold of the log like the machine's own state, so a member that restarts answers a retried
//! write exactly as the others do.
//!
//! Every so many entries the whole fold is written down as a state, and an entry certifies it. Which entries those are follows
//! from the log and the batches' boundaries alone, so all members certify the same.

use coalition::{EvidencePointer, UniqueId};
use coalition_log::{
    Context, Draft, Entry, Machine, Refusal, SnapshotError,
    entry::{WriteId, is_host_kind},
    state::{HostState, STATE_EVERY, STATE_KIND, StateError, StateRecord},
};

use crate::{
    beginning::Beginning,
    ending::Ending,
    epochs::Epochs,
    folded::{Clock, TickOf, WriteTable},
    wire::Payload,
};

/// Rounds after one batch; a machine that wants more is broken, and stopping is safer than spinning.
const MAX_ROUNDS: usize = 10_000;

/// Batches of one engine between two states that all logs of the committee have in common, unless an organism's setup says
/// otherwise. Part of the protocol. The first of them is what lets ordered batches be dropped: docs/protocol/log.md, section 7.
pub const COMMON_EVERY: u64 = 8_192;

/// The height before the first of an epoch. Heights only have to grow, and to be the same on all members.
pub(crate) const fn first_height(epoch: u64) -> u64 {
    epoch << EPOCH_BITS
}

/// Bits of a height that count the batches of one epoch's engine.
const EPOCH_BITS: u32 = 40;

/// Whether every log gets a state at the end of the batch of this height.
pub(crate) const fn is_common(height: u64, every: u64) -> bool {
    let of_engine = height & ((1 << EPOCH_BITS) - 1);
    of_engine > 0 && of_engine.is_multiple_of(every)
}

/// One command as it was ordered.
pub(crate) struct Command<'a> {
    pub(crate) write_id: WriteId,
    pub(crate) payload: &'a Payload,
}

/// What became of one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// `count` entries starting at `first`; final as soon as the log is certified past them.
    Written { first: u64, count: u64 },
    /// The machine refused it; nothing was written.
    Refused(Refusal),
}

/// The entries and outcomes of one batch.
#[derive(Debug, Default)]
pub(crate) struct Executed {
    pub(crate) entries: Vec<Entry>,
    pub(crate) outcomes: Vec<(WriteId, Outcome)>,
    /// The state that one of the last two entries certifies, if one does.
    pub(crate) state: Option<NewState>,
}

/// A state, and how many entries it covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewState {
    pub(crate) covers: u64,
    pub(crate) bytes: Vec<u8>,
}

/// The machine broke its contract; the member must stop.
#[derive(Debug, thiserror::Error)]
pub enum ExecutionError {
    /// A round produced an entry that has no encoding.
    #[error("the machine's round produced an entry that cannot be committed")]
    BadDraft(#[source] coalition_log::EntryError),
    /// A round wrote in the host's name.
    #[error("the machine's round produced an entry of kind {0:?}, which is the host's; choose another kind")]
    HostKind(&'static str),
    /// `round` never came to an end.
    #[error("the machine asked for more than {MAX_ROUNDS} rounds after one batch")]
    EndlessRounds,
}

/// One organism's machine with its place in the log.
pub(crate) struct Execution {
    machine: Box<dyn Machine>,
    /// The genesis roster's, for starting anew from a state.
    genesis: Epochs,
    epochs: Epochs,
    beginning: Beginning,
    ending: Ending,
    /// The host's own entries, those of states excepted.
    host_entries: Vec<Entry>,
    clock: Option<(TickOf, Clock)>,
    state_every: u64,
    common_every: u64,
    next_index: u64,
    /// Committee time of the last entry: every batch up to it is in the log, and none after it.
    last_time_ms: Option<u64>,
    writes: WriteTable,
}

impl Execution {
    /// Starts with an empty log.
    pub(crate) fn new(machine: Box<dyn Machine>, epochs: Epochs) -> Self {
        Self {
            machine,
            genesis: epochs.clone(),
            epochs,
            beginning: Beginning::default(),
            ending: Ending::default(),
            host_entries: Vec::new(),
            clock: None,
            state_every: STATE_EVERY,
            common_every: COMMON_EVERY,
            next_index: 0,
            last_time_ms: None,
            writes: WriteTable::default(),
        }
    }

    /// The same for the organism that is the coalition's clock.
    pub(crate) fn with_clock(mut self, tick_of: Option<TickOf>) -> Self {
        self.clock = tick_of.map(|tick_of| (tick_of, Clock::default()));
        self
    }

    /// The same for an organism whose config names a predecessor.
    pub(crate) fn with_predecessor(mut self, predecessor: Option<UniqueId>) -> Self {
        self.beginning = Beginning::after(predecessor);
        self
    }

    /// The same with a state whenever the log's size passes a multiple of `entries`; at least 1.
    pub(crate) fn with_state_every(mut self, entries: u64) -> Self {
        self.state_every = entries.max(1);
        self
    }

    /// The same with a state in every log after each `batches` batches of an epoch; at least 1.
    pub(crate) fn with_common_every(mut self, batches: u64) -> Self {
        self.common_every = batches.max(1);
        self
    }

    /// Takes over a state that `certifies` certifies, in place of whatever was folded before.
    ///
    /// # Errors
    /// [`StateError`]; this execution is unchanged then.
    pub(crate) fn resume(&mut self, certifies: &Entry, bytes: &[u8]) -> Result<(), StateError> {
        let record = StateRecord::of(certifies).ok_or(StateError::NotCertified { index: certifies.index })?;
        record.check(bytes)?;
        let state = HostState::from_bytes(bytes, self.epochs.organism(), record.covers)?;
        let host_entries = state.decode_host_entries()?;
        if self.clock.is_none() && !state.ticks.is_empty() {
            let what = "ticks in the state of an organism that is not the clock".to_owned();
            return Err(SnapshotError::Contradiction(what).into());
        }
        self.machine.restore(&state.machine)?;
        self.epochs = self.genesis.clone();
        self.ending = Ending::default();
        self.host_entries.clear();
        host_entries.into_iter().for_each(|entry| self.fold_host(entry));
        if let Some((_, clock)) = &mut self.clock {
            *clock = Clock::from_list(state.ticks);
        }
        self.writes = WriteTable::from_list(&state.writes);
        self.next_index = record.covers;
        self.last_time_ms = None;
        Ok(())
    }

    /// Committee time of the last entry folded; `None` before the first, and right behind a state.
    pub(crate) const fn last_time_ms(&self) -> Option<u64> {
        self.last_time_ms
    }

    /// Whether the log has all that a batch of this time writes: times grow from batch to batch, and an entry has its batch's.
    pub(crate) fn has_executed(&self, time_ms: u64) -> bool {
        self.last_time_ms.is_some_and(|last| last >= time_ms)
    }

    /// The tick in force for a batch of time `time_ms`, its own included; `None` unless this is the clock and has ticked.
    pub(crate) fn tick_at(&self, time_ms: u64) -> Option<u64> {
        self.clock.as_ref().and_then(|(_, clock)| clock.at(time_ms))
    }

    /// Folds one entry of the log at start; entries come in order, without gaps.
    pub(crate) fn restore(&mut self, entry: &Entry) {
        debug_assert_eq!(entry.index, self.next_index, "the store hands out entries in order");
        self.fold(entry);
    }

    /// The index the next entry gets.
    pub(crate) const fn next_index(&self) -> u64 {
        self.next_index
    }

    /// The epoch after the last entry: how many handovers the log has.
    pub(crate) fn epoch(&self) -> u64 {
        self.epochs.epoch()
    }

    /// Whether the log has its last entry.
    pub(crate) const fn is_over(&self) -> bool {
        self.ending.is_over()
    }

    /// Whether the log waits for its predecessor's head.
    pub(crate) const fn awaits_predecessor(&self) -> bool {
        self.beginning.is_awaited()
    }

    /// Entries between two states.
    pub(crate) const fn state_every(&self) -> u64 {
        self.state_every
    }

    /// Batches between two states that all logs of the committee have in common.
    pub(crate) const fn common_every(&self) -> u64 {
        self.common_every
    }

    /// What became of a write as far as no batch can change it: what an earlier one with this id produced, or that the log has
    /// ended without it.
    pub(crate) fn settled(&self, id: WriteId) -> Option<Outcome> {
        let ended = || self.ending.is_over().then(|| Outcome::Refused(self.ending.refusal()));
        self.known_write(id).or_else(ended)
    }

    /// One of the host's own entries, which are never forgotten; states excepted.
    pub(crate) fn host_entry(&self, index: u64) -> Option<&Entry> {
        self.host_entries.iter().find(|entry| entry.index == index)
    }

    /// What an earlier write with this id produced.
    pub(crate) fn known_write(&self, id: WriteId) -> Option<Outcome> {
        self.writes.get(id).map(|(first, count)| Outcome::Written { first, count })
    }

    /// When the machine next needs a batch without commands.
    pub(crate) fn wake_at_ms(&self, cx: &Context) -> Option<u64> {
        if self.ending.is_over() || self.beginning.is_awaited() {
            return None;
        }
        self.machine.wake_at_ms(cx).into_iter().chain(self.ending.wake_at_ms()).min()
    }

    /// Executes one batch: each command in order, then rounds until the machine has nothing left to do, then a state if one
    /// is due, and last the handover if one was decided.
    ///
    /// # Errors
    /// [`ExecutionError`] when the machine breaks its contract.
    pub(crate) fn execute<'a>(
        &mut self,
        cx: &Context,
        tick: Option<u64>,
        commands: impl Iterator<Item = Command<'a>>,
    ) -> Result<Executed, ExecutionError> {
        let mut done = Executed::default();
        let size_before = self.next_index;
        for command in commands {
            let outcome = self.command(cx, tick, &command, &mut done.entries);
            done.outcomes.extend(outcome.map(|outcome| (command.write_id, outcome)));
        }
        self.rounds(cx, tick, &mut done)?;
        if !self.ending.is_over() && !self.beginning.is_awaited() {
            self.certify_state_if_due(size_before, cx, tick, &mut done);
        }
        self.hand_over(cx, tick, &mut done);
        Ok(done)
    }

    fn rounds(&mut self, cx: &Context, tick: Option<u64>, done: &mut Executed) -> Result<(), ExecutionError> {
        if self.beginning.is_awaited() {
            return Ok(());
        }
        for _ in 0..MAX_ROUNDS {
            self.end_if_due(cx, tick, &mut done.entries);
            if self.ending.is_over() {
                return Ok(());
            }
            let Some(drafts) = self.machine.round(cx) else { return Ok(()) };
            if let Some(draft) = drafts.iter().find(|draft| is_host_kind(draft.kind)) {
                return Err(ExecutionError::HostKind(draft.kind));
            }
            let entries = self.number(cx, tick, WriteId::NONE, drafts).map_err(ExecutionError::BadDraft)?;
            self.fold_all(entries, &mut done.entries);
        }
        Err(ExecutionError::EndlessRounds)
    }

    /// Writes the handover decided in this batch, as its last entry. A log that has ended stays as it is.
    fn hand_over(&mut self, cx: &Context, tick: Option<u64>, done: &mut Executed) {
        let Some((write_id, draft)) = self.epochs.take() else { return };
        if self.ending.is_over() {
            done.outcomes.push((write_id, Outcome::Refused(self.ending.refusal())));
            return;
        }
        let first = self.next_index;
        // Whether the log is handed over must not depend on its own writes; whether the entry answers one may.
        let answers = if self.known_write(write_id).is_none() { write_id } else { WriteId::NONE };
        let entry = Entry { write_id: answers, ..draft.into_entry(first, tick, cx.time_ms) };
        self.fold_all(vec![entry], &mut done.entries);
        done.outcomes.push((write_id, Outcome::Written { first, count: 1 }));
    }

    /// What became of a command; `None` for a handover, which is answered at the end of the batch.
    fn command(
        &mut self,
        cx: &Context,
        tick: Option<u64>,
        command: &Command<'_>,
        out: &mut Vec<Entry>,
    ) -> Option<Outcome> {
        if let Payload::Handover(bytes) = command.payload {
            let refused = self.epochs.decide(command.write_id, bytes).err()?;
            return Some(self.known_write(command.write_id).unwrap_or(Outcome::Refused(refused)));
        }
        if let Some(known) = self.known_write(command.write_id) {
            return Some(known);
        }
        self.end_if_due(cx, tick, out);
        let first = self.next_index;
        let numbered = self.decide(cx, command.payload).and_then(|drafts| {
            self.number(cx, tick, command.write_id, drafts).map_err(|error| {
                Refusal::new("not_committable", format!("the command's result cannot be committed: {error}"))
            })
        });
        Some(match numbered {
            Err(refusal) => Outcome::Refused(refusal),
            // An acknowledgement is the proof of an entry, and here there is none.
            Ok(entries) if entries.is_empty() => {
                Outcome::Refused(Refusal::new("nothing_changed", "the command changes nothing"))
            }
            Ok(entries) => {
                self.fold_all(entries, out);
                Outcome::Written { first, count: self.next_index - first }
            }
        })
    }

    fn decide(&self, cx: &Context, payload: &Payload) -> Result<Vec<Draft>, Refusal> {
        if self.ending.is_over() {
            return Err(self.ending.refusal());
        }
        if self.beginning.is_awaited() && !matches!(payload, Payload::Succeed(_)) {
            return Err(self.beginning.refusal());
        }
        let bytes = match payload {
            Payload::Succeed(predecessor) => return self.beginning.succeed(predecessor),
            Payload::Retire(approved) => return self.ending.announce(approved, self.epochs.verifier()),
            Payload::Handover(_) => return Ok(Vec::new()),
            Payload::Command(bytes) => bytes,
        };
        let drafts = self.machine.decide(cx, bytes)?;
        match drafts.iter().find(|draft| is_host_kind(draft.kind)) {
            None => Ok(drafts),
            Some(draft) => {
                Err(Refusal::new("not_committable", format!("entries of kind {} are the host's", draft.kind)))
            }
        }
    }

    /// Writes the last entry as soon as the announced retirement is due.
    fn end_if_due(&mut self, cx: &Context, tick: Option<u64>, out: &mut Vec<Entry>) {
        if let Some(draft) = self.ending.last_entry(cx, self.next_index) {
            let entry = draft.into_entry(self.next_index, tick, cx.time_ms);
            self.fold_all(vec![entry], out);
        }
    }

    /// Writes down the state and certifies it, when this batch takes the log to the next multiple of the cadence or past it, a
    /// handover that follows counted in, or is one after which every log has a state. A state that has grown too large is left
    /// out, and the log goes on.
    fn certify_state_if_due(&mut self, size_before: u64, cx: &Context, tick: Option<u64>, done: &mut Executed) {
        let covers = self.next_index;
        let ends_at = covers + u64::from(self.epochs.is_handing_over());
        let is_common = is_common(cx.height, self.common_every);
        if size_before / self.state_every == ends_at / self.state_every && !is_common {
            return;
        }
        let Some(bytes) = self.state() else {
            tracing::warn!(organism = %self.epochs.organism(), covers, "the state is too large to be certified");
            return;
        };
        let record = StateRecord::new(covers, &bytes);
        let entry = Draft::new(STATE_KIND, record.to_bytes()).into_entry(covers, tick, cx.time_ms);
        self.fold_all(vec![entry], &mut done.entries);
        done.state = Some(NewState { covers, bytes });
    }

    /// The whole fold as bytes; `None` when it is larger than a state may be.
    pub(crate) fn state(&self) -> Option<Vec<u8>> {
        let encoded = self.host_entries.iter().map(Entry::encode).collect::<Result<_, _>>();
        let state = HostState {
            organism: self.epochs.organism(),
            covers: self.next_index,
            host_entries: encoded.ok()?,
            writes: self.writes.to_list(),
            ticks: self.clock.as_ref().map(|(_, clock)| clock.to_list()).unwrap_or_default(),
            machine: self.machine.snapshot(),
        };
        state.to_bytes()
    }

    fn number(
        &self,
        cx: &Context,
        tick: Option<u64>,
        write_id: WriteId,
        drafts: Vec<Draft>,
    ) -> Result<Vec<Entry>, coalition_log::EntryError> {
        let numbered = (self.next_index..).zip(drafts).map(|(index, draft)| {
            let entry = Entry { write_id, ..draft.into_entry(index, tick, cx.time_ms) };
            entry.check().map(|()| entry)
        });
        numbered.collect()
    }

    fn fold_all(&mut self, entries: Vec<Entry>, out: &mut Vec<Entry>) {
        for entry in entries {
            self.fold(&entry);
            out.push(entry);
        }
    }

    fn fold(&mut self, entry: &Entry) {
        if is_host_kind(&entry.kind) {
            self.fold_host(entry.clone());
        } else {
            if let Some((tick_of, clock)) = &mut self.clock
                && let Some(tick) = tick_of(entry)
            {
                clock.note(entry.time_ms, tick);
            }
            self.machine.evolve(entry);
        }
        self.next_index = entry.index + 1;
        self.last_time_ms = Some(entry.time_ms);
        self.writes.fold(entry);
    }

    /// Folds one of the host's own entries.
    fn fold_host(&mut self, entry: Entry) {
        if entry.kind == STATE_KIND {
            return;
        }
        self.beginning.fold(&entry);
        self.ending.fold(&entry, self.epochs.verifier());
        self.epochs.fold(&entry);
        self.host_entries.push(entry);
    }
}

/// The pointers of consecutive entries.
pub(crate) fn pointers<'a>(
    organism: UniqueId,
    entries: impl Iterator<Item = &'a Entry>,
) -> Result<Vec<EvidencePointer>, coalition_log::EntryError> {
    entries.map(|entry| entry.pointer(organism)).collect()
}

#[cfg(test)]
mod tests;
