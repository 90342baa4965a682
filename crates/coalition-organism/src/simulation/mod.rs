//! Everything after ordering, from a seed: execution, certification, the sign guard, gossip, readers, acknowledgements,
//! idempotence and retirement, without the ordering engine, sockets or files.
//!
//! The code under test is the real one: [`Execution`](crate::execution::Execution) with its ending and clock,
//! [`Certifier`](crate::certifier::Certifier), the verifier, cosigner, reader's core, evidence, equivocation and tree of
//! `coalition-log`, and the wire's messages. Modelled are the disk ([`disk`]), the network ([`network`]), clocks, and the
//! thin drivers around the pure code ([`member`], [`certify`], [`serve`], [`clients`]), which follow their originals step by
//! step so that a crash can come between any two steps. Batches come from an oracle ([`order`]) that every member receives
//! at least once and in order, or, in [`whole`], from real ordering engines.
//!
//! After every event the invariants of [`check::invariant`] are checked against an independent execution and an
//! independent count of signatures. docs/RELIABILITY.md says what that covers and what not.

mod certify;
mod check;
mod clients;
mod committee;
mod disk;
mod engine;
mod handover;
mod liar;
mod machine;
mod member;
mod network;
mod order;
mod plan;
mod regressions;
mod report;
mod rng;
mod serve;
mod settled;
mod stage;
mod states;
mod whole;
mod world;

use std::time::Instant;

use check::Tally;
use plan::{Mutation, Plan};
use world::Outcome;

/// Seeds of an ordinary test run.
const SEEDS: u64 = 500;
/// Seeds within which every planted bug must be found.
const SEEDS_FOR_A_BUG: u64 = 400;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// A plan, cut as the environment says.
fn cut(plan: Plan) -> Plan {
    let chaos_events = setting("COALITION_SIM_CHAOS_EVENTS").unwrap_or(u64::MAX);
    Plan { chaos_events, ..plan }
}

fn plan(seed: u64) -> Plan {
    cut(Plan::new(seed))
}

fn passed(plan: &Plan) -> Outcome {
    let outcome = report::run(plan);
    if outcome.violation.is_some() {
        println!("{}", report::failure(plan, &outcome));
        panic!("seed {}: {:?}", plan.seed, outcome.violation);
    }
    outcome
}

/// What a hundred runs must at least have done, for their silence to mean something.
const AT_LEAST_IN_A_HUNDRED: &[(&str, u64)] = &[
    ("write acknowledged", 400),
    ("batch", 500),
    ("entry shown to a reader", 1_000),
    ("crash: ", 150),
    ("crash: synced, not answered", 2),
    ("crash: guard written, not synced", 2),
    ("crash: guard synced, not signed", 2),
    ("unsynced write lost", 4),
    ("unsynced write kept", 4),
    ("disk rolled back", 2),
    ("rolled back disk refused", 2),
    ("batch delivered again", 20),
    ("partition", 100),
    ("message lost", 500),
    ("message duplicated", 100),
    ("message late", 100),
    ("message into a cut", 500),
    ("no quorum to order", 20),
    ("disk slow", 50),
    ("clock jump", 20),
    ("lie: ", 500),
    ("lie: two heads signed", 100),
    ("equivocation proven", 50),
    ("false cosignature dropped", 20),
    ("false certificate dropped", 20),
    ("false answer refused by a reader", 20),
    ("false acknowledgement caught", 1),
    ("reader fails over", 100),
    ("settled head", 200),
    ("settled head is newer than acknowledged", 20),
    ("lie: an old settled head", 10),
    ("reader restarted", 10),
    ("writer fails over", 100),
    ("write known already", 20),
    ("write refused: retired", 5),
    ("log retired", 5),
    ("straggler helped", 20),
    ("state kept", 500),
    ("member started from a state", 20),
    ("state damaged on disk", 4),
    ("damaged state set aside", 1),
    ("reader started from a state", 10),
    ("lie: false state offered", 1),
];

fn assert_enough(seeds: u64, done: &Tally, at_least: &[(&str, u64)]) {
    for (what, least) in at_least {
        let (had, least) = (done.all(what), least * seeds / 100);
        assert!(had >= least, "{seeds} seeds did too little: {what:?} {had} times, at least {least} are needed");
    }
}

/// Runs seeds, so many unless the environment says otherwise; they must hold, and a hundred must at least have done so much.
fn campaign(seeds: u64, plan: fn(u64) -> Plan, at_least: &[(&str, u64)]) {
    let seeds = setting("COALITION_SIM_SEEDS").unwrap_or(seeds);
    let first = setting("COALITION_SIM_FIRST_SEED").unwrap_or(1);
    let began = Instant::now();
    let rate = |done: u64| done * 60_000 / u64::try_from(began.elapsed().as_millis()).unwrap().max(1);
    let (mut done, mut events, mut simulated_ms) = (Tally::default(), 0, 0);
    for seed in first..first + seeds {
        let outcome = passed(&plan(seed));
        done.merge(&outcome.tally);
        events += outcome.events;
        simulated_ms += outcome.simulated_ms;
        let ran = seed - first + 1;
        if ran.is_multiple_of(500) {
            let (rate, next) = (rate(ran), seed + 1);
            println!("seeds {first} to {seed} hold, {rate} a minute; go on with COALITION_SIM_FIRST_SEED={next}");
        }
    }
    let (seconds, rate) = (simulated_ms / 1_000, rate(seeds));
    println!("{seeds} seeds from {first}: {events} events, {seconds} simulated s, {rate} seeds a minute");
    println!("{}", report::counts(&done));
    if seeds >= 100 {
        assert_enough(seeds, &done, at_least);
    }
    println!("{}", report::summary(first, seeds, events, &done));
}

/// Plants each bug, and fails if one is not found in so many seeds.
fn find_planted(bugs: &[Mutation], seeds: u64, plan: fn(u64) -> Plan) {
    for mutation in bugs {
        let found = (1..=seeds)
            .find_map(|seed| report::run(&plan(seed).planted(*mutation)).violation.map(|violation| (seed, violation)));
        match found {
            Some((seed, violation)) => println!("{mutation:?}: {seed} seeds, {}", violation.invariant),
            None => panic!("{mutation:?} was not found in {seeds} seeds"),
        }
    }
}

#[test]
fn the_committee_holds() {
    campaign(SEEDS, plan, AT_LEAST_IN_A_HUNDRED);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in (1..200).step_by(9) {
        let (first, again) = (report::run(&plan(seed)), report::run(&plan(seed)));
        assert_eq!((first.digest, first.events), (again.digest, again.events), "seed {seed}");
    }
    assert_ne!(report::run(&plan(1)).digest, report::run(&plan(2)).digest);
}

#[test]
fn planted_bugs_are_found() {
    find_planted(&Mutation::ALL, SEEDS_FOR_A_BUG, plan);
}

#[test]
fn a_failure_is_told_so_that_it_can_be_replayed() {
    let plan = Plan { mutation: Some(Mutation::QuorumOffByOne), ..Plan::new(1) };
    let outcome = report::run(&plan);
    let text = report::failure(&plan, &outcome);
    assert!(text.contains("seed 1: invariant `certified-by-a-quorum`"), "{text}");
    assert!(text.contains("COALITION_SIM_FIRST_SEED=1 COALITION_SIM_SEEDS=1"), "{text}");
}
