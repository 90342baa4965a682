//! Readers that fail over and go on from what they saved, and writers that retry under one id wherever they are answered.

use std::rc::Rc;

use coalition::EvidencePointer;
use coalition_log::{
    Entry,
    checkpoint::SignedCheckpoint,
    entry::{WriteId, is_host_kind},
    evidence::Evidence,
    follow::{FollowError, Follower, HeadOutcome, Saved},
    retirement::RETIRED_CODE,
    tree::Hash,
};

use super::{
    check::invariant,
    committee::Committee,
    machine::Book,
    plan::{Ms, Mutation, Plan},
    rng::Rng,
    states::Taking,
    world::{Event, Packet, Reply, Request, World},
};
use crate::wire::{self, EvidenceRequest, FollowAnswer, FollowRequest, Payload, Write, WriteAnswer};

const POLL_MS: Ms = 600;
const WRITE_MS: Ms = 800;
/// A call is given up so much after the member should have answered.
const GRACE_MS: Ms = 400;

/// A follower of one log, as `crate::follower` drives one.
pub(super) struct Reader {
    pub(super) organism: usize,
    pub(super) core: Follower,
    member: usize,
    pub(super) call: u64,
    /// Whether it wants a state before anything else, how many said they keep none, and what it has of one.
    pub(super) wants_state: bool,
    pub(super) without_state: usize,
    pub(super) taking: Option<Taking>,
    /// Entries before what it shows, covered by the state it started from.
    pub(super) first: u64,
    /// What it shows: the leaves of the entries it released, and their fold.
    pub(super) shown: Vec<Hash>,
    pub(super) book: Book,
    saved: (Saved, u64, Vec<Hash>, Book),
    /// Releases that were compared with the committee's log.
    pub(super) checked: u64,
}

impl Reader {
    pub(super) fn new(plan: &Plan, committee: &Committee, reader: usize, rng: &mut Rng) -> Self {
        let organism = (plan.organisms - 1).min(reader);
        let core = Follower::new(committee.organisms[organism], &committee.roster).unwrap();
        let saved = (core.save(), 0, Vec::new(), Book::default());
        let member = rng.index(plan.members);
        Self {
            organism,
            core,
            member,
            call: 0,
            wants_state: false,
            without_state: 0,
            taking: None,
            first: 0,
            shown: Vec::new(),
            book: Book::default(),
            saved,
            checked: 0,
        }
    }

    /// Entries it has folded.
    pub(super) fn size(&self) -> u64 {
        self.first + self.shown.len() as u64
    }

    /// Begins again, wanting a certified state.
    pub(super) fn start_over(&mut self, core: Follower) {
        self.saved = (core.save(), 0, Vec::new(), Book::default());
        (self.core, self.first, self.checked, self.without_state) = (core, 0, 0, 0);
        (self.wants_state, self.taking, self.book) = (true, None, Book::default());
        self.shown.clear();
    }

    fn show(&mut self, entries: &[Entry]) {
        for entry in entries {
            self.shown.push(entry.leaf_hash().unwrap());
            if !is_host_kind(&entry.kind) {
                self.book.fold(entry);
            }
        }
    }

    /// Takes an answer as `crate::follower` does.
    fn accept(&mut self, answer: &FollowAnswer) -> Result<Vec<Entry>, FollowError> {
        let note = SignedCheckpoint::parse(answer.head.as_bytes()).map_err(FollowError::SavedNote)?;
        self.core.accept_head(&note, &answer.head_proof)?;
        if answer.entries.is_empty() {
            return Ok(Vec::new());
        }
        self.core.accept_entries(self.core.next_index(), &answer.entries, &answer.range_proof)
    }

    /// A planted bug: entries are believed as they come.
    fn believe(&mut self, answer: &FollowAnswer) -> Result<Vec<Entry>, FollowError> {
        let decoded = answer.entries.iter().map(|bytes| Entry::decode(bytes));
        decoded.collect::<Result<_, _>>().map_err(|source| FollowError::Entry { index: self.size(), source })
    }

    /// A planted bug: an older head is a reason to start over.
    fn start_over_if_older(&mut self, committee: &Committee, answer: &FollowAnswer) {
        let Ok(note) = SignedCheckpoint::parse(answer.head.as_bytes()) else { return };
        if matches!(self.core.accept_head(&note, &answer.head_proof), Ok(HeadOutcome::Older)) {
            self.core = Follower::new(committee.organisms[self.organism], &committee.roster).unwrap();
            self.shown.clear();
            self.first = 0;
            self.book = Book::default();
        }
    }
}

