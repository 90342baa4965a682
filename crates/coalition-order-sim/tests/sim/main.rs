//! The ordering of a whole committee under a simulated clock, network and disk, from a seed.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::float_arithmetic, clippy::cast_precision_loss)]

mod campaign;
mod scenarios;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coalition_order_sim::{
    Anchor, Batch, Checkpoint, Clock as _, Committee, Config, Consumer, Context, Delivery, Dice, Disk, Link, Runner,
    Settings, Start,
};
use tokio::sync::mpsc;

use campaign::{Injected, run_seeds};
use scenarios::Scenario;

const MEMBERS: usize = 4;
const SETTINGS: Settings =
    Settings { members: MEMBERS, max_bytes: 2_000, max_commands: 20, max_command_bytes: 500, heartbeat_ms: 200 };

/// What a member's consumer wrote to its own disk: survives every crash.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<BTreeMap<u64, Batch>>>);

/// What a member has that outlives it.
#[derive(Clone)]
struct Place {
    ledger: Ledger,
    disk: Disk,
}

impl Place {
    fn new(i: usize) -> Self {
        Self { ledger: Ledger::default(), disk: Committee::disk(i) }
    }
}

/// Whom the first and the second twin talk to.
const TWIN_FRIENDS: [&[usize]; 2] = [&[0, 1], &[1, 2]];

/// A committee, what its members keep, and what happens to it.
struct World {
    committee: Committee,
    places: Vec<Place>,
    dice: Dice,
    stalled: Arc<Mutex<BTreeSet<usize>>>,
    /// Where the next member starts.
    floor: Option<Anchor>,
    scenario: Scenario,
    injected: Injected,
}

impl World {
    async fn new(
        context: Context,
        (places, dice): (Vec<Place>, Dice),
        scenario: Scenario,
        lives: u64,
        injected: Injected,
    ) -> Self {
        let committee = Committee::new(context, SETTINGS, lives).await;
        let mut world = Self { committee, places, dice, stalled: Arc::default(), floor: None, scenario, injected };
        for a in 0..MEMBERS {
            for b in 0..MEMBERS {
                world.link(a, b).await;
            }
        }
        for i in 0..MEMBERS {
            world.start(i).await;
        }
        world
    }

    async fn link(&self, a: usize, b: usize) {
        if a != b {
            let loss = if let Scenario::Loss(percent) = self.scenario { percent } else { 0 };
            self.committee.link(a, b, Link { latency_ms: 10, jitter_ms: 5, loss }).await;
        }
    }

    async fn cut(&self, a: usize, b: usize) {
        self.injected.one("link cut");
        self.committee.cut(a, b).await;
    }

    async fn start(&mut self, i: usize) {
        let Place { ledger, disk } = self.places[i].clone();
        let start = Start { disk, floor: self.floor.take(), consumer: self.consumer(i, ledger) };
        if self.scenario == Scenario::Twins && i == 3 {
            self.injected.one("key lives twice");
            let second = self.consumer(i, Ledger::default());
            self.committee.start_twins(i, TWIN_FRIENDS, start, second).await;
        } else {
            self.committee.start(i, start).await;
        }
    }

    fn consumer(&self, i: usize, ledger: Ledger) -> Consumer {
        let stalled = Arc::clone(&self.stalled);
        Box::new(move |context, deliveries| Box::pin(consume(context, i, ledger, stalled, deliveries)))
    }

    /// Ends everything the member runs, at this instant.
    async fn crash(&mut self, i: usize) {
        self.injected.one("crash");
        self.committee.crash(&[i]).await;
        self.places[i].disk.crash(|sides| self.dice.roll(sides));
    }

    fn submit(&self, i: usize, command: Vec<u8>) {
        if let Some(handle) = self.committee.handle(i) {
            handle.submit(command).unwrap();
        }
    }

    async fn sleep(&self, ms: u64) {
        self.committee.sleep_ms(ms).await;
    }

    fn height(&self, i: usize) -> u64 {
        self.places[i].ledger.0.lock().unwrap().last_key_value().map_or(0, |(h, _)| *h)
    }

    /// Submits twenty commands a second for `ms`, to one honest member after the other.
    async fn load(&self, commands: &mut Vec<(usize, Vec<u8>)>, ms: u64) {
        for _ in 0..ms / 50 {
            let n = commands.len();
            let command = format!("command {n}").into_bytes();
            let honest = self.scenario.honest();
            let i = honest[n % honest.len()];
            self.submit(i, command.clone());
            commands.push((i, command));
            self.sleep(50).await;
        }
    }

