//! Handovers, from a seed: a committee whose members change every few batches, its readers, and an attacker who has the keys
//! of everybody that ever left, and of up to f members of the roster in force. Readers and restarts start from states, too.
//!
//! Real are [`Execution`] with its epochs, [`Certifier`], and from `coalition-log` the handovers, their proofs, evidence and
//! the reader's core. Members are one execution here: what makes them differ is the business of the rest of this simulation.
//! The attacker certifies forks with old rosters, hands over to rosters of its own, and keeps handovers from readers. A reader
//! that knows of no handover trusts the roster it knows, so nobody forges against it what that roster's quorum can sign.

mod attack;
mod states;

use std::collections::BTreeSet;

use coalition::{Roster, RosterMember, UniqueId};
use coalition_log::{
    Context, Entry,
    checkpoint::{CertifiedCheckpoint, Checkpoint, Cosigner, RosterVerifier, SignatureLine, SignedCheckpoint},
    entry::{WriteId, leaf_hash},
    evidence::Evidence,
    follow::Follower,
    handover::{ApprovedHandover, HANDOVER_KIND, Handover, HandoverProof, RosterChain},
    tree::{Hash, consistency_proof, inclusion_proof},
};

use super::{
    check::Tally,
    committee::key,
    disk::{Log, at},
    machine::{Keeper, SKIPPED_KIND},
    rng::Rng,
};
use crate::{
    certifier::{Certifier, Progress},
    epochs::Epochs,
    execution::{Command, Execution, NewState, Outcome},
    wire::{self, Handovers, Payload},
};

const SEEDS: u64 = 200;
const SEEDS_FOR_A_BUG: u64 = 100;
const STEPS: u64 = 60;
/// The attacker's own members are numbered from here.
const STRANGERS: usize = 150;

/// Mistakes somebody could make, planted around the real code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutation {
    /// A reader takes the next roster although the one before did not certify the handover.
    NewRosterUnproven,
    /// A reader takes a head behind a handover from the roster before it.
    OldRosterBeyond,
    /// Members write a handover that too few of them approved.
    ApprovalsUnchecked,
    /// A restart folds everything but the handovers.
    ForgetHandovers,
    /// A restart takes everything from a state but the handovers.
    RestoreForgetsHandovers,
    /// A reader takes a state whose handovers were not proven to it.
    StateHandoversUnchecked,
}

const MUTATIONS: [Mutation; 6] = [
    Mutation::NewRosterUnproven,
    Mutation::OldRosterBeyond,
    Mutation::ApprovalsUnchecked,
    Mutation::ForgetHandovers,
    Mutation::RestoreForgetsHandovers,
    Mutation::StateHandoversUnchecked,
];

type Violation = String;

fn organism() -> UniqueId {
    UniqueId::hash(b"an organism that is handed over")
}

fn name(member: usize) -> String {
    format!("m{member}")
}

fn roster(members: &[usize]) -> Roster {
    let public = |domain, member| key(domain, member).verifying_key().to_bytes();
    let member = |member: &usize| RosterMember {
        name: name(*member),
        checkpoint_key: public(1, *member),
        consensus_key: public(2, *member),
        peer_id: public(3, *member),
    };
    Roster::new(members.iter().map(member).collect()).unwrap()
}

fn execution(genesis: &Roster, state_every: u64) -> Execution {
    let epochs = Epochs::new(organism(), genesis, [organism()].into()).unwrap();
    Execution::new(Box::new(Keeper::new(false)), epochs).with_state_every(state_every)
}

fn sign(member: usize, head: &Checkpoint) -> SignatureLine {
    Cosigner::new(organism(), &name(member), key(1, member)).sign(head, 1_700_000_000).unwrap()
}

struct Reader {
    core: Follower,
    /// Index of the first entry it shows: it started from a state, unless 0.
    first: u64,
    shown: Vec<Hash>,
    wants_state: bool,
}

impl Reader {
    fn new(genesis: &Roster, wants_state: bool) -> Self {
        let core = Follower::new(organism(), genesis).unwrap();
        Self { core, first: 0, shown: Vec::new(), wants_state }
    }
}

struct Served {
    handovers: Vec<HandoverProof>,
    head: SignedCheckpoint,
    head_proof: Vec<Hash>,
    entries: Vec<Vec<u8>>,
}

