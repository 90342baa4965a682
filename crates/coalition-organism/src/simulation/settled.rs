//! Somebody who asks a quorum for the newest head, over and over, and notes before each time what had been acknowledged by then.

use coalition_log::checkpoint::{Checkpoint, SignedCheckpoint};

use super::{
    check::invariant,
    plan::{Ms, Mutation},
    world::{Event, Reply, Request, World},
};
use crate::settled::Settling;

const WAIT_MS: Ms = 500;

/// One question after the other.
#[derive(Default)]
pub(super) struct Auditor {
    round: Option<Round>,
    /// Whether the next question has its time.
    is_due: bool,
    /// Entries of each organism under which an acknowledged write lies.
    acknowledged: [u64; 2],
    /// Questions that were answered since faults have ended.
    pub(super) answered_in_calm: bool,
}

struct Round {
    organism: usize,
    /// One call for each member.
    calls: Vec<u64>,
    settling: Settling,
    acknowledged: u64,
}

impl World {
    /// A write is acknowledged whose last entry is the one before `size`: now a member alone may know that it is certified.
    pub(super) fn saw_acknowledged(&mut self, organism: usize, size: u64) {
        let known = &mut self.auditor.acknowledged[organism];
        *known = size.max(*known);
        if self.rng.percent(60) {
            self.ask_everybody(organism);
        }
    }

    /// The next question, unless one is under way.
    pub(super) fn audit(&mut self) {
        self.auditor.is_due = false;
        if self.auditor.round.is_none() {
            let organism = self.rng.index(self.plan.organisms);
            self.ask_everybody(organism);
        }
    }

    fn ask_everybody(&mut self, organism: usize) {
        let acknowledged = self.auditor.acknowledged[organism];
        let quorum = self.plan.quorum() - usize::from(self.plan.has(Mutation::SettledByTooFew));
        let (from, members) = (self.auditor_node(), self.plan.members);
        let mut ask = |member| self.call(from, member, WAIT_MS, Request::Settled(organism));
        let calls = (0..members).map(&mut ask).collect();
        self.auditor.round = Some(Round { organism, calls, settling: Settling::new(quorum), acknowledged });
    }

    pub(super) fn auditor_told(&mut self, from: usize, call: u64, reply: &Reply) {
        let Some(round) = &mut self.auditor.round else { return };
        if round.calls.get(from) != Some(&call) {
            return;
        }
        let Reply::Settled(note) = reply else { return };
        let (organism, acknowledged) = (round.organism, round.acknowledged);
        let note = SignedCheckpoint::parse(note.as_bytes()).ok();
        let head = note.and_then(|note| self.committee.chains[organism].certify(&note).ok());
        let Some(head) = head else { return self.tally.count("false settled head refused") };
        let Some(newest) = round.settling.heard(from, head).cloned() else { return };
        self.auditor.round = None;
        self.auditor.answered_in_calm |= self.calm_since.is_some();
        self.saw_certificate("who asked a quorum", organism, &newest);
        if newest.size() < acknowledged {
            let detail =
                format!("{acknowledged} entries of {organism} were acknowledged, a quorum told {}", newest.size());
            self.fail(invariant::FRESH, detail);
        }
        self.tally.count("settled head");
        self.tally.add("settled head is newer than acknowledged", u64::from(newest.size() > acknowledged));
        if !self.auditor.is_due {
            self.auditor.is_due = true;
            let pause = self.rng.range(1, 200);
            self.after(pause, Event::Audit);
        }
    }

    /// No quorum answered; the question is put anew.
    pub(super) fn audit_is_late(&mut self, call: u64) {
        let Some(round) = self.auditor.round.as_ref().filter(|round| round.calls.last() == Some(&call)) else { return };
        let organism = round.organism;
        self.tally.count("no quorum told what is settled");
        self.ask_everybody(organism);
    }

    /// An old head, one of its own, or nothing.
    pub(super) fn lie_about_settled(&mut self, liar: usize, organism: usize) -> Option<Reply> {
        let heads = self.heads_of(liar, organism);
        let (what, note) = match self.rng.range(0, 3) {
            0 => ("lie: an old settled head", heads.first()?.clone()),
            1 => {
                let newest = heads.last()?.clone();
                let ahead = Checkpoint { size: newest.checkpoint.size + 3, ..newest.checkpoint };
                ("lie: a settled head beyond the log", SignedCheckpoint { checkpoint: ahead, ..newest })
            }
            _ => {
                self.tally.count("lie: silence");
                return None;
            }
        };
        self.tally.count(what);
        Some(Reply::Settled(note.to_string()))
    }
}
