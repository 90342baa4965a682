//! Receives what consensus decided: notes it, hands ordered batches to the consumer.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use commonware_actor::Feedback;
use commonware_consensus::marshal::Update;
use commonware_consensus::simplex::scheme::ed25519::Scheme;
use commonware_consensus::simplex::types::{Activity, Attributable as _};
use commonware_consensus::{Reporter, Viewable as _};
use commonware_cryptography::sha256::Digest;
use commonware_utils::Acknowledgement as _;
use tokio::sync::mpsc;

use crate::block::BatchBlock;
use crate::delivery::{Batch, Delivery};
use crate::shared::Shared;

/// Reporter of ordered batches.
#[derive(Clone)]
pub(crate) struct Sink {
    shared: Arc<Shared>,
    deliveries: mpsc::Sender<Delivery>,
}

impl Sink {
    /// `deliveries` must have room for every batch handed out before its acknowledgement.
    pub(crate) fn new(shared: Arc<Shared>, deliveries: mpsc::Sender<Delivery>) -> Self {
        Self { shared, deliveries }
    }
}

impl Reporter for Sink {
    type Activity = Update<BatchBlock>;

    fn report(&mut self, update: Self::Activity) -> Feedback {
        let (block, ack) = match update {
            Update::Tip(_, height, _) => {
                // Whoever holds a proposal back until the last commands are final goes on.
                if self.shared.finalized.fetch_max(height.get(), Relaxed) < height.get() {
                    self.shared.changed();
                }
                return Feedback::Ok;
            }
            Update::Block(block, ack) => (block, ack),
        };
        let block = block.inner();
        if block.height == 0 {
            ack.acknowledge();
            return Feedback::Ok;
        }
        self.shared.finalized.fetch_max(block.height, Relaxed);
        self.shared.pool().ordered(block.height, block.ids());
        self.shared.delivered.store(block.height, Relaxed);
        self.shared.changed();
        let commands = block.commands.iter().map(|c| c.to_vec()).collect();
        let batch = Batch { height: block.height, time_ms: block.time_ms, commands };
        // Room is guaranteed by the limit of unacknowledged batches; a closed channel means the consumer is gone,
        // and dropping the delivery reports that.
        match self.deliveries.try_send(Delivery::new(batch, ack, Arc::clone(&self.shared))) {
            Ok(()) => Feedback::Ok,
            Err(_) => Feedback::Closed,
        }
    }
}

/// Notes the progress of consensus and the faults of members, then passes everything on.
#[derive(Clone)]
pub(crate) struct Observer<R> {
    shared: Arc<Shared>,
    /// Roster index by index in the sorted key set, which consensus counts in.
    seats: Arc<Vec<usize>>,
    inner: R,
}

impl<R> Observer<R> {
    pub(crate) fn new(shared: Arc<Shared>, seats: Arc<Vec<usize>>, inner: R) -> Self {
        Self { shared, seats, inner }
    }
}

impl<R: Reporter<Activity = Activity<Scheme, Digest>>> Reporter for Observer<R> {
    type Activity = Activity<Scheme, Digest>;

    fn report(&mut self, activity: Self::Activity) -> Feedback {
        match &activity {
            Activity::Notarization(_) | Activity::Nullification(_) | Activity::Finalization(_) => {
                self.shared.view.fetch_max(activity.view().get(), Relaxed);
            }
            Activity::ConflictingNotarize(proof) => {
                self.fault(proof.signer().get(), "voted for two batches in one view")
            }
            Activity::ConflictingFinalize(proof) => {
                self.fault(proof.signer().get(), "finalized two batches in one view")
            }
            Activity::NullifyFinalize(proof) => self.fault(proof.signer().get(), "skipped and finalized the same view"),
            _ => {}
        }
        self.inner.report(activity)
    }
}

impl<R> Observer<R> {
    fn fault(&self, signer: u32, what: &'static str) {
        self.shared.faults.fetch_add(1, Relaxed);
        let member = usize::try_from(signer).ok().and_then(|i| self.seats.get(i)).copied();
        tracing::error!(member, what, "a member contradicts itself: it lies, or runs twice under one key");
    }
}
