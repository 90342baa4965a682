//! Seeds, planted bugs, and how a failing seed is told.

use std::time::Instant;

use super::{
    super::{
        check::Tally,
        plan::{Mutation, Plan},
        report, setting,
        world::Outcome,
    },
    run,
};

/// Seeds of an ordinary test run.
const SEEDS: u64 = 200;
/// Seeds within which every planted bug must be found.
const SEEDS_FOR_A_BUG: u64 = 150;
/// Bugs of which the place is between ordering and the logs, and the one that only engines can have.
const PLANTED: [Mutation; 6] = [
    Mutation::VotesNotDurable,
    Mutation::AcknowledgeBeforeSync,
    Mutation::SignBeforeSync,
    Mutation::ExecuteTwice,
    Mutation::OwnClock,
    Mutation::QuorumOffByOne,
];

/// What a hundred runs must at least have done, for their silence to mean something.
const AT_LEAST_IN_A_HUNDRED: &[(&str, u64)] = &[
    ("write acknowledged", 400),
    ("batch", 1_000),
    ("entry shown to a reader", 1_000),
    ("crash: ", 100),
    ("unsynced write lost", 4),
    ("unsynced write kept", 4),
    ("disk rolled back", 1),
    ("batch delivered again", 20),
    ("partition", 100),
    ("message lost", 500),
    ("message into a cut", 500),
    ("disk slow", 50),
    ("lie: ", 500),
    ("lie: engine runs twice", 10),
    ("equivocation proven", 50),
    ("reader fails over", 100),
    ("settled head", 200),
    ("reader restarted", 10),
    ("writer fails over", 100),
    ("write known already", 10),
    ("log retired", 5),
    ("state kept", 300),
    ("member started from a state", 3),
];

fn plan(seed: u64) -> Plan {
    let chaos_events = setting("COALITION_SIM_CHAOS_EVENTS").unwrap_or(u64::MAX);
    Plan { chaos_events, ..Plan::with_engines(seed) }
}

fn passed(plan: &Plan) -> Outcome {
    let outcome = run(plan, false);
    if outcome.violation.is_some() {
        println!("{}", report::failure(plan, &outcome));
        panic!("seed {}: {:?}", plan.seed, outcome.violation);
    }
    outcome
}

#[test]
fn a_whole_committee_holds() {
    let seeds = setting("COALITION_SIM_SEEDS").unwrap_or(SEEDS);
    let first = setting("COALITION_SIM_FIRST_SEED").unwrap_or(1);
    let began = Instant::now();
    let (mut done, mut events) = (Tally::default(), 0);
    for seed in first..first + seeds {
        let outcome = passed(&plan(seed));
        done.merge(&outcome.tally);
        events += outcome.events;
        if (seed - first + 1).is_multiple_of(50) {
            let rate = (seed - first + 1) * 60_000 / u64::try_from(began.elapsed().as_millis()).unwrap().max(1);
            println!("seeds {first} to {seed} hold, {rate} a minute; go on with COALITION_SIM_FIRST_SEED={}", seed + 1);
        }
    }
    println!("{}", report::counts(&done));
    if seeds >= 50 {
        for (what, least) in AT_LEAST_IN_A_HUNDRED {
            let (had, least) = (done.all(what), least * seeds / 100);
            assert!(had >= least, "{seeds} seeds did too little: {what:?} {had} times, at least {least} are needed");
        }
    }
    println!("{}", report::summary(first, seeds, events, &done));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [1, 5, 12, 20] {
        let (first, again) = (run(&plan(seed), false), run(&plan(seed), false));
        assert_eq!((first.digest, first.events), (again.digest, again.events), "seed {seed}");
    }
    assert_ne!(run(&plan(1), false).digest, run(&plan(2), false).digest);
}

#[test]
fn planted_bugs_are_found() {
    for mutation in PLANTED {
        let found = (1..=SEEDS_FOR_A_BUG).find_map(|seed| {
            let plan = Plan { mutation: Some(mutation), ..plan(seed) };
            run(&plan, false).violation.map(|violation| (seed, violation))
        });
        match found {
            Some((seed, violation)) => println!("{mutation:?}: {seed} seeds, {}", violation.invariant),
            None => panic!("{mutation:?} was not found in {SEEDS_FOR_A_BUG} seeds"),
        }
    }
}
