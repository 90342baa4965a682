//! The first entry of a log that succeeds another, and the last ones of a log that names its successor.

use coalition::{CommitteeContent, PublishedConfig};
use coalition_log::{
    checkpoint::{CertifiedCheckpoint, Checkpoint, Cosigner},
    predecessor::{Predecessor, SUCCEEDS_KIND},
    successor::Successor,
    tree::Hash,
};

use super::*;

fn config(name: &str, predecessor: Option<UniqueId>) -> PublishedConfig {
    let (service, params) = ("counter.v1".to_owned(), name.as_bytes().to_vec());
    let content = CommitteeContent { service, roster: genesis(), params, predecessor };
    PublishedConfig::builder(name).organism("counter", "counter", &content).build().unwrap()
}

fn id(config: &PublishedConfig) -> UniqueId {
    config.organism("counter").unwrap().id
}

fn old() -> PublishedConfig {
    config("old", None)
}

fn new() -> PublishedConfig {
    config("new", Some(id(&old())))
}

fn of(config: &PublishedConfig, predecessor: Option<UniqueId>) -> Execution {
    let epochs = Epochs::new(id(config), &genesis(), [id(config)].into()).unwrap();
    Execution::new(Box::<Counter>::default(), epochs).with_predecessor(predecessor).with_state_every(1)
}

fn successor_log() -> Execution {
    of(&new(), Some(id(&old())))
}

fn head(organism: UniqueId, signers: &[usize]) -> CertifiedCheckpoint {
    let verifier = RosterVerifier::new(organism, &genesis()).unwrap();
    let checkpoint = Checkpoint { organism, size: 9, root: Hash([3; 32]) };
    let mut assembly = verifier.assemble(checkpoint).unwrap();
    for member in signers {
        let line = Cosigner::new(organism, &format!("member-{member}"), key(*member)).sign(&checkpoint, 1).unwrap();
        assembly.add(line).unwrap();
    }
    assembly.certificate().unwrap()
}

fn succeed(config: PublishedConfig, of: UniqueId) -> Payload {
    Payload::Succeed(Predecessor::new(config, vec![], &head(of, &[0, 1, 2])).unwrap().to_bytes())
}

#[test]
fn nothing_comes_before_the_predecessors_head() {
    let mut execution = successor_log();
    let cx = Context { height: 1, time_ms: 10, tick: 0 };
    assert_eq!(refusal(&run(&mut execution, 1, &[(1, 2)])), "not_begun");
    let marker = RetirementMarker::retired(RetirementInstant::AtSequence(0));
    assert_eq!(refusal(&one(&mut execution, 2, 2, &retire(&marker, &[0, 1, 2]))), "not_begun");
    assert_eq!((execution.wake_at_ms(&cx), execution.next_index()), (None, 0));

    let done = one(&mut execution, 3, 3, &succeed(old(), id(&old())));
    assert_eq!(done.entries[0].kind, SUCCEEDS_KIND);
    let named = Predecessor::of(&done.entries[0]).unwrap().verify(id(&old())).unwrap();
    assert_eq!((named.size(), named.root()), (9, Hash([3; 32])));
    assert!(matches!(done.outcomes[0].1, Outcome::Written { first: 0, count: 1 }));
    assert_eq!(refusal(&one(&mut execution, 4, 4, &succeed(old(), id(&old())))), "already_begun");
    let again = one(&mut execution, 5, 3, &succeed(old(), id(&old())));
    assert_eq!(again.outcomes, done.outcomes, "asked again it is answered");
    assert!(matches!(run(&mut execution, 6, &[(5, 2)]).outcomes[0].1, Outcome::Written { .. }));

    // A restart, and a state, know that it has begun.
    let mut restarted = successor_log();
    done.entries.iter().for_each(|entry| restarted.restore(entry));
    assert!(matches!(run(&mut restarted, 6, &[(5, 2)]).outcomes[0].1, Outcome::Written { .. }));
    let state = done.state.unwrap();
    let mut resumed = successor_log();
    resumed.resume(&done.entries[1], &state.bytes).unwrap();
    assert!(matches!(run(&mut resumed, 6, &[(5, 2)]).outcomes[0].1, Outcome::Written { .. }));
}