/// A client that writes.
pub(super) struct Writer {
    left: u64,
    member: usize,
    /// Fetches a proof before it believes an answer, as nothing else lets it.
    verifies: bool,
    write: Option<Pending>,
    call: u64,
    retires: bool,
    done: Vec<(usize, Write)>,
}

struct Pending {
    organism: usize,
    write: Write,
    /// What a member claims, and how many of its entries are proven.
    claim: Option<(usize, Vec<EvidencePointer>, usize)>,
    tries: usize,
}

impl Writer {
    pub(super) fn new(plan: &Plan, writer: usize, rng: &mut Rng) -> Self {
        let retires = plan.retires && writer == 0;
        let (member, verifies) = (rng.index(plan.members), rng.percent(60));
        Self { left: plan.writes, member, verifies, write: None, call: 0, retires, done: Vec::new() }
    }

    pub(super) fn is_done(&self) -> bool {
        self.left == 0 && self.write.is_none()
    }
}

impl World {
    pub(super) const fn auditor_node(&self) -> usize {
        self.plan.members + self.plan.readers + self.plan.writers
    }

    const fn reader_node(&self, reader: usize) -> usize {
        self.plan.members + reader
    }

    const fn writer_node(&self, writer: usize) -> usize {
        self.plan.members + self.plan.readers + writer
    }

    pub(super) fn call(&mut self, from: usize, to: usize, wait: Ms, request: Request) -> u64 {
        self.calls += 1;
        let call = self.calls;
        self.send(from, to, &Packet::Request(call, wait, request));
        self.after(wait + GRACE_MS, Event::Late(from, call));
        call
    }

    /// A reader asks for more, unless it has an answer coming.
    pub(super) fn poll(&mut self, reader: usize, call: u64) {
        let r = &self.readers[reader];
        if r.call != call {
            return;
        }
        let (head_size, mut next) = (r.core.head_size(), r.core.next_index());
        if self.plan.has(Mutation::RangeUnproven) {
            next = r.size();
        }
        let id = self.committee.organisms[r.organism];
        let wait_ms = u32::try_from(POLL_MS).unwrap();
        let follow = FollowRequest { organism: id, head_size, next, epoch: 0, wait_ms };
        let follow = Request::Follow(r.organism, Rc::new(follow));
        let request = self.state_request(reader).unwrap_or(follow);
        let (from, to) = (self.reader_node(reader), r.member);
        self.readers[reader].call = self.call(from, to, POLL_MS, request);
    }

    /// A call was not answered in time: the next member is asked.
    pub(super) fn late(&mut self, client: usize, call: u64) {
        let index = client - self.plan.members;
        if index < self.plan.readers {
            if self.readers[index].call == call {
                self.reader_moves_on(index);
            }
        } else if client == self.auditor_node() {
            self.audit_is_late(call);
        } else if self.writers[index - self.plan.readers].call == call {
            self.writer_moves_on(index - self.plan.readers);
        }
    }

    fn reader_moves_on(&mut self, reader: usize) {
        self.tally.count("reader fails over");
        let members = self.plan.members;
        let r = &mut self.readers[reader];
        r.taking = None;
        r.member = (r.member + 1) % members;
        let call = r.call;
        self.after(50, Event::Poll(reader, call));
    }

    pub(super) fn replied(&mut self, client: usize, from: usize, call: u64, reply: Reply) {
        let index = client - self.plan.members;
        if index < self.plan.readers {
            if self.readers[index].call == call {
                self.reader_told(index, from, &reply);
            }
        } else if client == self.auditor_node() {
            self.auditor_told(from, call, &reply);
        } else if self.writers[index - self.plan.readers].call == call {
            self.writer_told(index - self.plan.readers, from, reply);
        }
    }

