//! The whole committee under a simulated clock, network and disk, from a seed.
//!
//! The engine's modules are compiled into this test, and only here with the deterministic runtime, so that nothing of
//! them has to be public. The same code runs in a real member. The modules' own unit tests run here too: a test build of the
//! library would generate the engine's code once more.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::float_arithmetic,
    clippy::cast_precision_loss
)]

#[path = "../src/anchor.rs"]
mod anchor;
#[path = "../src/application.rs"]
mod application;
#[path = "../src/block.rs"]
mod block;
#[path = "support/campaign.rs"]
mod campaign;
#[path = "../src/command.rs"]
mod command;
#[path = "../src/config.rs"]
mod config;
#[path = "../src/journal/context.rs"]
mod context;
#[path = "../src/delivery.rs"]
mod delivery;
#[path = "support/dice.rs"]
mod dice;
#[path = "../src/engine.rs"]
mod engine;
#[path = "../src/error.rs"]
mod error;
#[path = "../src/frames.rs"]
mod frames;
#[path = "../src/gossip.rs"]
mod gossip;
#[path = "../src/handle.rs"]
mod handle;
#[path = "../src/inbox.rs"]
mod inbox;
#[path = "../src/mempool.rs"]
mod mempool;
#[path = "support/ordered.rs"]
mod ordered;
#[path = "../src/pacing.rs"]
mod pacing;
#[path = "support/scenarios.rs"]
mod scenarios;
#[path = "../src/shared.rs"]
mod shared;
#[path = "../src/sink.rs"]
mod sink;
#[path = "support/twins.rs"]
mod twins;

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use commonware_cryptography::Signer as _;
use commonware_cryptography::ed25519::{PrivateKey, PublicKey};
use commonware_p2p::simulated::{Config as NetworkConfig, Link, Network, Oracle};
use commonware_p2p::{Receiver, Sender};
use commonware_runtime::deterministic::{Checkpoint, Config, Context, Runner};
use commonware_runtime::{Clock as _, Handle, Quota, Spawner as _, Supervisor as _};
use commonware_utils::probability;
use tokio::sync::{mpsc, watch};

use anchor::Anchor;
use application::Tempo;
use block::BlockLimits;
use campaign::{Injected, run_seeds};
use context::WithStorage;
use delivery::{Batch, Delivery};
use dice::Dice;
use engine::{Channels, Membership, Ports, start_member};
pub use error::OrderError;
use handle::{Control, HandleLimits, OrderHandle};
use mempool::Mempool;
use ordered::Ordered;
use scenarios::Scenario;
use shared::Shared;
use twins::{bundle, forward, route};

const MEMBERS: usize = 4;
const LIMITS: BlockLimits = BlockLimits { max_bytes: 2_000, max_commands: 20, max_command_bytes: 500 };

const FINGERPRINT: [u8; 32] = [7; 32];

/// What a member's consumer wrote to its own disk: survives every crash.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<BTreeMap<u64, Batch>>>);

/// What a member has that outlives it.
#[derive(Clone)]
struct Place {
    ledger: Ledger,
    disk: Ordered,
}

impl Place {
    fn new(i: usize) -> Self {
        Self { ledger: Ledger::default(), disk: Ordered::new(&format!("member-{i}-one-marshal-")) }
    }
}

/// Whom the first and the second twin talk to.
const TWIN_FRIENDS: [[usize; 2]; 2] = [[0, 1], [1, 2]];

