//! Runs the engines and the world in one simulated time.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use coalition_order_sim::{
    Committee, Config, Consumer, Context, Delivery, Dice, Disk, Link, Run as _, Runner, Settings, Start,
};
use tokio::sync::mpsc;

use super::{
    super::{
        check::{Violation, invariant},
        plan::{Engines, Mutation, Plan},
        world::{Outcome, World},
    },
    Ask,
};

/// Simulated time after which a run has not come to an end for a reason nobody thought of.
const TOO_LONG: Duration = Duration::from_secs(300);

/// A delivery, and to which life of which member.
type Arrival = (usize, u32, Delivery);

/// The machines of a committee.
struct Room {
    committee: Committee,
    engines: Engines,
    disks: Vec<Disk>,
    dice: Dice,
    /// What joins each member to each other, if anything.
    links: Vec<Vec<Option<Link>>>,
    arrives: mpsc::UnboundedSender<Arrival>,
}

/// Runs a plan with engines. An engine that gives up ends the run.
pub(in super::super) fn run(plan: &Plan, story: bool) -> Outcome {
    let engines = plan.engines.expect("a plan with engines");
    let config = Config::default().with_seed(plan.seed).with_timeout(Some(TOO_LONG));
    let world = World::new(plan.clone(), story);
    let ended = catch_unwind(AssertUnwindSafe(|| Runner::new(config).start(|context| live(context, engines, world))));
    ended.unwrap_or_else(|panic| {
        let said = panic.downcast::<String>().map_or_else(|_| "it panicked".into(), |said| *said);
        Outcome::of(Violation { invariant: invariant::OPENS, detail: format!("an engine ended: {said}") })
    })
}

async fn live(context: Context, engines: Engines, mut world: World) -> Outcome {
    let (arrives, mut arrivals) = mpsc::unbounded_channel();
    let mut room = Room::new(context, engines, &world.plan, arrives).await;
    loop {
        room.obey(&mut world).await;
        room.join(&world).await;
        if world.is_over() {
            break;
        }
        tokio::select! {
            biased;
            Some((member, life, delivery)) = arrivals.recv() => {
                world.delivered(room.committee.now_ms(), (member, life), delivery);
            }
            () = room.committee.sleep_until_ms(world.next_at()) => world.next_event(),
        }
    }
    let faults = (0..world.plan.members).filter(|member| world.plan.is_honest(*member));
    let faults = faults.filter_map(|member| room.committee.handle(member)).map(|handle| handle.status().faults).sum();
    world.tally.add("votes for two things noticed", faults);
    world.outcome()
}

impl Room {
    async fn new(context: Context, engines: Engines, plan: &Plan, arrives: mpsc::UnboundedSender<Arrival>) -> Self {
        let settings = Settings {
            members: plan.members,
            max_bytes: 16_000,
            max_commands: 20,
            max_command_bytes: 4_000,
            heartbeat_ms: 400,
        };
        let committee = Committee::new(context, settings, 0).await;
        let forgets = plan.has(Mutation::VotesNotDurable);
        let disk = |member| if forgets { Committee::forgetful_disk(member) } else { Committee::disk(member) };
        Self {
            committee,
            engines,
            disks: (0..plan.members).map(disk).collect(),
            dice: Dice(plan.seed),
            links: vec![vec![None; plan.members]; plan.members],
            arrives,
        }
    }

    /// Does what the world asks.
    async fn obey(&mut self, world: &mut World) {
        let asked = world.asked();
        // At once, before any engine notices that its consumer is gone.
        let crash = |ask: &Ask| if let Ask::Crash(member) = ask { Some(*member) } else { None };
        let crashed: Vec<usize> = asked.iter().filter_map(crash).collect();
        self.committee.crash(&crashed).await;
        for ask in asked {
            match ask {
                Ask::Start(member) => self.start(world, member).await,
                Ask::Crash(member) => self.disks[member].crash(|sides| self.dice.roll(sides)),
                // What is too large, or too much, a member refuses.
                Ask::Submit(member, command) => {
                    let _ = self.committee.handle(member).map(|handle| handle.submit(command));
                }
                Ask::WakeAt(member, time_ms) => {
                    if let Some(handle) = self.committee.handle(member) {
                        handle.wake_at(time_ms);
                    }
                }
            }
        }
    }

    async fn start(&mut self, world: &mut World, member: usize) {
        let consumer = self.consumer(member, world.members[member].life);
        let start = Start { disk: self.disks[member].clone(), floor: None, consumer };
        if self.engines.twins && !world.plan.is_honest(member) {
            world.tally.count("lie: engine runs twice");
            let others: Vec<usize> = (0..world.plan.members).filter(|other| *other != member).collect();
            let each = others.len() * 2 / 3;
            let friends = [&others[..each], &others[others.len() - each..]];
            self.committee.start_twins(member, friends, start, alone()).await;
        } else {
            self.committee.start(member, start).await;
        }
    }

    /// Hands everything to the world.
    fn consumer(&self, member: usize, life: u32) -> Consumer {
        let arrives = self.arrives.clone();
        Box::new(move |_, mut deliveries| {
            Box::pin(async move {
                while let Some(delivery) = deliveries.recv().await {
                    let _ = arrives.send((member, life, delivery));
                }
            })
        })
    }

    /// Cuts and joins as the world's network is cut and joined.
    async fn join(&mut self, world: &World) {
        let members = self.links.len();
        for (from, to) in (0..members).flat_map(|from| (0..members).map(move |to| (from, to))) {
            let wanted = (from != to && world.network.is_open(from, to)).then(|| self.link(world));
            if self.links[from][to] == wanted {
                continue;
            }
            match wanted {
                Some(link) => self.committee.link(from, to, link).await,
                None => self.committee.cut(from, to).await,
            }
            self.links[from][to] = wanted;
        }
    }

    fn link(&self, world: &World) -> Link {
        if world.calm_since.is_some() {
            return Link { latency_ms: 8, jitter_ms: 2, loss: 0 };
        }
        let loss = u8::try_from(world.plan.loss).expect("percent");
        Link { latency_ms: 15, jitter_ms: self.engines.jitter_ms, loss }
    }
}

/// Acknowledges everything and keeps nothing.
fn alone() -> Consumer {
    Box::new(|_, mut deliveries| {
        Box::pin(async move {
            while let Some(delivery) = deliveries.recv().await {
                delivery.acknowledge();
            }
        })
    })
}
