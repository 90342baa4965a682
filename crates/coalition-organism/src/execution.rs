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
    checkpoint::RosterVerifier,
    entry::{WriteId, is_host_kind},
    state::{HostState, STATE_EVERY, STATE_KIND, StateError, StateRecord},
};

use crate::{
    ending::Ending,
    folded::{Clock, TickOf, WriteTable},
    wire::Payload,
};

/// Rounds after one batch; a machine that wants more is broken, and stopping is safer than spinning.
const MAX_ROUNDS: usize = 10_000;

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
    /// The state that the last entry certifies, if it certifies one.
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
    roster: RosterVerifier,
    ending: Ending,
    /// The host's own entries, those of states excepted.
    host_entries: Vec<Entry>,
    clock: Option<(TickOf, Clock)>,
    state_every: u64,
    next_index: u64,
    writes: WriteTable,
}

impl Execution {
    /// Starts with an empty log.
    pub(crate) fn new(machine: Box<dyn Machine>, roster: RosterVerifier) -> Self {
        Self {
            machine,
            roster,
            ending: Ending::default(),
            host_entries: Vec::new(),
            clock: None,
            state_every: STATE_EVERY,
            next_index: 0,
            writes: WriteTable::default(),
        }
    }

    /// The same for the organism that is the coalition's clock.
    pub(crate) fn with_clock(mut self, tick_of: Option<TickOf>) -> Self {
        self.clock = tick_of.map(|tick_of| (tick_of, Clock::default()));
        self
    }

    /// The same with a state whenever the log's size passes a multiple of `entries`; at least 1.
    pub(crate) fn with_state_every(mut self, entries: u64) -> Self {
        self.state_every = entries.max(1);
        self
    }

