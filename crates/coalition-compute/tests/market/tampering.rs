//! What an auditor finds in a log whose committee did not follow the rules.

use coalition::RequestId;
use coalition_compute::*;
use coalition_log::Entry;

use crate::common::*;

fn story() -> Sim {
    let mut sim = Sim::new();
    sim.ok(post(1, 1, card(1, 100, vec![offer("local", "home-01", 2, "0.04")])));
    sim.ok(post(2, 1, card(2, 100, vec![offer("local", "home-02", 2, "0.05")])));
    let ids: Vec<RequestId> = (1..=5).map(|n| request(9, n, 130).request_id).collect();
    let commands: Vec<_> = (1..=5).map(|n| submit(request(9, n, 130), 9)).collect();
    sim.batch(&commands);
    sim.pass(1_000);
    let loser = ids.iter().find(|id| !sim.machine.state().grants().contains_key(id)).unwrap();
    sim.ok(withdraw(*loser, 9));
    let holder = |sim: &Sim, id: RequestId| if sim.grant(id).grant.provider == provider_id(1) { 1 } else { 2 };
    let first = sim.machine.state().live_grants().next().unwrap().grant.request_id;
    let seed = holder(&sim, first);
    sim.ok(refuse(first, seed));
    sim.pass(1_000);
    let next = sim.machine.state().live_grants().next().unwrap().grant.request_id;
    let seed = holder(&sim, next);
    sim.ok(serve(next, seed));
    sim.ok(end(next, 9));
    sim.ok(log(next, seed, 1, (100, 102), Some(LogEnd::EndedByRequester)));
    sim.pass(80_000);
    sim.pass(8 * 60_000);
    sim
}

#[test]
fn a_true_log_replays_whole_and_piece_by_piece() {
    let sim = story();
    let report = sim.audit();
    assert_eq!(report.entries, sim.entries.len() as u64);
    assert!(report.clearings >= 4 && report.endings >= 4 && report.statements >= 10, "{report:?}");
    for length in 0..sim.entries.len() {
        // Between a command's entries a prefix is incomplete; everywhere else it replays.
        let outcome = replay(organism(), &params(), &sim.entries[..length]);
        assert!(matches!(outcome, Ok(_) | Err(ReplayFault::Omitted { .. })), "{outcome:?}");
    }
}

#[test]
fn any_single_entry_left_out_is_noticed_unless_nothing_follows_from_it() {
    let sim = story();
    for gone in 0..sim.entries.len() - 1 {
        // Leaving out a statement nothing else rests on is the same as never ordering it: a log alone cannot show that.
        if sim.entries[gone].kind == "compute.grant_serving" || sim.entries[gone].kind == "compute.grant_ending" {
            continue;
        }
        let mut entries: Vec<Entry> = sim.entries.clone();
        entries.remove(gone);
        for (index, entry) in entries.iter_mut().enumerate() {
            entry.index = index as u64;
        }
        assert!(replay(organism(), &params(), &entries).is_err(), "entry {gone}, a {}", sim.entries[gone].kind);
    }
}

#[test]
fn any_changed_body_is_noticed() {
    let sim = story();
    for index in 0..sim.entries.len() {
        let length = sim.entries[index].body.len();
        for at in (0..length).step_by(5) {
            let mut entries = sim.entries.clone();
            entries[index].body[at] ^= 1;
            assert!(replay(organism(), &params(), &entries).is_err(), "entry {index} byte {at}");
        }
    }
}

#[test]
fn a_dearer_winner_is_noticed_even_when_everything_else_fits() {
    let mut sim = Sim::new();
    sim.ok(post(1, 1, card(1, 100, vec![offer("local", "home-01", 2, "0.04")])));
    sim.ok(post(2, 1, card(2, 100, vec![offer("local", "home-02", 2, "0.05")])));
    sim.ok(submit(request(9, 1, 130), 9));
    let mut honest = Sim::new();
    honest.ok(post(2, 1, card(2, 100, vec![offer("local", "home-02", 2, "0.05")])));
    honest.ok(submit(request(9, 1, 130), 9));
    let mut entries = sim.entries.clone();
    for (position, kind) in [(3, "compute.clearing"), (4, "compute.grant")] {
        let other = honest.entries.iter().find(|entry| entry.kind == kind).unwrap();
        entries[position].body = other.body.clone();
    }
    let fault = replay(organism(), &params(), &entries).unwrap_err();
    assert!(matches!(fault, ReplayFault::Differs { index: 3, .. }), "{fault}");
}

#[test]
fn a_gap_and_time_running_backwards_are_named() {
    let sim = story();
    let fault = replay(organism(), &params(), &sim.entries[1..]).unwrap_err();
    assert!(matches!(fault, ReplayFault::Gap { expected: 0, found: 1 }));
    let mut entries = sim.entries;
    let last = entries.len() - 1;
    entries[last].time_ms = START_MS - 1;
    let fault = replay(organism(), &params(), &entries).unwrap_err();
    assert!(matches!(fault, ReplayFault::Time { .. }), "{fault}");
}
