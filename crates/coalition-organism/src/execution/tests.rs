//! Batches, retirement, restarts and states.

mod chain;

use coalition::{AlmanacTick, OrganismRef, RetirementInstant, RetirementMarker, Roster, RosterMember};
use coalition_log::{
    checkpoint::RosterVerifier,
    handover::{ApprovedHandover, HANDOVER_KIND, Handover},
    retirement::{ApprovedRetirement, Retirement},
};
use proptest::prelude::*;

use super::*;
use crate::wire;

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

fn genesis() -> Roster {
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
    Roster::new(members.collect()).unwrap()
}

fn roster() -> RosterVerifier {
    RosterVerifier::new(UniqueId::from_bytes([7; 32]), &genesis()).unwrap()
}

fn epochs() -> Epochs {
    let id = UniqueId::from_bytes([7; 32]);
    Epochs::new(id, &genesis(), [id].into()).unwrap()
}

fn retire(marker: &RetirementMarker<'_>, approvers: &[usize]) -> Payload {
    let approve =
        |&i: &usize| ApprovedRetirement::approve(&key(i), u8::try_from(i).unwrap(), roster().organism(), marker);
    Payload::Retire(ApprovedRetirement::new(marker, approvers.iter().map(approve).collect()).to_bytes())
}

/// To the same roster without its last member, approved by those.
fn hand_over(approvers: &[usize]) -> Payload {
    let next = Roster::new(genesis().members()[..MEMBERS - 1].to_vec()).unwrap();
    let (handover, id) = (Handover { epoch: 1, next }, roster().organism());
    let approve = |&i: &usize| handover.approve(&key(i), u8::try_from(i).unwrap(), id, &genesis());
    let approved = ApprovedHandover::new(handover.clone(), approvers.iter().map(approve).collect());
    Payload::Handover(wire::encode(&wire::Handovers(vec![(id, approved.to_bytes())])))
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
    let mut execution = Execution::new(Box::<Counter>::default(), epochs());
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
    assert!(after.entries.is_empty() && execution.wake_at_ms(&Context { height: 6, time_ms: 60, tick: 6 }).is_none());
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
        let mut execution = Execution::new(Box::<Counter>::default(), epochs());
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
    let mut execution = Execution::new(Box::<Counter>::default(), epochs());
    let marker = RetirementMarker::retired(RetirementInstant::AtSequence(0));
    assert_eq!(refusal(&one(&mut execution, 1, 1, &retire(&marker, &[0, 1]))), "not_approved");
    assert_eq!(refusal(&one(&mut execution, 2, 2, &retire(&marker, &[0, 0, 1]))), "not_approved");
    let stranger = ApprovedRetirement::approve(&key(0), 9, roster().organism(), &marker);
    let elsewhere = ApprovedRetirement::approve(&key(2), 2, UniqueId::from_bytes([8; 32]), &marker);
    let good = |i: usize| ApprovedRetirement::approve(&key(i), u8::try_from(i).unwrap(), roster().organism(), &marker);
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
        let mut whole = Execution::new(Box::<Counter>::default(), epochs());
        let mut log = Vec::new();
        let mut restarted = Execution::new(Box::<Counter>::default(), epochs());
        for (height, batch) in (0u64..).zip(&batches) {
            if usize::try_from(height).unwrap() == cut {
                restarted = Execution::new(Box::<Counter>::default(), epochs());
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
    let mut execution = Execution::new(Box::<Counter>::default(), epochs());
    let first = run(&mut execution, 1, &[(1, 2)]);
    let again = run(&mut execution, 2, &[(1, 3)]);
    assert_eq!(first.outcomes, again.outcomes);
    assert!(again.entries.is_empty());
}

#[test]
fn what_cannot_be_committed_is_refused_whole() {
    let mut execution = Execution::new(Box::<Counter>::default(), epochs());
    let cx = Context { height: 1, time_ms: 1, tick: 0 };
    let payload = Payload::Command(vec![1, 2]);
    let command = Command { write_id: WriteId([1; 16]), payload: &payload };
    let done = execution.execute(&cx, None, std::iter::once(command)).unwrap();
    assert!(matches!(&done.outcomes[0].1, Outcome::Refused(refusal) if refusal.code == "not_committable"));
    assert_eq!(execution.next_index(), 0);
}

/// Everything after `from` of a log, folded.
fn continued(mut execution: Execution, log: &[Entry], from: usize) -> Execution {
    log[from..].iter().for_each(|entry| execution.restore(entry));
    execution
}

proptest! {
    #[test]
    fn a_restored_state_is_the_fold(
        batches in prop::collection::vec(prop::collection::vec((1u8..9, 0u8..9), 0..6), 1..24),
        every in 1u64..9,
        retires in prop::option::of(0usize..24),
        hands_over in prop::option::of(0usize..24),
    ) {
        let fresh = || Execution::new(Box::<Counter>::default(), epochs()).with_clock(Some(tick_of)).with_state_every(every);
        let (mut whole, mut log, mut states) = (fresh(), Vec::new(), Vec::new());
        let successor = OrganismRef::by_stable_id("counter", UniqueId::from_bytes([9; 32]));
        let marker = RetirementMarker::rotation(RetirementInstant::AtTimestamp(230), successor);
        for (height, batch) in (0u64..).zip(&batches) {
            let is_at = |when: Option<usize>| when.is_some_and(|at| at as u64 == height);
            let done = match () {
                () if is_at(retires) => one(&mut whole, height, 250, &retire(&marker, &[0, 1, 2])),
                () if is_at(hands_over) => one(&mut whole, height, 251, &hand_over(&[0, 1, 2])),
                () => run(&mut whole, height, batch),
            };
            let last = done.entries.iter().rfind(|entry| entry.kind != HANDOVER_KIND);
            prop_assert_eq!(done.state.is_some(), last.is_some_and(|entry| entry.kind == STATE_KIND));
            states.extend(done.state);
            log.extend(done.entries);
        }
        for state in &states {
            let from = usize::try_from(state.covers).unwrap();
            let mut restored = fresh();
            restored.resume(&log[from], &state.bytes).unwrap();
            prop_assert_eq!(restored.next_index(), state.covers);
            prop_assert_eq!(restored.state(), Some(state.bytes.clone()), "equal folds, equal bytes");
            let mut restored = continued(restored, &log, from);
            let mut folded = continued(fresh(), &log, 0);
            prop_assert_eq!(restored.state(), folded.state());
            prop_assert_eq!(restored.epoch(), folded.epoch());
            prop_assert_eq!(restored.tick_at(u64::MAX), folded.tick_at(u64::MAX));
            let probe = [(200, 1), (201, 2), (3, 1)];
            let (a, b) = (run(&mut restored, 100, &probe), run(&mut folded, 100, &probe));
            prop_assert_eq!(a.entries, b.entries);
            prop_assert_eq!(a.outcomes, b.outcomes);
        }
    }

    #[test]
    fn no_changed_state_is_taken(at in any::<prop::sample::Index>(), flip in 1u8..=255) {
        let mut execution = Execution::new(Box::<Counter>::default(), epochs()).with_state_every(4);
        let done = run(&mut execution, 1, &[(1, 3), (2, 3)]);
        let (certifies, mut state) = (done.entries.last().unwrap().clone(), done.state.unwrap().bytes);
        let at = at.index(state.len());
        state[at] ^= flip;
        let mut other = Execution::new(Box::<Counter>::default(), epochs());
        let refused = matches!(other.resume(&certifies, &state), Err(StateError::Digest { .. }));
        prop_assert!(refused);
        // Even if a quorum had certified it, what contradicts itself is refused or says the same thing of itself.
        let forged = Entry { body: StateRecord::new(certifies.index, &state).to_bytes(), ..certifies };
        if other.resume(&forged, &state).is_ok() {
            prop_assert_eq!(other.state(), Some(state));
        } else {
            prop_assert_eq!(other.next_index(), 0, "unchanged");
        }
    }
}

fn tick_of(entry: &Entry) -> Option<u64> {
    (entry.kind == "count.odd").then_some(entry.index)
}

#[test]
fn states_follow_the_batches_that_pass_a_multiple_and_end_with_the_log() {
    let mut execution = Execution::new(Box::<Counter>::default(), epochs()).with_state_every(4);
    let covered = |done: &Executed| done.state.as_ref().map(|state| state.covers);
    assert_eq!(covered(&run(&mut execution, 1, &[(1, 2)])), None);
    let done = run(&mut execution, 2, &[(2, 2), (3, 2)]);
    assert_eq!((covered(&done), done.entries.last().unwrap().index), (Some(6), 6));
    assert_eq!(covered(&run(&mut execution, 3, &[])), None, "an idle committee writes none");
    assert_eq!(covered(&run(&mut execution, 4, &[(4, 2)])), Some(9));
    let successor = OrganismRef::by_stable_id("counter", UniqueId::from_bytes([9; 32]));
    let marker = RetirementMarker::rotation(RetirementInstant::AtSequence(1), successor);
    let last = one(&mut execution, 5, 9, &retire(&marker, &[0, 1, 2]));
    assert_eq!(last.entries.last().unwrap().kind, "committee.retired");
    assert_eq!(covered(&last), None, "nothing follows the last entry");
}

#[test]
fn a_state_comes_from_the_entry_that_certifies_it() {
    let mut execution = Execution::new(Box::<Counter>::default(), epochs()).with_state_every(2);
    let done = run(&mut execution, 1, &[(1, 2)]);
    let state = done.state.unwrap();
    let mut other = Execution::new(Box::<Counter>::default(), epochs());
    let error = other.resume(&done.entries[0], &state.bytes).unwrap_err();
    assert!(matches!(error, StateError::NotCertified { index: 0 }), "{error}");
    let moved = Entry { index: 7, ..done.entries[2].clone() };
    assert!(matches!(other.resume(&moved, &state.bytes), Err(StateError::NotCertified { index: 7 })));
    other.resume(&done.entries[2], &state.bytes).unwrap();
}

#[test]
fn a_handover_is_its_batchs_last_entry_and_a_state_comes_before_it() {
    let mut execution = Execution::new(Box::<Counter>::default(), epochs()).with_state_every(4);
    assert_eq!(refusal(&one(&mut execution, 1, 1, &hand_over(&[0, 1]))), "not_approved");
    assert_eq!(run(&mut execution, 2, &[(2, 2)]).entries.len(), 2);
    let cx = Context { height: 3, time_ms: 30, tick: 0 };
    let (handover, write) = (hand_over(&[0, 1, 3]), Payload::Command(vec![1]));
    let id = |id: u8| WriteId([id; 16]);
    // The handover comes first, and twice; what comes with it in the batch is written before it.
    let commands = [(3, &handover), (3, &handover), (4, &write)];
    let commands = commands.map(|(chosen, payload)| Command { write_id: id(chosen), payload });
    let done = execution.execute(&cx, None, commands.into_iter()).unwrap();
    let kinds: Vec<&str> = done.entries.iter().map(|entry| entry.kind.as_str()).collect();
    assert_eq!(kinds, ["count.add", "count.odd", STATE_KIND, HANDOVER_KIND]);
    let state = done.state.unwrap();
    assert_eq!((state.covers, execution.epoch(), execution.next_index()), (4, 1, 6));
    let written = |first| Outcome::Written { first, count: 1 };
    assert_eq!(done.outcomes, [(id(4), written(2)), (id(3), written(5))]);

    // Asked again it is answered, asked otherwise refused; and the roster before it decides nothing any more.
    assert_eq!(one(&mut execution, 4, 3, &handover).outcomes, [(id(3), written(5))]);
    assert_eq!(refusal(&one(&mut execution, 5, 5, &handover)), "wrong_epoch");
    let marker = RetirementMarker::retired(RetirementInstant::AtSequence(0));
    assert_eq!(refusal(&one(&mut execution, 6, 6, &retire(&marker, &[1, 2, 3]))), "not_approved");

    let mut other = Execution::new(Box::<Counter>::default(), epochs());
    other.resume(&done.entries[2], &state.bytes).unwrap();
    assert_eq!(other.epoch(), 0);
    other.restore(&done.entries[2]);
    other.restore(&done.entries[3]);
    assert_eq!((other.epoch(), other.state()), (1, execution.state()));
}

#[test]
fn a_handover_that_ends_at_a_multiple_brings_a_state_too() {
    let mut execution = Execution::new(Box::<Counter>::default(), epochs()).with_state_every(3);
    assert_eq!(run(&mut execution, 1, &[(1, 2)]).state, None);
    let done = one(&mut execution, 2, 2, &hand_over(&[0, 1, 2]));
    let kinds: Vec<&str> = done.entries.iter().map(|entry| entry.kind.as_str()).collect();
    assert_eq!((kinds, done.state.map(|state| state.covers)), (vec![STATE_KIND, HANDOVER_KIND], Some(2)));
}

#[test]
fn every_log_has_a_state_at_a_common_point_whatever_else_it_writes() {
    let fresh = || Execution::new(Box::<Counter>::default(), epochs()).with_common_every(4);
    let (mut idle, mut busy) = (fresh(), fresh());
    let mut states = Vec::new();
    for height in 1..=9 {
        assert_eq!((idle.has_executed(height * 10), busy.has_executed(height * 10)), (false, false));
        let (quiet, written) =
            (run(&mut idle, height, &[]), run(&mut busy, height, &[(u8::try_from(height).unwrap(), 2)]));
        assert_eq!(quiet.state.is_some(), height % 4 == 0, "{height}");
        assert_eq!(
            (quiet.state.is_some(), quiet.entries.len()),
            (written.state.is_some(), usize::from(height % 4 == 0))
        );
        assert!(busy.has_executed(height * 10) && !busy.has_executed(height * 10 + 1));
        // Who reads the idle log knows of nothing after the common point.
        assert_eq!((idle.has_executed(height / 4 * 40), idle.has_executed(height / 4 * 40 + 1)), (height >= 4, false));
        states.extend(quiet.state.map(|state| (state, quiet.entries[0].clone())));
    }
    assert_eq!(states.iter().map(|(state, _)| state.covers).collect::<Vec<_>>(), [0, 1]);
    // An epoch counts anew, and a state takes the place of whatever was folded before.
    let next = Context { height: first_height(3) + 4, time_ms: 1_000, tick: 0 };
    assert!(idle.execute(&next, None, std::iter::empty()).unwrap().state.is_some());
    let (state, certifies) = &states[1];
    busy.resume(certifies, &state.bytes).unwrap();
    assert_eq!((busy.next_index(), busy.last_time_ms(), busy.known_write(WriteId([1; 16]))), (1, None, None));
    busy.restore(certifies);
    assert_eq!((busy.next_index(), busy.last_time_ms()), (2, Some(80)));
}

#[test]
fn a_state_leaves_nothing_of_the_handovers_folded_before() {
    let fresh = || Execution::new(Box::<Counter>::default(), epochs()).with_state_every(2);
    let mut handed_over = fresh();
    let state = run(&mut handed_over, 1, &[(1, 2)]);
    one(&mut handed_over, 2, 2, &hand_over(&[0, 1, 2]));
    assert_eq!(handed_over.epoch(), 1);
    let (bytes, certifies) = (state.state.unwrap().bytes, state.entries.last().unwrap());
    handed_over.resume(certifies, &bytes).unwrap();
    let mut other = fresh();
    other.resume(certifies, &bytes).unwrap();
    assert_eq!((handed_over.epoch(), handed_over.state()), (0, other.state()));
}