#[test]
fn what_is_not_the_predecessors_head_is_refused() {
    let refused = |execution: &mut Execution, payload: &Payload| {
        let done = one(execution, 1, 1, payload);
        assert!(done.entries.is_empty());
        refusal(&done).to_owned()
    };
    let mut waiting = successor_log();
    let stranger = config("stranger", None);
    assert_eq!(refused(&mut waiting, &succeed(stranger.clone(), id(&stranger))), "other_predecessor");
    assert_eq!(refused(&mut waiting, &succeed(new(), id(&old()))), "other_predecessor", "derives to something else");
    assert_eq!(refused(&mut waiting, &succeed(old(), id(&new()))), "other_predecessor", "a head of another log");
    assert_eq!(refused(&mut waiting, &Payload::Succeed(vec![1, 2, 3])), "malformed");
    let Payload::Succeed(good) = succeed(old(), id(&old())) else { unreachable!() };
    // The last line is the third of three that are needed.
    let text = head(id(&old()), &[0, 1, 2]).note().to_string();
    let two = text.trim_end().rsplit_once('\n').unwrap().0.to_owned() + "\n";
    let few = [&good[..good.len() - text.len() - 4], &u32::try_from(two.len()).unwrap().to_be_bytes(), two.as_bytes()];
    assert_eq!(refused(&mut waiting, &Payload::Succeed(few.concat())), "not_certified");
    assert_eq!(refused(&mut of(&old(), None), &Payload::Succeed(good)), "no_predecessor");
}

#[test]
fn a_handover_may_come_before_the_beginning() {
    let (mut execution, organism) = (successor_log(), id(&new()));
    let next = Roster::new(genesis().members()[..MEMBERS - 1].to_vec()).unwrap();
    let handover = Handover { epoch: 1, next };
    let approve = |i: u8| handover.approve(&key(usize::from(i)), i, organism, &genesis());
    let approved = ApprovedHandover::new(handover.clone(), (0..3).map(approve).collect());
    let payload = Payload::Handover(wire::encode(&wire::Handovers(vec![(organism, approved.to_bytes())])));
    let done = one(&mut execution, 1, 1, &payload);
    assert_eq!(done.entries.iter().map(|entry| entry.kind.as_str()).collect::<Vec<_>>(), [HANDOVER_KIND]);
    assert_eq!(refusal(&run(&mut execution, 2, &[(2, 2)])), "not_begun");
    assert_eq!(one(&mut execution, 3, 3, &succeed(old(), id(&old()))).entries[0].kind, SUCCEEDS_KIND);
}

/// The announcement of `organism`'s rotation to `to`, with the config of `next`.
fn announce(organism: UniqueId, to: UniqueId, next: PublishedConfig) -> Payload {
    let marker = RetirementMarker::rotation(RetirementInstant::AtSequence(3), OrganismRef::by_stable_id("counter", to));
    let next = Successor::new(next, vec![]).unwrap();
    let approve = |i: u8| ApprovedRetirement::approve_with(&key(i.into()), i, organism, &marker, Some(&next));
    let approved = ApprovedRetirement::new(&marker, (0..3).map(approve).collect());
    Payload::Retire(approved.with_successor(Some(next.clone())).to_bytes())
}

#[test]
fn the_old_log_names_the_new_config_whole() {
    let mut execution = of(&old(), None).with_state_every(STATE_EVERY);
    let (old_id, new_id) = (id(&old()), id(&new()));
    assert_eq!(refusal(&one(&mut execution, 1, 1, &announce(old_id, old_id, new()))), "bad_successor");
    assert_eq!(refusal(&one(&mut execution, 2, 2, &announce(old_id, id(&old()), old()))), "bad_successor");
    assert_eq!(refusal(&one(&mut execution, 3, 3, &announce(new_id, new_id, new()))), "not_approved");
    assert_eq!(execution.next_index(), 0);
    let announced = one(&mut execution, 4, 4, &announce(old_id, new_id, new()));
    let stated = Retirement::of(&announced.entries[0]).unwrap();
    assert_eq!(stated.next_organism(old_id).unwrap().unwrap().id, new_id);
    assert_eq!(stated.config().unwrap().config(), &new());
    let last = run(&mut execution, 5, &[(5, 3)]).entries.pop().unwrap();
    assert_eq!((last.kind.as_str(), last.body.as_slice()), ("committee.retired", stated.to_bytes()));

    // What is settled needs no batch: what is in the log, and that nothing else will be.
    assert!(matches!(execution.settled(WriteId([5; 16])), Some(Outcome::Written { first: 1, .. })));
    assert!(
        matches!(execution.settled(WriteId([6; 16])), Some(Outcome::Refused(refusal)) if refusal.code == "retired")
    );
    assert_eq!(execution.host_entry(0), Some(&announced.entries[0]));
}
