//! The batch loop: ordered batches in, durable entries and cosignatures out. Runs on a thread of its own, because
//! every step ends in an fsync.

use std::sync::Arc;

use coalition_log::{
    Context,
    checkpoint::{Checkpoint, Cosigner, SignedCheckpoint},
};
use coalition_order::{Batch, Delivery, OrderHandle};
use tokio::sync::mpsc;

use crate::{
    execution::{Command, first_height},
    member::{
        MemberError,
        hosted::{Hosted, lock},
        retention::Retention,
    },
    wire::{self, Gossip, Ordered},
};

/// What the batch loop owns.
pub(crate) struct Executor {
    pub(crate) organisms: Arc<Vec<Hosted>>,
    pub(crate) cosigners: Vec<Cosigner>,
    /// The epoch whose engine delivers.
    pub(crate) epoch: u64,
    pub(crate) order: OrderHandle,
    /// Which ordered batches are kept.
    pub(crate) retention: Retention,
}

impl Executor {
    /// Executes deliveries until the channel closes or something fails; failure is final.
    pub(crate) fn run(mut self, mut deliveries: mpsc::Receiver<Delivery>) -> Result<(), MemberError> {
        while let Some(delivery) = deliveries.blocking_recv() {
            let (mut batch, ack) = delivery.into_parts();
            let of_engine = batch.height;
            self.retention.begins_with(of_engine, || sizes(&self.organisms));
            // An engine counts from 1 in every epoch; heights go on over all of them.
            batch.height += first_height(self.epoch);
            self.batch(&batch)?;
            ack.acknowledge();
            self.prune(of_engine);
        }
        Ok(())
    }

    /// Drops ordered batches that nobody needs who can read the logs.
    fn prune(&mut self, height: u64) {
        self.retention.executed(height, || sizes(&self.organisms));
        let certified = || self.organisms.iter().map(Hosted::certified_size).collect();
        if let Some(below) = self.retention.prune_below(height, certified) {
            tracing::debug!(epoch = self.epoch, below, "dropping ordered batches");
            self.order.prune(below);
        }
    }

    fn batch(&self, batch: &Batch) -> Result<(), MemberError> {
        let ordered = decode_commands(batch);
        let organisms = Arc::clone(&self.organisms);
        for (organism, cosigner) in organisms.iter().zip(&self.cosigners) {
            // It has handed over: what this engine still orders is ordered again by the next one.
            if organism.epoch() > self.epoch {
                continue;
            }
            // A batch that was executed before a crash and is delivered again, or whose entries were fetched from others.
            if lock(&organism.execution).has_executed(batch.time_ms) {
                continue;
            }
            let cx = self.context(batch);
            let commands = ordered.iter().filter(|command| command.is_for(organism.id));
            let commands = commands.map(|c| Command { write_id: c.bound_id(), payload: &c.payload }).collect();
            let appended = organism.execute(&cx, self.tick_at(batch.time_ms), commands)?;
            if appended.grew {
                self.certify(organism, cosigner, batch.time_ms)?;
            }
            if let Some(state) = &appended.state {
                organism.keep_state(state)?;
            }
        }
        let now = self.context(batch);
        let wake = organisms.iter().filter_map(|organism| lock(&organism.execution).wake_at_ms(&now)).min();
        self.order.wake_at(wake);
        Ok(())
    }

    fn context(&self, batch: &Batch) -> Context {
        Context { height: batch.height, time_ms: batch.time_ms, tick: self.tick_at(batch.time_ms).unwrap_or(0) }
    }

    /// The tick in force, as the clock among the organisms knows it; it is the first.
    fn tick_at(&self, time_ms: u64) -> Option<u64> {
        self.organisms.first().and_then(|clock| lock(&clock.execution).tick_at(time_ms))
    }

    /// Signs the new head and tells everybody; while catching up, heads that are long certified are not signed again.
    fn certify(&self, organism: &Hosted, cosigner: &Cosigner, time_ms: u64) -> Result<(), MemberError> {
        if organism.certified_size() > organism.log.size() {
            return organism.publish_reached();
        }
        let note = sign_head(organism, cosigner, time_ms)?;
        self.order.gossip(cosigned(organism, &note));
        organism.cosigned(&note)?;
        organism.publish_reached()
    }
}

fn sizes(organisms: &[Hosted]) -> Vec<u64> {
    organisms.iter().map(|organism| organism.log.size()).collect()
}

/// Records the head in the sign guard, then signs it. `time_ms` is the committee's time of the head.
pub(crate) fn sign_head(organism: &Hosted, cosigner: &Cosigner, time_ms: u64) -> Result<SignedCheckpoint, MemberError> {
    organism.with_store(|store| {
        let head = store.head();
        let line = store.cosign(cosigner, time_ms / 1_000)?;
        organism.note_signed(head.size);
        let checkpoint = Checkpoint { organism: organism.id, size: head.size, root: head.root };
        Ok(SignedCheckpoint { checkpoint, signatures: vec![line] })
    })
}

/// The message that carries a cosignature.
pub(crate) fn cosigned(organism: &Hosted, note: &SignedCheckpoint) -> Vec<u8> {
    wire::encode(&Gossip::Cosigned { organism: organism.id, checkpoint: note.to_string() })
}

fn decode_commands(batch: &Batch) -> Vec<Ordered> {
    let decoded = batch.commands.iter().map(|bytes| wire::decode::<Ordered>(bytes));
    decoded
        .filter_map(|command| {
            command
                .inspect_err(|error| tracing::warn!(height = batch.height, %error, "ignored an ordered command"))
                .ok()
        })
        .collect()
}
