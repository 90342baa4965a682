//! The consumer's side of a running member.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use crate::command::CommandId;
use crate::error::{OrderError, SubmitError};
use crate::gossip::Outbound;
use crate::inbox::GossipInbox;
use crate::mempool::{Added, Origin};
use crate::shared::Shared;

/// Why the engine's thread is no longer running; `None` while it is.
pub(crate) type Exit = Option<OrderError>;

/// What the running engine can be told.
#[derive(Debug)]
pub(crate) enum Control {
    Prune(u64),
    /// Asks for the newest anchor that is not after this time.
    Anchor(u64, oneshot::Sender<Option<Vec<u8>>>),
    Stop,
}

/// Limits the handle checks before anything reaches the engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HandleLimits {
    pub(crate) max_command_bytes: usize,
    pub(crate) max_gossip_bytes: usize,
    pub(crate) max_pending_bytes: usize,
    /// Newest batches that pruning spares: a restart reads the memory of ordered commands from them.
    pub(crate) keep_batches: u64,
    pub(crate) members: usize,
    pub(crate) seat: usize,
}

/// A member as its process sees it. Cheap to clone. When the last clone is dropped, the member stops.
#[derive(Clone)]
pub struct OrderHandle {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    limits: HandleLimits,
    outbound: mpsc::Sender<Outbound>,
    inbox: Mutex<Option<GossipInbox>>,
    control: mpsc::UnboundedSender<Control>,
    exit: watch::Receiver<Exit>,
}

/// A member's state at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderStatus {
    /// This member's index in the roster.
    pub seat: usize,
    /// Members of the committee, this one included.
    pub members: usize,
    /// Highest height this member knows to be final. Larger than `delivered_height` while it catches up.
    pub finalized_height: u64,
    /// Height after which this run goes on: what the storage says was acknowledged in earlier ones.
    pub resumed_height: u64,
    /// Highest height handed to the consumer in this run; 0 before the first.
    pub delivered_height: u64,
    /// Highest height acknowledged by the consumer in this run; 0 before the first.
    pub acknowledged_height: u64,
    /// Latest consensus view this member saw concluded in this run.
    pub view: u64,
    /// Other members with an authenticated connection.
    pub connected_peers: usize,
    /// Commands waiting to be ordered, those of other members included.
    pub pending_commands: usize,
    /// Bytes of waiting commands of this process.
    pub pending_bytes: usize,
    /// Contradictions by members this one saw: a signed vote for two things at once.
    pub faults: u64,
    /// Side-channel messages dropped because the inbox was full.
    pub gossip_dropped: u64,
    /// Height below which batches were given free in this run; 0 before.
    pub pruned_height: u64,
    /// Whether the engine's thread is running.
    pub running: bool,
}

impl std::fmt::Debug for OrderHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("OrderHandle").field(&self.status()).finish()
    }
}

impl OrderHandle {
    pub(crate) fn new(
        shared: Arc<Shared>,
        limits: HandleLimits,
        outbound: mpsc::Sender<Outbound>,
        inbox: GossipInbox,
        control: mpsc::UnboundedSender<Control>,
        exit: watch::Receiver<Exit>,
    ) -> Self {
        let inbox = Mutex::new(Some(inbox));
        Self { inner: Arc::new(Inner { shared, limits, outbound, inbox, control, exit }) }
    }

    /// Has `command` ordered: all members are told, and told again until it is ordered or this process ends.
    /// A command that waits already or was ordered recently is not ordered again.
    ///
    /// "Recently" is the last 1,024 heights or 65,536 commands. A member that lies can repeat older or newer
    /// commands, so consumers must tolerate repetition.
    ///
    /// # Errors
    /// [`SubmitError`]; nothing was taken then.
    pub fn submit(&self, command: Vec<u8>) -> Result<CommandId, SubmitError> {
        let command = Bytes::from(command);
        let limits = &self.inner.limits;
        if command.len() > limits.max_command_bytes {
            return Err(SubmitError::TooLarge { len: command.len(), max: limits.max_command_bytes });
        }
        if self.inner.exit.borrow().is_some() {
            return Err(SubmitError::Stopped);
        }
        let mut pool = self.inner.shared.pool();
        let (id, added) = pool.add(command, Origin::Local);
        if added == Added::Full {
            let pending_bytes = pool.local_bytes();
            return Err(SubmitError::Full { pending_bytes, max_bytes: limits.max_pending_bytes });
        }
        drop(pool);
        self.inner.shared.changed();
        Ok(id)
    }

    /// Asks for a batch with this time or a later one, even without commands. It comes when this member or one
    /// that was asked the same is the proposer, so have all members ask. `None` withdraws.
    pub fn wake_at(&self, time_ms: Option<u64>) {
        self.inner.shared.set_wake_at(time_ms);
    }

