//! Many seeds: which ones, what they did, and how to run a failing one again.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::{Outcome, Scenario, run};

/// Seeds per scenario in an ordinary test run.
const SEEDS: u64 = 2;

/// Faults injected into one run, by name.
#[derive(Clone, Default)]
pub(crate) struct Injected(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl Injected {
    pub(crate) fn one(&self, what: &'static str) {
        self.many(what, 1);
    }

    pub(crate) fn many(&self, what: &'static str, times: u64) {
        *self.0.lock().unwrap().entry(what).or_default() += times;
    }

    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap().clone()
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Runs one seed of a scenario; when it fails, says how to run it again.
fn passed(scenario: Scenario, seed: u64) -> Outcome {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let outcome = run(scenario, seed);
        let liar = scenario == Scenario::Twins;
        assert!(liar || outcome.faults == 0, "nobody is taken for a liar who is none");
        outcome
    }));
    outcome.unwrap_or_else(|panic| {
        println!(
            "seed {seed} of {scenario:?} failed; replay: ORDER_SIM_FIRST_SEED={seed} ORDER_SIM_SEEDS=1 cargo test --release \
             -p coalition-order-sim --test sim a_campaign -- --exact --ignored --nocapture"
        );
        resume_unwind(panic)
    })
}

/// The first seeds of one scenario. Whether a liar is noticed is up to the seed; over several, one must be.
pub(crate) fn run_seeds(scenario: Scenario) {
    let mut faults = 0;
    for seed in 0..SEEDS {
        let began = Instant::now();
        let outcome = passed(scenario, seed);
        println!("{scenario:?} seed {seed}: {} batches, {:?}", outcome.batches.len(), began.elapsed());
        faults += outcome.faults;
    }
    assert_eq!(faults > 0, scenario == Scenario::Twins, "the liar is noticed, and nobody else is taken for one");
}

/// `ORDER_SIM_SEEDS` seeds from `ORDER_SIM_FIRST_SEED` on; each chooses one scenario, in turn. The last line is a summary in JSON.
#[test]
#[ignore = "as many seeds as one has time for: cargo xtask sim --only order"]
fn a_campaign() {
    let (first, seeds) = (setting("ORDER_SIM_FIRST_SEED").unwrap_or(1), setting("ORDER_SIM_SEEDS").unwrap_or(SEEDS));
    let began = Instant::now();
    let mut done: BTreeMap<&'static str, u64> = BTreeMap::new();
    let count = |what: &str, done: &BTreeMap<&'static str, u64>| done.get(what).copied().unwrap_or(0);
    for seed in first..first + seeds {
        let scenario = Scenario::ALL[usize::try_from(seed).unwrap() % Scenario::ALL.len()];
        let outcome = passed(scenario, seed);
        *done.entry("liar noticed").or_default() += outcome.faults;
        *done.entry("run").or_default() += 1;
        outcome.injected.into_iter().for_each(|(what, times)| *done.entry(what).or_default() += times);
        if seed % 10 != 0 && seed + 1 != first + seeds {
            continue;
        }
        let per_minute = (seed - first + 1) as f64 * 60.0 / began.elapsed().as_secs_f64();
        println!(
            "seeds {first} to {seed} hold, {per_minute:.1} a minute, {} crashes, {} links cut, {} power losses; \
             go on with ORDER_SIM_FIRST_SEED={}",
            count("crash", &done),
            count("link cut", &done),
            count("power loss", &done) + count("power loss with torn writes", &done),
            seed + 1
        );
    }
    assert!(seeds < 110 || done["liar noticed"] > 0, "{seeds} seeds and no liar noticed");
    let counts: Vec<String> = done.iter().map(|(what, times)| format!("{what:?}:{times}")).collect();
    println!("summary {{\"first\":{first},\"seeds\":{seeds},\"did\":{{{}}}}}", counts.join(","));
}