    fn reader_told(&mut self, reader: usize, from: usize, reply: &Reply) {
        if self.readers[reader].wants_state {
            if self.told_of_state(reader, reply) {
                let call = self.readers[reader].call;
                self.after(1, Event::Poll(reader, call));
            } else {
                self.reader_moves_on(reader);
            }
            return;
        }
        let answer = match reply {
            Reply::Follow(bytes) => wire::decode::<FollowAnswer>(bytes).ok(),
            _ => None,
        };
        let Some(answer) = answer else { return self.reader_moves_on(reader) };
        let (committee, unproven) = (self.committee, self.plan.has(Mutation::RangeUnproven));
        let r = &mut self.readers[reader];
        if self.plan.has(Mutation::ReaderGoesBack) {
            r.start_over_if_older(committee, &answer);
        }
        let before = r.core.head_size();
        match if unproven { r.believe(&answer) } else { r.accept(&answer) } {
            Ok(entries) => {
                r.show(&entries);
                let call = r.call;
                if let Some(head) = r.core.head().filter(|head| head.size() > before).cloned() {
                    let organism = r.organism;
                    self.saw_certificate(&format!("reader {reader}"), organism, &head);
                }
                self.tally.add("entry shown to a reader", entries.len() as u64);
                if self.rng.percent(20) {
                    let r = &mut self.readers[reader];
                    r.saved = (r.core.save(), r.first, r.shown.clone(), r.book.clone());
                }
                self.after(1, Event::Poll(reader, call));
            }
            Err(FollowError::Fork { .. }) => {
                self.fail(invariant::ONE_ROOT, format!("reader {reader} was shown a certified fork by {from}"));
            }
            Err(_) => {
                self.tally.count("false answer refused by a reader");
                self.reader_moves_on(reader);
            }
        }
    }

    /// A reader's process ends; the next goes on from what was saved.
    pub(super) fn restart_reader(&mut self) {
        let reader = self.rng.index(self.plan.readers);
        if self.rng.percent(40) {
            self.fresh_reader(reader);
            let pause = self.rng.range(500, 2_000);
            return self.after(pause, Event::ReaderRestart);
        }
        let r = &mut self.readers[reader];
        let (saved, first, shown, book) = r.saved.clone();
        (r.wants_state, r.taking) = (false, None);
        match Follower::resume(self.committee.organisms[r.organism], &self.committee.roster, saved) {
            Ok(core) => (r.core, r.first, r.shown, r.book, r.checked) = (core, first, shown, book, 0),
            Err(error) => return self.fail(invariant::READER, format!("reader {reader} cannot resume: {error}")),
        }
        let call = self.readers[reader].call;
        self.tally.count("reader restarted");
        self.after(1, Event::Poll(reader, call));
        let pause = self.rng.range(500, 2_000);
        self.after(pause, Event::ReaderRestart);
    }

    /// A writer begins its next write, or goes on with the one it has.
    pub(super) fn next_write(&mut self, writer: usize, call: u64) {
        let w = &mut self.writers[writer];
        if w.call != call {
            return;
        }
        if w.write.is_none() {
            if w.left == 0 {
                return;
            }
            w.left -= 1;
            let (organism, write) = self.make_write(writer);
            self.writers[writer].write = Some(Pending { organism, write, claim: None, tries: 0 });
        }
        self.ask(writer);
    }

