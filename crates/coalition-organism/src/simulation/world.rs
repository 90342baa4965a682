//! The world of one seed: an event queue, and everything that reacts to events.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    rc::Rc,
};

use super::{
    check::{Answers, Record, Tally, Violation, invariant},
    clients::{Reader, Writer},
    committee::Committee,
    liar::Liar,
    member::{Dead, Member, Process},
    network::Network,
    order::Oracle,
    plan::{Ms, Plan},
    rng::Rng,
    settled::Auditor,
    whole::Seam,
};
use crate::wire::{EvidenceRequest, FollowRequest, StatePartRequest, StateRequest, Write, WriteAnswer};

/// Simulated time after the last fault by which everything must be well.
const SETTLE_MS: Ms = 30_000;

/// What happens.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// The engine may order a batch.
    Batch,
    /// The engine may hand a member its next batch.
    Offer(usize, u32),
    /// A member's batch loop makes its next step.
    Step(usize, u32),
    /// A member repeats what the others seem to have missed.
    Repeat(usize, u32),
    /// A call a member holds may be due.
    Due(usize, u32),
    Arrive(usize, usize, Packet),
    Crash,
    /// All members lose power.
    Blackout,
    Restart(usize),
    Partition,
    Heal(usize),
    ClockJump,
    RollBack(usize),
    Lie(usize),
    Poll(usize, u64),
    ReaderRestart,
    Write(usize, u64),
    /// The newest head is asked of a quorum.
    Audit,
    /// A client's call has taken too long.
    Late(usize, u64),
}

#[derive(Clone, Debug)]
pub(super) enum Packet {
    Gossip(Rc<[u8]>),
    Request(u64, Ms, Request),
    Reply(u64, Reply),
}

#[derive(Clone, Debug)]
pub(super) enum Request {
    Write(usize, Write),
    Follow(usize, Rc<FollowRequest>),
    Evidence(usize, Rc<EvidenceRequest>),
    State(usize, Rc<StateRequest>),
    StatePart(usize, Rc<StatePartRequest>),
    Settled(usize),
}

#[derive(Clone, Debug)]
pub(super) enum Reply {
    Write(WriteAnswer),
    Follow(Vec<u8>),
    Evidence(Vec<u8>),
    State(Vec<u8>),
    StatePart(Vec<u8>),
    Settled(String),
    Fault(&'static str),
}

/// A digest of all that happened, and the story itself if somebody wants to read it.
#[derive(Debug)]
pub(super) struct Trace {
    hash: u64,
    pub(super) story: Option<Vec<String>>,
}

impl fmt::Write for Trace {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if let Some(line) = self.story.as_mut().and_then(|story| story.last_mut()) {
            line.push_str(text);
        }
        Ok(())
    }
}

/// How a run ended.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) violation: Option<Violation>,
    pub(super) events: u64,
    pub(super) simulated_ms: Ms,
    pub(super) digest: u64,
    pub(super) tally: Tally,
    pub(super) story: Vec<String>,
}

impl Outcome {
    /// A run of which nothing else is left.
    pub(super) fn of(violation: Violation) -> Self {
        let (violation, tally) = (Some(violation), Tally::default());
        Self { violation, events: 0, simulated_ms: 0, digest: 0, tally, story: Vec::new() }
    }
}

pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) committee: &'static Committee,
    pub(super) rng: Rng,
    pub(super) now: Ms,
    queue: BTreeMap<(Ms, u64), Event>,
    scheduled: u64,
    pub(super) oracle: Oracle,
    /// Commands that members took and the oracle has not ordered yet.
    pub(super) pending: Vec<(usize, Vec<u8>)>,
    /// Where real engines order in the oracle's place.
    pub(super) seam: Option<Seam>,
    pub(super) network: Network,
    pub(super) members: Vec<Member>,
    pub(super) liars: BTreeMap<usize, Liar>,
    pub(super) readers: Vec<Reader>,
    pub(super) writers: Vec<Writer>,
    pub(super) auditor: Auditor,
    pub(super) records: Vec<Vec<Record>>,
    pub(super) answers: Answers,
    pub(super) calls: u64,
    pub(super) tally: Tally,
    pub(super) violation: Option<Violation>,
    pub(super) trace: Trace,
    events: u64,
    /// Since when nothing goes wrong any more.
    pub(super) calm_since: Option<Ms>,
}

