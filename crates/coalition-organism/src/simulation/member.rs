//! A member: the driver around the real `Execution`, `Certifier` and `Cosigner`, step by step, on a simulated disk.
//!
//! The steps are those of `member::executor` and `member::gossip`, in their order; between any two the member may crash.

use std::{
    cell::Cell,
    collections::BTreeMap,
    rc::Rc,
    sync::{Arc, Mutex},
};

use coalition_log::{
    Context, Entry,
    checkpoint::{Checkpoint, SignatureLine, SignedCheckpoint},
    entry::{WriteId, is_host_kind},
    tree::Hash,
};
use coalition_order::Batch;
use coalition_order_sim::Ack;

use super::{
    check::{Met, invariant},
    disk::{Disk, Guard, Log, Record, Unsynced, at},
    machine::{Book, Keeper, SKIPPED_KIND, tick_of},
    order::{decode, execute, is_clock},
    plan::{Ms, Mutation},
    serve::Call,
    stage::Stage,
    states::restore_newest,
    whole::Ask,
    world::{Event, Packet, World},
};
use crate::{
    certifier::{Certifier, Stragglers},
    execution::{Execution, NewState, Outcome},
    wire::{self, Gossip, Ordered},
};

/// Why a member's process ended.
#[derive(Clone, Debug)]
pub(super) enum Dead {
    /// At this point.
    Crash(&'static str),
    /// It found something that must not be.
    Failed(String),
}

/// What survives a member's crashes.
pub(super) struct Member {
    pub(super) disks: Vec<Disk>,
    pub(super) process: Option<Process>,
    pub(super) life: u32,
    /// Its disk lost what was durable; it must never sign again.
    pub(super) lost: bool,
    /// What its wall clock is off by.
    pub(super) clock_ms: Ms,
    /// The last batch the engine knows to be done, and the last it knows so durably.
    acknowledged: u64,
    acknowledged_durably: u64,
}

/// One life of a member.
pub(super) struct Process {
    pub(super) organisms: Vec<Hosted>,
    next_height: u64,
    work: Option<Work>,
    pub(super) parked: Vec<Call>,
    pub(super) met: Met,
    stragglers: Stragglers,
}

/// One organism in a member's memory, as `member::hosted::Hosted` is.
pub(super) struct Hosted {
    pub(super) execution: Execution,
    pub(super) book: Arc<Mutex<Book>>,
    pub(super) certifier: Certifier,
    pub(super) log: Log,
    pub(super) head: Option<SignedCheckpoint>,
    last_height: Option<u64>,
    kept: u64,
    /// Entries executed that are not durable yet.
    pub(super) is_ahead: bool,
    /// What planted bugs count.
    pub(super) counted: BTreeMap<(u64, Hash), BTreeMap<String, SignatureLine>>,
    sent: Option<u64>,
    /// The size at which the harness compared its state last.
    pub(super) checked: Cell<Option<u64>>,
}

impl Hosted {
    /// Size of the published head.
    pub(super) fn published(&self) -> Option<u64> {
        self.head.as_ref().map(|note| note.checkpoint.size)
    }
}

/// A batch under way.
struct Work {
    batch: Arc<Batch>,
    /// The duty to tell a real engine.
    ack: Option<Ack>,
    ordered: Vec<Ordered>,
    organism: usize,
    stage: Stage,
    entries: Vec<Entry>,
    outcomes: Vec<(WriteId, Outcome)>,
    note: Option<SignedCheckpoint>,
    state: Option<NewState>,
}

impl Work {
    fn acknowledge(&mut self) {
        if let Some(ack) = self.ack.take() {
            ack.acknowledge();
        }
    }
}

const REPEAT_MS: Ms = 500;

impl Member {
    pub(super) fn new(organisms: usize) -> Self {
        Self {
            disks: vec![Disk::new(); organisms],
            process: None,
            life: 0,
            lost: false,
            clock_ms: 0,
            acknowledged: 0,
            acknowledged_durably: 0,
        }
    }
}

impl World {
    /// Opens the logs, folds them, joins; as `member::open`.
    pub(super) fn start(&mut self, member: usize) {
        if self.members[member].process.is_some() {
            return;
        }
        match self.open(member) {
            Ok(process) => {
                let life = self.members[member].life;
                self.members[member].process = Some(process);
                self.tell_engine(Ask::Start(member));
                self.after(1, Event::Offer(member, life));
                let pause = self.rng.range(1, REPEAT_MS);
                self.after(pause, Event::Repeat(member, life));
            }
            Err(reason) if self.is_correct(member) => {
                self.fail(invariant::OPENS, format!("member {member} refuses its own disk: {reason}"));
            }
            Err(_) => self.tally.count("rolled back disk refused"),
        }
    }