    fn make_write(&mut self, writer: usize) -> (usize, Write) {
        let w = &mut self.writers[writer];
        if !w.done.is_empty() && self.rng.percent(20) {
            self.tally.count("old write asked again");
            return self.rng.pick(&w.done);
        }
        let retire = w.retires && self.rng.percent(40);
        w.retires &= !retire;
        let organism = self.rng.index(self.plan.organisms);
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.rng.next().to_be_bytes());
        id[15] = 1;
        let payload = if retire {
            self.tally.count("retirement asked");
            self.make_retirement(organism)
        } else {
            Payload::Command(vec![self.rng.byte(), self.rng.byte(), self.rng.byte()])
        };
        (organism, Write { write_id: WriteId(id), payload })
    }

    fn ask(&mut self, writer: usize) {
        let w = &self.writers[writer];
        let Some(pending) = &w.write else { return };
        let (from, mut to) = (self.writer_node(writer), w.member);
        let request = match &pending.claim {
            Some((_, pointers, proven)) => {
                to = (to + pending.tries) % self.plan.members;
                let (organism, index) = (pointers[*proven].organism, pointers[*proven].index);
                Request::Evidence(pending.organism, Rc::new(EvidenceRequest { organism, index }))
            }
            None => Request::Write(pending.organism, pending.write.clone()),
        };
        if pending.claim.is_none() && self.rng.percent(15) {
            // The same write at a second member, whose answer nobody waits for.
            self.tally.count("write sent to two members");
            let other = self.rng.index(self.plan.members);
            self.send(from, other, &Packet::Request(0, WRITE_MS, request.clone()));
        }
        self.writers[writer].call = self.call(from, to, WRITE_MS, request);
    }

    fn writer_moves_on(&mut self, writer: usize) {
        self.tally.count("writer fails over");
        let members = self.plan.members;
        let w = &mut self.writers[writer];
        let call = w.call;
        let Some(pending) = &mut w.write else { return };
        pending.tries += 1;
        if pending.claim.is_none() || pending.tries > 2 * members {
            // Nobody can prove it: the claim was false, or everybody is behind. The write is asked for again.
            self.tally.add("acknowledgement not proven", u64::from(pending.claim.is_some()));
            pending.claim = None;
            pending.tries = 0;
            w.member = (w.member + 1) % members;
        }
        self.after(30, Event::Write(writer, call));
    }

    fn writer_told(&mut self, writer: usize, from: usize, reply: Reply) {
        let is_proving = self.writers[writer].write.as_ref().is_some_and(|pending| pending.claim.is_some());
        match reply {
            Reply::Write(WriteAnswer::Committed { entries }) if !is_proving => self.claimed(writer, from, entries),
            Reply::Write(WriteAnswer::Refused(refusal)) if !is_proving => {
                self.tally.count("write refused");
                if refusal.code == RETIRED_CODE && self.plan.is_honest(from) {
                    self.tally.count("write refused: retired");
                }
                self.write_done(writer);
            }
            Reply::Evidence(file) if is_proving => self.proof_came(writer, &file),
            _ => self.writer_moves_on(writer),
        }
    }

    fn claimed(&mut self, writer: usize, from: usize, entries: Vec<EvidencePointer>) {
        let believes = self.plan.has(Mutation::AckUnverified);
        let w = &mut self.writers[writer];
        let Some(pending) = &mut w.write else { return };
        if w.verifies && !entries.is_empty() && !believes {
            pending.claim = Some((from, entries, 0));
            pending.tries = 0;
            return self.ask(writer);
        }
        // What a member alone says is promised only if the member is correct.
        if self.plan.is_honest(from) || (believes && w.verifies) {
            let (organism, id) = (pending.organism, pending.write.bound_id());
            self.promised(from, organism, id, &entries);
        } else {
            self.tally.count("liar's word taken by a writer that does not verify");
        }
        self.write_done(writer);
    }

    fn proof_came(&mut self, writer: usize, file: &[u8]) {
        let Some(pending) = &mut self.writers[writer].write else { return };
        let (organism, id) = (pending.organism, pending.write.bound_id());
        let Some((from, pointers, proven)) = &mut pending.claim else { return };
        let verified = Evidence::parse(file).and_then(|file| file.verify_with(&self.committee.chains[organism]));
        match verified {
            Ok(entry) if entry.pointer() == pointers[*proven] && entry.entry().write_id == id => *proven += 1,
            Ok(entry) if entry.pointer().index == pointers[*proven].index => {
                // The certified entry is another: the claim is a lie, and so is who made it.
                let liar = *from;
                pending.claim = None;
                self.tally.count("false acknowledgement caught");
                if self.plan.is_honest(liar) {
                    self.fail(invariant::ACKED, format!("member {liar} acknowledged what is another entry"));
                }
                return self.writer_moves_on(writer);
            }
            _ => {
                self.tally.count("false evidence refused");
                return self.writer_moves_on(writer);
            }
        }
        if *proven < pointers.len() {
            return self.ask(writer);
        }
        let (pointers, from) = (std::mem::take(pointers), *from);
        self.promised(from, organism, id, &pointers);
        self.write_done(writer);
    }

    fn promised(&mut self, by: usize, organism: usize, id: WriteId, pointers: &[EvidencePointer]) {
        self.acknowledged(by, organism, id, pointers);
        if let Some(last) = pointers.iter().map(|pointer| pointer.index).max() {
            self.saw_acknowledged(organism, last + 1);
        }
    }

    fn write_done(&mut self, writer: usize) {
        let pause = self.rng.range(1, 600);
        let members = self.plan.members;
        let move_on = self.rng.percent(30);
        let w = &mut self.writers[writer];
        if move_on {
            w.member = (w.member + 1) % members;
        }
        if let Some(pending) = w.write.take() {
            w.done.push((pending.organism, pending.write));
        }
        self.calls += 1;
        let w = &mut self.writers[writer];
        w.call = self.calls;
        let call = w.call;
        self.after(pause, Event::Write(writer, call));
    }
}