struct Run {
    rng: Rng,
    mutation: Option<Mutation>,
    tally: Tally,
    execution: Execution,
    log: Log,
    rosters: Vec<Vec<usize>>,
    /// The same as rosters; making one takes many multiplications.
    truth: Vec<Roster>,
    proofs: Vec<HandoverProof>,
    heads: Vec<CertifiedCheckpoint>,
    certifier: Certifier,
    /// Whose keys the attacker has.
    bad: BTreeSet<usize>,
    fresh: usize,
    readers: Vec<Reader>,
    height: u64,
    state_every: u64,
    states: Vec<NewState>,
}

impl Run {
    fn new(seed: u64, mutation: Option<Mutation>) -> Self {
        let mut rng = Rng::new(seed ^ 0x6861_6e64);
        let genesis: Vec<usize> = (0..rng.index(4) + 4).collect();
        let chain = RosterChain::new(organism(), &roster(&genesis)).unwrap();
        let state_every = rng.range(3, 12);
        let mut run = Self {
            mutation,
            tally: Tally::default(),
            execution: execution(&roster(&genesis), state_every),
            log: Log::default(),
            proofs: Vec::new(),
            heads: Vec::new(),
            certifier: Certifier::new(chain.verifier().clone(), None),
            bad: BTreeSet::new(),
            fresh: genesis.len(),
            readers: (0..3).map(|_| Reader::new(&roster(&genesis), false)).collect(),
            height: 0,
            state_every,
            states: Vec::new(),
            truth: vec![roster(&genesis)],
            rosters: vec![genesis],
            rng,
        };
        run.corrupt();
        run
    }

    fn now(&self) -> &[usize] {
        self.rosters.last().unwrap()
    }

    fn faults(members: &[usize]) -> usize {
        (members.len() - 1) / 3
    }

    /// Some members of the roster in force lie, up to f of it.
    fn corrupt(&mut self) {
        let mut members = self.now().to_vec();
        self.rng.shuffle(&mut members);
        let had = members.iter().filter(|member| self.bad.contains(member)).count();
        let more = Self::faults(&members).saturating_sub(had);
        let fell: Vec<usize> = members.into_iter().filter(|member| !self.bad.contains(member)).take(more).collect();
        self.bad.extend(fell);
    }

    fn go(mut self) -> (Tally, Option<Violation>) {
        let outcome = (0..STEPS).try_for_each(|_| self.step()).and_then(|()| self.end());
        (self.tally, outcome.err())
    }

    fn step(&mut self) -> Result<(), Violation> {
        match self.rng.index(10) {
            0..4 => self.batch(None)?,
            4 => self.hand_over()?,
            _ => {
                let reader = self.rng.index(self.readers.len());
                if self.rng.percent(8) {
                    self.readers[reader] = Reader::new(&self.truth[0], true);
                }
                if self.readers[reader].wants_state && self.rng.percent(50) {
                    self.start_from_a_state(reader);
                    return self.check();
                }
                let served = if self.rng.percent(45) { self.honest(reader) } else { self.forged(reader) };
                if let Some(served) = served {
                    self.read(reader, &served);
                }
            }
        }
        self.check()
    }

    /// Proposes a handover, right or wrong.
    fn hand_over(&mut self) -> Result<(), Violation> {
        let now = self.now().to_vec();
        let mut next = now.clone();
        match self.rng.index(3) {
            0 if next.len() > 4 => drop(next.remove(self.rng.index(now.len()))),
            1 if next.len() < 8 => next.push(self.fresh),
            _ => {
                let at = self.rng.index(now.len());
                next[at] = self.fresh;
            }
        }
        self.fresh += 1;
        // A smaller committee bears fewer liars.
        if next.iter().filter(|member| self.bad.contains(member)).count() > Self::faults(&next) {
            return Ok(());
        }
        let mut approving = now.clone();
        self.rng.shuffle(&mut approving);
        let wrong = self.rng.index(6);
        let quorum = now.len() - Self::faults(&now);
        approving.truncate(if wrong == 0 { quorum - 1 } else { quorum });
        let gone: Vec<usize> = self.rosters.iter().flatten().copied().filter(|member| !now.contains(member)).collect();
        if let (1, Some(back)) = (wrong, gone.first()) {
            next = now.iter().skip(1).copied().chain([*back]).collect();
        }
        let epoch = self.rosters.len() as u64 + u64::from(wrong == 2);
        let approved = approve(epoch, &now, &next, &approving);
        let is_right = match wrong {
            0 | 2 => false,
            1 => gone.is_empty(),
            _ => true,
        };
        self.tally.count(if is_right { "handover" } else { "wrong handover proposed" });
        self.batch(Some((approved, is_right, next)))
    }