    fn open(&mut self, member: usize) -> Result<Process, String> {
        let mut organisms = Vec::new();
        for organism in 0..self.plan.organisms {
            organisms.push(self.open_log(member, organism)?);
        }
        Ok(Process {
            organisms,
            next_height: self.members[member].acknowledged_durably + 1,
            work: None,
            parked: Vec::new(),
            met: Met::default(),
            stragglers: Stragglers::default(),
        })
    }

    fn open_log(&mut self, member: usize, organism: usize) -> Result<Hosted, String> {
        let is_clock = is_clock(organism, self.plan.organisms);
        let book = Arc::default();
        let odd_life = u8::try_from(self.members[member].life % 2).unwrap_or(0);
        let quirk =
            (self.plan.has(Mutation::Nondeterministic) && member == 1).then_some(odd_life).filter(|odd| *odd > 0);
        let keeper = Keeper { book: Arc::clone(&book), is_clock, quirk };
        let verifier = self.committee.verifiers[organism].clone();
        let epochs = self.committee.epochs(organism);
        let configure = |keeper: Keeper| {
            let execution = Execution::new(Box::new(keeper), epochs.clone());
            execution.with_clock(is_clock.then_some(tick_of)).with_state_every(self.plan.state_every)
        };
        let mut execution = configure(keeper);
        let mut log = Log::default();
        let disk = &mut self.members[member].disks[organism];
        disk.records.iter().flat_map(|record| &record.entries).for_each(|bytes| log.push(Arc::clone(bytes)));
        let known = disk.checkpoint.as_ref().map(|note| SignedCheckpoint::parse(note.as_bytes()).unwrap());
        let certified = known.as_ref().map_or(0, |known| known.checkpoint.size);
        let fresh = || configure(Keeper::new(is_clock));
        let restored = restore_newest(&self.plan, disk, &log, certified, &mut execution, fresh);
        for bytes in log.entries.iter().skip(at(execution.next_index())) {
            let mut entry = Entry::decode(bytes).map_err(|error| error.to_string())?;
            if self.plan.has(Mutation::ForgetWrites) {
                entry.write_id = WriteId::NONE;
            }
            if self.plan.has(Mutation::ForgetRetirement) && is_host_kind(&entry.kind) {
                entry.kind = SKIPPED_KIND.into();
            }
            execution.restore(&entry);
        }
        if self.plan.has(Mutation::ForgetTicks) {
            execution = execution.with_clock(is_clock.then_some(tick_of));
        }
        self.tally.add("member started from a state", u64::from(restored.restored));
        self.tally.add("damaged state set aside", restored.set_aside);
        let guard = disk.guard;
        match log.root_at(guard.size) {
            None => return Err(format!("{} entries were signed, the log has {}", guard.size, log.size())),
            Some(root) if root != guard.root => return Err(format!("another root was signed at {}", guard.size)),
            Some(_) => {}
        }
        if self.plan.has(Mutation::TailCutTooFar) {
            disk.records.pop();
        }
        let known = known.map(|note| verifier.certify(&note)).transpose().map_err(|error| error.to_string())?;
        if known.as_ref().is_some_and(|known| log.root_at(known.size()) != Some(known.root())) {
            return Err("the log is not the one certified".into());
        }
        Ok(Hosted {
            execution,
            book,
            head: known.as_ref().map(|known| known.note().clone()),
            kept: known.as_ref().map_or(0, |known| known.size()),
            certifier: Certifier::new(verifier, known),
            last_height: disk.records.last().map(|record| record.height),
            log,
            is_ahead: false,
            counted: BTreeMap::new(),
            sent: None,
            checked: Cell::new(None),
        })
    }