    /// Clients of crashed members try again. Then everything must arrive everywhere.
    async fn settle(&self, commands: &[(usize, Vec<u8>)]) {
        for (i, command) in commands {
            // Some may have forgotten what was ordered; everywhere else a needless repetition must do no harm.
            let may_have_forgotten = matches!(self.scenario, Scenario::Prune | Scenario::CutOff);
            if !may_have_forgotten || !delivered(&self.places[*i].ledger).contains(command) {
                self.submit(*i, command.clone());
            }
        }
        for _ in 0..1_200 {
            self.sleep(50).await;
            if self.scenario.honest().iter().all(|i| delivered(&self.places[*i].ledger).len() >= commands.len()) {
                // A little longer: a repetition would come now.
                self.sleep(1_000).await;
                return;
            }
        }
        let missing: Vec<usize> =
            self.places.iter().map(|p| commands.len().saturating_sub(delivered(&p.ledger).len())).collect();
        panic!("not everything arrived within a minute; missing per member: {missing:?}");
    }
}

fn delivered(ledger: &Ledger) -> Vec<Vec<u8>> {
    ledger.0.lock().unwrap().values().flat_map(|b| b.commands.clone()).collect()
}

/// Writes what is delivered to the ledger, then acknowledges it.
async fn consume(
    context: Context,
    i: usize,
    ledger: Ledger,
    stalled: Arc<Mutex<BTreeSet<usize>>>,
    mut deliveries: mpsc::Receiver<Delivery>,
) {
    let mut last = None;
    while let Some(delivery) = deliveries.recv().await {
        while stalled.lock().unwrap().contains(&i) {
            context.sleep(Duration::from_millis(20)).await;
        }
        {
            let batch = &delivery.batch;
            let mut ledger = ledger.0.lock().unwrap();
            let durable = ledger.last_key_value().map_or(0, |(h, _)| *h);
            assert!(batch.height <= durable + 1, "member {i}: gap from {durable} to {}", batch.height);
            assert!(last.is_none_or(|l| l + 1 == batch.height), "member {i}: out of order");
            last = Some(batch.height);
            if let Some((_, before)) = ledger.range(..batch.height).next_back() {
                assert!(before.time_ms < batch.time_ms, "member {i}: time goes back");
            }
            if let Some(earlier) = ledger.insert(batch.height, batch.clone()) {
                assert_eq!(earlier, *batch, "member {i}: redelivered differently");
            }
        }
        context.sleep(Duration::from_millis(2)).await;
        delivery.acknowledge();
    }
}

/// One life of the committee. All but the last end in the middle of the work.
async fn live(
    context: Context,
    scenario: Scenario,
    (places, dice): (Vec<Place>, Dice),
    mut commands: Vec<(usize, Vec<u8>)>,
    life: u64,
    injected: Injected,
) -> (Vec<(usize, Vec<u8>)>, u64) {
    let mut world = World::new(context, (places, dice), scenario, 100 * life, injected.clone()).await;
    world.load(&mut commands, 2_000).await;
    match scenario {
        Scenario::Calm | Scenario::Loss(_) | Scenario::Twins => world.load(&mut commands, 2_000).await,
        Scenario::Split => scenarios::split(&world, &mut commands).await,
        Scenario::CrashOne => {
            world.crash(3).await;
            let before = world.height(0);
            world.load(&mut commands, 4_000).await;
            assert!(world.height(0) > before + 5, "three members must go on");
            world.start(3).await;
        }
        Scenario::CrashMany => {
            for round in 0..6 {
                let i = round % MEMBERS;
                world.crash(i).await;
                world.load(&mut commands, 400).await;
                world.start(i).await;
                world.load(&mut commands, 600).await;
            }
        }
        Scenario::SlowConsumer => {
            injected.one("consumer stalled");
            world.stalled.lock().unwrap().insert(2);
            world.load(&mut commands, 4_000).await;
            assert!(world.height(0) > world.height(2) + 5, "the others must not wait for a slow consumer");
            world.stalled.lock().unwrap().clear();
        }
        Scenario::Prune => scenarios::prune(&mut world, &mut commands).await,
        Scenario::CutOff => scenarios::cut_off(&mut world, &mut commands).await,
        Scenario::PowerLoss | Scenario::TornWrites => {
            world.load(&mut commands, 100 * life).await;
            if life < scenario.lives() {
                injected.one(if scenario == Scenario::PowerLoss {
                    "power loss"
                } else {
                    "power loss with torn writes"
                });
                return (commands, 0);
            }
        }
    }
    world.settle(&commands).await;
    let faults = (0..MEMBERS).filter_map(|i| world.committee.handle(i)).map(|handle| handle.status().faults).sum();
    (commands, faults)
}