impl World {
    pub(super) fn new(plan: Plan, story: bool) -> Self {
        let committee = Committee::of(plan.members);
        let clients = plan.readers + plan.writers + 1;
        let mut rng = Rng::new(plan.seed);
        let readers = (0..plan.readers).map(|i| Reader::new(&plan, committee, i, &mut rng)).collect();
        let writers = (0..plan.writers).map(|i| Writer::new(&plan, i, &mut rng)).collect();
        let seam = plan.engines.map(|_| Seam::new(plan.members));
        let mut world = Self {
            oracle: Oracle::new(committee, &plan),
            network: Network::new(plan.members, clients),
            members: (0..plan.members).map(|_| Member::new(plan.organisms)).collect(),
            liars: plan.liars.iter().map(|member| (*member, Liar::default())).collect(),
            records: vec![vec![Record::default(); plan.organisms]; plan.members],
            trace: Trace { hash: 0xcbf2_9ce4_8422_2325, story: story.then(Vec::new) },
            plan,
            committee,
            rng,
            now: 0,
            queue: BTreeMap::new(),
            scheduled: 0,
            pending: Vec::new(),
            seam,
            readers,
            writers,
            auditor: Auditor::default(),
            answers: Answers::default(),
            calls: 0,
            tally: Tally::default(),
            violation: None,
            events: 0,
            calm_since: None,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for member in 0..self.plan.members {
            self.start(member);
        }
        if self.seam.is_none() {
            self.after(50, Event::Batch);
        }
        for reader in 0..self.plan.readers {
            self.after(1, Event::Poll(reader, 0));
        }
        for writer in 0..self.plan.writers {
            let pause = self.rng.range(1, 300);
            self.after(pause, Event::Write(writer, 0));
        }
        self.after(100, Event::Audit);
        for liar in self.plan.liars.clone() {
            self.after(100, Event::Lie(liar));
        }
        if let Some(member) = self.plan.rolled_back {
            let at = self.rng.range(500, self.plan.chaos_ms);
            self.after(at, Event::RollBack(member));
        }
        if let Some(pause) = self.plan.partition_every_ms {
            self.after(pause, Event::Partition);
        }
        if self.plan.crashes > 0 {
            let (crash, restart) = (self.rng.range(100, 2_000), self.rng.range(500, 2_000));
            self.after(crash, Event::Crash);
            self.after(restart, Event::ReaderRestart);
            if self.rng.percent(15) {
                let at = self.rng.range(500, self.plan.chaos_ms);
                self.after(at, Event::Blackout);
            }
        }
        if self.rng.percent(30) {
            self.after(300, Event::ClockJump);
        }
    }

    /// Runs to the end.
    pub(super) fn run(mut self) -> Outcome {
        while !self.is_over() {
            self.next_event();
        }
        self.outcome()
    }

    /// Whether everything has come to its end, or something has gone wrong; ends the faults when it is time for that.
    pub(super) fn is_over(&mut self) -> bool {
        match self.calm_since {
            _ if self.violation.is_some() => return true,
            None if self.now >= self.plan.chaos_ms || self.events >= self.plan.chaos_events => self.calm_down(),
            Some(_) if self.missing().is_none() => return true,
            Some(since) if self.now > since + SETTLE_MS => {
                let missing = self.missing().unwrap_or_default();
                self.fail(invariant::LIVE, format!("{SETTLE_MS} ms after the last fault {missing}"));
                return true;
            }
            _ => {}
        }
        false
    }

    /// When the next event happens.
    pub(super) fn next_at(&self) -> Ms {
        self.queue.first_key_value().expect("members repeat for ever").0.0
    }

    pub(super) fn next_event(&mut self) {
        let Some(((at, _), event)) = self.queue.pop_first() else { unreachable!("members repeat for ever") };
        self.begins(at);
        self.tell(&event);
        self.handle(event);
        self.check();
    }

    /// Something happens now.
    pub(super) fn begins(&mut self, at: Ms) {
        self.now = self.now.max(at);
        self.events += 1;
        if let Some(story) = &mut self.trace.story {
            story.push(String::new());
        }
    }

    pub(super) fn outcome(mut self) -> Outcome {
        if self.violation.is_none() {
            self.check_end();
        }
        self.tally.add("write acknowledged", self.answers.iter().count() as u64);
        self.tally.add("batch", self.oracle.batches.len() as u64);
        let story = self.trace.story.take().unwrap_or_default();
        Outcome {
            violation: self.violation,
            events: self.events,
            simulated_ms: self.now,
            digest: self.trace.hash ^ self.rng.next(),
            tally: self.tally,
            story,
        }
    }

    fn tell(&mut self, event: &Event) {
        use fmt::Write as _;
        let _ = write!(self.trace, "{:>6} ms  ", self.now);
        let _ = match event {
            Event::Arrive(from, to, Packet::Gossip(bytes)) => {
                write!(self.trace, "gossip {from} to {to}: {}", super::report::gossip(bytes))
            }
            Event::Arrive(from, to, Packet::Request(call, _, request)) => {
                write!(self.trace, "call {call} {from} to {to}: {}", super::report::request(request))
            }
            Event::Arrive(from, to, Packet::Reply(call, reply)) => {
                write!(self.trace, "reply {call} {from} to {to}: {}", super::report::reply(reply))
            }
            other => write!(self.trace, "{other:?}"),
        };
    }

    /// Adds to the story of the current event.
    pub(super) fn note(&mut self, what: fmt::Arguments<'_>) {
        use fmt::Write as _;
        let _ = write!(self.trace, "; {what}");
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Batch => self.order_batch(),
            Event::Offer(member, life) => self.alive(member, life, |world, p| world.offer(member, p)),
            Event::Step(member, life) => self.alive(member, life, |world, p| world.step(member, p)),
            Event::Repeat(member, life) => self.alive(member, life, |world, p| world.repeat(member, p)),
            Event::Due(member, life) => self.alive(member, life, |_, _| Ok(())),
            Event::Arrive(from, to, packet) => self.arrive(from, to, packet),
            Event::Restart(member) => self.start(member),
            Event::Heal(partition) => self.network.heal(partition),
            Event::Poll(reader, call) => self.poll(reader, call),
            Event::Write(writer, call) => self.next_write(writer, call),
            Event::Audit => self.audit(),
            Event::Late(client, call) => self.late(client, call),
            Event::Lie(liar) => self.lie(liar),
            _ if self.calm_since.is_some() => {}
            Event::Crash => {
                let member = self.rng.index(self.plan.members);
                if self.members[member].process.is_some() {
                    self.crash(member, Dead::Crash("crash: at any instant"));
                }
                let pause = self.rng.range(500, 3_000);
                self.after(pause, Event::Crash);
            }
            Event::Blackout => {
                self.tally.count("crash: all at once");
                for member in 0..self.plan.members {
                    if self.members[member].process.is_some() {
                        self.crash(member, Dead::Crash("crash: at any instant"));
                    }
                }
            }
            Event::Partition => self.partition(),
            Event::ClockJump => {
                let member = self.rng.index(self.plan.members);
                self.members[member].clock_ms = self.rng.next() >> self.rng.pick(&[0, 10, 30, 45]);
                self.tally.count("clock jump");
                self.after(700, Event::ClockJump);
            }
            Event::RollBack(member) => self.roll_back(member),
            Event::ReaderRestart => self.restart_reader(),
        }
    }