    /// Ends a member's process.
    pub(super) fn crash(&mut self, member: usize, dead: Dead) {
        let how = match dead {
            Dead::Crash(point) => point,
            Dead::Failed(reason) if self.is_correct(member) => {
                self.fail(invariant::OPENS, format!("member {member} had to stop: {reason}"));
                return;
            }
            Dead::Failed(_) => "crash: it gave up",
        };
        self.tally.count(how);
        self.note(format_args!("member {member} dies, {how}"));
        let state = &mut self.members[member];
        state.process = None;
        state.life += 1;
        for disk in &mut state.disks {
            disk.crash(&mut self.rng, &mut self.tally);
        }
        state.acknowledged_durably = self.rng.range(state.acknowledged_durably, state.acknowledged + 1);
        state.acknowledged = state.acknowledged_durably;
        let rng = &mut self.rng;
        self.pending.retain(|(taken_by, _)| *taken_by != member || rng.percent(50));
        self.tell_engine(Ask::Crash(member));
        let pause = if self.calm_since.is_some() { 1 } else { self.rng.range(20, 1_500) };
        self.after(pause, Event::Restart(member));
    }

    /// A disk that comes back older than its guard.
    pub(super) fn roll_back(&mut self, member: usize) {
        if self.members[member].process.is_some() {
            self.crash(member, Dead::Crash("crash: at any instant"));
        }
        for organism in 0..self.plan.organisms {
            let signed = self.records[member][organism].signed_size;
            if self.members[member].disks[organism].roll_back(signed) {
                self.members[member].lost = true;
            }
        }
        self.tally.add("disk rolled back", u64::from(self.members[member].lost));
    }

    fn crash_point(&mut self, point: &'static str) -> Result<(), Dead> {
        let crashes = self.calm_since.is_none() && self.rng.range(0, 1_000) < self.plan.crashes;
        if crashes { Err(Dead::Crash(point)) } else { Ok(()) }
    }

    /// The engine hands over the next batch, if there is one and the member hears anybody.
    pub(super) fn offer(&mut self, member: usize, p: &mut Process) -> Result<(), Dead> {
        if p.work.is_some() {
            return Ok(());
        }
        let life = self.members[member].life;
        let Some((batch, ack)) = self.next_batch(member, p.next_height) else {
            // An engine says when there is one.
            if self.seam.is_none() {
                let pause = self.rng.range(10, 60);
                self.after(pause, Event::Offer(member, life));
            }
            return Ok(());
        };
        if p.organisms.iter().any(|hosted| hosted.last_height.is_some_and(|last| last >= batch.height)) {
            self.tally.count("batch delivered again");
        }
        let ordered = decode(&batch);
        let (entries, outcomes) = (Vec::new(), Vec::new());
        p.work = Some(Work {
            batch,
            ack,
            ordered,
            organism: 0,
            stage: Stage::Execute,
            entries,
            outcomes,
            note: None,
            state: None,
        });
        self.after(1, Event::Step(member, life));
        Ok(())
    }

    /// One step of the batch loop.
    pub(super) fn step(&mut self, member: usize, p: &mut Process) -> Result<(), Dead> {
        let Some(mut work) = p.work.take() else { return Ok(()) };
        self.crash_point(work.stage.crash())?;
        self.note(format_args!("{:?} {}", work.stage, work.batch.height));
        let life = self.members[member].life;
        if work.organism == self.plan.organisms {
            let done = work.batch.height;
            self.members[member].acknowledged = self.members[member].acknowledged.max(done);
            work.acknowledge();
            self.ask_to_wake(member, p, &work.batch);
            p.next_height = done + 1;
            self.after(1, Event::Offer(member, life));
            return Ok(());
        }
        let stage = work.stage;
        let next = self.stage(member, p, &mut work)?.or_else(|| work.state.is_some().then_some(Stage::State));
        work.stage = next.unwrap_or(Stage::Execute);
        work.organism += usize::from(next.is_none());
        p.work = Some(work);
        let waits_for_disk = matches!(stage, Stage::Write | Stage::Guard) && self.calm_since.is_none();
        let is_slow = waits_for_disk && self.rng.percent(self.plan.slow_disk);
        if is_slow {
            self.tally.count("disk slow");
        }
        let pause = if is_slow { self.rng.range(50, 600) } else { self.rng.range(0, 3) };
        self.after(pause, Event::Step(member, life));
        Ok(())
    }