    /// Takes over a state that `certifies` certifies, instead of folding the entries before it. Comes first if it comes.
    ///
    /// # Errors
    /// [`StateError`]; this execution is unchanged then.
    pub(crate) fn resume(&mut self, certifies: &Entry, bytes: &[u8]) -> Result<(), StateError> {
        let record = StateRecord::of(certifies).ok_or(StateError::NotCertified { index: certifies.index })?;
        record.check(bytes)?;
        let state = HostState::from_bytes(bytes, self.roster.organism(), record.covers)?;
        let host_entries = state.decode_host_entries()?;
        if self.clock.is_none() && !state.ticks.is_empty() {
            let what = "ticks in the state of an organism that is not the clock".to_owned();
            return Err(SnapshotError::Contradiction(what).into());
        }
        self.machine.restore(&state.machine)?;
        host_entries.into_iter().for_each(|entry| self.fold_host(entry));
        if let Some((_, clock)) = &mut self.clock {
            *clock = Clock::from_list(state.ticks);
        }
        self.writes = WriteTable::from_list(&state.writes);
        self.next_index = record.covers;
        Ok(())
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

    /// What an earlier write with this id produced.
    pub(crate) fn known_write(&self, id: WriteId) -> Option<Outcome> {
        self.writes.get(id).map(|(first, count)| Outcome::Written { first, count })
    }

    /// When the machine next needs a batch without commands.
    pub(crate) fn wake_at_ms(&self, cx: &Context) -> Option<u64> {
        if self.ending.is_over() {
            return None;
        }
        self.machine.wake_at_ms(cx).into_iter().chain(self.ending.wake_at_ms()).min()
    }

    /// Executes one batch: each command in order, then rounds until the machine has nothing left to do.
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
            done.outcomes.push((command.write_id, outcome));
        }
        for _ in 0..MAX_ROUNDS {
            self.end_if_due(cx, tick, &mut done.entries);
            if self.ending.is_over() {
                return Ok(done);
            }
            let Some(drafts) = self.machine.round(cx) else {
                self.certify_state_if_due(size_before, cx, tick, &mut done);
                return Ok(done);
            };
            if let Some(draft) = drafts.iter().find(|draft| is_host_kind(draft.kind)) {
                return Err(ExecutionError::HostKind(draft.kind));
            }
            let entries = self.number(cx, tick, WriteId::NONE, drafts).map_err(ExecutionError::BadDraft)?;
            self.fold_all(entries, &mut done.entries);
        }
        Err(ExecutionError::EndlessRounds)
    }

    fn command(&mut self, cx: &Context, tick: Option<u64>, command: &Command<'_>, out: &mut Vec<Entry>) -> Outcome {
        if let Some(known) = self.known_write(command.write_id) {
            return known;
        }
        self.end_if_due(cx, tick, out);
        let first = self.next_index;
        let numbered = self.decide(cx, command.payload).and_then(|drafts| {
            self.number(cx, tick, command.write_id, drafts).map_err(|error| {
                Refusal::new("not_committable", format!("the command's result cannot be committed: {error}"))
            })
        });
        match numbered {
            Err(refusal) => Outcome::Refused(refusal),
            // An acknowledgement is the proof of an entry, and here there is none.
            Ok(entries) if entries.is_empty() => {
                Outcome::Refused(Refusal::new("nothing_changed", "the command changes nothing"))
            }
            Ok(entries) => {
                self.fold_all(entries, out);
                Outcome::Written { first, count: self.next_index - first }
            }
        }
    }

    fn decide(&self, cx: &Context, payload: &Payload) -> Result<Vec<Draft>, Refusal> {
        if self.ending.is_over() {
            return Err(self.ending.refusal());
        }
        let bytes = match payload {
            Payload::Retire(approved) => return self.ending.announce(approved, &self.roster),
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

    /// Writes down the state and certifies it, when this batch took the log to the next multiple of the cadence or past it. A
    /// state that has grown too large is left out, and the log goes on.
    fn certify_state_if_due(&mut self, size_before: u64, cx: &Context, tick: Option<u64>, done: &mut Executed) {
        let covers = self.next_index;
        if size_before / self.state_every == covers / self.state_every {
            return;
        }
        let Some(bytes) = self.state() else {
            tracing::warn!(organism = %self.roster.organism(), covers, "the state is too large to be certified");
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
            organism: self.roster.organism(),
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
        self.writes.fold(entry);
    }

    /// Folds one of the host's own entries.
    fn fold_host(&mut self, entry: Entry) {
        if entry.kind == STATE_KIND {
            return;
        }
        self.ending.fold(&entry, &self.roster);
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
mod tests {
    use coalition::{AlmanacTick, OrganismRef, RetirementInstant, RetirementMarker, Roster, RosterMember};
    use coalition_log::retirement::{Approval, ApprovedRetirement, Retirement};
    use proptest::prelude::*;

    use super::*;

    /// Counts; refuses 0, writes as many entries as the command's byte says, and closes odd totals with a round.
    #[derive(Default)]
    struct Counter {
        total: u64,
        closed: u64,
    }

    impl Machine for Counter {
        fn decide(&self, _: &Context, command: &[u8]) -> Result<Vec<Draft>, Refusal> {
            match command {
                [0] => Err(Refusal::new("zero", "nothing to add")),
                [n] => Ok((0..*n % 4).map(|i| Draft::new("count.add", vec![i])).collect()),
                _ => Ok(vec![Draft::new("count.add", vec![0; 60_000])]),
            }
        }

        fn round(&self, _: &Context) -> Option<Vec<Draft>> {
            (self.total % 2 == 1 && self.closed < self.total).then(|| vec![Draft::new("count.odd", vec![])])
        }

        fn evolve(&mut self, entry: &Entry) {
            match entry.kind.as_str() {
                "count.add" => self.total += 1,
                _ => self.closed = self.total,
            }
        }

        fn wake_at_ms(&self, _: &Context) -> Option<u64> {
            None
        }

        fn snapshot(&self) -> Vec<u8> {
            coalition::codec::encode(&(self.total, self.closed))
        }

        fn restore(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError> {
            (self.total, self.closed) = coalition::codec::decode(snapshot, 32)?;
            Ok(())
        }
    }

    const MEMBERS: usize = 4;

    fn key(member: usize) -> ed25519_dalek::SigningKey {
        ed25519_dalek::SigningKey::from_bytes(&[u8::try_from(member).unwrap() + 1; 32])
    }

    fn roster() -> RosterVerifier {
        let public = |seed: u8| ed25519_dalek::SigningKey::from_bytes(&[seed; 32]).verifying_key().to_bytes();
        let members = (0..MEMBERS).map(|i| {
            let seed = u8::try_from(i).unwrap();
            RosterMember {
                name: format!("member-{i}"),
                checkpoint_key: key(i).verifying_key().to_bytes(),
                consensus_key: public(seed + 50),
                peer_id: public(seed + 100),
            }
        });
        RosterVerifier::new(UniqueId::from_bytes([7; 32]), &Roster::new(members.collect()).unwrap()).unwrap()
    }

    fn retire(marker: &RetirementMarker<'_>, approvers: &[usize]) -> Payload {
        let approve = |&i: &usize| Approval::sign(&key(i), u8::try_from(i).unwrap(), roster().organism(), marker);
        Payload::Retire(ApprovedRetirement::new(marker, approvers.iter().map(approve).collect()).to_bytes())
    }

    fn one(execution: &mut Execution, height: u64, id: u8, payload: &Payload) -> Executed {
        let cx = Context { height, time_ms: height * 10, tick: height };
        let command = Command { write_id: WriteId([id; 16]), payload };
        execution.execute(&cx, Some(height), std::iter::once(command)).unwrap()
    }

    fn refusal(done: &Executed) -> &str {
        match &done.outcomes[0].1 {
            Outcome::Refused(refusal) => &refusal.code,
            Outcome::Written { .. } => "none",
        }
    }

    #[test]
    fn a_retirement_is_announced_takes_effect_in_time_and_ends_the_log() {
        let mut execution = Execution::new(Box::<Counter>::default(), roster());
        let successor = OrganismRef::by_stable_id("counter", UniqueId::from_bytes([9; 32]));
        let marker = RetirementMarker::rotation(RetirementInstant::AtTimestamp(50), successor);
        let announced = one(&mut execution, 1, 1, &retire(&marker, &[0, 2, 3]));
        assert_eq!(announced.entries[0].kind, "committee.retiring");
        assert_eq!(execution.wake_at_ms(&Context { height: 1, time_ms: 10, tick: 1 }), Some(50));
        let twice = one(&mut execution, 2, 2, &retire(&marker, &[0, 1, 2]));
        assert_eq!(refusal(&twice), "already_retiring");
        assert_eq!(run(&mut execution, 3, &[(3, 2)]).entries.len(), 2, "it works on until then");

        let last = run(&mut execution, 5, &[(4, 2)]);
        assert_eq!(last.entries.len(), 1);
        assert_eq!((last.entries[0].kind.as_str(), refusal(&last)), ("committee.retired", "retired"));
        assert_eq!(last.entries[0].evidence, [announced.entries[0].pointer(roster().organism()).unwrap()]);
        let retirement = Retirement::of(&last.entries[0]).unwrap();
        assert_eq!(retirement.successor(), Some(UniqueId::from_bytes([9; 32])));
        let Outcome::Refused(why) = &last.outcomes[0].1 else { panic!("{last:?}") };
        assert!(why.message.contains(&UniqueId::from_bytes([9; 32]).to_string()), "{}", why.message);

        let after = run(&mut execution, 6, &[(5, 1), (6, 3)]);
        assert!(
            after.entries.is_empty() && execution.wake_at_ms(&Context { height: 6, time_ms: 60, tick: 6 }).is_none()
        );
        // What was written before is still answered; and a restart knows that the log has ended.
        assert!(matches!(run(&mut execution, 7, &[(3, 2)]).outcomes[0].1, Outcome::Written { first: 1, count: 2 }));
    }

    #[test]
    fn sequence_and_tick_count_too() {
        for (effective_at, entries_before) in [
            (RetirementInstant::AtSequence(2), 2),
            (RetirementInstant::AtTick(AlmanacTick(3)), 2),
            (RetirementInstant::AtSequence(0), 0),
        ] {
            let mut execution = Execution::new(Box::<Counter>::default(), roster());
            let marker = RetirementMarker::retired(effective_at);
            let mut log = one(&mut execution, 1, 1, &retire(&marker, &[0, 1, 2])).entries;
            for height in 2..5 {
                let payload = Payload::Command(vec![2]);
                log.extend(one(&mut execution, height, u8::try_from(height).unwrap(), &payload).entries);
            }
            let kinds: Vec<_> = log.iter().map(|entry| entry.kind.as_str()).collect();
            assert_eq!(kinds.last(), Some(&"committee.retired"), "{effective_at:?}: {kinds:?}");
            assert_eq!(kinds.iter().filter(|kind| **kind == "count.add").count(), entries_before, "{effective_at:?}");
        }
    }

    #[test]
    fn a_retirement_needs_a_quorum_of_this_organisms_members() {
        let mut execution = Execution::new(Box::<Counter>::default(), roster());
        let marker = RetirementMarker::retired(RetirementInstant::AtSequence(0));
        assert_eq!(refusal(&one(&mut execution, 1, 1, &retire(&marker, &[0, 1]))), "not_approved");
        assert_eq!(refusal(&one(&mut execution, 2, 2, &retire(&marker, &[0, 0, 1]))), "not_approved");
        let stranger = Approval::sign(&key(0), 9, roster().organism(), &marker);
        let elsewhere = Approval::sign(&key(2), 2, UniqueId::from_bytes([8; 32]), &marker);
        let good = |i: usize| Approval::sign(&key(i), u8::try_from(i).unwrap(), roster().organism(), &marker);
        for spoiler in [stranger, elsewhere] {
            let approvals = vec![good(0), good(1), good(3), spoiler];
            let payload = Payload::Retire(ApprovedRetirement::new(&marker, approvals).to_bytes());
            assert_eq!(refusal(&one(&mut execution, 3, 3, &payload)), "not_approved");
        }
        assert_eq!(refusal(&one(&mut execution, 4, 4, &Payload::Retire(vec![1, 2, 3]))), "malformed");
        assert_eq!(execution.next_index(), 0);
    }

    proptest! {
        #[test]
        fn approved_retirements_are_canonical(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0usize..240) {
            let marker = RetirementMarker::retired(RetirementInstant::AtSequence(1));
            let Payload::Retire(mut good) = retire(&marker, &[0, 1, 2]) else { unreachable!() };
            prop_assert_eq!(ApprovedRetirement::from_bytes(&good).unwrap().to_bytes(), good.clone());
            let at = at % good.len();
            good[at] ^= 1;
            let changed = ApprovedRetirement::from_bytes(&good).ok().and_then(|changed| changed.verify(&roster()).ok());
            prop_assert!(changed.is_none());
            if let Ok(parsed) = ApprovedRetirement::from_bytes(&bytes) {
                prop_assert_eq!(parsed.to_bytes(), bytes);
            }
        }
    }

    fn run(execution: &mut Execution, height: u64, commands: &[(u8, u8)]) -> Executed {
        let cx = Context { height, time_ms: height * 10, tick: 0 };
        let payloads: Vec<Payload> = commands.iter().map(|&(_, byte)| Payload::Command(vec![byte])).collect();
        let commands =
            commands.iter().zip(&payloads).map(|(&(id, _), payload)| Command { write_id: WriteId([id; 16]), payload });
        execution.execute(&cx, None, commands).unwrap()
    }

    proptest! {
        #[test]
        fn a_restart_is_invisible(
            batches in prop::collection::vec(prop::collection::vec((1u8..9, 0u8..9), 0..6), 1..8),
            cut in 0usize..8,
        ) {
            let mut whole = Execution::new(Box::<Counter>::default(), roster());
            let mut log = Vec::new();
            let mut restarted = Execution::new(Box::<Counter>::default(), roster());
            for (height, batch) in (0u64..).zip(&batches) {
                if usize::try_from(height).unwrap() == cut {
                    restarted = Execution::new(Box::<Counter>::default(), roster());
                    log.iter().for_each(|entry| restarted.restore(entry));
                }
                let a = run(&mut whole, height, batch);
                let b = run(&mut restarted, height, batch);
                prop_assert_eq!(&a.entries, &b.entries);
                prop_assert_eq!(&a.outcomes, &b.outcomes);
                log.extend(a.entries);
            }
            prop_assert!(log.iter().zip(0u64..).all(|(entry, index)| entry.index == index));
            // What a round writes depends on the whole state.
            let probe = [(200, 1), (201, 2)];
            prop_assert_eq!(run(&mut whole, 100, &probe).entries, run(&mut restarted, 100, &probe).entries);
        }
    }

    #[test]
    fn a_retry_answers_the_same_and_writes_nothing() {
        let mut execution = Execution::new(Box::<Counter>::default(), roster());
        let first = run(&mut execution, 1, &[(1, 2)]);
        let again = run(&mut execution, 2, &[(1, 3)]);
        assert_eq!(first.outcomes, again.outcomes);
        assert!(again.entries.is_empty());
    }

    #[test]
    fn what_cannot_be_committed_is_refused_whole() {
        let mut execution = Execution::new(Box::<Counter>::default(), roster());
        let cx = Context { height: 1, time_ms: 1, tick: 0 };
        let payload = Payload::Command(vec![1, 2]);
        let command = Command { write_id: WriteId([1; 16]), payload: &payload };
        let done = execution.execute(&cx, None, std::iter::once(command)).unwrap();
        assert!(matches!(&done.outcomes[0].1, Outcome::Refused(refusal) if refusal.code == "not_committable"));
        assert_eq!(execution.next_index(), 0);
    }
}
