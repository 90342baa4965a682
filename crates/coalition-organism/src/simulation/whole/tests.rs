//! Seeds and planted bugs.

use super::super::{
    campaign, cut, find_planted,
    plan::{Mutation, Plan},
    report,
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
    cut(Plan::with_engines(seed))
}

#[test]
fn a_whole_committee_holds() {
    campaign(SEEDS, plan, AT_LEAST_IN_A_HUNDRED);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [1, 5, 12, 20] {
        let (first, again) = (report::run(&plan(seed)), report::run(&plan(seed)));
        assert_eq!((first.digest, first.events), (again.digest, again.events), "seed {seed}");
    }
    assert_ne!(report::run(&plan(1)).digest, report::run(&plan(2)).digest);
}

#[test]
fn planted_bugs_are_found() {
    find_planted(&PLANTED, SEEDS_FOR_A_BUG, plan);
}