    /// One batch: executed, appended, certified by the roster of its size.
    fn batch(&mut self, handover: Option<(ApprovedHandover, bool, Vec<usize>)>) -> Result<(), Violation> {
        self.height += 1;
        let cx = Context { height: self.height, time_ms: self.height * 100, tick: 0 };
        let id = |n: u64| WriteId([u8::try_from(n % 250).unwrap() + 1; 16]);
        let mut payloads: Vec<(WriteId, Payload)> = Vec::new();
        for _ in 0..self.rng.index(3) {
            let command = vec![self.rng.byte(), self.rng.byte(), self.rng.byte()];
            payloads.push((id(self.rng.next()), Payload::Command(command)));
        }
        let mut proposed = None;
        if let Some((approved, _, _)) = &handover {
            let bundle = wire::encode(&Handovers(vec![(organism(), approved.to_bytes())]));
            // The id of another write of the same batch, now and then: what is handed over must not depend on it.
            let write_id = if self.rng.percent(50) { id(self.rng.next()) } else { WriteId([251; 16]) };
            let at = self.rng.index(payloads.len() + 1);
            payloads.insert(at, (write_id, Payload::Handover(bundle)));
            proposed = Some(write_id);
        }
        let commands = payloads.iter().map(|(write_id, payload)| Command { write_id: *write_id, payload });
        let mut done = self.execution.execute(&cx, None, commands).unwrap();
        if let Some((approved, is_right, _)) = &handover {
            let refused =
                |(id, outcome): &(WriteId, Outcome)| Some(*id) == proposed && matches!(outcome, Outcome::Refused(_));
            let wrote = done.entries.last().is_some_and(|entry| entry.kind == HANDOVER_KIND);
            if wrote != *is_right {
                return Err(format!("decided: {wrote} on a handover that is right: {is_right}"));
            }
            if !is_right && self.mutation == Some(Mutation::ApprovalsUnchecked) {
                let index = self.execution.next_index();
                let draft = coalition_log::Draft::new(HANDOVER_KIND, approved.to_bytes());
                let entry = draft.into_entry(index, None, cx.time_ms);
                self.execution.restore(&entry);
                done.entries.push(entry);
            } else if !is_right && !done.outcomes.iter().any(refused) && proposed == Some(WriteId([251; 16])) {
                // A known write of that id is answered as what it wrote.
                self.tally.count("wrong handover answered by an earlier write");
            }
        }
        self.states.extend(done.state);
        for entry in &done.entries {
            self.log.push(entry.encode().unwrap().into());
        }
        if !done.entries.is_empty() || self.heads.is_empty() {
            self.certify()?;
        }
        if done.entries.last().is_some_and(|entry| entry.kind == HANDOVER_KIND) {
            let (_, _, next) = handover.expect("a handover is written if one was proposed");
            self.handed_over(next);
        }
        Ok(())
    }

    /// The roster in force signs the new head; its liars sign another.
    fn certify(&mut self) -> Result<(), Violation> {
        let head = self.head(self.log.size());
        let other = Checkpoint { root: Hash([self.rng.byte(); 32]), ..head };
        let mut members = self.now().to_vec();
        self.rng.shuffle(&mut members);
        for member in members {
            let lies = self.bad.contains(&member) && self.rng.percent(70);
            let signed = if lies { other } else { head };
            match self.certifier.cosigned(signed, sign(member, &signed)) {
                Ok(Progress::Certified(certified)) if certified.root() == head.root => self.heads.push(certified),
                Ok(Progress::Certified(_)) => return Err("a false head is certified".into()),
                Ok(_) => {}
                Err(error) => return Err(format!("a cosignature of a member was dropped: {error}")),
            }
        }
        if self.heads.last().map(CertifiedCheckpoint::size) == Some(head.size) {
            Ok(())
        } else {
            Err(format!("nobody certified {} entries", head.size))
        }
    }