    fn alive(&mut self, member: usize, life: u32, act: impl FnOnce(&mut Self, &mut Process) -> Result<(), Dead>) {
        if self.members[member].life == life {
            self.at_member(member, act);
        }
    }

    /// Lets a running member do something; it may not survive it.
    pub(super) fn at_member(&mut self, member: usize, act: impl FnOnce(&mut Self, &mut Process) -> Result<(), Dead>) {
        let Some(mut process) = self.members[member].process.take() else { return };
        match act(self, &mut process) {
            Ok(()) => {
                self.answer_calls(member, &mut process);
                self.members[member].process = Some(process);
            }
            Err(dead) => self.crash(member, dead),
        }
    }

    fn arrive(&mut self, from: usize, to: usize, packet: Packet) {
        if !self.network.is_open(from, to) {
            self.tally.count("message into a cut");
            return;
        }
        match packet {
            Packet::Gossip(bytes) => {
                if let Some(liar) = self.liars.get_mut(&to) {
                    liar.overhear(&bytes);
                }
                self.at_member(to, |world, p| world.gossip_in(to, p, from, &bytes));
            }
            Packet::Request(call, until, request) => {
                if self.lie_to_client(to, from, call, &request) {
                    return;
                }
                self.at_member(to, |world, p| {
                    world.called(to, p, (from, call, until), request);
                    Ok(())
                });
            }
            Packet::Reply(call, reply) => self.replied(to, from, call, reply),
        }
    }