    /// Does what a stage does; `None` when this organism is done.
    fn stage(&mut self, member: usize, p: &mut Process, work: &mut Work) -> Result<Option<Stage>, Dead> {
        let organism = work.organism;
        match work.stage {
            Stage::Execute => return Ok(self.execute(member, p, work)),
            Stage::Write => {
                let entries = work.entries.iter().map(|entry| entry.encode().unwrap().into()).collect();
                let record = Record { height: work.batch.height, entries };
                self.members[member].disks[organism].write(Unsynced::Append(record));
                if self.plan.has(Mutation::AcknowledgeBeforeSync) {
                    self.members[member].acknowledged_durably = work.batch.height;
                    self.members[member].acknowledged = work.batch.height;
                    work.acknowledge();
                }
                if self.plan.has(Mutation::SignBeforeSync) {
                    self.appended(p, work);
                    return Ok(Some(Stage::Answer));
                }
                return Ok(Some(Stage::Sync));
            }
            Stage::Sync => {
                self.members[member].disks[organism].sync_log();
                self.appended(p, work);
                return Ok(Some(Stage::Answer));
            }
            Stage::Answer => {
                for (id, outcome) in work.outcomes.drain(..) {
                    p.decided(organism, id, &outcome);
                }
                return Ok((!work.entries.is_empty()).then_some(Stage::Guard));
            }
            Stage::Guard => {
                let hosted = &p.organisms[organism];
                if hosted.certifier.certified_size() > hosted.log.size() {
                    return Ok(None);
                }
                let head = self.head(p, organism);
                return self
                    .advance_guard(member, organism, head)
                    .map(|sync| Some(if sync { Stage::GuardSync } else { Stage::Sign }));
            }
            Stage::GuardSync => self.members[member].disks[organism].sync_guard(),
            Stage::Sign => {
                work.note = Some(self.sign(member, organism, self.head(p, organism), work.batch.time_ms / 1_000));
                if self.plan.has(Mutation::SignBeforeSync) {
                    self.members[member].disks[organism].sync_log();
                }
                return Ok(Some(Stage::Send));
            }
            Stage::Send => {
                let note = work.note.as_ref().expect("signed before");
                p.organisms[organism].sent = Some(note.checkpoint.size);
                self.gossip(member, organism, note);
                return Ok(Some(Stage::Own));
            }
            Stage::Own => {
                let note = work.note.take().expect("signed before");
                self.cosigned(member, p, organism, &note)?;
                return Ok(Some(Stage::Reached));
            }
            Stage::Reached => {
                self.publish_reached(p, organism)?;
                return Ok(None);
            }
            Stage::State => {
                let NewState { covers, bytes } = work.state.take().expect("there is one");
                self.members[member].disks[organism].write(Unsynced::State(covers, bytes));
                return Ok(Some(Stage::StateSync));
            }
            Stage::StateSync => {
                self.members[member].disks[organism].sync_state();
                self.tally.count("state kept");
                return Ok(None);
            }
        }
        Ok(Some(Stage::Sign))
    }