    fn handed_over(&mut self, next: Vec<usize>) {
        let size = self.log.size();
        let entry = self.log.range(size - 1, size, usize::MAX).pop().unwrap();
        let path = inclusion_proof(&self.log, size - 1, size).unwrap();
        let head = self.heads.last().unwrap().clone();
        self.proofs.push(HandoverProof { entry, path, checkpoint: head.note().to_string() });
        let left: Vec<usize> = self.now().iter().copied().filter(|member| !next.contains(member)).collect();
        self.bad.extend(left);
        let verifier = RosterVerifier::new(organism(), &roster(&next)).unwrap();
        self.truth.push(roster(&next));
        self.certifier = Certifier::new(verifier, Some(head));
        self.rosters.push(next);
        self.corrupt();
    }

    fn head(&self, size: u64) -> Checkpoint {
        Checkpoint { organism: organism(), size, root: self.log.root_at(size).unwrap() }
    }

    fn epoch_at(&self, size: u64) -> usize {
        let ends = self.proofs.iter().map(|proof| Entry::decode(&proof.entry).unwrap().index + 1);
        ends.filter(|end| *end < size).count()
    }

    /// What a correct member serves, at its newest head or an earlier one; now and then without the handovers.
    fn honest(&mut self, reader: usize) -> Option<Served> {
        let newest = self.heads.len().checked_sub(1)?;
        let at = if self.rng.percent(70) { newest } else { self.rng.index(newest + 1) };
        let hides = self.rng.percent(10);
        self.serve(reader, &self.heads[at].clone(), !hides)
    }

    fn serve(&self, reader: usize, head: &CertifiedCheckpoint, with_handovers: bool) -> Option<Served> {
        let core = &self.readers[reader].core;
        let (known, size) = (usize::try_from(core.chain().epoch()).unwrap(), head.size());
        let head_proof = consistency_proof(&self.log, core.head_size(), size).ok()?;
        let handovers = self.proofs.get(known..self.epoch_at(size)).unwrap_or_default();
        Some(Served {
            handovers: if with_handovers { handovers.to_vec() } else { Vec::new() },
            head: head.note().clone(),
            head_proof,
            entries: self.log.range(core.next_index(), size.max(core.next_index()), usize::MAX),
        })
    }

    /// As `follower::accept`, with the planted bugs.
    fn read(&mut self, reader: usize, served: &Served) {
        let r = &mut self.readers[reader];
        let taken = r.core.accept_handovers(&served.handovers).and_then(|()| {
            r.core.accept_head(&served.head, &served.head_proof)?;
            let proof: &[Hash] = &[];
            r.core.accept_entries(r.core.next_index(), &served.entries, proof)
        });
        let certifies = |roster: &Roster| {
            RosterVerifier::new(organism(), roster).is_ok_and(|verifier| verifier.certify(&served.head).is_ok())
        };
        let fooled = match self.mutation {
            Some(Mutation::NewRosterUnproven) => served.handovers.iter().any(|proof| {
                let entry = Entry::decode(&proof.entry).unwrap();
                certifies(&ApprovedHandover::from_bytes(&entry.body).unwrap().handover().next)
            }),
            Some(Mutation::OldRosterBeyond) => r.core.chain().rosters().any(certifies),
            _ => false,
        };
        match taken {
            Ok(entries) => r.shown.extend(entries.iter().map(|entry| entry.leaf_hash().unwrap())),
            Err(_) if fooled && served.head.checkpoint.size > r.first + r.shown.len() as u64 => {
                r.shown.extend(served.entries.iter().map(|bytes| leaf_hash(bytes)));
            }
            Err(_) => self.tally.count("answer refused by a reader"),
        }
    }

    fn check(&mut self) -> Result<(), Violation> {
        for reader in &self.readers {
            let first = at(reader.first);
            if self.log.leaves().get(first..first + reader.shown.len()) != Some(&reader.shown[..]) {
                return Err(format!("a reader shows {} entries that are not the log's", reader.shown.len()));
            }
            let mut known = reader.core.chain().rosters().zip(0..);
            if !known.all(|(roster, epoch)| self.truth.get::<usize>(epoch) == Some(roster)) {
                return Err("a reader follows rosters nobody handed over to".into());
            }
            if reader.core.chain().epoch() < self.epoch_at(reader.first + 1) as u64 {
                return Err(format!("a reader started at {} and does not know the roster there", reader.first));
            }
        }
        if self.rng.percent(20) {
            self.check_evidence()?;
            self.check_restart()?;
        }
        Ok(())
    }