    /// Sends `message` to all other members that are connected. Best effort: may be lost, not ordered, not stored.
    /// Dropped with a warning if larger than `max_gossip_bytes`.
    pub fn gossip(&self, message: Vec<u8>) {
        self.send(None, message);
    }

    /// As [`gossip`](Self::gossip), to the member with this roster index. Does nothing for the own index.
    pub fn send_to(&self, member_index: usize, message: Vec<u8>) {
        if member_index != self.inner.limits.seat {
            self.send(Some(member_index), message);
        }
    }

    fn send(&self, to: Option<usize>, message: Vec<u8>) {
        let max = self.inner.limits.max_gossip_bytes;
        if message.len() > max {
            tracing::warn!(len = message.len(), max, "side-channel message dropped: too large");
            return;
        }
        if self.inner.outbound.try_send(Outbound { to, message: Bytes::from(message) }).is_err() {
            self.inner.shared.gossip_dropped.fetch_add(1, Relaxed);
        }
    }

    /// What other members sent with [`gossip`](Self::gossip) and [`send_to`](Self::send_to). `Some` for the first caller only.
    pub fn gossip_inbox(&self) -> Option<GossipInbox> {
        self.inner.inbox.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Frees the batches below `height`, rounded down to a file of [`batches_per_file`](crate::OrderConfig::batches_per_file). The
    /// newest 1,024 (or one file, if that is less) of those acknowledged in this run always stay. A member that is further
    /// behind than what all others kept can catch up only from an [`Anchor`](crate::Anchor).
    pub fn prune(&self, height: u64) {
        let acknowledged = self.inner.shared.acknowledged.load(Relaxed);
        let height = height.min(acknowledged.saturating_sub(self.inner.limits.keep_batches));
        self.inner.shared.pruned.fetch_max(height, Relaxed);
        let _ = self.inner.control.send(Control::Prune(height));
    }

    /// The newest batch acknowledged here of which the time is not after `time_ms`, with its certificate: for a member whose
    /// consumer has the effects of all batches up to that time, and that lacks batches nobody keeps. It checks it with
    /// [`OrderConfig::verify_anchor`](crate::OrderConfig::verify_anchor). `None` when there is none, or the engine has stopped.
    pub async fn anchor_at(&self, time_ms: u64) -> Option<Vec<u8>> {
        let (answer, answered) = oneshot::channel();
        self.inner.control.send(Control::Anchor(time_ms, answer)).ok()?;
        answered.await.ok().flatten()
    }

    /// The state now.
    #[must_use]
    pub fn status(&self) -> OrderStatus {
        let shared = &self.inner.shared;
        let (pending_commands, pending_bytes) = {
            let pool = shared.pool();
            (pool.len(), pool.local_bytes())
        };
        OrderStatus {
            seat: self.inner.limits.seat,
            members: self.inner.limits.members,
            finalized_height: shared.finalized.load(Relaxed),
            resumed_height: shared.resumed.load(Relaxed),
            delivered_height: shared.delivered.load(Relaxed),
            acknowledged_height: shared.acknowledged.load(Relaxed),
            view: shared.view.load(Relaxed),
            connected_peers: shared.connected.load(Relaxed),
            pending_commands,
            pending_bytes,
            faults: shared.faults.load(Relaxed),
            gossip_dropped: shared.gossip_dropped.load(Relaxed),
            pruned_height: shared.pruned.load(Relaxed),
            running: self.inner.exit.borrow().is_none(),
        }
    }

    /// Resolves when the engine is no longer running, with the reason; [`OrderError::Stopped`] if it was asked to stop.
    /// The process should then exit and be restarted: after a failed write nothing in memory can be trusted.
    pub async fn wait_failed(&self) -> OrderError {
        let mut exit = self.inner.exit.clone();
        let result = exit.wait_for(Option::is_some).await;
        match result.as_deref() {
            Ok(Some(error)) => error.clone(),
            _ => OrderError::Ended("thread"),
        }
    }

    /// Stops the member and waits until its storage is released. Call it from a tokio runtime.
    ///
    /// # Errors
    /// [`OrderError::StopTimeout`] if it takes longer than `deadline`; the reason if it had failed before.
    pub async fn stop(&self, deadline: Duration) -> Result<(), OrderError> {
        let _ = self.inner.control.send(Control::Stop);
        match tokio::time::timeout(deadline, self.wait_failed()).await {
            Ok(OrderError::Stopped) => Ok(()),
            Ok(error) => Err(error),
            Err(_) => Err(OrderError::StopTimeout(u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX))),
        }
    }
}