    fn execute(&mut self, member: usize, p: &mut Process, work: &mut Work) -> Option<Stage> {
        let (organism, batch) = (work.organism, &work.batch);
        let tick = p.organisms[0].execution.tick_at(batch.time_ms);
        let own_clock = self.plan.has(Mutation::OwnClock) && member == 2;
        let time_ms = if own_clock { self.now.max(1) } else { batch.time_ms };
        let cx = Context { height: batch.height, time_ms, tick: tick.unwrap_or(0) };
        let hosted = &mut p.organisms[organism];
        let again = hosted.execution.has_executed(batch.time_ms);
        if again && !self.plan.has(Mutation::ExecuteTwice) {
            return None;
        }
        let id = self.committee.organisms[organism];
        let done = execute(&mut hosted.execution, &cx, tick, &work.ordered, id);
        hosted.is_ahead = !done.entries.is_empty();
        if self.is_correct(member) && self.oracle.truths[organism].outcomes[&batch.height] != done.outcomes {
            let detail = format!("member {member} answers batch {} with {:?}", batch.height, done.outcomes);
            self.fail(invariant::OUTCOMES, detail);
        }
        (work.entries, work.outcomes, work.state) = (done.entries, done.outcomes, done.state);
        if self.plan.has(Mutation::AckBeforeCertified) {
            for (id, outcome) in &work.outcomes {
                p.decided(organism, *id, outcome);
            }
        }
        Some(if work.entries.is_empty() { Stage::Answer } else { Stage::Write })
    }

    fn appended(&mut self, p: &mut Process, work: &Work) {
        let hosted = &mut p.organisms[work.organism];
        for entry in &work.entries {
            hosted.log.push(entry.encode().unwrap().into());
        }
        hosted.last_height = Some(work.batch.height);
        hosted.is_ahead = false;
    }

    fn head(&self, p: &Process, organism: usize) -> Checkpoint {
        let log = &p.organisms[organism].log;
        let root = log.root_at(log.size()).expect("the log has its own size");
        Checkpoint { organism: self.committee.organisms[organism], size: log.size(), root }
    }

    /// As `store::guard::Guard::advance`; says whether the write must be synced.
    fn advance_guard(&mut self, member: usize, organism: usize, head: Checkpoint) -> Result<bool, Dead> {
        if self.plan.has(Mutation::NoGuard) {
            return Ok(false);
        }
        let disk = &mut self.members[member].disks[organism];
        let last = disk.guard;
        if head.size < last.size || (head.size == last.size && head.root != last.root) {
            return Err(Dead::Failed(format!("its guard stands at {}, asked to sign {}", last.size, head.size)));
        }
        if head.size == last.size {
            return Ok(false);
        }
        disk.write(Unsynced::Guard(Guard { size: head.size, root: head.root }));
        Ok(!self.plan.has(Mutation::GuardNotDurable))
    }

    /// Makes a cosignature, and notes that it exists.
    fn sign(&mut self, member: usize, organism: usize, head: Checkpoint, time_s: u64) -> SignedCheckpoint {
        let quorum = self.plan.quorum();
        self.oracle.truths[organism].sign(quorum, member, head.size, head.root);
        if self.plan.is_honest(member) {
            let record = &mut self.records[member][organism];
            let before = *record.signed.entry(head.size).or_insert(head.root);
            if before != head.root || head.size < record.signed_size {
                let detail = format!("member {member} signs {head:?} after {} and {before}", record.signed_size);
                self.fail(invariant::SIGNS_ONCE, detail);
            }
            let record = &mut self.records[member][organism];
            record.signed_size = record.signed_size.max(head.size);
        }
        let line = self.committee.cosigner(member, organism).sign(&head, time_s).expect("its own organism");
        SignedCheckpoint { checkpoint: head, signatures: vec![line] }
    }