    /// Any entry under any head is proven from the genesis roster.
    fn check_evidence(&mut self) -> Result<(), Violation> {
        let Some(newest) = self.heads.len().checked_sub(1) else { return Ok(()) };
        let head = self.heads[self.rng.index(newest + 1)].clone();
        if head.size() == 0 {
            return Ok(());
        }
        let index = self.rng.range(0, head.size());
        let bytes = self.log.range(index, index + 1, usize::MAX).pop().unwrap();
        let path = inclusion_proof(&self.log, index, head.size()).unwrap();
        let epoch = self.epoch_at(head.size());
        let evidence = Evidence::new(bytes, path, &head).unwrap().with_handovers(self.proofs[..epoch].to_vec());
        let parsed = Evidence::parse(evidence.to_string().as_bytes()).map_err(|error| error.to_string())?;
        let verified = parsed.verify(organism(), &self.truth[0]);
        self.tally.count("evidence verified");
        verified.map(drop).map_err(|error| format!("evidence of {index} under {} fails: {error}", head.size()))
    }

    /// A restart folds the same.
    fn check_restart(&mut self) -> Result<(), Violation> {
        let mut again = execution(&self.truth[0], self.state_every);
        if !self.states.is_empty() && self.rng.percent(70) {
            self.restore_a_state(&mut again)?;
        }
        for bytes in self.log.range(again.next_index(), self.log.size(), usize::MAX) {
            let mut entry = Entry::decode(&bytes).unwrap();
            if self.mutation == Some(Mutation::ForgetHandovers) && entry.kind == HANDOVER_KIND {
                entry.kind = SKIPPED_KIND.into();
            }
            again.restore(&entry);
        }
        let (now, then) = (self.execution.epoch(), again.epoch());
        if (now, self.execution.next_index()) == (then, again.next_index()) && now == self.rosters.len() as u64 - 1 {
            return Ok(());
        }
        Err(format!("the committee is in epoch {now}, after a restart in {then}, in truth {}", self.rosters.len() - 1))
    }

    /// Then correct members serve every reader, and each sees everything.
    fn end(&mut self) -> Result<(), Violation> {
        self.batch(None)?;
        for reader in 0..self.readers.len() {
            let Some(newest) = self.heads.last().cloned() else { continue };
            if let Some(served) = self.serve(reader, &newest, true) {
                self.read(reader, &served);
            }
            let r = &self.readers[reader];
            let (shown, size) = (r.first + r.shown.len() as u64, newest.size());
            if shown != size {
                return Err(format!("reader {reader} shows {shown} of {size} certified entries in the end"));
            }
        }
        self.check()
    }
}

fn approve(epoch: u64, now: &[usize], next: &[usize], by: &[usize]) -> ApprovedHandover {
    let (now_roster, handover) = (roster(now), Handover { epoch, next: roster(next) });
    let approval = |member: &usize| {
        let seat = now.iter().position(|known| known == member).unwrap();
        handover.approve(&key(1, *member), u8::try_from(seat).unwrap(), organism(), &now_roster)
    };
    let approvals = by.iter().map(approval).collect();
    ApprovedHandover::new(handover, approvals)
}

#[test]
fn handovers_hold() {
    let seeds = crate::simulation::setting("COALITION_SIM_SEEDS").unwrap_or(SEEDS);
    let first = crate::simulation::setting("COALITION_SIM_FIRST_SEED").unwrap_or(1);
    let mut done = Tally::default();
    for seed in first..first + seeds {
        let (tally, violation) = Run::new(seed, None).go();
        assert_eq!(violation, None, "seed {seed}: COALITION_SIM_FIRST_SEED={seed} COALITION_SIM_SEEDS=1");
        done.merge(&tally);
    }
    println!("{seeds} seeds\n{}", super::report::counts(&done));
    for what in [
        "handover",
        "wrong handover proposed",
        "fork by an old roster served",
        "false handover served",
        "reader started from a state",
        "restarted from a state",
    ] {
        assert!(done.all(what) >= seeds, "{seeds} seeds did too little: {what:?} {} times", done.all(what));
    }
}

#[test]
fn planted_handover_bugs_are_found() {
    for mutation in MUTATIONS {
        let found =
            (1..=SEEDS_FOR_A_BUG).find_map(|seed| Run::new(seed, Some(mutation)).go().1.map(|what| (seed, what)));
        match found {
            Some((seed, violation)) => println!("{mutation:?}: {seed} seeds, {violation}"),
            None => panic!("{mutation:?} was not found in {SEEDS_FOR_A_BUG} seeds"),
        }
    }
}