    fn partition(&mut self) {
        let (partition, shape) = self.network.partition(&mut self.rng);
        self.tally.count("partition");
        self.tally.count(shape);
        self.note(format_args!("{shape}"));
        let (lasts, pause) = (self.rng.range(200, 2_000), self.plan.partition_every_ms.unwrap_or(1_000));
        self.after(lasts, Event::Heal(partition));
        self.after(pause, Event::Partition);
    }

    fn calm_down(&mut self) {
        self.calm_since = Some(self.now);
        self.network.heal_all();
        for member in 0..self.plan.members {
            if self.members[member].process.is_none() {
                self.after(1, Event::Restart(member));
            }
        }
    }

    /// What is not well yet, once faults have ended.
    fn missing(&self) -> Option<String> {
        if let Some(writer) = self.writers.iter().position(|writer| !writer.is_done()) {
            return Some(format!("writer {writer} has no answer"));
        }
        if !self.auditor.answered_in_calm {
            return Some("no quorum told what is settled".into());
        }
        for (organism, truth) in self.oracle.truths.iter().enumerate() {
            let size = truth.log.size();
            for member in (0..self.plan.members).filter(|member| self.is_correct(*member)) {
                let published = self.members[member].process.as_ref().and_then(|p| p.organisms[organism].published());
                if published != Some(size) {
                    return Some(format!("member {member} published {published:?} of {size} entries"));
                }
            }
            let behind = self.readers.iter().position(|r| r.organism == organism && r.size() != size);
            if let Some(reader) = behind {
                return Some(format!("reader {reader} shows {} of {size} entries", self.readers[reader].size()));
            }
        }
        None
    }

    /// Neither a liar nor one whose disk lost what was durable.
    pub(super) fn is_correct(&self, member: usize) -> bool {
        self.plan.is_honest(member) && !self.members[member].lost
    }

    pub(super) fn fail(&mut self, invariant: &'static str, detail: String) {
        self.violation.get_or_insert(Violation { invariant, detail });
    }

    pub(super) fn after(&mut self, pause: Ms, event: Event) {
        self.scheduled += 1;
        self.queue.insert((self.now + pause, self.scheduled), event);
    }

    pub(super) fn send(&mut self, from: usize, to: usize, packet: &Packet) {
        let calm = self.calm_since.is_some();
        let delays = self.network.send(&self.plan, calm, &mut self.rng, &mut self.tally, (from, to));
        for delay in delays {
            self.after(delay, Event::Arrive(from, to, packet.clone()));
        }
    }

    /// Members that hear and are heard by a quorum, themselves included, and run: what the engine needs to go on.
    pub(super) fn connected(&self) -> BTreeSet<usize> {
        let up: Vec<usize> = (0..self.plan.members).filter(|m| self.members[*m].process.is_some()).collect();
        let hears = |a: usize| up.iter().filter(|b| self.network.is_open_both_ways(a, **b)).count();
        up.iter().copied().filter(|member| hears(*member) >= self.plan.quorum()).collect()
    }
}