/// A committee in the simulation.
struct World {
    context: Context,
    oracle: Oracle<PublicKey, Context>,
    keys: Vec<PrivateKey>,
    places: Vec<Place>,
    dice: Dice,
    members: Vec<Option<(OrderHandle, Handle<()>)>>,
    stalled: Arc<Mutex<BTreeSet<usize>>>,
    lives: u64,
    success: u8,
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
        let keys: Vec<PrivateKey> = (0..MEMBERS as u64).map(PrivateKey::from_seed).collect();
        let participants: Vec<PublicKey> = keys.iter().map(|k| k.public_key()).collect();
        let (network, oracle) = Network::new_with_peers(
            context.child("network"),
            NetworkConfig {
                max_size: 1024 * 1024,
                max_peers_per_set: NonZeroUsize::new(MEMBERS).unwrap(),
                disconnect_on_block: true,
                tracked_peer_sets: NonZeroUsize::MIN,
            },
            participants,
        )
        .await;
        network.start();
        let members = (0..MEMBERS).map(|_| None).collect();
        let stalled = Arc::default();
        let success = if let Scenario::Loss(percent) = scenario { 100 - percent } else { 100 };
        let floor = None;
        let mut world =
            Self { context, oracle, keys, places, dice, members, stalled, lives, success, floor, scenario, injected };
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
            let link = Link {
                latency: Duration::from_millis(10),
                jitter: Duration::from_millis(5),
                success_rate: match self.success {
                    100 => probability!(1.0),
                    90 => probability!(0.9),
                    _ => probability!(0.7),
                },
            };
            self.oracle.add_link(self.keys[a].public_key(), self.keys[b].public_key(), link).await.unwrap();
        }
    }

    async fn cut(&self, a: usize, b: usize) {
        self.injected.one("link cut");
        self.oracle.remove_link(self.keys[a].public_key(), self.keys[b].public_key()).await.unwrap();
    }

    async fn start(&mut self, i: usize) {
        let twins = self.scenario == Scenario::Twins && i == 3;
        let (mine, other) = self.channels(i, twins).await;
        let place = self.places[i].clone();
        let started = self.start_engine(i, "one", mine, place);
        self.members[i] = Some(started);
        if twins {
            self.injected.one("key lives twice");
            // The second twin lives as long as the simulation.
            let place = Place { ledger: Ledger::default(), disk: Ordered::new("member-3-two-marshal-") };
            drop(self.start_engine(i, "two", other, place));
        }
    }

    /// Two sets of channels under one identity; the second is of use to a twin only.
    async fn channels(
        &self,
        i: usize,
        twins: bool,
    ) -> (
        Channels<impl Sender<PublicKey = PublicKey>, impl Receiver<PublicKey = PublicKey>>,
        Channels<impl Sender<PublicKey = PublicKey>, impl Receiver<PublicKey = PublicKey>>,
    ) {
        let quota = Quota::per_second(NonZeroU32::new(2_048).unwrap());
        let control = self.oracle.control(self.keys[i].public_key());
        let friends = TWIN_FRIENDS.map(|f| f.map(|i| self.keys[i].public_key()).to_vec());
        let mut ones = Vec::new();
        let mut twos = Vec::new();
        for id in 0..7 {
            let (sender, receiver) = control.register(id, quota).await.unwrap();
            let (one, two) = sender.split_with(forward(twins, friends.clone()));
            let route = route(twins, friends.clone());
            let (one_in, two_in) = receiver.split_with(self.context.child("split"), route);
            ones.push((one, one_in));
            twos.push((two, two_in));
        }
        (bundle(ones), bundle(twos))
    }

    fn start_engine<S, R>(
        &mut self,
        i: usize,
        twin: &str,
        channels: Channels<S, R>,
        place: Place,
    ) -> (OrderHandle, Handle<()>)
    where
        S: Sender<PublicKey = PublicKey>,
        R: Receiver<PublicKey = PublicKey>,
    {
        let membership = Membership {
            fingerprint: FINGERPRINT,
            seats: Arc::new(self.keys.iter().map(|k| k.public_key()).collect()),
            key: self.keys[i].clone(),
            limits: LIMITS,
            tempo: Tempo { heartbeat_ms: 200, max_clock_drift_ms: 500 },
            starts_after_ms: 0,
            network_delay_ms: 300,
            max_gossip_bytes: 1_000,
            max_unacknowledged: 4,
            batches_per_file: NonZeroU64::new(8).unwrap(),
            partition: format!("member-{i}-{twin}"),
            floor: self.floor.take(),
        };
        assert!(membership.max_message_bytes() <= 1024 * 1024);
        let Place { ledger, disk } = place;
        let shared = Arc::new(Shared::new(Mempool::new(MEMBERS, 1_000_000)));
        let (deliver, deliveries) = mpsc::channel(4);
        let (outbound_tx, outbound) = mpsc::channel(16);
        let (inbox, inbox_rx) = inbox::inbox(MEMBERS);
        let (control_tx, mut told) = mpsc::unbounded_channel();
        let (_, exit) = watch::channel(None);
        let limits = HandleLimits {
            max_command_bytes: LIMITS.max_command_bytes,
            max_gossip_bytes: 1_000,
            max_pending_bytes: 1_000_000,
            keep_batches: 2,
            members: MEMBERS,
            seat: i,
        };
        let handle = OrderHandle::new(Arc::clone(&shared), limits, outbound_tx, inbox_rx, control_tx, exit);
        let ports = Ports { shared, deliveries: deliver, outbound, inbox };
        let (oracle, stalled) = (self.oracle.clone(), Arc::clone(&self.stalled));
        let control = self.oracle.control(self.keys[i].public_key());
        self.lives += 1;
        let context = self.context.child("member").with_attribute("life", self.lives);
        let task = context.spawn(move |context| async move {
            context.child("consumer").spawn(move |context| consume(context, i, ledger, stalled, deliveries));
            let inner = WithStorage::new(context.child("engine"), disk);
            let member = start_member(inner, membership, channels, oracle.manager(), control, ports).await;
            let mut member = member;
            let (names, tasks): (Vec<_>, Vec<_>) = std::mem::take(&mut member.tasks).into_iter().unzip();
            let mut ended = futures::future::select_all(tasks);
            loop {
                tokio::select! {
                    biased;
                    (result, first, _) = &mut ended => panic!("the {} of member {i} ended: {result:?}", names[first]),
                    Some(control) = told.recv() => match control {
                        Control::Prune(height) => member.prune(height),
                        Control::Anchor(time_ms, answer) => {
                            let _ = answer.send(member.anchor_at(time_ms).await);
                        }
                        Control::Stop => return,
                    },
                }
            }
        });
        (handle, task)
    }

    /// Ends everything the member runs, at this instant.
    async fn crash(&mut self, i: usize) {
        self.injected.one("crash");
        let (_, task) = self.members[i].take().expect("it runs");
        task.abort();
        let _ = task.await;
        self.places[i].disk.crash(|sides| self.dice.roll(sides));
    }

    fn submit(&self, i: usize, command: Vec<u8>) {
        if let Some((handle, _)) = &self.members[i] {
            handle.submit(command).unwrap();
        }
    }

    async fn sleep(&self, ms: u64) {
        self.context.sleep(Duration::from_millis(ms)).await;
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
    let faults = world.members.iter().flatten().map(|(handle, _)| handle.status().faults).sum();
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
