//! Byzantine members: up to f, who know everything, share their keys, and lie to members, readers and writers.

use std::{rc::Rc, sync::Arc};

use coalition::{EvidencePointer, UniqueId};
use coalition_log::{
    Entry, Refusal,
    checkpoint::{Checkpoint, SignatureLine, SignedCheckpoint, cosigner_name, key_id},
    entry::WriteId,
};

use super::{
    disk::{Log, at},
    serve::range,
    world::{Event, Packet, Reply, Request, World},
};
use crate::wire::{self, FollowRequest, Gossip, Ordered, Payload, Write, WriteAnswer};

#[derive(Default)]
pub(super) struct Liar {
    heard: Vec<Rc<[u8]>>,
    /// Certified heads, the older first.
    heads: Vec<(usize, SignedCheckpoint)>,
}

impl Liar {
    /// Keeps what came, for replaying it.
    pub(super) fn overhear(&mut self, bytes: &Rc<[u8]>) {
        if self.heard.len() < 64 {
            self.heard.push(Rc::clone(bytes));
        }
    }
}

impl World {
    /// Another history: the log's first `size` entries, the last one changed.
    fn fork(&self, organism: usize, size: u64) -> Option<Log> {
        let entries = self.oracle.truths[organism].log.entries.get(..at(size))?;
        let (last, before) = entries.split_last()?;
        let mut log = Log::default();
        before.iter().for_each(|entry| log.push(Arc::clone(entry)));
        let mut entry = Entry::decode(last).ok()?;
        entry.body.push(0xff);
        log.push(entry.encode().ok()?.into());
        Some(log)
    }

    fn forked_head(&self, organism: usize, size: u64) -> Option<Checkpoint> {
        let root = self.fork(organism, size)?.root_at(size)?;
        Some(Checkpoint { organism: self.committee.organisms[organism], size, root })
    }

    /// A liar signs whatever it likes; the harness knows that it did.
    fn sign_falsely(&mut self, liar: usize, organism: usize, head: Checkpoint) -> SignatureLine {
        let quorum = self.plan.quorum();
        self.oracle.truths[organism].sign(quorum, liar, head.size, head.root);
        self.committee.cosigner(liar, organism).sign(&head, 1).expect("its own organism")
    }

    fn cosigned_note(&mut self, liar: usize, organism: usize, head: Checkpoint) -> Rc<[u8]> {
        let line = self.sign_falsely(liar, organism, head);
        self.gossip_of(organism, head, vec![line], false)
    }

    fn gossip_of(&self, organism: usize, head: Checkpoint, lines: Vec<SignatureLine>, certified: bool) -> Rc<[u8]> {
        let checkpoint = SignedCheckpoint { checkpoint: head, signatures: lines }.to_string();
        let organism = self.committee.organisms[organism];
        let gossip = if certified {
            Gossip::Certified { organism, checkpoint }
        } else {
            Gossip::Cosigned { organism, checkpoint }
        };
        wire::encode(&gossip).into()
    }

    /// What a liar sends one peer instead of its cosignature.
    pub(super) fn lie_about_head(
        &mut self,
        liar: usize,
        peer: usize,
        organism: usize,
        head: Checkpoint,
        truth: &Rc<[u8]>,
    ) {
        let says = self.rng.range(0, 100);
        let truth = Packet::Gossip(Rc::clone(truth));
        let forked = self.forked_head(organism, head.size).filter(|_| says >= 55);
        match forked {
            None if (40..55).contains(&says) => self.tally.count("lie: cosignature withheld"),
            None => self.send(liar, peer, &truth),
            Some(forked) => {
                self.tally.count("lie: two heads signed");
                let fork = Packet::Gossip(self.cosigned_note(liar, organism, forked));
                if says >= 90 {
                    self.send(liar, peer, &truth);
                }
                self.send(liar, peer, &fork);
                if (75..90).contains(&says) {
                    self.send(liar, peer, &truth);
                }
            }
        }
    }

