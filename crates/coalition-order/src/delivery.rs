//! Ordered batches on their way to the consumer.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use commonware_utils::Acknowledgement as _;
use commonware_utils::acknowledgement::Exact;

use crate::shared::Shared;

/// Commands the committee put in order. Equal on every member, for every height.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// 1 for the first batch, then without gaps.
    pub height: u64,
    /// Milliseconds since the Unix epoch: the proposer's clock, but at least one more than the batch before, so it
    /// grows strictly with the height. At most `max_clock_drift_ms` ahead of a quorum's clocks when it was voted for.
    pub time_ms: u64,
    /// The commands. An idle committee orders batches without any.
    pub commands: Vec<Vec<u8>>,
}

/// A batch and the duty to acknowledge it.
///
/// Dropping it without [`acknowledge`](Self::acknowledge) says that the consumer failed: nothing more is delivered in
/// this run, and the engine reports [`OrderError::Dropped`](crate::OrderError::Dropped). The next run delivers it again.
#[derive(Debug)]
pub struct Delivery {
    /// What was ordered.
    pub batch: Batch,
    ack: Ack,
}

/// The duty to acknowledge one batch, apart from its content.
#[derive(Debug)]
pub struct Ack {
    height: u64,
    exact: Option<Exact>,
    shared: Arc<Shared>,
}

impl Delivery {
    pub(crate) fn new(batch: Batch, exact: Exact, shared: Arc<Shared>) -> Self {
        let ack = Ack { height: batch.height, exact: Some(exact), shared };
        Self { batch, ack }
    }

    /// Says that the batch's effects are durable at the consumer. It will not be delivered again once this is on disk,
    /// which follows shortly after; until then a crash makes it come again.
    pub fn acknowledge(self) {
        self.ack.acknowledge();
    }

    /// Splits the content from the duty.
    #[must_use]
    pub fn into_parts(self) -> (Batch, Ack) {
        (self.batch, self.ack)
    }
}

impl Ack {
    /// As [`Delivery::acknowledge`].
    pub fn acknowledge(mut self) {
        if let Some(exact) = self.exact.take() {
            self.shared.acknowledged.fetch_max(self.height, Relaxed);
            exact.acknowledge();
        }
    }
}

impl Drop for Ack {
    fn drop(&mut self) {
        if self.exact.is_some() {
            let _ = self.shared.dropped.compare_exchange(0, self.height, Relaxed, Relaxed);
        }
    }
}