/// What one seed led to: equal for equal seeds.
#[derive(Debug, PartialEq)]
struct Outcome {
    audit: String,
    batches: BTreeMap<u64, Batch>,
    /// Contradictions that members noticed.
    faults: u64,
    /// Faults injected, by name, and commands ordered.
    injected: BTreeMap<&'static str, u64>,
}

fn run(scenario: Scenario, seed: u64) -> Outcome {
    let places: Vec<Place> = (0..MEMBERS).map(Place::new).collect();
    let injected = Injected::default();
    let config = Config::default().with_seed(seed).with_timeout(Some(Duration::from_secs(300)));
    let mut runner = Runner::new(config);
    let mut commands = Vec::new();
    for life in 1.. {
        let world = (places.clone(), Dice(seed << 8 | life));
        let (commands_now, injected_now) = (commands.clone(), injected.clone());
        let ((all, faults, auditor), checkpoint): (_, Checkpoint) = runner.start_and_recover(|context| async move {
            let auditor = context.auditor();
            let (all, faults) = live(context, scenario, world, commands_now, life, injected_now).await;
            (all, faults, auditor)
        });
        commands = all;
        if life == scenario.lives() {
            let honest: Vec<&Ledger> = scenario.honest().iter().map(|i| &places[*i].ledger).collect();
            check(&honest, &commands);
            let batches = places[0].ledger.0.lock().unwrap().clone();
            injected.many("command ordered", commands.len() as u64);
            injected.many("batch ordered", batches.len() as u64);
            return Outcome { audit: auditor.state(), batches, faults, injected: injected.counts() };
        }
        let mut dice = Dice(seed << 16 | life);
        for place in &places {
            // Without torn writes nothing is left of what was not durable.
            place.disk.crash(|sides| if scenario == Scenario::TornWrites { dice.roll(sides) } else { 0 });
        }
        runner = Runner::from(checkpoint);
    }
    unreachable!("every scenario has a last life")
}

/// Equal, gapless, and every command exactly once.
fn check(ledgers: &[&Ledger], commands: &[(usize, Vec<u8>)]) {
    let expected: BTreeSet<&Vec<u8>> = commands.iter().map(|(_, c)| c).collect();
    let first = ledgers[0].0.lock().unwrap().clone();
    for ledger in ledgers {
        let got = delivered(ledger);
        assert_eq!(got.len(), expected.len(), "every command once");
        assert_eq!(got.iter().collect::<BTreeSet<_>>(), expected);
        let batches = ledger.0.lock().unwrap();
        assert!(batches.keys().copied().eq(1..=batches.len() as u64), "no gap");
        for (height, batch) in batches.iter() {
            assert!(first.get(height).is_none_or(|b| b == batch), "one batch per height");
        }
    }
}

#[test]
fn no_faults_and_the_same_seed_gives_the_same_result() {
    run_seeds(Scenario::Calm);
    let (first, again, other) = (run(Scenario::Calm, 11), run(Scenario::Calm, 11), run(Scenario::Calm, 12));
    assert_eq!(first, again);
    assert_ne!(first.audit, other.audit);
}

#[test]
fn crashes_are_reproducible_too() {
    assert_eq!(run(Scenario::CrashMany, 5), run(Scenario::CrashMany, 5));
}

#[test]
fn loss_of_messages() {
    run_seeds(Scenario::Loss(10));
    run_seeds(Scenario::Loss(30));
}

#[test]
fn two_halves() {
    run_seeds(Scenario::Split);
}

#[test]
fn one_crashes_and_catches_up() {
    run_seeds(Scenario::CrashOne);
}

#[test]
fn one_after_the_other_crashes() {
    run_seeds(Scenario::CrashMany);
}

#[test]
fn a_consumer_stands_still() {
    run_seeds(Scenario::SlowConsumer);
}

#[test]
fn old_batches_are_freed() {
    run_seeds(Scenario::Prune);
}

#[test]
fn one_is_cut_off_until_batches_it_lacks_are_freed() {
    run_seeds(Scenario::CutOff);
}

#[test]
fn one_key_lives_twice() {
    run_seeds(Scenario::Twins);
}

#[test]
fn all_lose_power() {
    run_seeds(Scenario::PowerLoss);
    run_seeds(Scenario::TornWrites);
}
