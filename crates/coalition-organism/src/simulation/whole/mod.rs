//! The same world with real ordering engines in the oracle's place: a whole committee, from writers to readers, from a seed.
//!
//! The engines run in commonware's deterministic runtime ([`coalition_order_sim`]), which keeps the time; the world's own events
//! happen in it when they are due ([`room`]). A member's process and its engine live and die together: what was not durable on
//! the engine's disk is lost in the same crash as what was not durable in the logs. Cuts and losses are those of the world's
//! network. A member that lies may run its engine twice under one key, so that it votes and proposes two ways.

mod room;
mod tests;

use std::{collections::VecDeque, sync::Arc};

use coalition_log::Context;
use coalition_order::Batch;
use coalition_order_sim::{Ack, Delivery};

pub(super) use room::run;

use super::{
    check::invariant,
    member::Process,
    plan::Ms,
    world::{Event, World},
};

/// What the world asks of the engines.
#[derive(Debug)]
pub(super) enum Ask {
    Start(usize),
    Crash(usize),
    Submit(usize, Vec<u8>),
    WakeAt(usize, Option<u64>),
}

/// What lies between the world and the engines.
#[derive(Debug)]
pub(super) struct Seam {
    asked: Vec<Ask>,
    /// Batches delivered to each member's present life that it has not taken up yet.
    delivered: Vec<VecDeque<(Arc<Batch>, Ack)>>,
}

impl Seam {
    pub(super) fn new(members: usize) -> Self {
        Self { asked: Vec::new(), delivered: (0..members).map(|_| VecDeque::new()).collect() }
    }
}

impl World {
    /// Asks something of the engines, if there are any.
    pub(super) fn tell_engine(&mut self, ask: Ask) {
        let Some(seam) = &mut self.seam else { return };
        if let Ask::Crash(member) = ask {
            seam.delivered[member].clear();
        }
        seam.asked.push(ask);
    }

    /// What was asked since the last time.
    fn asked(&mut self) -> Vec<Ask> {
        self.seam.as_mut().map_or_else(Vec::new, |seam| std::mem::take(&mut seam.asked))
    }

    /// A member has a command ordered.
    pub(super) fn submit(&mut self, member: usize, command: Vec<u8>) {
        if self.seam.is_some() {
            self.tell_engine(Ask::Submit(member, command));
        } else {
            self.pending.push((member, command));
        }
    }

    /// As `Executor::batch` at its end.
    pub(super) fn ask_to_wake(&mut self, member: usize, p: &Process, batch: &Batch) {
        if self.seam.is_none() {
            return;
        }
        let tick = p.organisms[0].execution.tick_at(batch.time_ms).unwrap_or(0);
        let now = Context { height: batch.height, time_ms: batch.time_ms, tick };
        let wake = p.organisms.iter().filter_map(|hosted| hosted.execution.wake_at_ms(&now)).min();
        self.tell_engine(Ask::WakeAt(member, wake));
    }

    /// The batch a member executes next, if it has it.
    pub(super) fn next_batch(&mut self, member: usize, height: u64) -> Option<(Arc<Batch>, Option<Ack>)> {
        if let Some(seam) = &mut self.seam {
            return seam.delivered[member].pop_front().map(|(batch, ack)| (batch, Some(ack)));
        }
        let mut others = (0..self.plan.members).filter(|other| *other != member);
        let hears = others.any(|o| self.members[o].process.is_some() && self.network.is_open_both_ways(o, member));
        self.oracle.batch(height).filter(|_| hears).map(|batch| (Arc::clone(batch), None))
    }

    /// An engine delivers a batch to a life of its member. The first to deliver a height says what is true of it.
    fn delivered(&mut self, at: Ms, (member, life): (usize, u32), delivery: Delivery) {
        self.begins(at);
        if self.members[member].life != life {
            return;
        }
        let (batch, ack) = delivery.into_parts();
        let batch = Batch { height: batch.height, time_ms: batch.time_ms, commands: batch.commands };
        self.note(format_args!("{at} ms: member {member} gets batch {} of {}", batch.height, batch.commands.len()));
        match self.oracle.batch(batch.height) {
            Some(known) if **known == batch => {}
            Some(known) => {
                let detail = format!("member {member} is delivered {batch:?}, others {known:?}");
                return self.fail(invariant::ONE_HISTORY, detail);
            }
            None if batch.height == self.oracle.batches.len() as u64 + 1 && batch.time_ms > self.oracle.time_ms => {
                if let Err(violation) = self.oracle.order(batch.time_ms, batch.commands) {
                    self.violation.get_or_insert(violation);
                    return;
                }
            }
            None => {
                let (have, time_ms) = (self.oracle.batches.len(), self.oracle.time_ms);
                let detail = format!("member {member} is delivered {batch:?} after {have} batches, at {time_ms} ms");
                return self.fail(invariant::ONE_HISTORY, detail);
            }
        }
        let known = self.oracle.batch(batch.height).cloned();
        let seam = self.seam.as_mut().expect("engines deliver through it");
        seam.delivered[member].extend(known.map(|batch| (batch, ack)));
        self.after(1, Event::Offer(member, life));
        self.check();
    }
}