    /// As `Gossiper::repeat`.
    pub(super) fn repeat(&mut self, member: usize, p: &mut Process) -> Result<(), Dead> {
        let life = self.members[member].life;
        if p.work.as_ref().is_some_and(|work| work.stage.is_locked()) {
            self.after(10, Event::Repeat(member, life));
            return Ok(());
        }
        for organism in 0..self.plan.organisms {
            self.publish_reached(p, organism)?;
            self.keep_certificate(member, p, organism)?;
            let hosted = &p.organisms[organism];
            let size = hosted.log.size();
            let is_silent = self.plan.has(Mutation::NoRepeat) && hosted.sent == Some(size);
            if hosted.published().is_some_and(|published| size <= published) || is_silent {
                continue;
            }
            let certified = hosted.head.as_ref().filter(|_| self.plan.has(Mutation::NoGuard));
            let head = certified.map_or_else(|| self.head(p, organism), |note| note.checkpoint);
            if self.advance_guard(member, organism, head)? {
                self.crash_point("crash: guard written, not synced")?;
                self.members[member].disks[organism].sync_guard();
                self.crash_point("crash: guard synced, not signed")?;
            }
            let now_s = self.now.wrapping_add(self.members[member].clock_ms) / 1_000;
            let note = self.sign(member, organism, head, now_s);
            p.organisms[organism].sent = Some(size);
            self.gossip(member, organism, &note);
            self.cosigned(member, p, organism, &note)?;
        }
        self.after(REPEAT_MS, Event::Repeat(member, life));
        Ok(())
    }

    fn keep_certificate(&mut self, member: usize, p: &mut Process, organism: usize) -> Result<(), Dead> {
        let hosted = &mut p.organisms[organism];
        let Some(head) = hosted.head.as_ref().filter(|head| head.checkpoint.size > hosted.kept) else { return Ok(()) };
        let disk = &mut self.members[member].disks[organism];
        disk.write(Unsynced::Checkpoint(head.to_string()));
        hosted.kept = head.checkpoint.size;
        self.crash_point("crash: checkpoint written, not synced")?;
        self.members[member].disks[organism].sync_checkpoint();
        Ok(())
    }

    fn gossip(&mut self, member: usize, organism: usize, note: &SignedCheckpoint) {
        let id = self.committee.organisms[organism];
        let bytes: Rc<[u8]> = wire::encode(&Gossip::Cosigned { organism: id, checkpoint: note.to_string() }).into();
        for peer in (0..self.plan.members).filter(|peer| *peer != member) {
            if self.plan.liars.contains(&member) {
                self.lie_about_head(member, peer, organism, note.checkpoint, &bytes);
            } else {
                self.send(member, peer, &Packet::Gossip(Rc::clone(&bytes)));
            }
        }
    }

    /// As `Gossiper::message`.
    pub(super) fn gossip_in(&mut self, member: usize, p: &mut Process, from: usize, bytes: &[u8]) -> Result<(), Dead> {
        let (id, checkpoint, is_certificate) = match wire::decode::<Gossip>(bytes) {
            Ok(Gossip::Cosigned { organism, checkpoint }) => (organism, checkpoint, false),
            Ok(Gossip::Certified { organism, checkpoint }) => (organism, checkpoint, true),
            Err(_) => return Ok(()),
        };
        let Some(organism) = self.committee.organism(id).filter(|at| *at < self.plan.organisms) else { return Ok(()) };
        let Ok(note) = SignedCheckpoint::parse(checkpoint.as_bytes()) else { return Ok(()) };
        if is_certificate {
            return self.learned(member, p, organism, &note);
        }
        self.help_if_behind(member, p, organism, from, &note);
        self.cosigned(member, p, organism, &note)
    }

    /// As `Gossiper::help_if_behind`.
    fn help_if_behind(
        &mut self,
        member: usize,
        p: &mut Process,
        organism: usize,
        from: usize,
        note: &SignedCheckpoint,
    ) {
        let published = p.organisms[organism].published();
        let helps = p.stragglers.missed(from, self.committee.organisms[organism], note.checkpoint.size, published);
        let only_smaller = self.plan.has(Mutation::NoHelpAtTheSameSize);
        if !helps || (only_smaller && published.is_none_or(|size| size <= note.checkpoint.size)) {
            return;
        }
        let Some(head) = &p.organisms[organism].head else { return };
        let (id, checkpoint) = (self.committee.organisms[organism], head.to_string());
        let bytes = wire::encode(&Gossip::Certified { organism: id, checkpoint });
        self.tally.count("straggler helped");
        self.send(member, from, &Packet::Gossip(bytes.into()));
    }
}