    /// A lie out of turn.
    pub(super) fn lie(&mut self, liar: usize) {
        let pause = self.rng.range(150, 500);
        self.after(pause, Event::Lie(liar));
        if self.members[liar].process.is_none() {
            return;
        }
        self.steal_heads(liar);
        let organism = self.rng.index(self.plan.organisms);
        let size = self.oracle.truths[organism].log.size();
        let Some(head) = self.forked_head(organism, size) else { return };
        let (what, bytes) = match self.rng.range(0, 9) {
            0 => match self.liars[&liar].heard.clone() {
                heard if heard.is_empty() => return,
                heard => ("lie: replay", self.rng.pick(&heard)),
            },
            1 => {
                let elsewhere = Checkpoint { organism: self.committee.organisms[1 - organism], ..head };
                let line = self.committee.cosigner(liar, 1 - organism).sign(&elsewhere, 1).unwrap();
                ("lie: line of another organism", self.gossip_of(organism, head, vec![line], false))
            }
            2 => ("lie: line in another's name", self.forge_line(organism, head)),
            3 => ("lie: certificate of lifted lines", self.forge_certificate(liar, organism, head)),
            4 => {
                let line = self.sign_falsely(liar, organism, head);
                let lines = vec![line; self.plan.quorum()];
                ("lie: certificate of one signer", self.gossip_of(organism, head, lines, true))
            }
            5 => {
                let ahead = Checkpoint { size: head.size + self.rng.range(1, 20), ..head };
                ("lie: head beyond the log", self.cosigned_note(liar, organism, ahead))
            }
            6 => {
                let bytes: Vec<u8> = (0..self.rng.range(0, 300)).map(|_| self.rng.byte()).collect();
                ("lie: garbage", bytes.into())
            }
            // Once faults have ended the log must come to rest, so that everybody can reach its end.
            _ if self.calm_since.is_some() => return,
            _ => return self.order_nonsense(liar, organism),
        };
        self.tally.count(what);
        self.note(format_args!("{what}"));
        for peer in (0..self.plan.members).filter(|peer| *peer != liar) {
            if self.rng.percent(70) {
                self.send(liar, peer, &Packet::Gossip(Rc::clone(&bytes)));
            }
        }
    }

    fn steal_heads(&mut self, liar: usize) {
        for organism in 0..self.plan.organisms {
            let heads = self.members.iter().filter_map(|member| member.process.as_ref());
            let newest =
                heads.filter_map(|p| p.organisms[organism].head.clone()).max_by_key(|head| head.checkpoint.size);
            self.liars.get_mut(&liar).expect("a liar").heads.extend(newest.map(|head| (organism, head)));
        }
    }

    fn forge_line(&mut self, organism: usize, head: Checkpoint) -> Rc<[u8]> {
        let victims: Vec<usize> = (0..self.plan.members).filter(|member| self.plan.is_honest(*member)).collect();
        let lines = victims.into_iter().map(|victim| {
            let name = cosigner_name(head.organism, &format!("m{victim}"));
            let key = self.committee.keys[victim].verifying_key().to_bytes();
            let signature = (0..72).map(|i| if i < 8 { 0 } else { self.rng.byte() }).collect();
            SignatureLine { key_id: key_id(&name, &key), name, signature }
        });
        let lines = lines.collect();
        self.gossip_of(organism, head, lines, false)
    }

    /// Lines of correct members over the true root, under another.
    fn forge_certificate(&mut self, liar: usize, organism: usize, head: Checkpoint) -> Rc<[u8]> {
        let known = self.liars[&liar].heads.iter().rfind(|(at, _)| *at == organism);
        let mut lines = known.map(|(_, head)| head.signatures.clone()).unwrap_or_default();
        lines.push(self.sign_falsely(liar, organism, head));
        self.gossip_of(organism, head, lines, true)
    }

    /// Commands that only a member can bring into the order: malformed, of nobody, or taken from a client and changed.
    fn order_nonsense(&mut self, liar: usize, organism: usize) {
        self.tally.count("lie: nonsense ordered");
        let id = self.committee.organisms[organism];
        let known: Vec<WriteId> = self.oracle.truths[organism].writes.keys().copied().collect();
        let write_id = if known.is_empty() { WriteId::NONE } else { self.rng.pick(&known) };
        let attempt = self.rng.next();
        let command = vec![self.rng.byte(), self.rng.byte(), self.rng.byte()];
        let ordered = match self.rng.range(0, 4) {
            0 => return self.submit(liar, command),
            1 => Ordered { organism: id, write_id, attempt, payload: Payload::Command(command) },
            2 => Ordered { organism: id, write_id: WriteId::NONE, attempt, payload: Payload::Command(command) },
            _ => Ordered { organism: UniqueId::hash(b"none"), write_id, attempt, payload: Payload::Retire(command) },
        };
        self.submit(liar, wire::encode(&ordered));
    }

    /// Answers a client falsely, or not at all; `false` when it means to answer truly.
    pub(super) fn lie_to_client(&mut self, liar: usize, client: usize, call: u64, request: &Request) -> bool {
        if !self.plan.liars.contains(&liar) || self.members[liar].process.is_none() || self.rng.percent(35) {
            return false;
        }
        self.steal_heads(liar);
        let reply = match request {
            Request::Write(organism, write) => self.lie_to_writer(liar, *organism, write),
            Request::Follow(organism, request) => self.lie_to_reader(liar, *organism, request),
            Request::Evidence(..) => {
                let index = self.rng.index(200);
                let mut bytes: Vec<u8> = b"coalition-evidence/v1\norganism ".to_vec();
                bytes.extend((0..index).map(|_| self.rng.byte()));
                self.tally.count("lie: false evidence");
                Some(Reply::Evidence(bytes))
            }
            Request::Settled(organism) => self.lie_about_settled(liar, *organism),
            Request::State(..) | Request::StatePart(..) => self.lie_about_state(liar, request),
        };
        if let Some(reply) = reply {
            self.send(liar, client, &Packet::Reply(call, reply));
        }
        true
    }

    fn lie_to_writer(&mut self, liar: usize, organism: usize, write: &Write) -> Option<Reply> {
        let says = self.rng.range(0, 5);
        let what =
            ["lie: false acknowledgement", "lie: write changed", "lie: false refusal", "lie: silence", "lie: silence"];
        self.tally.count(what[at(says)]);
        match says {
            0 => {
                let log = &self.oracle.truths[organism].log;
                let real = (log.size() > 0).then(|| self.rng.range(0, log.size()));
                let digest = real.and_then(|index| log.leaf(index)).map_or([9; 32], |leaf| leaf.0);
                let digest = if self.rng.percent(50) { digest } else { [8; 32] };
                let index = real.unwrap_or(0) + self.rng.range(0, 2);
                let organism = self.committee.organisms[organism];
                let pointer = EvidencePointer { organism, index, digest: UniqueId::from_bytes(digest) };
                Some(Reply::Write(WriteAnswer::Committed { entries: vec![pointer] }))
            }
            1 => {
                let changed = Payload::Command(vec![7, self.rng.byte(), self.rng.byte()]);
                let (organism, write_id) = (self.committee.organisms[organism], write.write_id);
                let ordered = Ordered { organism, write_id, attempt: self.rng.next(), payload: changed };
                self.submit(liar, wire::encode(&ordered));
                Some(Reply::Write(WriteAnswer::Pending))
            }
            2 => Some(Reply::Write(WriteAnswer::Refused(Refusal::new("no", "because")))),
            _ => None,
        }
    }

    /// Certified heads of an organism that a liar has, the older first.
    pub(super) fn heads_of(&self, liar: usize, organism: usize) -> Vec<SignedCheckpoint> {
        let known = self.liars[&liar].heads.iter().filter(|(at, _)| *at == organism);
        known.map(|(_, head)| head.clone()).collect()
    }

    fn lie_to_reader(&mut self, liar: usize, organism: usize, request: &FollowRequest) -> Option<Reply> {
        let heads = self.heads_of(liar, organism);
        let newest = heads.last()?.clone();
        let log = &self.oracle.truths[organism].log;
        let mut answer = range(log, &newest, request, self.plan.range_bytes)?;
        let what = match self.rng.range(0, 7) {
            0 => {
                let last = answer.entries.last_mut()?;
                let position = self.rng.index(last.len());
                last[position] ^= 1;
                "lie: entry changed"
            }
            1 => {
                answer.entries.pop()?;
                "lie: range cut short"
            }
            2 => {
                if answer.entries.len() < 2 {
                    return None;
                }
                answer.entries.swap(0, 1);
                "lie: entries out of order"
            }
            3 => {
                answer.entries = log.range(request.next + 1, newest.checkpoint.size, usize::MAX);
                "lie: entry left out"
            }
            4 => {
                let old = self.rng.pick(&heads);
                let from_the_start = FollowRequest { head_size: 0, next: 0, epoch: 0, ..*request };
                answer = range(log, &old, &from_the_start, usize::MAX)?;
                "lie: an old head"
            }
            5 => {
                let forked = self.fork(organism, newest.checkpoint.size)?;
                let root = forked.root_at(newest.checkpoint.size)?;
                let head = Checkpoint { root, ..newest.checkpoint };
                let mut note = SignedCheckpoint { checkpoint: head, signatures: Vec::new() };
                for liar in self.plan.liars.clone() {
                    note.signatures.push(self.sign_falsely(liar, organism, head));
                }
                if self.rng.percent(50) {
                    let real = &newest.signatures;
                    note.signatures.extend(real.iter().take(self.plan.quorum() - note.signatures.len()).cloned());
                }
                answer = range(&forked, &note, request, usize::MAX)?;
                "lie: a fork with own signatures"
            }
            _ => {
                self.tally.count("lie: silence");
                return None;
            }
        };
        self.tally.count(what);
        Some(Reply::Follow(wire::encode(&answer)))
    }
}
